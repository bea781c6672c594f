"""Finds the rows of training files that overlap with evaluation sets, shows both texts, and writes the other rows.

What counts as an overlap is in data/decontamination.py. One JSON line per overlap goes to --report, the rows without
one, unchanged and in order, to --clean, and the counts to stdout as one JSON object.

    python -m zephyr_jax.decontaminate --data train.jsonl --against question.jsonl alpaca_eval.jsonl --report hits.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.cli import open_output, run_command
from zephyr_jax.data.decontamination import (
    KINDS,
    MIN_WORDS,
    NGRAM_WORDS,
    EvaluationText,
    Overlap,
    OverlapIndex,
    evaluation_texts,
    training_texts,
)  # fmt: skip
from zephyr_jax.records import BadRow, InputError, ReadReport

_EPILOG = """kinds of overlap, by words (letters and digits; case and punctuation ignored):
  exact      a message has the words of an evaluation text, no more and no less
  contained  an evaluation text of 8 to N - 1 words stands whole inside a message
  n-gram     N consecutive words stand in both; 13 is GPT-3's N, shorter ones find stock phrases

example: python -m zephyr_jax.decontaminate --data train.jsonl \\
           --against mt_bench/question.jsonl alpaca_eval.jsonl --report hits.jsonl --clean clean.jsonl"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.decontaminate",
        description="Finds what training files share with evaluation sets, and leaves it out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, nargs="+", metavar="SOURCE", help="chats, pairs or AI feedback")
    parser.add_argument("--against", required=True, nargs="+", metavar="SOURCE", help="evaluation sets")
    parser.add_argument("--report", type=Path, metavar="FILE.jsonl", help="every overlap with both texts, a line each")
    parser.add_argument("--clean", type=Path, metavar="FILE.jsonl", help="the rows without overlap, unchanged")
    parser.add_argument("--ngram", type=int, default=NGRAM_WORDS, metavar="N", help="words (%(default)s)")
    parser.add_argument(
        "--min-share", type=float, default=0.0, help="of an evaluation text that n-grams must cover, 0 to 1 (any)"
    )
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="of the evaluation sets (those of known sets)")
    return parser


def read_evaluation_sets(sources: Sequence[str], columns: Sequence[str] | None) -> list[EvaluationText]:
    """The texts of all items of some evaluation sets.

    Raises:
      InputError: one cannot be read, or an item of it has no text in its columns.
    """
    from zephyr_jax.data.sources import RowError, iterate_rows

    texts: list[EvaluationText] = []
    for source in sources:
        for location, row in iterate_rows(source):
            if isinstance(row, BadRow):
                raise InputError(f"--against {location}: {row.reason}")
            try:
                texts += evaluation_texts(row, location, file=source, columns=columns)
            except RowError as error:
                raise InputError(
                    f"--against {location}: {error}; its columns are {', '.join(row)}: name some with --columns"
                ) from None
    return texts


def report_line(location: str, row: dict[str, Any], overlap: Overlap) -> dict[str, Any]:
    """One overlap as the report has it."""
    return {
        "location": location,
        "prompt_id": row.get("prompt_id"),
        "place": overlap.place,
        "kind": overlap.kind,
        "share": round(overlap.share, 4),
        "words": overlap.words,
        "text": overlap.text,
        "evaluation_location": overlap.evaluation.location,
        "evaluation_text": overlap.evaluation.text,
    }


class _Counts:
    """What was found, by evaluation set."""

    def __init__(self, texts: Sequence[EvaluationText]) -> None:
        self.num_rows = self.num_overlapping = 0
        self.items: dict[str, set[str]] = {}
        for text in texts:
            self.items.setdefault(text.file, set()).add(text.location)
        self.hit_items: dict[str, set[str]] = {file: set() for file in self.items}
        self.hit_rows = dict.fromkeys(self.items, 0)
        self.kinds = {file: dict.fromkeys(KINDS, 0) for file in self.items}

    def add(self, overlaps: Sequence[Overlap]) -> None:
        self.num_overlapping += bool(overlaps)
        for file in {overlap.evaluation.file for overlap in overlaps}:
            self.hit_rows[file] += 1
        for overlap in overlaps:
            self.hit_items[overlap.evaluation.file].add(overlap.evaluation.location)
            self.kinds[overlap.evaluation.file][overlap.kind] += 1

    def by_set(self) -> dict[str, dict[str, Any]]:
        return {
            file: {"items": len(items), "items_found": len(self.hit_items[file]), "rows": self.hit_rows[file]}
            | {"overlaps": self.kinds[file]}
            for file, items in self.items.items()
        }


def _run(arguments: argparse.Namespace) -> None:
    from zephyr_jax.data.sources import iterate_rows, show_bad_rows

    if arguments.ngram < MIN_WORDS:
        raise InputError(f"--ngram: got {arguments.ngram}, wanted {MIN_WORDS} or more: fewer words meet by chance")
    if not 0 <= arguments.min_share <= 1:
        raise InputError(f"--min-share: got {arguments.min_share}, wanted a number from 0 to 1")
    if arguments.clean is not None and arguments.clean == arguments.report:
        raise InputError(f"--clean and --report are both {arguments.clean}; give them different names")
    texts = read_evaluation_sets(arguments.against, arguments.columns)
    index, counts, read = OverlapIndex(texts, ngram_words=arguments.ngram), _Counts(texts), ReadReport()
    with contextlib.ExitStack() as files:
        report = files.enter_context(open_output(arguments.report, option="--report")) if arguments.report else None
        clean = files.enter_context(open_output(arguments.clean, option="--clean")) if arguments.clean else None
        for source in arguments.data:
            for location, row in iterate_rows(source, progress=True):
                read.num_rows += 1
                if isinstance(row, BadRow) or not any(True for _ in training_texts(row)):
                    reason = row.reason if isinstance(row, BadRow) else "no prompt and no answer in its columns"
                    read.bad_rows.append(BadRow(location, reason))
                    continue
                overlaps = [o for o in index.overlaps(row) if o.kind != "n-gram" or o.share >= arguments.min_share]
                counts.add(overlaps)
                if report is not None:
                    for overlap in overlaps:
                        report.write(json.dumps(report_line(location, row, overlap), ensure_ascii=False) + "\n")
                if clean is not None and not overlaps:
                    clean.write(json.dumps(row, ensure_ascii=False) + "\n")
        show_bad_rows(read)
        if len(read.bad_rows) == read.num_rows:
            raise InputError(f"--data: none of {read.num_rows} rows can be used: {read.bad_rows[0].reason}")
    num_clean = read.num_rows - len(read.bad_rows) - counts.num_overlapping
    summary = {"rows": read.num_rows, "unreadable": read.as_dict()["unreadable"]}
    summary |= {"overlapping_rows": counts.num_overlapping, "clean_rows": num_clean, "ngram_words": arguments.ngram}
    print(json.dumps(summary | {"evaluation_sets": counts.by_set()}))
    for file, found in counts.by_set().items():
        print(
            f"{file}: {found['items_found']} of {found['items']} items found in {found['rows']} rows ("
            + ", ".join(f"{count} {kind}" for kind, count in found["overlaps"].items())
            + ")",
            file=sys.stderr,
        )
    print(
        f"decontaminate: {counts.num_overlapping} of {read.num_rows} rows overlap, {num_clean} are clean"
        + (f" -> {arguments.clean}" if arguments.clean else ""),
        file=sys.stderr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
