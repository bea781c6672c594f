"""A run as one self-contained HTML page: what was run, curves and figures of its stages, its evaluation.

python -m zephyr_jax.report runs/tiny
python -m zephyr_jax.report runs/tiny --beside runs/tiny-beta-0.2 --out both.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.report",
        description="Shows a run on one HTML page, also one that is still going or was killed; needs matplotlib (the "
        "extra [report]).",
        epilog="example: python -m zephyr_jax.report runs/tiny",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the run's folder, OUTPUT_DIR/NAME of its recipe")
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="RUN_DIR", help="another run; may repeat"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (RUN_DIR/report.html)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from zephyr_jax.stages.run_report import write_run_report

    out = arguments.out or arguments.run / "report.html"
    said = write_run_report(arguments.run, out, beside=arguments.beside)
    print(f"report: {out}\n{said}".rstrip(), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
