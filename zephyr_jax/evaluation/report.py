"""The results of an evaluation as one self-contained HTML page, with a radar of MT-Bench's categories."""

from __future__ import annotations

from zephyr_jax.evaluation import tables
from zephyr_jax.evaluation.alpaca_eval import WinRate
from zephyr_jax.evaluation.mt_bench import CATEGORIES, BenchScore
from zephyr_jax.evaluation.published import MT_BENCH
from zephyr_jax.evaluation.results import AlpacaEvalResults, MtBenchResults, Results
from zephyr_jax.evaluation.statistics import Estimate
from zephyr_jax.reporting.page import Html, bullets, element, figure, page, section, table, tiles
from zephyr_jax.reporting.plots import Picture

_MODELS_PER_RADAR = 2


def report_page(results: Results) -> str:
    """The whole page.

    Raises:
      InputError: matplotlib is not installed.
    """
    parts = []
    if results.alpaca_eval:
        parts.append(_alpaca_eval_section(results.alpaca_eval, results.level))
    if results.mt_bench:
        parts.append(_mt_bench_section(results.mt_bench, results.level))
    if results.agreements:
        sentences = bullets(tables.agreement_sentence(result) for result in results.agreements)
        note = "A judge is called weak when its agreement is not surely above what looking at nothing would reach."
        parts.append(section("Agreement of judges", sentences, element("p", note, class_="soft")))
    subtitle = f"{results.level:.0%} intervals by bootstrap; a difference with p above {1 - results.level:.2g} is noise"
    return page(f"Evaluation: {results.name}", subtitle, tiles(_figures(results)), *parts)


def _figures(results: Results) -> dict[str, str]:
    figures = {}
    if results.alpaca_eval:
        for rate in results.alpaca_eval.win_rates:
            figures[f"AlpacaEval: {rate.model} against {rate.baseline}"] = f"{100 * rate.estimate.mean:.2f} %"
    if results.mt_bench:
        for score in results.mt_bench.scores:
            figures[f"MT-Bench: {score.model}, by {score.judge}"] = f"{score.estimate.mean:.2f}"
    return figures


def _html_table(content: tables.Table) -> Html:
    head, rows = content
    return table(head, rows)


def _row(name: str, estimate: Estimate, scale: float = 1.0) -> tuple[str, float, float, float]:
    low, high = (estimate.mean if bound is None else bound for bound in (estimate.low, estimate.high))
    return name, scale * estimate.mean, scale * low, scale * high


def _alpaca_eval_section(results: AlpacaEvalResults, level: float) -> Html:
    picture = Picture(1, name="alpaca", label="Win rates with intervals", height=1.1 + 0.42 * len(results.win_rates))
    rows = [_row(_name(rate), rate.estimate, 100.0) for rate in results.win_rates]
    picture.named_intervals(rows, title="AlpacaEval", x_label="win rate, %", level=50)
    caption = f"Win rates against the baseline with {level:.0%} intervals; at 50 % the two are even."
    return section(
        "AlpacaEval",
        figure(picture.svg(), caption),
        _html_table(tables.alpaca_eval_table(results)),
        bullets(tables.alpaca_eval_sentences(results)),
    )


def _name(rate: WinRate) -> str:
    return f"{rate.model}\nagainst {rate.baseline}"


def _mt_bench_section(results: MtBenchResults, level: float) -> Html:
    parts: list[Html] = []
    if results.scores:
        picture = Picture(1, name="bench", label="Scores with intervals", height=1.1 + 0.42 * len(results.scores))
        rows = [_row(f"{score.model}\nby {score.judge}", score.estimate) for score in results.scores]
        picture.named_intervals(rows, title="MT-Bench", x_label="score, 1 to 10")
        caption = f"Mean of all gradings with {level:.0%} intervals over the questions."
        parts += [
            figure(picture.svg(), caption),
            _html_table(tables.mt_bench_table(results)),
            *_radars(results),
            _html_table(tables.category_table(results)),
        ]
    if results.pairs:
        parts.append(element("p", "Two answers judged against each other, in both orders:", class_="soft"))
        parts.append(_html_table(tables.pair_table(results)))
    return section("MT-Bench", *parts, bullets(tables.mt_bench_sentences(results)))


def _radars(results: MtBenchResults) -> list[Html]:
    """A picture for every two models that were graded in all categories, beside what is published for them."""
    whole = [score for score in results.scores if set(CATEGORIES) <= set(score.categories)]
    shown = [published for published in MT_BENCH if results.with_published and published.categories]
    beside = {entry.model: [entry.categories[name] for name in CATEGORIES] for entry in shown}
    sources = "; ".join(dict.fromkeys(entry.source for entry in shown))
    pictures = []
    for start in range(0, len(whole), _MODELS_PER_RADAR):
        some = whole[start : start + _MODELS_PER_RADAR]
        names = " and ".join(score.model for score in some)
        picture = Picture(1, name=f"radar{start}", label=f"MT-Bench categories of {names}", height=4.6)
        picture.radar(CATEGORIES, {_label(score): _means(score) for score in some}, beside, title="", top=10)
        caption = f"MT-Bench by category, 20 gradings each or as many as could be parsed: {names}"
        caption += f"; published, as broken lines: {', '.join(beside)} ({sources})." if beside else "."
        pictures.append(figure(picture.svg(), caption))
    return pictures


def _label(score: BenchScore) -> str:
    return f"{score.model} ({score.estimate.mean:.2f}, by {score.judge})"


def _means(score: BenchScore) -> list[float]:
    return [score.categories[name].mean for name in CATEGORIES]
