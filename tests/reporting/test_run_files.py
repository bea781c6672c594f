"""A run's folder is read as it stands: half written, torn by a kill, or of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyr_jax.records import InputError
from zephyr_jax.reporting.run_files import read_run


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "dsft" / "metrics.jsonl"
    lines(path, {"step": 0, "eval/loss": 2.0}, {"step": 1, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    run = read_run(tmp_path)
    assert [record["step"] for record in run.stages[0].steps] == [1] and run.stages[0].last_step == 1
    (problem,) = run.problems
    assert problem.startswith("dsft/metrics.jsonl: line 3 is torn")
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n\xff\n{"step": 2, "loss": 0.5}\n')
    run = read_run(tmp_path)
    assert run.stages[0].last_step == 2 and run.problems == (
        "dsft/metrics.jsonl: line 2 is no JSON object; it is left out",
    )


def test_sittings_are_told_apart_and_one_without_an_end_was_killed(tmp_path: Path) -> None:
    lines(
        tmp_path / "ddpo" / "sessions.jsonl",
        {"began": "t0", "after_step": 0, "steps": 9},
        {"began": "t1", "after_step": 0, "steps": 9},
        {"ended": "t2", "after_step": 4, "how": "interrupted"},
        {"began": "t3", "after_step": 4, "steps": 9},
    )
    (stage,) = read_run(tmp_path).stages
    assert [session.how for session in stage.sessions] == [
        "killed, or still going",
        "interrupted",
        "killed, or still going",
    ]
    assert stage.resumed_at == [0, 4] and stage.num_steps == 9 and stage.summary is None


def test_what_is_no_run_is_refused_with_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has neither recipe.yaml nor dsft, ddpo"):
        read_run(tmp_path)
    lines(tmp_path / "tiny" / "recipe.yaml")
    with pytest.raises(InputError, match="did you mean .*tiny"):
        read_run(tmp_path)


def test_what_cannot_be_read_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    lines(tmp_path / "dsft" / "metrics.jsonl", {"step": 1, "loss": 1.0})
    (tmp_path / "held_out.json").write_text("[1]")
    (tmp_path / "dsft" / "summary.json").write_text("{")
    (tmp_path / "recipe.yaml").write_text("name: x\nunheard_of: 1\n")
    run = read_run(tmp_path)
    assert run.recipe is None and run.held_out == {} and run.stages[0].summary is None and len(run.stages[0].steps) == 1
    text = "\n".join(run.problems)
    assert "recipe.yaml is not one of this version: missing required key 'model'" in text
    assert "held_out.json cannot be read: wanted one JSON object" in text and "dsft/summary.json cannot be read" in text
