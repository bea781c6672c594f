"""What a model is asked in an academic task, and what it did: the same few objects for every task. No JAX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Likelihood(NamedTuple):
    """How a model takes one continuation.

    Attributes:
      logprob: sum of the natural-log probabilities of its tokens.
      is_greedy: whether greedy decoding would have written it.
      num_tokens: of the continuation.
    """

    logprob: float
    is_greedy: bool
    num_tokens: int


class Generated(NamedTuple):
    """What a model wrote.

    Attributes:
      text: up to where it stopped, the stop text left out.
      num_tokens: that it took.
      finish_reason: stop or length.
    """

    text: str
    num_tokens: int
    finish_reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question whose choices are scored as continuations.

    Attributes:
      number: of its row in the file, from 0.
      group: what the items of a task are also counted by, such as a subject; empty: nothing.
      question: its own text, for people.
      context: all that stands before a choice: description, examples, question.
      choices: what follows, each behind one space.
      correct: whether each choice is right.
    """

    number: int
    group: str
    question: str
    context: str
    choices: tuple[str, ...]
    correct: tuple[bool, ...]

    def requests(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        return [(self.context, f" {choice}") for choice in self.choices]

    def asked(self) -> Any:
        """All that decides a model's answer, for JSON."""
        return [self.context, *self.choices]


@dataclasses.dataclass(frozen=True, slots=True)
class PromptItem:
    """A prompt that a model goes on from.

    Attributes:
      number, group, question: as in ChoiceItem.
      prompt: the whole text.
      until: texts that end the answer.
      max_new_tokens: most tokens of the answer.
      in_chat: whether the prompt is a user's turn in the model's chat template; else it is the plain text.
      row: what scoring needs.
    """

    number: int
    group: str
    question: str
    prompt: str
    until: tuple[str, ...]
    max_new_tokens: int
    in_chat: bool
    row: Mapping[str, Any]

    def asked(self) -> Any:
        """All that decides a model's answer, for JSON."""
        return [self.prompt, list(self.until), self.max_new_tokens, self.in_chat]


Item = ChoiceItem | PromptItem
Outcome = Sequence[Likelihood] | Generated
# By metric; a tuple where an item has several values, None where one could not be checked.
Scores = Mapping[str, float | None | tuple[float | None, ...]]


def item_key(item: Item, fingerprint: Mapping[str, Any]) -> str:
    """What an outcome is kept under: the same for the same question to the same model."""
    content = json.dumps([item.asked(), fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class AcademicModel(Protocol):
    """A model that academic tasks can be put to, after `load`."""

    @property
    def name(self) -> str:
        """As the recipe names it."""

    def fingerprint(self) -> Mapping[str, Any]:
        """Everything of the model that decides its answers, as JSON values."""

    def load(self) -> None:
        """Reads the weights, where that has not been done."""

    def loglikelihoods(self, requests: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Likelihood]]:
        """How likely each continuation is after its context, as it is known: index in `requests`, and that."""

    def generate(self, items: Sequence[PromptItem]) -> Iterator[tuple[int, Generated]]:
        """Greedy answers to items of one task, as they end: index in `items`, and the answer."""
