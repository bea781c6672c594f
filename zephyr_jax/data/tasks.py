"""The embedded default's data set, made from fixed seeds when it is asked for: no file, no download.

It tells Zephyr's story in small. The *chat* rows are written by an imperfect teacher: about a third of its answers
are wrong, always in the right form, and it is wrong about the same facts again and again. So dSFT learns how to
answer, and the teacher's misconceptions with it. The *preferences* say for each prompt which of the two answers is
right, so dDPO can mend them. The *eval* prompts occur in neither: each asks for a fact in words in which training
never asks for it, and carries the right answer. The questions themselves stand in `task_families.py`. Not a
benchmark: it is there to see a run work.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from zephyr_jax.data.task_families import OPENERS, Fact, Family, all_families
from zephyr_jax.records import InputError

_T = TypeVar("_T")

SPLITS = ("train", "eval")

NUM_CHAT_TRAIN_ROWS = 10_000

# The teacher: it has a wrong idea of some facts, and slips now and then on the others.
SHARE_OF_MISCONCEIVED_FACTS = 0.5
ERROR_RATE_ON_MISCONCEIVED = 0.6
ERROR_RATE_ELSEWHERE = 0.1

_SHARE_OF_TWO_QUESTION_DIALOGUES = 0.1
_MISCONCEPTIONS_SEED, _EVAL_SEED, _CHAT_SEED, _PREFERENCES_SEED = 101, 102, 103, 104


class _Question(NamedTuple):
    """A fact in one phrasing."""

    family: str
    prompt: str
    right: str
    wrong: str
    teacher_error_rate: float


def iterate_task_rows(kind: Literal["chat", "preferences"], split: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of one data set, the same ones in the same order every time.

    Args:
      kind: "chat": columns prompt, prompt_id, messages; "preferences": prompt, prompt_id, chosen, rejected, messages,
        score_chosen, score_rejected (10 for a right answer, 1 for a wrong one).
      split: "train" or "eval". Eval rows of both kinds hold the same prompts and the right answers.

    Yields:
      Rows with one more column, `family`, the kind of question.

    Raises:
      InputError: there is no such kind or split.
    """
    if kind not in ("chat", "preferences"):
        raise InputError(f"built-in tasks: got the kind {kind!r}, wanted chat or preferences")
    if split not in SPLITS:
        raise InputError(f"built-in tasks: got the split {split!r}, wanted one of {', '.join(SPLITS)}")
    train, held_out = _questions()
    if kind == "preferences":
        questions = held_out if split == "eval" else _shuffled(train, random.Random(_PREFERENCES_SEED))
        return (_preference_row(question) for question in questions)
    if split == "eval":
        return (_chat_row([question], [question.right]) for question in held_out)
    return _teacher_rows(train)


def _teacher_rows(questions: tuple[_Question, ...]) -> Iterator[dict[str, Any]]:
    rng = random.Random(_CHAT_SEED)
    for _ in range(NUM_CHAT_TRAIN_ROWS):
        num_questions = 2 if rng.random() < _SHARE_OF_TWO_QUESTION_DIALOGUES else 1
        asked = [_pick(questions, rng) for _ in range(num_questions)]
        yield _chat_row(asked, [q.wrong if rng.random() < q.teacher_error_rate else q.right for q in asked])


def _chat_row(asked: list[_Question], answers: list[str]) -> dict[str, Any]:
    messages = []
    for question, answer in zip(asked, answers, strict=True):
        messages += [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": answer}]
    return {**_identity(asked[0]), "messages": messages}


def _preference_row(question: _Question) -> dict[str, Any]:
    chosen, rejected = (_chat_row([question], [answer])["messages"] for answer in (question.right, question.wrong))
    scores = {"score_chosen": 10.0, "score_rejected": 1.0}
    return {**_identity(question), "chosen": chosen, "rejected": rejected, "messages": chosen, **scores}


def _identity(question: _Question) -> dict[str, str]:
    prompt_id = hashlib.sha256(question.prompt.encode()).hexdigest()
    return {"prompt": question.prompt, "prompt_id": prompt_id, "family": question.family}


@functools.cache
def _questions() -> tuple[tuple[_Question, ...], tuple[_Question, ...]]:
    """All questions, as (train, eval): of each fact, one phrasing (after every opener) is for eval alone."""
    misconceiving, holding_out = random.Random(_MISCONCEPTIONS_SEED), random.Random(_EVAL_SEED)
    train: list[_Question] = []
    held_out: list[_Question] = []
    for family in all_families():
        for fact, error_rate in _error_rates(family, misconceiving):
            kept_back = _pick(family.phrasings, holding_out)
            for phrasing in family.phrasings:
                asked = [_ask(family, opener + phrasing, fact, error_rate) for opener in OPENERS]
                (held_out if phrasing == kept_back else train).extend(asked)
    return tuple(train), tuple(_shuffled(held_out, holding_out))


def _error_rates(family: Family, rng: random.Random) -> list[tuple[Fact, float]]:
    facts = _shuffled(family.facts, rng)
    num_misconceived = round(SHARE_OF_MISCONCEIVED_FACTS * len(facts))
    rates = [ERROR_RATE_ON_MISCONCEIVED] * num_misconceived + [ERROR_RATE_ELSEWHERE] * (len(facts) - num_misconceived)
    return list(zip(facts, rates, strict=True))


def _ask(family: Family, phrasing: str, fact: Fact, teacher_error_rate: float) -> _Question:
    prompt = phrasing.format(fact.subject)
    return _Question(family.name, prompt, f"{fact.right}.", f"{fact.wrong}.", teacher_error_rate)


def _pick(items: Sequence[_T], rng: random.Random) -> _T:
    return items[int(rng.random() * len(items))]


def _shuffled(items: Sequence[_T], rng: random.Random) -> list[_T]:
    # Only `random()` is promised to give the same numbers in every version of Python; `shuffle` is not.
    keys = [rng.random() for _ in items]
    return [item for _, item in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0])]
