"""A recipe of both stages with its data in files, for a very small model. Not a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.stages.small_runs import SHAPE, dialogue_rows, pair_rows, write_rows


def write_config(folder: Path, **changes: Any) -> str:
    """A whole recipe with its data: 12 dialogues in 3 steps and 8 pairs in 2, 4 rows of evaluation each."""
    data = {
        name: write_rows(folder / f"{name}.jsonl", rows)
        for name, rows in {
            "chat": dialogue_rows(12),
            "chat_eval": dialogue_rows(4),
            "pairs": pair_rows(8),
            "pairs_eval": pair_rows(4),
        }.items()
    }
    config = {
        "name": "whole",
        "output_dir": str(folder / "runs"),
        "model": {"weights": None, "shape": SHAPE, "compute_dtype": "float32", "remat": "none"},
        "tokenizer": "builtin:bytes",
        "samples": {"num_prompts": 2, "max_new_tokens": 4, "num_exact": 4},
        "dsft": {
            "data": {"train": [data["chat"]], "eval": [data["chat_eval"]]},
            "max_length": 128,
            "packing": False,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
        },
        "ddpo": {
            "data": {"train": [data["pairs"]], "eval": [data["pairs_eval"]]},
            "max_length": 64,
            "max_prompt_length": 40,
            "row_length": 128,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
        },
    }
    path = folder / "whole.yaml"
    path.write_text(json.dumps(config | changes))  # JSON is YAML
    return str(path)
