"""Answers a file of prompts: one JSON line per row, in the order of the rows; started again it goes on where it stopped.

Parses, builds, calls: decoding is in generation/, the output file's rules in generation/answer_file.py.

    python -m zephyr_jax.generate --model runs/tiny/ddpo --prompts prompts.jsonl --out answers.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zephyr_jax.cli import run_command
from zephyr_jax.data.sources import RowError, iterate_rows, parse_prompt
from zephyr_jax.generation.answer_file import answer_line, open_answer_file
from zephyr_jax.generation.options import GenerationOptions, add_generation_arguments, read_generation_options
from zephyr_jax.records import BadRow, InputError, Message

if TYPE_CHECKING:
    from zephyr_jax.generation.loading import AnswerModel

# Rows are sorted by length within so many batches: little padding, and an interruption loses little.
BATCHES_PER_CHUNK = 16

_EXAMPLE = """example:
  python -m zephyr_jax.generate --model builtin:smollm2-135m-instruct --prompts prompts.jsonl --out answers.jsonl
A row has `messages`, or `prompt` as one user turn. OUT.settings.json keeps what the answers were made with."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.generate",
        description="Answers each row of a file of prompts; an interrupted run goes on where it stopped.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", required=True, metavar="FILE.jsonl", help="rows with `messages` or `prompt`")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="one line per row, in their order")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows answered together (%(default)s)")
    add_generation_arguments(parser)
    return parser


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """A row of the input: its fields ({} where it could not be read), and its dialogue or why there is none."""

    fields: Mapping[str, Any]
    messages: tuple[Message, ...] | None
    error: str | None


def _run(arguments: argparse.Namespace) -> None:
    options = read_generation_options(arguments)
    prompts = [_read_prompt(location, row) for location, row in iterate_rows(arguments.prompts)]
    # Here for the first time JAX is imported.
    from zephyr_jax.generation.loading import open_answer_model

    model = open_answer_model(
        arguments.model,
        chat_template=arguments.chat_template,
        bos=arguments.bos,
        dtype=arguments.dtype,
        num_devices=arguments.devices,
    )
    settings = {
        "weights": model.source.fingerprint(),
        **model.tokenizer.fingerprint(),
        **dataclasses.asdict(options),
        "dtype": model.settings.compute_dtype,
    }
    stream, num_kept = open_answer_file(arguments.out, [prompt.fields for prompt in prompts], settings=settings)
    with stream:
        if num_kept < len(prompts):
            print(f"{arguments.model}: {model.settings.compute_dtype} on {model.devices_text()}", file=sys.stderr)
            model = model.load()
        _answer_all(model, prompts, stream, arguments=arguments, options=options, num_kept=num_kept)


def _read_prompt(location: str, row: Mapping[str, Any] | BadRow) -> _Prompt:
    if isinstance(row, BadRow):
        return _Prompt({}, None, row.reason)
    try:
        return _Prompt(row, parse_prompt(row, location), None)
    except RowError as error:
        return _Prompt(row, None, str(error))


def _answer_all(
    model: AnswerModel,
    prompts: Sequence[_Prompt],
    stream: BinaryIO,
    *,
    arguments: argparse.Namespace,
    options: GenerationOptions,
    num_kept: int,
) -> None:
    """Answers the rows from `num_kept` on, and says at the end what was done."""
    from tqdm import tqdm

    started = time.monotonic()
    num_tokens = num_bad = 0
    batch_size = min(arguments.batch_size, max(1, len(prompts) - num_kept))
    with tqdm(total=len(prompts), initial=num_kept, unit="row", desc="generate", file=sys.stderr) as bar:
        chunk_size = batch_size * BATCHES_PER_CHUNK
        for start in range(num_kept, len(prompts), chunk_size):
            chunk = dict(enumerate(prompts[start : start + chunk_size], start))
            finished = _answer_chunk(model, chunk, options=options, batch_size=batch_size)
            for line in _in_order(finished, start):
                stream.write(line.content)
                stream.flush()
                num_tokens += line.num_tokens
                num_bad += line.num_tokens is None
                bar.update()
                bar.set_postfix_str(f"{num_tokens / (time.monotonic() - started):.0f} tokens/s")
