"""Every answer on disk as it comes, under the key of its request: what was paid for once is never asked again.

One file of JSON lines for each model, in which tries that came to nothing but may be billed have a line too, for the
budget. A line is whole or, after a kill, cut off at the end of the file, and then
forgotten. Only the places of the lines are kept in memory. Lines are written through to the system one by one, so that
killing the process loses none, and to the disk about once a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zephyr_jax.judging.protocol import Reply, whole_characters
from zephyr_jax.records import InputError

SECONDS_BETWEEN_SYNCS = 1.0


def open_alone(path: Path, *, key: str) -> BinaryIO:
    """Opens a file for reading and appending, its folder made, in one process at a time.

    Args:
      path: the file.
      key: of the recipe, that would have it lie elsewhere.

    Raises:
      InputError: it cannot be written, or another process has it open this way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: BinaryIO = path.open("ab+")
    except OSError as error:
        raise InputError(f"{path}: answers cannot be kept there ({error.strerror}); give another {key}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"{path}: another run is writing these answers; wait for it, or give this one a {key} of its own"
        ) from None
    except OSError as error:  # Lustre without its option flock, say
        file.close()
        raise InputError(
            f"{path}: cannot be locked against a second run ({error.strerror}); give a {key} on a file system that can"
        ) from None
    return file


class Journal:
    """The answers of one model. A second process that opens the same file is refused."""

    def __init__(self, path: Path):
        """Opens the file, makes it where there is none, and cuts off a line that a kill has torn.

        Raises:
          InputError: it cannot be written, or another process writes it.
        """
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._wastes: list[tuple[int, int]] = []
        self._file = open_alone(path, key="calls.path")
        self._end = 0
        self._synced = time.monotonic()
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                print(f"{self.path}: its last line was cut off and is forgotten", file=sys.stderr)
                self._file.truncate(self._end)
                break
            try:
                record = json.loads(line)
                if "wasted" in record:
                    self._wastes.append((self._end, len(line)))
                else:
                    _reply(record)
                    self._places.setdefault(record["key"], (self._end, len(line)))
                record["run"], record["prompt_tokens"] + record["completion_tokens"]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                print(f"{self.path}: a line at byte {self._end} is no answer and is passed over", file=sys.stderr)
            self._end += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def find(self, key: str) -> Reply | None:
        """The answer kept under a key."""
        place = self._places.get(key)
        return None if place is None else _reply(json.loads(os.pread(self._file.fileno(), place[1], place[0])))

    def lines(self) -> Iterator[dict[str, Any]]:
        """All answers as they were written, then the tries that came to nothing."""
        for offset, length in (*self._places.values(), *self._wastes):
            yield json.loads(os.pread(self._file.fileno(), length, offset))

    def keep(self, key: str, reply: Reply, *, run: str, call: str, seconds: float) -> None:
        """Appends an answer.

        Args:
          key: of its request.
          reply: the answer.
          run: name of the run that asked, which pays for it.
          call: what it was asked for, for people.
          seconds: from the request to its answer.
        """
        record: dict[str, Any] = {"key": key, "run": run, "call": call, "seconds": round(seconds, 3)}
        record |= {"text": reply.text, "finish_reason": reply.finish_reason}
        record |= {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        if reply.choice_logprobs:
            record["choice_logprobs"] = list(reply.choice_logprobs)
        self._places.setdefault(key, self._append(record))

    def keep_waste(self, kind: str, *, run: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Appends that a try came to nothing, and what it may have taken.

        Args:
          kind: what went wrong.
          run: name of the run that pays for it.
          prompt_tokens: at most, by estimate.
          completion_tokens: at most.
        """
        record: dict[str, Any] = {"wasted": kind, "run": run, "prompt_tokens": prompt_tokens}
        self._append(record | {"completion_tokens": completion_tokens})

    def _append(self, record: dict[str, Any]) -> tuple[int, int]:
        """Writes a line; where it stands."""
        line = json.dumps(record).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        place = self._end, len(line)
        self._end += len(line)
        if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
            self._sync()
        return place

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Writes through to the disk and lets the file go; that a disk is full has been said with the answer."""
        try:
            self._sync()
            self._file.close()
        except OSError as error:
            print(f"{self.path}: {error.strerror}", file=sys.stderr)


def _reply(record: dict[str, Any]) -> Reply:
    return Reply(
        text=whole_characters(record["text"]),
        finish_reason=record["finish_reason"],
        prompt_tokens=record["prompt_tokens"],
        completion_tokens=record["completion_tokens"],
        choice_logprobs=tuple(record.get("choice_logprobs", ())),
    )
