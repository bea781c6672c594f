"""The output file of `generate`: its lines, and when it may be gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyr_jax.generation.answer_file import answer_line, open_answer_file
from zephyr_jax.records import InputError

ROWS = [{"prompt": f"question {number}", "id": number} for number in range(4)]
SETTINGS = {"weights": "abc", "temperature": 0.5, "stop_ids": [2]}
ANSWER = {"response": "Yes\u2028", "num_tokens": 2, "finish_reason": "stop"}


def _write(file: Path, num_lines: int, *, tail: bytes = b"") -> bytes:
    """A file with the answers to the first rows, as an interrupted run leaves it."""
    stream, num_kept = open_answer_file(file, ROWS, settings=SETTINGS)
    assert num_kept == 0
    with stream:
        for row in ROWS[:num_lines]:
            stream.write(answer_line(row, **ANSWER))
        stream.write(tail)
    return file.read_bytes()


def _reopen(file: Path, rows=ROWS, settings=SETTINGS) -> int:
    stream, num_kept = open_answer_file(file, rows, settings=settings)
    stream.close()
    return num_kept


def test_a_line_has_the_rows_own_fields_and_the_answer_and_is_one_line():
    line = answer_line(ROWS[1], **ANSWER)
    assert json.loads(line) == {**ROWS[1], **ANSWER}
    assert len(line.decode().splitlines()) == 1 and line.endswith(b"\n")


def test_a_row_without_an_answer_has_nulls_and_the_reason():
    assert json.loads(answer_line({"prompt": 3}, error="prompt is not text")) == {
        "prompt": 3,
        "response": None,
        "num_tokens": None,
        "finish_reason": None,
        "error": "prompt is not text",
    }


def test_fields_with_the_names_of_ours_are_replaced():
    assert json.loads(answer_line({"prompt": "q", "response": "old", "error": "old"}, **ANSWER)) == {
        "prompt": "q",
        **ANSWER,
    }


def test_complete_lines_are_kept_and_a_torn_one_is_cut_off(tmp_path):
    file = tmp_path / "new_folder" / "answers.jsonl"
    content = _write(file, 3, tail=b'{"prompt": "questi')
    assert _reopen(file) == 3
    assert file.read_bytes() == content[: content.rfind(b"\n") + 1]
    assert _reopen(file) == 3


def test_a_file_with_nothing_but_a_torn_line_starts_anew(tmp_path):
    file = tmp_path / "answers.jsonl"
    _write(file, 0, tail=b'{"pro')
    assert _reopen(file) == 0 and file.read_bytes() == b""


def test_an_empty_file_takes_other_settings(tmp_path):
    file = tmp_path / "answers.jsonl"
    _write(file, 0)
    assert _reopen(file, settings=SETTINGS | {"temperature": 0}) == 0
    assert json.loads((tmp_path / "answers.jsonl.settings.json").read_text())["temperature"] == 0


def test_other_settings_are_refused_one_by_one(tmp_path):
    file = tmp_path / "answers.jsonl"
    content = _write(file, 2, tail=b"{")
    with pytest.raises(InputError) as caught:
        _reopen(file, settings={"weights": "abc", "temperature": 0, "stop_ids": [2], "seed": 1})
    assert str(caught.value).splitlines()[1:] == ["  temperature: 0.5 -> 0", "  seed: None -> 1"]
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], {**ROWS[1], "id": 7}, *ROWS[2:]], r"answers.jsonl:2: is not the answer to row 2"),
        (ROWS[1:], "answers.jsonl:1: is not"),
        (ROWS[:1], "has 2 lines, but there are 1 prompts"),
    ],
    ids=["changed", "shifted", "fewer"],
)
def test_lines_of_other_rows_are_refused(tmp_path, rows, message):
    file = tmp_path / "answers.jsonl"
    content = _write(file, 2)
    with pytest.raises(InputError, match=message):
        _reopen(file, rows=rows)
    assert file.read_bytes() == content


def test_rows_may_hold_what_does_not_equal_itself(tmp_path):
    rows = [{"prompt": "q", "score": float("nan")}]
    stream, _ = open_answer_file(tmp_path / "answers.jsonl", rows, settings={})
    with stream:
        stream.write(answer_line(rows[0], **ANSWER))
    assert _reopen(tmp_path / "answers.jsonl", rows=rows, settings={}) == 1


@pytest.mark.parametrize("content", [b"prompt\n", b"precious"])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, content):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is not empty, but answers.jsonl.settings.json"):
        _reopen(file)
    assert file.read_bytes() == content


def test_damaged_lines_are_named(tmp_path):
    file = tmp_path / "answers.jsonl"
    _write(file, 1, tail=b"\0\0\0\n")
    with pytest.raises(InputError, match=r"answers.jsonl:2: not valid JSON"):
        _reopen(file)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="is a folder; wanted the name of a file"):
        _reopen(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        _reopen(tmp_path / "file" / "answers.jsonl")
