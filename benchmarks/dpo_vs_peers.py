"""dDPO steps of ours and of TRL, turn by turn on the same pairs and weights; prints a table and writes JSON.

    export ZEPHYR_DATA=.../data                # preferences_train.jsonl
    make parity                                # brings torch and TRL beside the rest
    .venv/bin/python benchmarks/dpo_vs_peers.py --dtype bfloat16 --batch-size 2

Every turn is a process of its own that makes `epochs` passes over the first pairs of the file, in file order: the same
optimizer steps on the same batches on both sides, the reference log-probs computed before and not timed, float32
masters, AdamW. The first pass (compilation, first touches of memory) is left out. What is compared is the time of a
pass: its batches differ, so a median over steps would depend on which batch stands in the middle. FLOP/s are those that
the mathematics needs (unique tokens forward and backward, the head on response tokens alone; nothing recomputed, no
padding, no attention scores) over ours' time, against the matmul ceiling measured in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
# What `train` tells glibc by itself (zephyr_jax/host_memory.py): the peer gets the same, and gains by it as well.
ENVIRONMENT |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--limit", type=int, default=8, help="pairs, from the file's start")
    parser.add_argument("--epochs", type=int, default=3, help="passes of a turn, the first one not counted")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--trl-python", default=sys.executable, help="Python of an environment with TRL")
    parser.add_argument("--out", type=Path, help="JSON; default: benchmarks/results/dpo_DTYPE_bSIZE_DATE.json")
    arguments = parser.parse_args()
    if "ZEPHYR_DATA" not in os.environ:
        sys.exit("ZEPHYR_DATA: not set; wanted the folder that holds preferences_train.jsonl")
    data = Path(os.environ["ZEPHYR_DATA"]) / "preferences_train.jsonl"
    (HERE / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        work = write_model_and_count(model, data, limit=arguments.limit)
        turns: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
        ceilings = []
        for turn in range(arguments.turns):
            ceilings.append(json.loads(_run([sys.executable, str(HERE / "matmul_ceiling.py")])[0])[arguments.dtype])
            turns["ours"].append(run_ours(arguments, Path(scratch) / f"runs{turn}"))
            turns["trl"].append(run_trl(arguments, model, data))
            for name, results in turns.items():
                print(f"turn {turn + 1}: {name} {results[-1]['passes']}", file=sys.stderr, flush=True)
    check_same_work(arguments, turns, work)
    report = summarise(arguments, turns, work, ceiling=statistics.median(ceilings))
    print(table(report))
    name = f"dpo_{arguments.dtype}_b{arguments.batch_size}_{report['date']}.json"
    out = arguments.out or HERE / "results" / name
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def write_model_and_count(folder: Path, data: Path, *, limit: int) -> dict[str, float]:
    """Writes the float32 weights as a Hugging Face folder; counts the tokens and FLOPs of one pass over the pairs."""
    program = f"""
import json
import jax
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.data.preparing import prepare_pairs
from zephyr_jax.data.sources import read_pairs
from zephyr_jax.model.hf_folder import save_model
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.recipe import Source

weights = open_weights("builtin:smollm2-135m-instruct")
tokenizer = load_chat_tokenizer(weights.tokenizer, chat_template="zephyr", bos="auto", empty_system_turn=False)
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
abstract = abstract_params(weights.shape)
params = weights.load_params(jax.tree.map(lambda _: here, abstract))
save_model(params, {str(folder)!r}, shape=weights.shape, dtype="float32", tokenizer=tokenizer)
rows, report = read_pairs((Source(source={str(data)!r}, limit={limit}),), seed=0, max_bad_rows=1.0, progress=False)
pairs = prepare_pairs(rows, tokenizer, max_length=1024, max_prompt_length=512, row_length=2048, report=report)
in_layers = sum(leaf.size for leaf in jax.tree.leaves(abstract["layers"]) if leaf.ndim > 2)
head = weights.shape.hidden_size * weights.shape.vocab_size
tokens, responses = int(pairs.lengths.sum()), int(pairs.lengths[:, 1:].sum())
flops = 6 * (in_layers * tokens + head * responses)
print(json.dumps({{"pairs": len(pairs), "tokens": tokens, "response_tokens": responses, "flops": flops}}))
"""
    return json.loads(_run([sys.executable, "-c", program])[0])


def run_ours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One turn of `train`, as a user runs it."""
    command = [sys.executable, "-m", "zephyr_jax.train", "--config", str(HERE / "dpo.yaml")]
    command += [f"output_dir={folder}", f"model.compute_dtype={arguments.dtype}", f"ddpo.epochs={arguments.epochs}"]
    command += [f"ddpo.batch_size={arguments.batch_size}"]
    command += [f"ddpo.data.train=[{{source: '${{ZEPHYR_DATA}}/preferences_train.jsonl', limit: {arguments.limit}}}]"]
    _, peak = _run(command)
    lines = [json.loads(line) for line in (folder / "ours/ddpo/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((folder / "ours/ddpo/summary.json").read_text(encoding="utf-8"))
    steps = [line for line in lines if "loss" in line]
    result = {"seconds": [s["step_seconds"] for s in steps], "losses": [s["loss"] for s in steps]}
    return result | {"versions": summary["versions"], "peak_gigabytes": peak} | _passes(result, arguments.epochs)


def run_trl(arguments: argparse.Namespace, model: Path, data: Path) -> dict[str, Any]:
    """One turn of TRL."""
    command = [arguments.trl_python, str(HERE / "peers/trl_dpo.py"), "--model", str(model), "--data", str(data)]
    command += ["--limit", str(arguments.limit), "--batch-size", str(arguments.batch_size)]
    command += ["--epochs", str(arguments.epochs), "--dtype", arguments.dtype]
    output, peak = _run(command)
    result = json.loads(output)
    return result | {"peak_gigabytes": peak} | _passes(result, arguments.epochs)


def _passes(result: dict[str, Any], epochs: int) -> dict[str, list[float]]:
    """Seconds of each pass but the first."""
    steps = len(result["seconds"]) // epochs
    return {"passes": [round(sum(result["seconds"][steps * e : steps * (e + 1)]), 3) for e in range(1, epochs)]}


def _run(command: list[str]) -> tuple[str, float]:
    """A process's last line on stdout, and its peak memory in GB."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command[:4])} ...: exit status {process.returncode}\n{errors.read()[-3000:]}")
    lines = output.strip().splitlines()
    return (lines[-1] if lines else ""), usage.ru_maxrss / 1e6


def check_same_work(
    arguments: argparse.Namespace, turns: dict[str, list[dict[str, Any]]], work: dict[str, float]
) -> None:
    """Ends the program unless both sides took the same steps on all pairs: their losses of all passes must agree."""
    tolerance = {"float32": 1e-3, "bfloat16": 0.1}[arguments.dtype]
    ours, trl = (turns[name][0]["losses"] for name in ("ours", "trl"))
    if work["pairs"] != arguments.limit or len(ours) != len(trl):
        sys.exit(f"{work['pairs']} of {arguments.limit} pairs fit, steps {len(ours)} and {len(trl)}: not the same work")
    worst = max(abs(a - b) for a, b in zip(ours, trl, strict=True))
    if worst > tolerance:
        sys.exit(f"losses differ by up to {worst:.4f}, wanted {tolerance}: not the same work\n{ours}\n{trl}")


def summarise(
    arguments: argparse.Namespace, turns: dict[str, list[dict[str, Any]]], work: dict[str, float], *, ceiling: float
) -> dict[str, Any]:
    """Medians, spreads and ratios over all counted passes."""
    sides: dict[str, dict[str, Any]] = {}
    for name, results in turns.items():
        passes = sorted(seconds for result in results for seconds in result["passes"])
        median = statistics.median(passes)
        sides[name] = {
            "pass_seconds": {"median": median, "least": passes[0], "most": passes[-1], "all": passes},
            "response_tokens_per_second": work["response_tokens"] / median,
            "flops_per_second": work["flops"] / median,
            "share_of_ceiling": work["flops"] / median / ceiling,
            "peak_gigabytes": max(result["peak_gigabytes"] for result in results),
            "losses": results[0]["losses"],
            "versions": results[0]["versions"],
        }
    ratio = sides["trl"]["pass_seconds"]["median"] / sides["ours"]["pass_seconds"]["median"]
    settings = {name: getattr(arguments, name) for name in ("dtype", "batch_size", "limit", "epochs", "turns")}
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    today = datetime.date.today().isoformat()
    return {"date": today, "machine": machine, "python": platform.python_version()} | {
        "settings": settings,
        "work": work,
        "matmul_ceiling_flops_per_second": ceiling,
        "trl_over_ours": ratio,
        "sides": sides,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    settings, work = report["settings"], report["work"]
    lines = [
        f"{settings['dtype']}, batches of {settings['batch_size']}, {work['pairs']} pairs a pass with {work['tokens']} "
        f"unique and {work['response_tokens']} response tokens; matmul ceiling "
        f"{report['matmul_ceiling_flops_per_second'] / 1e9:.0f} GFLOP/s",
        "",
        "| | seconds a pass: median (least to most) | response tokens/s | GFLOP/s | of the ceiling | peak GB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, side in report["sides"].items():
        seconds = side["pass_seconds"]
        lines.append(
            f"| {name} | {seconds['median']:.1f} ({seconds['least']:.1f} to {seconds['most']:.1f}) "
            f"| {side['response_tokens_per_second']:.0f} | {side['flops_per_second'] / 1e9:.0f} "
            f"| {side['share_of_ceiling']:.0%} | {side['peak_gigabytes']:.1f} |"
        )
    ours, peer = report["sides"]["ours"]["losses"], report["sides"]["trl"]["losses"]
    lines += ["", f"TRL's time over ours: {report['trl_over_ours']:.2f}. Losses of all passes, ours and TRL's:"]
    lines += [" ".join(f"{loss:.4f}" for loss in losses) for losses in (ours, peer)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
