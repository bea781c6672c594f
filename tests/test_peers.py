"""Processes that pass small values around, and that end together when one of them is gone. Played by threads."""

from __future__ import annotations

import socket
import time

import pytest

from tests.small_jobs import free_address, in_threads
from zephyr_jax import hub, peers
from zephyr_jax.peers import ALONE, meet
from zephyr_jax.records import InputError


def test_alone_every_answer_is_its_own():
    assert ALONE.gather("x", 3) == [3] and ALONE.first_says("x", lambda: 4) == 4
    assert ALONE.any("x", True) and not ALONE.any("x", False)
    assert ALONE.is_first and ALONE.count == 1 and len(ALONE.hosts) == 1
    ALONE.check_same("x", 1)
    ALONE.wait("x")


def test_values_come_back_in_the_order_of_the_processes():
    def work(job):
        return (
            job.gather("squares", {"n": job.index**2}),
            job.first_says("name", lambda: f"from {job.index}"),
            job.any("stop", job.index == 2),
            job.any("stop", False),
            job.hosts,
        )

    squares = [{"n": 0}, {"n": 1}, {"n": 4}]
    assert in_threads(3, work) == [(squares, "from 0", True, False, (socket.gethostname(),) * 3)] * 3


def test_what_differs_between_processes_is_an_error_in_all_that_shows_each_one_s():
    def work(job):
        job.check_same("rows", "abc")
        job.check_same("versions", {"jax": "0.10.2" if job.index else "0.12"})

    for error in in_threads(2, work):
        assert isinstance(error, InputError)
        assert "versions: differs between the processes of this job" in str(error)
        assert "process 0 of 2 (on " in str(error) and "0.10.2" in str(error) and "0.12" in str(error)


def test_a_wait_is_bounded_and_names_who_did_not_come(monkeypatch, capfd):
    monkeypatch.setattr(peers, "SAY_SECONDS", 0.2)

    def work(job):
        if job.index != 1:
            job.wait("tokenised", seconds=0.5)
        else:
            time.sleep(1.5)

    first, _, third = in_threads(3, work)
    for error in (first, third):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("waited 0.5 s at 'tokenised' for process 1 of 3 (on ")
    assert "waiting at 'tokenised' for process 1 of 3 (on " in capfd.readouterr().err


def test_a_process_that_is_killed_ends_the_others_at_once_and_is_named():
    """Its connection is cut, as the kernel does when a process is killed."""
    said = {}

    def work(job):
        job.wait("start")
        if job.index == 1:
            job._is_leaving = True
            job._link.close()
        while job.index != 1 and job.index not in said:
            time.sleep(0.01)

    in_threads(3, work, on_end=lambda index, message, status: said.update({index: (message, status)}))
    for index in (0, 2):
        message, status = said[index]
        assert status == 1 and message.startswith("process 1 of 3 (on ")
        assert "has ended without a word: killed, crashed, out of memory, or its host is lost" in message
        assert f"; process {index} of 3" in message


def test_a_process_that_fails_ends_the_others_with_its_error_and_its_status(monkeypatch):
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.3)
    said = {}

    def work(job):
        job.wait("start")
        if job.index == 1:
            job.fail("source 'rows.jsonl': no such file", 2, is_plain=True)
            return
        while job.index not in said:
            time.sleep(0.01)

    in_threads(2, work, on_end=lambda index, message, status: said.update({index: (message, status)}))
    message, status = said[0]
    assert status == 2 and "failed: source 'rows.jsonl': no such file; process 0 of 2" in message


def test_an_error_that_all_have_is_printed_by_process_0_alone(monkeypatch):
    """The others are ended without a word; process 0 returns from `fail`, to print it."""
    monkeypatch.setattr(peers, "GRACE_SECONDS", 5.0)
    said = {}

    def work(job):
        job.wait("start")
        began = time.monotonic()
        job.fail("the loss is not finite", 1, is_plain=True)
        return time.monotonic() - began

    seconds = in_threads(3, work, on_end=lambda index, message, status: said.update({index: (message, status)}))
    assert said == {1: ("", 1), 2: ("", 1)} and max(seconds) < 4


def test_a_broken_collective_is_explained_by_the_process_that_is_gone():
    said = []

    def work(job):
        job.wait("start")
        if job.index == 1:
            job._is_leaving = True
            job._link.close()
            return
        job.fail("JaxRuntimeError: connection reset by peer", 1, is_plain=False)

    in_threads(2, work, on_end=lambda index, message, status: said.append(message))
    assert said[0].startswith("process 1 of 2 (on ") and "ended without a word" in said[0]


def test_processes_that_do_not_do_the_same_are_told_so_instead_of_waiting(monkeypatch):
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.1)
    said = {}

    def work(job):
        if job.index == 0:
            job._link.send({"gather": 0, "what": "reading", "value": 1})
            time.sleep(0.5)
        else:
            time.sleep(0.2)
            job._link.send({"gather": 0, "what": "saving", "value": 1})
        while job.index not in said:
            time.sleep(0.01)

    in_threads(2, work, on_end=lambda index, message, status: said.update({index: message}))
    assert "it is at 'saving' where others are at 'reading'" in said[0] and said.keys() == {0, 1}


def test_who_never_came_is_named_after_a_bounded_wait():
    address = free_address()
    with pytest.raises(InputError, match=r"processes: processes 1, 2 did not come at .* after 0.5 s; wanted all 3"):
        meet(index=0, count=3, address=address, seconds=0.5)


def test_a_process_without_a_process_0_gives_up_after_a_bounded_wait():
    with pytest.raises(InputError, match="process 0 cannot be reached"):
        meet(index=1, count=2, address=free_address(), seconds=0.3)


def test_a_port_that_is_taken_is_an_error_with_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="cannot listen at port .* JAX_COORDINATOR_ADDRESS=HOST:PORT"):
            meet(index=0, count=2, address=address, seconds=1.0)


@pytest.mark.parametrize(
    ("index", "count", "wanted"),
    [
        (0, 2, "has the number of another one"),
        (1, 3, "was told that there are 3 processes, process 0 that there are 2"),
        (2, 2, "wanted a number from 0 to 1"),
    ],
)
def test_a_process_that_does_not_fit_is_refused(index, count, wanted):
    port = int(free_address().rpartition(":")[2])
    there = hub.Hub("127.0.0.1", port, 2)
    first = hub.connect("127.0.0.1", port, seconds=5)
    first.send({"hello": 0, "count": 2, "host": "a", "pid": 1})
    time.sleep(0.1)
    second = hub.connect("127.0.0.1", port, seconds=5)
    second.send({"hello": index, "count": count, "host": "b", "pid": 2})
    assert wanted in second.receive_first(5)["refused"]
    there.close(seconds=0.1)


def test_a_stranger_at_the_port_is_dropped_and_disturbs_nobody():
    port = int(free_address().rpartition(":")[2])
    there = hub.Hub("127.0.0.1", port, 1)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(100) == b""
    there.close(seconds=0.1)


def test_one_process_of_a_job_of_one_meets_itself():
    job, there = meet(index=0, count=1, address=free_address(), seconds=5)
    assert job.gather("x", 5) == [5]
    job.close()
    there.close()
