"""Worked examples before a question, chosen as lm-evaluation-harness chooses them.

The harness draws anew for every question, from one generator that is seeded once: the examples of a question depend on
how many questions came before it, and on how many rows the pool has.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

SEED = 1234  # fewshot_random_seed of the harness

DELIMITER = "\n\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer.

    Attributes:
      question: as the task writes it, up to where the answer begins.
      answer: without the space before it.
    """

    question: str
    answer: str

    def text(self) -> str:
        """The example as it stands in a prompt."""
        return f"{self.question} {self.answer}{DELIMITER}"


class ExampleDrawer:
    """Draws the examples of one question after another."""

    def __init__(
        self, pool: Sequence[Example], num_shots: int, *, first_ones: bool = False, holds_questions: bool = False
    ):
        """What is drawn from.

        Args:
          pool: with at least `num_shots` others than the question itself.
          num_shots: examples a question.
          first_ones: always the pool's first ones, as in MMLU.
          holds_questions: the pool may hold the question itself, which is never among its own examples; one more is
            drawn then.
        """
        self._pool, self._num_shots = list(pool), num_shots
        self._first_ones, self._holds_questions = first_ones, holds_questions
        self._random = random.Random(SEED)

    def draw(self, own: Example) -> str:
        """The examples before a question, as text; empty with no shots."""
        if not self._num_shots:
            return ""
        return "".join(example.text() for example in self._chosen(own))

    def _chosen(self, own: Example) -> list[Example]:
        if self._first_ones:
            pool = [example for example in self._pool if example != own] if self._holds_questions else self._pool
            return pool[: self._num_shots]
        if not self._holds_questions:
            return self._random.sample(self._pool, self._num_shots)
        drawn = self._random.sample(self._pool, self._num_shots + 1)
        others = [example for example in drawn if example != own][: self._num_shots]
        if len(others) == self._num_shots:
            return others
        # The same question stands in the pool more than once.
        return self._random.sample([example for example in self._pool if example != own], self._num_shots)
