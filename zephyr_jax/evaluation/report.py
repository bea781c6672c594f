"""The results of an evaluation as one self-contained HTML page, from the blocks that results.json keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zephyr_jax.reporting.blocks import LAYOUT, Block, blocks_html, tiles_of
from zephyr_jax.reporting.page import page, tiles


def results_page(content: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
      content: of results.json.

    Raises:
      InputError: matplotlib is not installed.
    """
    blocks = read_blocks(content)
    return page(
        f"Evaluation: {content['name']}",
        intervals_note(content),
        tiles(tiles_of(blocks)),
        *blocks_html(blocks, name="e"),
    )


def read_blocks(content: Mapping[str, Any]) -> list[Block]:
    """The blocks of results.json.

    Raises:
      ValueError: it is of another layout.
    """
    if content.get("layout") != LAYOUT:
        raise ValueError(f"layout {content.get('layout')}, wanted {LAYOUT}")
    try:
        return [Block.from_dict(block) for block in content["blocks"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no results of layout {LAYOUT}: {error!r}") from error


def intervals_note(content: Mapping[str, Any]) -> str:
    """How its intervals are to be read."""
    level = content["level"]
    return (
        f"{level:.0%} intervals, over questions or instructions; a difference whose p, allowing for all comparisons of "
        f"its kind, is above {1 - level:.2g} is noise"
    )
