"""What `bench` says: measured steps as figures (a plain dict, for JSON) and as a table for people.

Not here: measuring (timing.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from zephyr_jax.compilation import bytes_text
from zephyr_jax.host_memory import peak_memory
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.planning.chips import chip_at_hand
from zephyr_jax.planning.matmul_ceiling import matmul_ceiling
from zephyr_jax.planning.model_flops import FORMULA, model_flops
from zephyr_jax.recipe import ModelShape
from zephyr_jax.stages.start import Run, base_model, say
from zephyr_jax.stages.timing import Timing

MOST_CEILING_TOKENS = {"cpu": 1024}  # a larger product is no faster there, and takes long
ACCELERATOR_CEILING_TOKENS = 8192


def measured_ceiling(run: Run) -> float:
    """FLOP/s that the model's widest matmul reaches on one device just now; of several the highest counts."""
    shape, device = base_model(run).shape, run.mesh.devices.flat[0]
    say(f"measuring what {run.recipe.model.compute_dtype} matmuls reach on {device.device_kind}")
    return matmul_ceiling(
        run.recipe.model.compute_dtype,
        num_tokens=MOST_CEILING_TOKENS.get(device.platform, ACCELERATOR_CEILING_TOKENS),
        width=shape.hidden_size,
        num_features=shape.intermediate_size,
    )


def timing_report(run: Run, timings: Sequence[Timing], *, config: str, ceiling: float) -> dict[str, Any]:
    """All figures of the measured stages.

    Args:
      run: the run.
      timings: what was measured.
      config: the recipe's file, to name it.
      ceiling: of `measured_ceiling`.

    Returns:
      A dict of JSON values; FLOP/s and shares are of one device.
    """
    shape, dtype = base_model(run).shape, run.recipe.model.compute_dtype
    devices = list(run.mesh.devices.flat)
    chip = chip_at_hand(devices[0].device_kind)
    # The pretended devices of a CPU share its cores, so that one of them reaches what all of them do.
    num_sharing = 1 if devices[0].platform == "cpu" else len(devices)
    peak = chip.peak_flops[dtype] if chip else None
    return {
        "config": config,
        "name": run.recipe.name,
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "mesh": dict(run.mesh.shape),
        "compute_dtype": dtype,
        "attention": run.recipe.model.attention,
        "remat": run.recipe.model.remat,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract_params(shape))),
        "flops_formula": FORMULA,
        "peak_flops_per_second": peak,
        "peak_source": f"NVIDIA's data sheet of {chip.label}, dense" if chip else None,
        "matmul_ceiling_flops_per_second": ceiling,
        "memory_measured": peak_memory()[1],
        "stages": {
            timing.name: stage_figures(timing, shape, ceiling=ceiling * num_sharing, peak=peak and peak * num_sharing)
            for timing in timings
        },
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
        | {"python": platform.python_version()},
    }


def stage_figures(timing: Timing, shape: ModelShape, *, ceiling: float, peak: float | None) -> dict[str, Any]:
    """Figures of one kind of step, all measured steps together; a rate is their sum over the sum of their seconds.

    Args:
      timing: what was measured.
      shape: the model's shape.
      ceiling: FLOP/s that matmuls reach on all devices together.
      peak: FLOP/s that the vendor states for all devices together; None: unknown.
    """
    seconds, num_steps = timing.seconds, len(timing.step_seconds)
    flops = model_flops(
        shape,
        num_tokens=timing.total("num_row_tokens"),
        num_targets=timing.total("num_targets"),
        num_visible=timing.total("num_visible"),
        is_training=timing.is_training,
    )
    return {
        "stage_steps": timing.num_stage_steps,
        "whole_stage_seconds": seconds / num_steps * timing.num_stage_steps,
        "programs": [
            {
                "shape": list(program.shape),
                "seconds": program.seconds,
                "from_cache": program.from_cache,
                "attention": program.attention,
            }
            for program in timing.programs
        ],
        "compile_seconds": sum(program.seconds for program in timing.programs),
        "step_seconds": {
            "median": statistics.median(timing.step_seconds),
            "least": min(timing.step_seconds),
            "most": max(timing.step_seconds),
            "all": list(timing.step_seconds),
        },
        "tokens_per_second": timing.total("num_tokens") / seconds,
        "target_tokens_per_second": timing.total("num_targets") / seconds,
        "padding_share": 1 - timing.total("num_row_tokens") / timing.total("num_positions"),
        "data_wait_share": timing.waited_seconds / (timing.waited_seconds + seconds),
        "model_flops_per_step": flops / num_steps,
        "computed_flops_per_step": _computed_flops(timing) / num_steps,
        "has_unknown_loops": any(program.flops.unknown_loops for program in timing.programs),
        "model_flops_per_second": flops / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "share_of_matmul_ceiling": flops / seconds / ceiling,
        "planned_bytes_per_device": _planned_bytes(timing),
        "peak_bytes": timing.peak_bytes,
        "peak_is_own": timing.peak_is_own,
        "losses": list(timing.losses),
    }


def _computed_flops(timing: Timing) -> float:
    """Of all measured steps, by their programs."""
    by_shape = {program.shape: program.flops.flops for program in timing.programs}
    return sum(by_shape[work.shape] for work in timing.works)


def _planned_bytes(timing: Timing) -> dict[str, int] | None:
    """Of the program that needs most, as the compiler says."""
    planned = [(program.memory, program.activations) for program in timing.programs if program.memory is not None]
    if not planned:
        return None
    most, activations = max(planned, key=lambda of_program: of_program[0].arguments + of_program[0].temporaries)
    return {
        "state": timing.state_bytes,
        "batch": most.arguments - timing.state_bytes,
        "temporaries": most.temporaries,
        "activations": activations or 0,  # of the temporaries
        "not_in_place": timing.state_bytes - most.in_place if timing.is_training else 0,
        "total": most.arguments + most.temporaries,
    }


def report_json(report: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(report)


def report_table(report: Mapping[str, Any]) -> str:
    """The report for people: a Markdown table, a column per stage, and what its figures mean."""
    stages = report["stages"]
    rows = [[name, *(text(figures) for figures in stages.values())] for name, text in _ROWS.items()]
    peak, ceiling = report["peak_flops_per_second"], report["matmul_ceiling_flops_per_second"]
    names = ["reference pass" if name == "reference" else name for name in stages]
    kind = f"{report['num_devices']} x {report['device_kind']} ({report['platform']})"
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['name']} ({report['config']}) on {kind}, mesh {mesh}; {report['num_parameters'] / 1e6:,.1f} M "
        f"parameters, compute {report['compute_dtype']}, attention {report['attention']}, remat {report['remat']}",
        "",
        _markdown(["", *names], rows),
        "",
        f"{report['flops_formula']}; real tokens alone (no padding, nothing recomputed).",
        "Computed: with padding, masked positions and what is recomputed; >=: loops whose turns hang on the data count "
        "as one turn.",
    ]
    if peak:
        lines.append(f"MFU = model FLOPs / seconds / {peak / 1e12:,.1f} TFLOP/s a device ({report['peak_source']}).")
    else:
        lines.append(f"No peak is known for {report['device_kind']}, so no MFU is given.")
    lines.append(
        f"Matmul ceiling: the fastest matmul of this model's sizes, measured in this run: {_flops_text(ceiling)}/s a "
        "device."
    )
    lines.append(f"Peak memory: {report['memory_measured']}, since it began; <=: an earlier column needed as much.")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, f"Versions: {versions}."])


def _compile_text(figures: Mapping[str, Any]) -> str:
    num_cached = sum(program["from_cache"] for program in figures["programs"])
    cached = f", {num_cached} out of the cache" if num_cached else ""
    return f"{figures['compile_seconds']:.1f} s ({len(figures['programs'])} shapes{cached})"


def _steps_text(figures: Mapping[str, Any]) -> str:
    seconds = figures["step_seconds"]
    return f"{seconds['median']:.4g} ({seconds['least']:.4g} to {seconds['most']:.4g}), {len(seconds['all'])} steps"


def _planned_text(figures: Mapping[str, Any]) -> str:
    planned = figures["planned_bytes_per_device"]
    if planned is None:
        return "not said"
    return " + ".join(bytes_text(planned[part]) for part in ("state", "batch", "temporaries"))


def _activations_text(figures: Mapping[str, Any]) -> str:
    planned = figures["planned_bytes_per_device"]
    return bytes_text(planned["activations"]) if planned and planned["activations"] else ""


def _computed_text(figures: Mapping[str, Any]) -> str:
    text = _flops_text(figures["computed_flops_per_step"])
    return f">= {text}" if figures["has_unknown_loops"] else text


def _mfu_text(figures: Mapping[str, Any]) -> str:
    return "unknown" if figures["mfu"] is None else f"{figures['mfu']:.1%}"


def _peak_text(figures: Mapping[str, Any]) -> str:
    return ("" if figures["peak_is_own"] else "<= ") + bytes_text(figures["peak_bytes"])


def _attention_text(figures: Mapping[str, Any]) -> str:
    return ", ".join(dict.fromkeys(program["attention"] for program in figures["programs"]))


_ROWS = {
    "compilation": _compile_text,
    "attention": _attention_text,
    "a step, s: median (least to most)": _steps_text,
    "tokens/s": lambda figures: f"{figures['tokens_per_second']:,.0f}",
    "target (response) tokens/s": lambda figures: f"{figures['target_tokens_per_second']:,.0f}",
    "padding": lambda figures: f"{figures['padding_share']:.1%}",
    "waiting for data": lambda figures: f"{figures['data_wait_share']:.1%}",
    "model FLOPs a step": lambda figures: _flops_text(figures["model_flops_per_step"]),
    "matmul FLOPs computed a step": _computed_text,
    "model FLOP/s": lambda figures: _flops_text(figures["model_flops_per_second"]) + "/s",
    "MFU": _mfu_text,
    "share of the matmul ceiling": lambda figures: f"{figures['share_of_matmul_ceiling']:.1%}",
    "planned a device: state + batch + temporaries": _planned_text,
    "of these, activations kept for the backward pass": _activations_text,
    "peak memory": _peak_text,
    "all its steps at this speed": lambda figures: (
        f"{figures['stage_steps']:,} in {_duration(figures['whole_stage_seconds'])}"
    ),
}


def _flops_text(flops: float) -> str:
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= unit:
            return f"{flops / unit:,.1f} {name}"
    return f"{flops / 1e6:,.1f} MFLOP"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads well unrendered: columns padded, figures to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(widths[0]) if not place else cell.rjust(widths[place]) for place, cell in enumerate(row)
        )
        + " |"
        for row in (header, *rows)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if not place else ":") for place, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
