"""The day's table: Markdown, a section a part, from the entries that the parts recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.side_by_side import markdown_table

Entries = Sequence[Mapping[str, Any]]


def day_table(report: Mapping[str, Any]) -> str:
    """The whole report for people."""
    lines = [f"# GPU day, {report['began']}" + (" (toy sizes)" if report["toy"] else ""), ""]
    for name, part in report["parts"].items():
        lines += [f"## {name}: {part['status']}, {part['seconds']} s", ""]
        if part["entries"]:
            lines += [_SECTIONS[name](part["entries"]), ""]
        if "printed" in part:
            lines += ["```", part["printed"].strip()[-1200:], "```", ""]
    return "\n".join(lines)


def _machine(entries: Entries) -> str:
    return "\n".join(f"- {name}: {value}" for entry in entries for name, value in entry.items())


def _numbers(entries: Entries) -> str:
    rows = []
    for entry in entries:
        if "model" in entry:
            errors = f"{entry['largest_relative_difference']:.1e} ({entry['largest_difference_nats']:.3f} nats)"
            rows.append(
                [f"{entry['model']}, {entry['num_parameters'] / 1e6:.1f} M", entry["dtype"], "auto", errors, ""]
            )
            rows[-1][-1] = _verdict(entry)
            continue
        window = "no window" if entry["window"] is None else f"window {entry['window']}"
        errors = " ".join(f"{name} {error:.1e}" for name, error in entry.get("errors", {}).items())
        said = errors or entry.get("failed") or entry["refused"]
        rows.append([f"{entry['layout']}, {window}", entry["dtype"], entry["implementation"], said, _verdict(entry)])
    return markdown_table(["rows", "dtype", "attention", "error against float32 on the host", ""], rows)


def _verdict(entry: Mapping[str, Any]) -> str:
    return {True: "ok", False: "WRONG", None: "refused"}[entry.get("ok")]


def _stage(entries: Entries) -> str:
    header = [
        "",
        "attention",
        "compile s",
        "step s",
        "tokens/s",
        "MFU",
        "of matmuls",
        "peak GB",
        "plan: peak GB (ratio)",
    ]
    header.append("plan: bound s (ratio)")
    rows = []
    for entry in entries:
        mfu = "" if entry["mfu"] is None else f"{entry['mfu']:.1%}"
        kernels = ", ".join(dict.fromkeys(program["attention"] for program in entry["programs"]))
        row = [entry["stage"], kernels, f"{entry['compile_seconds']:.0f}", f"{entry['step_seconds']['median']:.3f}"]
        row += [f"{entry['tokens_per_second']:,.0f}", mfu, f"{entry['share_of_matmul_ceiling']:.1%}"]
        row.append(f"{entry['peak_bytes'] / 1e9:.2f}")
        planned = entry.get("planned")
        bounds = planned["bounds"] if planned else {}
        peak, ratio = (planned["bytes_per_device"]["peak"] if planned else None), entry.get("peak_over_plan")
        row.append(f"{peak / 1e9:.2f} ({ratio:.2f})" if ratio else "not planned")
        bound, ratio = bounds.get("step_seconds") or bounds.get("compute_seconds"), entry.get("step_over_bound")
        row.append(f"{bound:.3f} ({ratio:.2f})" if ratio else "not planned")
        rows.append(row)
    return markdown_table(header, rows)


def _kernels(entries: Entries) -> str:
    rows = []
    for entry in entries:
        where = f"{entry['layout']}, {entry['rows']} x {entry['row_length']}" if "rows" in entry else entry["layout"]
        name = entry["implementation"] + (" (auto)" if entry["is_auto"] else "")
        if "milliseconds" in entry:
            rate = f"{entry['visible_flops_per_second'] / 1e12:.2f}"
            rows.append([where, name, f"{entry['milliseconds']:.3f}", rate])
        else:
            rows.append([where, name, entry.get("failed") or entry["refused"], ""])
    return markdown_table(["rows", "attention", "forward + backward, ms", "visible TFLOP/s"], rows)


def _decode(entries: Entries) -> str:
    rows = [
        [
            str(entry["rows"]),
            f"{entry['prefill_seconds']:.4f}",
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['weight_bytes_per_second'] / 1e9:,.0f}",
        ]
        for entry in entries
    ]
    return markdown_table(["rows", "prefill s", "tokens/s", "GB/s of weights"], rows)


def _trl(entries: Entries) -> str:
    lines = []
    for entry in entries:
        if "step_seconds" not in entry:
            lines.append(f"- {entry}")
            continue
        seconds = sorted(entry["step_seconds"])
        peak = "" if entry["peak_bytes"] is None else f", peak {entry['peak_bytes'] / 1e9:.2f} GB"
        lines.append(
            f"- {entry['trl']}: {seconds[len(seconds) // 2]:.3f} s a step of {entry['pairs_per_step']} pairs, "
            f"{entry['micro_batch_pairs']} at once, gradient checkpointing {entry['gradient_checkpointing']}, "
            f"attention {entry['attention']}{peak}; {entry['versions']}"
        )
    return "\n".join(lines)


_SECTIONS: dict[str, Callable[[Entries], str]] = {
    "machine": _machine,
    "numbers": _numbers,
    "model": _numbers,
    "dsft": _stage,
    "ddpo": _stage,
    "dsft_o1": _stage,
    "kernels": _kernels,
    "decode": _decode,
    "trl": _trl,
}
