"""The report of a run: its folder, its evaluation among it, as runs/NAME/report.html."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import open_output
from zephyr_jax.evaluation.report import intervals_note, read_blocks
from zephyr_jax.reporting.blocks import Block
from zephyr_jax.reporting.plots import require_matplotlib
from zephyr_jax.reporting.run_files import RunFiles, read_run
from zephyr_jax.reporting.run_page import run_page, run_state


def write_run_report(folder: Path, out: Path, *, beside: Sequence[Path] = ()) -> str:
    """Writes the page of a run, whole or not at all.

    Args:
      folder: the run's.
      out: the page's file.
      beside: folders of other runs, whose figures stand beside this one's.

    Returns:
      What there is to say of it: the state of each stage, and what could not be read, a line each.

    Raises:
      InputError: a folder is no run's, `out` cannot be written, or matplotlib is not installed.
    """
    require_matplotlib()
    now = time.time()
    run, blocks, note = _read(folder)
    others = [_read(other)[:2] for other in beside]
    text = run_page(run, blocks, evaluation_note=note, beside=others, now=now)
    with open_output(out) as file:
        file.write(text)
    return "\n".join(filter(None, [run_state(run, now=now), *run.problems]))


def _read(folder: Path) -> tuple[RunFiles, list[Block], str]:
    """A run, the blocks of its evaluation, and how their intervals are to be read."""
    run = read_run(folder)
    if run.evaluation is None:
        return run, [], ""
    try:
        return run, read_blocks(run.evaluation), intervals_note(run.evaluation)
    except (ValueError, KeyError, TypeError) as error:
        problem = f"evaluation/results.json is left out ({error}): run evaluate again with this version"
        return dataclasses.replace(run, problems=(*run.problems, problem)), [], ""


def renewed_report(folder: Path) -> str:
    """Writes the page when a run or its evaluation is done, which it must not fail: what happened is the text."""
    page = folder / "report.html"
    results = [
        file for name in ("*/summary.json", "held_out.json", "evaluation/results.json") for file in folder.glob(name)
    ]
    if page.exists() and all(page.stat().st_mtime >= file.stat().st_mtime for file in results):
        return f"report: {page} is there already"
    command = f"python -m zephyr_jax.report {folder}"
    if importlib.util.find_spec("matplotlib") is None:
        install = "pip install 'zephyr-jax[report]' (in a checkout: pip install -e '.[report]')"
        return f"report: not written, since matplotlib is not installed: {install}, then {command}"
    try:
        write_run_report(folder, page)
    except Exception as error:
        return f"report: not written ({type(error).__name__}: {error}); all else is done; to try again: {command}"
    return f"report: {page}"
