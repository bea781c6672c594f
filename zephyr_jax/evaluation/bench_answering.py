"""Has a model answer MT-Bench's questions turn by turn, each later turn after its own answers, as FastChat asks them.

The dialogue goes to the model's own chat template, whichever it was trained with, and without a system turn. Whoever
answers stands behind `ask`. Source of the rules: FastChat's llm_judge (gen_api_answer.py, gen_model_answer.py,
common.py). Not here: judging the answers (bench_judging.py).
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence

from zephyr_jax.evaluation.answering import AnswerCounts, answer_text
from zephyr_jax.evaluation.fastchat_files import NO_TIME, ModelAnswer, Question
from zephyr_jax.evaluation.judges import Ask
from zephyr_jax.judging.protocol import ChatRequest, derived_seed
from zephyr_jax.records import InputError, Message

OTHER_TEMPERATURE = 0.7  # of a category that no temperature is given for, as in FastChat
ANSWER_ID_CHARACTERS = 22  # as many as FastChat's own have
TurnKey = tuple[int, int, int]  # turn from 1, question_id, choice from 0


@dataclasses.dataclass(frozen=True)
class Sitting:
    """How a model is asked.

    Attributes:
      model: its name, for the rows.
      temperatures: category -> temperature; a question's own goes first.
      max_new_tokens: of one answer.
      choices: answers to every question, each with turns of its own; the first is judged.
      seed: of the run.
    """

    model: str
    temperatures: Mapping[str, float]
    max_new_tokens: int = 1024
    choices: int = 1
    seed: int = 42

    def temperature(self, question: Question) -> float:
        """The question's own, else its category's."""
        if question.required_temperature is not None:
            return question.required_temperature
        return self.temperatures.get(question.category, OTHER_TEMPERATURE)

    def request(self, question: Question, answers: Sequence[str], *, choice: int) -> ChatRequest:
        """The next turn, after the model's answers so far; the seed hangs on neither the model nor its answers."""
        messages: list[Message] = []
        for text, answer in zip(question.turns, answers, strict=False):
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        turn = len(answers) + 1
        messages.append({"role": "user", "content": question.turns[turn - 1]})
        return ChatRequest(
            tuple(messages),
            max_tokens=self.max_new_tokens,
            temperature=self.temperature(question),
            seed=derived_seed(self.seed, "mt_bench", question.question_id, choice, turn),
        )

    def jobs(
        self, questions: Sequence[Question], ask: Ask, counts: AnswerCounts
    ) -> list[tuple[TurnKey, Callable[[], Awaitable[str | None]]]]:
        """A job a turn of a choice of a question: it gives the text, or None where none came this time.

        They are to begin in this order, first turns first: a later turn waits for the one before, which has then begun.
        A turn that the model cannot be asked is empty, and the next one is asked after an empty answer.
        """
        jobs: dict[TurnKey, Callable[[], Awaitable[str | None]]] = {}
        for question in questions:
            for choice in range(self.choices):
                answers: list[str] = []
                ended = [asyncio.Event() for _ in question.turns]
                for turn in range(1, len(question.turns) + 1):
                    key = (turn, question.question_id, choice)
                    jobs[key] = self._job(question, choice, answers, ended, ask, counts, turn=turn)
        return sorted(jobs.items(), key=lambda item: item[0][0])

    def _job(
        self,
        question: Question,
        choice: int,
        answers: list[str],
        ended: Sequence[asyncio.Event],
        ask: Ask,
        counts: AnswerCounts,
        *,
        turn: int,
    ) -> Callable[[], Awaitable[str | None]]:
        async def run() -> str | None:
            try:
                if turn > 1:
                    await ended[turn - 2].wait()
                if len(answers) < turn - 1:  # the turn before did not come
                    return None
                call = f"mt_bench answer:{question.question_id}:{choice}:{turn}"
                text = await answer_text(ask, self.request(question, answers, choice=choice), call, counts)
                if text is not None:
                    answers.append(text)
                return text
            finally:
                ended[turn - 1].set()

        return run

    def rows(self, questions: Sequence[Question], texts: Mapping[TurnKey, str]) -> list[ModelAnswer]:
        """FastChat's rows from what the jobs gave."""
        rows = []
        for question in questions:
            choices = tuple(
                tuple(texts[turn, question.question_id, choice] for turn in range(1, len(question.turns) + 1))
                for choice in range(self.choices)
            )
            content = json.dumps([self.model, question.question_id, choices])
            answer_id = hashlib.sha256(content.encode()).hexdigest()[:ANSWER_ID_CHARACTERS]
            rows.append(ModelAnswer(question.question_id, answer_id, self.model, choices, NO_TIME))
        return rows


def chosen_questions(
    questions: Sequence[Question], *, limit: int | None = None, question_ids: Sequence[int] | None = None
) -> list[Question]:
    """A part of the questions, in their order.

    Args:
      questions: all of them.
      limit: so many, the first of every category, then the second ..., so that all categories are there.
      question_ids: these.

    Raises:
      InputError: a question is not there, or fewer than `limit` are.
    """
    if question_ids is not None:
        known = {question.question_id for question in questions}
        missing = [str(question_id) for question_id in question_ids if question_id not in known]
        if missing:
            raise InputError(
                f"mt_bench.question_ids: the file has no question {', '.join(missing)} "
                f"(it has {min(known)} to {max(known)})"
            )
        return [question for question in questions if question.question_id in question_ids]
    if limit is None:
        return list(questions)
    if limit > len(questions):
        raise InputError(f"mt_bench.limit: got {limit}, but the file has {len(questions)} questions")
    num_seen: collections.Counter[str] = collections.Counter()
    rounds: list[tuple[int, int]] = []
    for index, question in enumerate(questions):
        rounds.append((num_seen[question.category], index))
        num_seen[question.category] += 1
    return [questions[index] for index in sorted(index for _, index in sorted(rounds)[:limit])]
