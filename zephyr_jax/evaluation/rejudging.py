"""Has a model judge again what a trusted judge has judged, so that the two can be set side by side.

Of a reference's stored judgments some are drawn, and the model is shown the same: of FastChat's gradings and pairs the
very prompts that are stored in them, of the Vicuna blog's reviews the two answers in FastChat's `pair-v2`, in both
orders, of AlpacaEval's annotations their outputs in AlpacaEval's prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.evaluation import alpaca_eval, pairwise
from zephyr_jax.evaluation.agreement import Judgments, add_judgments, read_judge
from zephyr_jax.evaluation.alpaca_judging import Annotator, Output, OutputPair, Reading, read_outputs, read_prompt
from zephyr_jax.evaluation.bench_judging import Bench, compare, grade
from zephyr_jax.evaluation.bench_prompts import JudgePrompt, judge_messages, read_judge_prompts
from zephyr_jax.evaluation.fastchat_files import (
    NO_TIME,
    UNPARSED,
    Grading,
    PairJudgment,
    Question,
    parse_judgment,
)
from zephyr_jax.evaluation.judges import Judge
from zephyr_jax.evaluation.mt_bench import parse_rating
from zephyr_jax.evaluation.position import Place, PositionBias, position_bias
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.evaluation.stored_rows import read_rows
from zephyr_jax.evaluation.trust import AgreementResult, agreement_of
from zephyr_jax.judging.protocol import draw_order
from zephyr_jax.records import InputError, Message, Unfinished

REVIEW_PROMPT = "pair-v2"
Row = Mapping[str, Any]
Job = Callable[[], Awaitable["Row | None"]]


@dataclasses.dataclass(frozen=True)
class Rejudging:
    """What is judged again, and how.

    Attributes:
      reference: files of the trusted judge.
      num_items: judgments drawn from what it could decide; all where there are fewer.
      prompts: FastChat's judge_prompts.jsonl, for its judgments and for reviews.
      prompt: AlpacaEval's, for its annotations.
      reading: how its answers on annotations are read; logprobs: those on gradings too, as a recipe's.
      outputs: files of the outputs that were annotated, where the annotations lack them.
      both_orders: outputs are shown in both orders.
      max_tokens: of a judgment.
      max_tries: judgments asked for until one can be read.
      seed: draws the items.
    """

    reference: tuple[str, ...]
    num_items: int = 100
    prompts: str | None = None
    prompt: str | None = None
    reading: Reading = "ranking"
    outputs: tuple[str, ...] = ()
    both_orders: bool = False
    max_tokens: int = 2048
    max_tries: int = 2
    seed: int = 42

    def asked(self) -> str:
        """How the judge is asked, in words; what concerns annotations only where there is their prompt."""
        if self.prompt is None:
            return f"{'logprobs, ' if self.reading == 'logprobs' else ''}by {Path(self.prompts or '').name}"
        return f"{self.reading}{' in both orders' if self.both_orders else ''}, by {Path(self.prompt).name}"


async def rejudge(
    options: Rejudging, judge: Judge, *, model: str, sampling: Sampling
) -> tuple[AgreementResult, list[Row]]:
    """A judge's agreement with the reference on items that it judges now, and its judgments.

    Args:
      options: what and how.
      judge: who is asked.
      model: which model that is.
      sampling: how intervals are drawn.

    Raises:
      InputError: a file cannot be used, or nothing that the judge said can be read.
      Unfinished: it has answered nothing, or the budget is spent.
    """
    jobs = _Jobs(options, judge).drawn()
    results = await judge.run("judging", jobs)
    rows = [row for row in results if row is not None]
    if not rows:
        raise Unfinished(f"{judge.name} gave no answer on any of {len(jobs)} items (above: why)")
    judgments = Judgments()
    add_judgments(judgments, ((f"judgment {place}", row) for place, row in enumerate(rows, start=1)))
    reference = read_judge(options.reference)
    if not any(_is_parsed(row) for row in rows):
        raise Unfinished(
            f"nothing that {judge.name} said of {len(rows)} items can be read as a judgment, so that it agrees with "
            "nobody; a larger model, or --reading logprobs where it is not asked to compare two answers, may do"
        )
    result = agreement_of(judgments, reference, ((judge.name,), options.reference), sampling=sampling)
    bias = _bias(rows, sampling=sampling)
    asked = options.asked()
    if len(rows) < len(jobs):
        asked += f"; no answer at all on {len(jobs) - len(rows)} of {len(jobs)} items"
    position = None if bias is None else bias.as_dict() | {"sentence": bias.sentence(judge.name)}
    return dataclasses.replace(result, judge_model=model, asked=asked, position=position), rows


def _is_parsed(row: Row) -> bool:
    if "preference" in row:
        return row["preference"] is not None
    return "error" not in (row["g1_winner"], row["g2_winner"]) if "g1_winner" in row else row["score"] != UNPARSED


def _bias(rows: Iterable[Row], *, sampling: Sampling) -> PositionBias | None:
    """The judge's position bias; None where nothing was decided in both orders."""
    places: list[tuple[Place, Place]] = []
    groups: list[Hashable] = []
    for row in rows:
        if "g1_winner" in row:
            judgment = parse_judgment(row, "judgment")
            assert isinstance(judgment, PairJudgment)
            if "error" not in judgment.verdicts:
                places.append(pairwise.places_of(judgment))
                groups.append(judgment.question_id)
        elif "preference" in row:
            found = alpaca_eval.places_of(alpaca_eval.parse_annotation(row, 0, "judgment"))
            places += [found] if found else []
            groups += [row["instruction"]] if found else []
    return position_bias(places, groups=groups, sampling=sampling) if places else None


class _Jobs:
    """The items of the reference as jobs that have them judged."""

    def __init__(self, options: Rejudging, judge: Judge):
        self.options, self.judge = options, judge
        self.prompts: dict[str, JudgePrompt] = read_judge_prompts(options.prompts) if options.prompts else {}
        self.bench = Bench(
            (), self.prompts, {}, judge.name, reading="logprobs" if options.reading == "logprobs" else "text",
            max_tokens=options.max_tokens, max_tries=options.max_tries, seed=options.seed,
        )  # fmt: skip
        self.annotator: Annotator | None = None
        if options.prompt is not None:
            self.annotator = Annotator(
                judge.name, read_prompt(options.prompt), options.reading,
                max_tries=options.max_tries, seed=options.seed, both_orders=options.both_orders,
            )  # fmt: skip
        self.outputs = {rows[0].generator: rows for rows in map(read_outputs, options.outputs)}

    def drawn(self) -> list[Job]:
        """As many as are asked for, in an order that the seed draws.

        Raises:
          InputError: the reference has decided nothing, or what its items need was not given.
        """
        found: dict[str, Callable[[], Job]] = {}
        for source in self.options.reference:
            for place, (location, row) in enumerate(read_rows(source)):
                for key, make in self._of_row(row, place, location):
                    found.setdefault(key, make)
        if not found:
            raise InputError(
                f"--reference {', '.join(self.options.reference)}: has no judgment that could be parsed; wanted some"
            )
        chosen = draw_order(list(found), self.options.seed, "agreement")[: self.options.num_items]
        return [found[key]() for key in chosen]

    def _of_row(self, row: Row, place: int, location: str) -> Iterable[tuple[str, Callable[[], Job]]]:
        """The item's key, and what makes its job; nothing where the reference decided nothing."""
        if "preference" in row:
            annotation = alpaca_eval.parse_annotation(row, place, location)
            if annotation.preference is not None:
                key = f"alpaca_eval:{annotation.model}:{annotation.baseline}:{annotation.index}"
                yield key, lambda: self._annotated(row, annotation)
        elif isinstance(row.get("score"), list):
            # Whether it is a review at all is seen when the reference is read as one.
            if UNPARSED not in row["score"]:
                yield (
                    f"review:{row.get('question_id')}:{row.get('model_1')}:{row.get('model_2')}",
                    lambda: self._reviewed(row, location),
                )
        else:
            judgment = parse_judgment(row, location)
            key = f"mt_bench:{judgment.question_id}:{judgment.turn}"
            if isinstance(judgment, Grading) and judgment.score != UNPARSED:
                yield f"{key}:{judgment.model}", lambda: self._graded(judgment, location)
            if isinstance(judgment, PairJudgment) and "error" not in judgment.verdicts:
                yield f"{key}:{judgment.model_1}:{judgment.model_2}", lambda: self._compared(judgment, location)

    def _messages(self, template: str, user_prompt: str, location: str) -> tuple[Message, ...]:
        """What the reference was shown."""
        if not user_prompt:
            raise InputError(f"{location}: has no user_prompt; wanted what the judge was shown, as FastChat stores it")
        return {"role": "system", "content": self._prompt(template, location).system_prompt}, {
            "role": "user",
            "content": user_prompt,
        }

    def _prompt(self, name: str, location: str) -> JudgePrompt:
        if name not in self.prompts:
            got = f"it has {', '.join(self.prompts)}" if self.prompts else "none was given"
            raise InputError(
                f"--prompts: {location} needs the prompt {name!r}, but {got}; wanted FastChat's judge_prompts.jsonl"
            )
        return self.prompts[name]

    def _check_text(self, location: str) -> None:
        if self.bench.reading == "logprobs":
            raise InputError(
                f"--reading: got logprobs, but {location} is of two answers, which a judge compares in its own words; "
                "wanted a reference of gradings or annotations, or without"
            )

    def _graded(self, stored: Grading, location: str) -> Job:
        messages = self.bench.with_reading(self._messages(stored.template, stored.user_prompt, location))

        async def run() -> Row | None:
            parts = (stored.model, stored.question_id, stored.turn)
            judgment = await grade(self.bench, self.judge.ask, messages, parts)
            if judgment is None:
                return None
            score, judge = parse_rating(judgment), self.judge.name
            return dataclasses.replace(stored, judge=judge, judgment=judgment, score=score, tstamp=NO_TIME).as_row()

        return run

    def _compared(self, stored: PairJudgment, location: str) -> Job:
        self._check_text(location)
        first, second = (self._messages(stored.template, prompt, location) for prompt in stored.user_prompts)

        async def run() -> Row | None:
            parts = (stored.model_1, stored.model_2, stored.question_id, stored.turn)
            found = await compare(self.bench, self.judge.ask, (first, second), parts)
            if found is None:
                return None
            verdicts, judgments = found
            return dataclasses.replace(
                stored, judge=self.judge.name, verdicts=verdicts, judgments=judgments, tstamp=NO_TIME
            ).as_row()

        return run

    def _reviewed(self, row: Row, location: str) -> Job:
        names = ("question", "answer_1", "answer_2", "model_1", "model_2")
        missing = [name for name in names if not isinstance(row.get(name), str)]
        if missing:
            raise InputError(f"{location}: has no {', '.join(missing)}; wanted a review with the texts of its answers")
        self._check_text(location)
        prompt = self._prompt(REVIEW_PROMPT, location)
        question = Question(row["question_id"], str(row.get("category", "")), (row["question"],))
        answers = [[row["answer_1"]], [row["answer_2"]]]
        games = [judge_messages(prompt, question, shown, None, turn=1) for shown in (answers, answers[::-1])]

        async def run() -> Row | None:
            parts = (row["model_1"], row["model_2"], row["question_id"], 1)
            found = await compare(self.bench, self.judge.ask, (games[0], games[1]), parts)
            if found is None:
                return None
            texts = (games[0][-1]["content"], games[1][-1]["content"])
            return PairJudgment(
                row["question_id"], row["model_1"], row["model_2"], self.judge.name, prompt.name, found[0], texts,
                found[1], 1, NO_TIME,
            ).as_row()  # fmt: skip

        return run

    def _annotated(self, row: Row, annotation: alpaca_eval.Annotation) -> Job:
        if self.annotator is None:
            raise InputError(
                f"--prompt: got none, but {annotation.location} is an annotation; wanted AlpacaEval's prompt for it"
            )
        baseline, model = (
            self._output(row, annotation, number, name)
            for number, name in ((1, annotation.baseline), (2, annotation.model))
        )
        if baseline.instruction != model.instruction:
            raise InputError(
                f"--outputs: the outputs of {annotation.baseline} and {annotation.model} at place {annotation.index} "
                f"are to different instructions ({baseline.instruction[:40]!r}, {model.instruction[:40]!r}); wanted "
                "files in the order of the annotations"
            )
        return self.annotator.jobs([OutputPair(annotation.index, baseline, model)], self.judge.ask)[0]

    def _output(self, row: Row, annotation: alpaca_eval.Annotation, number: int, generator: str) -> Output:
        """The row's own output, else the one at its place of the generator's file."""
        text, instruction = row.get(f"output_{number}"), annotation.instruction
        if isinstance(text, str) and instruction is not None:
            return Output(instruction, text, generator, row.get("dataset"))
        outputs: Sequence[Output] = self.outputs.get(generator, ())
        if annotation.index >= len(outputs):
            raise InputError(
                f"--outputs: {annotation.location} is about output {annotation.index} of {generator}, of which "
                f"{len(outputs)} were given (there are those of {', '.join(self.outputs) or 'nobody'}); wanted the "
                "outputs that were annotated, a file a model"
            )
        return outputs[annotation.index]
