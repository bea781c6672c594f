"""The reference pass as a command: log-probs of chosen and rejected answers under a model, one line per input row.

python -m zephyr_jax.score --model runs/tiny/ddpo --data pairs.jsonl --out scores.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.cli import open_output, run_command
from zephyr_jax.records import BadRow, InputError, PreferencePair, ReadReport

PAIRS_PER_BATCH = 8


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.score",
        description="Sums of natural-log probabilities over the response tokens of both answers of every pair.",
        epilog="example: python -m zephyr_jax.score --model runs/tiny/ddpo --data pairs.jsonl --out scores.jsonl",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="HF folder, stage folder, builtin:NAME")
    parser.add_argument("--data", required=True, metavar="PAIRS", help="a source of preference pairs, as in a recipe")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="a line per row, in order")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and one response (%(default)s)")
    parser.add_argument("--max-prompt-length", type=int, default=512, help="a cut prompt's tokens (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute (%(default)s)")
    parser.add_argument("--chat-template", default="tokenizer", help="zephyr, tokenizer or a jinja file (%(default)s)")
    parser.add_argument("--bos", choices=["auto", "always", "never"], default="auto", help="BOS policy (%(default)s)")
    return parser


def read_rows(source: str) -> tuple[list[PreferencePair | None], list[dict[str, Any]]]:
    """Every row of a source, usable or not.

    Args:
      source: as in a recipe.

    Returns:
      The pair of each row, None where there is none; and its output line so far: row, prompt_id, nulls and error.

    Raises:
      InputError: the source cannot be read, or has no row.
    """
    from zephyr_jax.data.sources import RowError, iterate_rows, parse_pair

    pairs: list[PreferencePair | None] = []
    lines: list[dict[str, Any]] = []
    for number, (location, row) in enumerate(iterate_rows(source)):
        prompt_id, pair, error = None, None, None
        if isinstance(row, BadRow):
            error = row.reason
        else:
            prompt_id = row.get("prompt_id")
            try:
                pair = parse_pair(row, location)
            except RowError as problem:
                error = str(problem)
        pairs.append(pair)
        lines.append(_line(number, prompt_id, error))
    if not lines:
        raise InputError(f"--data {source}: has no rows; wanted preference pairs")
    return pairs, lines


def _line(number: int, prompt_id: Any, error: str | None) -> dict[str, Any]:
    line: dict[str, Any] = {"row": number, "prompt_id": prompt_id, "logp_chosen": None, "logp_rejected": None}
    line |= {"num_chosen_tokens": None, "num_rejected_tokens": None}
    return line | ({"error": error} if error else {})


def _run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.max_prompt_length < arguments.max_length:
        raise InputError(
            f"--max-prompt-length: got {arguments.max_prompt_length}, wanted 1 or more and less than --max-length "
            f"({arguments.max_length})"
        )
    with open_output(arguments.out) as file:
        pairs, lines = read_rows(arguments.data)
        score_lines(arguments, pairs, lines)
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    unusable = sum("error" in line for line in lines)
    print(f"score: {len(lines)} rows, {unusable} of them unusable -> {arguments.out}", file=sys.stderr)


def score_lines(
    arguments: argparse.Namespace, pairs: Sequence[PreferencePair | None], lines: list[dict[str, Any]]
) -> None:
    """Fills in the lines: sums and counts, or why a row cannot be scored."""
    import jax

    from zephyr_jax import recipe
    from zephyr_jax.compilation import keep_compiled_programs
    from zephyr_jax.data.chat import load_chat_tokenizer
    from zephyr_jax.data.loader import PairBatches
    from zephyr_jax.data.preparing import prepare_pairs
    from zephyr_jax.host_memory import keep_freed_memory
    from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, abstract_params
    from zephyr_jax.model.sources import open_weights
    from zephyr_jax.sharding import make_mesh, num_row_shards, tree_shardings
    from zephyr_jax.stages.reference import score_all_pairs
    from zephyr_jax.stages.start import say_attention

    source = open_weights(arguments.model)
    tokenizer = load_chat_tokenizer(source.tokenizer, chat_template=arguments.chat_template, bos=arguments.bos)
    keep_freed_memory()  # before the first question for a device
    mesh = make_mesh(recipe.Mesh())
    keep_compiled_programs()
    row_length = 2 * arguments.max_length
    numbers = [number for number, pair in enumerate(pairs) if pair is not None]
    encoded = prepare_pairs(
        [pair for pair in pairs if pair is not None],
        tokenizer,
        max_length=arguments.max_length,
        max_prompt_length=arguments.max_prompt_length,
        row_length=row_length,
        report=ReadReport(),
        progress=True,
    )
    for index, reason in encoded.dropped.items():
        lines[numbers[index]]["error"] = reason
    if len(encoded) == 0:
        return
    batches = PairBatches(
        encoded,
        layout="packed",
        row_length=row_length,
        batch_size=PAIRS_PER_BATCH,
        shuffle=False,
        row_multiple=num_row_shards(mesh),
        pad_id=tokenizer.pad_id,
    )
    with jax.set_mesh(mesh):
        params = source.load_params(tree_shardings(abstract_params(source.shape), PARTITION_RULES, mesh))
        settings = ModelSettings(compute_dtype=arguments.dtype, attention="auto")
        say_attention(settings, source.shape, (shape.row_length for shape in batches.shapes))
        scored = score_all_pairs(params, batches, shape=source.shape, settings=settings, mesh=mesh, name="score")
        for rows, values in scored:
            for place, index in enumerate(rows):
                lines[numbers[encoded.rows[index]]] |= {
                    "logp_chosen": float(values["chosen"][place]),
                    "logp_rejected": float(values["rejected"][place]),
                    "num_chosen_tokens": int(values["num_chosen_tokens"][place]),
                    "num_rejected_tokens": int(values["num_rejected_tokens"][place]),
                }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
