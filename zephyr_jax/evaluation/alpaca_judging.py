"""Has a judge annotate AlpacaEval's outputs: which of two it is shown first, what it is shown, how its words are read.

Each pair is judged once; a coin that hangs on the instruction alone decides whether the outputs are shown in the order
(baseline, model) or turned, and a preference is turned back. With `both_orders`, not in alpaca_eval, each is judged in
either order, which shows what the order alone does (position.py). Equal outputs are a tie that nobody is asked about.
Two ways to read a judge: `ranking`, version 1, a Python list of ranks in its answer; `logprobs`, version 2, the
probabilities of `m` and `M` as its next token. The prompt is the user's file, in ChatML as alpaca_eval has it. Whoever
answers stands behind `ask`.

Source of the rules: alpaca_eval's processors.py (the coin), completion_parsers.py, utils.py (ChatML).
"""

from __future__ import annotations

import ast
import dataclasses
import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from zephyr_jax.evaluation.judges import Ask
from zephyr_jax.evaluation.stored_rows import field, read_rows
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply, derived_seed
from zephyr_jax.records import InputError, Message

Reading = Literal["ranking", "logprobs"]
CHOICES = ("m", "M")  # the first and the second output shown
MAX_RANKING_TOKENS = 100
RETRY_TEMPERATURE = 0.7
_WANTED = "an output in AlpacaEval's format, with instruction, output and generator"
_PLACE = re.compile(r"\{(instruction|output_1|output_2)\}")
_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A row of model_outputs.json: one model's answer to one instruction."""

    instruction: str
    output: str
    generator: str
    dataset: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class OutputPair:
    """What is judged: the baseline's and the model's output to the instruction at `index` of the baseline's file."""

    index: int
    baseline: Output
    model: Output

    def annotation(self, annotator: str, preference: float | None, raw_completion: Any) -> dict[str, Any]:
        """The row of alpaca_eval's annotations: who judged, how, and in what words."""
        return {
            "instruction": self.baseline.instruction,
            "output_1": self.baseline.output,
            "generator_1": self.baseline.generator,
            "dataset": self.baseline.dataset,
            "output_2": self.model.output,
            "generator_2": self.model.generator,
            "annotator": annotator,
            "preference": preference,
            "index": self.index,
            "raw_completion": raw_completion,
        }


def read_outputs(source: str) -> list[Output]:
    """Outputs of one file, of one model.

    Raises:
      InputError: it cannot be read, a row is no output, an instruction is there twice, or several models are.
    """
    outputs: dict[str, Output] = {}
    for location, row in read_rows(source):
        texts = [field(row, key, str, location, wanted=_WANTED) for key in ("instruction", "output", "generator")]
        output = Output(texts[0], texts[1], texts[2], row.get("dataset"))
        if output.instruction in outputs:
            raise InputError(f"{location}: its instruction is there before; wanted each once")
        outputs[output.instruction] = output
        first = next(iter(outputs.values())).generator
        if output.generator != first:
            raise InputError(f"{location}: is by {output.generator!r} in a file of {first!r}; wanted one model a file")
    return list(outputs.values())


def pair_outputs(baseline: Sequence[Output], model: Sequence[Output]) -> list[OutputPair]:
    """The model's outputs beside the baseline's, in the baseline's order.

    Raises:
      InputError: one of the model's instructions is none of the baseline's.
    """
    found = {output.instruction: output for output in model}
    pairs = [
        OutputPair(index, output, found.pop(output.instruction))
        for index, output in enumerate(baseline)
        if output.instruction in found
    ]
    if found:
        name, text = model[0].generator, next(iter(found))
        raise InputError(
            f"alpaca_eval.judging: {baseline[0].generator} has no output to {len(found)} of {name}'s instructions, "
            f"such as {text[:60]!r}; wanted outputs to the same instructions"
        )
    return pairs


def is_turned(instruction: str) -> bool:
    """Whether the model's output is shown first; alpaca_eval's own coin at its default seed, 0."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def parse_prompt(text: str, *, name: str) -> tuple[Message, ...]:
    """A prompt in ChatML as messages with {instruction}, {output_1} and {output_2} in them.

    Raises:
      InputError: it is none, or lacks a place.
    """
    messages: list[Message] = [{"role": role, "content": content.strip()} for role, content in _TURN.findall(text)]
    missing = {"instruction", "output_1", "output_2"} - set(_PLACE.findall(text))
    if not messages or messages[-1]["role"] != "user" or missing:
        lacks = f"has no place for {', '.join(sorted(missing))}" if missing else "does not end with a user's turn"
        raise InputError(
            f"alpaca_eval.judging.prompt {name}: {lacks}; wanted AlpacaEval's ChatML, <|im_start|>user ... <|im_end|>"
        )
    return tuple(messages)


def read_prompt(path: str) -> tuple[Message, ...]:
    """The prompt in a file; see `parse_prompt`.

    Raises:
      InputError: it cannot be read, or is none.
    """
    try:
        return parse_prompt(Path(path).read_text(encoding="utf-8"), name=path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"alpaca_eval.judging.prompt {path}: cannot be read ({error})") from error


def filled(messages: Iterable[Message], pair: OutputPair, *, turned: bool | None = None) -> tuple[Message, ...]:
    """The prompt for one pair; what its outputs hold is never a place itself.

    Args:
      messages: see `parse_prompt`.
      pair: what is judged.
      turned: whether the model's output is shown first; None: as the coin says.
    """
    shown = [pair.baseline.output, pair.model.output]
    if is_turned(pair.baseline.instruction) if turned is None else turned:
        shown.reverse()
    texts = {"instruction": pair.baseline.instruction, "output_1": shown[0], "output_2": shown[1]}
    return tuple(
        {"role": message["role"], "content": _PLACE.sub(lambda match: texts[match[1]], message["content"])}
        for message in messages
    )


def parse_ranking(text: str) -> float | None:
    """1 where `model_1` has rank 1, 2 where it has rank 2, in a Python list of {'model': ..., 'rank': ...}."""
    try:
        rank = next(entry["rank"] for entry in ast.literal_eval(text.strip()) if entry["model"] == "model_1")
    except (ValueError, SyntaxError, TypeError, KeyError, StopIteration, RecursionError, MemoryError):
        return None
    return float(rank) if isinstance(rank, (int, float)) and rank in (1, 2) else None


def preference_of_logprobs(logprobs: Sequence[float | None]) -> float | None:
    """2 - p(m) / (p(m) + p(M)), a token that was not listed counting as p = 0; None where neither was."""
    known = [logprob for logprob in logprobs if logprob is not None and logprob > -math.inf]
    if not known:
        return None
    weights = [0.0 if logprob is None else math.exp(logprob - max(known)) for logprob in logprobs]
    return 2 - weights[0] / sum(weights)


@dataclasses.dataclass(frozen=True)
class Annotator:
    """How pairs are judged.

    Attributes:
      name: the judge's, for the rows.
      prompt: see `parse_prompt`.
      reading: how its answers are read.
      temperature: of the first try.
      max_tries: a ranking that cannot be read is asked for again, with another seed and a higher temperature.
      seed: of the run.
      both_orders: each pair is judged in the coin's order and in the other one; the preference is the mean of the two.
    """

    name: str
    prompt: tuple[Message, ...]
    reading: Reading
    temperature: float = 0.0
    max_tries: int = 2
    seed: int = 42
    both_orders: bool = False

    def jobs(self, pairs: Sequence[OutputPair], ask: Ask) -> list[Callable[[], Awaitable[dict[str, Any] | None]]]:
        """A job a pair: it gives a row of alpaca_eval's annotations; None where the judge did not answer at all."""

        def job(pair: OutputPair) -> Callable[[], Awaitable[dict[str, Any] | None]]:
            async def run() -> dict[str, Any] | None:
                if pair.baseline.output == pair.model.output:
                    return pair.annotation(self.name, 1.5, None)
                turned = is_turned(pair.baseline.instruction)
                found = await self._judge(pair, ask, turned=turned)
                if found is None:
                    return None
                if not self.both_orders:
                    return pair.annotation(self.name, found[0], _completion(found[1]))
                other = await self._judge(pair, ask, turned=not turned)
                if other is None:
                    return None
                return _row_of_both(pair, self.name, found, other, turned=turned)

            return run

        return [job(pair) for pair in pairs]

    async def _judge(self, pair: OutputPair, ask: Ask, *, turned: bool) -> tuple[float | None, Reply] | None:
        """The preference for the model in one order (None: not parsed) and the last reply; None: there was none."""
        reply = preference = None
        call = f"alpaca_eval:{pair.model.generator}:{pair.index}:{'turned' if turned else 'kept'}"
        for attempt in range(self.max_tries if self.reading == "ranking" else 1):
            try:
                reply = await ask(self._request(pair, attempt, turned=turned), f"{call}:{attempt}")
            except CallFailed:
                break
            preference = self._read(reply)
            if preference is not None:
                break
        if reply is None:
            return None
        return (3 - preference if preference is not None and turned else preference), reply

    def _request(self, pair: OutputPair, attempt: int, *, turned: bool) -> ChatRequest:
        by_rank = self.reading == "ranking"
        return ChatRequest(
            filled(self.prompt, pair, turned=turned),
            max_tokens=MAX_RANKING_TOKENS if by_rank else 1,
            temperature=self.temperature if attempt == 0 else max(self.temperature, RETRY_TEMPERATURE),
            seed=derived_seed(self.seed, pair.model.generator, pair.baseline.instruction, attempt),
            choices=() if by_rank else CHOICES,
        )

    def _read(self, reply: Reply) -> float | None:
        return parse_ranking(reply.text) if self.reading == "ranking" else preference_of_logprobs(reply.choice_logprobs)


def _row_of_both(
    pair: OutputPair,
    annotator: str,
    found: tuple[float | None, Reply],
    other: tuple[float | None, Reply],
    *,
    turned: bool,
) -> dict[str, Any]:
    """A row with what was said in the coin's order and in the other one, in fields of ours beside alpaca_eval's."""
    preferences = (found[0], other[0])
    known = [preference for preference in preferences if preference is not None]
    mean = sum(known) / 2 if len(known) == 2 else None
    return pair.annotation(annotator, mean, _completion(found[1])) | {
        "preference_by_order": list(reversed(preferences) if turned else preferences),
        "raw_completion_other_order": _completion(other[1]),
    }


def _completion(reply: Reply) -> Any:
    """What was said: a text, or the log-probs in the layout of a choice of OpenAI's, which alpaca_eval reads."""
    if not reply.choice_logprobs:
        return reply.text
    listed = zip(CHOICES, reply.choice_logprobs, strict=True)
    likely = {token: logprob for token, logprob in listed if logprob is not None}
    first = max(likely, key=lambda token: likely[token], default=reply.text)
    tokens = [{"token": token, "logprob": logprob} for token, logprob in likely.items()]
    said = {"token": first, "logprob": likely.get(first), "top_logprobs": tokens}
    return {"text": first, "logprobs": {"content": [said]}}
