"""One run of judging AlpacaEval outputs as a recipe asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.evaluation.alpaca_eval import Annotation, parse_annotation
from zephyr_jax.evaluation.alpaca_judging import (
    CHOICES,
    Annotator,
    Output,
    OutputPair,
    filled,
    is_turned,
    pair_outputs,
    read_outputs,
    read_prompt,
)
from zephyr_jax.evaluation.fastchat_files import check_file_names, file_name
from zephyr_jax.evaluation.judges import Judge, LiveJudge, StoredJudge, why_silent
from zephyr_jax.evaluation.rule_judging import NAME as RULES
from zephyr_jax.evaluation.rule_judging import Rules, annotate_by_rules, read_rules
from zephyr_jax.evaluation.stored_rows import field, read_rows, under
from zephyr_jax.evaluation_recipe import AlpacaJudgingOptions
from zephyr_jax.judging.protocol import Reply
from zephyr_jax.judging.replay import ReplayJudge
from zephyr_jax.judging.session import Session
from zephyr_jax.records import InputError, Message, Unfinished
from zephyr_jax.whole_files import write_json

_WANTED = "an annotation of alpaca_eval with instruction, output_1, output_2, annotator and raw_completion"


@dataclasses.dataclass(frozen=True)
class JudgedOutputs:
    """What a judge said of all outputs.

    Attributes:
      rows: in alpaca_eval's format.
      num_unanswered: pairs that it said nothing of.
    """

    rows: tuple[Mapping[str, Any], ...]
    num_unanswered: int

    def annotations(self) -> list[Annotation]:
        """The rows as annotations."""
        return [parse_annotation(row, row["index"], f"judged:{row['index'] + 1}") for row in self.rows]

    def write(self, folder: Path) -> None:
        """Writes MODEL/ANNOTATOR/annotations.json, as alpaca_eval's folder of results has it."""
        places: dict[Path, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            names = [file_name(str(row[key])) for key in ("generator_2", "annotator")]
            places.setdefault(folder.joinpath(*names), []).append(row)
        for place, rows in places.items():
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / "annotations.json", rows)


async def judge_outputs(
    options: AlpacaJudgingOptions, session: Session, *, seed: int, answered: Sequence[Sequence[Output]] = ()
) -> JudgedOutputs:
    """Has all outputs judged, those of the files and those that were just given.

    Raises:
      InputError: a file cannot be used, the model cannot be opened, or nothing is stored of any of them.
      Unfinished: the model has answered nothing, or the budget is spent.
    """
    pairs = _pairs(options, answered)
    results = await _judge(pairs, options, session, seed=seed)
    rows = tuple(row for row in results if row is not None)
    if rows:
        return JudgedOutputs(rows, len(results) - len(rows))
    if options.judge is not None:
        raise Unfinished(
            f"alpaca_eval.judging: {options.judge} gave no answer on any of the {len(pairs)} pairs "
            f"{why_silent('alpaca_eval', options.system_as)}"
        )
    if options.rules is not None:
        raise InputError(
            f"alpaca_eval.judging.rules {options.rules}: has no rule for any of the {len(pairs)} pairs; wanted some "
            "with their very instructions"
        )
    raise InputError(
        f"alpaca_eval.judging.replay {', '.join(options.replay or ())}: nothing is stored of any of the {len(pairs)} "
        "pairs; wanted annotations of these outputs against this baseline"
    )


def check_outputs(
    options: AlpacaJudgingOptions, answered: Sequence[Sequence[Output]] = ()
) -> tuple[str, list[OutputPair]]:
    """Reads what `judge_outputs` will read: the judge's name, and what it will judge.

    Raises:
      InputError: a file cannot be used, or the baseline has no output to an instruction.
    """
    pairs = _pairs(options, answered)
    if options.rules is not None:
        _rules(options.rules)
        return RULES, pairs
    assert options.prompt is not None
    prompt = read_prompt(options.prompt)
    if options.replay is not None:
        with under("alpaca_eval.judging.replay"):
            return _replayed(options.replay, prompt)[0], pairs
    assert options.judge is not None
    return options.judge, pairs


def _rules(source: str) -> Rules:
    with under("alpaca_eval.judging.rules"):
        return read_rules(source)


def _pairs(options: AlpacaJudgingOptions, answered: Sequence[Sequence[Output]]) -> list[OutputPair]:
    with under("alpaca_eval.judging.baseline"):
        baseline = read_outputs(options.baseline)
    with under("alpaca_eval.judging.outputs"):
        outputs = [*(read_outputs(source) for source in options.outputs or ()), *answered]
    names = [some[0].generator for some in outputs]
    if len(set(names)) < len(names):
        raise InputError(
            f"alpaca_eval.judging.outputs: got outputs of {', '.join(names)}, the answering models' included; wanted "
            "each name once"
        )
    check_file_names(names, "alpaca_eval.judging.outputs")
    return [pair for some in outputs for pair in pair_outputs(baseline, some)]


async def _judge(
    pairs: Sequence[OutputPair], options: AlpacaJudgingOptions, session: Session, *, seed: int
) -> list[dict[str, Any] | None]:
    """A row a pair; None where the judge said nothing of it."""
    if options.rules is not None:
        return annotate_by_rules(_rules(options.rules), pairs)
    assert options.prompt is not None and options.reading is not None
    prompt = read_prompt(options.prompt)
    judge: Judge
    if options.replay is not None:
        judge = StoredJudge(*_replayed(options.replay, prompt))
    else:
        assert options.judge is not None
        judge = LiveJudge(session, options.judge, system_as=options.system_as)
    annotator = Annotator(
        judge.name,
        prompt,
        options.reading,
        options.temperature,
        # What is stored of a judge has the tries that were made; the next text is that of another judgment.
        1 if options.replay else options.max_tries,
        seed,
        both_orders=options.both_orders,
    )
    return await judge.run("alpaca_eval judging", annotator.jobs(pairs, judge.ask))


def _replayed(files: Sequence[str], prompt: tuple[Message, ...]) -> tuple[str, ReplayJudge]:
    """The judge of stored annotations: what it was shown is the prompt filled in with their own outputs."""
    names: dict[str, None] = {}
    stored: list[tuple[str, Reply]] = []
    for source in files:
        for location, row in read_rows(source):
            texts = [field(row, key, str, location, wanted=_WANTED) for key in ("instruction", "output_1", "output_2")]
            names[field(row, "annotator", str, location, wanted=_WANTED)] = None
            pair = OutputPair(0, Output(texts[0], texts[1], "", None), Output(texts[0], texts[2], "", None))
            raw = field(row, "raw_completion", (str, dict, type(None)), location, wanted=_WANTED)
            turned = is_turned(pair.baseline.instruction)
            for completion, order in ((raw, turned), (row.get("raw_completion_other_order"), not turned)):
                if completion is not None:
                    shown = filled(prompt, pair, turned=order)
                    stored.append((shown[-1]["content"], _reply(completion, location)))
    if len(names) > 1:
        raise InputError(
            f"alpaca_eval.judging.replay: has annotations by {', '.join(names)}; wanted those of one judge"
        )
    name = next(iter(names))
    return name, ReplayJudge(name, stored)


def _reply(raw: Any, location: str) -> Reply:
    """A stored completion: a text, or an OpenAI choice with its likeliest first tokens."""
    if isinstance(raw, str):
        return Reply(raw, "stop", 0, 0)
    try:
        likely = {entry["token"]: entry["logprob"] for entry in raw["logprobs"]["content"][0]["top_logprobs"]}
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{location}: 'raw_completion' has no top_logprobs; wanted {_WANTED}") from error
    return Reply("", "stop", 0, 0, tuple(likely.get(choice) for choice in CHOICES))
