"""Requests a second of `feedback`'s endpoint beside those of a bare asyncio client, against the same server.

The server is a stub in another process that answers after a fixed time (or one that differs by up to a share of it), as
many requests at once as come. The bare client does nothing but send bytes over connections that stay open, and read to
the end of the answer: what the server alone can do. Ours is what a run does: the official client, retries, budget, and
every answer on disk.

    python -m benchmarks.feedback_throughput --latency 0.5 --concurrency 64 --requests 1024
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from zephyr_jax.judging.budget import Purse
from zephyr_jax.judging.calls import Caller, run_jobs
from zephyr_jax.judging.journal import Journal
from zephyr_jax.judging.openai_endpoint import OpenAIEndpoint
from zephyr_jax.judging.protocol import ChatRequest, Stop
from zephyr_jax.judging.tally import Tally
from zephyr_jax.respondent_options import Budget, ModelOptions, Price

PROMPT = "Why is the sky blue? " * 40


async def bare(url: str, num_requests: int, concurrency: int) -> float:
    """Requests a second of raw sockets."""
    address = urlsplit(url)

    def request(number: int) -> bytes:
        message = {"role": "user", "content": PROMPT}
        body = json.dumps({"model": "m", "messages": [message], "max_tokens": 256, "seed": number}).encode()
        head = f"POST {address.path}/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    waiting = iter(range(num_requests))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in waiting:
            writer.write(request(number))
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        writer.close()

    started = time.monotonic()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return num_requests / (time.monotonic() - started)


async def ours(url: str, num_requests: int, concurrency: int, folder: Path) -> tuple[float, float]:
    """Requests a second as a run makes them, and how many were in flight on average."""
    tally, stop = Tally(), Stop()
    endpoint = OpenAIEndpoint(ModelOptions(model="m", base_url=(url,), concurrency=concurrency), name="m", tally=tally)
    journal = Journal(folder / "calls.jsonl")
    caller = Caller(endpoint, journal, run="run", price=Price(), purse=Purse(Budget()), tally=tally, stop=stop)

    async def ask(number: int) -> None:
        message = {"role": "user", "content": PROMPT}
        await caller.ask(ChatRequest((message,), max_tokens=256, seed=number), call=f"ask:{number}")  # type: ignore[arg-type]

    jobs = [lambda number=number: ask(number) for number in range(num_requests)]
    started = time.monotonic()
    await run_jobs(jobs, window=endpoint.window, stop=stop)
    rate = num_requests / (time.monotonic() - started)
    await endpoint.close()
    journal.close()
    return rate, tally.mean_in_flight()


def measure(*, latency: float, spread: float, concurrency: int, num_requests: int, num_rounds: int) -> dict[str, float]:
    """Both sides turn by turn; the medians of their rates, ours over bare, and our mean number in flight."""
    command = [sys.executable, "-m", "tests.judging.stub_server", "--latency", str(latency), "--spread", str(spread)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            rates: dict[str, list[float]] = {"bare": [], "ours": [], "in_flight": []}
            for _ in range(num_rounds):
                rates["bare"].append(asyncio.run(bare(url, num_requests, concurrency)))
                with tempfile.TemporaryDirectory() as folder:
                    rate, in_flight = asyncio.run(ours(url, num_requests, concurrency, Path(folder)))
                rates["ours"].append(rate)
                rates["in_flight"].append(in_flight)
        finally:
            server.kill()
    medians = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    return medians | {"ours_over_bare": medians["ours"] / medians["bare"]}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the server takes (%(default)s)")
    parser.add_argument("--spread", type=float, default=0.0, help="share by which that differs (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight (%(default)s)")
    parser.add_argument("--requests", type=int, default=1024, help="in each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides, turn by turn (%(default)s)")
    options = parser.parse_args()
    found = measure(
        latency=options.latency,
        spread=options.spread,
        concurrency=options.concurrency,
        num_requests=options.requests,
        num_rounds=options.rounds,
    )
    shown = {name: round(value, 3) for name, value in found.items()}
    print(json.dumps({**vars(options), "most_possible": options.concurrency / options.latency, **shown}))


if __name__ == "__main__":
    main()
