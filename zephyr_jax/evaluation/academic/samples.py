"""What a model did on each item of a task, on disk as it comes: what is there is never asked again.

    academic/MODEL/TASK.partial.jsonl   while a task runs: key and outcome, a line an item, in the order they end
    academic/MODEL/TASK.jsonl           when it is done: a line an item with its scores, in the file's order

A line counts for the very question, model and settings that its key says; others are not read. Log-likelihoods of a run
that was taken up again may differ from an untouched one's by some 1e-5: what is left is packed into other rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.evaluation.academic.items import ChoiceItem, Generated, Item, Likelihood, Outcome, PromptItem, item_key
from zephyr_jax.evaluation.academic.tasks import METRICS, Task
from zephyr_jax.judging.journal import open_alone
from zephyr_jax.whole_files import open_whole


def folder_name(model: str) -> str:
    """The folder of a model: its name with what a folder's name may have."""
    return re.sub(r"[^\w.-]+", "-", model).strip("-.")


class SampleFile:
    """The outcomes of one task by one model; open in one process at a time."""

    def __init__(self, folder: Path, task: Task, *, model: str, fingerprint: Mapping[str, Any]):
        """Reads what is there.

        Args:
          folder: `academic`.
          task: its items.
          model: as the recipe names it.
          fingerprint: of the model.

        Raises:
          InputError: it cannot be written, or another process writes it.
        """
        self._task, self._model = task, model
        self.path = folder / folder_name(model) / f"{task.options.label}.jsonl"
        self._partial = self.path.with_suffix(".partial.jsonl")
        self._keys = [item_key(item, fingerprint) for item in task.items]
        self._file = open_alone(self._partial, key="name")
        self._outcomes: dict[str, Outcome] = {}
        by_key = dict(zip(self._keys, task.items, strict=True))
        for line in self._lines():
            if line["key"] in by_key:
                self._outcomes[line["key"]] = _outcome(by_key[line["key"]], line["outcome"])
        self.num_kept = sum(key in self._outcomes for key in self._keys)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for path in (self.path, self._partial):
            if not path.exists():
                continue
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if path == self._partial and whole < len(content):
                os.truncate(path, whole)  # a line that a kill has torn
            for text in content[:whole].splitlines():
                try:
                    line = json.loads(text)
                    if isinstance(line, dict) and "key" in line and "outcome" in line:
                        yield line
                except ValueError:
                    continue

    def missing(self) -> list[int]:
        """Indices of the items that have no outcome yet."""
        return [index for index, key in enumerate(self._keys) if key not in self._outcomes]

    def keep(self, index: int, outcome: Outcome) -> None:
        """Appends an item's outcome."""
        self._outcomes[self._keys[index]] = outcome
        line = {"key": self._keys[index], "outcome": _as_json(outcome)}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Lets the file go; what it has stays."""
        self._file.close()

    def finish(self) -> list[Outcome]:
        """Writes the whole file with scores in place of the partial one; returns the outcomes by item."""
        outcomes = [self._outcomes[key] for key in self._keys]
        with open_whole(self.path) as file:
            for item, key, outcome in zip(self._task.items, self._keys, outcomes, strict=True):
                file.write(json.dumps(self._line(item, key, outcome), ensure_ascii=False) + "\n")
        self._partial.unlink()
        self.close()
        return outcomes

    def _line(self, item: Item, key: str, outcome: Outcome) -> dict[str, Any]:
        options = self._task.options
        line: dict[str, Any] = {"model": self._model, "task": options.task, "shots": options.num_shots}
        line |= {"row": item.number, "group": item.group, "question": item.question}
        if isinstance(item, ChoiceItem):
            line |= {"choices": item.choices, "correct": item.correct}
        scores = self._task.scores(item, outcome)
        return line | {"scores": scores, "metric": METRICS[options.task][0], "outcome": _as_json(outcome), "key": key}


def _as_json(outcome: Outcome) -> Sequence[Any]:
    if isinstance(outcome, Generated):
        return list(outcome)
    return [list(likelihood) for likelihood in outcome]


def _outcome(item: Item, stored: Sequence[Any]) -> Outcome:
    if isinstance(item, PromptItem):
        return Generated(*stored)
    return [Likelihood(*values) for values in stored]
