"""What `plan` says of the day's steps on one H100, made beforehand and kept in plan_h100.json for the day.

    make plan && .venv/bin/python -m benchmarks.gpu_day.predict

To be run again whenever the recipe, the rows or the programs change; a test notices the first two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.sizes import GPU
from benchmarks.gpu_day.training import HERE, PLANNED, day_recipe

KEPT = (
    "num_parameters",
    "bytes_per_device",
    "flops",
    "bounds",
    "verdict",
    "margin_bytes",
    "batch",
    "compiled_attention",
)


def work_key() -> str:
    """Hash of what decides the day's work: recipe.yaml, the made-up rows' program, the sizes."""
    parts = [(HERE / name).read_bytes() for name in ("recipe.yaml", "rows.py")]
    return hashlib.sha256(b"".join(parts) + repr(dataclasses.astuple(GPU)).encode()).hexdigest()[:16]


def main() -> None:
    import jax

    from zephyr_jax.stages.ddpo import ddpo_batches, load_ddpo_data
    from zephyr_jax.stages.start import open_run

    with tempfile.TemporaryDirectory() as folder:
        run = open_run(day_recipe(GPU, Path(folder)))
        shapes = ddpo_batches(run, load_ddpo_data(run, keep=False).train).shapes
        assert len(shapes) == 1, shapes  # the pairs are those of one step
        stages = {"dsft": _plan("dsft"), "ddpo": _plan("ddpo", "--rows-per-step", str(shapes[0].num_rows))}
    reference = stages["ddpo"].pop("reference")
    peak_flops = stages["ddpo"]["flops"]["per_device"] / stages["ddpo"]["bounds"]["compute_seconds"]
    bound = reference["flops_per_device"] / peak_flops
    stages["reference"] = {
        "bytes_per_device": {"peak": reference["peak"]},
        "bounds": {"compute_seconds": bound, "step_seconds": bound},
    }
    found = {"work": work_key(), "target": "h100", "jax": jax.__version__, "stages": stages}
    PLANNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {PLANNED}")


def _plan(stage: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "zephyr_jax.plan", "--config", str(HERE / "recipe.yaml"), "--stage", stage]
    command += ["--target", "h100", "--devices", "1", "--json", "--bandwidth", "100", *options]
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}  # as launch/gpu_day.sh sets it
    plan = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    if plan["not_compiled"]:
        sys.exit(f"plan compiled nothing: {plan['not_compiled']}")
    return {name: plan[name] for name in KEPT} | ({"reference": plan["reference"]} if "reference" in plan else {})


if __name__ == "__main__":
    main()
