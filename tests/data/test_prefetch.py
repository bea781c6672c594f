"""The thread that works ahead: same items in order, errors reach the reader, and it ends when told or forgotten."""

from __future__ import annotations

import gc
import itertools
import threading
import time

import pytest

from zephyr_jax.data.prefetch import prefetch


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited 5 s in vain"
        time.sleep(0.01)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_items_come_in_order_and_then_end():
    ready = prefetch(lambda: range(20), depth=3)
    assert list(ready) == list(range(20))
    assert list(ready) == [] and not threads()


def test_the_thread_works_ahead_but_no_further_than_depth():
    made = []

    def items():
        for number in itertools.count():
            made.append(number)
            yield number

    with prefetch(items, depth=2) as ready:
        wait_until(lambda: len(made) == 3)  # two ready and one in hand
        time.sleep(0.05)
        assert len(made) == 3 and next(ready) == 0
        wait_until(lambda: len(made) == 4)
    assert not threads()


def test_an_error_is_raised_where_its_item_was_due():
    def items():
        yield 1
        raise OSError("disk gone")

    with prefetch(items) as ready:
        assert next(ready) == 1
        with pytest.raises(OSError, match="disk gone"):
            next(ready)
        assert next(ready, None) is None
    with pytest.raises(ZeroDivisionError):
        next(prefetch(lambda: [1 // 0]))


def test_closing_ends_an_endless_iterator_and_its_generator():
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    ready = prefetch(items)
    assert next(ready) == 0
    ready.close()
    ready.close()
    assert not threads() and closed == [True] and list(ready) == []


def test_one_that_is_forgotten_ends_its_thread():
    ready = prefetch(itertools.count)
    assert next(ready) == 0
    del ready
    gc.collect()
    wait_until(lambda: not threads())


def test_time_spent_waiting_is_counted():
    def slow():
        time.sleep(0.2)
        yield 1

    with prefetch(slow) as ready:
        next(ready)
        assert ready.waited_seconds > 0.1
