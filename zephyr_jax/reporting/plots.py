"""Pictures for a page as inline SVG, by matplotlib (extra [report]): histograms, intervals, bubbles, radars.

The colours of a picture are the page's: what is drawn in INK, LINE, FIRST and SECOND becomes `currentColor` and the
CSS variables of `page.py`, so that a picture follows light and dark. The same numbers give the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.records import InputError
from zephyr_jax.reporting.page import Html

INK, LINE, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
_PAGE_COLOURS = {INK: "currentColor", LINE: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
MAX_POINTS = 300
_NUM_BINS = 40  # of a histogram, over the whole range
_NUM_CELLS = 22  # of a grid of bubbles, along each side
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "zephyr", "font.size": 10, "axes.edgecolor": LINE, "axes.labelcolor": INK,
    "axes.titlesize": 10.5, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
}  # fmt: skip


def require_matplotlib() -> None:
    """For who works long before the first picture.

    Raises:
      InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "pictures need matplotlib, which is not installed; the way out: pip install 'zephyr-jax[report]' "
            "(in a checkout: pip install -e '.[report]')"
        )


class Picture:
    """Panels side by side, filled from left to right, then turned into SVG.

    picture = Picture(2, name="lengths", label="Lengths of prompts and answers")
    picture.histogram({"prompts": lengths}, title="...", x_label="characters", log=True)
    svg = picture.svg()
    """

    def __init__(self, num_panels: int, *, name: str, label: str, height: float = 2.9, width: float = 10.0) -> None:
        """Args:
          num_panels: axes side by side.
          name: what the ids inside the SVG begin with; one of its own for each picture of a page.
          label: what the picture shows, for those who cannot see it.
          height: inches.
          width: inches; what is as wide as the page has 10.

        Raises:
          InputError: matplotlib is not installed.
        """
        require_matplotlib()
        import matplotlib
        from matplotlib.figure import Figure

        self._settings = matplotlib.rc_context(_SETTINGS)
        with self._settings:
            self._figure = Figure(figsize=(width, height))
            self._axes = list(np.atleast_1d(self._figure.subplots(1, num_panels)))
        self._context, self._name, self._label = matplotlib.rc_context, name, label

    def _next_panel(self, title: str, x_label: str, y_label: str) -> Any:
        axes = self._axes.pop(0)
        axes.set_title(title, loc="left", color=INK)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return axes

    def histogram(
        self,
        series: dict[str, Sequence[float] | np.ndarray],
        *,
        title: str,
        x_label: str,
        log: bool = False,
        split_at: float | None = None,
    ) -> None:
        """Counts by value.

        Args:
          series: name -> values, one or two of them, over common bins.
          title: above the panel.
          x_label: what the values are, with their unit.
          log: bins of equal ratio, for positive values.
          split_at: one series only: bins above are in the first colour, below in the second.
        """
        axes = self._next_panel(title, x_label, "count")
        values = {name: np.asarray(given, float) for name, given in series.items()}
        edges = _bin_edges(np.concatenate(list(values.values())), _NUM_BINS, log, split_at)
        for (name, given), colour in zip(values.items(), (FIRST, SECOND), strict=False):
            counts, _ = np.histogram(given, edges)
            if split_at is not None:
                colours = [FIRST if edge >= split_at else SECOND for edge in edges[:-1]]
                axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, alpha=0.8)
            else:
                axes.stairs(counts, edges, color=colour, linewidth=1.6, label=name)
                axes.stairs(counts, edges, color=colour, fill=True, alpha=0.22)
        if log:
            axes.set_xscale("log")
        if len(values) > 1:
            axes.legend(frameon=False, labelcolor=INK)

    def intervals(
        self,
        x: Sequence[float],
        y: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        *,
        title: str,
        x_label: str,
        y_label: str,
        level: float | None = None,
        log: bool = False,
    ) -> None:
        """Points with an interval each, and a dashed line at `level`; `log` makes equal ratios of x equally wide."""
        axes = self._next_panel(title, x_label, y_label)
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle="--", alpha=0.6)
        axes.vlines(x, low, high, color=FIRST, linewidth=1.6)
        axes.plot(x, y, "o", color=FIRST, markersize=5)

    def lines(
        self,
        series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        *,
        title: str,
        x_label: str,
        level: float | None = None,
        marks: Sequence[float] = (),
    ) -> None:
        """Values over steps. Of more than MAX_POINTS the means of equally many are drawn, in a band from least to most.

        Args:
          series: name -> (x, y), one or two, as lines.
          points: name -> (x, y), as discs: of one series in the other colour, of two in theirs.
          title: above the panel.
          x_label: what x is.
          level: where a dashed line stands.
          marks: x values where something happened, as dotted upright lines.
        """
        axes = self._next_panel(title, x_label, "")
        for (name, (x, y)), colour in zip(series.items(), (FIRST, SECOND), strict=False):
            mean_x, mean_y, least, most = _thinned(np.asarray(x, float), np.asarray(y, float))
            axes.plot(mean_x, mean_y, color=colour, linewidth=1.4, label=name)
            if len(mean_x) < len(x):
                axes.fill_between(mean_x, least, most, color=colour, alpha=0.18, linewidth=0)
        for (name, (x, y)), colour in zip(points.items(), (FIRST, SECOND)[2 - max(len(series), 1) :], strict=False):
            axes.plot(x, y, "o", color=colour, markersize=4, label=name)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle="--", alpha=0.6)
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=":", alpha=0.6)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        if len(series) + len(points) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    def bubbles(self, x: np.ndarray, y: np.ndarray, *, title: str, x_label: str, y_label: str) -> None:
        """How often x and y come together: a disc for each cell of a grid, its area the count; and the mean of y."""
        axes = self._next_panel(title, x_label, y_label)
        counts, x_edges, y_edges = np.histogram2d(x, y, _NUM_CELLS)
        x_cell, y_cell = np.nonzero(counts)
        x_centres, y_centres = (x_edges[:-1] + x_edges[1:]) / 2, (y_edges[:-1] + y_edges[1:]) / 2
        sizes = 130 * counts[x_cell, y_cell] / counts.max()
        axes.scatter(x_centres[x_cell], y_centres[y_cell], s=sizes + 2, color=FIRST, alpha=0.45, linewidth=0)
        column = np.clip(np.digitize(x, x_edges) - 1, 0, _NUM_CELLS - 1)
        filled = np.flatnonzero(np.bincount(column, minlength=_NUM_CELLS) >= 5)
        axes.plot(x_centres[filled], [y[column == cell].mean() for cell in filled], color=SECOND, label="mean")
        axes.legend(frameon=False, labelcolor=INK)

    def named_intervals(
        self,
        rows: Sequence[tuple[str, float, float, float]],
        *,
        title: str,
        x_label: str,
        level: float | None = None,
    ) -> None:
        """A line a name, from the top: (name, value, low, high); and a dashed line at `level`."""
        axes = self._next_panel(title, x_label, "")
        places = range(len(rows))
        if level is not None:
            axes.axvline(level, color=INK, linewidth=1, linestyle="--", alpha=0.6)
        axes.hlines(places, [row[2] for row in rows], [row[3] for row in rows], color=FIRST, linewidth=1.8)
        axes.plot([row[1] for row in rows], places, "o", color=FIRST, markersize=6)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)

    def bars(
        self,
        names: Sequence[str],
        series: Mapping[str, Sequence[float]],
        *,
        title: str,
        x_label: str,
        level: float | None = None,
        stacked: bool = True,
    ) -> None:
        """A line a name, from the top: one or two bars, end to end or one above the other; a dashed line at `level`.

        No names: those of the panel to the left hold for this one too.
        """
        axes = self._next_panel(title, x_label, "")
        height = 0.66 if stacked or len(series) == 1 else 0.33
        ends = np.zeros(len(next(iter(series.values()))))
        for number, ((name, values), colour) in enumerate(zip(series.items(), (FIRST, SECOND), strict=False)):
            places = np.arange(len(values)) + (0 if height > 0.5 else (number - 0.5) * height)
            axes.barh(places, values, height, left=ends if stacked else 0, color=colour, alpha=0.8, label=name)
            ends = ends + np.asarray(values, float)
        if level is not None:
            axes.axvline(level, color=INK, linewidth=1, linestyle="--", alpha=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(ends) + 1.2, -0.5)  # room below for the legend
        axes.grid(axis="y", visible=False)
        axes.legend(frameon=False, labelcolor=INK, loc="lower left", ncols=2, borderaxespad=0.1, fontsize=9)

    def radar(
        self,
        spokes: Sequence[str],
        series: Mapping[str, Sequence[float]],
        beside: Mapping[str, Sequence[float]],
        *,
        title: str,
        top: float,
    ) -> None:
        """Scores from 0 in the middle to `top` at the rim, a spoke a category, the first one upwards, then clockwise.

        Args:
          spokes: names of the categories.
          series: name -> scores, one or two of them, filled.
          beside: name -> scores to compare with, as broken lines.
          title: above the panel.
          top: value at the rim.
        """
        axes = self._next_panel(title, "", "")
        axes.set_axis_off()
        axes.set_aspect("equal")
        angles = np.pi / 2 - np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
        rim = np.stack([np.cos(angles), np.sin(angles)])

        def outline(values: Sequence[float] | np.ndarray) -> np.ndarray:
            points = rim * np.asarray(values, float) / top
            return np.concatenate([points, points[:, :1]], axis=1)

        for ring in np.linspace(0, top, 6)[1:]:
            axes.plot(*outline(np.full(len(spokes), ring)), color=LINE, linewidth=0.8)
            axes.text(0.015, ring / top, f"{ring:g}", color=INK, alpha=0.6, fontsize=7, va="bottom")
        for (x, y), name in zip(rim.T, spokes, strict=True):
            axes.plot([0, x], [0, y], color=LINE, linewidth=0.8)
            side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
            axes.text(1.1 * x, 1.1 * y, name, ha=side, va="center", color=INK, fontsize=9)
        for (name, values), style in zip(beside.items(), ("--", ":", "-.", (0, (1, 3))), strict=False):
            axes.plot(*outline(values), color=INK, linestyle=style, linewidth=1.1, alpha=0.75, label=name)
        for (name, values), colour in zip(series.items(), (FIRST, SECOND), strict=False):
            axes.plot(*outline(values), color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
            axes.fill(*outline(values), color=colour, alpha=0.13)
        axes.set_xlim(-1.6, 1.6)  # room for the names
        axes.set_ylim(-1.2, 1.2)
        axes.legend(frameon=False, labelcolor=INK, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=9)

    def svg(self) -> Html:
        """The picture as one `svg` element."""
        stream = io.StringIO()
        with self._context(_SETTINGS):
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            self._figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
        text = stream.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        for drawn, shown in _PAGE_COLOURS.items():
            text = text.replace(drawn, shown)
        # Ids are the page's, so those of two pictures must differ.
        text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{self._name}-", text)
        text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', self._opening, text, count=1)
        return Html(text)

    def _opening(self, match: re.Match[str]) -> str:
        label = self._label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {names} viewBox="{match[1]}" role="img" aria-label="{label}">'


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of x and of y, least and most of y, over runs of equally many; the values themselves where they are few."""
    if len(x) <= MAX_POINTS:
        return x, y, y, y
    starts = np.arange(0, len(x), -(-len(x) // MAX_POINTS))
    counts = np.diff([*starts, len(x)])
    sums = [np.add.reduceat(values, starts) / counts for values in (x, y)]
    return sums[0], sums[1], np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def _bin_edges(values: np.ndarray, num_bins: int, log: bool, split_at: float | None) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if log:
        return np.geomspace(max(low, 1), max(high, low + 1, 2), num_bins + 1)
    if split_at is not None:  # an edge stands at the split
        reach = max(high - split_at, split_at - low, 1e-9)
        return np.linspace(split_at - reach, split_at + reach, 2 * ((num_bins + 1) // 2) + 1)
    return np.linspace(low, high if high > low else low + 1, num_bins + 1)
