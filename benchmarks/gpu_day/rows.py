"""Rows of made-up text in the lengths of real ones: dialogues as UltraChat's, pairs as UltraFeedback's.

With the tokenizer builtin:bytes a letter is a token, so a length is drawn and so many letters written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

# Medians and spread (sigma of the logarithm) of the parts, in tokens: a pair comes to some 570 with its prompt once, as
# real ones do with Mistral's tokenizer (benchmarks.token_table); a dialogue of three turns to some 1 100.
PROMPT_TOKENS, ANSWER_TOKENS, SIGMA = 140, 170, 0.7
TURN_TOKENS = (60, 240)
LONGEST = 480
NUM_TURNS = 3


def write_rows(folder: Path, *, num_dialogues: int, num_pairs: int, scale: float = 1.0, seed: int = 0) -> None:
    """Writes dialogues.jsonl and pairs.jsonl.

    Args:
      folder: an existing folder.
      num_dialogues: rows of the first.
      num_pairs: rows of the second.
      scale: of all lengths.
      seed: of the lengths and letters.
    """
    random = np.random.RandomState(seed)

    def text(median: int) -> str:
        length = int(np.clip(random.lognormal(np.log(median), SIGMA), 8, LONGEST) * scale)
        return "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz     "), max(length, 2))).strip() or "a"

    def turn(role: str, median: int) -> dict[str, str]:
        return {"role": role, "content": text(median)}

    with (folder / "dialogues.jsonl").open("w", encoding="utf-8") as file:
        for number in range(num_dialogues):
            roles = ("user", "assistant") * NUM_TURNS
            messages = [turn(role, TURN_TOKENS[role == "assistant"]) for role in roles]
            row = {"prompt": messages[0]["content"], "prompt_id": f"d{number}", "messages": messages}
            file.write(json.dumps(row) + "\n")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(num_pairs):
            prompt = turn("user", PROMPT_TOKENS)
            chosen, rejected = turn("assistant", ANSWER_TOKENS), turn("assistant", ANSWER_TOKENS)
            row = {"prompt": prompt["content"], "prompt_id": f"p{number}"}
            row |= {"chosen": [prompt, chosen], "rejected": [prompt, rejected]}
            row |= {"score_chosen": 8.0, "score_rejected": 4.0}
            file.write(json.dumps(row) + "\n")
