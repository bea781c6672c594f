"""What every kind of source becomes once it is open: a number of rows, and a way to read some of them in order.

Also the small things that all kinds share: picking rows out of a stream, and text out of a library's error.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from zephyr_jax.records import BadRow, InputError

# `file:line` of a row, and the row or what is wrong with it.
LocatedRow = tuple[str, "dict[str, Any] | BadRow"]

_T = TypeVar("_T")
_MAX_ERROR_CHARACTERS = 300


@dataclasses.dataclass(frozen=True, slots=True)
class RowSource:
    """A source that was found and can be read, any number of times.

    Attributes:
      name: the source as the user wrote it.
      num_rows: rows in it, unreadable ones included.
      read: takes the 0-based indices of the rows wanted, ascending, and yields them as (location, row or BadRow).
    """

    name: str
    num_rows: int
    read: Callable[[Sequence[int]], Iterator[LocatedRow]]


def pick(items: Iterable[_T], indices: Sequence[int]) -> Iterator[_T]:
    """Yields the items at `indices` (ascending), and reads no further than the last of them.

    >>> list(pick("abcd", [1, 3]))
    ['b', 'd']
    """
    wanted = iter(indices)
    next_index = next(wanted, None)
    if next_index is None:
        return
    for index, item in enumerate(items):
        if index == next_index:
            yield item
            next_index = next(wanted, None)
            if next_index is None:
                return


def import_package(package: str, source: str, *, install: str) -> Any:
    """Imports a package that only some sources need.

    Raises:
      InputError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing_package(error, source, install=install) from error


def missing_package(error: ImportError, source: str, *, install: str | None = None) -> InputError:
    """Says which package a source needs, and how to get it (`install`: its name for pip, where it has another one)."""
    package = install or error.name or "the missing package"
    return InputError(f"source {source!r}: needs another Python package: {error}; the way out: pip install {package}")


def brief(error: Exception) -> str:
    """The start of an error's text on one line: libraries append pages of advice to theirs."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]} ..."


def plain_row(row: Mapping[str, Any], location: str) -> dict[str, Any] | BadRow:
    """A library's row as JSON would hold it: text for bytes and dates, Python's numbers and lists for NumPy's.

    Messages that arrive as one object of lists are turned back into a list of objects, as column stores keep
    `{"role": [b"user"], "content": [b"Hi"]}` for `[{"role": "user", "content": "Hi"}]`.
    """
    try:
        return {column: _plain(value) for column, value in row.items()}
    except UnicodeDecodeError:
        return BadRow(location, "invalid UTF-8")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        fields = {name: _plain(inner) for name, inner in value.items()}
        lists = list(fields.values())
        if {"role", "content"} <= fields.keys() and all(isinstance(inner, list) for inner in lists):
            if len({len(inner) for inner in lists}) == 1:
                return [dict(zip(fields, entry, strict=True)) for entry in zip(*lists, strict=True)]
        return fields
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        return _plain(value.tolist())
    return value if isinstance(value, bool | int | float) else str(value)
