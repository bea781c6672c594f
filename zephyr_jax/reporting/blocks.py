"""What results say, as data: blocks of tables, sentences and pictures, shown as text or on a page, kept as JSON.

A block as JSON (layout 1), such as `evaluate` writes under `blocks` into results.json and `report` reads there; all
cells are text:

    {"title": "MT-Bench", "tiles": {"ours": "7.34"}, "parts": [
      {"kind": "table", "head": ["model", "score"], "rows": [["ours", "7.34"]]},
      {"kind": "sentences", "sentences": ["ours is above theirs."]},
      {"kind": "note", "note": "..."},
      {"kind": "intervals", "label": "Scores", "title": "", "x_label": "score", "rows": [["ours", 7.3, 7.1, 7.5]],
       "level": null, "caption": "..."},
      {"kind": "radar", "label": "Categories", "spokes": ["math", ...], "series": {"ours": [6.1, ...]},
       "beside": {"GPT-4": [6.8, ...]}, "top": 10, "caption": "..."}]}

Not here: what a block holds, and how a picture is drawn (plots.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from zephyr_jax.reporting import page
from zephyr_jax.reporting.page import Html
from zephyr_jax.reporting.plots import Picture

LAYOUT = 1  # raised when what is written can no longer be read by who knew the one before
_NARROW = 5.6  # inches: the letters are large enough on a phone
Row = tuple[str, float, float, float]


@dataclasses.dataclass(frozen=True)
class Table:
    """A head and rows of text."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """In Markdown, padded so that it reads well as it is."""
        widths = [max(len(row[column]) for row in [self.head, *self.rows]) for column in range(len(self.head))]

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

        return "\n".join([line(self.head), line(["-" * width for width in widths]), *map(line, self.rows)])

    def html(self, name: str) -> Html:
        """For a page."""
        return page.table(self.head, self.rows)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """What may be said, a sentence each."""

    kind: ClassVar[str] = "sentences"
    sentences: Sequence[str]

    def text(self) -> str:
        """A paragraph each."""
        return "\n\n".join(self.sentences)

    def html(self, name: str) -> Html:
        """For a page."""
        return page.bullets(self.sentences)


@dataclasses.dataclass(frozen=True)
class Note:
    """How to read what stands beside it."""

    kind: ClassVar[str] = "note"
    note: str

    def text(self) -> str:
        """As it is."""
        return self.note

    def html(self, name: str) -> Html:
        """For a page."""
        return page.element("p", self.note, class_="soft")


@dataclasses.dataclass(frozen=True)
class Intervals:
    """A picture of values with intervals; the table with the same values stands beside it.

    Attributes:
      label: for those who cannot see it.
      title: above the picture.
      x_label: what the values are.
      rows: (name, value, low, high).
      level: where a line stands; None: none.
      caption: under it.
    """

    kind: ClassVar[str] = "intervals"
    label: str
    title: str
    x_label: str
    rows: Sequence[Row]
    level: float | None
    caption: str

    def text(self) -> str:
        """Nothing: a picture."""
        return ""

    def html(self, name: str) -> Html:
        """For a page; `name` is what its ids begin with."""
        num_lines = sum(row[0].count("\n") + 1 for row in self.rows)
        height = 1.1 + 0.21 * max(num_lines, 2 * len(self.rows))
        picture = Picture(1, name=name, label=self.label, height=height, width=_NARROW)
        picture.named_intervals(self.rows, title=self.title, x_label=self.x_label, level=self.level)
        return page.figure(picture.svg(), self.caption, narrow=True)


@dataclasses.dataclass(frozen=True)
class Radar:
    """A picture of scores by category.

    Attributes:
      label: for those who cannot see it.
      spokes: the categories.
      series: name -> scores, one or two of them.
      beside: name -> scores to compare with.
      top: score at the rim; the middle is 0.
      caption: under it.
    """

    kind: ClassVar[str] = "radar"
    label: str
    spokes: Sequence[str]
    series: Mapping[str, Sequence[float]]
    beside: Mapping[str, Sequence[float]]
    top: float
    caption: str

    def text(self) -> str:
        """Nothing: a picture."""
        return ""

    def html(self, name: str) -> Html:
        """For a page; `name` is what its ids begin with."""
        height = 3.9 + 0.22 * (len(self.series) + len(self.beside))
        picture = Picture(1, name=name, label=self.label, height=height, width=_NARROW)
        picture.radar(self.spokes, self.series, self.beside, title="", top=self.top)
        return page.figure(picture.svg(), self.caption, narrow=True)


Part = Table | Sentences | Note | Intervals | Radar
_KINDS: dict[str, type[Part]] = {part.kind: part for part in (Table, Sentences, Note, Intervals, Radar)}


@dataclasses.dataclass(frozen=True)
class Block:
    """A heading with what belongs under it.

    Attributes:
      title: the heading.
      parts: in the order in which they are shown.
      tiles: the few figures to see first, label -> value.
    """

    title: str
    parts: Sequence[Part]
    tiles: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON, see above."""
        parts = [{"kind": part.kind} | dataclasses.asdict(part) for part in self.parts]
        return {"title": self.title, "tiles": dict(self.tiles), "parts": parts}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Block:
        """What `as_dict` gave.

        Raises:
          ValueError: it is not of this layout.
        """
        try:
            parts = []
            for part in content["parts"]:
                fields = dict(part)
                parts.append(_KINDS[fields.pop("kind")](**fields))
            return Block(content["title"], parts, content["tiles"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a block of layout {LAYOUT}: {error!r}") from error


def blocks_text(blocks: Iterable[Block]) -> str:
    """Headings, tables and sentences in Markdown; no pictures."""
    paragraphs = []
    for block in blocks:
        paragraphs += [f"## {block.title}", *(part.text() for part in block.parts)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def blocks_html(blocks: Sequence[Block], *, name: str) -> list[Html]:
    """A section a block.

    Args:
      blocks: the blocks.
      name: what the ids of their pictures begin with.

    Raises:
      InputError: matplotlib is not installed.
    """
    return [
        page.section(block.title, *(part.html(f"{name}{b}-{p}") for p, part in enumerate(block.parts)))
        for b, block in enumerate(blocks)
    ]


def tiles_of(blocks: Iterable[Block]) -> dict[str, str]:
    """The tiles of all blocks."""
    return {label: value for block in blocks for label, value in block.tiles.items()}
