"""Work on the chunks of a long list, in this process or in several; the results come in the list's order either way.

Processes rather than threads: about a quarter of tokenising is Python under the interpreter's lock, so threads (the
tokenizer library's own included) could not use many cores. They are spawned, never forked, since JAX runs threads in
this process.
Not here: what the work is (preparing.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

ROWS_PER_CHUNK = 256
# Some two seconds of tokenising: four times what it takes to start a process and to give it the tokenizer.
CHARACTERS_PER_WORKER = 4_000_000


def choose_num_workers(num_characters: int) -> int:
    """How many processes a text is worth: 1 (this one) where it is small, at most the CPUs this process may use.

    Args:
      num_characters: of all rows together.
    """
    return max(1, min(_granted_cpus(), num_characters // CHARACTERS_PER_WORKER))


def _granted_cpus() -> int:
    """CPUs that a batch system (the affinity) or a container (its share of time) has granted; only Linux tells."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000", or microseconds granted in so many
        granted, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split())
        num_cpus = min(num_cpus, max(1, granted // period))
    return num_cpus


def map_chunks(
    work: Callable[..., Any], rows: Sequence[Any], *, shared: tuple[Any, ...], num_workers: int
) -> Iterator[tuple[int, Any]]:
    """`work(chunk, *shared)` of every chunk of ROWS_PER_CHUNK rows.

    Args:
      work: a function of a module, so that another process can find it.
      rows: what is cut into chunks; picklable.
      shared: what every chunk needs; sent to each process once.
      num_workers: 1 works here, more in so many processes.

    Yields:
      The index of the chunk's first row, and the result; in order.

    Raises:
      RuntimeError: a process ended abruptly.
      Exception: what `work` raised, with the process's own traceback as its cause.
    """
    starts = range(0, len(rows), ROWS_PER_CHUNK)
    chunks = (rows[start : start + ROWS_PER_CHUNK] for start in starts)
    if num_workers == 1:
        yield from ((start, work(chunk, *shared)) for start, chunk in zip(starts, chunks, strict=True))
        return
    executor = ProcessPoolExecutor(
        min(num_workers, len(starts)) or 1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(pickle.dumps((work, shared)),),  # once, not once a process
    )
    try:
        yield from zip(starts, executor.map(_work_on, chunks), strict=True)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process ended abruptly ({num_workers} of them were at work): killed, out of memory, or started "
            "by a script of yours that lacks `if __name__ == '__main__':`"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_given: tuple[Callable[..., Any], tuple[Any, ...]] | None = None  # of a worker process: what to do, and with what


def _begin(given: bytes) -> None:
    global _given
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _given = pickle.loads(given)


def _end_with_parent() -> None:
    """A worker of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_on(chunk: Sequence[Any]) -> Any:
    assert _given is not None
    work, shared = _given
    return work(chunk, *shared)
