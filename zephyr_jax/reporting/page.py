"""One self-contained HTML page: headings, tiles, tables, pictures, examples; no script, nothing fetched.

It follows the reader's choice of light or dark. Pictures name its colours as CSS variables (--first, --second, --line)
and take the ink from `currentColor`, so that they follow too. Everything that takes text escapes it; `Html` is what is
markup already. Not here: the pictures (`plots.py`), and what a report says.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --box: #f4f6f8;
  --first: #1f5fd0; --second: #c4560a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e4e8ec; --soft: #9aa5b1; --line: #353c45;
  --box: #1d2228; --first: #7eaaff; --second: #ffa45c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.4rem 0 .6rem; font-size: 1.25rem; }
.soft, figcaption, th { color: var(--soft); } figcaption { font-size: .9rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }
.tile { flex: 1 1 8.5rem; padding: .6rem .9rem; border-radius: .5rem; background: var(--box); }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .3rem 1rem; }
.panels figure { margin: .3rem 0; } .narrow svg { max-width: 40rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
td.text { overflow-wrap: break-word; min-width: 6rem; max-width: 22rem; }
th.up { vertical-align: bottom; } th.up span { writing-mode: vertical-rl; transform: rotate(180deg); }
td.cell { text-align: center; min-width: 2.6rem; font-variant-numeric: tabular-nums; }
td.faint { font-style: italic; color: var(--soft); }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; }
summary { cursor: pointer; } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
@media (max-width: 44rem) { .pair { grid-template-columns: 1fr; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; font: .85rem/1.45 ui-monospace, monospace; }
.first { border-left: 3px solid var(--first); padding-left: .7rem; }
.second { border-left: 3px solid var(--second); padding-left: .7rem; }
"""


class Html(str):
    """Text that is markup already."""


def escaped(text: object) -> Html:
    """Any text as markup; what is markup stays."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def joined(parts: Iterable[object]) -> Html:
    """Parts one after another."""
    return Html("".join(escaped(part) for part in parts))


def element(name: str, *parts: object, **attributes: str) -> Html:
    """One element: `element("p", "a < b", class_="soft")`."""
    text = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{text}>{joined(parts)}</{name}>")


def page(title: str, subtitle: str, *parts: object) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{element('h1', title)}\n{element('p', subtitle, class_='soft')}\n{joined(parts)}\n</body>\n</html>\n"
    )


def section(heading: str, *parts: object) -> Html:
    """A heading and what belongs under it."""
    return element("section", element("h2", heading), *parts)


def tiles(figures: dict[str, str]) -> Html:
    """The few numbers to see first: label -> value."""
    parts = [
        element("div", element("b", value), element("span", name), class_="tile") for name, value in figures.items()
    ]
    return element("div", *parts, class_="tiles")


def bullets(sentences: Iterable[object]) -> Html:
    """A list of sentences."""
    return element("ul", *(element("li", sentence) for sentence in sentences))


def figure(svg: Html, caption: str, *, narrow: bool = False) -> Html:
    """A picture with what it shows; a narrow one, made for phones too, is not drawn as wide as the page."""
    attributes = {"class_": "narrow"} if narrow else {}
    return element("figure", svg, element("figcaption", caption), **attributes)


def panels(figures: Iterable[Html]) -> Html:
    """Small pictures side by side, as many as the width has room for: one under another on a phone."""
    return element("div", *figures, class_="panels")


def folded(summary: object, *parts: object) -> Html:
    """What opens when its summary is touched."""
    return element("details", element("summary", summary), *parts)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, as_text: bool = False) -> Html:
    """A table; unless `as_text`, a column whose first cell is a number, or starts like one, is set to the right."""
    body = [[_shown(cell) for cell in row] for row in rows]
    numeric = (
        [bool(cell) and (cell[0].isdigit() or cell[0] in "-+") for cell in body[0]] if body and not as_text else []
    )
    kinds = ["number" if is_number else "text" for is_number in [*numeric, *[False] * (len(head) - len(numeric))]]
    lines = [
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in body
    ]
    header = element(
        "tr", *(element("th", name, class_=kind, scope="col") for name, kind in zip(head, kinds, strict=True))
    )
    return element("div", element("table", element("thead", header), element("tbody", *lines)), class_="wide")


def _shown(cell: object) -> str:
    if cell is None:
        return "\N{EN DASH}"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return f"{cell:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if isinstance(cell, int) else escaped(cell)


def share_matrix(
    names: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    notes: Sequence[Sequence[str]],
    *,
    faint: Any,
) -> Html:
    """A square table of shares, 0 to 1, as per cent: above a half in the first colour, below in the second.

    Args:
      names: of rows and columns.
      shares: row by column; None is left blank.
      notes: what the pointer shows on a cell.
      faint: row by column, whether a cell is set back.
    """
    head = element("tr", element("th"), *(element("th", element("span", name), class_="up") for name in names))
    lines = []
    for name, *row in zip(names, shares, notes, faint, strict=True):
        cells = [_share_cell(*cell) for cell in zip(*row, strict=True)]
        lines.append(element("tr", element("th", name), *cells))
    return element("div", element("table", head, *lines), class_="wide")


def _share_cell(share: float | None, note: str, is_faint: bool) -> Html:
    if share is None:
        return element("td", class_="cell")
    colour = "first" if share >= 0.5 else "second"
    tint = f"background: color-mix(in srgb, var(--{colour}) {round(90 * abs(share - 0.5))}%, transparent)"
    return element("td", f"{100 * share:.0f}", class_="cell faint" if is_faint else "cell", title=note, style=tint)
