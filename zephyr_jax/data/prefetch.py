"""Makes items ahead of need in a background thread, so that the device does not wait for its input.

Not here: what the items are (data/loader.py) and sending them to devices, which `iterable_fn` may do.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class _Ending:
    """Stands in the queue behind the last item: the thread is done, or failed with `error`."""

    error: BaseException | None = None


class Prefetch(Generic[Item]):
    """Iterates over what a background thread makes ahead of need; see `prefetch`.

    Attributes:
      waited_seconds: how long the reader has waited for items that were not ready.
    """

    def __init__(self, iterable_fn: Callable[[], Iterable[Item]], *, depth: int):
        self.waited_seconds = 0.0
        self._ready: queue.Queue[Item | _Ending] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        # The thread holds no reference to this object, so one that is forgotten unclosed still stops it.
        self._finalize = weakref.finalize(self, self._stopped.set)
        self._thread = threading.Thread(
            target=_fill, args=(iterable_fn, self._ready, self._stopped), name="prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._stopped.is_set():
            raise StopIteration
        start = time.perf_counter()
        item = self._ready.get()
        self.waited_seconds += time.perf_counter() - start
        if not isinstance(item, _Ending):
            return item
        self.close()
        raise StopIteration if item.error is None else item.error

    def close(self) -> None:
        """Stops the thread and waits for it; what it had made is dropped. A second call does nothing."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> Prefetch[Item]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def prefetch(iterable_fn: Callable[[], Iterable[Item]], *, depth: int = 2) -> Prefetch[Item]:
    """Iterates over `iterable_fn()` in a background thread, at most `depth` items (and one in the making) ahead.

      with prefetch(lambda: batches.batches(start=next_step)) as ready:
          for batch in ready: ...

    Args:
      iterable_fn: called in the thread; what it does there (building arrays, sending them to the device) overlaps
        with the reader's work.
      depth: items kept ready.

    Returns:
      An iterator, to be closed or used in a `with`. An exception of the thread is raised where its item was due.
    """
    return Prefetch(iterable_fn, depth=depth)


def _fill(iterable_fn: Callable[[], Iterable], ready: queue.Queue, stopped: threading.Event) -> None:
    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        for item in iterable_fn():
            put(item)
            if stopped.is_set():
                return
    except BaseException as error:  # whatever it is, the reader must hear of it rather than wait for ever
        put(_Ending(error))
    else:
        put(_Ending())
