"""A set of preferences as one self-contained HTML page: lengths, scores, margins, length bias, models, examples.

Takes preference pairs (HuggingFaceH4's and Argilla's columns) and AI feedback in UltraFeedback's raw layout, of which
it compares all answers of a prompt whose scores differ. The figures go to stdout as one JSON object.

    python -m zephyr_jax.data_report pairs.jsonl --out report.html
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import open_output, run_command
from zephyr_jax.data.binarisation import SCORES
from zephyr_jax.data.comparisons import Comparison, comparison_of_pair, comparisons_of_feedback
from zephyr_jax.records import BadRow, InputError, ReadReport

TIED = "pairs of a prompt's answers with equal scores"


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.data_report",
        description="Shows what preferences are like, on one HTML page; needs matplotlib (the extra [report]).",
        epilog="example: python -m zephyr_jax.data_report pairs.jsonl --out report.html",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="preference pairs, raw AI feedback, hf:...:SPLIT")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="the page")
    parser.add_argument("--title", help="of the page (the files' names)")
    parser.add_argument(
        "--score", choices=SCORES, default="aspect_mean", help="of raw feedback's answers (%(default)s)"
    )
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="draws the examples (%(default)s)")
    return parser


def read_comparisons(files: Sequence[str], *, score: str) -> tuple[list[Comparison], ReadReport]:
    """All comparisons of some files, and what could not be read.

    Args:
      files: sources of preference pairs or of AI feedback.
      score: which score compares the answers of AI feedback, a key of SCORES.

    Raises:
      InputError: a file cannot be opened, or there is no comparison in any of them.
    """
    from zephyr_jax.data.sources import RowError, iterate_rows, show_bad_rows

    comparisons: list[Comparison] = []
    read = ReadReport()
    for file in files:
        for location, row in iterate_rows(file, progress=True):
            read.num_rows += 1
            try:
                if isinstance(row, BadRow):
                    raise RowError(row.reason)
                if "completions" in row:
                    found, num_ties = comparisons_of_feedback(row, location, file=file, score=SCORES[score])
                    comparisons += found
                    if num_ties:
                        read.dropped[TIED] = read.dropped.get(TIED, 0) + num_ties
                else:
                    comparisons.append(comparison_of_pair(row, location, file=file))
            except RowError as error:
                read.bad_rows.append(BadRow(location, error.reason))
    show_bad_rows(read)
    if not comparisons:
        first = f"; the first: {read.bad_rows[0].reason}" if read.bad_rows else ""
        raise InputError(
            f"{', '.join(files)}: no comparison in {read.num_rows} rows{first}. Wanted preference pairs, or AI "
            f"feedback whose answers have a score of the kind {score} (--score takes {', '.join(SCORES)})"
        )
    return comparisons, read


def _run(arguments: argparse.Namespace) -> None:
    from zephyr_jax.data.comparison_statistics import summary
    from zephyr_jax.reporting.page import page
    from zephyr_jax.reporting.plots import require_matplotlib
    from zephyr_jax.reporting.preferences import preference_sections

    if arguments.examples < 0:
        raise InputError(f"--examples: got {arguments.examples}, wanted 0 or more")
    require_matplotlib()
    with open_output(arguments.out) as file:
        comparisons, read = read_comparisons(arguments.files, score=arguments.score)
        names = ", ".join(Path(source).name for source in arguments.files)
        subtitle = f"{read.num_rows} rows, {len(read.bad_rows)} of them not usable; {len(comparisons)} comparisons"
        subtitle += "".join(f"; left out: {count} {reason}" for reason, count in read.dropped.items())
        sections = preference_sections(comparisons, num_examples=arguments.examples, seed=arguments.seed)
        file.write(page(arguments.title or f"Preferences: {names}", subtitle, sections))
    figures = {"rows": read.num_rows, "unreadable": read.as_dict()["unreadable"], "dropped": read.dropped}
    figures |= summary(comparisons)
    print(json.dumps(figures))
    print(
        f"data_report: chosen is the longer one in {figures['longer_chosen']:.1%} of {len(comparisons)} comparisons "
        f"-> {arguments.out}",
        file=sys.stderr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
