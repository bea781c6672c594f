"""Everything that a GPU can check, in one command and under nine minutes; launch/gpu_day.sh runs it.

    python -m benchmarks.gpu_day --out FOLDER            # FOLDER/gpu_day.json, gpu_day.md, gpu_day.log
    python -m benchmarks.gpu_day --out FOLDER --toy      # the same parts on a CPU, in about a minute

Every part is a process with a time limit of its own: one that fails, hangs or runs out of memory is reported and the
next one starts on an empty device. Both files are written anew after each part. This program imports no JAX.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.report import day_table

# Seconds that each part may take at most; what matters most comes first. In all under nine minutes.
BUDGETS = {
    "machine": 35,
    "numbers": 70,
    "model": 40,
    "dsft": 100,
    "ddpo": 120,
    "kernels": 75,
    "decode": 40,
    "trl": 50,
    "dsft_o1": 85,
}
DAY_SECONDS = 525.0
ERROR_CHARACTERS = 3000


def run_part(command: Sequence[str], *, seconds: float, result: Path, log: Path) -> dict[str, Any]:
    """Runs one part to its end or its time limit.

    Args:
      command: what to run.
      seconds: its limit.
      result: the JSON file that it keeps its entries in.
      log: gets what it prints.

    Returns:
      status (ok, failed, out of time), seconds, entries, and where it did not end well the end of what it printed.
    """
    began = time.perf_counter()
    with log.open("a+", encoding="utf-8", errors="replace") as file:
        file.write(f"\n=== {' '.join(command)}\n")
        file.flush()
        start = file.tell()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = "ok" if process.wait(timeout=max(seconds, 1.0)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            process.wait()
        file.seek(start)
        printed = file.read()
    part: dict[str, Any] = {"status": status, "seconds": round(time.perf_counter() - began, 1)}
    part["entries"] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else []
    if status == "failed":
        part |= {"exit_status": process.returncode, "printed": printed[-ERROR_CHARACTERS:]}
    elif status == "out of time":
        part["printed"] = printed[-500:]
    return part


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes gpu_day.json and gpu_day.md, each whole at any time."""
    for name, text in (("gpu_day.json", json.dumps(report, indent=1) + "\n"), ("gpu_day.md", day_table(report))):
        unfinished = folder / (name + ".partial")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, folder / name)


def main() -> int:
    """Runs the parts; 0 where all of them ended well and every number was within its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="the folder for the results")
    parser.add_argument("--parts", default=",".join(BUDGETS), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=DAY_SECONDS, help="for all parts (%(default)s)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, for a CPU")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if not set(names) <= set(BUDGETS):
        parser.error(f"--parts: got {arguments.parts}, wanted some of {', '.join(BUDGETS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    log, result = arguments.out / "gpu_day.log", arguments.out / "part.json"
    log.write_text("", encoding="utf-8")
    began = time.perf_counter()
    report: dict[str, Any] = {"began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    report |= {"toy": arguments.toy, "parts": {}}
    for name in names:
        left = arguments.seconds - (time.perf_counter() - began)
        result.unlink(missing_ok=True)
        if left < 5:
            report["parts"][name] = {"status": "not begun: no time was left", "seconds": 0.0, "entries": []}
        else:
            command = [sys.executable, "-m", "benchmarks.gpu_day.part", name, "--out", str(result)]
            command += ["--toy"] if arguments.toy else []
            part = run_part(command, seconds=min(BUDGETS[name], left), result=result, log=log)
            report["parts"][name] = part
        report["seconds"] = round(time.perf_counter() - began, 1)
        write_report(report, arguments.out)
        print(f"{name}: {report['parts'][name]['status']} in {report['parts'][name]['seconds']} s", file=sys.stderr)
    result.unlink(missing_ok=True)
    print((arguments.out / "gpu_day.md").read_text(encoding="utf-8"))
    ended_well = all(part["status"] == "ok" for part in report["parts"].values())
    entries = [entry for part in report["parts"].values() for entry in part["entries"]]
    return 0 if ended_well and all(entry.get("ok", True) for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
