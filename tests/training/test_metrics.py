"""What a run writes of itself, and what it takes back when it goes on from an earlier step."""

from __future__ import annotations

import json

import pytest

from zephyr_jax.training.metrics import MetricsLog, ProgressBar, keep_lines


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _write(folder, *records, after_step=0):
    log = MetricsLog(folder, after_step=after_step)
    for record in records:
        log.write(record)
    log.close()


RECORDS = [
    {"step": 0, "eval/loss": 4.5},
    {"step": 1, "loss": 4.0},
    {"step": 2, "loss": 3.0},
    {"step": 2, "eval/loss": 3.5},
    {"step": 3, "loss": 2.0},
]


def test_one_line_a_record_in_order(tmp_path):
    _write(tmp_path, *RECORDS)
    assert _lines(tmp_path) == RECORDS


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    """A run is watched, and may be killed."""
    log = MetricsLog(tmp_path, after_step=0)
    log.write(RECORDS[0])
    assert _lines(tmp_path) == RECORDS[:1]
    log.close()


def test_going_on_after_a_step_takes_out_later_lines_and_keeps_its_own(tmp_path):
    """The checkpoint of step 2 was saved after its line and its evaluation; both stay."""
    _write(tmp_path, *RECORDS)
    _write(tmp_path, {"step": 3, "loss": 9.0}, after_step=2)
    assert _lines(tmp_path) == [*RECORDS[:4], {"step": 3, "loss": 9.0}]


def test_a_line_torn_by_a_kill_is_taken_out(tmp_path):
    _write(tmp_path, *RECORDS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    _write(tmp_path, {"step": 4, "loss": 1.0}, after_step=3)
    assert _lines(tmp_path) == [*RECORDS, {"step": 4, "loss": 1.0}]


def test_a_run_from_the_start_has_no_lines_of_an_earlier_attempt(tmp_path):
    """No checkpoint was saved, so step 0 is evaluated again: its line must not stand there twice."""
    _write(tmp_path, *RECORDS)
    _write(tmp_path, RECORDS[0], after_step=0)
    assert _lines(tmp_path) == RECORDS[:1]


def test_a_line_ends_at_a_newline_alone(tmp_path):
    """Answers may hold U+0085, U+2028 or U+2029, which end a line for str.splitlines but not in JSON lines."""
    path = tmp_path / "samples.jsonl"
    records = [{"step": 0, "response": "a\u2028b\u0085c\u2029d"}, {"step": 2, "response": "e"}, {"step": 4}]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    keep_lines(path, lambda record: record["step"] < 4)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == records[:2]
    keep_lines(tmp_path / "nowhere.jsonl", lambda record: True)
    assert not (tmp_path / "nowhere.jsonl").exists()


def test_records_are_those_of_all_sittings(tmp_path):
    _write(tmp_path, *RECORDS)
    log = MetricsLog(tmp_path, after_step=2)
    log.write({"step": 3, "loss": 9.0})
    assert log.records() == [*RECORDS[:4], {"step": 3, "loss": 9.0}]
    log.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    """The interface that is used: add_scalar(name, value, step), once for everything but the step itself."""
    pytest.importorskip("tensorboardX", reason="needs the extra [tensorboard]")
    log = MetricsLog(tmp_path, after_step=0, trackers=("tensorboard",))
    log.write({"step": 1, "loss": 4.0})
    log.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_the_bar_shows_rate_loss_and_where_it_goes_on(capsys):
    bar = ProgressBar("dsft", total_steps=10, done_steps=4)
    bar.advance(loss=1.23456, tokens_per_second=12345.6)
    bar.say("step 5 was evaluated")
    bar.close()
    shown = capsys.readouterr()
    assert "5/10" in shown.err and "loss 1.2346, 12,346 tokens/s" in shown.err and "step 5 was evaluated" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(("share", "shown"), [(0.0, False), (0.05, False), (0.12, True)])
def test_the_bar_tells_of_waiting_for_data_where_it_is_more_than_a_twentieth(share, shown, capsys):
    bar = ProgressBar("dsft", total_steps=10, done_steps=4)
    bar.advance(loss=1.0, tokens_per_second=10.0, data_wait_share=share)
    bar.close()
    assert (", 12% waiting for data" in (err := capsys.readouterr().err)) == shown == ("waiting" in err)
