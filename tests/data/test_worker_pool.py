"""Several processes give what one gives, in order; their errors come through; small work starts none of them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zephyr_jax.data import worker_pool
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.data.preparing import prepare_conversations, prepare_pairs
from zephyr_jax.data.worker_pool import CHARACTERS_PER_WORKER, choose_num_workers, map_chunks
from zephyr_jax.records import Conversation, PreferencePair, ReadReport

NUM_ROWS = 3 * worker_pool.ROWS_PER_CHUNK + 17


def _dialogue(row: int) -> Conversation:
    turns = [("user", "ab" * (row % 40 + 1)), ("assistant", f"answer {row}")] * (1 + row % 3)
    return Conversation(tuple({"role": role, "content": text} for role, text in turns), None, f"f:{row}")


def _pair(row: int) -> PreferencePair:
    prompt = ({"role": "user", "content": "ab" * (row % 60 + 1)},)
    return PreferencePair(prompt, f"good {row}", "bad" * (row % 30 + 1), None, f"f:{row}")


def test_dialogues_of_two_processes_are_those_of_one():
    tokenizer = load_chat_tokenizer("builtin:bytes")
    rows = [_dialogue(row) for row in range(NUM_ROWS)]
    found = {}
    for num_workers in (1, 2):
        report = ReadReport()
        encoded = prepare_conversations(
            rows, tokenizer, max_length=90, loss_on="assistant", report=report, num_workers=num_workers
        )
        found[num_workers] = encoded, report
    (one, one_report), (two, two_report) = found[1], found[2]
    for name in ("ids", "is_target", "offsets", "rows"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype and not getattr(two, name).flags.writeable
    assert one.dropped == two.dropped and len(one.dropped) > 0
    assert list(one_report.dropped.items()) == list(two_report.dropped.items()) and one_report == two_report
    assert one_report.cut and one.fingerprint() == two.fingerprint()


def test_pairs_of_two_processes_are_those_of_one():
    tokenizer = load_chat_tokenizer("builtin:bytes")
    rows = [_pair(row) for row in range(NUM_ROWS)]
    found = {}
    for num_workers in (1, 2):
        report = ReadReport()
        encoded = prepare_pairs(
            rows,
            tokenizer,
            max_length=150,
            max_prompt_length=80,
            row_length=200,
            report=report,
            num_workers=num_workers,
        )
        found[num_workers] = encoded, report
    (one, one_report), (two, two_report) = found[1], found[2]
    for name in ("ids", "offsets", "rows"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.dropped == two.dropped and len(one.dropped) > 0 and one_report == two_report and one_report.cut


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_goes_wrong_in_a_process_comes_out_as_it_was(num_workers):
    with pytest.raises(TypeError, match="not supported between instances of 'str' and 'int'"):
        list(map_chunks(sorted, [1] * 599 + ["a"], shared=(), num_workers=num_workers))


def test_a_process_that_dies_is_an_error_and_not_a_wait():
    with pytest.raises(RuntimeError, match="worker process ended abruptly"):
        list(map_chunks(_Kill(), list(range(600)), shared=(), num_workers=2))


class _Kill:
    """Kills the process that unpickles it (test modules cannot be imported there)."""

    def __reduce__(self):
        return os._exit, (3,)


def hold_a_lock(chunk: list[int], folder: str) -> None:
    """Locks a file for as long as the process lives, then takes its time."""
    file = open(Path(folder) / str(chunk[0]), "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    (Path(folder) / f"{chunk[0]}.begun").touch()
    time.sleep(120)


def test_no_process_outlives_a_killed_parent(tmp_path, repository):
    program = (
        "from zephyr_jax.data.worker_pool import map_chunks; from tests.data.test_worker_pool import hold_a_lock; "
        f"list(map_chunks(hold_a_lock, range(512), shared=({str(tmp_path)!r},), num_workers=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=repository)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.begun"))) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for name in ("0", "256"):
        with (tmp_path / name).open() as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, "a worker lives on"
                    time.sleep(0.05)


def test_small_work_is_done_here_and_large_work_takes_no_more_than_the_cpus_allowed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert choose_num_workers(0) == choose_num_workers(2 * CHARACTERS_PER_WORKER - 1) == 1
    assert choose_num_workers(3 * CHARACTERS_PER_WORKER) == 3
    assert choose_num_workers(10**12) == 16


def test_the_chunks_come_in_order_with_the_place_of_their_first_row():
    rows = list(range(2 * worker_pool.ROWS_PER_CHUNK + 1))
    for num_workers in (1, 2):
        chunks = list(map_chunks(sorted, rows, shared=(), num_workers=num_workers))
        assert [start for start, _ in chunks] == [0, 256, 512]
        assert [row for _, chunk in chunks for row in chunk] == rows
    assert list(map_chunks(sorted, [], shared=(), num_workers=1)) == []
