"""A small OpenAI-compatible server for tests: answers after a fixed time, counts calls, and misbehaves when asked to.

Plain asyncio over sockets, so that it costs little beside the client. What it answers depends on the request's content
alone. Also a program, for measuring it from another process: `python -m tests.judging.stub_server --latency 0.1`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]


def digest(body: Body) -> int:
    """A number that the content of a request decides."""
    return int.from_bytes(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()[:6], "big")


def plain_answer(body: Body) -> str:
    """A text of its own for each request; ratings where the schema asks for them."""
    number = digest(body)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is None:
        return f"Answer {number} to: {body['messages'][-1]['content'][:40]}"
    count = schema["properties"]["ratings"]["minItems"]
    ratings = [
        {"answer": place + 1, "rationale": f"Reason {number % 97}.", "rating": 1 + (number >> (3 * place)) % 5}
        for place in range(count)
    ]
    return json.dumps({"ratings": ratings})


class StubServer:
    """A server in a thread of its own.

    Attributes:
      calls: what came, as the bodies' digests -> how often.
      spread: share of the latency by which it differs from request to request, up or down.
      most_in_flight: requests at the same time.
      retry_after: seconds that an answer 429 asks for.
      likely: given: the likely first tokens with their log-probabilities, for requests that want some.
      more: put into the JSON of every answer, over what is there.
      faults: called with the number of the request, from 0; a word for what to do instead of answering, or None.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        spread: float = 0.0,
        answer: Callable[[Body], str] = plain_answer,
        faults: Callable[[int], str | None] = lambda number: None,
        finish_reason: Callable[[Body], str] = lambda body: "stop",
        likely: Callable[[Body], dict[str, float]] | None = None,
        more: Body | None = None,
    ):
        self.spread = spread
        self.latency, self.answer, self.faults = latency, answer, faults
        self.finish_reason, self.likely, self.more = finish_reason, likely, more or {}
        self.calls: collections.Counter[int] = collections.Counter()
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.retry_after = 0.2
        self.num_requests = self.num_answers = self.in_flight = self.most_in_flight = 0
        self._ready = threading.Event()
        self.port = 0

    def __enter__(self) -> StubServer:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """What `base_url` is to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:])}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                self.headers.append(headers)
                await self._answer(json.loads(content or b"{}"), writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, body: Body, writer: asyncio.StreamWriter) -> None:
        number = self.num_requests
        self.num_requests += 1
        self.calls[digest(body)] += 1
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            share = digest(body) % 1000 / 500 - 1  # -1 to 1, by the content
            await asyncio.sleep(self.latency * (1 + self.spread * share))
            fault = self.faults(number)
            if fault == "slow":
                await asyncio.sleep(60)
            elif fault == "drop":
                raise ConnectionAbortedError
            writer.write(self._response(body, fault))
            await writer.drain()
            self.num_answers += 1
        finally:
            self.in_flight -= 1

    def _response(self, body: Body, fault: str | None) -> bytes:
        text = self.answer(body)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = self.finish_reason(body)
        if body.get("logprobs") and self.likely is not None:
            listed = [{"token": token, "logprob": value} for token, value in self.likely(body).items()]
            choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": listed}]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        whole = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
        whole = json.dumps(json.loads(whole) | {"usage": usage} | self.more)
        if fault is None:
            return _http(200, whole)
        return {
            "429": _http(429, '{"error": {"message": "too many"}}', f"Retry-After: {self.retry_after}\r\n"),
            "500": _http(500, '{"error": {"message": "oops"}}'),
            "400": _http(400, '{"error": {"message": "too long for the model"}}'),
            "401": _http(401, '{"error": {"message": "wrong key sk-secret"}}'),
            "402": _http(402, '{"error": {"message": "Insufficient Balance"}}'),
            "403": _http(403, '{"error": {"message": "your input was flagged"}}'),
            "404": _http(404, '{"error": {"message": "The model `m` does not exist."}}'),
            "quota": _http(429, '{"error": {"message": "check your plan", "code": "insufficient_quota"}}'),
            "garbage": _http(200, "<html>this is no JSON</html>"),
            "half": _http(200, whole[: len(whole) // 2]),
            "empty": _http(200, ""),
            "no choices": _http(200, '{"choices": []}'),
        }[fault]


def _http(status: int, text: str, headers: str = "") -> bytes:
    content = text.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    return head.encode() + content


def main() -> None:
    """Serves until it is killed; prints the address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--spread", type=float, default=0.0)
    arguments = parser.parse_args()
    with StubServer(latency=arguments.latency, spread=arguments.spread) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
