"""A sweep as one self-contained HTML page: peak memory, bytes sent and bounds as bars, and the table."""

from __future__ import annotations

from collections.abc import Sequence

from zephyr_jax.planning.sweep import HEAD, Point, best_points, point_row, rule_text
from zephyr_jax.reporting.page import bullets, figure, page, section, table
from zephyr_jax.reporting.plots import Picture


def sweep_page(points: Sequence[Point], *, title: str, subtitle: str) -> str:
    """The whole page; points without a plan stand in the table alone.

    Raises:
      InputError: matplotlib is not installed.
    """
    planned = [(point, point.plan) for point in points if point.plan is not None]
    picture = Picture(3, name="sweep", label=title, height=1.4 + 0.27 * len(planned))
    best = best_points(points)
    names = [("\N{BLACK STAR} " if point in best else "") + point.values for point, _ in planned]
    programs = [plan.step.compiled for _, plan in planned]
    peaks = [compiled.peak / 1e9 if compiled else 0.0 for compiled in programs]
    sent = [compiled.traffic.wire_bytes / 1e9 if compiled else 0.0 for compiled in programs]
    across = [compiled.traffic.crossing_bytes / 1e9 if compiled else 0.0 for compiled in programs]
    fits = [point.reason is None for point, _ in planned]
    verdict = next((plan.verdict for _, plan in planned if plan.verdict), None)
    picture.bars(
        names,
        {
            "fits": [peak if able else 0.0 for peak, able in zip(peaks, fits, strict=True)],
            "does not": [0.0 if able else peak for peak, able in zip(peaks, fits, strict=True)],
        },
        title="Peak of a device",
        x_label="GB; line: the allocator's",
        level=None if verdict is None else verdict.available / 1e9,
    )
    inside = [total - crossing for total, crossing in zip(sent, across, strict=True)]
    picture.bars([], {"across hosts": across, "within": inside}, title="Sent by a device", x_label="GB a step")
    seconds = {
        "compute": [plan.bounds.compute_seconds or 0.0 for _, plan in planned],
        "network": [plan.bounds.network_seconds or 0.0 for _, plan in planned],
    }
    picture.bars([], seconds, title="Lower bounds of a step", x_label="seconds", stacked=False)
    keys = ", ".join(text.partition("=")[0] for text in points[0].overrides)
    return page(
        title,
        subtitle,
        figure(
            picture.svg(), f"{keys}. Compiled for GPUs that are not here: bounds, not measurements. Stars: the best."
        ),
        section("The best", bullets([rule_text(points).capitalize(), *(point.name for point in best)])),
        section("All points", table(HEAD, [point_row(point) for point in points])),
    )
