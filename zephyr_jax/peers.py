"""The processes of one job as they know of each other: who is there, small values passed around, who has died.

Every process holds one TCP connection to a hub in process 0, at the address that they were given to meet at. What goes
over it is small and for the host alone (which steps are done, a hash, "stop after this step"); arrays go through JAX.
A process that is killed is known at once, by its connection, and one whose host is lost after half a minute: then the
others say which one it was and end too, instead of waiting for it in a collective for ever. No JAX here.
Not here: finding out how many processes there are (launchers.py), starting JAX in them (processes.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zephyr_jax.hub import Hub, Link, connect
from zephyr_jax.records import InputError

Value = TypeVar("Value")

MEET_SECONDS = 300.0  # how long the first of them wait for the last
WAIT_SECONDS = 1800.0  # at one point of the work for the others, who are alive
SAY_SECONDS = 30.0  # after so long a wait, and again, one is told who is waited for
SEE_SECONDS = 60.0  # until a file that another host has written must be seen; network file systems cache what is not
# When one fails, the others may be about to end of the same cause, each in its own good order.
GRACE_SECONDS = 10.0
FIRST_LINGERS_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of the job."""

    index: int
    host: str
    pid: int


class Peers:
    """A job of one process: every answer is its own. `Job` below is one of several.

    Attributes:
      index: this process's number, from 0.
      members: all processes, by their numbers.
    """

    index: int = 0
    members: tuple[Member, ...] = (Member(0, socket.gethostname(), os.getpid()),)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self.members)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what is written once."""
        return self.index == 0

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host of each process."""
        return tuple(member.host for member in self.members)

    def gather(self, what: str, value: Any, *, seconds: float = WAIT_SECONDS) -> list[Any]:
        """Every process's value, by their numbers; all must ask, in the same order.

        Args:
          what: what it is about, for messages.
          value: what JSON can hold.
          seconds: how long to wait for the others.

        Raises:
          RuntimeError: some have not come in time, or are somewhere else in their work; they are named.
        """
        return [value]

    def first_says(self, what: str, make: Callable[[], Value]) -> Value:
        """What `make` gives in process 0, in all of them; it is called there alone. Values as of `gather`."""
        value: Value = self.gather(what, make() if self.is_first else None)[0]
        return value

    def any(self, what: str, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return any(self.gather(what, flag))

    def wait(self, what: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Waits until all have come here."""
        self.gather(what, None, seconds=seconds)

    def check_same(self, what: str, value: Any) -> None:
        """Checks that all processes have the same value.

        Raises:
          InputError: they do not; the message has what each has.
        """
        values = self.gather(what, value)
        if any(other != values[0] for other in values):
            lines = [f"  {self.name(index)}: {other}" for index, other in enumerate(values)]
            raise InputError("\n".join([f"{what}: differs between the processes of this job; wanted the same", *lines]))

    def check_all_see(self, path: Path) -> None:
        """Waits until process 0 has come here, which writes the path before, and checks that all processes see it.

        Raises:
          InputError: some do not, even after a while: the folder is not shared between their hosts.
        """
        self.wait(str(path))
        blind = [index for index, sees in enumerate(self.gather(f"{path} seen?", comes_to_be_seen(path))) if not sees]
        if blind:
            raise InputError(
                f"{path}: {' and '.join(map(self.name, blind))} cannot see it; wanted a folder (output_dir) that all "
                "hosts share"
            )

    @property
    def me(self) -> str:
        """This process's name."""
        return self.name(self.index)

    def name(self, index: int) -> str:
        """`process 1 of 4 (on node2, pid 4711)`."""
        member = self.members[index]
        return f"process {index} of {self.count} (on {member.host}, pid {member.pid})"


def comes_to_be_seen(path: Path) -> bool:
    """Whether a path that another host has made is seen here, now or after a while."""
    deadline = time.monotonic() + SEE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return path.exists()


ALONE = Peers()


class Job(Peers):
    """A job of several processes, this one connected to the hub.

    Args:
      link: the connection.
      index: this process's number.
      members: all of them.
      end: (message, exit status, seconds to wait) -> ends this process, when another one has ended or failed.
    """

    def __init__(self, link: Link, index: int, members: Sequence[Member], *, end: Callable[[str, int, float], None]):
        self.index, self.members = index, tuple(members)
        self._link, self._end = link, end
        self._changed, self._ending = threading.Condition(), threading.Lock()
        self._gathered: dict[int, list[Any]] = {}
        self._missing: dict[int, list[int]] = {}
        self._number = 0  # of the next gathering
        self._is_leaving = False
        self._troubles: dict[int, dict[str, Any]] = {}  # who has failed or ended, and how
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def gather(self, what: str, value: Any, *, seconds: float = WAIT_SECONDS) -> list[Any]:
        number, self._number = self._number, self._number + 1
        self._link.send({"gather": number, "what": what, "value": value})
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            with self._changed:
                if self._changed.wait_for(lambda: number in self._gathered, min(SAY_SECONDS, max(seconds - waited, 0))):
                    return self._gathered.pop(number)
            names = ", ".join(self.name(index) for index in self._ask_missing(number)) or "the hub"
            if time.monotonic() - began >= seconds:
                raise RuntimeError(f"waited {seconds:g} s at '{what}' for {names}, which did not come")
            print(f"waiting at '{what}' for {names}", file=sys.stderr, flush=True)

    def _ask_missing(self, number: int) -> list[int]:
        self._link.send({"missing": number})
        with self._changed:
            self._changed.wait_for(lambda: number in self._missing, 5.0)
            return self._missing.pop(number, [])

    def _listen(self) -> None:
        """In a thread of its own, all the time."""
        for message in self._link.messages():
            with self._changed:
                if "gathered" in message:
                    self._gathered[message["gathered"]] = message["values"]
                elif "missing" in message:
                    self._missing[message["missing"]] = message["indexes"]
                self._changed.notify_all()
            if "trouble" in message:
                self._on_trouble(message)
        self._on_trouble({"trouble": 0, "kind": "ended"})

    def _on_trouble(self, message: dict[str, Any]) -> None:
        """Another process is no more, or will not be: this one ends, unless it is ending of its own."""
        with self._changed:
            if self._is_leaving and message["kind"] == "ended" or message["trouble"] in self._troubles:
                return
            self._troubles[message["trouble"]] = message
            self._changed.notify_all()
        if message["kind"] == "failed":
            timer = threading.Timer(GRACE_SECONDS, self._end_unless_leaving, args=(message,))
            timer.daemon = True
            timer.start()
        else:
            self._end_unless_leaving(message)  # at once: JAX is about to abort this process, in its own words

    def _end_unless_leaving(self, message: dict[str, Any]) -> None:
        if not self._is_leaving:
            self._end_with(message)

    def _end_with(self, message: dict[str, Any]) -> None:
        # The others have been told, but JAX aborts them when it misses its service, which is in process 0.
        seconds = FIRST_LINGERS_SECONDS if self.is_first else 0.0
        with self._ending:  # two threads may find the same reason; one of them says it
            self._end(*self._words(message), seconds)

    def _words(self, message: dict[str, Any]) -> tuple[str, int]:
        name = self.name(message["trouble"])
        if message["kind"] == "failed":
            return f"{name} failed: {message['text']}; {self.me} ends with it", message["status"]
        return (
            f"{name} has ended without a word: killed, crashed, out of memory, or its host is lost; "
            f"{self.me} ends with it",
            1,
        )

    def fail(self, text: str, status: int, *, is_plain: bool) -> None:
        """Tells the others that this process ends with an error; returns if it should be printed here, else ends.

        Args:
          text: the error.
          status: the exit status.
          is_plain: whether the error's own words say what is wrong. Others, such as a collective's, may be nothing but
            the sign that another process is gone; then that is said instead.
        """
        if not is_plain:

            def explanations() -> list[dict[str, Any]]:
                return [trouble for trouble in self._troubles.values() if trouble.get("text") != text]

            with self._changed:
                self._changed.wait_for(explanations, 2.0)
            for trouble in explanations():
                self._end_with(trouble)
        with contextlib.suppress(OSError):
            self._link.send({"failed": text, "status": status})
        self._is_leaving = True
        if not self.is_first:  # if process 0 says the same, once is enough
            with self._changed:
                self._changed.wait_for(lambda: 0 in self._troubles, GRACE_SECONDS)
            if self._troubles.get(0, {}).get("text") == text:
                self._end("", status, 0.0)

    def close(self) -> None:
        """Leaves the job, all of it done."""
        self.wait("the end")
        self._is_leaving = True
        with contextlib.suppress(OSError):
            self._link.send({"bye": True})


def meet(
    *,
    index: int,
    count: int,
    address: str,
    end: Callable[[str, int, float], None] | None = None,
    seconds: float = MEET_SECONDS,
) -> tuple[Job, Hub | None]:
    """Waits until all processes have come together.

    Args:
      index: this process's number.
      count: how many there are.
      address: host:port where process 0 is to be met; it listens there.
      end: what ends this process when another is gone; None: a line on stderr and the exit status.
      seconds: how long to wait.

    Returns:
      The job, and in process 0 the hub, to be closed last.

    Raises:
      InputError: the address cannot be used, or not all came; the message says who did not.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    hub = Hub(host, int(port), count) if index == 0 else None
    began = time.monotonic()
    try:
        link = connect(host, int(port), seconds=seconds)
        link.send({"hello": index, "count": count, "host": socket.gethostname(), "pid": os.getpid()})
        arrived = link.receive_first(seconds - (time.monotonic() - began))
    except OSError as error:
        said = hub.who_is_missing() if hub is not None else f"process 0 cannot be reached ({error})"
        raise InputError(
            f"processes: {said} at {address} after {seconds:g} s; wanted all {count} of them started, with the same "
            "address, and their network open between them"
        ) from error
    if "refused" in arrived:
        raise InputError(f"processes: {arrived['refused']}")
    if "members" not in arrived:
        raise InputError(f"processes: process {arrived['trouble']} has ended before all {count} had come")
    members = [Member(**member) for member in arrived["members"]]
    return Job(link, index, members, end=end or end_process), hub


def end_process(message: str, status: int, seconds: float) -> None:
    """Says why on the process's own stderr, and ends it without more ado: JAX would wait for those that are gone."""
    if message and sys.__stderr__ is not None:
        print(f"\nerror: {message}", file=sys.__stderr__, flush=True)  # from where a progress bar may stand
    time.sleep(seconds)
    os._exit(status)


@contextlib.contextmanager
def quiet_unless_first(peers: Peers) -> Iterator[None]:
    """Lets process 0 alone speak; errors that end the block come through, since whoever prints them stands outside."""
    if peers.is_first:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            yield
