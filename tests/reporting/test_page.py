"""A page is one document that needs nothing else, and text in it is text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from zephyr_jax.reporting import page


class Balance(HTMLParser):
    """Every element that opens is closed, in order."""

    VOID = {"meta", "br", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.data: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.data.append(data)


def a_matrix() -> page.Html:
    notes = [["", "9 of 10"], ["1 of 10", ""]]
    return page.share_matrix(["a", "b"], [[None, 0.9], [0.1, None]], notes, faint=np.zeros((2, 2)))


def a_page() -> str:
    figure = page.figure(page.Html("<svg></svg>"), "x")
    return page.page(
        "Scores of <a> & b",
        "two rows",
        page.tiles({"rows": "2"}),
        page.section("One", page.bullets(["1 < 2", page.element("b", "bold")]), figure),
        page.table(("name", "count", "share"), [("a<b>", 12345, 0.5), ("c", 2, None)]),
        a_matrix(),
    )


def test_a_page_is_whole_and_fetches_nothing() -> None:
    text = a_page()
    Balance(text)
    assert text.startswith("<!doctype html>") and "<script" not in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_text_is_escaped_and_markup_is_not() -> None:
    text = a_page()
    assert "<title>Scores of &lt;a&gt; &amp; b</title>" in text and "a&lt;b&gt;" in text and "1 &lt; 2" in text
    assert "<li><b>bold</b></li>" in text


def test_both_schemes_define_the_same_colours() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", a_page(), flags=re.DOTALL)
    assert set(re.findall(r"--\w+", light)) == set(re.findall(r"--\w+", dark))
    used = set(re.findall(r"var\((--\w+)\)", a_page()))
    assert used <= set(re.findall(r"--\w+", light))


def test_numbers_of_a_table_stand_right_and_nothing_is_a_dash() -> None:
    text = page.table(("name", "count", "share"), [("a", 12345, 0.5), ("c", 2, None)])
    assert '<td class="text">a</td><td class="number">12\u202f345</td><td class="number">0.50</td>' in text
    assert '<td class="number">\u2013</td>' in text
    assert "<th" in page.table(("name",), [])


def test_a_matrix_shows_per_cent_and_colours_by_who_wins() -> None:
    text = a_matrix()
    assert 'title="9 of 10"' in text and ">90<" in text and ">10<" in text
    assert text.count("var(--first)") == 1 and text.count("var(--second)") == 1
