"""The journal: what came is there again, what was torn is forgotten, and two writers never meet."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from zephyr_jax.judging.journal import Journal
from zephyr_jax.judging.protocol import ChatRequest, Reply
from zephyr_jax.records import InputError

REQUEST = ChatRequest(({"role": "user", "content": "Why?"},), max_tokens=8)


def _keep(journal: Journal, key: str, text: str, **more: object) -> None:
    reply = Reply(text, "stop", 3, 2, **more)  # type: ignore[arg-type]
    journal.keep(key, reply, run="run", call="completion:1", seconds=0.5)


def test_an_answer_is_found_again_after_reopening(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "calls.jsonl")
    _keep(journal, "a", "Because.\u2028\n")
    _keep(journal, "b", "", choice_logprobs=(-0.5, None))
    journal.close()
    journal = Journal(tmp_path / "deep" / "calls.jsonl")
    assert journal.find("a") == Reply("Because.\u2028\n", "stop", 3, 2)
    assert journal.find("b") == Reply("", "stop", 3, 2, (-0.5, None))
    assert journal.find("c") is None and len(journal) == 2
    _keep(journal, "c", "later")
    assert journal.find("c") == Reply("later", "stop", 3, 2)
    journal.close()


@pytest.mark.parametrize("num_bytes", [1, 20, 90])
def test_a_torn_last_line_is_forgotten_and_the_next_one_is_whole(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "calls.jsonl"
    journal = Journal(path)
    _keep(journal, "a", "whole")
    journal.close()
    line = path.read_bytes()
    path.write_bytes(line + line[:num_bytes])
    journal = Journal(path)
    assert path.read_bytes() == line
    _keep(journal, "b", "next")
    journal.close()
    assert [json.loads(text)["key"] for text in path.read_text().splitlines()] == ["a", "b"]


def test_a_broken_line_in_the_middle_costs_its_own_answer_only(tmp_path: Path, capsys) -> None:
    path = tmp_path / "calls.jsonl"
    journal = Journal(path)
    for key in "abc":
        _keep(journal, key, key)
    journal.close()
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:10], lines[2], b""]))
    journal = Journal(path)
    assert "a" in journal and "b" not in journal and journal.find("c") is not None
    assert "is passed over" in capsys.readouterr().err
    journal.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 40,
        b'{"key": "b"}',
        b'{"key": "b", "text": 3, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "run": "r"}',
        b"[" * 100_000,
        b"7",
    ],
)
def test_a_line_that_is_no_answer_is_passed_over(tmp_path: Path, line: bytes) -> None:
    """A disk that filled up or an editor may leave anything; its question is asked again."""
    path = tmp_path / "calls.jsonl"
    journal = Journal(path)
    _keep(journal, "a", "a")
    journal.close()
    path.write_bytes(line + b"\n" + path.read_bytes())
    journal = Journal(path)
    assert [record["key"] for record in journal.lines()] == ["a"] and journal.find("b") is None
    journal.close()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "calls.jsonl")
    with pytest.raises(InputError, match="another run"):
        Journal(tmp_path / "calls.jsonl")
    journal.close()
    Journal(tmp_path / "calls.jsonl").close()


def test_everything_that_decides_an_answer_is_in_its_key() -> None:
    import dataclasses

    changes = [
        {"messages": ({"role": "user", "content": "Why not?"},)},
        {"max_tokens": 9},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"seed": 1},
        {"choices": ("1", "2")},
    ]
    requests = [REQUEST, *(dataclasses.replace(REQUEST, **change) for change in changes)]
    keys = {request.key(identity) for request in requests for identity in ({"model": "a"}, {"model": "b"})}
    assert len(keys) == 2 * len(requests)
    assert REQUEST.key({"model": "a", "x": 1}) == REQUEST.key({"x": 1, "model": "a"})


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch) -> None:
    """As Lustre is where it is mounted without its option for them."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"calls\.jsonl: cannot be locked .*Function not implemented.*calls\.path"):
        Journal(tmp_path / "calls.jsonl")
