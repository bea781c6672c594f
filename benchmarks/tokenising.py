"""How fast rows become tokens: reading, validating, templating and tokenising, in one process and in several.

    python -m benchmarks.tokenising --data chats.jsonl [--kind pairs] [--tokenizer builtin:smollm2] [--rows 20000]

The file's rows are repeated up to --rows in a temporary file. One JSON line on stdout: rows per second in one process
and in --workers, what a warm start takes, and what both together would take for 200 000 such rows on 16 cores:
extrapolated, reading as one process and tokenising as sixteen at the rate per process measured here, start included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zephyr_jax.data import tokenised
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.data.preparing import prepare_conversations, prepare_pairs
from zephyr_jax.data.sources import read_conversations, read_pairs
from zephyr_jax.recipe import Source
from zephyr_jax.records import ReadReport

PAIR_LENGTHS = {"max_length": 1024, "max_prompt_length": 512, "row_length": 2048}
CHAT_LENGTHS = {"max_length": 2048, "loss_on": "assistant"}


def measure(data: Path, *, kind: str, tokenizer_name: str, num_rows: int, num_workers: int) -> dict[str, Any]:
    """The figures of one file and one tokenizer.

    Args:
      data: JSON lines.
      kind: chats or pairs.
      tokenizer_name: as in a recipe.
      num_rows: how many rows, the file's over and over.
      num_workers: processes of the second measurement.
    """
    read, prepare, load, lengths = {
        "chats": (read_conversations, prepare_conversations, tokenised.load_conversations, CHAT_LENGTHS),
        "pairs": (read_pairs, prepare_pairs, tokenised.load_pairs, PAIR_LENGTHS),
    }[kind]
    tokenizer = load_chat_tokenizer(tokenizer_name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with data.open("rb") as lines, path.open("wb") as file:
            file.writelines(itertools.islice(itertools.cycle(list(lines)), num_rows))
        sources = [Source(source=str(path))]
        began = time.perf_counter()
        rows, _ = read(sources, seed=0, max_bad_rows=1.0)  # type: ignore[operator]
        reading = time.perf_counter() - began
        seconds, encoded = {}, None
        for workers in (1, num_workers):
            began = time.perf_counter()
            encoded = prepare(rows, tokenizer, report=ReadReport(), num_workers=workers, **lengths)  # type: ignore[operator]
            seconds[workers] = time.perf_counter() - began
        options = {"name": "benchmark", "keeping": tokenised.Keeping(Path(folder) / "tokenised"), "seed": 0}
        options |= {"max_bad_rows": 1.0, "wants_records": False, **lengths}
        load(sources, tokenizer, **options)
        began = time.perf_counter()
        warm = load(sources, tokenizer, **options)
        warm_seconds = time.perf_counter() - began
        assert encoded is not None and warm.encoded.fingerprint() == encoded.fingerprint()
        size = path.stat().st_size
    per_process = len(rows) / seconds[num_workers] / num_workers
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "tokenizers": version("tokenizers")},
        "kind": kind,
        "tokenizer": tokenizer_name,
        "rows": len(rows),
        "bytes_per_row": round(size / num_rows),
        "tokens_per_row": round(len(encoded.ids) / len(encoded), 1),
        "reading_rows_per_second": round(len(rows) / reading),
        "tokenising_rows_per_second": {str(workers): round(len(rows) / took) for workers, took in seconds.items()},
        "cold_rows_per_second": {str(w): round(len(rows) / (reading + took)) for w, took in seconds.items()},
        "tokens_per_second_per_process": round(per_process * len(encoded.ids) / len(rows)),
        "warm_rows_per_second": round(len(rows) / warm_seconds),
        "extrapolated_seconds_200k_rows_16_cores": round(200_000 * (reading / len(rows) + 1 / per_process / 16)),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", choices=["chats", "pairs"], default="chats")
    parser.add_argument("--tokenizer", default="builtin:smollm2")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    figures = measure(
        arguments.data,
        kind=arguments.kind,
        tokenizer_name=arguments.tokenizer,
        num_rows=arguments.rows,
        num_workers=arguments.workers,
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
