"""What the folder of a run says, read as it stands: a run that is still going, or was killed, can be looked at too.

Nothing is required to be there and nothing is written; what cannot be read is named in `problems`, not passed over.
Not here: how it is shown (run_page.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zephyr_jax.recipe import STAGE_ORDER, Recipe, load_recipe
from zephyr_jax.records import InputError

Record = Mapping[str, Any]
FEEDBACK_STEPS = ("instructions", "completions", "annotation", "binarisation")


@dataclasses.dataclass(frozen=True)
class Session:
    """One sitting at a stage: its first line in sessions.jsonl, and its last; None where a kill has left none."""

    began: Record
    ended: Record | None

    @property
    def how(self) -> str:
        """How it ended."""
        return "killed, or still going" if self.ended is None else str(self.ended["how"])


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """A stage's folder.

    Attributes:
      name: dsft or ddpo.
      steps, evaluations: lines of metrics.jsonl.
      sessions: of sessions.jsonl, in order.
      summary: summary.json; None: the stage has not ended.
      samples: lines of samples.jsonl.
      written: when metrics.jsonl was written last, in seconds since 1970; None: there is none.
    """

    name: str
    steps: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    sessions: tuple[Session, ...]
    summary: Record | None
    samples: tuple[Record, ...]
    written: float | None

    @property
    def facts(self) -> Record:
        """Devices, versions, rows lost: of the summary, else of the newest sitting."""
        return self.summary or (self.sessions[-1].began if self.sessions else {})

    @property
    def num_steps(self) -> int | None:
        """Steps of the whole stage, where they are known."""
        return self.facts.get("steps")

    @property
    def last_step(self) -> int:
        """The last step that metrics.jsonl has."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def resumed_at(self) -> list[int]:
        """After which steps the stage was taken up again."""
        return [session.began["after_step"] for session in self.sessions[1:]]


@dataclasses.dataclass(frozen=True)
class FeedbackFiles:
    """A folder of AI feedback.

    Attributes:
      counts: step -> its counts; None for a step that has not ended, or is not asked for.
      sessions: lines of sessions.jsonl: what happened to the calls of each model.
      is_done: whether all steps asked for have ended.
    """

    counts: Mapping[str, Record | None]
    sessions: tuple[Record, ...]
    is_done: bool


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run's folder.

    Attributes:
      folder: the folder.
      recipe: recipe.yaml; None where there is none, or it is not one of this version.
      recipe_text: the same as it stands.
      stages: the stages with a folder, in the method's order.
      held_out: held_out.json: model -> figures.
      feedback: AI feedback; None without a folder of it.
      evaluation: evaluation/results.json.
      problems: what could not be read, a sentence each.
    """

    folder: Path
    recipe: Recipe | None
    recipe_text: str
    stages: tuple[StageFiles, ...]
    held_out: Mapping[str, Record]
    feedback: FeedbackFiles | None
    evaluation: Record | None
    problems: tuple[str, ...]


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
      InputError: it is no folder, or has nothing of a run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted a run's, such as runs/tiny")
    reader = _Reader(folder)
    recipe_text = (folder / "recipe.yaml").read_text(encoding="utf-8") if (folder / "recipe.yaml").exists() else ""
    run = RunFiles(
        folder=folder,
        recipe=reader.recipe(),
        recipe_text=recipe_text,
        stages=tuple(reader.stage(name) for name in STAGE_ORDER if (folder / name).is_dir()),
        held_out=reader.json("held_out.json") or {},
        feedback=reader.feedback(),
        evaluation=reader.json("evaluation/results.json"),
        problems=tuple(reader.problems),
    )
    if not (recipe_text or run.stages or run.feedback or run.evaluation or run.problems):
        within = [path.name for path in sorted(folder.iterdir()) if (path / "recipe.yaml").exists()]
        hint = f"; did you mean {folder / within[0]}?" if within else ""
        raise InputError(
            f"{folder}: has neither recipe.yaml nor {', '.join(STAGE_ORDER)}, aif or evaluation/results.json; wanted a "
            f"run's folder, such as runs/tiny{hint}"
        )
    return run


class _Reader:
    def __init__(self, folder: Path):
        self.folder, self.problems = folder, list[str]()

    def recipe(self) -> Recipe | None:
        path = self.folder / "recipe.yaml"
        try:
            return load_recipe(path) if path.exists() else None
        except InputError as error:
            reason = str(error).splitlines()[0].removeprefix(f"{path}: ")
            self.problems.append(f"recipe.yaml is not one of this version: {reason}")
            return None

    def json(self, name: str) -> Any:
        """A file of one JSON object; None where it is missing or is none."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.problems.append(f"{name} cannot be read: {error}")
            return None
        if isinstance(content, dict):
            return content
        self.problems.append(f"{name} cannot be read: wanted one JSON object")
        return None

    def lines(self, name: str) -> list[Record]:
        """A file of JSON lines; what is torn, as the last line is by a kill, is left out and said."""
        path, records = self.folder / name, list[Record]()
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append(record)
                continue
            why = "is torn, as a kill or a write under way leaves it" if number == len(lines) else "is no JSON object"
            self.problems.append(f"{name}: line {number} {why}; it is left out")
        return records

    def stage(self, name: str) -> StageFiles:
        """A stage's folder."""
        metrics = self.lines(f"{name}/metrics.jsonl")
        sessions: list[Session] = []
        for record in self.lines(f"{name}/sessions.jsonl"):
            if "began" in record:
                sessions.append(Session(record, None))
            elif sessions:
                sessions[-1] = Session(sessions[-1].began, record)
        path = self.folder / name / "metrics.jsonl"
        return StageFiles(
            name=name,
            steps=tuple(record for record in metrics if "loss" in record),
            evaluations=tuple(record for record in metrics if "eval/loss" in record),
            sessions=tuple(sessions),
            summary=self.json(f"{name}/summary.json"),
            samples=tuple(self.lines(f"{name}/samples.jsonl")),
            written=path.stat().st_mtime if path.exists() else None,
        )

    def feedback(self) -> FeedbackFiles | None:
        """The folder of AI feedback; None without one."""
        if not (self.folder / "aif").is_dir():
            return None
        return FeedbackFiles(
            {step: self.json(f"aif/{step}.counts.json") for step in FEEDBACK_STEPS},
            tuple(self.lines("aif/sessions.jsonl")),
            (self.folder / "aif" / "summary.json").exists(),
        )
