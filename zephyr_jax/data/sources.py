"""Reads the sources of a recipe into validated conversations, pairs or AI feedback, and says what it left out.

A source is a file, a data set of `datasets` or `tfds`, or a built-in one. Rows come in the order of the list and of
each source: shuffling is the loader's. A row that cannot be used is reported on stderr as `file:line: reason`, counted
and skipped; too many of them are an error. Raw rows are not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from zephyr_jax.data.feedback_rows import parse_feedback
from zephyr_jax.data.file_rows import check_file, open_file
from zephyr_jax.data.library_rows import open_hugging_face, open_tfds, split_place
from zephyr_jax.data.row_source import LocatedRow, RowSource, pick
from zephyr_jax.data.rows import RowError, parse_conversation, parse_pair, parse_prompt, parse_question
from zephyr_jax.data.tasks import SPLITS, iterate_task_rows
from zephyr_jax.peers import ALONE, Peers
from zephyr_jax.records import BadRow, Conversation, InputError, PreferencePair, Prompt, ReadReport, ScoredCompletions

if TYPE_CHECKING:
    from zephyr_jax.recipe import Source

__all__ = [
    "RowError", "check_source", "iterate_rows", "open_source", "parse_conversation", "parse_pair", "parse_prompt",
    "read_conversations", "read_feedback", "read_pairs", "read_prompts",
]  # fmt: skip

ROWS_PER_PART = 256  # what processes share out between them, and what a source's rows are hashed by
MAX_BAD_ROWS_SHOWN = 10
_MAX_BAD_ROWS_IN_ERROR = 3
_BUILTIN_KINDS: dict[str, Literal["chat", "preferences"]] = {"tasks-chat": "chat", "tasks-preferences": "preferences"}

_Record = TypeVar("_Record", Conversation, PreferencePair, Prompt, ScoredCompletions)


def read_conversations(
    sources: Sequence[Source],
    *,
    seed: int,
    max_bad_rows: float,
    progress: bool = False,
    peers: Peers = ALONE,
    on_part: Callable[[Sequence[Conversation]], None] = lambda rows: None,
) -> tuple[list[Conversation], ReadReport]:
    """Reads and validates dialogues.

    Args:
      sources: where from; each with the share (`fraction`) and the number (`limit`) of its rows to take.
      seed: decides which rows a fraction takes, together with the source's place in the list.
      max_bad_rows: share of the rows read, 0 to 1, that may be unusable.
      progress: show a bar on stderr.
      peers: the processes that share the reading: each gets a part of the rows, in their order, and all the report.
      on_part: called with the usable ones of every ROWS_PER_PART rows, whichever process reads them.

    Returns:
      The usable dialogues in order, and what was seen and left out.

    Raises:
      InputError: a source cannot be opened, no row is usable, or more than `max_bad_rows` of them are not.
    """
    return _read(sources, parse_conversation, seed, max_bad_rows, progress, peers, on_part)


def read_pairs(
    sources: Sequence[Source],
    *,
    seed: int,
    max_bad_rows: float,
    progress: bool = False,
    peers: Peers = ALONE,
    on_part: Callable[[Sequence[PreferencePair]], None] = lambda rows: None,
) -> tuple[list[PreferencePair], ReadReport]:
    """Reads and validates preference pairs; arguments, returns and errors as `read_conversations`."""
    return _read(sources, parse_pair, seed, max_bad_rows, progress, peers, on_part)


def read_feedback(
    sources: Sequence[Source], *, seed: int, max_bad_rows: float, progress: bool = False
) -> tuple[list[ScoredCompletions], ReadReport]:
    """Reads and validates AI feedback in UltraFeedback's raw layout; the rest as `read_conversations`."""
    return _read(sources, parse_feedback, seed, max_bad_rows, progress)


def read_prompts(
    sources: Sequence[Source], *, seed: int, max_bad_rows: float, progress: bool = False
) -> tuple[list[Prompt], ReadReport]:
    """Reads and validates prompts, of any kind of row that has one; the rest as `read_conversations`."""
    return _read(sources, parse_question, seed, max_bad_rows, progress)


def iterate_rows(source: str, *, progress: bool = False) -> Iterator[LocatedRow]:
    """All rows of one source in order, not validated: (`file:line`, row), or a BadRow where there is no row to be had.

    Args:
      source: see open_source.
      progress: show a bar on stderr.

    Raises:
      InputError: the source cannot be opened (at once, not at the first row).
    """
    opened = open_source(source)
    rows = opened.read(range(opened.num_rows))
    bar = tqdm(rows, desc="reading rows", total=opened.num_rows, unit=" rows", disable=not progress, file=sys.stderr)
    return iter(bar)


def open_source(source: str) -> RowSource:
    """Finds a source and counts its rows.

    Args:
      source: a path, `hf:...:SPLIT`, `tfds:...:SPLIT`, `builtin:tasks-chat:SPLIT` or `builtin:tasks-preferences:SPLIT`.

    Raises:
      InputError: there is no such source, split or package, or it has no rows.
    """
    return _OPENERS.get(source.partition(":")[0], open_file)(source)


def check_source(source: str) -> None:
    """Says early, of a source that is a file, whether `open_source` would find it; of others nothing is known yet.

    Raises:
      InputError: there is no such file.
    """
    if is_file(source):
        check_file(source)


def is_file(source: str) -> bool:
    """Whether a source is the path of a file, going by its text."""
    return source.partition(":")[0] not in _OPENERS


def _open_builtin(source: str) -> RowSource:
    place, split = split_place(source)
    if place not in _BUILTIN_KINDS:
        names = ", ".join(f"builtin:{name}:SPLIT" for name in _BUILTIN_KINDS)
        raise InputError(f"source {source!r}: no such built-in data; there are {names}")
    if split not in SPLITS:
        raise InputError(f"source {source!r}: no split {split!r}; there are {', '.join(SPLITS)}")
    rows = list(iterate_task_rows(_BUILTIN_KINDS[place], split))

    def read(indices: Sequence[int]) -> Iterator[LocatedRow]:
        return pick(((f"{source}:{number}", row) for number, row in enumerate(rows, 1)), indices)

    return RowSource(source, len(rows), read)


_OPENERS: dict[str, Callable[[str], RowSource]] = {
    "hf": open_hugging_face,
    "tfds": open_tfds,
    "builtin": _open_builtin,
}


def choose_rows(num_rows: int, *, fraction: float, limit: int | None, seed: int, position: int) -> Sequence[int]:
    """Indices of the rows to take, ascending: a seeded subset of round(fraction * num_rows), then the first `limit`.

    Args:
      num_rows: rows there are.
      fraction: share to take, 0 to 1; 1 takes all.
      limit: at most so many, or None.
      seed: the recipe's seed.
      position: place of the source in its list, so that two sources are not thinned out alike.
    """
    chosen: Sequence[int] = range(num_rows)
    if fraction < 1:
        # Raw random words are the same in every version of NumPy; its shuffles need not be.
        words = np.random.Philox(key=np.array([seed % 2**64, position], np.uint64)).random_raw(num_rows)
        chosen = np.sort(np.argsort(words, kind="stable")[: round(fraction * num_rows)]).tolist()
    return chosen[:limit]


def _read(
    sources: Sequence[Source],
    parse: Callable[[Mapping[str, Any], str], _Record],
    seed: int,
    max_bad_rows: float,
    progress: bool,
    peers: Peers = ALONE,
    on_part: Callable[[Sequence[_Record]], None] = lambda rows: None,
) -> tuple[list[_Record], ReadReport]:
    if not sources:
        raise InputError("data: got an empty list of sources, wanted at least one")
    opened = [open_source(source.source) for source in sources]
    chosen = [
        choose_rows(rows.num_rows, fraction=source.fraction, limit=source.limit, seed=seed, position=position)
        for position, (source, rows) in enumerate(zip(sources, opened, strict=True))
    ]
    num_chosen = sum(map(len, chosen))
    names = ", ".join(rows.name for rows in opened)
    start, stop = _share(num_chosen, peers)
    records: list[_Record] = []
    report, num_handed_on = ReadReport(), 0
    with tqdm(total=stop - start, desc="reading rows", unit=" rows", disable=not progress, file=sys.stderr) as bar:
        for rows, indices in zip(opened, chosen, strict=True):
            wanted = indices[max(start, 0) : max(stop, 0)]
            start, stop = start - len(indices), stop - len(indices)
            for location, row in rows.read(wanted) if len(wanted) else ():
                report.num_rows += 1
                bar.update()
                try:
                    records.append(parse(_usable(row), location))
                except RowError as error:
                    _note_bad_row(report, BadRow(location, error.reason), shows=peers.count == 1)
                    # Past the limit whatever follows: say so now, not after the rest of a large file.
                    if len(report.bad_rows) > MAX_BAD_ROWS_SHOWN and len(report.bad_rows) / num_chosen > max_bad_rows:
                        raise _too_many_bad_rows(names, report, max_bad_rows) from None
                if report.num_rows % ROWS_PER_PART == 0:
                    on_part(records[num_handed_on:])
                    num_handed_on = len(records)
    if report.num_rows % ROWS_PER_PART:
        on_part(records[num_handed_on:])
    num_records = len(records)
    if peers.count > 1:
        report, num_records = _joined_reports(report, num_records, peers)
        show_bad_rows(report)
    else:
        _show_num_hidden(report)
    if report.num_rows and len(report.bad_rows) / report.num_rows > max_bad_rows:
        raise _too_many_bad_rows(names, report, max_bad_rows)
    if not num_records:
        raise InputError(
            f"data: no usable row in {names}: {report.num_rows} rows read, {len(report.bad_rows)} unusable"
        )
    return records, report


def _share(num_rows: int, peers: Peers) -> tuple[int, int]:
    """The first of this process's rows, and the first behind them: whole parts, so that these are the same for all."""
    num_parts = -(-num_rows // ROWS_PER_PART)
    start, stop = (num_parts * number // peers.count * ROWS_PER_PART for number in (peers.index, peers.index + 1))
    return start, min(stop, num_rows)


def _joined_reports(report: ReadReport, num_records: int, peers: Peers) -> tuple[ReadReport, int]:
    """What all processes have read together, and how many records that are."""
    bad_rows = [[bad.location, bad.reason] for bad in report.bad_rows]
    parts = peers.gather("rows read", [report.num_rows, bad_rows, num_records])
    joined = ReadReport(
        num_rows=sum(part[0] for part in parts),
        bad_rows=[BadRow(location, reason) for part in parts for location, reason in part[1]],
    )
    return joined, sum(part[2] for part in parts)


def _usable(row: dict[str, Any] | BadRow) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise RowError(row.reason)
    return row


def show_bad_rows(report: ReadReport) -> None:
    """Says on stderr what reading the rows of a report has said: the first bad ones, and how many there are more."""
    for bad in report.bad_rows[:MAX_BAD_ROWS_SHOWN]:
        _show_bad_row(bad)
    _show_num_hidden(report)


def _note_bad_row(report: ReadReport, bad: BadRow, *, shows: bool) -> None:
    report.bad_rows.append(bad)
    if shows and len(report.bad_rows) <= MAX_BAD_ROWS_SHOWN:
        _show_bad_row(bad)


def _show_bad_row(bad: BadRow) -> None:
    tqdm.write(f"{bad.location}: {bad.reason}", file=sys.stderr)


def _show_num_hidden(report: ReadReport) -> None:
    num_hidden = len(report.bad_rows) - MAX_BAD_ROWS_SHOWN
    if num_hidden > 0:
        tqdm.write(f"... and {num_hidden} more rows that cannot be used", file=sys.stderr)


def _too_many_bad_rows(names: str, report: ReadReport, max_bad_rows: float) -> InputError:
    share = len(report.bad_rows) / report.num_rows
    first = "; ".join(f"{bad.location}: {bad.reason}" for bad in report.bad_rows[:_MAX_BAD_ROWS_IN_ERROR])
    return InputError(
        f"data: {len(report.bad_rows)} of {report.num_rows} rows read from {names} cannot be used ({share:.1%}), "
        f"more than max_bad_rows allows ({max_bad_rows:.1%}): {first}. Mend the rows, or raise max_bad_rows"
    )
