"""A real OpenAI-compatible server on loopback, `transformers serve`: feedback asks it and a model in this process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

for package in ("torch", "fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason="needs transformers[serving]: extra [parity]")

from tests.generation.tiny_chat_model import write_chat_model  # noqa: E402
from zephyr_jax.feedback_recipe import load_feedback_recipe  # noqa: E402
from zephyr_jax.records import Unfinished  # noqa: E402
from zephyr_jax.stages.aif import run_feedback  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model that both sides read; without BOS, which transformers leaves to the chat template alone."""
    return write_chat_model(tmp_path_factory.mktemp("served") / "model", context=4096, bos="never")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """The address of `transformers serve` with that model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
                break
            except OSError:
                assert process.poll() is None, process.communicate()[0].decode()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def _recipe(folder: Path, model: Path, server: str, *overrides: str):
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {number}?"}) + "\n" for number in range(4)))
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: served
output_dir: {folder / "runs"}
models:
  ours: {{model: {model}, dtype: float32, batch_size: 4}}
  served: {{base_url: {server}, model: {model}, concurrency: 2, max_tries: 3, response_format: none}}
teacher: ours
prompts: [{prompts}]
completions: {{students: [ours, served], per_prompt: 2, principles: [], temperature: 0.0, max_tokens: 12}}
annotation: {{rating: logprobs}}
max_failed: 1.0
""")
    return load_feedback_recipe(path, overrides)


def test_the_server_and_the_process_give_the_same_greedy_answers(tmp_path: Path, model: Path, server: str) -> None:
    """Both as students of the same weights, up to the scores: equal answers make no pair."""
    summary = run_feedback(_recipe(tmp_path, model, server))
    rows = [json.loads(line) for line in (tmp_path / "runs/served/aif/feedback.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and summary["completions"]["questions"] == 8
    for row in rows:
        answers = {completion["model"]: completion["response"] for completion in row["completions"]}
        assert answers["ours"] == answers["served"], row
    session = json.loads((tmp_path / "runs/served/aif/sessions.jsonl").read_text())["models"]
    served = session["served"]
    assert (served["answered"], served["failed"], served["troubles"]) == (4, 0, {})


def test_a_teacher_that_cannot_write_json_is_counted_and_no_rating_is_made_up(
    tmp_path: Path, model: Path, server: str
) -> None:
    # Answers that differ: equal ones are not rated.
    asked = ("teacher=served", "completions.temperature=1.0")
    summary = run_feedback(_recipe(tmp_path, model, server, *asked, "annotation={max_tokens: 8, max_tries: 2}"))
    assert summary["annotation"]["without_usable_answer"] == 16
    for line in (tmp_path / "runs/served/aif/feedback.jsonl").read_text().splitlines():
        assert all(not any(c["annotations"].values()) for c in json.loads(line)["completions"])
    with pytest.raises(Unfinished, match="max_failed"):
        run_feedback(
            _recipe(tmp_path, model, server, *asked, "annotation={max_tokens: 8}", "max_failed=0.1", "name=strict")
        )
