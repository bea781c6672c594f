"""Answers a file of prompts, one JSON line per row in the rows' order; started again it goes on where it stopped.

Parses, builds, calls: decoding is in generation/, the output file's rules in generation/answer_file.py.

    python -m zephyr_jax.generate --model runs/tiny/ddpo --prompts prompts.jsonl --out answers.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zephyr_jax.cli import run_command
from zephyr_jax.data.sources import RowError, iterate_rows, parse_prompt
from zephyr_jax.generation.answer_file import answer_line, open_answer_file
from zephyr_jax.generation.options import (
    GenerationOptions,
    add_generation_arguments,
    add_model_argument,
    read_generation_options,
)
from zephyr_jax.records import BadRow, InputError, Message

if TYPE_CHECKING:
    import numpy as np

    from zephyr_jax.generation.loading import AnswerModel

# Rows are sorted by length within so many batches: little padding, and an interruption loses little.
BATCHES_PER_CHUNK = 8

_EXAMPLE = """example:
  python -m zephyr_jax.generate --model builtin:smollm2-135m-instruct --prompts prompts.jsonl --out answers.jsonl
OUT.settings.json, beside OUT, keeps what the answers were made with."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.generate",
        description="Answers each row of a file of prompts; an interrupted run goes on where it stopped.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="rows with `messages`, or `prompt` as one turn"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="one line per row, in input order")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows answered together (%(default)s)")
    add_generation_arguments(parser)
    return parser


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """A row of the input: its fields ({} where it could not be read), and its dialogue or why there is none."""

    fields: Mapping[str, Any]
    messages: tuple[Message, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class _Answer:
    """A finished row: its line, and its number of tokens or why there is no answer."""

    line: bytes
    num_tokens: int = 0
    error: str | None = None


def _run(arguments: argparse.Namespace) -> None:
    options = read_generation_options(arguments)
    prompts = [_read_prompt(location, row) for location, row in iterate_rows(arguments.prompts)]
    # Imported here, and JAX with it: mistakes in the options and in the file's name have shown by now.
    from zephyr_jax.compilation import count_compilations
    from zephyr_jax.generation.loading import open_answer_model

    model = open_answer_model(
        arguments.model,
        chat_template=arguments.chat_template,
        bos=arguments.bos,
        dtype=arguments.dtype,
        num_devices=arguments.devices,
    )
    settings = model.fingerprint() | dataclasses.asdict(options)
    stream, num_kept = open_answer_file(arguments.out, [prompt.fields for prompt in prompts], settings=settings)
    with stream, count_compilations() as compiled:
        if num_kept < len(prompts):
            print(f"generate: loading {arguments.model}, {model.settings_text()}", file=sys.stderr)
            model = model.load()
        batches = _answer(model, prompts, num_kept, options=options, batch_size=arguments.batch_size)
        summary = _write(batches, stream, num_rows=len(prompts), num_kept=num_kept)
    if compiled.num_programs:
        summary += (
            f"; {compiled.num_programs} programs made ready in {compiled.seconds:.1f} s, {compiled.num_from_cache} of "
            "them out of the compilation cache"
        )
    print(f"generate: {summary} -> {arguments.out}", file=sys.stderr)


def _read_prompt(location: str, row: Mapping[str, Any] | BadRow) -> _Prompt:
    if isinstance(row, BadRow):
        return _Prompt({}, error=row.reason)
    try:
        return _Prompt(row, messages=parse_prompt(row, location))
    except RowError as error:
        return _Prompt(row, error=error.reason)


def _answer(
    model: AnswerModel, prompts: Sequence[_Prompt], num_kept: int, *, options: GenerationOptions, batch_size: int
) -> Iterator[dict[int, _Answer]]:
    """Answers the rows from `num_kept` on; yields row -> answer as batches end."""
    batch_size = min(batch_size, max(1, len(prompts) - num_kept))
    chunk_size = batch_size * BATCHES_PER_CHUNK
    for start in range(num_kept, len(prompts), chunk_size):
        encoded: dict[int, np.ndarray] = {}
        unusable: dict[int, _Answer] = {}
        for row, prompt in enumerate(prompts[start : start + chunk_size], start):
            try:
                if prompt.error is not None:
                    raise InputError(prompt.error)
                encoded[row] = model.encode(prompt.messages, max_new_tokens=options.max_new_tokens)
            except InputError as error:
                unusable[row] = _Answer(answer_line(prompt.fields, error=str(error)), error=str(error))
        yield unusable
        rows = list(encoded)
        for batch in model.answer(list(encoded.values()), options=options, row_indexes=rows, batch_size=batch_size):
            yield {
                rows[index]: _Answer(
                    answer_line(
                        prompts[rows[index]].fields,
                        response=model.text(response),
                        num_tokens=len(response.ids),
                        finish_reason=response.finish_reason,
                    ),
                    num_tokens=len(response.ids),
                )
                for index, response in batch.items()
            }


def _write(batches: Iterator[dict[int, _Answer]], stream: BinaryIO, *, num_rows: int, num_kept: int) -> str:
    """Writes answers in the order of the rows, each as soon as all before it are written; returns what was done."""
    from tqdm import tqdm

    started = time.monotonic()
    num_tokens, errors, next_row = 0, {}, num_kept
    waiting: dict[int, bytes] = {}
    with tqdm(total=num_rows, initial=num_kept, unit="row", desc="generate", file=sys.stderr) as bar:
        for batch in batches:
            for row, answer in batch.items():
                waiting[row] = answer.line
                num_tokens += answer.num_tokens
                if answer.error is not None:
                    errors[row] = answer.error
            while next_row in waiting:
                stream.write(waiting.pop(next_row))
                next_row += 1
            stream.flush()
            bar.update(len(batch))
            bar.set_postfix_str(f"{num_tokens / (time.monotonic() - started):.0f} tokens/s")
    seconds = time.monotonic() - started
    parts = [f"{num_rows} rows"]
    if num_kept:
        parts.append(f"{num_kept} of them kept from before")
    if errors:
        first = min(errors)
        parts.append(f"{len(errors)} without an answer (row {first + 1}: {errors[first]})")
    parts.append(f"{num_tokens} tokens in {seconds:.1f} s ({num_tokens / max(seconds, 1e-9):.0f} tokens/s)")
    return ", ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
