"""Jobs of several processes, played by threads: each has a connection of its own to a hub on loopback. Not a test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from zephyr_jax.peers import Job, meet


def free_address() -> str:
    """host:port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Ended(BaseException):
    """What ends a thread in the place of its process."""


def in_threads(
    count: int, work: Callable[[Job], Any], *, on_end: Callable[[int, str, int], None] | None = None
) -> list[Any]:
    """`work` of each process's Job, in a thread of its own: what it returned or raised, by the processes' numbers.

    Args:
      count: processes.
      work: what each does.
      on_end: (index, message, status), called where a process would be ended by another one's trouble.
    """
    address, results, jobs = free_address(), [None] * count, []

    def run(index: int) -> None:
        try:
            end = None if on_end is None else lambda message, status, seconds: on_end(index, message, status)
            job, hub = meet(index=index, count=count, address=address, end=end, seconds=10.0)
            jobs.append((job, hub))
            results[index] = work(job)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a process of this job still waits"
    return results
