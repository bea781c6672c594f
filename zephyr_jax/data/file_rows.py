"""Rows of a file: JSON lines, a JSON list, Parquet. Rows only: whether one is a dialogue or a pair is `rows.py`'s.

A file is opened by the end of its name. JSON lines and Parquet are read as streams; a JSON list has to be in memory.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from zephyr_jax.data.row_source import LocatedRow, RowSource, brief, import_package, pick, plain_row
from zephyr_jax.records import BadRow, InputError

_PARQUET_ROWS_PER_BATCH = 256
_OTHER_KINDS = (
    "hf:ORG/NAME:SPLIT, hf:FOLDER:SPLIT, tfds:NAME_OR_DIR:SPLIT, builtin:tasks-chat:SPLIT and "
    "builtin:tasks-preferences:SPLIT"
)


def check_file(source: str) -> None:
    """Says early whether `open_file` would find a file.

    Raises:
      InputError: its name ends otherwise than those that can be read, or it is missing.
    """
    path = Path(source)
    if path.suffix.lower() not in _OPENERS:
        ending = f"a path ending in {path.suffix}" if path.suffix else "a path without an ending"
        _fail(source, f"got {ending}, wanted {', '.join(_OPENERS)}; other sources are {_OTHER_KINDS}")
    if not path.exists():
        _fail(source, f"no such file; a path is taken from the current folder, {Path.cwd()}")
    if not path.is_file():
        _fail(
            source,
            "got a folder, wanted a file; one written by datasets or tfds is hf:FOLDER:SPLIT or tfds:FOLDER:SPLIT",
        )


def open_file(source: str) -> RowSource:
    """Opens a `.jsonl`, `.json` or `.parquet` file.

    Args:
      source: its path, from the current folder.

    Raises:
      InputError: as of `check_file`, or the file is unreadable, empty, or not of the kind that its name says.
    """
    check_file(source)
    try:
        opened = _OPENERS[Path(source).suffix.lower()](source)
    except OSError as error:
        raise InputError(f"source {source!r}: cannot be read: {brief(error)}") from error
    if not opened.num_rows:
        _fail(source, "the file has no rows; wanted at least one")
    return opened


def _open_json_lines(source: str) -> RowSource:
    with open(source, "rb") as file:
        num_rows = sum(not _is_blank(line) for line in file)

    def read(indices: Sequence[int]) -> Iterator[LocatedRow]:
        # Bytes are split at \n alone; str.splitlines would also split at a U+2028 inside a string.
        with open(source, "rb") as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if not _is_blank(line))
            for number, line in pick(lines, indices):
                location = f"{source}:{number}"
                yield location, _json_row(line, location)

    return RowSource(source, num_rows, read)


def _is_blank(line: bytes) -> bool:
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def _json_row(line: bytes, location: str) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError:
        return BadRow(location, "invalid UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(location, f"invalid JSON: {error.msg}")
    except (ValueError, RecursionError):  # a number of thousands of digits, or nesting without end
        return BadRow(location, "invalid JSON: beyond what Python reads")
    return row if isinstance(row, dict) else BadRow(location, "not a JSON object")


def _open_json_list(source: str) -> RowSource:
    try:
        content = json.loads(Path(source).read_bytes().decode("utf-8-sig").strip() or "[]")
    except UnicodeDecodeError as error:
        raise InputError(f"source {source!r}: is not UTF-8 text: {brief(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"source {source!r}: is not JSON: {brief(error)}; wanted one list of objects (an object per line is .jsonl)"
        ) from error
    if not isinstance(content, list):
        kind = "an object" if isinstance(content, dict) else type(content).__name__
        _fail(source, f"holds {kind}, wanted a list of objects")

    def read(indices: Sequence[int]) -> Iterator[LocatedRow]:
        for index in indices:
            location, row = f"{source}:{index + 1}", content[index]
            yield location, row if isinstance(row, dict) else BadRow(location, "not a JSON object")

    return RowSource(source, len(content), read)


def _open_parquet(source: str) -> RowSource:
    parquet = import_package("pyarrow.parquet", source, install="pyarrow")
    faults = (import_package("pyarrow", source, install="pyarrow").ArrowException, OSError)

    def unreadable(error: Exception) -> InputError:
        return InputError(f"source {source!r}: is not a readable Parquet file: {brief(error)}")

    try:
        num_rows = parquet.read_metadata(source).num_rows
    except faults as error:
        raise unreadable(error) from error

    def read(indices: Sequence[int]) -> Iterator[LocatedRow]:
        wanted, start = np.asarray(indices), 0
        try:
            with parquet.ParquetFile(source) as file:
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS_PER_BATCH):
                    here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(batch))]
                    for index, row in zip(here, batch.take(here - start).to_pylist(), strict=True):
                        location = f"{source}:{index + 1}"
                        yield location, plain_row(row, location)
                    start += len(batch)
                    if not len(wanted) or start > wanted[-1]:
                        return
        except faults as error:
            raise unreadable(error) from error

    return RowSource(source, num_rows, read)


_OPENERS: dict[str, Callable[[str], RowSource]] = {
    ".jsonl": _open_json_lines,
    ".json": _open_json_list,
    ".parquet": _open_parquet,
}


def _fail(source: str, what: str) -> NoReturn:
    raise InputError(f"source {source!r}: {what}")
