"""TRL's SFTTrainer with its own packing on the benchmark's dialogues: one JSON line, seconds and loss of every step.

Run by ../sft_vs_trl.py with the Python of an environment that has `pip install -e '.[parity]'`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import datasets
import torch
import transformers
import trl

from benchmarks.peers import step_clock

# Zephyr's template as the folder has it, the assistants' tokens marked for `assistant_only_loss`.
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token + '\n' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", required=True, type=Path, help="the folder that ours/write_inputs.py wrote")
    parser.add_argument("--max-length", required=True, type=int, help="tokens of a packed row")
    parser.add_argument("--batch-size", required=True, type=int, help="rows of a step")
    parser.add_argument("--epochs", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    lines = (arguments.inputs / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.inputs / "model")
    tokenizer.chat_template = MARKED_TEMPLATE
    clock = step_clock.StepClock()
    shared = step_clock.trainer_arguments(
        batch_size=arguments.batch_size, epochs=arguments.epochs, dtype=arguments.dtype, gradient_checkpointing=False
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(arguments.inputs / "model", dtype=torch.float32),
            args=trl.SFTConfig(
                output_dir=folder,
                max_length=arguments.max_length,
                packing=True,
                packing_strategy="bfd",
                assistant_only_loss=True,
                **shared,
            ),
            train_dataset=datasets.Dataset.from_list([{"messages": json.loads(line)["messages"]} for line in lines]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        row_targets = [sum(label != -100 for label in row["labels"]) for row in trainer.train_dataset]
        trainer.train()
    size = arguments.batch_size
    result = {
        "seconds": clock.seconds,
        "losses": step_clock.losses(trainer),
        "rows": len(row_targets),
        "step_targets": [sum(row_targets[start : start + size]) for start in range(0, len(row_targets), size)],
        "versions": step_clock.versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
