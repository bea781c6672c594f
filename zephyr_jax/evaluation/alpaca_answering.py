"""Has a model answer AlpacaEval's instructions; the result is a row of its model_outputs.json each.

An instruction is the one user turn of a dialogue, given to the model's own chat template. Whoever answers stands behind
`ask`. Not here: judging the outputs (alpaca_judging.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.evaluation.answering import AnswerCounts, answer_text
from zephyr_jax.evaluation.judges import Ask
from zephyr_jax.evaluation.stored_rows import field, read_rows
from zephyr_jax.judging.protocol import ChatRequest, derived_seed
from zephyr_jax.records import InputError
from zephyr_jax.whole_files import write_json

DATASPLIT = "eval"  # what alpaca_eval calls its set
_WANTED = "an instruction of AlpacaEval, with instruction"


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """A row of alpaca_eval's set; `dataset` is the part of it that the instruction is from."""

    instruction: str
    dataset: str | None


def read_instructions(source: str, *, limit: int | None = None) -> list[Instruction]:
    """The instructions in the file's order, the first `limit` of them.

    Raises:
      InputError: the file cannot be read, a row is no instruction, one is there twice, or there are fewer than `limit`.
    """
    found: dict[str, Instruction] = {}
    for location, row in read_rows(source):
        text = field(row, "instruction", str, location, wanted=_WANTED)
        if text in found:
            raise InputError(f"{location}: its instruction is there before; wanted each once")
        found[text] = Instruction(text, row.get("dataset"))
    if limit is not None and limit > len(found):
        raise InputError(f"alpaca_eval.answering.limit: got {limit}, but {source} has {len(found)} instructions")
    return list(found.values())[:limit]


@dataclasses.dataclass(frozen=True)
class Answering:
    """How a model is asked; the defaults are those that Zephyr's published outputs were made with.

    Attributes:
      model: its name, for the rows.
      max_new_tokens, temperature, top_p: of one output.
      seed: of the run.
    """

    model: str
    max_new_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 42

    def request(self, instruction: str) -> ChatRequest:
        """The seed hangs on the instruction, not on the model."""
        return ChatRequest(
            ({"role": "user", "content": instruction},),
            max_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=derived_seed(self.seed, "alpaca_eval", instruction),
        )

    def jobs(
        self, instructions: Sequence[Instruction], ask: Ask, counts: AnswerCounts
    ) -> list[tuple[int, Callable[[], Awaitable[str | None]]]]:
        """A job an instruction, under its place: it gives the output, or None where none came this time."""

        def job(index: int, instruction: Instruction) -> Callable[[], Awaitable[str | None]]:
            async def run() -> str | None:
                request = self.request(instruction.instruction)
                return await answer_text(ask, request, f"alpaca_eval answer:{index}", counts)

            return run

        return [(index, job(index, instruction)) for index, instruction in enumerate(instructions)]

    def rows(self, instructions: Sequence[Instruction], texts: Mapping[int, str]) -> list[dict[str, Any]]:
        """alpaca_eval's rows from what the jobs gave."""
        return [
            {
                "instruction": instruction.instruction,
                "output": texts[index],
                "generator": self.model,
                "dataset": instruction.dataset,
                "datasplit": DATASPLIT,
            }
            for index, instruction in enumerate(instructions)
        ]


def write_outputs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a model_outputs.json; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, rows)
