"""The reference pass of ours and of TRL, turn by turn on the same pairs and weights; prints a table and writes JSON.

    export ZEPHYR_DATA=.../data                # preferences_train.jsonl
    make parity                                # brings torch and TRL beside the rest
    .venv/bin/python -m benchmarks.reference_vs_trl --dtype bfloat16

Ours is the pass that `train` and `score` make (ours/reference_pass.py), TRL's the one that its DPOTrainer makes with
`precompute_ref_log_probs` (peers/trl_reference.py), both in batches of `--batch-size` pairs in file order. Every turn
is a process of its own; the same pairs are scored before, which compiles and warms up and is not timed. The log-probs
of every answer must agree. TRL runs as its users get it; with `--with-tuned-malloc` a second time with what `train`
tells glibc for itself.

FLOP/s are those that the mathematics of the forward pass needs (unique tokens, the head on response tokens alone; no
padding, no attention scores) over a side's time, against the matmul ceiling of the same run.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import OURS, Turn

# Of an answer's log-prob, relative. In bfloat16 the two round at other places.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}
TRAINING_OVER_FORWARD = 3  # write_inputs.py counts the FLOPs of training, whose backward pass has twice those of this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side_by_side.add_side_arguments(
        parser, batch="pairs", limit="pairs, from the file's start (%(default)s)", turns=3, result="reference"
    )
    parser.set_defaults(batch_size=8, limit=16)
    arguments = parser.parse_args()
    if arguments.limit % arguments.batch_size:
        parser.error("wanted a --limit that --batch-size divides")
    data = side_by_side.data_file("preferences_train.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs"
        work = side_by_side.write_inputs(arguments, "pairs", data, max_length=1024, out=inputs)
        options = {"inputs": inputs, "batch_size": arguments.batch_size, "dtype": arguments.dtype}
        sides = {OURS: functools.partial(run_ours, arguments, options)}
        sides |= side_by_side.trl_sides(
            arguments,
            "peers/trl_reference.py",
            lambda result: result,
            model=inputs / "model",
            data=data,
            limit=arguments.limit,
        )
        turns = side_by_side.take_turns(sides, arguments.turns, show="seconds")
    report = summarise(arguments, turns, work)
    print(table(report))
    side_by_side.write_report(report, f"reference_{arguments.dtype}_b{arguments.batch_size}", out=arguments.out)


def run_ours(arguments: argparse.Namespace, options: dict[str, Any], turn: int) -> Turn:
    """One turn of our pass, after the matmul ceiling of the moment."""
    ceiling = side_by_side.measure_ceiling(arguments.our_python, arguments.dtype)
    return side_by_side.run_worker(arguments.our_python, "ours/reference_pass.py", **options) | {"ceiling": ceiling}


def compare_log_probs(ours: Sequence[float], theirs: Sequence[float], *, name: str, dtype: str) -> dict[str, float]:
    """Ends the program unless every answer's log-prob agrees; how far they differ, relative and in nats."""
    what = f"log-probs of {name}"
    side_by_side.check_close(what, ours, theirs, tolerance=math.inf)  # as many, and no NaN
    relative = [b / a for a, b in zip(ours, theirs, strict=True)]
    worst = side_by_side.check_close(f"{what} over ours", [1.0] * len(ours), relative, tolerance=TOLERANCE[dtype])
    nats = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return {"relative": worst, "most_nats": max(nats), "mean_nats": statistics.mean(nats)}


def summarise(arguments: argparse.Namespace, turns: dict[str, list[Turn]], work: dict[str, Any]) -> dict[str, Any]:
    """Medians, spreads, ratios and the differences of the log-probs; ends the program where those are too large."""
    ceiling = statistics.median(result["ceiling"] for result in turns[OURS])
    sides: dict[str, dict[str, Any]] = {}
    for name, results in turns.items():
        seconds = side_by_side.spread([result["seconds"] for result in results])
        flops_per_second = work["flops"] / TRAINING_OVER_FORWARD / seconds["median"]
        sides[name] = {
            "seconds": seconds,
            "pairs_per_second": work["pairs"] / seconds["median"],
            "response_tokens_per_second": work["target_tokens"] / seconds["median"],
            "flops_per_second": flops_per_second,
            "share_of_ceiling": flops_per_second / ceiling,
            "peak_gigabytes": max(result["peak_gigabytes"] for result in results),
            "differences": compare_log_probs(
                turns[OURS][0]["log_probs"], results[0]["log_probs"], name=name, dtype=arguments.dtype
            ),
            "versions": results[0]["versions"],
        }
    ours = sides[OURS]["seconds"]["median"]
    return side_by_side.report_head(vars(arguments)) | {
        "work": work,
        "matmul_ceiling_flops_per_second": ceiling,
        "time_over_ours": {n: side["seconds"]["median"] / ours for n, side in sides.items() if n != OURS},
        "sides": sides,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    settings, work, sides = report["settings"], report["work"], report["sides"]
    rows = [
        [
            name,
            side_by_side.seconds_text(side["seconds"]),
            f"{report['time_over_ours'][name]:.2f}" if name != OURS else "",
            f"{side['pairs_per_second']:.2f}",
            f"{side['response_tokens_per_second']:.0f}",
            f"{side['flops_per_second'] / 1e9:.0f}",
            f"{side['share_of_ceiling']:.0%}",
            f"{side['peak_gigabytes']:.1f}",
            f"{side['differences']['most_nats']:.4f}" if name != OURS else "",
        ]
        for name, side in sides.items()
    ]
    header = ["", "seconds: median (least to most)", "its time / ours", "pairs/s", "response tokens/s", "GFLOP/s"]
    header += ["of the ceiling", "peak GB", "largest difference of a log-prob, nats"]
    return "\n".join(
        [
            f"Reference pass, {settings['dtype']}, batches of {settings['batch_size']}, {work['pairs']} pairs with "
            f"{work['tokens']} unique and {work['target_tokens']} response tokens; matmul ceiling "
            f"{report['matmul_ceiling_flops_per_second'] / 1e9:.0f} GFLOP/s",
            "",
            side_by_side.markdown_table(header, rows),
            "",
            side_by_side.versions_text(sides),
        ]
    )


if __name__ == "__main__":
    main()
