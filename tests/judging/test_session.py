"""Signals in a session: the first asks for a stop, the second ends the process whatever is going on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.evaluation.live import in_session
from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax.judging.protocol import ChatRequest
from zephyr_jax.judging.session import Session
from zephyr_jax.respondent_options import ModelOptions

CODE = """
import asyncio, pathlib, sys, time
from types import SimpleNamespace
from zephyr_jax.judging.session import Session
from zephyr_jax.respondent_options import Budget

async def job():
    print("begun", flush=True)
    await asyncio.to_thread(time.sleep, 60)  # as a model in this process answers

class Caller:
    respondent = SimpleNamespace(window=1)

async def work():
    async with Session({}, command="test", run="run", folder=pathlib.Path(sys.argv[1]), budget=Budget()) as session:
        await session.run_jobs("jobs", {Caller(): [(0, job)]})

asyncio.run(work())
"""


def test_the_second_signal_ends_at_once_though_a_thread_is_busy(tmp_path: Path, repository: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=repository, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert any("once more ends at once" in line for line in process.stderr)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=10) == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_models_in_this_process_make_room_for_each_other(tmp_path: Path, capsys) -> None:
    """Two of 7 billion parameters need not fit one GPU: who is not asked has no weights there, and reads them again."""
    models = {
        name: ModelOptions(model=str(write_chat_model(tmp_path / name, context=256, seed=seed)))
        for seed, name in enumerate(("first", "second"))
    }

    async def ask(session: Session) -> list[list[bool]]:
        loaded = []
        for turn, name in enumerate(("first", "second", "first")):
            caller = session.caller(name)
            request = ChatRequest(({"role": "user", "content": f"{turn}?"},), max_tokens=2)
            await session.run_jobs(name, {caller: [(0, lambda: caller.ask(request, call="test"))]})
            respondents = [session.caller(other).respondent for other in models]
            loaded.append([respondent._model.params is not None for respondent in respondents])
        return loaded

    assert in_session(ask, models) == [[True, False], [False, True], [True, False]]
    assert capsys.readouterr().err.count("test: loading first") == 2
