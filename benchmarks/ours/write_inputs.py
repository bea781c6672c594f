"""Writes what all sides of a benchmark read: the model as a Hugging Face folder, and the rows; counts the work in them.

Run by the programs beside this folder with our Python; one JSON line on stdout.

  OUT/model/            float32 weights, tokenizer, chat template
  OUT/pairs.jsonl       --kind pairs: ids of prompt, chosen and rejected, as we make them
  OUT/dialogues.jsonl   --kind dialogues: the first rows of the file that fit a row whole, so that no side cuts any
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.data.loader import SftBatches
from zephyr_jax.data.preparing import prepare_conversations, prepare_pairs
from zephyr_jax.data.sources import read_conversations, read_pairs
from zephyr_jax.model.hf_folder import save_model
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.planning.model_flops import model_flops
from zephyr_jax.recipe import Source
from zephyr_jax.records import ReadReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--kind", required=True, choices=["pairs", "dialogues"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", required=True, type=int, help="pairs from the file's start, or dialogues that fit")
    parser.add_argument("--max-length", required=True, type=int, help="of a prompt and one answer; of a row")
    parser.add_argument("--batch-size", required=True, type=int, help="rows of a step (dialogues)")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    weights = open_weights(arguments.weights)
    tokenizer = load_chat_tokenizer(weights.tokenizer, chat_template="zephyr", bos="auto", empty_system_turn=False)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = weights.load_params(jax.tree.map(lambda _: here, abstract_params(weights.shape)))
    save_model(params, arguments.out / "model", shape=weights.shape, dtype="float32", tokenizer=tokenizer)
    write = write_pairs if arguments.kind == "pairs" else write_dialogues
    work = write(arguments, tokenizer)
    # Of training on them, as the mathematics needs it; attention's scores are left out.
    flops = model_flops(weights.shape, num_tokens=work["tokens"], num_targets=work["target_tokens"])
    print(json.dumps(work | {"flops": flops}))


def write_pairs(arguments: argparse.Namespace, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Writes the ids of the pairs; returns how many fit whole, their unique tokens and their response tokens.

    A pair whose prompt we would cut is none of them: TRL leaves it out.
    """
    source = Source(source=arguments.data, limit=arguments.limit)
    rows, report = read_pairs((source,), seed=0, max_bad_rows=1.0)
    pairs = prepare_pairs(
        rows,
        tokenizer,
        max_length=arguments.max_length,
        max_prompt_length=arguments.max_length // 2,
        row_length=2 * arguments.max_length,
        report=report,
    )
    with (arguments.out / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for index in range(len(pairs)):
            ids = (part.tolist() for part in pairs[index])
            file.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), ids, strict=True))) + "\n")
    tokens, targets = int(pairs.lengths.sum()), int(pairs.lengths[:, 1:].sum())
    return {"pairs": len(pairs) - sum(report.cut.values()), "tokens": tokens, "target_tokens": targets}


def write_dialogues(arguments: argparse.Namespace, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Writes rows; returns dialogues, tokens and target tokens, and the target tokens of each of our steps."""
    rows, _ = read_conversations((Source(source=arguments.data),), seed=0, max_bad_rows=1.0)
    fitting = (row for row in rows if len(tokenizer.encode_conversation(row.messages).ids) <= arguments.max_length)
    taken = [row for row, _ in zip(fitting, range(arguments.limit), strict=False)]
    with (arguments.out / "dialogues.jsonl").open("w", encoding="utf-8") as file:
        for row in taken:
            line = {"prompt": row.messages[0]["content"], "prompt_id": row.prompt_id, "messages": list(row.messages)}
            file.write(json.dumps(line) + "\n")
    dialogues = prepare_conversations(
        taken, tokenizer, max_length=arguments.max_length, loss_on="assistant", report=ReadReport()
    )
    batches = SftBatches(
        dialogues, max_length=arguments.max_length, packing=True, batch_size=arguments.batch_size, shuffle=False
    )
    return {
        "dialogues": len(dialogues),
        "tokens": int(dialogues.lengths.sum()),
        "target_tokens": int(dialogues.num_targets.sum()),
        "our_rows": batches.num_items,
        "our_step_targets": [int(batch["target_weights"].sum()) for batch in batches.batches()],
    }


if __name__ == "__main__":
    main()
