"""Many plans side by side: the points of a sweep, which of them are best, and the table.

Not here: planning a point (stages/planned.py), the page with the picture (sweep_page.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from zephyr_jax.compilation import bytes_text
from zephyr_jax.planning.stage_plan import StagePlan
from zephyr_jax.records import InputError

NUM_BEST = 3
HEAD = ("", "step", "peak", "margin", "sent", "across hosts", "recomputed", "compute", "network", "at least", "verdict")


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
      overrides: what it changes of the recipe.
      plan: what was found; None where nothing could be.
      reason: why it cannot be run; None: it can, as far as is known.
    """

    overrides: tuple[str, ...]
    plan: StagePlan | None
    reason: str | None

    @property
    def name(self) -> str:
        """The overrides without the paths before their last keys."""
        return ", ".join(
            text.split("=")[0].rpartition(".")[2] + "=" + text.partition("=")[2] for text in self.overrides
        )

    @property
    def values(self) -> str:
        """The overrides' values alone."""
        return " \N{MIDDLE DOT} ".join(text.partition("=")[2].strip("{}") for text in self.overrides)

    @property
    def seconds_per_item(self) -> float | None:
        """The bound of a step's time over its pairs or rows; that of compute alone where no bandwidth is known."""
        if self.plan is None:
            return None
        bounds, options = self.plan.bounds, getattr(self.plan.recipe, self.plan.stage)
        seconds = bounds.step_seconds if bounds.step_seconds is not None else bounds.compute_seconds
        return None if seconds is None else float(seconds / options.batch_size)


def parse_sweep(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every point: `a=1,2` and `b={x: 1, y: 2},null` make four; a comma within brackets parts nothing.

    Raises:
      InputError: a text is not of the form key=value,value.
    """
    axes = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not key or not equals or not values:
            raise InputError(f"--sweep: got {text!r}, wanted key=value,value, as in model.remat=full,attention")
        axes.append([f"{key}={value}" for value in _parts(values)])
    return list(itertools.product(*axes))


def _parts(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def best_points(points: Iterable[Point]) -> list[Point]:
    """The best few of those that can be run, best first, by the rule that `rule_text` states."""
    able = [point for point in points if point.reason is None and point.plan is not None]
    fitting = [point for point in able if point.plan and point.plan.verdict and point.plan.verdict.text == "fits"]
    return sorted(fitting or able, key=_merit)[:NUM_BEST]


def rule_text(points: Sequence[Point]) -> str:
    """How the best are found."""
    found = next((point.plan for point in points if point.plan is not None), None)
    item = "row" if found is None or found.stage == "dsft" else "pair"
    bound = "of compute" if found is None or found.bounds.step_seconds is None else "of compute and network"
    return (
        f"of those that fit, the shortest bound {bound} for a {item}, then the fewest bytes sent, then the lowest peak"
    )


def _merit(point: Point) -> tuple[float, float, float]:
    assert point.plan is not None
    compiled = point.plan.step.compiled
    sent, peak = (compiled.traffic.wire_bytes, compiled.peak) if compiled else (0.0, 0)
    return point.seconds_per_item or 0.0, sent, peak


def point_row(point: Point) -> tuple[str, ...]:
    """A point's cells, as HEAD names them."""
    plan = point.plan
    if plan is None:
        return (point.name, *("",) * (len(HEAD) - 2), point.reason or "")
    shape, compiled, bounds = plan.batch.shape, plan.step.compiled, plan.bounds
    step = f"{shape.num_micro_batches} x {shape.num_rows} x {shape.row_length}"
    memory = traffic = ("", "")
    if compiled is not None:
        memory = bytes_text(compiled.peak), bytes_text(plan.verdict.margin) if plan.verdict else ""
        traffic = bytes_text(compiled.traffic.wire_bytes), bytes_text(compiled.traffic.crossing_bytes)
    seconds = [
        "" if each is None else f"{each:.2f} s"
        for each in (bounds.compute_seconds, bounds.network_seconds, bounds.step_seconds)
    ]
    judged = "not compiled" if compiled is None else "compiled" if plan.verdict is None else plan.verdict.text
    return (point.name, step, *memory, *traffic, f"{100 * plan.remat_share:.0f} %", *seconds, point.reason or judged)


def sweep_text(points: Sequence[Point]) -> str:
    """The table, a line a point, and the best of them."""
    rows = [HEAD, *(point_row(point) for point in points if point.plan is not None)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    widths[0] = max(len(point.name) for point in points)
    lines = []
    for name, *figures, verdict in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=False)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, verdict]))
    lines += [f"{point.name.ljust(widths[0])}  {point.reason}" for point in points if point.plan is None]
    best = [f"  {place}. {point.name}" for place, point in enumerate(best_points(points), start=1)]
    return "\n".join([*lines, f"best: {rule_text(points)}", *(best or ["  none can be run"])])


def sweep_json(points: Sequence[Point], config: str) -> dict[str, Any]:
    """The sweep as JSON values: every point with its plan, and the names of the best."""
    return {
        "points": [
            {
                "overrides": list(point.overrides),
                "reason": point.reason,
                "plan": None if point.plan is None else point.plan.to_json(config),
            }
            for point in points
        ],
        "rule": rule_text(points),
        "best": [list(point.overrides) for point in best_points(points)],
    }
