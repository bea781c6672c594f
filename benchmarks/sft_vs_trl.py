"""Packed SFT of ours and of TRL, turn by turn on the same dialogues and weights; prints a table and writes JSON.

    export ZEPHYR_DATA=.../data                # chat_train.jsonl
    make parity                                # brings torch and TRL beside the rest
    .venv/bin/python -m benchmarks.sft_vs_trl --dtype bfloat16

Every turn is a process of its own that makes `epochs` passes over the same dialogues, the first of the file that fit a
row whole; the loss is on the assistants' tokens. Each side packs them its own way, so steps differ and what is compared
is target tokens per second over a pass; both must count the same target tokens, and their mean loss over the first pass
must agree. The first pass (compilation, first touches of memory) is left out. TRL runs as its users get it; with
`--with-tuned-malloc` a second time with what `train` tells glibc for itself. FLOP/s as in dpo_vs_peers.py.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import OURS, Turn

# Of the mean loss of a target token over the first pass. The sides pack other dialogues into a step, so that the small
# updates in the pass fall on other ones.
TOLERANCE = {"float32": 0.002, "bfloat16": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side_by_side.add_side_arguments(
        parser, batch="packed rows of an optimizer step", limit="dialogues (%(default)s)", turns=2, result="sft"
    )
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a row (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes of a turn, the first not counted (%(default)s)")
    parser.set_defaults(limit=48)
    arguments = parser.parse_args()
    data = side_by_side.data_file("chat_train.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs"
        work = side_by_side.write_inputs(arguments, "dialogues", data, max_length=arguments.max_length, out=inputs)
        sides = {OURS: lambda turn: run_ours(arguments, Path(scratch) / f"runs{turn}", inputs, work)}
        sides |= side_by_side.trl_sides(
            arguments,
            "peers/trl_sft.py",
            functools.partial(_with_passes, epochs=arguments.epochs),
            inputs=inputs,
            max_length=arguments.max_length,
            epochs=arguments.epochs,
        )
        turns = side_by_side.take_turns(sides, arguments.turns, show="passes")
    check_same_work(arguments, turns, work)
    report = summarise(arguments, turns, work)
    print(table(report))
    side_by_side.write_report(report, f"sft_{arguments.dtype}_b{arguments.batch_size}", out=arguments.out)


def run_ours(arguments: argparse.Namespace, folder: Path, inputs: Path, work: dict[str, Any]) -> Turn:
    """One turn of `train`."""
    overrides = [f"dsft.max_length={arguments.max_length}", f"dsft.data.train=['{inputs / 'dialogues.jsonl'}']"]
    result = side_by_side.run_train(arguments, "dsft", folder, "sft.yaml", overrides)
    result |= {"rows": work["our_rows"], "step_targets": work["our_step_targets"]}
    return _with_passes(result, epochs=arguments.epochs)


def _with_passes(result: Turn, *, epochs: int) -> Turn:
    """The result with the seconds of its counted passes, and the mean loss of a target token over the first one."""
    weights = result["step_targets"]
    first = sum(loss * weight for loss, weight in zip(result["losses"], weights, strict=False)) / sum(weights)
    return result | {"passes": side_by_side.later_passes(result["seconds"], epochs), "first_pass_loss": first}


def check_same_work(arguments: argparse.Namespace, turns: dict[str, list[Turn]], work: dict[str, Any]) -> None:
    """Ends the program unless all sides learnt the same target tokens, at the same loss."""
    if turns[OURS][0]["batches"]["target_tokens"] != arguments.epochs * work["target_tokens"]:
        sys.exit("train counted other target tokens than write_inputs.py")
    for name, results in turns.items():
        got = sum(results[0]["step_targets"])
        if got != work["target_tokens"]:
            sys.exit(f"{name}: {got} target tokens, wanted {work['target_tokens']}: not the same work")
        losses = [turns[OURS][0]["first_pass_loss"]], [results[0]["first_pass_loss"]]
        side_by_side.check_close(f"mean loss of {name}", *losses, tolerance=TOLERANCE[arguments.dtype])


def summarise(arguments: argparse.Namespace, turns: dict[str, list[Turn]], work: dict[str, Any]) -> dict[str, Any]:
    """Medians, spreads and ratios over all counted passes."""
    ceiling = statistics.median(result["ceiling"] for result in turns[OURS])
    sides = {
        name: side_by_side.rates(results, work, ceiling=ceiling)
        | {"steps": len(results[0]["step_targets"])}
        | {entry: results[0][entry] for entry in ("rows", "first_pass_loss")}
        for name, results in turns.items()
    }
    ours = sides[OURS]["target_tokens_per_second"]
    return side_by_side.report_head(vars(arguments)) | {
        "work": work,
        "matmul_ceiling_flops_per_second": ceiling,
        "ours_over": {n: ours / side["target_tokens_per_second"] for n, side in sides.items() if n != OURS},
        "sides": sides,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    settings, work, sides = report["settings"], report["work"], report["sides"]
    rows = [
        [
            name,
            f"{side['target_tokens_per_second']:.0f}",
            f"{report['ours_over'][name]:.2f}" if name != OURS else "",
            side_by_side.seconds_text(side["pass_seconds"]),
            f"{side['rows']} in {side['steps']}",
            f"{side['flops_per_second'] / 1e9:.0f}",
            f"{side['share_of_ceiling']:.0%}",
            f"{side['peak_gigabytes']:.1f}",
            f"{side['first_pass_loss']:.4f}",
        ]
        for name, side in sides.items()
    ]
    header = ["", "target tokens/s", "ours over it", "seconds a pass: median (least to most)", "rows in steps"]
    header += ["GFLOP/s", "of the ceiling", "peak GB", "mean loss, first pass"]
    return "\n".join(
        [
            f"{settings['dtype']}, rows of {settings['max_length']}, {settings['batch_size']} a step, "
            f"{work['dialogues']} dialogues a pass with {work['tokens']} tokens, {work['target_tokens']} of them "
            f"targets; matmul ceiling {report['matmul_ceiling_flops_per_second'] / 1e9:.0f} GFLOP/s",
            "",
            side_by_side.markdown_table(header, rows),
            "",
            side_by_side.versions_text(sides),
        ]
    )


if __name__ == "__main__":
    main()
