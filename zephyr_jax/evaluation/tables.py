"""The results of an evaluation as blocks of tables, pictures, and sentences on what may be said of them.

The terminal, results.json, and the pages of `evaluate` and `report` show the same blocks (reporting/blocks.py).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

from zephyr_jax.data.comparison_statistics import Share
from zephyr_jax.evaluation.academic.blocks import academic_block
from zephyr_jax.evaluation.alpaca_eval import WinRate
from zephyr_jax.evaluation.harness_block import harness_block
from zephyr_jax.evaluation.mt_bench import CATEGORIES
from zephyr_jax.evaluation.pairwise import PairResult
from zephyr_jax.evaluation.position import PositionBias
from zephyr_jax.evaluation.published import MT_BENCH
from zephyr_jax.evaluation.results import AlpacaEvalResults, MtBenchResults, Results
from zephyr_jax.evaluation.statistics import Estimate, p_text
from zephyr_jax.evaluation.trust import Kind, Trusts
from zephyr_jax.reporting.blocks import Block, Intervals, Note, Part, Radar, Row, Sentences, Table

_MODELS_PER_RADAR = 2
PUBLISHED_NOTE = (
    "Published scores have no interval, and the GPT-4 of their day gave them: grading the same answers again moves a "
    "score by 0.16 to 0.2, so a smaller difference to them means nothing."
)


def blocks_of(results: Results) -> list[Block]:
    """Everything, a block for each kind of result."""
    blocks = []
    if results.alpaca_eval:
        blocks.append(_alpaca_eval_block(results.alpaca_eval, results.level))
    if results.mt_bench:
        blocks.append(_mt_bench_block(results.mt_bench, results.level))
    if results.academic:
        blocks.append(academic_block(results.academic, level=results.level))
    if results.harness:
        blocks.append(harness_block(results.harness, level=results.level))
    if results.agreements:
        note = "A judge is called weak when its agreement is not surely above what looking at nothing would reach."
        sentences = [result.sentence() for result in results.agreements]
        blocks.append(Block("Agreement of judges", [Sentences(sentences), Note(note)]))
    return blocks


def _alpaca_eval_block(results: AlpacaEvalResults, level: float) -> Block:
    rows = [_row(f"{rate.model}\nagainst {rate.baseline}", rate.estimate, 100.0) for rate in results.win_rates]
    caption = f"Win rates against the baseline with {level:.0%} intervals; at 50 % the two are even."
    scores: list[Part] = [
        Intervals("Win rates with intervals", "AlpacaEval", "win rate, %", rows, 50, caption),
        alpaca_eval_table(results),
    ]
    return Block(
        "AlpacaEval",
        [*(scores if rows else []), Sentences(alpaca_eval_sentences(results))],
        {
            f"AlpacaEval: {rate.model} against {rate.baseline}"
            f"{results.trusts.of(rate.annotator, 'verdicts').tile()}": f"{100 * rate.estimate.mean:.2f} %"
            for rate in results.win_rates
        },
    )


def _mt_bench_block(results: MtBenchResults, level: float) -> Block:
    parts: list[Part] = []
    if results.scores:
        rows = [_row(f"{score.model}\nby {score.judge}", score.estimate) for score in results.scores]
        caption = f"Mean of all gradings with {level:.0%} intervals over the questions."
        parts += [
            Intervals("Scores with intervals", "MT-Bench", "score, 1 to 10", rows, None, caption),
            mt_bench_table(results),
            *([Note(PUBLISHED_NOTE)] if results.with_published else []),
            *radars(results),
            category_table(results),
            Note(
                f"In brackets {level:.0%} intervals over the questions, of which a category has at most ten; of one "
                "question there is none."
            ),
        ]
    if results.pairs:
        parts += [Note("Two answers judged against each other, in both orders:"), pair_table(results)]
    tiles = {
        f"MT-Bench: {score.model}, by {score.judge}{results.trusts.of(score.judge, 'gradings').tile()}": (
            f"{score.estimate.mean:.2f}"
        )
        for score in results.scores
    }
    return Block("MT-Bench", [*parts, Sentences(mt_bench_sentences(results))], tiles)


def _row(name: str, estimate: Estimate, scale: float = 1.0) -> Row:
    low, high = (estimate.mean if bound is None else bound for bound in (estimate.low, estimate.high))
    return name, scale * estimate.mean, scale * low, scale * high


def radars(results: MtBenchResults) -> list[Radar]:
    """A picture for every two models that were graded in all categories, beside what is published for others."""
    whole = [score for score in results.scores if set(CATEGORIES) <= set(score.categories)]
    shown = [published for published in MT_BENCH if results.with_published and published.categories]
    beside = {entry.model: [entry.categories[name] for name in CATEGORIES] for entry in shown}
    sources = "; ".join(dict.fromkeys(entry.source for entry in shown))
    pictures = []
    for start in range(0, len(whole), _MODELS_PER_RADAR):
        some = whole[start : start + _MODELS_PER_RADAR]
        names = " and ".join(score.model for score in some)
        series = {
            f"{score.model} ({score.estimate.mean:.2f}, by {score.judge})": [
                score.categories[name].mean for name in CATEGORIES
            ]
            for score in some
        }
        sizes = sorted({score.categories[name].num_items for score in some for name in CATEGORIES})
        gradings = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        caption = f"MT-Bench by category, {gradings} gradings each: {names}"
        caption += f"; published, as broken lines: {', '.join(beside)} ({sources})." if beside else "."
        pictures.append(Radar(f"MT-Bench categories of {names}", CATEGORIES, series, beside, 10, caption))
    return pictures


def interval_text(estimate: Estimate, *, scale: float = 1, digits: int = 2) -> str:
    """`7.01 to 7.32`; a dash where there is none."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f}"


def _with_interval(estimate: Estimate, digits: int = 2) -> str:
    interval = "" if estimate.low is None else f" ({interval_text(estimate)})"
    return f"{estimate.mean:.{digits}f}{interval}"


def _error(estimate: Estimate, scale: float = 1) -> str:
    return "-" if estimate.standard_error is None else f"{scale * estimate.standard_error:.2f}"


def follows_text(position: PositionBias | None) -> str:
    """`32.0 % (27.9 to 36.4)`: the share of verdicts that follow the position; a dash where it was not measured."""
    if position is None or not position.follows.total:
        return "-"
    return _share_text(position.follows)


def _share_text(share: Share) -> str:
    return f"{100 * share.share:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def alpaca_eval_table(results: AlpacaEvalResults) -> Table:
    """A row a contest."""
    head = ["model", "baseline", "judge", "win rate %", "error", "interval", "judge's agreement",
            "length-controlled %", "items", "unparsed",
            "mean characters", "follow the position"]  # fmt: skip
    rows = []
    for rate, controlled in zip(results.win_rates, results.length_controlled, strict=True):
        rows.append([
            rate.model,
            rate.baseline,
            rate.annotator or "-",
            f"{100 * rate.estimate.mean:.4f}",
            _error(rate.estimate, 100),
            interval_text(rate.estimate, scale=100),
            results.trusts.of(rate.annotator, "verdicts").cell(),
            f"{100 * controlled.win_rate:.2f} ({100 * controlled.low:.2f} to {100 * controlled.high:.2f})"
            if controlled
            else "-",
            str(rate.estimate.num_items),
            str(rate.num_unparsed),
            "-" if rate.mean_length is None else str(int(rate.mean_length)),
            follows_text(rate.position),
        ])  # fmt: skip
    return Table(head, rows)


def alpaca_eval_sentences(results: AlpacaEvalResults) -> list[str]:
    """What may be said of the win rates."""
    missing = results.judged.num_unanswered if results.judged else 0
    judged = results.judged.rows if results.judged else ()
    unread = collections.Counter((row["annotator"], row["generator_2"]) for row in judged)
    for row in judged:
        if row["preference"] is not None:
            unread.pop((row["annotator"], row["generator_2"]), None)
    return [
        *(f"{counts.sentence()}." for counts in results.answering),
        *(
            f"Nothing that {judge} said of {count} outputs of {model} could be read: they have no win rate by it."
            for (judge, model), count in unread.items()
        ),
        *([f"The judge gave no judgment at all on {missing} pairs that it was asked about."] if missing else []),
        *(_contest_sentence(rate) for rate in results.win_rates),
        *(rate.position.sentence(rate.annotator or "the judge") for rate in results.win_rates if rate.position),
        *(f"{comparison.sentence('instructions')}, in points of win rate." for comparison in results.comparisons),
        *_trust_sentences(results.trusts, [(rate.annotator, "verdicts") for rate in results.win_rates]),
    ]


def _trust_sentences(trusts: Trusts, judges: Iterable[tuple[str | None, Kind]]) -> list[str]:
    """How far each judge is to be trusted, once."""
    found = [trusts.of(judge, kind).sentence() for judge, kind in judges]
    return [sentence for sentence in dict.fromkeys(found) if sentence]


def _contest_sentence(rate: WinRate) -> str:
    mean = 100 * rate.estimate.mean
    side = "within noise of" if rate.within_noise else "above" if mean > 50 else "below"
    text = f"{rate.model} is {side} {rate.baseline} (win rate {mean:.2f} %, even is 50; {p_text(rate)})."
    longer, total = rate.longer_wins
    return f"{text} The longer output won {longer} of {total} decided judgments." if total else text


def mt_bench_table(results: MtBenchResults) -> Table:
    """A row a graded model, and published ones after them."""
    head = ["model", "judge", "score", "error", "interval", "judge's agreement", "turn 1", "turn 2", "gradings",
            "questions", "unparsed", "source"]  # fmt: skip
    rows = []
    for score in results.scores:
        turns = [_with_interval(score.turns[turn], 4) if turn in score.turns else "-" for turn in (1, 2)]
        rows.append([
            score.model,
            score.judge,
            f"{score.estimate.mean:.4f}",
            _error(score.estimate),
            interval_text(score.estimate),
            results.trusts.of(score.judge, "gradings").cell(),
            *turns,
            str(score.estimate.num_items),
            str(score.estimate.num_groups),
            str(score.num_unparsed),
            "here",
        ])  # fmt: skip
    if results.with_published:
        rows += [
            [published.model, "GPT-4", f"{published.score:.2f}", *["-"] * 8, published.source] for published in MT_BENCH
        ]
    return Table(head, rows)


def category_table(results: MtBenchResults) -> Table:
    """A row a category, its gradings (of a model, the fewest and the most where they differ), and a column a model."""
    names = list(dict.fromkeys(name for score in results.scores for name in score.categories))
    published = [entry for entry in MT_BENCH if results.with_published and entry.categories]
    rows = []
    for name in names:
        ours = [score.categories.get(name) for score in results.scores]
        theirs = [entry.categories.get(name) for entry in published]
        cells = ["-" if found is None else _with_interval(found) for found in ours]
        counts = sorted({found.num_items for found in ours if found is not None})
        gradings = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        rows.append([name, gradings, *cells, *("-" if found is None else f"{found:.2f}" for found in theirs)])
    judges = {score.judge for score in results.scores}
    heads = [score.model if len(judges) == 1 else f"{score.model}, by {score.judge}" for score in results.scores]
    return Table(["category", "gradings", *heads, *(entry.model for entry in published)], rows)


def pair_table(results: MtBenchResults) -> Table:
    """A row a pair of models."""
    head = ["model 1", "model 2", "judge", "win", "loss", "tie", "errors", "win rate %", "interval", "p",
            "judge's agreement", "same in both orders", "follow the position", "to the first",
            "to the second"]  # fmt: skip
    rows = [
        [
            pair.model_1, pair.model_2, pair.judge, str(pair.wins), str(pair.losses), str(pair.ties),
            str(pair.num_errors), f"{100 * pair.estimate.mean:.2f}", interval_text(pair.estimate, scale=100),
            f"{pair.p_value:.2g}", results.trusts.of(pair.judge, "verdicts").cell(),
            _share_text(pair.position.same_verdict), follows_text(pair.position),
            str(pair.position.to_first), str(pair.position.to_second),
        ]
        for pair in results.pairs
    ]  # fmt: skip
    return Table(head, rows)


def mt_bench_sentences(results: MtBenchResults) -> list[str]:
    """What may be said of the scores."""
    sentences = [f"{counts.sentence()}." for counts in results.answering]
    sentences += [f"{comparison.sentence('questions')}." for comparison in results.comparisons]
    if results.judged and results.judged.reading == "logprobs":
        sentences.append(
            f"{results.judged.judge} was read by its probabilities of the digits 1 to 9 as the next token, not by a "
            "rating that it wrote: its scores stand beside each other, not beside GPT-4's."
        )
    graded = {(score.judge, score.model) for score in results.scores}
    unread = collections.Counter((row.judge, row.model) for row in (results.judged.gradings if results.judged else ()))
    sentences += [
        f"{judge} gave no rating for any of {count} answers of {model}: it has no score by it."
        for (judge, model), count in unread.items()
        if (judge, model) not in graded
    ]
    for score in results.scores:
        if score.num_unparsed:
            total = score.num_unparsed + score.estimate.num_items
            sentences.append(
                f"{score.judge} gave no rating for {score.num_unparsed} of {total} answers of {score.model}, which are "
                "left out: its score is of the others only."
            )
        if score.num_outside:
            sentences.append(
                f"{score.num_outside} ratings of {score.model} by {score.judge} are not from 1 to 10; they count, "
                "as in FastChat."
            )
        if score.num_contradicted:
            sentences.append(
                f"{score.num_contradicted} stored scores of {score.model} by {score.judge} are not what their text "
                "says."
            )
        if score.judge_spread is not None:
            rounds = ", ".join(f"{value:.2f}" for value in score.rounds)
            sentences.append(
                f"{score.judge} graded {score.model} {len(score.rounds)} times ({rounds}): standard deviation "
                f"{score.judge_spread:.2f} between rounds."
            )
    if results.judged and results.judged.num_unanswered:
        sentences.append(
            f"{results.judged.judge} gave no judgment at all on {results.judged.num_unanswered} items that it was "
            "asked about."
        )
    sentences += [sentence for pair in results.pairs for sentence in _pair_sentences(pair)]
    judges: list[tuple[str | None, Kind]] = [(score.judge, "gradings") for score in results.scores]
    return sentences + _trust_sentences(
        results.trusts, [*judges, *((pair.judge, "verdicts") for pair in results.pairs)]
    )


def _pair_sentences(pair: PairResult) -> list[str]:
    names = f"{pair.model_1} and {pair.model_2}"
    if pair.within_noise:
        text = f"{names} are within noise of each other in direct comparison ({p_text(pair)})."
    else:
        better = pair.model_1 if pair.estimate.mean > 0.5 else pair.model_2
        text = f"Of {names} {better} is better in direct comparison ({p_text(pair)})."
    return [text, pair.position.sentence(pair.judge)]
