"""The recipe of AI feedback: its mistakes are named with key and way out, in maps of models too."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr_jax.evaluation_recipe import load_evaluation_recipe
from zephyr_jax.feedback_recipe import load_feedback_recipe
from zephyr_jax.recipe import load_recipe
from zephyr_jax.records import InputError

SMALL = """
name: small
models:
  ours: {model: builtin:smollm2-135m-instruct}
  served: {base_url: "http://localhost:8000/v1", model: big, api_key_env: KEY}
teacher: served
prompts: [prompts.jsonl]
completions: {students: [ours, served], per_prompt: 2}
annotation: {}
"""


def _load(tmp_path: Path, *overrides: str, text: str = SMALL):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_feedback_recipe(path, overrides)


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path) -> None:
    recipe = _load(tmp_path, "models.served.concurrency=7", "budget.cost=1.5")
    assert recipe.models["served"].concurrency == 7 and recipe.models["served"].base_url == (
        "http://localhost:8000/v1",
    )
    assert recipe.models["ours"].base_url is None and recipe.budget.cost == 1.5
    assert recipe.annotation is not None and len(recipe.annotation.aspects) == 4
    assert _load(tmp_path, "models.served.base_url=[http://a/v1, http://b/v1/]").models["served"].base_url == (
        "http://a/v1",
        "http://b/v1",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "models.served.concurency=3",
            r"unknown key 'models.served.concurency'; did you mean 'models.served.concurrency'",
        ),
        ("models.other.model=x", r"'models.other' is not in the file"),
        ("models.ours.concurrency=3", r"models.ours.concurrency: .*without base_url the model runs in this process"),
        ("models.served.batch_size=3", r"models.served.batch_size: .*with base_url"),
        (
            "models.served.base_url=localhost:8000",
            r"models.served.base_url.*wanted the address of an OpenAI",
        ),
        ("models.served.base_url=http://me:secret@host/v1", r"wanted the key in the variable api_key_env names"),
        ("models.served.base_url=[]", r"got an empty list"),
        ("models.served.base_url=[http://a/v1, http://a/v1/]", r"models.served.base_url: names a server twice"),
        ("teacher=nobody", r"teacher: got 'nobody', wanted one of models \(ours, served\)"),
        ("completions.students=[ours, nobody]", r"completions.students: got 'nobody'"),
        ("completions.students=[ours, ours]", r"names a model twice"),
        ("prompts=[]", r"prompts: got none"),
        ("completions=null", r"annotation: needs the block completions"),
        ("completions.students=[]", r"completions.students: got an empty list, wanted at least 1 in it\Z"),
        ("annotation.aspects=[honest]", r"annotation.aspects\[0\]: got the text 'honest', wanted 'ins[^\n]*\Z"),
        ("models.served.price=3", r"models.served.price: got 3, wanted a block of keys\Z"),
        ("annotation.rating=digits", r"annotation.rating: got the text 'digits', wanted 'json' or 'logprobs'"),
        ("sed=3", r"unknown key 'sed'; did you mean 'seed'"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _load(tmp_path, override)


@pytest.mark.parametrize(
    "other", ['base_url: "http://other:8000/v1"', 'base_url: "http://localhost:8000/v1", price: {input: 1}']
)
def test_two_models_do_not_share_a_name_of_the_servers_unless_they_are_one(tmp_path: Path, other: str) -> None:
    """Answers are kept and paid for under that name."""
    key = other.split(":")[0] if "price" not in other else "price"
    text = SMALL.replace("teacher: served", f"  again: {{{other}, model: big}}\nteacher: served")
    with pytest.raises(InputError, match=rf"models.again.{key}: differs from that of served, but both are 'big'"):
        _load(tmp_path, text=text)
    assert len(_load(tmp_path, text=text.replace("model: big}", "model: big-2}")).models) == 3
    assert len(_load(tmp_path, text=text.replace("model: big}", "model: big, response_format: none}")).models) == 3
    (tmp_path / "evaluation.yaml").write_text(text.split("teacher")[0] + "mt_bench: {questions: q, judgments: [j]}\n")
    with pytest.raises(InputError, match=rf"models.again.{key}: differs from that of served"):
        load_evaluation_recipe(tmp_path / "evaluation.yaml")


def test_a_recipe_that_asks_for_nothing_is_named_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: has neither instructions nor completions"):
        _load(tmp_path, text=SMALL.split("completions")[0])


@pytest.mark.parametrize(
    ("load", "file", "message"),
    [
        (
            load_feedback_recipe,
            "smollm2.yaml",
            r"this is a training recipe \(it has stages, model, dsft, ddpo\), wanted a recipe of AI feedback, .*"
            r"zephyr_jax.train --config \S+/smollm2.yaml\Z",
        ),
        (
            load_recipe,
            "feedback/smollm2.yaml",
            r"this is a recipe of AI feedback .*, wanted a training recipe, .*feedback",
        ),
        (load_evaluation_recipe, "feedback/ultrafeedback.yaml", r"this is a recipe of AI feedback"),
        (load_feedback_recipe, "evaluation/published.yaml", r"this is a recipe of an evaluation .*zephyr_jax.evaluate"),
    ],
)
def test_a_recipe_of_another_command_is_called_that(repository: Path, load, file: str, message: str) -> None:
    """Also with overrides of the command that was meant; all its keys would otherwise be called unknown."""
    with pytest.raises(InputError, match=message):
        load(repository / "configs" / file, ["budget.requests=3"])
