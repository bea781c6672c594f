"""Blocks survive JSON, read well as text, and make sections with pictures and the tables of the same values."""

from __future__ import annotations

import json

import pytest

from zephyr_jax.reporting.blocks import (
    Block,
    Intervals,
    Note,
    Radar,
    Sentences,
    Table,
    blocks_html,
    blocks_text,
    tiles_of,
)


def a_block() -> Block:
    return Block(
        "Scores",
        [
            Intervals("Scores", "", "score", [("ours\nby a", 7.0, 6.0, 8.0)], 5, "With intervals."),
            Table(["model", "score"], [["ours", "7.00"], ["<theirs>", "6.00"]]),
            Radar("Categories", ["a", "b", "c"], {"ours": [1, 2, 3]}, {"theirs": [3, 2, 1]}, 4, "By category."),
            Sentences(["One.", "Two."]),
            Note("Mind."),
        ],
        {"ours": "7.00"},
    )


def test_a_block_survives_json() -> None:
    again = Block.from_dict(json.loads(json.dumps(a_block().as_dict())))
    assert again.as_dict() == json.loads(json.dumps(a_block().as_dict())) and tiles_of([again]) == {"ours": "7.00"}


@pytest.mark.parametrize("content", [{}, {"title": "x", "tiles": {}, "parts": [{"kind": "film"}]}, []])
def test_what_is_no_block_is_refused(content) -> None:
    with pytest.raises(ValueError, match="not a block of layout 1"):
        Block.from_dict(content)


def test_text_is_markdown_without_pictures() -> None:
    assert blocks_text([a_block()]) == (
        "## Scores\n\n| model    | score |\n| -------- | ----- |\n| ours     | 7.00  |\n| <theirs> | 6.00  |\n\n"
        "One.\n\nTwo.\n\nMind."
    )


def test_a_section_has_its_pictures_with_names_of_their_own() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")
    (first, second) = blocks_html([a_block(), a_block()], name="b")
    assert first.count("<svg") == 2 and "&lt;theirs&gt;" in first and 'aria-label="Categories"' in first
    assert 'id="b0-0' in first and 'id="b1-2' in second and "<figcaption>By category." in second
