"""Greedy answers of ours and of transformers' `generate`, turn by turn on the same prompts; a table, and JSON.

    export ZEPHYR_DATA=.../data                # preferences_eval.jsonl
    make parity                                # brings torch and transformers beside the rest
    .venv/bin/python benchmarks/decode_vs_transformers.py

SmolLM2-135M; the first prompts of the file through the model's own chat template, cut from the left to 64 tokens where
they are longer. Every turn is a process of its own that answers the first 1, 8 and 32 prompts with 64 tokens a row, no
token ending an answer on either side, several times after one that is not counted (compilation, first touches of
memory). Prefill is the time of a one-token answer; what the rest takes is counted as decoding. In float32 the ids of
both sides are compared, and where a row first differs the gap between transformers' two largest logits is shown.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = "builtin:smollm2-135m-instruct"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
# What `generate` tells glibc by itself (zephyr_jax/host_memory.py): the peer gets the same.
ENVIRONMENT |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
SIDES = ("ours", "transformers")


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
    if "ZEPHYR_DATA" not in os.environ:
        sys.exit("ZEPHYR_DATA: not set; wanted the folder that holds preferences_eval.jsonl")
    (HERE / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_model_and_prompts(Path(scratch), arguments)
        turns: dict[str, dict[str, list[Any]]] = {dtype: {side: [] for side in SIDES} for dtype in arguments.dtypes}
        for turn in range(arguments.turns):
            for dtype in arguments.dtypes:
                for side in SIDES:
                    turns[dtype][side].append(run_turn(side, Path(scratch), arguments, dtype=dtype))
                    whole = turns[dtype][side][-1]["whole"]
                    print(f"turn {turn + 1}: {dtype} {side} {whole}", file=sys.stderr, flush=True)
        prompts = json.loads((Path(scratch) / "prompts.json").read_text(encoding="utf-8"))
    report = summarise(arguments, turns, prompt_tokens=[len(prompt) for prompt in prompts])
    print(table(report))
    out = arguments.out or HERE / "results" / f"decode_{report['date']}.json"
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def write_model_and_prompts(scratch: Path, arguments: argparse.Namespace) -> None:
    """Writes the float32 weights as a Hugging Face folder, and the prompts' ids as JSON, for both sides."""
    program = f"""
import json, os, pathlib
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
data = pathlib.Path(os.environ["ZEPHYR_DATA"]) / "preferences_eval.jsonl"
source = Source(source=str(data), limit={max(arguments.batch_sizes)})
rows, _ = read_pairs((source,), seed=0, max_bad_rows=1.0, progress=False)
prompts = [tokenizer.encode_prompt(row.prompt)[-{arguments.prompt_tokens}:].tolist() for row in rows]
(scratch / "prompts.json").write_text(json.dumps(prompts))
"""
    _run([sys.executable, "-c", program])


def run_turn(side: str, scratch: Path, arguments: argparse.Namespace, *, dtype: str) -> dict[str, Any]:
    """One process: seconds of every repeat, and the ids, by batch size."""
    sizes = [str(size) for size in arguments.batch_sizes]
    options = ["--batch-sizes", *sizes, "--max-new-tokens", str(arguments.max_new_tokens)]
    options += ["--repeats", str(arguments.repeats)]
    if side == "ours":
        command = [sys.executable, __file__, "--turn-of-ours", str(scratch), "--dtypes", dtype]
    else:
        command = [arguments.peer_python, str(HERE / "peers/transformers_decode.py"), "--dtype", dtype]
        command += ["--model", str(scratch / "model"), "--prompts", str(scratch / "prompts.json")]
    return json.loads(_run([*command, *options]))


def our_turn(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
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


def _run(command: list[str]) -> str:
    """A process's last line on stdout."""
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ...: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def summarise(
    arguments: argparse.Namespace, turns: dict[str, dict[str, list[dict[str, Any]]]], *, prompt_tokens: list[int]
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
    settings = {
        name: getattr(arguments, name)
        for name in ("batch_sizes", "prompt_tokens", "max_new_tokens", "repeats", "turns")
    }
    first = next(iter(turns.values()))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "versions": first["ours"][0]["versions"] | first["transformers"][0]["versions"],
        "model": MODEL,
        "settings": settings,
        "tokens_of_each_prompt": prompt_tokens,
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
        "new tokens; tokens/s of the whole call, and of decoding alone",
        "",
        "| | batch | ours | transformers | ratio | ours, decoding | transformers, decoding | ratio | equal ids |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in report["results"]:
        ids = entry.get("ids")
        cells = [entry["dtype"], str(entry["batch_size"])]
        for name in ("tokens_per_second", "decode_tokens_per_second"):
            cells += [f"{entry[side][name]:.0f}" for side in SIDES] + [f"{entry[f'ratio_of_{name}']:.2f}"]
        same = f"{ids['equal_rows']} of {ids['rows']}" if ids else ""
        lines.append(f"| {' | '.join(cells)} | {same} |")
    gaps = [gap for entry in report["results"] for gap in entry.get("ids", {}).get("gaps_at_first_difference", [])]
    if gaps:
        shown = ", ".join(f"{gap:.1e}" for gap in sorted(gaps))
        lines += ["", f"Gaps of the two largest logits where rows first differ: {shown}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
