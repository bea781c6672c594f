"""Made-up rows of academic tasks in the columns of the hub, and files of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.academic_options import AcademicTaskOptions
from zephyr_jax.evaluation.academic.tasks import Task, read_task

_THINGS = ("stones", "leaves", "clouds", "rivers", "lamps", "boats", "coins", "bells")

ARC = [
    {
        "id": f"A{number}",
        "question": f"What do {thing} do in week {number}?",
        "choices": {"text": ["fall", f"rise with {thing}", "nothing", "sing"], "label": labels},
        "answerKey": labels[number % 4],
    }
    for number, thing in enumerate(_THINGS)
    for labels in [["A", "B", "C", "D"] if number % 2 else ["1", "2", "3", "4"]]
]
HELLASWAG = [
    {
        "ind": number,
        "activity_label": f"Carrying {thing}",
        "ctx_a": f"A man  carries {thing}. [header] How [title] to go on. [step] Walk.",
        "ctx_b": "then HE" if number % 2 else "",
        "endings": [f"[substeps] Drops the {thing}.", "sits  down.", f" [title] {thing} fly [off].", "waves."],
        "label": str(number % 4),
    }
    for number, thing in enumerate(_THINGS)
]
MMLU = [
    {
        "question": f"  How many {thing} ({number})? ",
        "subject": subject,
        "choices": ["none", "one ", "two", "many"],
        "answer": number % 4,
    }
    for subject in ("high_school_physics", "anatomy")
    for number, thing in enumerate(_THINGS)
]
TRUTHFULQA = [
    {
        "question": f"Do {thing} dream?",
        "mc1_targets": {"choices": ["No", "Yes", f"Only {thing}"], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["No", "They do not", "Yes", f"Only {thing}"], "labels": [1, 1, 0, 0]},
    }
    for thing in _THINGS
]
GSM8K = [
    {
        "question": f"Ann has {number} {thing} and finds 1,000 more. How many?",
        "answer": f"{number} + 1000 = <<{number}+1000={number + 1000}>>1,00{number}\n#### 1,00{number}",
    }
    for number, thing in enumerate(_THINGS)
]
PREAMBLE = [{"question": f"Is {number} a number?", "answer": f"{number} is one."} for number in range(6)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows as JSON lines; returns the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def a_task(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> Task:
    """A task on a file of these rows; `fewshot` may be rows too."""
    if isinstance(options.get("fewshot"), list):
        options["fewshot"] = write(folder / "fewshot.jsonl", options["fewshot"])
    return read_task(AcademicTaskOptions(task=name, file=write(folder / f"{name}.jsonl", rows), **options))
