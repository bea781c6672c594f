"""Has a judge grade answers to MT-Bench, or compare two models' answers in both orders; the result is FastChat's rows.

A judgment without a rating is asked for again, with another seed and a higher temperature; one that stays so is kept
with the score -1 (a verdict with `error`), so that it is counted and dropped. A judge that is too weak to write ratings
can be read by its probabilities instead: of the digits 1 to 9 as its next token. Whoever answers stands behind `ask`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from zephyr_jax.evaluation.bench_prompts import WITH_REFERENCE, JudgePrompt, Mode, judge_messages, prompt_name
from zephyr_jax.evaluation.fastchat_files import NO_TIME, UNPARSED, Grading, ModelAnswer, PairJudgment, Question
from zephyr_jax.evaluation.judges import Ask
from zephyr_jax.evaluation.mt_bench import parse_rating
from zephyr_jax.evaluation.pairwise import parse_verdict
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, derived_seed
from zephyr_jax.judging.ratings import expected_digit
from zephyr_jax.records import InputError, Message

RETRY_TEMPERATURE = 0.7
Reading = Literal["text", "logprobs"]
# No 10: tokenizers that split numbers would begin it as they begin 1.
GRADE_DIGITS = tuple("123456789")
DIGIT_REQUEST = "\n\nGive no explanation now. Reply with the rating alone: one digit, from 1 (worst) to 9 (best)."
# Game 1 shows model_1 as A, game 2 model_2.
_WINNERS = ({"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"})


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is judged, and how.

    Attributes:
      questions: in their order.
      prompts: FastChat's judge prompts by name.
      references: question -> the turns of its reference answer.
      judge: the judge's name, for the rows.
      reading: of gradings. text: the rating in the judge's words. logprobs: the mean of the digits 1 to 9 under their
        probabilities as the next token, asked for at the end of the prompt.
      temperature: of the first try.
      max_tokens: of a judgment.
      max_tries: judgments asked for until one can be parsed.
      seed: of the run.
    """

    questions: Sequence[Question]
    prompts: Mapping[str, JudgePrompt]
    references: Mapping[int, Sequence[str]]
    judge: str
    reading: Reading = "text"
    temperature: float = 0.0
    max_tokens: int = 2048
    max_tries: int = 2
    seed: int = 42

    def messages(
        self, mode: Mode, question: Question, answers: Sequence[Sequence[str]], turn: int
    ) -> tuple[str, tuple[Message, ...]]:
        """The name of the prompt, and the prompt filled in.

        Raises:
          InputError: the prompt, a reference or a turn of an answer is missing.
        """
        name = prompt_name(mode, question.category, turn)
        if name not in self.prompts:
            raise InputError(f"mt_bench.judging.prompts: has no prompt {name!r} (it has {', '.join(self.prompts)})")
        reference = self.references.get(question.question_id) if question.category in WITH_REFERENCE else None
        messages = judge_messages(self.prompts[name], question, answers, reference, turn=turn)
        return name, self.with_reading(messages) if mode == "single" else messages

    def with_reading(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """What a judge is shown to grade an answer, with the request for a digit where that is how it is read."""
        if self.reading == "text":
            return messages
        last = messages[-1]
        return *messages[:-1], {"role": last["role"], "content": last["content"] + DIGIT_REQUEST}


def answers_by_question(
    answers: Sequence[ModelAnswer], questions: Sequence[Question], *, model: str
) -> dict[int, Sequence[str]]:
    """Question -> the turns of one model's first choice.

    Raises:
      InputError: a question, or a turn of it, has no answer.
    """
    found: dict[int, Sequence[str]] = {
        answer.question_id: answer.choices[0] for answer in answers if answer.model == model
    }
    for question in questions:
        turns = found.get(question.question_id)
        if turns is None or len(turns) < len(question.turns):
            raise InputError(
                f"mt_bench.judging.answers: {model} has {len(turns or ())} turns of an answer to question "
                f"{question.question_id}, wanted {len(question.turns)}"
            )
    return found


def grading_jobs(
    bench: Bench, model: str, answers: Mapping[int, Sequence[str]], ask: Ask, *, repetition: int = 0
) -> list[Callable[[], Awaitable[Grading | None]]]:
    """A job a turn of a question: it grades one answer; None where the judge did not answer at all."""

    def job(question: Question, turn: int) -> Callable[[], Awaitable[Grading | None]]:
        async def run() -> Grading | None:
            name, messages = bench.messages("single", question, [answers[question.question_id]], turn)
            parts = (model, question.question_id, turn, repetition)
            judgment = await grade(bench, ask, messages, parts)
            if judgment is None:
                return None
            return Grading(
                question.question_id, model, bench.judge, name, messages[-1]["content"], judgment,
                parse_rating(judgment), turn, NO_TIME,
            )  # fmt: skip

        return run

    return [job(question, turn) for question in bench.questions for turn in range(1, len(question.turns) + 1)]


def pair_jobs(
    bench: Bench,
    models: tuple[str, str],
    answers: tuple[Mapping[int, Sequence[str]], Mapping[int, Sequence[str]]],
    ask: Ask,
) -> list[Callable[[], Awaitable[PairJudgment | None]]]:
    """A job a turn of a question: it has two answers compared in both orders; None where the judge did not answer."""

    def job(question: Question, turn: int) -> Callable[[], Awaitable[PairJudgment | None]]:
        async def run() -> PairJudgment | None:
            shown = [given[question.question_id] for given in answers]
            name, game_1 = bench.messages("pair", question, shown, turn)
            _, game_2 = bench.messages("pair", question, shown[::-1], turn)
            found = await compare(bench, ask, (game_1, game_2), (*models, question.question_id, turn))
            if found is None:
                return None
            verdicts, judgments = found
            prompts = (game_1[-1]["content"], game_2[-1]["content"])
            return PairJudgment(
                question.question_id, *models, bench.judge, name, verdicts, prompts, judgments, turn, NO_TIME
            )

        return run

    return [job(question, turn) for question in bench.questions for turn in range(1, len(question.turns) + 1)]


async def grade(bench: Bench, ask: Ask, messages: tuple[Message, ...], parts: tuple[object, ...]) -> str | None:
    """What the judge says of one answer; None where it did not answer at all.

    Args:
      bench: how it is asked.
      ask: the judge.
      messages: what it is shown.
      parts: what the judgment is of: draws the seed, and stands in the journal.
    """
    if bench.reading == "logprobs":
        return await _likely_digit(bench, ask, messages, parts)
    return await _judged(bench, ask, messages, lambda text: parse_rating(text) != UNPARSED, parts)


async def _likely_digit(bench: Bench, ask: Ask, messages: tuple[Message, ...], parts: tuple[object, ...]) -> str | None:
    """The expected digit as FastChat's parser reads it; empty, which is unparsed, where no digit is likely at all."""
    request = ChatRequest(messages, max_tokens=1, temperature=0.0, choices=GRADE_DIGITS)
    try:
        reply = await ask(request, ":".join(["mt_bench", *map(str, parts)]))
    except CallFailed:
        return None
    mean = expected_digit(reply.choice_logprobs, GRADE_DIGITS)
    return "" if mean is None else f"[[{mean:.4f}]]"


async def compare(
    bench: Bench, ask: Ask, games: tuple[tuple[Message, ...], tuple[Message, ...]], parts: tuple[object, ...]
) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """The verdicts of both games, model_1's answer shown first in the first, and what was said; see `grade`."""
    verdicts, judgments = [], []
    for game, (messages, winners) in enumerate(zip(games, _WINNERS, strict=True)):
        judgment = await _judged(bench, ask, messages, lambda text: parse_verdict(text) != "error", (*parts, game))
        if judgment is None:
            return None
        verdict = parse_verdict(judgment)
        verdicts.append(winners.get(verdict, verdict))
        judgments.append(judgment)
    return (verdicts[0], verdicts[1]), (judgments[0], judgments[1])


async def _judged(
    bench: Bench,
    ask: Ask,
    messages: tuple[Message, ...],
    can_be_used: Callable[[str], bool],
    parts: tuple[object, ...],
) -> str | None:
    """The first judgment that can be used, else the last there was; None where there was none."""
    judgment = None
    call = ":".join(["mt_bench", *map(str, parts)])
    for attempt in range(bench.max_tries):
        request = ChatRequest(
            messages,
            max_tokens=bench.max_tokens,
            temperature=bench.temperature if attempt == 0 else max(bench.temperature, RETRY_TEMPERATURE),
            seed=derived_seed(bench.seed, *parts, attempt),
        )
        try:
            judgment = (await ask(request, f"{call}:{attempt}")).text
        except CallFailed:
            return judgment
        if can_be_used(judgment):
            return judgment
    return judgment
