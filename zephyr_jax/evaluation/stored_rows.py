"""Rows of files with judgments and answers. Every row counts in a score, so one that cannot be used is an error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from zephyr_jax.data.sources import iterate_rows
from zephyr_jax.judging.protocol import whole_characters
from zephyr_jax.records import BadRow, InputError


def read_rows(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All rows of a source: (`file:line`, row); texts are whole characters, so that they can be written again.

    Raises:
      InputError: it cannot be opened, or a row of it cannot be read.
    """
    for location, row in iterate_rows(source):
        if isinstance(row, BadRow):
            raise InputError(f"{location}: {row.reason}; wanted a JSON object in every row")
        yield location, {key: _whole(value) for key, value in row.items()}


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    return {key: _whole(entry) for key, entry in value.items()} if isinstance(value, dict) else value


@contextlib.contextmanager
def under(key: str) -> Iterator[None]:
    """Puts the key of a recipe before what is said of its files, where it does not begin with it."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith((key, key.partition(".")[2])) else f"{key}: {text}") from error


def field(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...], location: str, *, wanted: str) -> Any:
    """A field of a row.

    Args:
      row: the row.
      key: the field's name.
      kind: what its value has to be; a boolean is no number.
      location: of the row, for the message.
      wanted: what the row should be, in words.

    Raises:
      InputError: it is missing, or something else.
    """
    value = row.get(key)
    if key not in row:
        raise InputError(f"{location}: has no {key!r} (it has {', '.join(row) or 'nothing'}); wanted {wanted}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{location}: {key!r} is {_shown(value)}; wanted {wanted}")
    return value


def number_or_none(row: Mapping[str, Any], key: str, location: str, *, wanted: str) -> float | None:
    """A number; None where the row says null or NaN.

    Raises:
      InputError: the field is missing, or something else.
    """
    value = field(row, key, (int, float, type(None)), location, wanted=wanted)
    return None if value is None or math.isnan(value) else float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
