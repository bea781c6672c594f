"""How far a judge's stored judgments agree with those of a judge that is trusted more, such as GPT-4.

Takes AlpacaEval's annotations, FastChat's pairs and gradings, and reviews of the Vicuna blog; compared are the items
that both judged. Beside the agreement stands what always choosing the better model, or the longer answer, would reach.

    python -m zephyr_jax.judge_agreement --judge mine.jsonl --reference gpt-4.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from zephyr_jax.cli import run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.judge_agreement",
        description="Agreement of a judge with a reference on the items that both judged, as a sentence on stderr and "
        "as one JSON object on stdout; a judge that is not surely better than looking at nothing is called weak.",
        epilog="example: python -m zephyr_jax.judge_agreement --judge mine.jsonl --reference gpt-4.jsonl",
    )
    parser.add_argument("--judge", required=True, nargs="+", metavar="FILE", help="the judge's judgments")
    parser.add_argument("--reference", required=True, nargs="+", metavar="FILE", help="those of the trusted judge")
    parser.add_argument("--seed", type=int, default=42, help="draws the intervals of gradings (%(default)s)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from zephyr_jax.evaluation.results import agreement_result
    from zephyr_jax.evaluation.statistics import Sampling
    from zephyr_jax.evaluation.tables import agreement_sentence
    from zephyr_jax.evaluation_recipe import AgreementOptions

    options = AgreementOptions(judge=tuple(arguments.judge), reference=tuple(arguments.reference))
    result = agreement_result(options, sampling=Sampling(seed=arguments.seed))
    print(agreement_sentence(result), file=sys.stderr)
    print(json.dumps(result.as_dict()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
