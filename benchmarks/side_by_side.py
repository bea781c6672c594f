"""What every benchmark of this folder does: processes with their peak memory, turns, spreads and ratios, JSON, a table.

A side is one program that does the work: ours, or a peer's in an environment of its own. Sides take turns, each turn a
process of its own, so that a slow minute of the machine falls on all of them.
Not here: what is measured (dpo_vs_peers.py and its neighbours).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "ours"
MALLOC_TUNED = ", malloc tuned"
# What `train` tells glibc by itself (zephyr_jax/host_memory.py), for a peer whose user knows of it.
MALLOC_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
Turn = dict[str, Any]
Sides = dict[str, Callable[[int], Turn]]  # by name, (number of the turn from 0) -> result


def add_side_arguments(parser: argparse.ArgumentParser, *, batch: str, limit: str, turns: int, result: str) -> None:
    """The options that every comparison with TRL has.

    Args:
      parser: gets them.
      batch: what `--batch-size` counts.
      limit: what `--limit` counts; its default is the caller's.
      turns: default of `--turns`.
      result: the default file of results/, for the help.
    """
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=2, help=f"{batch} (%(default)s)")
    parser.add_argument("--limit", type=int, help=limit)
    parser.add_argument("--turns", type=int, default=turns, help="(%(default)s)")
    parser.add_argument("--our-python", default=sys.executable, help="Python of our side; default: this one")
    parser.add_argument("--trl-python", default=sys.executable, help="Python of an environment with TRL")
    parser.add_argument("--with-tuned-malloc", action="store_true", help="TRL also with our malloc settings")
    parser.add_argument("--out", type=Path, help=f"JSON; default: benchmarks/results/{result}_DTYPE_bSIZE_DATE.json")


def write_inputs(arguments: argparse.Namespace, kind: str, data: Path, *, max_length: int, out: Path) -> Turn:
    """Writes the model and the rows (ours/write_inputs.py); ends the program where fewer fit than were asked for.

    Args:
      arguments: of `add_side_arguments`.
      kind: pairs or dialogues.
      data: the file that they come from.
      max_length: the most tokens of one.
      out: the folder to write to.

    Returns:
      What a pass over them holds: rows, tokens, target tokens, FLOPs.
    """
    size = {"limit": arguments.limit, "max_length": max_length, "batch_size": arguments.batch_size}
    work = run_worker(arguments.our_python, "ours/write_inputs.py", kind=kind, data=data, out=out, **size)
    if work[kind] != arguments.limit:
        sys.exit(f"{work[kind]} of {arguments.limit} {kind} fit whole: give a --limit that holds none of the others")
    return work


def trl_sides(arguments: argparse.Namespace, program: str, finish: Callable[[Turn], Turn], **options: object) -> Sides:
    """TRL's side, and with `--with-tuned-malloc` the same with what `train` tells glibc for itself.

    Args:
      arguments: of `add_side_arguments`.
      program: the worker.
      finish: adds to its result what the caller compares.
      **options: of the worker, beside batch size and dtype.
    """
    options |= {"batch_size": arguments.batch_size, "dtype": arguments.dtype}

    def run(turn: int, *, malloc_tuned: bool = False) -> Turn:
        return finish(run_worker(arguments.trl_python, program, malloc_tuned=malloc_tuned, **options))

    tuned = {"trl" + MALLOC_TUNED: functools.partial(run, malloc_tuned=True)} if arguments.with_tuned_malloc else {}
    return {"trl": run} | tuned


def run_train(arguments: argparse.Namespace, stage: str, folder: Path, config: str, overrides: Sequence[str]) -> Turn:
    """One turn of `train`, as a user runs it, after the matmul ceiling of the moment.

    Args:
      arguments: of `add_side_arguments`, and `epochs`.
      stage: dsft or ddpo.
      folder: where the run goes.
      config: the recipe's file in this folder.
      overrides: of the recipe, beside dtype, batch size and epochs.
    """
    ceiling = measure_ceiling(arguments.our_python, arguments.dtype)
    command = [arguments.our_python, "-m", "zephyr_jax.train", "--config", str(HERE / config), f"output_dir={folder}"]
    command += [f"model.compute_dtype={arguments.dtype}", f"{stage}.epochs={arguments.epochs}"]
    _, peak = run_process([*command, f"{stage}.batch_size={arguments.batch_size}", *overrides])
    return read_stage(folder / "ours" / stage) | {"peak_gigabytes": peak, "ceiling": ceiling}


def measure_ceiling(python: str, dtype: str) -> float:
    """FLOP/s of the best matmul just now, in a process of its own (matmul_ceiling.py)."""
    ceilings: dict[str, float] = json.loads(run_process([python, str(HERE / "matmul_ceiling.py")])[0])
    return ceilings[dtype]


def rates(results: Sequence[Turn], work: Mapping[str, Any], *, ceiling: float) -> dict[str, Any]:
    """What every table of training steps says of a side, over all its counted passes.

    Args:
      results: of its turns.
      work: what a pass holds.
      ceiling: FLOP/s of the best matmul in the same run.
    """
    seconds = spread([value for result in results for value in result["passes"]])
    return {
        "pass_seconds": seconds,
        "target_tokens_per_second": work["target_tokens"] / seconds["median"],
        "flops_per_second": work["flops"] / seconds["median"],
        "share_of_ceiling": work["flops"] / seconds["median"] / ceiling,
        "peak_gigabytes": max(result["peak_gigabytes"] for result in results),
        "losses": results[0]["losses"],
        "versions": results[0]["versions"],
    }


def environment(*, malloc_tuned: bool = False) -> dict[str, str]:
    """The environment of a side: this checkout's package, no network, and glibc's malloc as it comes or tuned."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    variables |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
    return variables | (MALLOC_VARIABLES if malloc_tuned else {})


def run_process(command: Sequence[str], *, malloc_tuned: bool = False) -> tuple[str, float]:
    """Runs a program to its end; one that fails ends this one, with the last of its stderr.

    Args:
      command: the program and its arguments.
      malloc_tuned: see `environment`.

    Returns:
      The last line of its stdout ("" where there is none), and its peak memory in GB.
    """
    with tempfile.TemporaryFile("w+") as errors:
        variables = environment(malloc_tuned=malloc_tuned)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command[:4])} ...: exit status {process.returncode}\n{errors.read()[-3000:]}")
    lines = output.strip().splitlines()
    return (lines[-1] if lines else ""), usage.ru_maxrss * 1024 / 1e9


def run_worker(python: str, program: str, *, malloc_tuned: bool = False, **options: object) -> Turn:
    """Runs a worker of this folder, such as "peers/trl_dpo.py"; an option `batch_size` is `--batch-size`.

    Returns:
      The JSON object in its last line, and `peak_gigabytes`.
    """
    command = [python, str(HERE / program)]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    output, peak = run_process(command, malloc_tuned=malloc_tuned)
    return json.loads(output) | {"peak_gigabytes": peak}


def read_stage(folder: Path) -> Turn:
    """Seconds and loss of every step of a stage that `train` ran, what its summary counts, and its versions."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {
        "seconds": [step["step_seconds"] for step in steps],
        "losses": [step["loss"] for step in steps],
        "batches": summary["batches"],
        "versions": {name: summary["versions"][name] for name in ("jax", "python")},
    }


def data_file(name: str) -> Path:
    """A file of the folder that ZEPHYR_DATA names; ends the program where that is not set."""
    if "ZEPHYR_DATA" not in os.environ:
        sys.exit(f"ZEPHYR_DATA: not set; wanted the folder that holds {name}")
    return Path(os.environ["ZEPHYR_DATA"]) / name


def take_turns(sides: Mapping[str, Callable[[int], Turn]], turns: int, *, show: str) -> dict[str, list[Turn]]:
    """Lets each side take its turn, `turns` times, in the order given.

    Args:
      sides: by name, (number of the turn from 0) -> result.
      turns: how many.
      show: the entry of a result that goes to stderr, to see how it goes.

    Returns:
      The results of each side.
    """
    results: dict[str, list[Turn]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, side in sides.items():
            results[name].append(side(turn))
            print(f"turn {turn + 1}: {name}: {show} {results[name][-1][show]}", file=sys.stderr, flush=True)
    return results


def later_passes(seconds: Sequence[float], passes: int) -> list[float]:
    """Seconds of each pass but the first (compilation, first touches of memory), from those of all steps."""
    steps, rest = divmod(len(seconds), passes)
    if rest:
        sys.exit(f"{len(seconds)} steps in {passes} passes: not the same number in each")
    return [round(sum(seconds[steps * p : steps * (p + 1)]), 3) for p in range(1, passes)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, most and all of them."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "least": ordered[0], "most": ordered[-1], "all": ordered}


def seconds_text(seconds: Mapping[str, Any]) -> str:
    """A spread for the table: `median (least to most)`."""
    return f"{seconds['median']:.1f} ({seconds['least']:.1f} to {seconds['most']:.1f})"


def check_close(what: str, ours: Sequence[float], theirs: Sequence[float], *, tolerance: float) -> float:
    """Ends the program unless two sides computed the same.

    Args:
      what: names the values and the peer, for the message.
      ours, theirs: the values, as many of one as of the other.
      tolerance: the largest difference allowed.

    Returns:
      The largest difference.
    """
    if len(ours) != len(theirs):
        sys.exit(f"{what}: {len(ours)} of ours and {len(theirs)} of theirs: not the same work")
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    worst = max(differences)
    if not all(difference <= tolerance for difference in differences):  # max would pass over a NaN
        sys.exit(
            f"{what}: differ by up to {worst:.4f}, wanted at most {tolerance}: not the same work\n{ours}\n{theirs}"
        )
    return worst


def machine() -> dict[str, Any]:
    """The processor, its cores that may be used, and the memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": name, "cores": len(os.sched_getaffinity(0)), "memory_gigabytes": round(memory / 1e9, 1)}


def report_head(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What every report begins with: the day, the machine, the settings given but for those that name places on it."""
    kept = {
        name: value
        for name, value in settings.items()
        if value is not None and not isinstance(value, Path) and not name.endswith("_python")
    }
    return {"date": datetime.date.today().isoformat(), "machine": machine(), "settings": kept}


def write_report(report: Mapping[str, Any], name: str, *, out: Path | None) -> None:
    """Writes the report as JSON to `out`, by default results/NAME_DATE.json, and says where on stderr."""
    path = out or HERE / "results" / f"{name}_{report['date']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}", file=sys.stderr)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def versions_text(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: each side with the versions it ran on."""
    parts = (
        f"{name}: " + ", ".join(f"{library} {version}" for library, version in side["versions"].items())
        for name, side in sides.items()
    )
    return "Versions: " + "; ".join(parts) + "."
