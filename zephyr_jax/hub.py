"""The switchboard of a job of several processes: TCP connections that carry one JSON object a line.

It runs in threads of process 0 and knows nothing of the work: it deals out who is there, passes on what all have handed
in, and tells the rest when one fails or its connection ends. Not here: what a process makes of it (peers.py).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from zephyr_jax.records import InputError

# A host that is lost sends no farewell: its connection counts as ended after 10 + 4 x 5 seconds without an answer.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Link:
    """One end of a connection."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):  # not every system has them all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection, self._sending = connection, threading.Lock()
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; OSError where the connection has ended."""
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive_first(self, seconds: float) -> dict[str, Any]:
        """The next message, before any thread reads them; OSError where none comes in time."""
        self._connection.settimeout(max(seconds, 0.1))
        line = self._lines.readline()
        self._connection.settimeout(None)
        if not line:
            raise ConnectionError("the connection was closed")
        message: dict[str, Any] = json.loads(line)
        return message

    def messages(self) -> Iterator[dict[str, Any]]:
        """Messages as they come, until the connection ends."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                yield json.loads(line)

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def connect(host: str, port: int, *, seconds: float) -> Link:
    """Connects to the hub, which may not be there yet; OSError where it does not come in time."""
    began = time.monotonic()
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=10.0)
            connection.settimeout(None)
            return Link(connection)
        except OSError:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(0.1)


class Hub:
    """Listens at process 0's address and serves `count` processes.

    Args:
      host: as the others call this host; only a loopback name keeps the port closed to the network.
      port: where to listen.
      count: how many processes there are.

    Raises:
      InputError: the port cannot be had.
    """

    def __init__(self, host: str, port: int, count: int):
        self._count = count
        self._lock = threading.Lock()
        self._links: dict[int, Link] = {}
        self._members: dict[int, dict[str, Any]] = {}
        self._handed_in: dict[int, tuple[str, dict[int, Any]]] = {}  # gathering -> what it is about, values
        self._gone: set[int] = set()
        try:
            self._listener = _listen(host, port, count)
        except OSError as error:
            raise InputError(
                f"processes: process 0 cannot listen at port {port} ({error}); is another job there? Give another one "
                "in JAX_COORDINATOR_ADDRESS=HOST:PORT, to all processes"
            ) from error
        threading.Thread(target=self._accept, name="hub", daemon=True).start()

    def who_is_missing(self) -> str:
        """`processes 2, 5 did not come`."""
        missing = [str(index) for index in range(self._count) if index not in self._members]
        return f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} did not come"

    def close(self, *, seconds: float = 5.0) -> None:
        """Waits a little until all have said goodbye, then listens no more."""
        deadline = time.monotonic() + seconds
        while len(self._gone) < self._count and time.monotonic() < deadline:
            time.sleep(0.01)
        self._listener.close()
        for link in self._links.values():
            link.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(Link(connection),), daemon=True).start()

    def _serve(self, link: Link) -> None:
        try:
            hello = link.receive_first(10.0)
            index, member = hello["hello"], {name: hello[name] for name in ("host", "pid")}
        except (OSError, ValueError, LookupError, TypeError):  # no process of ours
            link.close()
            return
        refusal = self._register(index, hello["count"], member, link)
        if refusal:
            with contextlib.suppress(OSError):
                link.send({"refused": refusal})
            link.close()
            return
        for message in link.messages():
            if "gather" in message:
                self._hand_in(index, message)
            elif "missing" in message:
                there = self._handed_in.get(message["missing"], ("", {}))[1]
                waited_for = [other for other in range(self._count) if other not in there]
                self._send({index}, {"missing": message["missing"], "indexes": waited_for})
            elif "failed" in message:
                self._tell_of(index, {"kind": "failed", "text": message["failed"], "status": message["status"]})
            elif "bye" in message:
                self._gone.add(index)
        self._tell_of(index, {"kind": "ended"})

    def _register(self, index: int, count: int, member: dict[str, Any], link: Link) -> str | None:
        """None, or why this process cannot be one of the job."""
        with self._lock:
            who = f"process {index} (on {member['host']}, pid {member['pid']})"
            if count != self._count:
                return f"{who} was told that there are {count} processes, process 0 that there are {self._count}"
            if not 0 <= index < count:
                return f"{who}: wanted a number from 0 to {count - 1}"
            if index in self._members:
                there = self._members[index]
                return f"{who} has the number of another one (on {there['host']}, pid {there['pid']})"
            self._links[index], self._members[index] = link, member
            if len(self._members) == count:
                members = [{"index": i, **self._members[i]} for i in range(count)]
                self._send(set(range(count)), {"members": members})
        return None

    def _hand_in(self, index: int, message: dict[str, Any]) -> None:
        number, what = message["gather"], message["what"]
        with self._lock:
            first_what, values = self._handed_in.setdefault(number, (what, {}))
            values[index] = message["value"]
            is_complete = len(values) == self._count
            if is_complete:
                del self._handed_in[number]
        if first_what != what:  # they would wait for each other for ever
            text = f"it is at '{what}' where others are at '{first_what}': the processes have not done the same"
            self._tell_of(index, {"kind": "failed", "text": text, "status": 1}, also_itself=True)
        elif is_complete:
            ordered = [values[other] for other in range(self._count)]
            self._send(set(range(self._count)), {"gathered": number, "values": ordered})

    def _tell_of(self, index: int, trouble: dict[str, Any], *, also_itself: bool = False) -> None:
        """Says once of a process that it is in trouble, unless it has said goodbye."""
        with self._lock:
            if index in self._gone:
                return
            self._gone.add(index)
        others = set(range(self._count)) - (set() if also_itself else {index})
        self._send(others, {"trouble": index} | trouble)

    def _send(self, indexes: set[int], message: dict[str, Any]) -> None:
        for index in sorted(indexes, reverse=True):  # process 0, which may end at once, last
            if index in self._links:
                with contextlib.suppress(OSError):  # its own thread notices
                    self._links[index].send(message)


def _listen(host: str, port: int, count: int) -> socket.socket:
    if host in LOOPBACK:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=count)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=count, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=count)
