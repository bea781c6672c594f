"""The page of a run that has ended, goes on, or was killed: what is not there is not shown, what is wrong is said."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.test_page import Balance
from tests.stages.small_runs import make_recipe
from zephyr_jax import report
from zephyr_jax.evaluation.mt_bench import CATEGORIES
from zephyr_jax.recipe import recipe_to_yaml
from zephyr_jax.reporting.blocks import Block, Intervals, Radar, Sentences
from zephyr_jax.reporting.plots import MAX_POINTS
from zephyr_jax.stages.run_report import renewed_report

pytestmark = pytest.mark.usefixtures("needs_matplotlib")

FACTS = {
    "data": {"train": {"rows": 10, "unreadable": {"no prompt": 1}, "dropped": {"too long": 2}, "cut": {}}},
    "devices": ["cpu:0"],
    "device_kind": "TestChip",
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    "processes": 1,
    "versions": {"jax": "9.9.9", "backend": "cpu"},
}


@pytest.fixture
def needs_matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def step_line(step: int) -> dict[str, Any]:
    rewards = {"chosen": 0.1 * step, "rejected": -0.1 * step, "margins": 0.2 * step, "accuracies": 0.75}
    return {
        "step": step, "epoch": 1.0, "loss": 1 / step, "grad_norm": 1.0, "learning_rate": 1e-3,
        "num_tokens": 10 * step, "tokens_per_second": 1234.0, "step_seconds": 0.1, "data_wait_share": 0.25,
        "rewards/max_abs_margin": 0.0, "logps/chosen": -10.0, "logps/rejected": -11.0,
    } | {f"rewards/{name}": value for name, value in rewards.items()}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A dDPO run that was killed once, went on after step 4, and is at step 6 of 9."""
    folder = tmp_path / "runs" / "small"
    began = {"began": "2026-11-26T00:00:00+00:00", "after_step": 0, "steps": 9} | FACTS
    write_lines(folder / "ddpo" / "sessions.jsonl", [began, began | {"after_step": 4}])
    # One curve: drawing is what takes the time.
    losses = [{"step": step, "loss": 1 / step} for step in range(1, 7)]
    write_lines(folder / "ddpo" / "metrics.jsonl", [{"step": 0, "eval/loss": 1.0}, *losses])
    (folder / "recipe.yaml").write_text(recipe_to_yaml(make_recipe(tmp_path)))
    return folder


def page_of(run: Path, *arguments: str) -> str:
    assert report.main([str(run), *arguments]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    Balance(text)
    assert not re.search(r'(src|href)="http|<script|@import', text)
    return text


def test_a_run_that_goes_on_is_shown_as_such_with_all_its_curves(run: Path, capsys) -> None:
    evaluation = {"step": 0} | {f"eval/{name}": value for name, value in step_line(1).items()}
    write_lines(run / "ddpo" / "metrics.jsonl", [evaluation, *map(step_line, range(1, 7))])
    page = page_of(run)
    assert "dDPO: not ended: step 6 of 9 was logged" in page and "it seems still going" in page
    assert "Taken up again once, after step 4" in page and ">killed</td>" in page and "killed, or still going" in page
    for caption in ("Loss of ddpo", "Rewards, mean over pairs", "Reward margins", "Reward accuracies", "Log-probs",
                    "Learning rate", "Gradient norm", "Tokens a second", "Share of a step"):  # fmt: skip
        assert f'aria-label="{caption}' in page
    assert "Start checked: at step 1 the loss is 1.000000" in page and "TestChip" in page and "9.9.9" in page
    assert "1 no prompt" in page and "2 too long" in page
    assert "model.weights" in page and '<td class="text">ddpo.learning_rate</td><td class="text">0.001</td>' in page
    assert "Evaluation" not in page and "AI feedback" not in page and "Held-out rows" not in page
    said = capsys.readouterr()
    assert said.out == "" and f"report: {run / 'report.html'}" in said.err and "not ended" in said.err


def test_held_out_shares_have_their_number_and_interval(run: Path) -> None:
    """Wilson's interval of 130 in 240 is 47.8 to 60.4; what an earlier version wrote has no number."""
    found = {"loss": 0.5, "exact_answers": 130 / 240, "num_exact": 240, "preference_accuracy": 0.7}
    (run / "held_out.json").write_text(json.dumps({"base": {"loss": 2.0}, "ddpo": found}))
    page = page_of(run)
    assert "54.2% of 240 (47.8 to 60.4)" in page and ">70.0%<" in page and ">0.5000<" in page and ">2.0000<" in page


def test_silence_is_taken_for_a_kill_and_a_torn_line_is_said(run: Path) -> None:
    metrics = run / "ddpo" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 7, "loss"')
    os.utime(metrics, (time.time() - 7200,) * 2)
    page = page_of(run)
    assert "2 h 0 min before this page, so it seems killed" in page and "line 8 is torn" in page


@pytest.mark.parametrize(
    ("how", "said"),
    [("interrupted", "stopped after step 6 of 9"), ("FloatingPointError: nan", "failed after step 6 of 9: Floating")],
)
def test_how_a_sitting_ended_is_said(run: Path, how: str, said: str) -> None:
    with (run / "ddpo" / "sessions.jsonl").open("a") as file:
        file.write(json.dumps({"ended": "2026-11-26T00:01:00+00:00", "after_step": 6, "how": how}) + "\n")
    assert said in page_of(run)


def test_a_long_run_is_drawn_by_means(run: Path) -> None:
    write_lines(run / "ddpo" / "metrics.jsonl", [{"step": n, "loss": 1 / n} for n in range(1, 3 * MAX_POINTS)])
    page = page_of(run)
    assert "means of 3 logged steps" in page and len(page) < 1_000_000


def test_the_evaluation_is_shown_by_the_blocks_it_kept(run: Path) -> None:
    blocks = [
        Block("Any benchmark", [Sentences(["a < b"]), Intervals("L", "", "score", [("ours", 1, 0, 2)], None, "C")]),
        Block("Wheel", [Radar("R", CATEGORIES, {"ours": [5] * 8}, {}, 10, "By category")], {"ours": "5.00"}),
    ]
    content = {"layout": 1, "name": "x", "level": 0.95, "blocks": [block.as_dict() for block in blocks]}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps(content))
    page = page_of(run)
    assert (
        "<h2>Any benchmark</h2>" in page and "a &lt; b" in page and 'aria-label="R"' in page and "<b>5.00</b>" in page
    )
    (run / "evaluation" / "results.json").write_text(json.dumps(content | {"layout": 99}))
    page = page_of(run)
    assert "results.json is left out (layout 99, wanted 1)" in page and "Any benchmark" not in page


def test_other_runs_stand_beside_with_what_differs(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    write_lines(other / "ddpo" / "metrics.jsonl", [{"step": 5, "loss": 0.2}])
    (other / "recipe.yaml").write_text(recipe_to_yaml(make_recipe(tmp_path, name="other", ddpo={"beta": 0.7})))
    page = page_of(run, "--beside", str(other))
    assert "<h2>Beside other runs</h2>" in page and ">small</th>" in page and ">other</th>" in page
    assert ">0.1667</td>" in page and ">0.2000</td>" in page and "<li>ddpo.beta: 0.1 -&gt; 0.7</li>" in page
    assert report.main([str(run), "--beside", str(tmp_path / "nowhere")]) == 2


def test_a_folder_of_feedback_shows_its_counts(tmp_path: Path) -> None:
    (tmp_path / "aif").mkdir()
    counts = {"prompts": 3, "unusable": {"no answer": 1}}
    (tmp_path / "aif" / "completions.counts.json").write_text(json.dumps(counts))
    tally = {"answered": 1000, "kept": 3, "tries": 5, "failed": 0, "prompt_tokens": 7, "completion_tokens": 9}
    write_lines(tmp_path / "aif" / "sessions.jsonl", [{"models": {"teacher": tally}}] * 2)
    page = page_of(tmp_path)
    assert "prompts 3; unusable: no answer 1" in page and "not there" in page and "What was run" not in page
    assert "AI feedback: not ended." in page and "in 2 sittings" in page and ">2\u202f000</td>" in page
    (tmp_path / "aif" / "summary.json").write_text("{}")
    assert "AI feedback: done." in page_of(tmp_path)


def test_the_page_goes_where_it_is_told_and_nothing_half_written_stays(run: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "elsewhere.html"
    assert report.main([str(run), "--out", str(out)]) == 0 and out.exists() and not (run / "report.html").exists()
    before = out.read_bytes()
    monkeypatch.setattr("zephyr_jax.stages.run_report.run_page", lambda *_, **__: 1 / 0)
    assert report.main([str(run), "--out", str(out)]) == 1 and out.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    assert renewed_report(run).startswith("report: not written (ZeroDivisionError")
    monkeypatch.undo()
    assert renewed_report(run) == f"report: {run / 'report.html'}"
    assert renewed_report(run) == f"report: {run / 'report.html'} is there already"


def test_without_matplotlib_both_ways_say_what_to_install(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert report.main([str(run)]) == 2 and "pip install 'zephyr-jax[report]'" in capsys.readouterr().err
    said = renewed_report(run)
    assert "pip install 'zephyr-jax[report]'" in said and f"python -m zephyr_jax.report {run}" in said
    assert not (run / "report.html").exists()


def test_what_is_no_run_is_the_users_mistake(tmp_path: Path, capsys) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "has neither recipe.yaml nor" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_no_jax_is_needed(run: Path, repository: Path) -> None:
    code = "import sys; from zephyr_jax import report; sys.exit(report.main(sys.argv[1:]) or 'jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(run)], cwd=repository, check=True, timeout=120)
