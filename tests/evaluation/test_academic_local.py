"""A small model of ours put to tasks by the command, from a folder: kept, compared, and equal to asking it directly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.academic_rows import ARC, GSM8K, PREAMBLE, TRUTHFULQA, write
from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax import evaluate
from zephyr_jax.evaluation import results
from zephyr_jax.evaluation.academic.local_model import LocalModel
from zephyr_jax.evaluation.harness import HarnessScore
from zephyr_jax.evaluation.text_model import open_text_model

IFEVAL = [
    {"prompt": f"Say {number}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for number in range(3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tiny models that read bytes, the rows, and a recipe."""
    folder = tmp_path_factory.mktemp("academic")
    for seed, name in enumerate(("first", "second")):
        write_chat_model(folder / name, context=1024, seed=seed)
    rows = {"arc": ARC, "gsm8k": GSM8K, "truthfulqa": TRUTHFULQA, "preamble": PREAMBLE, "ifeval": IFEVAL}
    files = {name: write(folder / f"{name}.jsonl", content) for name, content in rows.items()}
    (folder / "recipe.yaml").write_text(f"""
name: small
output_dir: {folder / "runs"}
report: false
statistics: {{resamples: 200}}
models:
  first: {{model: {folder / "first"}}}
academic:
  model: [first, {folder / "second"}]
  batch_size: 4
  tasks:
    - {{task: arc_easy, file: {files["arc"]}}}
    - {{task: truthfulqa_mc2, file: {files["truthfulqa"]}, fewshot: {files["preamble"]}, limit: 2}}
    - {{task: gsm8k, file: {files["gsm8k"]}, shots: 1, fewshot: {files["gsm8k"]}, limit: 2, max_new_tokens: 8}}
    - {{task: ifeval, file: {files["ifeval"]}, chat_template: true, max_new_tokens: 8}}
""")
    return folder


def test_the_command_asks_scores_and_compares(folder: Path, capsys) -> None:
    assert evaluate.main(["--config", str(folder / "recipe.yaml")]) == 0
    printed = capsys.readouterr()
    results = json.loads((folder / "runs/small/evaluation/results.json").read_text())["academic"]
    assert [entry["metric"] for entry in results["tasks"]] == [
        "acc_norm", "mc2", "strict-match", "prompt_level_strict_acc"
    ] * 2  # fmt: skip
    assert [entry["metrics"][entry["metric"]]["num_items"] for entry in results["tasks"]] == [8, 2, 2, 3] * 2
    assert [comparison["task"] for comparison in results["comparisons"]] == [
        "arc_easy-0shot", "truthfulqa_mc2-0shot", "gsm8k-1shot", "ifeval-0shot-chat"
    ]  # fmt: skip
    assert "## Academic tasks" in printed.out and "loading first, float32 on" in printed.err
    samples = Path(results["tasks"][0]["samples"])
    assert samples == folder / "runs/small/evaluation/academic/first/arc_easy-0shot.jsonl"
    before = {path: path.read_bytes() for path in samples.parent.parent.rglob("*.jsonl")}
    assert len(before) == 8
    assert evaluate.main(["--config", str(folder / "recipe.yaml")]) == 0
    again = capsys.readouterr()
    assert "loading" not in again.err and again.out == printed.out
    assert "arc_easy-0shot by first: 8 of 8 items are kept from before" in again.err
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_kept_is_what_the_model_says_when_asked_directly(folder: Path) -> None:
    if not (folder / "runs").exists():
        assert evaluate.main(["--config", str(folder / "recipe.yaml")]) == 0
    model = open_text_model(str(folder / "first")).load()
    place = folder / "runs/small/evaluation/academic/first"
    for text in (place / "arc_easy-0shot.jsonl").read_text().splitlines():
        line = json.loads(text)
        pairs = [model.encode_pair(line["question"], f" {choice}") for choice in line["choices"]]
        wanted = [score.log_prob for score in model.loglikelihoods(pairs, name=None)]
        np.testing.assert_allclose([likelihood[0] for likelihood in line["outcome"]], wanted, atol=1e-4)
    lines = [json.loads(text) for text in (place / "ifeval-0shot-chat.jsonl").read_text().splitlines()]
    prompts = [model.tokenizer.encode_prompt([{"role": "user", "content": row["prompt"]}]) for row in IFEVAL]
    found: dict[int, str] = {}
    for ended in model.iterate_until(
        prompts, until=(), max_new_tokens=8, batch_size=4, stop_ids=model.tokenizer.stop_ids
    ):
        found |= {index: answer.text for index, answer in ended.items()}
    assert [line["outcome"][0] for line in lines] == [found[index] for index in range(3)]


def test_weights_are_read_once_for_tasks_and_harness_and_let_go_before_the_next_model(
    folder: Path, capsys, monkeypatch
) -> None:
    """On one GPU there may be no room for two models. The harness is a stand-in that asks for the weights."""
    opened: list[LocalModel] = []

    def run(model: LocalModel, *args: object, **options: object) -> list[HarnessScore]:
        model.load()
        assert [other.name for other in [*opened, model] if other.text_model.params is not None] == [model.name]
        opened.append(model)
        return []

    monkeypatch.setattr(results, "find_tasks", lambda recipe: None)
    monkeypatch.setattr(results, "run_harness", run)
    overrides = ["name=once", "academic.harness={tasks: {arc_easy: 0}}"]
    assert evaluate.main(["--config", str(folder / "recipe.yaml"), *overrides]) == 0
    assert capsys.readouterr().err.count("evaluate: loading ") == 2 and len(opened) == 2
    assert all(model.text_model.params is None for model in opened)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "models.first={model: m, base_url: 'http://localhost:1/v1'}",
            "is behind an API, which does not say how likely",
        ),
        ("academic.model=nowhere", "academic.model: nowhere: there is no such folder"),
        ("academic.model=['a/b', 'a:b']", "academic.model: a/b and a:b would both be kept in a-b"),
        ("academic.tasks=[{task: ifeval, file: nowhere.jsonl}]", "'nowhere.jsonl': no such file"),
        ("academic.tasks=[{task: ifeval, file: a}, {task: ifeval, file: b}]", "got ifeval-0shot more than once"),
        ("academic.tasks=[{task: arc, file: a}]", "academic.tasks[0].task: got the text 'arc'"),
        ("academic.tasks=[]", "academic.tasks: got none, wanted at least one"),
    ],
)
def test_a_mistake_is_the_users_error(folder: Path, override: str, message: str, capsys) -> None:
    assert evaluate.main(["--config", str(folder / "recipe.yaml"), "name=wrong", override]) == 2
    assert message in capsys.readouterr().err
