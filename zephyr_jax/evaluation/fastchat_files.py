"""FastChat's files of MT-Bench, read and written: question.jsonl, model_answer/, model_judgment/.

What is written here its own scripts and viewers read, and the other way round: a row that was read is written back as
it was. Not here: what the judgments come to (mt_bench.py, pairwise.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from zephyr_jax.evaluation.stored_rows import field, number_or_none, read_rows
from zephyr_jax.records import InputError
from zephyr_jax.whole_files import open_whole

UNPARSED = -1  # the score of a judgment without a rating
# Rows that are made here do not hang on when they were: a resumed run writes the very files of an untouched one, and a
# finished one the same files again. FastChat's scripts and viewers do not look at it; the log of sessions has times.
NO_TIME = 0.0
VERDICTS = ("model_1", "model_2", "tie", "error")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A row of question.jsonl.

    Attributes:
      question_id: unique.
      category: by which the sampling and the judge's prompt go.
      turns: one question a turn.
      reference: an answer a turn, where the file has some.
      required_temperature: of the sampling, where the file has one; else the category's.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()
    required_temperature: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A row of model_answer/MODEL.jsonl.

    Attributes:
      question_id: whose answer it is.
      answer_id: unique.
      model: `model_id` in the file.
      choices: one or several answers, each with a text a turn.
      tstamp: when it was written, in seconds since 1970.
    """

    question_id: int
    answer_id: str
    model: str
    choices: tuple[tuple[str, ...], ...]
    tstamp: float

    def as_row(self) -> dict[str, Any]:
        """The row as FastChat writes it."""
        return {
            "question_id": self.question_id,
            "answer_id": self.answer_id,
            "model_id": self.model,
            "choices": [{"index": index, "turns": list(turns)} for index, turns in enumerate(self.choices)],
            "tstamp": self.tstamp,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Grading:
    """A row of model_judgment/JUDGE_single.jsonl: one answer graded.

    Attributes:
      question_id, model, turn: whose answer; turns count from 1.
      judge: who graded.
      template: name of the judge's prompt.
      user_prompt, judgment: what the judge was shown, and said.
      score: 1 to 10; UNPARSED (-1) where no rating was found in it.
      tstamp: seconds since 1970.
    """

    question_id: int
    model: str
    judge: str
    template: str
    user_prompt: str
    judgment: str
    score: float
    turn: int
    tstamp: float

    def as_row(self) -> dict[str, Any]:
        """The row as FastChat writes it."""
        return {
            "question_id": self.question_id,
            "model": self.model,
            "judge": [self.judge, self.template],
            "user_prompt": self.user_prompt,
            "judgment": self.judgment,
            "score": self.score,
            "turn": self.turn,
            "tstamp": self.tstamp,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class PairJudgment:
    """A row of model_judgment/JUDGE_pair.jsonl: two answers judged against each other, in both orders.

    Attributes:
      question_id, model_1, model_2, turn: whose answers.
      judge, template: as in Grading.
      verdicts: of game 1 (model_1 shown first) and game 2 (model_2 shown first), each one of VERDICTS.
      user_prompts, judgments: of both games.
      tstamp: seconds since 1970.
    """

    question_id: int
    model_1: str
    model_2: str
    judge: str
    template: str
    verdicts: tuple[str, str]
    user_prompts: tuple[str, str]
    judgments: tuple[str, str]
    turn: int
    tstamp: float

    def as_row(self) -> dict[str, Any]:
        """The row as FastChat writes it."""
        return {
            "question_id": self.question_id,
            "model_1": self.model_1,
            "model_2": self.model_2,
            "g1_winner": self.verdicts[0],
            "g2_winner": self.verdicts[1],
            "judge": [self.judge, self.template],
            "g1_user_prompt": self.user_prompts[0],
            "g1_judgment": self.judgments[0],
            "g2_user_prompt": self.user_prompts[1],
            "g2_judgment": self.judgments[1],
            "turn": self.turn,
            "tstamp": self.tstamp,
        }


_QUESTION = "a question of MT-Bench, with question_id, category and turns (or prompt_id and prompt)"
_ANSWER = "an answer in FastChat's format, with question_id, model_id and choices"
_GRADING = "a single-answer judgment in FastChat's format, with question_id, model, judge, judgment, score and turn"
_PAIR = "a pairwise judgment in FastChat's format, with question_id, model_1, model_2, g1_winner, g2_winner and judge"


def read_questions(source: str) -> list[Question]:
    """The questions in the file's order: FastChat's, or in the columns of hf:HuggingFaceH4/mt_bench_prompts:train.

    Raises:
      InputError: the file cannot be read, a row is no question, or an id is there twice.
    """
    questions: dict[int, Question] = {}
    for location, row in read_rows(source):
        if "question_id" not in row and "prompt_id" in row:
            row = {**row, "question_id": row["prompt_id"], "turns": row.get("prompt")}
        question_id = field(row, "question_id", int, location, wanted=_QUESTION)
        if question_id in questions:
            raise InputError(f"{location}: question {question_id} is there twice; wanted each once")
        questions[question_id] = Question(
            question_id,
            field(row, "category", str, location, wanted=_QUESTION),
            _turns(row, location),
            _texts(row.get("reference") or [], location, _QUESTION),
            _temperature(row, location),
        )
    return list(questions.values())


def _turns(row: Mapping[str, Any], location: str) -> tuple[str, ...]:
    turns = _texts(field(row, "turns", list, location, wanted=_QUESTION), location, _QUESTION)
    if not turns:
        raise InputError(f"{location}: 'turns' is empty; wanted {_QUESTION}")
    return turns


def _temperature(row: Mapping[str, Any], location: str) -> float | None:
    if row.get("required_temperature") is None:  # a data set's column is null where a row has none
        return None
    value = number_or_none(row, "required_temperature", location, wanted=_QUESTION)
    if value is None or value < 0:
        raise InputError(f"{location}: 'required_temperature' is {value}; wanted 0 or more, or none")
    return value


def read_answers(sources: Iterable[str]) -> list[ModelAnswer]:
    """Answers of one or several files; the last one of a question counts, as in FastChat.

    Raises:
      InputError: a file cannot be read, or a row is no answer.
    """
    answers: dict[tuple[str, int], ModelAnswer] = {}
    for source in sources:
        for location, row in read_rows(source):
            choices = field(row, "choices", list, location, wanted=_ANSWER)
            if not choices or not all(isinstance(choice, Mapping) for choice in choices):
                raise InputError(f"{location}: 'choices' has no answer; wanted {_ANSWER}")
            answer = ModelAnswer(
                field(row, "question_id", int, location, wanted=_ANSWER),
                str(row.get("answer_id", "")),
                field(row, "model_id", str, location, wanted=_ANSWER),
                tuple(_texts(choice.get("turns"), location, _ANSWER) for choice in choices),
                _time(row),
            )
            answers[answer.model, answer.question_id] = answer
    return list(answers.values())


def _time(row: Mapping[str, Any]) -> float:
    """When the row was written; nothing hangs on it, so that any other kind of it is none."""
    value = row.get("tstamp")
    return float(value) if isinstance(value, (int, float)) else NO_TIME


def _texts(value: Any, location: str, wanted: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{location}: turns are no list of texts; wanted {wanted}")
    return tuple(value)


def read_judgments(sources: Iterable[str]) -> tuple[list[Grading], list[PairJudgment]]:
    """Judgments of one or several files, gradings and pairs apart, in the files' order.

    Raises:
      InputError: a file cannot be read, or a row is neither.
    """
    gradings: list[Grading] = []
    pairs: list[PairJudgment] = []
    for source in sources:
        for location, row in read_rows(source):
            judgment = parse_judgment(row, location)
            if isinstance(judgment, Grading):
                gradings.append(judgment)
            else:
                pairs.append(judgment)
    return gradings, pairs


def parse_judgment(row: Mapping[str, Any], location: str) -> Grading | PairJudgment:
    """One row of a file of judgments.

    Raises:
      InputError: it is neither kind.
    """
    return _pair(row, location) if "g1_winner" in row else _grading(row, location)


def _grading(row: Mapping[str, Any], location: str) -> Grading:
    judge, template = _judge(row, location, _GRADING)
    return Grading(
        question_id=field(row, "question_id", int, location, wanted=_GRADING),
        model=field(row, "model", str, location, wanted=_GRADING),
        judge=judge,
        template=template,
        user_prompt=str(row.get("user_prompt", "")),
        judgment=field(row, "judgment", str, location, wanted=_GRADING),
        score=_score(row, location),
        turn=field(row, "turn", int, location, wanted=_GRADING),
        tstamp=_time(row),
    )


def _score(row: Mapping[str, Any], location: str) -> float:
    score: float = field(row, "score", (int, float), location, wanted=_GRADING)
    if not math.isfinite(score):
        raise InputError(f"{location}: 'score' is {score}; wanted a number, {UNPARSED} where no rating was found")
    return score


def _pair(row: Mapping[str, Any], location: str) -> PairJudgment:
    judge, template = _judge(row, location, _PAIR)

    def texts(key: str) -> tuple[str, str]:
        return str(row.get(f"g1_{key}", "")), str(row.get(f"g2_{key}", ""))

    for key in ("g1_winner", "g2_winner"):
        if field(row, key, str, location, wanted=_PAIR) not in VERDICTS:
            raise InputError(f"{location}: {key!r} is {row[key]!r}; wanted one of {', '.join(VERDICTS)}")
    return PairJudgment(
        question_id=field(row, "question_id", int, location, wanted=_PAIR),
        model_1=field(row, "model_1", str, location, wanted=_PAIR),
        model_2=field(row, "model_2", str, location, wanted=_PAIR),
        judge=judge,
        template=template,
        verdicts=texts("winner"),
        user_prompts=texts("user_prompt"),
        judgments=texts("judgment"),
        turn=field(row, "turn", int, location, wanted=_PAIR),
        tstamp=_time(row),
    )


def _judge(row: Mapping[str, Any], location: str, wanted: str) -> tuple[str, str]:
    """The judge's name and its prompt's: `["gpt-4", "single-v1"]` in the file."""
    judge = field(row, "judge", list, location, wanted=wanted)
    if len(judge) != 2 or not all(isinstance(part, str) for part in judge):
        raise InputError(f"{location}: 'judge' is {judge!r}; wanted [name, prompt], as in {wanted}")
    return judge[0], judge[1]


def file_name(name: str) -> str:
    """A model's or judge's name as that of a file: the name itself if it can be, since FastChat's viewers go by it."""
    return re.sub(r"[/\\\x00-\x1f]+|^\.+$", "-", name)


def check_file_names(names: Iterable[str], key: str) -> None:
    """Raises InputError where two names would be written to one file.

    Args:
      names: of models.
      key: of the recipe, which named them.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(file_name(name), name)
        if other != name:
            raise InputError(
                f"{key}: the models {other!r} and {name!r} would be written to the same file {file_name(name)!r}; "
                "wanted names that differ in more than slashes"
            )


class _Row(Protocol):
    @property
    def question_id(self) -> int: ...
    def as_row(self) -> dict[str, Any]: ...


def write_rows(path: Path, rows: Iterable[_Row]) -> None:
    """Writes answers or judgments, a line each, by question as FastChat orders them; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        for row in sorted(rows, key=lambda row: row.question_id):
            file.write(json.dumps(row.as_row(), ensure_ascii=False) + "\n")
