"""What written tasks and answers are left out for: too short, refusals and "as an AI", wrong casing, near-duplicates.

Each filter is a plain test of one text, but for near-duplicates, which remember. They are rules of thumb for English,
as those of the published data sets are (UltraChat was rid of "I do not have emotions" and of small letters at the start
of sentences): they throw away some good text to keep bad text out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from zephyr_jax.records import InputError

# An answer that speaks of itself as a machine, wherever it does.
_SPEAKS_AS_AI = re.compile(
    r"\b(?:as|i am|i'm|being) (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model|chatbot)\b"
    r"|\bi (?:do not|don't) (?:have|possess) (?:any )?(?:personal )?"
    r"(?:feelings|emotions|opinions|experiences|preferences|beliefs|thoughts)\b"
    r"|\bmy knowledge cutoff\b|\bmy (?:training data|programming) (?:do|does|don't|doesn't|ends?|only|prevents?)\b",
    re.IGNORECASE,
)
# An answer that begins with saying no.
_REFUSES = re.compile(
    r"\W*(?:(?:i'm|i am) (?:very |really )?sorry|sorry|i apologi[sz]e|unfortunately,? i|my apologies)\b.{0,40}"
    r"\b(?:but|cannot|can't|unable|not able|won't)\b"
    r"|\W*(?:i (?:cannot|can't|can not|won't|will not)|(?:i am|i'm) (?:unable|not able) to) (?:and will not )?"
    r"(?:help|assist|provide|answer|fulfil|comply|do|create|write|generate|give|engage)",
    re.IGNORECASE | re.DOTALL,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# Within a line: what stands behind a line's end may be data. Not behind the number of a list's item, nor a letter "a)".
_SENTENCE_START = re.compile(r"(?:\A|(?<!\d)[.!?]['\")]?[^\S\n]+)['\"(]*([^\W\d_])(?!\))")
_MOST_CAPITALS = 0.7
_FEWEST_LETTERS = 8
_NUM_HASHES = 128
# Candidates are looked for below the threshold, so that few of those above it are missed: they are compared exactly.
_CANDIDATES = 0.7

Filter = Callable[[str], bool]


def is_short(text: str, *, min_words: int) -> bool:
    """Whether there are fewer words than that."""
    return len(text.split()) < min_words


def is_refusal(text: str) -> bool:
    """Whether it begins with a refusal, or speaks as an AI."""
    straight = text.replace("\u2019", "'")
    return _REFUSES.match(straight) is not None or _SPEAKS_AS_AI.search(straight) is not None


def has_wrong_casing(text: str) -> bool:
    """Whether it shouts, starts with a small letter, or half or more of its sentences do. Code is not looked at.

    >>> [has_wrong_casing(text) for text in ("Hello. How are you?", "Hello. how are you?", "hello.", "STOP THAT NOW")]
    [False, True, True, True]
    """
    prose = _CODE.sub(" ", text).strip()
    letters = [letter for letter in prose if letter.lower() != letter.upper()]
    if len(letters) >= _FEWEST_LETTERS and sum(map(str.isupper, letters)) > _MOST_CAPITALS * len(letters):
        return True
    starts = [match.group(1) for match in _SENTENCE_START.finditer(prose)]
    small = [start for start in starts if start.islower()]
    first = _SENTENCE_START.match(prose)
    return bool(small) and (2 * len(small) >= len(starts) or (first is not None and first[1].islower()))


class NearDuplicates:
    """Texts seen so far; says whether a new one is nearly one of them.

    Similarity is the Jaccard index of the sets of word triples (of words, where there are fewer than three). MinHash
    with locality-sensitive hashing finds candidates, which are then compared exactly: what is called a duplicate is
    one, while a pair just above the threshold may, rarely, be missed.
    """

    def __init__(self, threshold: float):
        """Raises InputError where the package datasketch is missing.

        Args:
          threshold: least similarity of duplicates, above 0, at most 1.
        """
        try:
            import datasketch
        except ImportError as error:
            raise InputError(
                "instructions: near-duplicates need the package datasketch, which is missing; the way out: pip install "
                "'zephyr-jax[feedback]'"
            ) from error
        self._minhash: Any = datasketch.MinHash
        self._index = datasketch.MinHashLSH(threshold=_CANDIDATES * threshold, num_perm=_NUM_HASHES)
        self._threshold = threshold
        self._seen: list[frozenset[str]] = []

    def is_new(self, text: str) -> bool:
        """Whether no earlier text is nearly this one; it is remembered if so."""
        pieces = frozenset(_triples(text))
        sketch = self._minhash(num_perm=_NUM_HASHES)
        sketch.update_batch([piece.encode() for piece in pieces])
        if any(_jaccard(pieces, self._seen[place]) >= self._threshold for place in self._index.query(sketch)):
            return False
        self._index.insert(len(self._seen), sketch)
        self._seen.append(pieces)
        return True


def _triples(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    if len(words) < 3:
        yield from words or [text]
    for place in range(len(words) - 2):
        yield " ".join(words[place : place + 3])


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
