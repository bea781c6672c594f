"""Tasks of lm-evaluation-harness on local rows, its own Hugging Face model beside ours, and what they are asked."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import datasets
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance

FILES = {"arc_easy": "arc_easy_test_subset.jsonl", "hellaswag": "hellaswag_val_subset.jsonl"}


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """What the harness hands to a model."""
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def local_task(name: str, folder: pathlib.Path, *, limit: int) -> dict[str, Any]:
    """The first questions of a file as a task: query, choices, gold, no examples; acc and acc_norm."""
    lines = (folder / "academic" / FILES[name]).read_text(encoding="utf-8").splitlines()[:limit]
    rows = [{key: row[key] for key in ("query", "choices", "gold")} for row in map(json.loads, lines)]
    return {
        "task": f"{name}_local",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm")],
        "num_fewshot": 0,
    }


def evaluate(
    model: Any, tasks: Sequence[dict[str, Any]]
) -> tuple[dict[str, dict[str, float]], list[tuple[float, bool]]]:
    """acc and acc_norm of each task, and what the model said of every choice of every question, in order."""
    found = simple_evaluate(model, tasks=list(tasks), bootstrap_iters=0, log_samples=True)
    scores, answers = {}, []
    for task in tasks:
        name = task["task"]
        scores[name] = {metric: found["results"][name][f"{metric},none"] for metric in ("acc", "acc_norm")}
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        # A request's answers are a list of as many as it was repeated.
        answers += [(float(said[0][0]), said[0][1] in (True, "True")) for sample in samples for said in sample["resps"]]
    return scores, answers
