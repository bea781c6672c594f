"""One answer of a model under evaluation, and the count of what was amiss with its answers.

An answer that the limit of new tokens cuts is kept as it is, as the benchmarks do, and counted. A question that the
model cannot be asked (it does not fit its context, or its server refuses it) has the empty answer, is said and counted.
Not here: what is asked (bench_answering.py, alpaca_answering.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from zephyr_jax.evaluation.judges import Ask
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply, Unanswerable


@dataclasses.dataclass
class AnswerCounts:
    """What became of the questions that one model was asked.

    Attributes:
      model: its name.
      num_answers: answers that it gave.
      num_cut: of these, cut by the limit of new tokens.
      num_empty: of these, without any text.
      num_tokens: of these, by the model's own count.
      num_characters: of their texts.
      num_unanswerable: questions that it could not be asked; their answers are empty.
      num_failed: questions that no answer came to this time.
      why, why_failed: what was said of one of those.
    """

    model: str
    num_answers: int = 0
    num_cut: int = 0
    num_empty: int = 0
    num_tokens: int = 0
    num_characters: int = 0
    num_unanswerable: int = 0
    num_failed: int = 0
    why: str = ""
    why_failed: str = ""

    def add(self, reply: Reply, text: str) -> None:
        """Counts an answer."""
        self.num_answers += 1
        self.num_cut += reply.finish_reason == "length"
        self.num_empty += not text
        self.num_tokens += reply.completion_tokens
        self.num_characters += len(text)

    @property
    def mean_tokens(self) -> float:
        """Tokens of an answer."""
        return self.num_tokens / self.num_answers if self.num_answers else 0.0

    @property
    def mean_characters(self) -> float:
        """Characters of an answer: what AlpacaEval calls its average length."""
        return self.num_characters / self.num_answers if self.num_answers else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("num_answers", "num_cut", "num_empty", "num_unanswerable")
        return {
            "model": self.model,
            **{name: getattr(self, name) for name in names},
            "mean_tokens": round(self.mean_tokens, 2),
            "mean_characters": round(self.mean_characters, 2),
        }

    def sentence(self) -> str:
        """For people: `ours: 160 answers of 312 tokens on average, 4 cut by the limit`."""
        text = f"{self.model}: {self.num_answers} answers of {self.mean_tokens:.0f} tokens on average"
        if self.num_cut:
            text += f", {self.num_cut} cut by the limit of new tokens"
        if self.num_empty:
            text += f", {self.num_empty} without any text"
        if self.num_unanswerable:
            text += f"; {self.num_unanswerable} could not be asked and count as empty answers ({self.why})"
        return text


async def answer_text(ask: Ask, request: ChatRequest, call: str, counts: AnswerCounts) -> str | None:
    """The answer to one request, without white space around it, as FastChat keeps it; all that happens is counted.

    Returns:
      The text; an empty one where the model cannot be asked this; None where no answer came this time.

    Raises:
      Stopped: it was not asked any more.
    """
    try:
        reply = await ask(request, call)
    except Unanswerable as error:
        counts.num_unanswerable += 1
        counts.why = min(filter(None, (counts.why, str(error))))  # whichever comes first: the order of calls is nothing
        return ""
    except CallFailed as error:
        counts.num_failed += 1
        counts.why_failed = str(error)
        return None
    text = reply.text.strip()
    counts.add(reply, text)
    return text
