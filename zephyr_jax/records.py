"""What flows from stage to stage, and the one error a user can cause. No JAX, no third-party import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict


class InputError(ValueError):
    """Something the user gave is wrong: commands print its text alone and exit with status 2."""


class Unfinished(Exception):
    """The work stopped short and goes on when it is started again: commands print the text and exit with status 1."""


class Message(TypedDict):
    """One turn of a dialogue; `role` is system, user or assistant."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A validated dialogue: [system], then user and assistant in turn; the last message is an assistant's.

    Attributes:
      messages: the turns.
      prompt_id: the row's own id, or None.
      location: where the row was read, `file:line` (1-based), for messages to people.
    """

    messages: tuple[Message, ...]
    prompt_id: str | None
    location: str


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A validated dialogue that waits for an answer.

    Attributes:
      messages: the turns; the last is a user's.
      prompt_id: the row's own id, or the sha256 (hex) of the last turn's text.
      location: where the row was read, `file:line` (1-based), for messages to people.
      source: the row's own `source`, or None.
    """

    messages: tuple[Message, ...]
    prompt_id: str
    location: str
    source: str | None = None

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """Roles and texts of the turns: equal for equal prompts, and hashable."""
        return tuple((message["role"], message["content"]) for message in self.messages)


@dataclasses.dataclass(frozen=True, slots=True)
class PreferencePair:
    """A validated preference: one prompt, two different answers.

    Attributes:
      prompt: every message before the answer; its last message is a user's.
      chosen: text of the preferred answer.
      rejected: text of the other answer.
      prompt_id: the row's own id, or None (ids may repeat).
      location: where the row was read, `file:line` (1-based).
      score_chosen: the judge's score, or None.
      score_rejected: the judge's score, or None.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    prompt_id: str | None
    location: str
    score_chosen: float | None = None
    score_rejected: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """One model's answer to a prompt, and what the teacher said of it.

    Attributes:
      model: who answered, or None.
      response: the answer; may be empty.
      ratings: aspect -> 1 to 5, or None where the teacher said N/A; an aspect without a rating is not in it.
      overall_score: the teacher's 1 to 10 as it stands in the file, or None.
    """

    model: str | None
    response: str
    ratings: Mapping[str, float | None]
    overall_score: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredCompletions:
    """One prompt with several scored answers: a row of AI feedback, before it becomes a preference pair.

    Attributes:
      prompt: every message before the answers; its last message is a user's.
      instruction: the prompt as one text.
      prompt_id: the row's own id, or the SHA-256 of the instruction in hexadecimal.
      completions: the answers in the file's order.
      source: the row's own word for where its prompt is from, or None.
      location: where the row was read, `file:line` (1-based).
    """

    prompt: tuple[Message, ...]
    instruction: str
    prompt_id: str
    completions: tuple[ScoredCompletion, ...]
    source: str | None
    location: str


@dataclasses.dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why: `location` is `file:line`, `reason` one phrase."""

    location: str
    reason: str


@dataclasses.dataclass
class ReadReport:
    """What became of the rows of one data set; stages add what they cut or drop after reading.

    Attributes:
      num_rows: rows seen, bad ones included.
      bad_rows: the unreadable ones.
      dropped: reason -> number of good rows left out later (too long, ...).
      cut: reason -> number of rows kept in a shortened form.
    """

    num_rows: int = 0
    bad_rows: list[BadRow] = dataclasses.field(default_factory=list)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    cut: dict[str, int] = dataclasses.field(default_factory=dict)

    def count_dropped(self, reason: str) -> None:
        """Adds one dropped row."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def count_cut(self, reason: str, count: int = 1) -> None:
        """Adds shortened rows."""
        self.cut[reason] = self.cut.get(reason, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """The counts alone, for summary.json."""
        reasons: dict[str, int] = {}
        for bad in self.bad_rows:
            reasons[bad.reason] = reasons.get(bad.reason, 0) + 1
        return {"rows": self.num_rows, "unreadable": reasons, "dropped": dict(self.dropped), "cut": dict(self.cut)}
