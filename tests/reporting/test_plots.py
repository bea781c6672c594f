"""Pictures take their colours from the page, have ids of their own, and are the same for the same numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from zephyr_jax.records import InputError
from zephyr_jax.reporting.plots import MAX_POINTS, Picture, _bin_edges, _thinned


def a_picture(name: str = "p") -> str:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")
    values = np.arange(1.0, 200.0)
    picture = Picture(6, name=name, label='One "quoted" & <marked>')
    picture.histogram({"a": values, "b": values / 2}, title="t", x_label="x", log=True)
    picture.intervals([1, 2], [50, 60], [40, 50], [60, 70], title="t", x_label="x", y_label="y", level=50, log=True)
    picture.bubbles(values, values % 7, title="t", x_label="x", y_label="y")
    picture.named_intervals([("a", 5, 4, 6), ("b", 7, 6, 9)], title="t", x_label="x", level=6)
    picture.radar(["north", "east", "south"], {"a": [1, 2, 3]}, {"b": [3, 2, 1]}, title="t", top=4)
    picture.lines({"a": (values, values)}, {"b": ([1, 9], [3, 4])}, title="t", x_label="step", level=1, marks=[5])
    return picture.svg()


def test_a_picture_is_svg_in_the_pages_colours() -> None:
    text = a_picture()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and root.get("role") == "img"
    assert root.get("aria-label") == 'One "quoted" & <marked>'
    assert root.get("width") is None and root.get("viewBox")
    assert "currentColor" in text and "var(--first)" in text and "var(--second)" in text and "var(--line)" in text
    assert "#0102" not in text and "#000000" not in text and "metadata" not in text


def test_the_same_numbers_give_the_same_picture() -> None:
    assert a_picture() == a_picture()


def test_ids_of_two_pictures_differ_and_every_reference_has_its_target() -> None:
    first, second = a_picture("first"), a_picture("second")
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', first)) <= ids[0]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'zephyr-jax\[report\]'"):
        Picture(1, name="p", label="l")


def test_bins_hold_all_values_and_an_edge_stands_at_the_split() -> None:
    edges = _bin_edges(np.array([-1.0, 3.0]), 10, False, 0.0)
    assert edges[0] <= -1 and edges[-1] >= 3 and 0.0 in edges
    edges = _bin_edges(np.array([1.0, 1000.0]), 3, True, None)
    assert edges == pytest.approx([1, 10, 100, 1000])
    assert _bin_edges(np.array([5.0, 5.0]), 4, False, None)[-1] == 6


def test_many_points_become_means_with_their_range_and_few_stay() -> None:
    few = np.arange(5.0)
    assert all(np.array_equal(part, few) for part in _thinned(few, few))
    x = np.arange(2.0 * MAX_POINTS + 1)
    mean_x, mean_y, least, most = _thinned(x, 2 * x)
    assert len(mean_x) <= MAX_POINTS and mean_x[:2].tolist() == [1.0, 4.0] and np.allclose(mean_y, 2 * mean_x)
    assert least[0] == 0 and most[0] == 4 and most[-1] == 2 * x[-1]
