"""The side-by-side benchmarks: their arithmetic and checks on made-up turns, their recipes, their --help."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import dpo_vs_peers, loglikelihood_vs_harness, reference_vs_trl, sft_vs_trl, side_by_side, tokenising
from zephyr_jax.recipe import load_recipe

TUNED = "trl, malloc tuned"
DPO = argparse.Namespace(
    dtype="float32", batch_size=2, limit=4, epochs=3, turns=2, tunix_python="", trl_gradient_checkpointing=False
)
WORK = {"pairs": 4, "tokens": 900, "target_tokens": 600, "flops": 12e9}
VERSIONS = {"jax": "0.0", "python": "3.0"}


def _turn(seconds: list[float], peak: float, **more) -> dict:
    result = {"seconds": seconds, "losses": [0.7] * len(seconds), "versions": VERSIONS, "peak_gigabytes": peak}
    return result | {"passes": side_by_side.later_passes(seconds, 3), "ceiling": 6e9} | more


def _dpo_turns() -> dict[str, list[dict]]:
    """Two steps a pass: [9 9 | 1 2 | 2 2] counts 3 and 4, our second turn 3 and 6; median 3.5. TRL's are 7 and 5.25."""
    return {
        "ours": [_turn([9, 9, 1, 2, 2, 2], 1.5), _turn([9, 9, 1, 2, 3, 3], 2.5)],
        "trl": [_turn([9, 9, 3, 4, 3, 4], 4.0)] * 2,
        TUNED: [_turn([9, 9, 3, 2.25, 3, 2.25], 5.0)] * 2,
    }


def test_the_first_pass_is_left_out_and_the_ratio_is_of_medians():
    report = dpo_vs_peers.summarise(DPO, _dpo_turns(), WORK)
    side = report["sides"]["ours"]
    assert side["pass_seconds"] == {"median": 3.5, "least": 3, "most": 6, "all": [3, 3, 4, 6]}
    assert report["time_over_ours"] == {"trl": 2.0, TUNED: 1.5}
    assert side["peak_gigabytes"] == 2.5 and report["sides"][TUNED]["peak_gigabytes"] == 5.0
    assert side["share_of_ceiling"] == pytest.approx(12e9 / 3.5 / 6e9)


def test_the_headline_is_against_trl_as_it_comes_and_names_the_jax_of_our_side():
    text = dpo_vs_peers.table(dpo_vs_peers.summarise(DPO, _dpo_turns(), WORK))
    assert "TRL's time over ours: 2.00, with malloc as it comes" in text
    assert "| trl, malloc tuned | 5.2 (5.2 to 5.2) | 1.50 |" in text
    assert "ours: jax 0.0, python 3.0" in text and "tunix" not in text


def test_tunix_is_compared_with_our_pass_and_our_reference_pass_together():
    """Ours 3.5 and 1.5 s for the reference, tunix 50 s: 10 times."""
    turns = _dpo_turns()
    turns["ours"] = [turn | {"reference_seconds": 1.5} for turn in turns["ours"]]
    tunix = {"seconds": [90, 60, 25, 25], "losses": [0.7] * 4, "passes": [50.0]}
    turns["tunix"] = [tunix | {"versions": VERSIONS, "peak_gigabytes": 9.0}]
    dpo_vs_peers.check_same_work(DPO, turns)
    report = dpo_vs_peers.summarise(DPO, turns, WORK)
    assert report["time_over_ours"]["tunix"] == pytest.approx(10.0)
    assert "our reference pass of 1.5 s together" in dpo_vs_peers.table(report)


def test_tunix_in_bfloat16_is_held_to_our_losses_before_the_first_update_alone():
    arguments = argparse.Namespace(**(vars(DPO) | {"dtype": "bfloat16"}))
    turns = _dpo_turns()
    turns["tunix"] = [{"losses": [0.75, 0.65, 9.0, 9.0]}]
    dpo_vs_peers.check_same_work(arguments, turns)
    for losses in ([0.75, 0.45, 0.7, 0.7], [0.7] * 3):
        turns["tunix"] = [{"losses": losses}]
        with pytest.raises(SystemExit, match="losses of tunix.*not the same work"):
            dpo_vs_peers.check_same_work(arguments, turns)


@pytest.mark.parametrize("losses", [[0.7] * 5, [0.7] * 5 + [0.702], [0.7] * 5 + [float("nan")]])
def test_sides_that_did_other_work_end_the_program(losses):
    turns = _dpo_turns()
    dpo_vs_peers.check_same_work(DPO, turns)
    turns[TUNED][0]["losses"] = losses
    with pytest.raises(SystemExit, match="malloc tuned.*not the same work"):
        dpo_vs_peers.check_same_work(DPO, turns)


@pytest.mark.parametrize("kind", ["pairs", "dialogues"])
def test_rows_that_do_not_all_fit_whole_end_the_program_before_any_side_runs(kind, monkeypatch, tmp_path):
    """TRL leaves out a pair whose prompt alone is too long, where we would cut it."""
    asked = argparse.Namespace(limit=4, batch_size=2, our_python="python")
    written = {"pairs": 4, "dialogues": 4}
    monkeypatch.setattr(side_by_side, "run_worker", lambda *_, **__: written)
    where = {"max_length": 8, "out": tmp_path}
    assert side_by_side.write_inputs(asked, kind, tmp_path, **where) == written
    written[kind] = 3
    with pytest.raises(SystemExit, match=f"3 of 4 {kind} fit whole"):
        side_by_side.write_inputs(asked, kind, tmp_path, **where)


def test_sft_is_compared_in_target_tokens_a_second_whatever_the_packing():
    """600 targets a pass: ours in 2 steps of 2 s, TRL's in 3 of 3 s."""
    arguments = argparse.Namespace(dtype="float32", batch_size=2, limit=4, max_length=64, epochs=3, turns=1)
    work = {"dialogues": 4, "tokens": 900, "target_tokens": 600, "flops": 12e9}
    batches = {"target_tokens": 1800}
    ours = _turn([9, 9, 2, 2, 2, 2], 1.5, rows=3, step_targets=[400, 200], batches=batches)
    trl = _turn([9, 9, 9, 3, 3, 3, 3, 3, 3], 2.5, rows=5, step_targets=[250, 250, 100])
    turns = {"ours": [sft_vs_trl._with_passes(ours, epochs=3)], "trl": [sft_vs_trl._with_passes(trl, epochs=3)]}
    sft_vs_trl.check_same_work(arguments, turns, work)
    report = sft_vs_trl.summarise(arguments, turns, work)
    assert report["sides"]["ours"]["target_tokens_per_second"] == 150 and report["ours_over"] == {"trl": 9 / 4}
    assert "| trl | 67 | 2.25 | 9.0 (9.0 to 9.0) | 5 in 3 |" in sft_vs_trl.table(report)
    turns["trl"][0]["step_targets"] = [250, 250, 99]
    with pytest.raises(SystemExit, match="trl: 599 target tokens, wanted 600"):
        sft_vs_trl.check_same_work(arguments, turns, work)


def test_the_mean_loss_of_a_pass_is_weighted_by_target_tokens():
    """(3 x 1 + 1 x 5) / 4 = 2; the second pass is not in it."""
    turn = {"seconds": [1, 1, 1, 1], "losses": [1.0, 5.0, 9.0, 9.0], "step_targets": [3, 1]}
    assert sft_vs_trl._with_passes(turn, epochs=2)["first_pass_loss"] == 2.0


def test_reference_log_probs_are_compared_pair_by_pair():
    arguments = argparse.Namespace(dtype="float32", batch_size=2, limit=4, turns=2)
    ours = {"seconds": 2.0, "log_probs": [-100.0, -50.0], "versions": VERSIONS, "peak_gigabytes": 1.0, "ceiling": 8e9}
    trl = ours | {"seconds": 7.0, "log_probs": [-100.0, -50.004]}
    report = reference_vs_trl.summarise(arguments, {"ours": [ours, ours], "trl": [trl, trl]}, WORK)
    assert report["time_over_ours"] == {"trl": 3.5}
    assert report["sides"]["trl"]["differences"]["most_nats"] == pytest.approx(0.004)
    assert report["sides"]["ours"]["share_of_ceiling"] == 12e9 / 3 / 2.0 / 8e9  # a third of training's FLOPs
    assert "| trl | 7.0 (7.0 to 7.0) | 3.50 | 0.57 | 86 | 1 | 7% | 1.0 | 0.0040 |" in reference_vs_trl.table(report)
    with pytest.raises(SystemExit, match="log-probs of trl"):
        reference_vs_trl.compare_log_probs([-100.0], [-101.0], name="trl", dtype="float32")
    with pytest.raises(SystemExit, match="log-probs of trl.*2 of ours and 1 of theirs"):
        reference_vs_trl.compare_log_probs([-100.0, -50.0], [-100.0], name="trl", dtype="float32")


def test_log_likelihoods_a_second_are_compared_task_by_task():
    """Ours 2 requests in 1 s, the peer's in 3: 3 times."""
    arguments = argparse.Namespace(dtype="float32", batch_size=8, turns=2)
    ours = {"seconds": {"arc_easy": 1.0}, "answers": {"arc_easy": [-3.0, -5.0]}, "versions": VERSIONS}
    ours |= {"peak_gigabytes": 1.0, "accuracies": {"arc_easy": {"acc": 1.0, "acc_norm": 0.0}}}
    peer = ours | {"seconds": {"arc_easy": 3.0}, "answers": {"arc_easy": [-3.0, -5.0005]}}
    turns = {"ours": [ours, ours], loglikelihood_vs_harness.PEER: [peer, peer]}
    report = loglikelihood_vs_harness.summarise(arguments, turns)
    assert report["tasks"]["arc_easy"]["ours_over"] == {"harness, hf": 3.0}
    line = "| arc_easy, harness, hf | 2 | 3.0 (3.0 to 3.0) | 0.7 | 3.00 | 1.0 | 100.0 / 0.0 | 5.0e-04 |"
    assert line in loglikelihood_vs_harness.table(report)
    peer["accuracies"] = {"arc_easy": {"acc": 1.0, "acc_norm": 1.0}}
    with pytest.raises(SystemExit, match="accuracies of arc_easy by harness, hf"):
        loglikelihood_vs_harness.summarise(arguments, turns)
    peer["answers"] = {"arc_easy": [-3.0, -5.002]}
    with pytest.raises(SystemExit, match="log-likelihoods of arc_easy by harness, hf"):
        loglikelihood_vs_harness.summarise(arguments, turns)


def test_a_peer_gets_malloc_as_it_comes_unless_it_is_tuned(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    assert not any(name.startswith("MALLOC_") for name in side_by_side.environment())
    assert side_by_side.environment(malloc_tuned=True)["MALLOC_ARENA_MAX"] == "1"


def test_a_process_gives_its_last_line_and_its_peak_memory():
    """100 MB held on top of what Python itself needs.

    Measured from a small process, as the benchmarks are: Linux counts the starting process's own size into its child's.
    """
    program = "x = bytearray(10**8); x[::4096] = b'1' * len(x[::4096]); print('no'); print('{\"a\": 1}')"
    measure = (
        "import sys; from benchmarks.side_by_side import run_process; "
        f"print(*run_process([sys.executable, '-c', {program!r}]), sep='|')"
    )
    result = subprocess.run(
        [sys.executable, "-c", measure], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    line, peak = result.stdout.split("|")
    assert json.loads(line) == {"a": 1} and 0.1 < float(peak) < 0.5
    with pytest.raises(SystemExit, match="exit status 3\n.*why"):
        side_by_side.run_process([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])


def test_sides_take_turns(capsys):
    order = []
    sides = {name: lambda turn, name=name: order.append((turn, name)) or {"passes": [turn]} for name in ("a", "b")}
    results = side_by_side.take_turns(sides, 2, show="passes")
    assert order == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert results["b"] == [{"passes": [0]}, {"passes": [1]}]
    assert "turn 2: b: passes [1]" in capsys.readouterr().err


def test_a_report_says_when_where_and_with_what(tmp_path):
    report = side_by_side.report_head({"limit": 4, "out": tmp_path / "x", "trl_python": "/home/me/python"})
    side_by_side.write_report(report, "name", out=tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written == report and written["settings"] == {"limit": 4}  # no places on this machine
    assert written["machine"]["cores"] >= 1 and written["machine"]["memory_gigabytes"] > 0


def test_a_table_is_markdown():
    text = side_by_side.markdown_table(["", "a", "b"], [["x", "1", "2"]])
    assert text == "|  | a | b |\n|---|--:|--:|\n| x | 1 | 2 |"


def test_the_recipes_take_rows_in_file_order_and_evaluate_nothing(monkeypatch):
    monkeypatch.setenv("ZEPHYR_DATA", "/nowhere")
    for file, stage in (("dpo", "ddpo"), ("sft", "dsft")):
        recipe = load_recipe(f"benchmarks/{file}.yaml", [])
        options = getattr(recipe, stage)
        assert recipe.stages == (stage,) and not options.shuffle and not options.data.eval


def _shows_help(module: str, monkeypatch, capsys) -> bool:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{module}").main()
    return ended.value.code == 0 and "--batch-size" in capsys.readouterr().out


@pytest.mark.parametrize(
    "module",
    [
        "decode_vs_transformers",
        "dpo_vs_peers",
        "loglikelihood_vs_harness",
        "sft_vs_trl",
        "reference_vs_trl",
        "token_table",
        "ours.write_inputs",
        "ours.reference_pass",
    ],
)
def test_every_program_shows_its_help(module, monkeypatch, capsys):
    assert _shows_help(module, monkeypatch, capsys)


@pytest.mark.parity
def test_the_worker_of_the_harness_shows_its_help(monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="needs the [parity] extra")
    assert _shows_help("harness_turn", monkeypatch, capsys)


@pytest.mark.parity
@pytest.mark.parametrize("module", ["trl_dpo", "trl_reference", "trl_sft"])
def test_every_worker_of_trl_shows_its_help(module, monkeypatch, capsys):
    pytest.importorskip("trl", reason="needs the [parity] extra")
    assert _shows_help(f"peers.{module}", monkeypatch, capsys)


def test_the_worker_of_tunix_shows_its_help(monkeypatch, capsys):
    pytest.importorskip("tunix", reason="needs the environment named in benchmarks/peers/tunix_dpo.py")
    assert _shows_help("peers.tunix_dpo", monkeypatch, capsys)


@pytest.mark.parametrize("kind", ["chats", "pairs"])
def test_tokenising_is_measured_in_one_process_and_in_two(kind, tmp_path):
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    row = {"messages": turns} if kind == "chats" else {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    figures = tokenising.measure(
        tmp_path / "rows.jsonl", kind=kind, tokenizer_name="builtin:bytes", num_rows=300, num_workers=2
    )
    assert figures["rows"] == 300 and set(figures["tokenising_rows_per_second"]) == {"1", "2"}
    assert json.loads(json.dumps(figures)) == figures
    rates = figures["reading_rows_per_second"], figures["tokenising_rows_per_second"]["2"]
    wanted = 200_000 * (1 / rates[0] + 2 / rates[1] / 16)
    assert figures["extrapolated_seconds_200k_rows_16_cores"] == pytest.approx(wanted, rel=0.05, abs=1)
