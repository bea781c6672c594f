"""A judge without a model, for tasks whose answers can be checked: rules from the user's file decide.

A row of rules is about one question's turn (MT-Bench) or one instruction (AlpacaEval), and all its checks must hold:

    {"question_id": 111, "turn": 1, "checks": [{"number": 3}]}
    {"instruction": "Which is ...?", "checks": [{"contains": ["Paris"]}, {"max_words": 20}]}

An answer that passes is graded 10, another one 1; of two answers the one that passes is preferred, and two that both
pass or both fail are a tie. What has no rule is not judged, and counted. Rules say the same each time, and see no style
and no reasons: a right number after wrong steps passes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from zephyr_jax.evaluation.alpaca_judging import OutputPair
from zephyr_jax.evaluation.fastchat_files import NO_TIME, Grading, PairJudgment, Question
from zephyr_jax.evaluation.stored_rows import field, read_rows
from zephyr_jax.records import InputError

NAME = "rules"  # of the judge and of its prompt, in the rows
PASSED, FAILED = 10, 1
_WANTED = "a rule: question_id (and turn) or instruction, and checks, a list of {CHECK: VALUE}"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number in a text, commas between digits left out; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _is_json(text: str) -> bool:
    """With or without a Markdown fence around it."""
    text = re.sub(r"\A\s*```\w*\n(.*)\n\s*```\s*\Z", r"\1", text, flags=re.DOTALL)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _equal_numbers(text: str, wanted: float) -> bool:
    number = last_number(text)
    return number is not None and math.isclose(number, wanted, rel_tol=1e-6, abs_tol=1e-9)


def _texts(wanted: Any) -> list[str]:
    return [wanted] if isinstance(wanted, str) else wanted


# Name -> (what it is given, whether a text holds it). Letters' case and white space at the ends never matter.
_CHECKS: dict[str, tuple[str, Callable[[str, Any], bool]]] = {
    "exact": ("a text: the whole answer", lambda text, wanted: text.strip().casefold() == wanted.strip().casefold()),
    "number": ("a number: the last one in the answer", _equal_numbers),
    "contains": (
        "a text or several, all in it",
        lambda text, wanted: all(part.casefold() in text.casefold() for part in _texts(wanted)),
    ),
    "excludes": (
        "a text or several, none in it",
        lambda text, wanted: not any(part.casefold() in text.casefold() for part in _texts(wanted)),
    ),
    "regex": (
        "a regular expression found in it",
        lambda text, wanted: re.search(wanted, text, re.IGNORECASE) is not None,
    ),
    "json": ("true: it is JSON", lambda text, wanted: _is_json(text)),
    "min_words": ("a whole number", lambda text, wanted: len(text.split()) >= wanted),
    "max_words": ("a whole number", lambda text, wanted: len(text.split()) <= wanted),
}


def _fits(kind: str, value: Any) -> bool:
    """Whether a check's value is of its kind."""
    if kind == "json":
        return value is True
    if kind in ("number", "min_words", "max_words"):
        return isinstance(value, int if kind != "number" else (int, float)) and not isinstance(value, bool)
    if kind in ("contains", "excludes") and isinstance(value, list):
        return bool(value) and all(isinstance(part, str) for part in value)
    if kind == "regex" and isinstance(value, str):
        try:
            re.compile(value)
        except re.error:
            return False
    return isinstance(value, str)


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that an answer must be: a name of the table above, and its value."""

    kind: str
    wanted: Any

    def holds(self, text: str) -> bool:
        """Whether the answer is so."""
        return _CHECKS[self.kind][1](text, self.wanted)

    def __str__(self) -> str:
        return f"{self.kind} {json.dumps(self.wanted, ensure_ascii=False)}"


Rules = Mapping[Hashable, tuple[Check, ...]]


def read_rules(source: str) -> Rules:
    """(question_id, turn) or instruction -> its checks.

    Raises:
      InputError: the file cannot be read, a row is no rule, or two are about the same.
    """
    rules: dict[Hashable, tuple[Check, ...]] = {}
    for location, row in read_rows(source):
        key: Hashable
        if "instruction" in row:
            key = field(row, "instruction", str, location, wanted=_WANTED)
        else:
            turn = field(row, "turn", int, location, wanted=_WANTED) if "turn" in row else 1
            key = (field(row, "question_id", int, location, wanted=_WANTED), turn)
        if key in rules:
            raise InputError(f"{location}: there is a rule for this before; wanted one, with all checks in it")
        given = field(row, "checks", list, location, wanted=_WANTED)
        if not given:
            raise InputError(f"{location}: 'checks' is empty; wanted {_WANTED}")
        rules[key] = tuple(_check(entry, location) for entry in given)
    return rules


def _check(entry: Any, location: str) -> Check:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise InputError(f"{location}: a check is {entry!r}; wanted {{CHECK: VALUE}}, one a check")
    ((kind, value),) = entry.items()
    if kind not in _CHECKS:
        raise InputError(f"{location}: there is no check {kind!r}; wanted one of {', '.join(_CHECKS)}")
    if not _fits(kind, value):
        raise InputError(f"{location}: {kind} is {value!r}; wanted {_CHECKS[kind][0]}")
    return Check(kind, value)


def _verdict(checks: Sequence[Check], text: str) -> tuple[bool, str]:
    """Whether all hold, and a line a check."""
    outcomes = [check.holds(text) for check in checks]
    lines = [f"{check}: {'passed' if holds else 'failed'}" for check, holds in zip(checks, outcomes, strict=True)]
    return all(outcomes), "\n".join(lines)


def _shown(checks: Sequence[Check]) -> str:
    return "\n".join(map(str, checks))


def grade_by_rules(
    rules: Rules, questions: Sequence[Question], model: str, answers: Mapping[int, Sequence[str]]
) -> tuple[list[Grading], int]:
    """FastChat's rows for one model, and how many turns have no rule."""
    rows = []
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            checks = rules.get((question.question_id, turn))
            if checks is None:
                continue
            passed, lines = _verdict(checks, answers[question.question_id][turn - 1])
            score = PASSED if passed else FAILED
            rows.append(
                Grading(
                    question.question_id, model, NAME, NAME, _shown(checks), f"{lines}\nRating: [[{score}]]",
                    score, turn, NO_TIME,
                )
            )  # fmt: skip
    return rows, sum(len(question.turns) for question in questions) - len(rows)


def compare_by_rules(
    rules: Rules, questions: Sequence[Question], answers: Mapping[str, Mapping[int, Sequence[str]]]
) -> tuple[list[PairJudgment], int]:
    """FastChat's rows for every two models, and how many turns have no rule. The order shown is nothing here."""
    rows, num_turns = [], sum(len(question.turns) for question in questions)
    pairs = list(itertools.combinations(answers, 2))
    for (first, second), question in itertools.product(pairs, questions):
        for turn in range(1, len(question.turns) + 1):
            checks = rules.get((question.question_id, turn))
            if checks is None:
                continue
            found = [_verdict(checks, answers[name][question.question_id][turn - 1]) for name in (first, second)]
            texts = []
            for shown in (found, found[::-1]):
                mark = "C" if shown[0][0] == shown[1][0] else "A" if shown[0][0] else "B"
                texts.append(f"Assistant A\n{shown[0][1]}\nAssistant B\n{shown[1][1]}\n[[{mark}]]")
            verdict = "tie" if found[0][0] == found[1][0] else "model_1" if found[0][0] else "model_2"
            rows.append(
                PairJudgment(
                    question.question_id, first, second, NAME, NAME, (verdict, verdict),
                    (_shown(checks), _shown(checks)), (texts[0], texts[1]), turn, NO_TIME,
                )
            )  # fmt: skip
    return rows, len(pairs) * num_turns - len(rows)


def annotate_by_rules(rules: Rules, pairs: Sequence[OutputPair]) -> list[dict[str, Any] | None]:
    """alpaca_eval's row of each pair; None for those without a rule."""
    return [
        None if (checks := rules.get(pair.baseline.instruction)) is None else _annotation(checks, pair)
        for pair in pairs
    ]


def _annotation(checks: Sequence[Check], pair: OutputPair) -> dict[str, Any]:
    baseline, model = (_verdict(checks, output.output) for output in (pair.baseline, pair.model))
    preference = 1.5 if baseline[0] == model[0] else 2.0 if model[0] else 1.0
    text = f"{pair.baseline.generator}\n{baseline[1]}\n{pair.model.generator}\n{model[1]}"
    return pair.annotation(NAME, preference, text)
