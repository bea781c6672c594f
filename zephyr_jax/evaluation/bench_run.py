"""One run of judging MT-Bench answers as a recipe asks for it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from zephyr_jax.evaluation.bench_judging import Bench, Reading, answers_by_question, grading_jobs, pair_jobs
from zephyr_jax.evaluation.bench_prompts import read_judge_prompts
from zephyr_jax.evaluation.fastchat_files import (
    Grading,
    ModelAnswer,
    PairJudgment,
    Question,
    check_file_names,
    file_name,
    read_answers,
    read_judgments,
    write_rows,
)
from zephyr_jax.evaluation.judges import Judge, LiveJudge, StoredJudge, why_silent
from zephyr_jax.evaluation.rule_judging import NAME as RULES
from zephyr_jax.evaluation.rule_judging import Rules, compare_by_rules, grade_by_rules, read_rules
from zephyr_jax.evaluation.stored_rows import under
from zephyr_jax.evaluation_recipe import BenchJudgingOptions
from zephyr_jax.judging.protocol import Reply
from zephyr_jax.judging.replay import ReplayJudge
from zephyr_jax.judging.session import Session
from zephyr_jax.records import InputError, Unfinished


@dataclasses.dataclass(frozen=True)
class JudgedBench:
    """What a judge said of all answers.

    Attributes:
      judge: its name.
      answers: what was judged.
      gradings, pairs: its judgments, by the mode one or the other.
      num_unanswered: judgments that it did not give.
      reading: of the gradings; see Bench.
    """

    judge: str
    answers: tuple[ModelAnswer, ...]
    gradings: tuple[Grading, ...]
    pairs: tuple[PairJudgment, ...]
    num_unanswered: int
    reading: Reading = "text"

    def write(self, folder: Path) -> None:
        """Writes model_answer/ and model_judgment/ as FastChat's scripts and viewers read them."""
        for model in dict.fromkeys(answer.model for answer in self.answers):
            rows = [answer for answer in self.answers if answer.model == model]
            write_rows(folder / "model_answer" / f"{file_name(model)}.jsonl", rows)
        for kind, judgments in (("single", self.gradings), ("pair", self.pairs)):
            if judgments:
                write_rows(folder / "model_judgment" / f"{file_name(self.judge)}_{kind}.jsonl", judgments)


async def judge_bench(
    options: BenchJudgingOptions,
    questions: Sequence[Question],
    session: Session,
    *,
    seed: int,
    answered: Sequence[ModelAnswer] = (),
) -> JudgedBench:
    """Has all answers judged, those of the files and those that were just given.

    Raises:
      InputError: a file cannot be used, an answer is missing, the model cannot be opened, or nothing is stored of any.
      Unfinished: the model has answered nothing, or the budget is spent.
    """
    answers, turns = _all_answers(options, questions, answered)
    if options.rules is not None:
        judged = _judged_by_rules(_rules(options.rules), options, questions, answers, turns)
    else:
        judged = await _judged(options, questions, session, answers, turns, seed=seed)
    if judged.gradings or judged.pairs:
        return judged
    if options.judge is not None:
        raise Unfinished(
            f"mt_bench.judging: {judged.judge} gave no answer on any of {judged.num_unanswered} items "
            f"{why_silent('mt_bench', options.system_as)}"
        )
    if options.rules is not None:
        raise InputError(
            f"mt_bench.judging.rules {options.rules}: has no rule for any of {judged.num_unanswered} turns; wanted "
            "some with their question_id and turn"
        )
    raise InputError(
        f"mt_bench.judging.replay {', '.join(options.replay or ())}: nothing is stored to any of the "
        f"{judged.num_unanswered} questions that {judged.judge} was asked; wanted judgments of these answers, made "
        f"with these prompts in mode {options.mode}"
    )


def check_bench(
    options: BenchJudgingOptions, questions: Sequence[Question], answered: Sequence[ModelAnswer] = ()
) -> None:
    """Reads what `judge_bench` will read, and fills in every prompt with empty answers.

    Raises:
      InputError: a file cannot be used, or an answer, a prompt or a reference is missing.
    """
    _all_answers(options, questions, answered)
    if options.rules is not None:
        _rules(options.rules)
        return
    if options.replay is not None:
        _replayed(options.replay)
    bench = _bench(options, questions, judge="", seed=0)
    for question in questions:
        shown = [[""] * len(question.turns)] * (1 if options.mode == "single" else 2)
        for turn in range(1, len(question.turns) + 1):
            bench.messages(options.mode, question, shown, turn)


def _rules(source: str) -> Rules:
    with under("mt_bench.judging.rules"):
        return read_rules(source)


def _all_answers(
    options: BenchJudgingOptions, questions: Sequence[Question], answered: Sequence[ModelAnswer]
) -> tuple[list[ModelAnswer], dict[str, dict[int, Sequence[str]]]]:
    """All answers, and model -> question -> turns."""
    with under("mt_bench.judging.answers"):
        answers = read_answers(options.answers or ())
    for name in dict.fromkeys(answer.model for answer in answered):
        if any(answer.model == name for answer in answers):
            raise InputError(
                f"mt_bench.judging.answers: has answers of {name}, which is also a model that answers; wanted another "
                "name of the one in models"
            )
    answers += answered
    models = list(dict.fromkeys(answer.model for answer in answers))
    check_file_names(models, "mt_bench.judging.answers")
    if options.mode == "pair" and len(models) < 2:
        raise InputError(
            f"mt_bench.judging.answers: has answers of {', '.join(models)} alone; mode pair wants two models"
        )
    return answers, {model: answers_by_question(answers, questions, model=model) for model in models}


def _bench(options: BenchJudgingOptions, questions: Sequence[Question], *, judge: str, seed: int) -> Bench:
    assert options.prompts is not None
    with under("mt_bench.judging.prompts"):
        prompts = read_judge_prompts(options.prompts)
    references: dict[int, Sequence[str]] = {row.question_id: row.reference for row in questions if row.reference}
    if options.references is not None:
        with under("mt_bench.judging.references"):
            references = {answer.question_id: answer.choices[0] for answer in read_answers([options.references])}
    return Bench(
        prompts=prompts,
        references=references,
        questions=questions,
        judge=judge,
        reading=options.reading,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        # What is stored of a judge has the tries that were made; the next text is that of another judgment.
        max_tries=1 if options.replay else options.max_tries,
        seed=seed,
    )


def _judged_by_rules(
    rules: Rules,
    options: BenchJudgingOptions,
    questions: Sequence[Question],
    answers: Sequence[ModelAnswer],
    turns: Mapping[str, Mapping[int, Sequence[str]]],
) -> JudgedBench:
    if options.mode == "pair":
        pairs, num_missing = compare_by_rules(rules, questions, turns)
        return JudgedBench(RULES, tuple(answers), (), tuple(pairs), num_missing)
    graded = [grade_by_rules(rules, questions, model, turns[model]) for model in turns]
    gradings = tuple(row for rows, _ in graded for row in rows)
    return JudgedBench(RULES, tuple(answers), gradings, (), sum(missing for _, missing in graded))


async def _judged(
    options: BenchJudgingOptions,
    questions: Sequence[Question],
    session: Session,
    answers: Sequence[ModelAnswer],
    turns: Mapping[str, Mapping[int, Sequence[str]]],
    *,
    seed: int,
) -> JudgedBench:
    """By a model, or by what is stored of one."""
    judge: Judge
    if options.replay is not None:
        judge = StoredJudge(*_replayed(options.replay))
    else:
        assert options.judge is not None
        judge = LiveJudge(session, options.judge, system_as=options.system_as)
    bench = _bench(options, questions, judge=judge.name, seed=seed)
    gradings: list[Grading | None] = []
    pairs: list[PairJudgment | None] = []
    if options.mode == "single":
        grading = [
            job
            for repetition in range(options.repetitions)
            for model in turns
            for job in grading_jobs(bench, model, turns[model], judge.ask, repetition=repetition)
        ]
        gradings = await judge.run("mt_bench judging", grading)
    else:
        comparing = [
            job
            for first, second in itertools.combinations(turns, 2)
            for job in pair_jobs(bench, (first, second), (turns[first], turns[second]), judge.ask)
        ]
        pairs = await judge.run("mt_bench judging", comparing)
    return JudgedBench(
        judge.name,
        tuple(answers),
        tuple(row for row in gradings if row is not None),
        tuple(row for row in pairs if row is not None),
        num_unanswered=gradings.count(None) + pairs.count(None),
        reading=options.reading,
    )


def _replayed(files: Sequence[str]) -> tuple[str, ReplayJudge]:
    with under("mt_bench.judging.replay"):
        gradings, pairs = read_judgments(files)
    judges = list(dict.fromkeys([*(row.judge for row in gradings), *(row.judge for row in pairs)]))
    if len(judges) > 1:
        raise InputError(f"mt_bench.judging.replay: has judgments by {', '.join(judges)}; wanted those of one judge")
    stored = [(row.user_prompt, row.judgment) for row in gradings]
    stored += [game for row in pairs for game in zip(row.user_prompts, row.judgments, strict=True)]
    return judges[0], ReplayJudge(judges[0], [(text, Reply(judgment, "stop", 0, 0)) for text, judgment in stored])
