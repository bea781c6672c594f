"""Scores out of what lm-evaluation-harness says, made up here; and a recipe of it, with the harness where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax import evaluate
from zephyr_jax.academic_options import HarnessOptions
from zephyr_jax.evaluation.harness import HarnessResults, find_tasks, read_score
from zephyr_jax.evaluation.harness_block import harness_block
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.evaluation_recipe import EvaluationRecipe
from zephyr_jax.records import InputError

SAMPLING = Sampling(resamples=500)


def _sample(number: int, **metrics: Any) -> dict[str, Any]:
    return {"doc_id": number, "filter": "none", "metrics": list(metrics)} | metrics


def _found(samples: dict[str, list[dict[str, Any]]], **results: dict[str, float]) -> dict[str, Any]:
    return {"samples": samples, "results": results, "lm_eval_version": "0.4.13"}


def _score(found: dict[str, Any], *, task: str, model: str = "ours", shots: int | None = 0):
    options = HarnessOptions(tasks={task: shots})
    return read_score(found, model=model, task=task, shots=shots, options=options, sampling=SAMPLING)


def test_scores_are_means_over_questions_in_percent_and_the_normed_one_stands_for_the_task():
    """Right are 3 of 4 by acc, 2 of 4 by acc_norm."""
    samples = [_sample(number, acc=float(number < 3), acc_norm=number < 2) for number in range(4)]
    score = _score(_found({"arc": samples}, arc={"acc,none": 0.75, "acc_norm,none": 0.5}), task="arc")
    assert score.metrics["acc, none"].mean == 75 and score.metrics["acc_norm, none"].mean == 50
    assert score.main == "acc_norm, none" and score.by_item["arc", 1] == 100 and not score.others
    found = score.metrics["acc_norm, none"]
    assert found.num_items == 4 and found.low is not None and found.low < 50 < found.high


def test_a_score_near_the_end_of_its_scale_is_not_surer_than_it_is():
    """None of 16 right: Wilson's interval, as academic tasks have it; drawn anew it would be 0 to 0."""
    score = _score(_found({"sums": [_sample(number, acc=0.0) for number in range(16)]}), task="sums")
    found = score.metrics["acc, none"]
    assert found.mean == 0 and found.low == 0 and found.high is not None and found.high > 15


def test_a_group_counts_every_question_of_its_tasks_alike():
    """1 of 1 and 1 of 3: 50 %, not the mean of 100 and 33."""
    samples = {
        "mmlu_a": [_sample(0, acc=1.0)],
        "mmlu_b": [_sample(number, acc=float(number == 0)) for number in range(3)],
    }
    score = _score(_found(samples, mmlu={"acc,none": 0.5}), task="mmlu")
    assert score.metrics["acc, none"].mean == 50 and len(score.by_item) == 4


def test_a_metric_that_is_no_mean_over_questions_is_the_harnesss_own():
    samples = [_sample(0, word_perplexity=(-3.0, 2), f1=1.0), _sample(1, word_perplexity=(-4.0, 2), f1=0.0)]
    own = {"word_perplexity,none": 5.75, "word_perplexity_stderr,none": 1.0, "f1,none": 0.75, "alias": 1.0}
    score = _score(_found({"text": samples}, text=own), task="text", shots=None)
    assert score.others == {"word_perplexity, none": 5.75, "f1, none": 0.75}
    assert score.main is None and not score.metrics and score.label == "text"


def test_the_block_shows_every_score_beside_the_published_ones_and_compares_models():
    scores = []
    for model, right in (("ours", 30), ("theirs", 10)):
        samples = [_sample(number, acc=float(number < right)) for number in range(40)]
        found = _found({"mmlu_a": samples}, mmlu={"acc,none": right / 40})
        scores.append(_score(found, task="mmlu", model=model, shots=5))
    from zephyr_jax.evaluation.statistics import compare

    comparison = compare(("ours", scores[0].by_item), ("theirs", scores[1].by_item), sampling=SAMPLING)
    results = HarnessResults(tuple(scores), (("mmlu-5shot", comparison),), limit=40)
    block = harness_block(results, level=0.95)
    text = "\n".join(part.text() for part in block.parts)
    assert "| ours" in text and "75.00" in text and "Zephyr-7B" in text and "61.44" in text
    assert "the first 40 questions of a task alone" in text
    assert "mmlu-5shot: " in text and "lm_eval 0.4.13" in text
    assert json.loads(json.dumps(results.as_dict()))["tasks"][0]["metrics"]["acc, none"]["score"] == 75


def _recipe(**harness: Any) -> EvaluationRecipe:
    return EvaluationRecipe.model_validate({"name": "n", "academic": {"model": "nowhere", "harness": harness}})


def test_without_the_harness_the_extra_is_named_before_a_model_is_opened(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"pip install 'zephyr-jax\[harness\]'"):
        find_tasks(_recipe(tasks={"arc_easy": 0}))


def test_a_recipe_without_any_tasks_is_refused():
    with pytest.raises(ValueError, match="got none, wanted at least one, here or in a block harness"):
        EvaluationRecipe.model_validate({"name": "n", "academic": {"model": "nowhere"}})


TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_target: gold
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.mark.parity
def test_a_recipe_runs_a_task_on_a_local_file_and_goes_on_from_what_is_kept(tmp_path: Path, capsys, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the [harness] extra")
    pytest.importorskip("sacrebleu", reason="needs all of the [harness] extra")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"query": f"{number} is", "choices": ["even", "odd"], "gold": number % 2} for number in range(6)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(TASK.format(file=tmp_path / "own.jsonl"))
    model = write_chat_model(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: n\noutput_dir: {tmp_path}\nreport: false\nacademic:\n  model: {model}\n"
        f"  harness: {{tasks: {{own: 0}}, limit: 4, include_path: {tmp_path / 'tasks'}}}\n"
    )
    assert evaluate.main(["--config", str(recipe), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["harness"]["tasks"][0]
    assert first["metrics"]["acc, none"]["num_items"] == 4 and first["metric"] == "acc_norm, none"
    (samples,) = (tmp_path / "n" / "evaluation" / "harness").glob("*/own-0shot.samples.jsonl")
    assert [json.loads(line)["doc_id"] for line in samples.read_text().splitlines()] == [0, 1, 2, 3]
    (tmp_path / "n" / "evaluation" / "results.json").unlink()
    # With all six questions only what is new is asked: of the others the harness has the answers.
    asked = []
    from zephyr_jax.evaluation.text_model import TextModel

    plain = TextModel.iterate_loglikelihoods
    monkeypatch.setattr(
        TextModel,
        "iterate_loglikelihoods",
        lambda self, requests, **o: asked.append(len(requests)) or plain(self, requests, **o),
    )
    assert evaluate.main(["--config", str(recipe), "academic.harness.limit=6"]) == 0
    assert asked == [4]
    (tmp_path / "n" / "evaluation" / "results.json").unlink()
    assert evaluate.main(["--config", str(recipe), "academic.harness.tasks={nothing: 0}"]) == 2
    assert "the harness knows no nothing" in capsys.readouterr().err
