"""Which texts of a training row overlap with which items of evaluation sets: exact and word n-gram overlap.

A text is compared by its words: runs of letters and digits, case and punctuation ignored (Unicode NFKC, casefold); in
Chinese and Japanese, which put no spaces between them, each character is one.

  exact      the training text has the words of the evaluation text, no more and no less
  contained  an evaluation text of 8 to n - 1 words stands whole inside the training text
  n-gram     n consecutive words (13 unless said otherwise) stand in both

13 and 8 are GPT-3's (arXiv 2005.14165, appendix C): an example counts as contaminated where it shares a 13-gram, or
stands whole in the training text where it is shorter; below 8 words chance collisions prevail, so that here such a text
has to be the whole message. (8-grams find phrases such as "you are a time traveler from the year"; Tülu 3, arXiv
2411.15124, takes them where they cover half of the evaluation text: n 8 and a share of 0.5.) Answers and choices of an
evaluation set are not compared unless their columns are named. No JAX.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from zephyr_jax.data.rows import RowError

KINDS = ("exact", "contained", "n-gram")
NGRAM_WORDS, MIN_WORDS = 13, 8
# Where evaluation sets keep what they ask: MT-Bench, AlpacaEval, TruthfulQA and GSM8K and MMLU, ARC and HellaSwag as
# lm-eval words them, IFEval, HellaSwag itself.
QUESTION_COLUMNS = ("turns", "instruction", "question", "query", "prompt", "ctx")
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs
_WORD = re.compile(f"[{_NO_SPACES}]|[^\\W_{_NO_SPACES}]+")
# lm-eval's wording of ARC, which is no part of the question.
_QUERY_FRAME = re.compile(r"^Question:|Answer:\s*$")
_TRAINING_COLUMNS = (
    "prompt", "instruction", "messages", "chosen", "rejected", "chosen_response", "rejected_response", "completions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EvaluationText:
    """One text of an evaluation set: its file, `file:line`, and its words. Equal to itself alone."""

    file: str
    location: str
    text: str
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """A training text that overlaps with an evaluation text.

    Attributes:
      place: where in the row the training text stands, such as `chosen[0].content`.
      text: the training text.
      evaluation: the other text.
      kind: exact, contained or n-gram.
      share: which share of the evaluation text's words is in the overlap, 0 to 1.
      words: the longest run of words in common, as normalised.
    """

    place: str
    text: str
    evaluation: EvaluationText
    kind: str
    share: float
    words: str


def words_of(text: str) -> tuple[str, ...]:
    """The words that overlap is told by.

    >>> words_of("Don\u2019t STOP, it's 5_000!"), words_of("GPT-4\u3068\u4f55\uff1f")
    (('don', 't', 'stop', 'it', 's', '5', '000'), ('gpt', '4', 'と', '何'))
    """
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def evaluation_texts(
    row: Mapping[str, Any], location: str, *, file: str, columns: Sequence[str] | None = None
) -> list[EvaluationText]:
    """The texts of one item of an evaluation set.

    Args:
      row: column name -> value.
      location: `file:line`.
      file: the evaluation set.
      columns: whose text to take, text or a list of texts; None: those of QUESTION_COLUMNS that there are.

    Raises:
      RowError: it has no text in those columns.
    """
    found = []
    for column in columns or QUESTION_COLUMNS:
        value = row.get(column)
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and text.strip():
                words = words_of(_QUERY_FRAME.sub("", text) if column == "query" else text)
                found.append(EvaluationText(file, location, text, words))
    if not found:
        raise RowError(f"no text in {', '.join(columns or QUESTION_COLUMNS)}")
    return found


def training_texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All prompts and answers of a dialogue, a pair or a row of AI feedback as (place, text), each text once."""
    seen: set[str] = set()
    for column in _TRAINING_COLUMNS:
        for place, text in _texts(row.get(column), column):
            if text not in seen:
                seen.add(text)
                yield place, text


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _texts(entry, f"{place}[{index}]")
    elif isinstance(value, Mapping):
        for name in ("content", "response"):
            yield from _texts(value.get(name), f"{place}.{name}")


class OverlapIndex:
    """Evaluation texts, to be looked up by the texts of training rows."""

    def __init__(self, texts: Iterable[EvaluationText], *, ngram_words: int = NGRAM_WORDS) -> None:
        """Args:
        texts: the evaluation texts.
        ngram_words: n, MIN_WORDS or more.
        """
        self._ngram_words = ngram_words
        self._whole: dict[tuple[str, ...], list[EvaluationText]] = defaultdict(list)
        # First MIN_WORDS words of an n-gram -> where it stands; every overlap starts with such.
        self._starts: dict[tuple[str, ...], list[tuple[EvaluationText, int]]] = defaultdict(list)
        for text in texts:
            if text.words:
                self._whole[text.words].append(text)
            for start in range(len(text.words) - self._span(text) + 1 if len(text.words) >= MIN_WORDS else 0):
                self._starts[text.words[start : start + MIN_WORDS]].append((text, start))

    def _span(self, text: EvaluationText) -> int:
        """Words that have to be in common: n, or all of a shorter text."""
        return min(self._ngram_words, len(text.words))

    def overlaps(self, row: Mapping[str, Any]) -> list[Overlap]:
        """All overlaps of a training row, one for each of its texts with each evaluation text."""
        return [overlap for place, text in training_texts(row) for overlap in self._overlaps_of(place, text)]

    def _overlaps_of(self, place: str, text: str) -> Iterator[Overlap]:
        words = words_of(text)
        for other in self._whole.get(words, ()):
            yield Overlap(place, text, other, "exact", 1.0, " ".join(words))
        matched: dict[EvaluationText, dict[int, int]] = defaultdict(dict)
        for start in range(len(words) - MIN_WORDS + 1):
            for other, other_start in self._starts.get(words[start : start + MIN_WORDS], ()):
                span = self._span(other)
                if words[start : start + span] == other.words[other_start : other_start + span]:
                    matched[other][other_start] = span
        for other, spans in matched.items():
            if other.words != words:
                covered = {start + offset for start, span in spans.items() for offset in range(span)}
                kind = "n-gram" if len(other.words) >= self._ngram_words else "contained"
                share = len(covered) / len(other.words)
                yield Overlap(place, text, other, kind, share, " ".join(other.words[i] for i in _longest_run(covered)))


def _longest_run(places: set[int]) -> range:
    best = range(0)
    for start in sorted(places):
        if start - 1 not in places:
            end = start
            while end in places:
                end += 1
            best = max(best, range(start, end), key=len)
    return best
