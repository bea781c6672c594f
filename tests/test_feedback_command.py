"""The command `feedback`: killed and started again it repeats at most what was in flight; mistakes are said in full."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.judging.stub_server import StubServer
from tests.stages.small_feedback import write_recipe
from zephyr_jax.feedback import main

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

IN_FLIGHT = 12  # three students of four slots each; the teacher has four


def _start(recipe: Path, repository: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zephyr_jax.feedback", "--config", str(recipe), *overrides]
    return subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE)


def _outputs(folder: Path) -> dict[str, bytes]:
    names = ("completions.jsonl", "feedback.jsonl", "preferences.jsonl", "summary.json")
    return {name: (folder / "runs/small/aif" / name).read_bytes() for name in names}


def _untouched(folder: Path, num_prompts: int) -> dict[str, bytes]:
    folder.mkdir()
    with StubServer() as server:
        assert main(["--config", str(write_recipe(folder, server.url, num_prompts=num_prompts))]) == 0
        assert max(server.calls.values()) == 1
    return _outputs(folder)


@pytest.mark.parametrize(("num_kills", "num_prompts"), [(3, 12), pytest.param(20, 100, marks=pytest.mark.slow)])
def test_killed_at_random_it_repeats_at_most_what_was_in_flight(
    tmp_path: Path, repository: Path, num_kills: int, num_prompts: int
) -> None:
    """SIGKILL after a random number of answers of each session; the files are those of an untouched run."""
    wanted = _untouched(tmp_path / "untouched", num_prompts)
    folder, draw = tmp_path / "killed", random.Random(num_kills)
    folder.mkdir()
    with StubServer(latency=0.03) as server:
        recipe = write_recipe(folder, server.url, num_prompts=num_prompts)
        for _ in range(num_kills):
            process = _start(recipe, repository)
            last = server.num_answers + draw.randrange(1, 5 * num_prompts // num_kills)
            while server.num_answers < last and process.poll() is None:
                time.sleep(0.002)
            process.kill()
            assert process.wait() == -signal.SIGKILL, "it ended before it was killed: ask for less"
            process.communicate()
        process = _start(recipe, repository)
        said = process.communicate()[1].decode()
        assert process.returncode == 0, said
    assert _outputs(folder) == wanted
    repeated = sum(server.calls.values()) - len(server.calls)
    assert len(server.calls) == 6 * num_prompts and repeated <= IN_FLIGHT * num_kills
    print(f"{num_kills} kills: {len(server.calls)} questions, {repeated} asked again")


def test_ctrl_c_waits_for_what_is_in_flight_and_loses_nothing(tmp_path: Path, repository: Path) -> None:
    with StubServer(latency=0.3) as server:
        process = _start(write_recipe(tmp_path, server.url), repository)
        while server.in_flight < IN_FLIGHT and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1].decode()
        assert process.returncode == 130 and "waiting for the calls in flight" in said and "Traceback" not in said
        kept = sum(len(path.read_text().splitlines()) for path in (tmp_path / "runs/calls").iterdir())
        assert kept == server.num_requests <= IN_FLIGHT + 4  # what was ready behind them is not sent


def test_a_changed_recipe_is_refused_key_by_key_and_what_decides_no_answer_may_change(tmp_path: Path, capsys) -> None:
    with StubServer() as server:
        recipe = str(write_recipe(tmp_path, server.url))
        assert main(["--config", recipe]) == 0
        assert main(["--config", recipe, "models.a.concurrency=2", "budget.requests=1000", "max_failed=0.5"]) == 0
        assert main(["--config", recipe, "completions.per_prompt=3", "seed=1"]) == 2
        said = capsys.readouterr().err
        assert "completions.per_prompt: 2 -> 3" in said and "seed: 42 -> 1" in said and "concurrency" not in said
        assert main(["--config", recipe, "completions.per_prompt=3", "--new-run"]) == 0
    assert (tmp_path / "runs/small-2/aif/preferences.jsonl").exists()


def test_a_mistake_can_be_mended_under_the_same_name(tmp_path: Path, capsys) -> None:
    """Nothing was done under the recipe with the wrong path: the name is not taken."""
    with StubServer() as server:
        recipe = str(write_recipe(tmp_path, server.url))
        assert main(["--config", recipe, "prompts=[nowhere.jsonl]"]) == 2
        assert "nowhere.jsonl" in capsys.readouterr().err
        assert main(["--config", recipe]) == 0


def test_ctrl_c_while_prompts_are_read_ends_at_once(tmp_path: Path, repository: Path) -> None:
    with StubServer() as server:
        recipe = write_recipe(tmp_path, server.url)
        with (tmp_path / "prompts.jsonl").open("w") as file:
            file.writelines(f'{{"prompt": "Question {number}?"}}\n' for number in range(400_000))
        process = _start(recipe, repository)
        assert process.stderr is not None
        said = b""
        while b"reading rows" not in said:
            said += process.stderr.read(1)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        said += process.communicate()[1]
        assert process.returncode == 130 and time.monotonic() - started < 1.0, said.decode()
        assert b"Traceback" not in said and server.num_requests == 0


def test_a_spent_budget_is_status_1_without_a_traceback(tmp_path: Path, capsys) -> None:
    with StubServer() as server:
        assert main(["--config", str(write_recipe(tmp_path, server.url)), "budget.requests=5"]) == 1
    said = capsys.readouterr().err
    assert "stopped: budget.requests is 5" in said and "start again" in said and "Traceback" not in said


def test_a_dry_run_asks_nobody_and_writes_nothing(tmp_path: Path, capsys) -> None:
    with StubServer() as server:
        assert main(["--config", str(write_recipe(tmp_path, server.url)), "--dry-run"]) == 0
        assert server.num_requests == 0
    assert "annotation" in capsys.readouterr().out and not (tmp_path / "runs").exists()


def test_its_pairs_and_rows_are_what_other_commands_read(tmp_path: Path) -> None:
    from zephyr_jax.data.sources import parse_pair

    with StubServer() as server:
        assert main(["--config", str(write_recipe(tmp_path, server.url))]) == 0
    lines = (tmp_path / "runs/small/aif/preferences.jsonl").read_text().splitlines()
    assert all(parse_pair(json.loads(line), "x").score_chosen is not None for line in lines) and len(lines) >= 6


def test_a_second_run_on_the_same_answers_is_refused(tmp_path: Path, repository: Path, capsys) -> None:
    with StubServer(latency=0.5) as server:
        recipe = write_recipe(tmp_path, server.url)
        process = _start(recipe, repository)
        while server.in_flight < IN_FLIGHT and process.poll() is None:
            time.sleep(0.005)
        assert main(["--config", str(recipe), "name=other"]) == 2
        assert "another run is writing these answers" in capsys.readouterr().err
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
