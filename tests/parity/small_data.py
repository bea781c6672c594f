"""Preference pairs and dialogues for the comparisons with TRL, made by a program: short, of unequal lengths.

Standard library only. There is an answer of one word and one longer than the model's window, a system message here
and there, prompts of several turns, and text outside ASCII (several bytes, so several tokens, per letter).
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

Row = dict[str, Any]

NUM_PAIRS = 20
_COLOURS = ("red", "green", "blue", "grün", "žlutá", "紫")
_ANIMALS = ("cat", "heron", "ox", "salamander")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def make_pairs() -> list[Row]:
    """NUM_PAIRS rows with the columns prompt, chosen, rejected (the last two as messages, prompt turns included)."""
    rows = []
    for number in range(NUM_PAIRS):
        kind, turn = number % 3, number // 3
        left, right, times = 3 + 7 * turn % 11, 2 + 5 * turn % 13, 1 + turn % 4
        colour, animal = _COLOURS[turn % len(_COLOURS)], _ANIMALS[turn % len(_ANIMALS)]
        questions = [f"Add {left} and {right}.", f"Say {colour}, {times} in all.", f"Which is larger, {animal} or ant?"]
        chosen = [f"{left + right}", " ".join([colour] * times), f"The {animal} is larger than the ant."]
        rejected = [
            f"I would say {left + right + times}, or thereabouts.",
            f"{colour}!",
            f"No {animal}. " * (1 + number % 5) + "Done.",
        ]
        prompt = [_message("user", questions[kind])]
        if number % 4 == 1:
            prompt.insert(0, _message("system", f"Answer briefly; you are a {animal}."))
        if number % 5 == 2:
            prompt += [_message("assistant", chosen[kind]), _message("user", "Again?")]
        rows.append(
            {
                "prompt": questions[kind],
                "prompt_id": f"pair-{number}",
                "chosen": [*prompt, _message("assistant", chosen[kind])],
                "rejected": [*prompt, _message("assistant", rejected[kind])],
                "score_chosen": None,
                "score_rejected": None,
            }
        )
    return rows


def make_dialogues() -> list[Row]:
    """NUM_PAIRS rows with the columns prompt, prompt_id, messages: the chosen answers; every third goes on a turn."""
    rows = []
    for number, pair in enumerate(make_pairs()):
        messages = list(pair["chosen"])
        if number % 3 == 0:
            messages += [_message("user", "Why?"), _message("assistant", "Because " + "so " * (number % 7) + "it is.")]
        rows.append({"prompt": pair["prompt"], "prompt_id": pair["prompt_id"], "messages": messages})
    return rows


def write_rows(rows: list[Row], path: pathlib.Path) -> pathlib.Path:
    """Writes JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
