"""dDPO steps of ours, of TRL and of tunix, turn by turn on the same pairs and weights; prints a table and writes JSON.

    export ZEPHYR_DATA=.../data                # preferences_train.jsonl
    make parity                                # brings torch and TRL beside the rest
    .venv/bin/python -m benchmarks.dpo_vs_peers --dtype bfloat16 --batch-size 2

Every turn is a process of its own that makes `epochs` passes over the first pairs of the file, in file order: the same
optimizer steps on the same batches on all sides, AdamW, float32 masters. On ours and on TRL's side the reference
log-probs are computed before and not timed. The first pass (compilation, first touches of memory) is left out. What is
compared is the time of a pass: its batches differ, so a median over steps would depend on which batch stands in the
middle. TRL runs as its users get it; with `--with-tuned-malloc` a second time with what `train` tells glibc for itself.
tunix (`--tunix-python`, see peers/tunix_dpo.py) computes the reference in its steps, so it is compared with our pass
and our reference pass together.

FLOP/s are those that the mathematics needs (unique tokens forward and backward, the head on response tokens alone;
nothing recomputed, no padding, no attention scores) over a side's time, against the matmul ceiling of the same run.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import OURS, Turn

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # of a step's loss
TUNIX = "tunix"
TUNIX_WARM_UP_STEPS = 2  # as in peers/tunix_dpo.py
# tunix's llama3 has its weights in the compute dtype. In bfloat16 updates of 1e-6 do not move them, so that its losses
# can agree only before the first update (the first step's learning rate is 0).
TUNIX_STEPS_COMPARED_IN_BFLOAT16 = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side_by_side.add_side_arguments(
        parser,
        batch="pairs of an optimizer step",
        limit="pairs, from the file's start; default: four batches",
        turns=2,
        result="dpo",
    )
    parser.add_argument("--epochs", type=int, default=3, help="passes of a turn, the first not counted (%(default)s)")
    parser.add_argument("--tunix-python", help="Python of an environment with tunix; default: without it")
    parser.add_argument(
        "--trl-gradient-checkpointing", action="store_true", help="where TRL's batch does not fit in memory otherwise"
    )
    arguments = parser.parse_args()
    arguments.limit = arguments.limit or 4 * arguments.batch_size
    if arguments.limit % arguments.batch_size or arguments.epochs < 2:
        parser.error("wanted a --limit that --batch-size divides, and at least 2 --epochs")
    if (
        arguments.tunix_python
        and arguments.limit // arguments.batch_size * (arguments.epochs - 1) < TUNIX_WARM_UP_STEPS
    ):
        parser.error("tunix: wanted a run longer than one pass by the two steps that warm it up; raise --epochs")
    data = side_by_side.data_file("preferences_train.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs"
        work = side_by_side.write_inputs(arguments, "pairs", data, max_length=1024, out=inputs)
        sides = {OURS: lambda turn: run_ours(arguments, Path(scratch) / f"runs{turn}", inputs)}
        sides |= side_by_side.trl_sides(
            arguments,
            "peers/trl_dpo.py",
            functools.partial(_with_passes, epochs=arguments.epochs),
            model=inputs / "model",
            data=data,
            limit=arguments.limit,
            epochs=arguments.epochs,
            gradient_checkpointing=arguments.trl_gradient_checkpointing,
        )
        if arguments.tunix_python:
            sides[TUNIX] = lambda turn: run_tunix(arguments, inputs)
        turns = side_by_side.take_turns(sides, arguments.turns, show="passes")
    check_same_work(arguments, turns)
    report = summarise(arguments, turns, work)
    print(table(report))
    side_by_side.write_report(report, f"dpo_{arguments.dtype}_b{arguments.batch_size}", out=arguments.out)


def run_ours(arguments: argparse.Namespace, folder: Path, inputs: Path) -> Turn:
    """One turn of `train`; for tunix the reference pass alone after it."""
    train = f"[{{source: '${{ZEPHYR_DATA}}/preferences_train.jsonl', limit: {arguments.limit}}}]"
    result = side_by_side.run_train(arguments, "ddpo", folder, "dpo.yaml", [f"ddpo.data.train={train}"])
    result = _with_passes(result, epochs=arguments.epochs)
    if arguments.tunix_python:
        options = {"inputs": inputs, "batch_size": arguments.batch_size, "dtype": arguments.dtype}
        reference = side_by_side.run_worker(arguments.our_python, "ours/reference_pass.py", **options)
        result["reference_seconds"] = reference["seconds"]
    return result


def _with_passes(result: Turn, *, epochs: int) -> Turn:
    return result | {"passes": side_by_side.later_passes(result["seconds"], epochs)}


def run_tunix(arguments: argparse.Namespace, inputs: Path) -> Turn:
    """One turn of tunix: two steps to warm up, then each batch once."""
    result = side_by_side.run_worker(
        arguments.tunix_python,
        "peers/tunix_dpo.py",
        inputs=inputs,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        dtype=arguments.dtype,
    )
    return result | {"passes": [round(sum(result["seconds"][TUNIX_WARM_UP_STEPS:]), 3)]}


def check_same_work(arguments: argparse.Namespace, turns: dict[str, list[Turn]]) -> None:
    """Ends the program unless all sides took the same steps on all pairs: their losses must agree."""
    ours = turns[OURS][0]["losses"]
    for name, results in turns.items():
        theirs, expected = results[0]["losses"], ours
        if name == TUNIX:
            expected = ours[: arguments.limit // arguments.batch_size + TUNIX_WARM_UP_STEPS]
            if arguments.dtype == "bfloat16" and len(theirs) == len(expected):
                theirs, expected = (losses[:TUNIX_STEPS_COMPARED_IN_BFLOAT16] for losses in (theirs, expected))
        side_by_side.check_close(f"losses of {name}", expected, theirs, tolerance=TOLERANCE[arguments.dtype])


def summarise(arguments: argparse.Namespace, turns: dict[str, list[Turn]], work: dict[str, Any]) -> dict[str, Any]:
    """Medians, spreads and ratios over all counted passes."""
    ceiling = statistics.median(result["ceiling"] for result in turns[OURS])
    sides = {name: side_by_side.rates(results, work, ceiling=ceiling) for name, results in turns.items()}
    ours = sides[OURS]["pass_seconds"]["median"]
    ratios = {name: side["pass_seconds"]["median"] / ours for name, side in sides.items() if name != OURS}
    report = side_by_side.report_head(vars(arguments)) | {"work": work, "matmul_ceiling_flops_per_second": ceiling}
    if TUNIX in sides:
        reference = statistics.median(result["reference_seconds"] for result in turns[OURS])
        ratios[TUNIX] = sides[TUNIX]["pass_seconds"]["median"] / (ours + reference)
        report["our_reference_seconds"] = reference
    return report | {"time_over_ours": ratios, "sides": sides}


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    settings, work, sides = report["settings"], report["work"], report["sides"]
    rows = []
    for name, side in sides.items():
        rows.append(
            [
                name,
                side_by_side.seconds_text(side["pass_seconds"]),
                f"{report['time_over_ours'][name]:.2f}" if name != OURS else "",
                f"{side['target_tokens_per_second']:.0f}",
                f"{side['flops_per_second'] / 1e9:.0f}",
                f"{side['share_of_ceiling']:.0%}",
                f"{side['peak_gigabytes']:.1f}",
            ]
        )
    header = ["", "seconds a pass: median (least to most)", "its time / ours", "response tokens/s", "GFLOP/s"]
    header += ["of the ceiling", "peak GB"]
    notes = [f"TRL's time over ours: {report['time_over_ours']['trl']:.2f}, with malloc as it comes on its side."]
    if settings["trl_gradient_checkpointing"]:
        notes.append("TRL recomputes activations (gradient checkpointing).")
    if TUNIX in sides:
        notes.append(
            f"tunix's pass holds the reference; it is compared with our pass and our reference pass of "
            f"{report['our_reference_seconds']:.1f} s together."
        )
        if settings["dtype"] == "bfloat16":
            notes.append("Its weights are bfloat16, which such small updates do not move: its losses stay.")
    losses = ["Losses of the steps, one line a side:", ""]
    losses += [f"    {name:<18} " + " ".join(f"{loss:.4f}" for loss in side["losses"]) for name, side in sides.items()]
    return "\n".join(
        [
            f"{settings['dtype']}, batches of {settings['batch_size']}, {work['pairs']} pairs a pass with "
            f"{work['tokens']} unique and {work['target_tokens']} response tokens; matmul ceiling "
            f"{report['matmul_ceiling_flops_per_second'] / 1e9:.0f} GFLOP/s",
            "",
            side_by_side.markdown_table(header, rows),
            "",
            " ".join(notes),
            side_by_side.versions_text(sides),
            *losses,
        ]
    )


if __name__ == "__main__":
    main()
