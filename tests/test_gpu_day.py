"""The GPU day: attention on the host, verdicts, time limits, the report; and the whole of it as a toy (slow)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu_day import attention_numbers, sizes
from benchmarks.gpu_day.__main__ import BUDGETS, DAY_SECONDS, run_part, write_report
from benchmarks.gpu_day.attention_numbers import check_numbers, coordinates, host_attention
from benchmarks.gpu_day.part import PARTS, Recorder
from benchmarks.gpu_day.predict import work_key
from benchmarks.gpu_day.rows import write_rows
from benchmarks.gpu_day.training import PLANNED, beside_plan, day_recipe, planned_stages
from zephyr_jax.model.attention import attention
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.model.visibility import visible

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "launch" / "gpu_day.sh"


def test_packed_pairs_share_their_prompt_and_nothing_else():
    """In the second of four pairs the rejected answer goes on where the prompt ends, and sees no chosen answer."""
    where = coordinates("pairs", 1, 160)
    positions, segments, branches = (part[0] for part in where)
    second = np.flatnonzero(segments == 2)
    prompt, chosen, rejected = (second[branches[second] == branch] for branch in (0, 1, 2))
    assert positions[rejected[0]] == positions[chosen[0]] == positions[prompt[-1]] + 1
    mask_TS = np.asarray(visible(where, where, window=None))[0]
    assert mask_TS[rejected[-1], prompt].all() and not mask_TS[rejected[-1], chosen].any()
    assert (segments[-10:] == 0).all()


@pytest.mark.parametrize("window", [None, 7])
def test_the_hosts_attention_and_its_gradients_are_those_of_autodiff(window):
    """Grouped heads, packed pairs, padding that nobody reads; against the dense implementation in float32."""
    where = coordinates("pairs", 1, 48)
    random = np.random.RandomState(0)
    q, k, v, dout = (random.standard_normal((48, heads, 8)).astype(np.float32) for heads in (4, 2, 2, 4))
    dout *= (where.segments[0] > 0)[:, None, None]
    host = host_attention(q, k, v, dout, np.asarray(visible(where, where, window=window))[0])

    def dense(q, k, v):
        rows = (part[None] for part in (q, k, v))
        return attention(*rows, query=where, key=where, window=window, implementation="xla")[0]

    out, backward = jax.vjp(dense, *map(jnp.asarray, (q, k, v)))
    real = where.segments[0] > 0
    for name, value in zip(("out", "dq", "dk", "dv"), (out, *backward(jnp.asarray(dout))), strict=True):
        np.testing.assert_allclose(host[name][real], np.asarray(value)[real], atol=2e-5, err_msg=name)


def test_a_kernel_that_lets_answers_see_each_other_is_found(monkeypatch):
    """The planted fault: the branches are dropped. Rows of pairs are then wrong, those of dialogues are not."""

    def faulty(*heads, query, key, **more):
        query, key = (where._replace(branches=jnp.zeros_like(where.branches)) for where in (query, key))
        return attention(*heads, query=query, key=key, **more)

    monkeypatch.setattr(attention_numbers, "attention", faulty)
    monkeypatch.setattr(attention_numbers, "IMPLEMENTATIONS", ("xla",))
    entries: list[dict] = []
    check_numbers(sizes.TOY, entries.append)
    assert {(entry["layout"], entry["ok"]) for entry in entries} == {
        ("pairs", False),
        ("dialogues", True),
        ("plain", True),
    }


def _part(tmp_path: Path, program: str, seconds: float) -> dict:
    result = tmp_path / "part.json"
    command = [sys.executable, "-c", program, str(result)]
    return run_part(command, seconds=seconds, result=result, log=tmp_path / "log")


def test_a_part_that_fails_keeps_what_it_measured_and_says_why(tmp_path):
    part = _part(tmp_path, "import sys; open(sys.argv[1], 'w').write('[{}]'); sys.exit('out of memory')", 30)
    assert part["status"] == "failed" and part["exit_status"] == 1
    assert part["entries"] == [{}] and "out of memory" in part["printed"]
    assert _part(tmp_path, "print('well')", 30)["status"] == "ok"


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    """It starts another process that would write a file after three seconds."""
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    part = _part(tmp_path, program, 1.0)
    assert part["status"] == "out of time" and part["seconds"] < 10 and part["entries"] == []
    time.sleep(3.5)
    assert not late.exists()


def test_every_entry_is_on_disk_when_it_is_recorded(tmp_path):
    record = Recorder(tmp_path / "part.json")
    for count in (1, 2):
        record({"count": count})
        assert len(json.loads((tmp_path / "part.json").read_text())) == count


def test_the_parts_fit_into_the_day():
    """All of what was asked for is in the first parts, whose limits add up to the day's."""
    assert list(BUDGETS) == list(PARTS)
    assert sum(BUDGETS.values()) - BUDGETS["dsft_o1"] <= DAY_SECONDS + 15 and DAY_SECONDS <= 540


def test_the_report_says_what_failed_and_what_was_wrong(tmp_path):
    number = {"layout": "pairs", "window": None, "dtype": "bfloat16", "implementation": "xla"}
    report = {
        "began": "now",
        "toy": False,
        "parts": {
            "numbers": {
                "status": "ok",
                "seconds": 1.0,
                "entries": [number | {"ok": False, "errors": {"out": 0.5}}, number | {"refused": "no GPU"}],
            },
            "trl": {"status": "failed", "seconds": 2.0, "entries": [], "printed": "Traceback: why"},
        },
    }
    write_report(report, tmp_path)
    text = (tmp_path / "gpu_day.md").read_text()
    assert "out 5.0e-01 | WRONG |" in text and "| no GPU | refused |" in text
    assert "## trl: failed" in text and "Traceback: why" in text
    assert json.loads((tmp_path / "gpu_day.json").read_text()) == report


def test_the_model_is_of_a_few_billion_parameters_and_the_toy_is_its_recipe(tmp_path):
    shape = day_recipe(sizes.GPU, tmp_path).model.shape
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(shape)))
    assert 2.1e9 < count < 2.3e9
    toy = day_recipe(sizes.TOY, tmp_path)
    assert toy.model.shape is not None and toy.model.shape.hidden_size == 32
    assert toy.ddpo is not None and toy.ddpo.batch_size == sizes.TOY.num_pairs


def test_made_up_pairs_are_as_long_as_real_ones(tmp_path):
    """Letters of prompt and both answers: real pairs have 573 tokens on average."""
    write_rows(tmp_path, num_dialogues=0, num_pairs=200)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    texts = [(pair["prompt"], pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) for pair in pairs]
    assert 500 < np.mean([sum(map(len, parts)) for parts in texts]) < 650


def test_measured_is_put_beside_planned():
    """10 GB over 8 planned, 0.3 s over a bound of 0.1; without a plan, nothing."""
    figures = {"peak_bytes": 10e9, "step_seconds": {"median": 0.3}}
    plan = {"bytes_per_device": {"peak": 8e9}, "bounds": {"step_seconds": None, "compute_seconds": 0.1}}
    found = beside_plan("dsft", figures, {"dsft": plan})
    assert found["peak_over_plan"] == pytest.approx(1.25) and found["step_over_bound"] == pytest.approx(3)
    assert beside_plan("reference", figures, {"dsft": plan}) == {}


def test_what_was_planned_is_of_this_work():
    """A changed recipe, row or size asks for a new plan: python -m benchmarks.gpu_day.predict."""
    kept = json.loads(PLANNED.read_text())
    assert kept["work"] == work_key() and set(planned_stages()) == {"dsft", "reference", "ddpo"}
    for plan in planned_stages().values():
        assert 8e9 < plan["bytes_per_device"]["peak"] < 72e9 and 0 < plan["bounds"]["step_seconds"] < 2


def test_the_script_shows_its_command_and_wants_a_folder():
    environment = {name: value for name, value in os.environ.items() if name not in ("OUT", "ZEPHYR_PYTHON")}
    run = {"capture_output": True, "text": True, "check": False, "env": environment}
    shown = subprocess.run(["bash", SCRIPT, "--dry-run", "--toy", "some folder"], **run, cwd="/tmp")
    assert shlex.split(shown.stdout) == ["python3", "-m", "benchmarks.gpu_day", "--out", "/tmp/some folder", "--toy"]
    refused = subprocess.run(["bash", SCRIPT], **run)
    assert refused.returncode == 2 and "wanted launch/gpu_day.sh FOLDER" in refused.stderr


@pytest.mark.slow
def test_the_whole_day_runs_as_a_toy(tmp_path):
    environment = os.environ | {"ZEPHYR_PYTHON": sys.executable, "WHEELS": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # the tests' sixteen devices
    command = ["bash", str(SCRIPT), "--toy", str(tmp_path / "day")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "day" / "gpu_day.json").read_text())
    assert [part["status"] for part in report["parts"].values()] == ["ok"] * len(PARTS)
    stages = [entry["stage"] for name in ("dsft", "ddpo") for entry in report["parts"][name]["entries"]]
    assert stages == ["dsft", "reference", "ddpo"]
