"""Makes preference pairs of AI feedback in UltraFeedback's raw layout: best answer against another, by a named rule.

The rules, and what becomes of ties, nulls and N/A, are in data/binarisation.py. Counts go to stdout as one JSON object.

    python -m zephyr_jax.binarise --data feedback.jsonl --rule best_vs_random --out pairs.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import open_output, run_command
from zephyr_jax.data.binarisation import RULES, SCORES, BinarisationOptions, BinarisationReport, binarise
from zephyr_jax.records import InputError

_RULES_HELP = """rules (chosen is always an answer with the best score):
  best_vs_random       mean of the aspects; rejected: any other (Zephyr's paper)
  best_vs_worst        mean of the aspects; rejected: the lowest
  buggy_overall_score  overall_score as it stands, the release's 1-to-10 bug included; rejected: any other
  argilla              mean of the aspects; rejected: a lower one at random
scores: aspect_mean; overall_score (the bug repaired); buggy_overall_score

example: python -m zephyr_jax.binarise --data hf:openbmb/UltraFeedback:train --out pairs.jsonl --margin 0.5"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.binarise",
        description="Preference pairs in the columns of ultrafeedback_binarized, from answers that a teacher scored.",
        epilog=_RULES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, nargs="+", metavar="SOURCE", help="feedback: files, hf:...:SPLIT")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="the pairs, a line each")
    parser.add_argument("--rule", default="best_vs_random", help="see below (%(default)s)")
    parser.add_argument("--score", metavar="SCORE", help="in place of the rule's own score; see below")
    parser.add_argument("--margin", type=float, default=0.0, help="least difference of the two scores (any)")
    parser.add_argument("--keep-ties", action="store_true", help="keep pairs whose scores are equal")
    parser.add_argument("--seed", type=int, default=42, help="decides every draw (%(default)s)")
    parser.add_argument("--max-bad-rows", type=float, default=0.01, help="share that may be unreadable (%(default)s)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from zephyr_jax.data.sources import read_feedback
    from zephyr_jax.recipe import Source

    options = BinarisationOptions(
        seed=arguments.seed,
        rule=arguments.rule,
        score=arguments.score,
        margin=arguments.margin,
        keep_ties=arguments.keep_ties,
    )
    with open_output(arguments.out) as file:
        records, read = read_feedback(
            [Source(source=source) for source in arguments.data],
            seed=arguments.seed,
            max_bad_rows=arguments.max_bad_rows,
            progress=True,
        )
        report = BinarisationReport(num_rows=read.num_rows, bad_rows=read.bad_rows)
        for record in records:
            pair = binarise(record, options, report)
            if pair is not None:
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")
        if not report.num_pairs:
            raise InputError(_no_pairs(report, options))
    print(json.dumps(report.as_dict()))
    print(f"binarise: {report.num_rows} rows, {report.num_pairs} pairs -> {arguments.out}", file=sys.stderr)


def _no_pairs(report: BinarisationReport, options: BinarisationOptions) -> str:
    reasons = ", ".join(f"{reason} ({count})" for reason, count in report.dropped.items())
    hint = ""
    if report.num_without_score == report.num_completions:
        others = ", ".join(score for score in SCORES if score != options.score_kind)
        hint = f"; no answer has a score of the kind {options.score_kind}: try --score with one of {others}"
    rule = f"rule {options.rule} ({', '.join(RULES)} are there)"
    return f"--data: no pair in {report.num_rows} rows under {rule}: {reasons}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
