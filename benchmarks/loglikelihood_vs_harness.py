"""Log-likelihoods a second under lm-evaluation-harness: our model beside the harness's own Hugging Face model on a CPU.

    export ZEPHYR_DATA=.../data                # academic/
    make parity                                # brings torch, transformers and lm_eval beside the rest
    .venv/bin/python -m benchmarks.loglikelihood_vs_harness --dtype float32

SmolLM2-135M on the first questions of ARC-Easy and HellaSwag, four choices each, no examples: the very same list of
requests is handed to both in one call. Every turn is a process of its own (harness_turn.py). The peer pads batches of
`--batch-size` requests, as its users choose it; ours packs rows with their contexts shared, of about 1 000 tokens a
step, whatever that size. The peer runs as its users get it, and with `--with-tuned-malloc` a second time with what our
side tells glibc for itself. The log-likelihoods of every choice must agree, and in float32 acc and acc_norm be equal.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import MALLOC_TUNED, OURS, Turn

PEER = "harness, hf"
# Of a log-likelihood, in nats. In bfloat16 the two round at other places; how far apart they are is in the report.
TOLERANCE = {"float32": 1e-3, "bfloat16": math.inf}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=8, help="requests of a batch of the peer's (%(default)s)")
    parser.add_argument("--limits", default="100,60", help="questions of ARC-Easy and HellaSwag (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--our-python", default=sys.executable, help="Python of our side; default: this one")
    parser.add_argument("--peer-python", default=sys.executable, help="Python of an environment with the peer")
    parser.add_argument("--with-tuned-malloc", action="store_true", help="the peer also with our malloc settings")
    parser.add_argument(
        "--out", type=Path, help="JSON; default: benchmarks/results/loglikelihood_DTYPE_bSIZE_DATE.json"
    )
    arguments = parser.parse_args()
    data = side_by_side.data_file("academic")
    with tempfile.TemporaryDirectory() as scratch:
        options = {"data": data, "dtype": arguments.dtype, "batch_size": arguments.batch_size}
        options |= {"limits": arguments.limits, "model": write_model(arguments.our_python, Path(scratch) / "model")}

        def run(turn: int, *, side: str, python: str, malloc_tuned: bool = False) -> Turn:
            return side_by_side.run_worker(python, "harness_turn.py", malloc_tuned=malloc_tuned, side=side, **options)

        peer = functools.partial(run, side="hf", python=arguments.peer_python)
        sides = {OURS: functools.partial(run, side="ours", python=arguments.our_python), PEER: peer}
        if arguments.with_tuned_malloc:
            sides[PEER + MALLOC_TUNED] = functools.partial(peer, malloc_tuned=True)
        turns = side_by_side.take_turns(sides, arguments.turns, show="seconds")
    report = summarise(arguments, turns)
    print(table(report))
    side_by_side.write_report(report, f"loglikelihood_{arguments.dtype}_b{arguments.batch_size}", out=arguments.out)


def write_model(python: str, folder: Path) -> Path:
    """SmolLM2 as a float32 Hugging Face folder with its tokenizer, for both sides."""
    program = f"""
import jax
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.model.hf_folder import save_model
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.model.sources import open_weights

weights = open_weights("builtin:smollm2-135m-instruct")
tokenizer = load_chat_tokenizer(weights.tokenizer, chat_template="tokenizer", bos="auto")
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
params = weights.load_params(jax.tree.map(lambda _: here, abstract_params(weights.shape)))
save_model(params, {str(folder)!r}, shape=weights.shape, dtype="float32", tokenizer=tokenizer)
"""
    side_by_side.run_process([python, "-c", program])
    return folder


def summarise(arguments: argparse.Namespace, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """By task and side: seconds, requests a second, and our rate over it; ends the program where answers differ."""
    tasks: dict[str, Any] = {}
    for task, wanted in turns[OURS][0]["answers"].items():
        found: dict[str, Any] = {}
        for name, results in turns.items():
            seconds = side_by_side.spread([result["seconds"][task] for result in results])
            answers = results[0]["answers"][task]
            worst = side_by_side.check_close(
                f"log-likelihoods of {task} by {name}", wanted, answers, tolerance=TOLERANCE[arguments.dtype]
            )
            scores = results[0]["accuracies"][task]
            if arguments.dtype == "float32" and scores != turns[OURS][0]["accuracies"][task]:
                sys.exit(f"accuracies of {task} by {name}: {scores}, of ours: {turns[OURS][0]['accuracies'][task]}")
            found[name] = {
                "accuracies": scores,
                "seconds": seconds,
                "requests_per_second": len(wanted) / seconds["median"],
                "difference_nats": {
                    "most": worst,
                    "mean": statistics.mean(abs(a - b) for a, b in zip(wanted, answers, strict=True)),
                },
            }
        ours = found[OURS]["requests_per_second"]
        over = {name: ours / side["requests_per_second"] for name, side in found.items() if name != OURS}
        tasks[task] = {"requests": len(wanted), "sides": found, "ours_over": over}
    sides = {
        name: {
            "peak_gigabytes": max(result["peak_gigabytes"] for result in results),
            "versions": results[0]["versions"],
        }
        for name, results in turns.items()
    }
    return side_by_side.report_head(vars(arguments)) | {"tasks": tasks, "sides": sides}


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    rows = []
    for task, found in report["tasks"].items():
        for name, side in found["sides"].items():
            row = [f"{task}, {name}", f"{found['requests']}", side_by_side.seconds_text(side["seconds"])]
            row += [f"{side['requests_per_second']:.1f}"]
            row += [f"{found['ours_over'][name]:.2f}" if name != OURS else ""]
            row += [f"{report['sides'][name]['peak_gigabytes']:.1f}"]
            row += [" / ".join(f"{100 * value:.1f}" for value in side["accuracies"].values())]
            row += [f"{side['difference_nats']['most']:.1e}" if name != OURS else ""]
            rows.append(row)
    header = ["", "requests", "seconds: median (least to most)", "requests/s", "ours over it", "peak GB"]
    header.append("acc / acc_norm, %")
    header.append("largest difference, nats")
    settings = report["settings"]
    return "\n".join(
        [
            f"Log-likelihoods under lm-evaluation-harness, SmolLM2-135M, {settings['dtype']}, the peer's batches of "
            f"{settings['batch_size']}, {settings['turns']} turns",
            "",
            side_by_side.markdown_table(header, rows),
            "",
            side_by_side.versions_text(report["sides"]),
        ]
    )


if __name__ == "__main__":
    main()
