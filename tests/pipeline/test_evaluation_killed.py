"""Questions to report with a model in this process and a judge behind a server, killed in both halves of the work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluation.test_answer_run import answer_or_judgment, served, write_recipe
from tests.generation.tiny_chat_model import write_chat_model
from tests.judging.stub_server import StubServer
from zephyr_jax import evaluate

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

JUDGE_SLOTS = 4
SAMPLED = "mt_bench.answering.temperatures={}"  # all at 0.7, as AlpacaEval's are: fewer programs to compile
NUM_TURNS = 16 * 2
FILES = (
    "results.json",
    "mt_bench/model_answer/ours.jsonl",
    "mt_bench/model_judgment/judge_single.jsonl",
    "alpaca_eval/ours/model_outputs.json",
    "alpaca_eval/ours/judge/annotations.json",
)


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "runs/chain/evaluation" / name).read_bytes() for name in FILES}


def _answers_kept(folder: Path) -> list[str]:
    """The lines of the model's journal, a torn one at the end left out."""
    kept = []
    for path in (folder / "runs/calls").glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept += [line for line in lines if line.endswith("\n") and '"call": "mt_bench answer' in line]
    return kept


def _kill_when(is_time: Callable[[], bool], command: list[str], repository: Path) -> None:
    process = subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE)
    while not is_time() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    said = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, f"it ended before it was killed: {said}"


def test_killed_while_it_answers_and_while_it_judges_it_makes_the_files_of_an_untouched_run(
    tmp_path: Path, repository: Path
) -> None:
    model = write_chat_model(tmp_path / "model")
    models = {"ours": f"{{model: {model}, batch_size: 4}}", "judge": ""}
    with StubServer(answer=answer_or_judgment, latency=0.05) as server:
        models["judge"] = served(server.url, "judge")
        for name in ("untouched", "killed"):
            (tmp_path / name).mkdir()
        assert evaluate.main(["--config", str(write_recipe(tmp_path / "untouched", models)), SAMPLED]) == 0
        wanted = _contents(tmp_path / "untouched")
        num_judgments = len(server.calls)
        assert sum(server.calls.values()) == num_judgments
        server.calls.clear()

        folder = tmp_path / "killed"
        command = [sys.executable, "-m", "zephyr_jax.evaluate", "--config", str(write_recipe(folder, models)), SAMPLED]
        _kill_when(lambda: len(_answers_kept(folder)) >= NUM_TURNS // 4, command, repository)
        kept = _answers_kept(folder)
        assert NUM_TURNS // 4 <= len(kept) < NUM_TURNS
        num_before = server.num_answers
        _kill_when(lambda: server.num_answers >= num_before + num_judgments // 3, command, repository)
        assert _answers_kept(folder)[: len(kept)] == kept and len(_answers_kept(folder)) == NUM_TURNS
        assert evaluate.main(command[3:]) == 0
        assert _contents(folder) == wanted
        assert len(_answers_kept(folder)) == NUM_TURNS  # none was asked for twice
        repeated = sum(server.calls.values()) - len(server.calls)
        assert len(server.calls) == num_judgments and repeated <= 2 * JUDGE_SLOTS
