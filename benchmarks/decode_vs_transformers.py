"""Greedy answers of ours and of transformers' `generate`, turn by turn on the same prompts; a table, and JSON.

    export ZEPHYR_DATA=.../data                # preferences_eval.jsonl
    make parity                                # brings torch and transformers beside the rest
    .venv/bin/python -m benchmarks.decode_vs_transformers

SmolLM2-135M; the first prompts of the file through the model's own chat template, cut from the left to 64 tokens where
they are longer. Every turn is a process of its own that answers the first 1, 8 and 32 prompts with 64 tokens a row, no
token ending an answer on either side, several times after one that is not counted (compilation, first touches of
memory). Prefill is the time of a one-token answer; what the rest takes is counted as decoding. In float32 the ids of
both sides are compared, and where a row first differs the gap between transformers' two largest logits is shown. Both
sides have glibc's malloc as `generate` tunes it for itself (zephyr_jax/host_memory.py).
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import HERE, OURS, Turn

MODEL = "builtin:smollm2-135m-instruct"
PEER = "transformers"
SIDES = (OURS, PEER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement in a turn, one more not counted")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--peer-python", default=sys.executable, help="Python of an environment with transformers")
    parser.add_argument("--out", type=Path, help="JSON; default: benchmarks/results/decode_DATE.json")
    parser.add_argument("--turn-of-ours", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn_of_ours:
        print(json.dumps(our_turn(Path(arguments.turn_of_ours), arguments)))
        return
    data = side_by_side.data_file("preferences_eval.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        write_model_and_prompts(Path(scratch), arguments, data)
        sides = {
            f"{dtype} {side}": functools.partial(run_turn, arguments, Path(scratch), dtype, side)
            for dtype in arguments.dtypes
            for side in SIDES
        }
        taken = side_by_side.take_turns(sides, arguments.turns, show="whole")
        prompts = json.loads((Path(scratch) / "prompts.json").read_text(encoding="utf-8"))
    turns = {dtype: {side: taken[f"{dtype} {side}"] for side in SIDES} for dtype in arguments.dtypes}
    report = summarise(arguments, turns, prompt_tokens=[len(prompt) for prompt in prompts])
    print(table(report))
    side_by_side.write_report(report, "decode", out=arguments.out)


def write_model_and_prompts(scratch: Path, arguments: argparse.Namespace, data: Path) -> None:
    """Writes the float32 weights as a Hugging Face folder, and the prompts' ids as JSON, for both sides."""
    program = f"""
import json, pathlib
import jax
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.data.sources import read_pairs
from zephyr_jax.model.hf_folder import save_model
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.recipe import Source

weights = open_weights({MODEL!r})
tokenizer = load_chat_tokenizer(weights.tokenizer, chat_template="tokenizer", bos="auto")
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
params = weights.load_params(jax.tree.map(lambda _: here, abstract_params(weights.shape)))
scratch = pathlib.Path({str(scratch)!r})
save_model(params, scratch / "model", shape=weights.shape, dtype="float32", tokenizer=tokenizer)
source = Source(source={str(data)!r}, limit={max(arguments.batch_sizes)})
rows, _ = read_pairs((source,), seed=0, max_bad_rows=1.0, progress=False)
prompts = [tokenizer.encode_prompt(row.prompt)[-{arguments.prompt_tokens}:].tolist() for row in rows]
(scratch / "prompts.json").write_text(json.dumps(prompts))
"""
    side_by_side.run_process([sys.executable, "-c", program])


def run_turn(arguments: argparse.Namespace, scratch: Path, dtype: str, side: str, turn: int) -> Turn:
    """One process: seconds of every repeat, and the ids, by batch size; the most memory that it had."""
    sizes = [str(size) for size in arguments.batch_sizes]
    options = ["--batch-sizes", *sizes, "--max-new-tokens", str(arguments.max_new_tokens)]
    options += ["--repeats", str(arguments.repeats)]
    if side == OURS:
        command = [sys.executable, __file__, "--turn-of-ours", str(scratch), "--dtypes", dtype]
    else:
        command = [arguments.peer_python, str(HERE / "peers/transformers_decode.py"), "--dtype", dtype]
        command += ["--model", str(scratch / "model"), "--prompts", str(scratch / "prompts.json")]
    output, peak = side_by_side.run_process([*command, *options], malloc_tuned=True)
    return json.loads(output) | {"peak_gigabytes": peak}


def our_turn(scratch: Path, arguments: argparse.Namespace) -> Turn:
    """A turn of ours, inside its process."""
    import numpy as np

    from zephyr_jax.generation.loading import open_answer_model
    from zephyr_jax.generation.responses import Response, generate_responses

    prompts = json.loads((scratch / "prompts.json").read_text(encoding="utf-8"))
    prompts = [np.array(prompt, np.int32) for prompt in prompts]
    model = open_answer_model(str(scratch / "model"), dtype=arguments.dtypes[0], num_devices=1).load()
    assert model.params is not None

    def generate(size: int, num_tokens: int) -> list[Response]:
        return generate_responses(
            model.params,
            prompts[:size],
            shape=model.source.shape,
            settings=model.settings,
            stop_ids=(),
            max_new_tokens=num_tokens,
            batch_size=size,
        )

    result: dict[str, Any] = {"whole": {}, "prefill": {}, "ids": {}}
    for size in arguments.batch_sizes:
        for part, num_tokens in (("whole", arguments.max_new_tokens), ("prefill", 1)):
            seconds = []
            for _ in range(arguments.repeats + 1):
                began = time.perf_counter()
                answers = generate(size, num_tokens)
                seconds.append(time.perf_counter() - began)
            result[part][size] = seconds[1:]
            if part == "whole":
                result["ids"][size] = [answer.ids.tolist() for answer in answers]
    result["versions"] = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    return result


def summarise(
    arguments: argparse.Namespace, turns: dict[str, dict[str, list[Turn]]], *, prompt_tokens: list[int]
) -> dict[str, Any]:
    """Medians over the repeats of all turns, tokens per second, ratios; and how far the float32 ids are the same."""
    results = []
    for dtype, sides in turns.items():
        for size in map(str, arguments.batch_sizes):
            entry: dict[str, Any] = {"dtype": dtype, "batch_size": int(size)}
            for side, of_side in sides.items():
                whole, prefill = (
                    sorted(seconds for turn in of_side for seconds in turn[part][size]) for part in ("whole", "prefill")
                )
                tokens = int(size) * arguments.max_new_tokens
                decoding = statistics.median(whole) - statistics.median(prefill)
                entry[side] = {
                    "seconds": whole,
                    "prefill_seconds": prefill,
                    "tokens_per_second": tokens / statistics.median(whole),
                    "decode_tokens_per_second": (tokens - int(size)) / decoding,
                }
            for name in ("tokens_per_second", "decode_tokens_per_second"):
                entry[f"ratio_of_{name}"] = entry["ours"][name] / entry["transformers"][name]
            if dtype == "float32":
                theirs = sides["transformers"][0]
                entry["ids"] = compare_ids(sides["ours"][0]["ids"][size], theirs["ids"][size], theirs["gaps"][size])
            results.append(entry)
    first = next(iter(turns.values()))
    return side_by_side.report_head(vars(arguments)) | {
        "versions": {side: first[side][0]["versions"] for side in SIDES},
        "model": MODEL,
        "tokens_of_each_prompt": prompt_tokens,
        "peak_gigabytes": {
            dtype: {side: max(turn["peak_gigabytes"] for turn in sides[side]) for side in SIDES}
            for dtype, sides in turns.items()
        },
        "results": results,
    }


def compare_ids(ours: list[list[int]], theirs: list[list[int]], gaps: list[list[float]]) -> dict[str, Any]:
    """How many rows are equal, and where the others first differ the gap between the two largest logits."""
    firsts = [
        next((step for step, (a, b) in enumerate(zip(*rows, strict=True)) if a != b), None)
        for rows in zip(ours, theirs, strict=True)
    ]
    differing = [(row, step) for row, step in enumerate(firsts) if step is not None]
    return {
        "rows": len(ours),
        "equal_rows": len(ours) - len(differing),
        "gaps_at_first_difference": [gaps[row][step] for row, step in differing],
    }


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    lengths, settings = report["tokens_of_each_prompt"], report["settings"]
    lines = [
        f"{report['model']}, greedy, prompts of {min(lengths)} to {max(lengths)} tokens, {settings['max_new_tokens']} "
        "new tokens; tokens/s of the whole call (least to most), and of decoding alone",
        "",
        "| | batch | ours | transformers | ratio | ours, decoding | transformers, decoding | ratio | equal ids |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in report["results"]:
        ids = entry.get("ids")
        cells = [entry["dtype"], str(entry["batch_size"])]
        tokens = entry["batch_size"] * settings["max_new_tokens"]
        for side in SIDES:
            rates = [tokens / seconds for seconds in entry[side]["seconds"]]
            cells.append(f"{entry[side]['tokens_per_second']:.0f} ({min(rates):.0f} to {max(rates):.0f})")
        cells.append(f"{entry['ratio_of_tokens_per_second']:.2f}")
        cells += [f"{entry[side]['decode_tokens_per_second']:.0f}" for side in SIDES]
        cells.append(f"{entry['ratio_of_decode_tokens_per_second']:.2f}")
        same = f"{ids['equal_rows']} of {ids['rows']}" if ids else ""
        lines.append(f"| {' | '.join(cells)} | {same} |")
    gaps = [gap for entry in report["results"] for gap in entry.get("ids", {}).get("gaps_at_first_difference", [])]
    if gaps:
        shown = ", ".join(f"{gap:.1e}" for gap in sorted(gaps))
        lines += ["", f"Gaps of the two largest logits where rows first differ: {shown}."]
    peaks = "; ".join(
        f"{dtype} " + ", ".join(f"{side} {peak:.1f} GB" for side, peak in of_sides.items())
        for dtype, of_sides in report["peak_gigabytes"].items()
    )
    lines += ["", f"Peak memory of a turn, all its batches: {peaks}."]
    versions = {side: {"versions": of_side} for side, of_side in report["versions"].items()}
    return "\n".join([*lines, side_by_side.versions_text(versions)])


if __name__ == "__main__":
    main()
