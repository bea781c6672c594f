"""The recipes in configs/: each is built, says where its values come from, and no option is without a reader."""

from __future__ import annotations

import ast
from pathlib import Path

import pydantic
import pytest

from zephyr_jax import recipe as recipe_module
from zephyr_jax.evaluation_recipe import load_evaluation_recipe
from zephyr_jax.feedback_recipe import load_feedback_recipe
from zephyr_jax.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# What else than a training run a folder of recipes is for.
LOADERS = {"evaluation": load_evaluation_recipe, "feedback": load_feedback_recipe}
ORIGINALS = [path for path in CONFIGS if path.parent.name == "zephyr_7b"]


def _named(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT / "configs")) for path in paths])


@pytest.fixture(autouse=True)
def _folder_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEPHYR_DATA", "/data")


def test_the_default_the_real_model_and_the_three_originals_are_there() -> None:
    names = {str(path.relative_to(ROOT / "configs")) for path in CONFIGS}
    originals = {f"zephyr_7b/{name}.yaml" for name in ("paper", "handbook_2023", "handbook_2024")}
    assert {"tiny.yaml", "smollm2.yaml"} | originals <= names


@_named(CONFIGS)
def test_a_recipe_is_built(path: Path) -> None:
    assert LOADERS.get(path.parent.name, load_recipe)(path).name


@_named(CONFIGS)
def test_a_recipe_opens_with_command_hardware_time_and_what_to_expect(path: Path) -> None:
    opening = path.read_text(encoding="utf-8").split("\nname:")[0].lower()
    assert opening.startswith("#")
    for word in (f"--config {path.relative_to(ROOT)}", "hardware", "time", "expect"):
        assert word in opening


@_named(ORIGINALS)
def test_an_original_writes_out_every_key(path: Path) -> None:
    """No reliance on defaults: who reads the file knows the run, and a default may change without changing it."""

    def unset(options: pydantic.BaseModel, parent: str = "") -> list[str]:
        missing = [f"{parent}{key}" for key in type(options).model_fields if key not in options.model_fields_set]
        for key in options.model_fields_set:
            value = getattr(options, key)
            if isinstance(value, pydantic.BaseModel):
                missing += unset(value, f"{parent}{key}.")
        return missing

    assert not unset(load_recipe(path))


@_named(ORIGINALS)
def test_every_key_of_an_original_has_its_source(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        is_block = line.split("#")[0].rstrip().endswith(":")
        if line and not line.startswith("#") and not is_block:
            assert "# [" in line, f"{path.name}:{number} has no source"


def test_the_originals_differ_where_they_are_known_to() -> None:
    """The table of the three originals: batch sizes, schedules, beta, epochs, optimizer."""
    found = {}
    for path in ORIGINALS:
        recipe = load_recipe(path)
        dsft, ddpo = recipe.dsft, recipe.ddpo
        assert dsft is not None and ddpo is not None
        sft = (dsft.batch_size, dsft.schedule, dsft.learning_rate, dsft.warmup_ratio, dsft.epochs)
        dpo = (ddpo.batch_size, ddpo.beta, ddpo.epochs, ddpo.optimizer, ddpo.schedule, ddpo.learning_rate)
        found[path.stem] = (sft, dpo)
        assert (dsft.max_length, ddpo.max_length, ddpo.max_prompt_length, recipe.seed) == (2048, 1024, 512, 42)
        assert ddpo.warmup_ratio == 0.1 and ddpo.weight_decay == 0.0 and recipe.model.compute_dtype == "bfloat16"
    assert found == {
        "paper": ((512, "cosine", 2e-5, 0.1, 1), (32, 0.1, 3, "adamw", "linear", 5e-7)),
        "handbook_2023": ((512, "cosine", 2e-5, 0.0, 1), (64, 0.1, 3, "rmsprop", "linear", 5e-7)),
        "handbook_2024": ((128, "cosine", 2e-5, 0.1, 1), (128, 0.01, 1, "adamw", "cosine", 5e-7)),
    }


def test_quirks_are_off_unless_an_original_names_them() -> None:
    defaults = recipe_module.Dsft.model_fields
    assert defaults["loss_on"].default == "assistant" and defaults["isolate_dialogues"].default is True
    assert defaults["schedule_steps"].default is None and Recipe.model_fields["empty_system_turn"].default is False
    quirky = load_recipe(ROOT / "configs/zephyr_7b/handbook_2023.yaml")
    assert quirky.dsft is not None and quirky.empty_system_turn
    assert (quirky.dsft.loss_on, quirky.dsft.isolate_dialogues, quirky.dsft.schedule_steps) == ("all", False, 406)


def _options(block: type[pydantic.BaseModel]) -> set[str]:
    names = set(block.model_fields)
    for subclass in block.__subclasses__():
        names |= _options(subclass)
    return names


def test_every_option_is_read_somewhere() -> None:
    """By attribute, as in `stage.beta`, outside the modules that define and read recipes."""
    read: set[str] = set()
    for path in (ROOT / "zephyr_jax").rglob("*.py"):
        if path.name.endswith(("recipe.py", "_options.py", "recipe_file.py", "yaml_nodes.py")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # The mesh's sizes are read as a whole (resolve_mesh); adapters can only be null in this version.
    unread = _options(recipe_module.Options) - read - {"data", "fsdp", "tensor", "lora"}
    assert not unread
