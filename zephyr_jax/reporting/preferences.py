"""The sections of a data report on comparisons of answers: findings, lengths, scores, length bias, models, examples."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from zephyr_jax.data import comparison_statistics as statistics
from zephyr_jax.data.comparison_statistics import ModelRecord, Share
from zephyr_jax.data.comparisons import Comparison
from zephyr_jax.reporting.page import (
    Html,
    bullets,
    element,
    figure,
    joined,
    section,
    share_matrix,
    table,
    tiles,
)  # fmt: skip
from zephyr_jax.reporting.plots import Picture

_ROWS_IN_TABLE, _MODELS_IN_MATRIX = 25, 12
_MAX_CHARACTERS_SHOWN = 1500
# A model that is in so many comparisons, and wins or loses so many of them, is a hint of its own.
_ONE_SIDED, _MIN_COMPARISONS = 0.85, 50
_FEW = 10


def preference_sections(comparisons: Sequence[Comparison], *, num_examples: int, seed: int) -> Html:
    """All sections.

    Args:
      comparisons: at least one.
      num_examples: of each kind.
      seed: decides which examples are drawn.

    Raises:
      InputError: matplotlib is not installed.
    """
    figures = statistics.summary(comparisons)
    bias, models = statistics.length_bias(comparisons), statistics.model_records(comparisons)
    return joined(
        [
            tiles(
                {
                    "comparisons": f"{figures['comparisons']:,}".replace(",", " "),
                    "different prompts": f"{figures['prompts']:,}".replace(",", " "),
                    "chosen is the longer one": _percent(bias.longer.share),
                    "with scores": _percent(figures["scored"] / len(comparisons)),
                    "mean margin": _number(figures["mean_margin"]),
                    "length with margin, r": _number(bias.pearson),
                }
            ),
            section("What stands out", bullets(findings(comparisons, models))),
            section("Lengths", _length_pictures(comparisons)),
            *_score_section(comparisons),
            section("Length bias", *_length_bias_parts(comparisons)),
            *([section("Which model wins", *_model_parts(comparisons, models))] if models else []),
            section("Examples", *_examples(comparisons, num_examples, seed)),
        ]
    )


def findings(comparisons: Sequence[Comparison], models: Sequence[ModelRecord]) -> Iterator[str]:
    """What a reader should know before training on these preferences, a sentence each."""
    bias = statistics.length_bias(comparisons)
    share = bias.longer
    equal = f"; {bias.num_equal} are of equal length" if bias.num_equal else ""
    measured = (
        f"in {_percent(share.share)} of {share.total} comparisons ({_interval(share)}; 50 % would be no bias{equal})"
    )
    # Where many are of equal length, neither one is the longer in half of them.
    share = statistics.share_of(share.count, share.total - bias.num_equal)
    if share.low > 0.5:
        yield (
            f"Length bias: the chosen answer is the longer one {measured}. Preferring the longer answer, whatever it "
            "says, would agree with the data that often, and a model trained on it can learn just that."
        )
    elif share.high < 0.5:
        yield f"Length bias towards short answers: the chosen answer is the longer one only {measured}."
    else:
        yield f"No length bias to be seen: the chosen answer is the longer one {measured}."
    if bias.pearson is not None:
        yield (
            f"Length difference and margin correlate with r = {bias.pearson:.2f} (by ranks {_number(bias.spearman)}) "
            f"over the {bias.num_scored} comparisons that have scores."
        )
    margins = statistics.margins(comparisons)
    if np.isnan(margins).any():
        yield f"{int(np.isnan(margins).sum())} comparisons have no scores, and so no margin."
    if (margins == 0).any():
        yield f"{int((margins == 0).sum())} comparisons are ties by their scores: they say nothing."
    if (margins < 0).any():
        yield f"In {int((margins < 0).sum())} comparisons the rejected answer has the higher score."
    for model in models:
        if model.wins.total >= _MIN_COMPARISONS and abs(model.wins.share - 0.5) >= _ONE_SIDED - 0.5:
            verb = "wins" if model.wins.share > 0.5 else "loses"
            often = _percent(max(model.wins.share, 1 - model.wins.share))
            yield (
                f"{model.model} {verb} {often} of its {model.wins.total} comparisons: recognising its answers is "
                "enough to agree with the data there."
            )


def _length_pictures(comparisons: Sequence[Comparison]) -> Html:
    chosen, rejected = statistics.lengths(comparisons)
    prompts = {tuple(message["content"] for message in comparison.prompt) for comparison in comparisons}
    picture = Picture(2, name="lengths", label="Histograms of the lengths of answers and of prompts")
    picture.histogram({"chosen": chosen, "rejected": rejected}, title="answers", x_label="characters", log=True)
    picture.histogram(
        {"prompts": [sum(map(len, turns)) for turns in prompts]},
        title="different prompts, all turns",
        x_label="characters",
        log=True,
    )
    means = f"Mean of the chosen answers {chosen.mean():.0f} characters, of the rejected ones {rejected.mean():.0f}."
    return figure(picture.svg(), means)


def _score_section(comparisons: Sequence[Comparison]) -> list[Html]:
    scored = [c for c in comparisons if c.score_chosen is not None and c.score_rejected is not None]
    if not scored:
        return []
    picture = Picture(2, name="scores", label="Histograms of scores and of margins")
    picture.histogram(
        {"chosen": [c.score_chosen or 0.0 for c in scored], "rejected": [c.score_rejected or 0.0 for c in scored]},
        title="scores",
        x_label="score",
    )
    picture.histogram(
        {"margin": [c.margin or 0.0 for c in scored]}, title="margins", x_label="score of chosen - score of rejected"
    )
    note = f"Over the {len(scored)} comparisons in which both answers have a score."
    return [section("Scores and margins", figure(picture.svg(), note))]


def _length_bias_parts(comparisons: Sequence[Comparison]) -> Iterator[Html]:
    chosen, rejected = statistics.lengths(comparisons)
    ratio = np.log2(np.maximum(chosen, 1) / np.maximum(rejected, 1))
    margins = statistics.margins(comparisons)
    scored = ~np.isnan(margins)
    picture = Picture(2 + bool(scored.sum() >= 20), name="bias", label="How length goes with being chosen", height=3.1)
    picture.histogram(
        {"ratio": np.clip(ratio, -6, 6)},
        title="which one is longer",
        x_label="log2 (length of chosen / of rejected)",
        split_at=0.0,
    )
    groups = statistics.longer_chosen_by_ratio(comparisons)
    picture.intervals(
        [middle for middle, _ in groups],
        [100 * share.share for _, share in groups],
        [100 * share.low for _, share in groups],
        [100 * share.high for _, share in groups],
        title="the more they differ",
        x_label="longer / shorter answer (median of the group)",
        y_label="longer one chosen, %",
        level=50.0,
        log=True,
    )
    if scored.sum() >= 20:
        picture.bubbles(
            np.clip(ratio[scored], -6, 6),
            margins[scored],
            title="length and margin",
            x_label="log2 (length of chosen / of rejected)",
            y_label="margin",
        )
    yield figure(
        picture.svg(),
        "Left: blue where the chosen answer is the longer one, orange where it is not. Lengths in characters. "
        "Intervals are Wilson's at 95 %, each comparison counted as independent; the dashed line is no bias.",
    )
    by_source: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        by_source[comparison.source].append(comparison)
    rows = []
    for source, part in sorted(by_source.items(), key=lambda item: (-len(item[1]), item[0]))[:_ROWS_IN_TABLE]:
        bias = statistics.length_bias(part)
        rows.append(
            (source, len(part), _percent(bias.longer.share), _interval(bias.longer), bias.num_scored, bias.pearson)
        )
    if len(by_source) > _ROWS_IN_TABLE:
        yield element("p", f"{len(by_source)} sources; the {_ROWS_IN_TABLE} with the most comparisons.", class_="soft")
    yield table(("source", "comparisons", "longer chosen", "95 % interval", "with scores", "r with margin"), rows)


def _model_parts(comparisons: Sequence[Comparison], models: Sequence[ModelRecord]) -> Iterator[Html]:
    rows = [
        (m.model, m.wins.total, m.wins.count, _percent(m.wins.share), _interval(m.wins), round(m.mean_characters))
        for m in models[:_ROWS_IN_TABLE]
    ]
    head = ("model", "comparisons", "wins", "share", "95 % interval", "mean length")
    yield element(
        "p", f"{len(models)} models; those in the most comparisons first, at most {_ROWS_IN_TABLE}.", class_="soft"
    )
    yield table(head, rows)
    names = [model.model for model in models[:_MODELS_IN_MATRIX]]
    wins = statistics.wins_between(comparisons, names)
    totals = wins + wins.T
    shares = [
        [float(wins[i, j] / totals[i, j]) if totals[i, j] else None for j in range(len(names))]
        for i in range(len(names))
    ]
    notes = [
        [f"{row} was preferred to {column} in {wins[i, j]} of {totals[i, j]}" for j, column in enumerate(names)]
        for i, row in enumerate(names)
    ]
    yield element(
        "p",
        "Per cent of comparisons in which the model of the row was preferred to that of the column; in italics where "
        f"they are fewer than {_FEW}.",
    )
    yield share_matrix(names, shares, notes, faint=totals < _FEW)


def _examples(comparisons: Sequence[Comparison], number: int, seed: int) -> Iterator[Html]:
    drawn = sorted(comparisons, key=lambda c: hashlib.sha256(f"{seed}\n{c.location}".encode()).digest())
    scored = [comparison for comparison in drawn if comparison.margin is not None]
    kinds = {"drawn by the seed": drawn}
    if scored:
        kinds["largest margin"] = sorted(scored, key=lambda c: -(c.margin or 0.0))
        kinds["smallest margin"] = sorted(scored, key=lambda c: c.margin or 0.0)
    kinds["shortest chosen beside its rejected answer"] = sorted(drawn, key=lambda c: len(c.chosen) / len(c.rejected))
    for kind, ordered in kinds.items():
        yield element("h3", kind)
        yield from (_example(comparison) for comparison in ordered[:number])


def _example(comparison: Comparison) -> Html:
    prompt = "\n\n".join(
        message["content"] if len(comparison.prompt) == 1 else f"[{message['role']}] {message['content']}"
        for message in comparison.prompt
    )
    sides = [
        element(
            "div",
            element("b", f"{what}: {model or 'unknown model'}"),
            element("div", f"score {_number(score)}, {len(answer)} characters", class_="soft"),
            element("pre", _cut(answer)),
            class_=colour,
        )
        for what, model, score, answer, colour in (
            ("chosen", comparison.chosen_model, comparison.score_chosen, comparison.chosen, "first"),
            ("rejected", comparison.rejected_model, comparison.score_rejected, comparison.rejected, "second"),
        )
    ]
    first_line = " ".join(comparison.prompt[-1]["content"].split())
    return element(
        "details",
        element("summary", first_line[:100] + ("\N{HORIZONTAL ELLIPSIS}" if len(first_line) > 100 else "")),
        element("div", f"{comparison.location} ({comparison.source})", class_="soft"),
        element("pre", _cut(prompt)),
        element("div", *sides, class_="pair"),
    )


def _cut(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS_SHOWN:
        return text
    return f"{text[:_MAX_CHARACTERS_SHOWN]} [... {len(text) - _MAX_CHARACTERS_SHOWN} characters more]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f} to {100 * share.high:.1f} %"


def _number(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.2f}"
