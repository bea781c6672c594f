"""What happened on the way to the answers of one model: tries, troubles, tokens, cost, and how many were in flight.

Not here: limits on any of it (budget.py).
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any

from zephyr_jax.judging.protocol import Reply

TOKENS_PER_PRICE = 1_000_000


class Tally:
    """Counts of one model in one session.

    Attributes:
      kept: answers found in the journal, which cost nothing.
      answered: answers that came.
      tries: requests sent, those in vain included.
      failed: requests given up.
      troubles: what went wrong with a try (429, timed out, not JSON, unusable answer ...) -> how often.
      examples: the same -> what the first one said.
      prompt_tokens: read for the answers that came.
      completion_tokens: written for them.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self.kept = self.answered = self.tries = self.failed = 0
        self.troubles: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self.in_flight = self.most_in_flight = 0
        self._clock = clock
        self._first = self._last = clock()
        self._request_seconds = 0.0

    def begin_try(self) -> None:
        """A request goes out."""
        self._move(1)
        self.tries += 1

    def end_try(self) -> None:
        """Its answer is here, or it came to nothing."""
        self._move(-1)

    def _move(self, change: int) -> None:
        now = self._clock()
        if not self.tries:
            self._first = self._last = now
        self._request_seconds += self.in_flight * (now - self._last)
        self._last = now
        self.in_flight += change
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def trouble(self, kind: str, detail: str) -> None:
        """A try came to nothing."""
        self.troubles[kind] += 1
        self.examples.setdefault(kind, detail)

    def add(self, reply: Reply) -> None:
        """An answer came."""
        self.answered += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def mean_in_flight(self) -> float:
        """Requests in flight, averaged over the time from the first request to the last answer."""
        seconds = self._last - self._first
        return self._request_seconds / seconds if seconds > 0 else 0.0

    def tokens_per_second(self) -> float:
        """Tokens written, over the same time."""
        seconds = self._last - self._first
        return self.completion_tokens / seconds if seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "kept": self.kept,
            "answered": self.answered,
            "tries": self.tries,
            "failed": self.failed,
            "troubles": dict(sorted(self.troubles.items())),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self._last - self._first, 3),
            "mean_in_flight": round(self.mean_in_flight(), 2),
            "most_in_flight": self.most_in_flight,
        }


def tallies_table(tallies: Mapping[str, Tally]) -> str:
    """What happened, a line for each model that was asked, and one for each kind of trouble."""
    columns = f"{'kept':>9}{'answered':>10}{'tries':>9}{'failed':>8}{'tokens in':>12}{'out':>11}{'in flight':>11}"
    lines = [f"{'model':<20}{columns}"]
    for name, tally in tallies.items():
        lines.append(
            f"{name:<20}{tally.kept:>9,}{tally.answered:>10,}{tally.tries:>9,}{tally.failed:>8,}"
            f"{tally.prompt_tokens:>12,}{tally.completion_tokens:>11,}{tally.mean_in_flight():>11.1f}"
        )
        lines += [
            f"  {kind:<27}{count:>12,}  {' '.join(tally.examples[kind].split())[:300]}"
            for kind, count in sorted(tally.troubles.items())
        ]
    return "\n".join(lines)
