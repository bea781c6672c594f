"""Recipes: what is read as what, and that every mistake has one message with its file, line and key.

The messages are the claims here: a user sees nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pydantic
import pytest

from zephyr_jax import recipe_file
from zephyr_jax.recipe import (
    Data,
    Mesh,
    ModelShape,
    Recipe,
    Source,
    load_recipe,
    recipe_differences,
    recipe_to_yaml,
    resolve_mesh,
)
from zephyr_jax.records import InputError

SHAPE = "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128, vocab_size: 300}"
SMALL = f"""\
name: small
model:
  weights: null
  shape: {SHAPE}
tokenizer: builtin:bytes
dsft:
  data: {{train: [chats.jsonl]}}
ddpo:
  data:
    train: [pairs.jsonl]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a recipe's text as r.yaml in the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text: str) -> str:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return "r.yaml"

    return write_recipe


def _error(path: str, overrides: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides or [])
    return str(caught.value)


# What is read as what


def test_defaults_are_those_of_the_documented_interface(write) -> None:
    recipe = load_recipe(write(SMALL))
    assert (recipe.output_dir, recipe.seed, recipe.stages, recipe.bos) == ("runs", 42, ("dsft", "ddpo"), "auto")
    assert (recipe.model.compute_dtype, recipe.model.attention, recipe.model.remat) == ("bfloat16", "auto", "full")
    assert recipe.chat_template == "zephyr" and recipe.empty_system_turn is False
    assert recipe.mesh == Mesh(data=1, fsdp=-1, tensor=1) and recipe.trackers == () and recipe.reference.path is None
    dsft, ddpo = recipe.dsft, recipe.ddpo
    assert dsft is not None and ddpo is not None
    assert (dsft.max_length, dsft.packing, dsft.loss_on, dsft.batch_size) == (2048, True, "assistant", 128)
    assert (dsft.learning_rate, dsft.schedule, dsft.warmup_ratio, dsft.optimizer) == (2e-5, "cosine", 0.1, "adamw")
    assert (ddpo.beta, ddpo.loss, ddpo.label_smoothing, ddpo.layout) == (0.1, "sigmoid", 0.0, "packed")
    assert (ddpo.max_length, ddpo.max_prompt_length, ddpo.batch_size, ddpo.row_length) == (1024, 512, 32, 2048)
    for stage in (dsft, ddpo):
        assert (stage.epochs, stage.max_steps, stage.micro_batch_size, stage.weight_decay) == (1, None, None, 0.0)
        assert (stage.adam_b1, stage.adam_b2, stage.adam_eps, stage.max_grad_norm) == (0.9, 0.999, 1e-8, 1.0)
        assert (stage.shuffle, stage.max_bad_rows, stage.log_every, stage.keep_checkpoints) == (True, 0.01, 1, 2)
        assert stage.eval_every is None and stage.save_every is None and stage.min_learning_rate_ratio == 0.0


@pytest.mark.parametrize("text, value", [("5e-7", 5e-7), ("2.0e-5", 2e-5), ("1", 1.0), (".5", 0.5), ("1E+1", 10.0)])
def test_numbers_of_yaml_1_2_are_numbers(write, text: str, value: float) -> None:
    recipe = load_recipe(write(SMALL + f"  learning_rate: {text}\n"), [f"dsft.learning_rate={text}"])
    assert recipe.dsft is not None and recipe.ddpo is not None
    assert recipe.ddpo.learning_rate == recipe.dsft.learning_rate == value


@pytest.mark.parametrize("text", ["007", "2024-01-01", "no", "yes", "on", "1e3", "true", "1_000", "0x1f", "12:30:45"])
def test_a_text_field_takes_its_text_as_it_is(write, text: str) -> None:
    assert load_recipe(write(SMALL.replace("name: small", f"name: {text}"))).name == text
    assert load_recipe(write(SMALL), [f"name={text}"]).name == text


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "True1"])
def test_words_of_yaml_1_1_are_no_booleans(write, word: str) -> None:
    path = write(SMALL.replace("dsft:\n", f"dsft:\n  shuffle: {word}\n"))
    assert f"r.yaml:7: dsft.shuffle: got the text '{word}', wanted true or false" in _error(path)


def test_quoted_numbers_are_texts(write) -> None:
    assert "r.yaml:11: ddpo.epochs: got the text '3', wanted a whole number" in _error(write(SMALL + '  epochs: "3"\n'))


def test_plain_sources_and_blocks_are_the_same(write) -> None:
    path = write(SMALL.replace("[chats.jsonl]", "[a.jsonl, {source: 2024-01-01, fraction: 0.5, limit: 7}]"))
    recipe = load_recipe(path)
    assert recipe.dsft is not None
    assert recipe.dsft.data.train == (Source(source="a.jsonl"), Source(source="2024-01-01", fraction=0.5, limit=7))
    assert Data(train=("a.jsonl",)).train == (Source(source="a.jsonl"),)  # type: ignore[arg-type]


def test_head_sizes_are_filled_in(write) -> None:
    shape = load_recipe(write(SMALL)).model.shape
    assert shape is not None and (shape.num_key_value_heads, shape.head_dim) == (4, 16)
    given = load_recipe("r.yaml", ["model.shape.head_dim=32", "model.shape.num_key_value_heads=2"]).model.shape
    assert given is not None and (given.num_key_value_heads, given.head_dim) == (2, 32)
    nulls = load_recipe("r.yaml", ["model.shape.head_dim=null", "model.shape.num_key_value_heads=null"]).model.shape
    assert nulls == shape and hash(nulls) == hash(shape)


def test_a_recipe_is_frozen_and_hashable(write) -> None:
    recipe = load_recipe(write(SMALL))
    assert hash(recipe) == hash(load_recipe("r.yaml"))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


def test_a_recipe_written_out_reads_back_equal(write) -> None:
    overrides = ["name=null-1", "seed=0", "ddpo.learning_rate=5e-7", "ddpo.beta=1", "dsft.data.eval=[a b.jsonl, '~']"]
    recipe = load_recipe(
        write(SMALL), [*overrides, "output_dir=2024-01-01", "reference.path=no", "trackers=[tensorboard]"]
    )
    text = recipe_to_yaml(recipe)
    assert load_recipe(write(text)) == recipe
    assert "micro_batch_size: null" in text and list(Recipe.model_fields)[0] == text.split(":")[0]


def test_anchors_are_followed_and_there_are_no_merge_keys(write) -> None:
    recipe = load_recipe(write(SMALL.replace("[chats.jsonl]", "&rows [chats.jsonl], eval: *rows")))
    assert recipe.dsft is not None and recipe.dsft.data.eval == recipe.dsft.data.train
    assert "unknown key 'dsft.<<'" in _error(write(SMALL.replace("dsft:\n", "dsft: {<<: {epochs: 2}}\nold:\n")))


# Environment variables


def test_variables_take_their_value_from_the_environment(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/there")
    path = write(SMALL.replace("[pairs.jsonl]", '["${SOME_FOLDER}/pairs.jsonl"]'))
    recipe = load_recipe(path, ["output_dir=${SOME_FOLDER}/runs"])
    assert recipe.ddpo is not None and recipe.ddpo.data.train[0].source == "/there/pairs.jsonl"
    assert recipe.output_dir == "/there/runs"


def test_an_unset_variable_is_named(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZEPHYR_DATA", raising=False)
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    message = _error(write(SMALL.replace("[pairs.jsonl]", '["${ZEPHYR_DATA}/pairs.jsonl"]')))
    assert message.startswith("r.yaml:10: ddpo.data.train[0]: the environment variable ZEPHYR_DATA is not set")
    assert "folder that holds the data sets" in message
    assert "variable SOME_FOLDER is not set" in _error(write(SMALL), ["output_dir=${SOME_FOLDER}"])


# Mistakes in the file


def test_an_unknown_key_names_the_nearest_known_one(write) -> None:
    message = _error(write(SMALL + "  warmup: 0.1\n"))
    assert message == "r.yaml:11: unknown key 'ddpo.warmup'; did you mean 'ddpo.warmup_ratio'?"


def test_a_key_in_the_wrong_block_names_its_place(write) -> None:
    assert _error(write(SMALL + "beta: 0.1\n")) == "r.yaml:11: unknown key 'beta'; did you mean 'ddpo.beta'?"


def test_an_unknown_key_with_no_near_one_lists_the_known(write) -> None:
    message = _error(write(SMALL + "mesh: {qqq: 1}\n"))
    assert message == "r.yaml:11: unknown key 'mesh.qqq'; mesh knows: data, fsdp, tensor"


def test_missing_required_keys_are_named_with_their_block(write) -> None:
    assert "r.yaml: missing required key 'name'" in _error(write(SMALL.replace("name: small\n", "")))
    assert "r.yaml:6: missing required key 'dsft.data'" in _error(
        write(SMALL.replace("  data: {train: [chats.jsonl]}", "  epochs: 1"))
    )
    assert "missing required key 'model.shape.vocab_size'" in _error(write(SMALL.replace(", vocab_size: 300", "")))


def test_a_repeated_key_names_both_lines(write) -> None:
    message = _error(write(SMALL + "  beta: 0.1\n  epochs: 1\n  beta: 0.2\n"))
    assert message == "r.yaml:13: repeated key 'beta', first given at r.yaml:11; keep one of them"


def test_several_mistakes_are_all_listed_in_the_order_of_their_lines(write) -> None:
    message = _error(write("nmae: x\n" + SMALL + "  beta: -1\n"), ["seed=x"])
    assert [line.split(": ")[0] for line in message.splitlines()] == [
        "r.yaml:1",
        "also r.yaml:12",
        "also override 'seed=x'",
    ]


WRONG_VALUES = [
    ("ddpo.beta", "0", "got 0, wanted a number above 0"),
    ("ddpo.beta", ".inf", "wanted a finite number"),
    ("ddpo.beta", "null", "got null, wanted a number"),
    ("ddpo.loss", "sigmoyd", "got the text 'sigmoyd', wanted 'sigmoid', 'hinge' or 'ipo'"),
    ("ddpo.label_smoothing", "0.5", "got 0.5, wanted a number below 0.5"),
    ("ddpo.warmup_ratio", "1.1", "got 1.1, wanted at most 1"),
    ("ddpo.warmup_ratio", "-0.1", "got -0.1, wanted at least 0"),
    ("ddpo.learning_rate", "0.0", "wanted a number above 0"),
    ("ddpo.learning_rate", "5e-7x", "got the text '5e-7x', wanted a number"),
    ("ddpo.epochs", "0", "got 0, wanted at least 1"),
    ("ddpo.epochs", "1.5", "got 1.5, wanted a whole number"),
    ("ddpo.epochs", "true", "got true, wanted a whole number"),
    ("ddpo.batch_size", "0", "wanted at least 1"),
    ("ddpo.batch_size", "[1]", "got a list, wanted a whole number"),
    ("ddpo.shuffle", "1", "got 1, wanted true or false"),
    ("ddpo.max_bad_rows", "2", "wanted at most 1"),
    ("ddpo.data", "pairs.jsonl", "got the text 'pairs.jsonl', wanted a block of keys"),
    ("ddpo.data.train", "pairs.jsonl", "got the text 'pairs.jsonl', wanted a list"),
    ("ddpo.data.train", "[]", "wanted at least one source"),
    ("ddpo.data.train", "[{source: x, fraction: 0}]", "train[0].fraction: got 0, wanted a number above 0"),
    ("ddpo.data.train", "[{source: x, fraction: 1.01}]", "train[0].fraction: got 1.01, wanted at most 1"),
    ("ddpo.data.train", "[{source: x, limit: 0}]", "train[0].limit: got 0, wanted at least 1"),
    ("ddpo.data.train", "[{limit: 1}]", "missing required key 'ddpo.data.train[0].source'"),
    ("model.compute_dtype", "float16", "got the text 'float16', wanted 'bfloat16' or 'float32'"),
    ("name", "a/b", "name: got 'a/b', wanted the name of one folder"),
    ("name", "", "name: got null, wanted a text"),
    ("output_dir", "''", "output_dir: got an empty text"),
    ("seed", "-1", "wanted at least 0"),
    ("trackers", "[wandb]", "trackers[0]: got the text 'wandb', wanted 'tensorboard'"),
    ("lora", "{rank: 8}", "lora: adapters are not in this version yet"),
    ("ddpo.lora", "{rank: 8}", "ddpo.lora: adapters are not in this version yet"),
    ("mesh", "4", "mesh: got 4, wanted a block of keys"),
    ("mesh.data", "0", "mesh.data: got 0, wanted 1 or more, or -1"),
    ("mesh.data", "-2", "mesh.data: got -2, wanted at least -1"),
]


@pytest.mark.parametrize("key, text, expected", WRONG_VALUES, ids=[f"{key}={text}" for key, text, _ in WRONG_VALUES])
def test_a_wrong_value_says_what_was_got_and_wanted(write, key: str, text: str, expected: str) -> None:
    message = _error(write(SMALL), [f"{key}={text}"])
    assert expected in message
    assert message.startswith(f"override '{key}={text}': ") and len(message.splitlines()) == 1


CONFLICTS = [
    (
        ["model.shape.num_key_value_heads=3"],
        "shape.num_key_value_heads: got 3, wanted a divisor of num_attention_heads (4)",
    ),
    (
        ["model.shape.hidden_size=66"],
        "shape.hidden_size: got 66, wanted a multiple of num_attention_heads (4), or head_dim",
    ),
    (["model.shape.head_dim=15"], "shape.head_dim: got 15, wanted an even size"),
    (["ddpo.max_prompt_length=1024"], "ddpo.max_prompt_length: got 1024, wanted less than max_length (1024)"),
    (["ddpo.row_length=1000"], "ddpo.row_length: got 1000, wanted at least max_length (1024)"),
    (["ddpo.micro_batch_size=5"], "ddpo.micro_batch_size: got 5, wanted a divisor of batch_size (32)"),
    (["ddpo.loss=ipo", "ddpo.label_smoothing=0.1"], "ddpo.label_smoothing: got 0.1, wanted 0 with loss ipo"),
    (["model.shape=null"], "model.shape: weights is null (random weights), which needs the shape"),
    (["tokenizer=null"], "tokenizer: model.weights is null and brings no tokenizer"),
    (["model.attention=cudnn", "model.compute_dtype=float32"], "model.attention: got cudnn with compute_dtype float32"),
    (["mesh={data: -1}"], "mesh: got {data: -1, fsdp: -1, tensor: 1}, wanted -1 for at most one axis"),
    (["stages=[ddpo, dsft]"], "stages: got [ddpo, dsft], wanted [dsft], [ddpo] or [dsft, ddpo]"),
    (["stages=[dsft, dsft]"], "stages: got [dsft, dsft], wanted"),
    (["stages=[]"], "stages: got [], wanted"),
    (["ddpo=null"], "ddpo: missing or null, but stages names ddpo"),
    (["trackers=[tensorboard, tensorboard]"], "trackers: got tensorboard, tensorboard, wanted each once"),
]


@pytest.mark.parametrize("overrides, expected", CONFLICTS, ids=[" ".join(overrides) for overrides, _ in CONFLICTS])
def test_values_that_cannot_go_together_are_refused(write, overrides: list[str], expected: str) -> None:
    assert expected in _error(write(SMALL), overrides)


def test_conflicts_in_a_file_have_its_line(write) -> None:
    message = _error(write(SMALL + "  max_prompt_length: 2000\n  micro_batch_size: 7\n"))
    assert "r.yaml:11: ddpo.max_prompt_length" in message and "r.yaml:12: ddpo.micro_batch_size" in message


def test_a_padded_layout_has_no_row_length_to_satisfy(write) -> None:
    assert load_recipe(write(SMALL), ["ddpo.layout=padded", "ddpo.row_length=16"]).ddpo is not None


def test_a_block_outside_stages_may_stay_but_is_still_checked(write) -> None:
    assert load_recipe(write(SMALL), ["stages=[dsft]"]).ddpo is not None
    assert "ddpo.beta" in _error("r.yaml", ["stages=[dsft]", "ddpo.beta=-1"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "r.yaml: got nothing at the top"),
        ("- a\n", "r.yaml: got a list at the top"),
        ("name: 'x\n", "not valid YAML"),
        ("name: a: b\n", "r.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: a second document starts here"),
        ("seed: !!int 3\n", "r.yaml:1: got the tag"),
        ("name: *nothing\n", "r.yaml:1: alias '*nothing'"),
        ("[a]: 1\n", "r.yaml:1: got a list or block as a key"),
        ("stages: [${A}]\n", "braces or colons of its own is quoted"),
        ("name: \x07\n", "not valid YAML"),
    ],
)
def test_what_is_no_recipe_at_all_is_said_so(write, text: str, expected: str) -> None:
    assert expected in _error(write(text))


def test_an_unreadable_file_is_said_so(write, tmp_path: Path) -> None:
    assert "nowhere.yaml: cannot read the recipe: No such file or directory" in _error("nowhere.yaml")
    assert "Is a directory" in _error(str(tmp_path))
    Path("latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert "latin.yaml: cannot read the recipe: not UTF-8" in _error("latin.yaml")


# Overrides


def test_lists_and_blocks_replace_the_whole_value(write) -> None:
    overrides = ["ddpo.data.train=[x.jsonl, 'hf:a/b:train[:10]']", "mesh={fsdp: 2}", "dsft.epochs=3"]
    recipe = load_recipe(write(SMALL + "mesh: {tensor: 4}\n"), overrides)
    assert recipe.ddpo is not None and recipe.dsft is not None
    assert [source.source for source in recipe.ddpo.data.train] == ["x.jsonl", "hf:a/b:train[:10]"]
    assert recipe.mesh == Mesh(fsdp=2) and recipe.dsft.epochs == 3


def test_a_later_override_wins_and_keeps_what_an_earlier_one_set_beside_it(write) -> None:
    recipe = load_recipe(write(SMALL), ["mesh.data=2", "mesh.tensor=4", "mesh.data=8"])
    assert (recipe.mesh.data, recipe.mesh.tensor) == (8, 4)


@pytest.mark.parametrize(
    "text, value", [("a=b", "a=b"), ("a: b #c", "a: b #c"), ("[x]", "[x]"), ("'q'", "q"), ("it's", "it's")]
)
def test_a_text_override_is_everything_after_the_first_equals_sign(write, text: str, value: str) -> None:
    assert load_recipe(write(SMALL), [f"output_dir={text}"]).output_dir == value


def test_null_empties_an_optional_field(write) -> None:
    recipe = load_recipe(write(SMALL), ["ddpo.max_grad_norm=null", "reference.path=x", "reference.path=null"])
    assert recipe.ddpo is not None and recipe.ddpo.max_grad_norm is None and recipe.reference.path is None


def test_an_override_through_a_null_or_absent_block_says_so(write) -> None:
    without = write(SMALL.split("ddpo:")[0] + "stages: [dsft]\n")
    assert "override 'ddpo.beta=0.2': 'ddpo' is not in the file" in _error(without, ["ddpo.beta=0.2"])
    null = write(SMALL.split("ddpo:")[0] + "stages: [dsft]\nddpo: null\n")
    message = _error(null, ["ddpo.beta=0.2"])
    assert "override 'ddpo.beta=0.2': 'ddpo' is null at r.yaml:9" in message and "'ddpo={...}'" in message
    assert load_recipe(null, ["ddpo={data: {train: [x]}}", "ddpo.beta=0.2"]).ddpo is not None


@pytest.mark.parametrize(
    "override, expected",
    [
        ("ddpo.beta", "wanted key.path=value"),
        ("=3", "wanted key.path=value"),
        ("ddpo..beta=3", "wanted key.path=value"),
        ("ddpo.betta=3", "unknown key 'ddpo.betta'; did you mean 'ddpo.beta'?"),
        ("ddpo.bata=3", "unknown key 'ddpo.bata'; did you mean 'ddpo.data' or 'ddpo.beta'?"),
        ("dpo.beta=3", "unknown key 'dpo'; did you mean 'ddpo'?"),
        ("name.x=3", "'name' is the text 'small' at r.yaml:1 and is replaced as a whole"),
        ("ddpo.data.train.source=x", "'ddpo.data.train' is a list at r.yaml:10 and is replaced as a whole"),
        ("ddpo.data.train=[hf:a/b:train[:10]]", "braces or colons of its own is quoted"),
    ],
)
def test_a_wrong_override_is_quoted_and_explained(write, override: str, expected: str) -> None:
    message = _error(write(SMALL), [override])
    assert message.startswith(f"override '{override}'") and expected in message


# Differences, mesh, speed


def test_what_is_not_at_its_default_is_listed_beside_it(write) -> None:
    recipe = load_recipe(write(SMALL), ["seed=7", "ddpo.data.train=[{source: a.jsonl, limit: 5}, b.jsonl]"])
    found = {key: (value, default) for key, value, default in recipe_file.non_defaults(recipe)}
    assert found["seed"] == ("7", "42") and found["name"] == (recipe.name, "") and "output_dir" not in found
    assert found["ddpo.data.train"] == ("[{source: a.jsonl, limit: 5}, b.jsonl]", "")


def test_differences_are_named_by_dotted_keys(write) -> None:
    old = load_recipe(write(SMALL))
    new = load_recipe("r.yaml", ["ddpo.beta=0.2", "dsft.max_grad_norm=null", "stages=[dsft]"])
    assert recipe_differences(old, old) == []
    assert recipe_differences(old, new) == [
        "stages: [dsft, ddpo] -> [dsft]",
        "dsft.max_grad_norm: 1.0 -> null",
        "ddpo.beta: 0.1 -> 0.2",
    ]
    assert recipe_differences(old.model_dump(mode="json"), new) == recipe_differences(old, new)
    assert recipe_differences({"name": "small"}, {"name": "small", "seed": 1}) == ["seed: (absent) -> 1"]


@pytest.mark.parametrize(
    "sizes, num_devices, expected",
    [((1, -1, 1), 16, (1, 16, 1)), ((2, -1, 4), 16, (2, 2, 4)), ((-1, 1, 1), 1, (1, 1, 1)), ((4, 2, 1), 8, (4, 2, 1))],
)
def test_one_axis_takes_what_is_left_of_the_devices(
    sizes: tuple[int, int, int], num_devices: int, expected: Any
) -> None:
    data, fsdp, tensor = sizes
    resolved = resolve_mesh(Mesh(data=data, fsdp=fsdp, tensor=tensor), num_devices)
    assert tuple(resolved.values()) == expected and list(resolved) == ["data", "fsdp", "tensor"]


def test_a_mesh_that_the_devices_cannot_fill_is_refused() -> None:
    with pytest.raises(InputError, match=r"mesh: got \{data: 3, fsdp: -1, tensor: 1\} on 16 devices.*multiply to 3"):
        resolve_mesh(Mesh(data=3), 16)
    with pytest.raises(InputError, match=r"mesh: got .* takes 8 devices, but there are 16; wanted a product of 16"):
        resolve_mesh(Mesh(data=2, fsdp=2, tensor=2), 16)
    with pytest.raises(InputError, match=r"takes 4 devices, but there are 1\b.*mesh.fsdp=-1"):
        resolve_mesh(Mesh(data=2, fsdp=2), 1)


def test_a_shape_built_in_python_is_checked_as_one_from_a_file() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 300}
    with pytest.raises(ValueError, match="num_key_value_heads: got 3, wanted a divisor"):
        ModelShape(num_attention_heads=4, num_key_value_heads=3, **sizes)


def test_a_failing_recipe_takes_under_a_second_and_no_jax(write) -> None:
    """A new interpreter, so that nothing is warm; the best of three, since the machine may be busy with other tests."""
    program = (
        "import sys\n"
        "from zephyr_jax.recipe import load_recipe\n"
        "try: load_recipe('r.yaml')\n"
        "except ValueError as error: print('warmup_ratio' in str(error), 'jax' in sys.modules)\n"
    )
    write(SMALL + "  warmup: 0.1\n")
    root, seconds = str(Path(__file__).resolve().parent.parent), []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
        )
        seconds.append(time.monotonic() - start)
        assert done.stdout.split() == ["True", "False"]
    assert min(seconds) < 1.0
