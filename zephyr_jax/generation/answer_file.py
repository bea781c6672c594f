"""The output file of `generate`: one JSON line per row in input order, and going on after the lines that are there.

Beside OUT lies OUT.settings.json: what the lines were made with. Lines made with other settings, or of other rows, are
never mixed with new ones. No JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from zephyr_jax.records import InputError
from zephyr_jax.whole_files import write_json

RESULT_FIELDS = ("response", "num_tokens", "finish_reason", "error")


def answer_line(
    row: Mapping[str, Any],
    *,
    response: str | None = None,
    num_tokens: int | None = None,
    finish_reason: str | None = None,
    error: str | None = None,
) -> bytes:
    """One line: the row's own fields, then the answer's; `error` only on a row that could not be answered."""
    answer = {"response": response, "num_tokens": num_tokens, "finish_reason": finish_reason}
    line = _own_fields(row) | answer | ({} if error is None else {"error": error})
    return json.dumps(line, default=str).encode() + b"\n"


def _own_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in RESULT_FIELDS}


def open_answer_file(
    file: Path, rows: Sequence[Mapping[str, Any]], *, settings: Mapping[str, Any]
) -> tuple[BinaryIO, int]:
    """Opens the output file behind its last complete line.

    Args:
      file: the output file; a line that was cut off in writing is removed from its end.
      rows: the input's rows, {} for one that could not be read.
      settings: whatever decides what the answers are, as JSON values; kept beside the file.

    Returns:
      The file, open for appending, and how many rows it already answers.

    Raises:
      InputError: the lines that are there were made of other rows or with other settings.
    """
    if file.is_dir():
        raise InputError(f"--out {file}: is a folder; wanted the name of a file, such as {file / 'answers.jsonl'}")
    settings_file = file.with_name(file.name + ".settings.json")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("ab+")
    except OSError as error:
        raise InputError(f"--out {file}: cannot be written ({error.strerror}); choose another place") from error
    try:
        stream.seek(0)
        content = stream.read()
        num_bytes, lines = _complete_lines(content)
        if content:
            _check_settings(file, settings_file, settings)
            _check_rows(file, lines, rows)
        else:
            write_json(settings_file, settings)  # first, so that no line is ever without its settings
        stream.truncate(num_bytes)
    except BaseException:
        stream.close()
        raise
    return stream, len(lines)


def _complete_lines(content: bytes) -> tuple[int, list[bytes]]:
    """The lines that end in a newline, and their length in bytes."""
    num_bytes = content.rfind(b"\n") + 1
    return num_bytes, content[:num_bytes].split(b"\n")[:-1]


def _check_settings(file: Path, settings_file: Path, settings: Mapping[str, Any]) -> None:
    if not settings_file.is_file():
        raise InputError(
            f"--out {file}: is not empty, but {settings_file.name}, which says what made its lines, is not beside it; "
            "choose another name, or remove the file"
        )
    try:
        old = json.loads(settings_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{settings_file}: not valid JSON ({error}); remove it and {file}") from error
    new = json.loads(json.dumps(settings))
    changed = [
        f"  {name}: {old.get(name)} -> {new.get(name)}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise InputError(
            "\n".join(
                [
                    f"--out {file}: its lines were made with other settings; choose another name, remove the file, or "
                    "go on with what it was made with:",
                    *changed,
                ]
            )
        )


def _check_rows(file: Path, lines: Sequence[bytes], rows: Sequence[Mapping[str, Any]]) -> None:
    way_out = "choose another name, or remove the file"
    if len(lines) > len(rows):
        raise InputError(f"--out {file}: has {len(lines)} lines, but there are {len(rows)} prompts; {way_out}")
    for number, (line, row) in enumerate(zip(lines, rows, strict=False), start=1):
        try:
            written = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}:{number}: not valid JSON ({error}); {way_out}") from error
        # As text: NaN equals itself there.
        if not isinstance(written, dict) or _text(_own_fields(written)) != _text(_own_fields(row)):
            raise InputError(f"{file}:{number}: is not the answer to row {number} of the prompts; {way_out}")


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, default=str)
