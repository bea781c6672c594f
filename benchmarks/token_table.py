"""How many tokens each layout of a dDPO batch processes for a pair; prints a table and writes JSON. Nothing is trained.

    export ZEPHYR_DATA=.../data                # preferences_train.jsonl
    make mistral                               # brings Mistral-7B's tokenizer
    .venv/bin/python -m benchmarks.token_table

Padded: both answers of a pair, each behind its prompt, filled up to the longest row of the batch, as TRL does. Packed:
rows of `--row-length` tokens, as many as the batch needs, each counted whole. The loader's row is what `train`
processes: its packed rows filled up to the few shapes that a run compiles. "All at once" is one batch of everything:
what packing can reach. In file order, of two sets of pairs: those that fit (we drop the others), and all of them with
answers cut to fit, which is what a trainer that cuts answers processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import side_by_side
from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.data.encoded import EncodedPairs
from zephyr_jax.data.loader import PairBatches
from zephyr_jax.data.packing import best_fit
from zephyr_jax.data.pair_rows import pack_pairs
from zephyr_jax.data.preparing import cut_prompt, prepare_pairs
from zephyr_jax.data.sources import read_pairs
from zephyr_jax.recipe import Source
from zephyr_jax.records import PreferencePair

LAYOUTS = {
    "padded": "padded to the longest of the batch",
    "sorted": "the same, pairs sorted by length",
    "packed": "packed rows, the prompt with each answer",
    "shared": "packed rows, the prompt shared",
    "loader": "the same, as `train` loads it",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="builtin:mistral-7b-v0.1")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--max-prompt-length", type=int, default=512)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32], help="pairs of an optimizer step")
    parser.add_argument("--limit", type=int, help="pairs, from the file's start")
    parser.add_argument("--out", type=Path, help="JSON; default: benchmarks/results/token_table_DATE.json")
    arguments = parser.parse_args()
    source = Source(source=str(side_by_side.data_file("preferences_train.jsonl")), limit=arguments.limit)
    rows, read = read_pairs((source,), seed=0, max_bad_rows=1.0, progress=False)
    tokenizer = load_chat_tokenizer(arguments.tokenizer, chat_template="zephyr", bos="auto", empty_system_turn=False)
    lengths = {"max_length": arguments.max_length, "max_prompt_length": arguments.max_prompt_length}
    fitting = prepare_pairs(rows, tokenizer, **lengths, row_length=arguments.row_length, report=read)
    sets = {"pairs that fit": fitting, "all pairs, answers cut": pairs_cut_to_fit(rows, tokenizer, **lengths)}
    report = side_by_side.report_head(vars(arguments)) | {
        "sets": {
            name: count_tokens(pairs, batch_sizes=arguments.batch_sizes, row_length=arguments.row_length)
            for name, pairs in sets.items()
        }
    }
    print(table(report))
    side_by_side.write_report(report, "token_table", out=arguments.out)


def pairs_cut_to_fit(
    rows: list[PreferencePair], tokenizer: ChatTokenizer, *, max_length: int, max_prompt_length: int
) -> EncodedPairs:
    """All pairs: the prompt cut by our rule, then each answer's end where prompt and answer exceed `max_length`."""

    def cut(row: int, pair: PreferencePair) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        encoded = tokenizer.encode_pair(pair.prompt, pair.chosen, pair.rejected)
        longest = max(len(encoded.chosen), len(encoded.rejected))
        prompt = cut_prompt(encoded.prompt, longest, max_length=max_length, max_prompt_length=max_prompt_length)
        left = max_length - len(prompt)
        return row, prompt, encoded.chosen[:left], encoded.rejected[:left]

    return EncodedPairs.collect(cut(row, pair) for row, pair in enumerate(rows))


def count_tokens(pairs: EncodedPairs, *, batch_sizes: list[int], row_length: int) -> dict[str, Any]:
    """Tokens processed per pair, by layout and batch size ("all": one batch), and the loader's row shapes."""
    counts: dict[str, Any] = {
        "pairs": len(pairs),
        "unique_tokens": pairs.lengths.sum() / len(pairs),
        "layouts": {name: {} for name in LAYOUTS},
        "shapes": {},
    }
    for size in (*batch_sizes, len(pairs)):
        column = "all" if size == len(pairs) else str(size)
        for name, tokens in batch_layouts(pairs.lengths, batch_size=size, row_length=row_length).items():
            counts["layouts"][name][column] = tokens / len(pairs)
        if column != "all":  # the loader has no such batch
            loaded = PairBatches(pairs, layout="packed", row_length=row_length, batch_size=size, shuffle=False)
            counts["layouts"]["loader"][column] = loaded.statistics()["positions"] / len(pairs)
            counts["shapes"][column] = [[shape.num_rows, shape.row_length] for shape in loaded.shapes]
    return counts


def batch_layouts(lengths: np.ndarray, *, batch_size: int, row_length: int) -> dict[str, int]:
    """Tokens that each layout but the loader's processes for all pairs.

    Args:
      lengths: int [M, 3], tokens of prompt, chosen and rejected.
      batch_size: pairs of a batch.
      row_length: tokens of a packed row.

    Returns:
      Tokens, padding included, by layout.
    """
    answers = lengths[:, :1] + lengths[:, 1:]  # [M, 2]: a row of its own each
    longest = answers.max(axis=1)
    batches = [slice(start, start + batch_size) for start in range(0, len(lengths), batch_size)]
    by_length = np.sort(longest)
    return {
        "padded": sum(longest[batch].size * 2 * int(longest[batch].max()) for batch in batches),
        "sorted": sum(by_length[batch].size * 2 * int(by_length[batch].max()) for batch in batches),
        "packed": sum(row_length * _num_rows(answers[batch].reshape(-1), row_length) for batch in batches),
        "shared": sum(row_length * len(pack_pairs(lengths[batch].sum(axis=1), row_length)) for batch in batches),
    }


def _num_rows(sizes: np.ndarray, row_length: int) -> int:
    """Rows that hold these items, packed longest first as pairs are."""
    return len(best_fit(sizes, row_length, order=np.argsort(-sizes, kind="stable").tolist()))


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    settings, parts = report["settings"], []
    columns = [*map(str, settings["batch_sizes"]), "all"]
    for name, counts in report["sets"].items():
        header = ["tokens processed per pair", *(f"batches of {size}" for size in columns[:-1]), "all at once"]
        rows = []
        for layout, label in LAYOUTS.items():
            tokens = counts["layouts"][layout]
            rows.append([label, *(f"{tokens[column]:.0f}" if column in tokens else "" for column in columns)])
        rows.append(["unique tokens", *[f"{counts['unique_tokens']:.1f}"] * len(columns)])
        shapes = "; ".join(
            f"batches of {size}: " + ", ".join(f"{num_rows} x {length}" for num_rows, length in found)
            for size, found in counts["shapes"].items()
        )
        parts.append(
            f"{counts['pairs']} {name} ({settings['tokenizer']}, {settings['max_length']} / "
            f"{settings['max_prompt_length']}, rows of {settings['row_length']}):\n\n"
            + side_by_side.markdown_table(header, rows)
            + f"\n\nRow shapes of the loader, {shapes}."
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
