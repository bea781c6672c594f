"""Rows in FastChat's formats with made-up content, and files of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def a_grading(question_id: int, score: float, *, turn: int = 1, model: str = "ours", **fields: Any) -> dict[str, Any]:
    judgment = f"Some reasons. Rating: [[{score}]]" if score != -1 else "No rating here."
    return {
        "question_id": question_id, "model": model, "judge": ["gpt-4", "single-v1"], "user_prompt": "shown",
        "judgment": judgment, "score": score, "turn": turn, "tstamp": 1.5,
    } | fields  # fmt: skip


def a_pair(question_id: int, first: str, second: str, **fields: Any) -> dict[str, Any]:
    return {
        "question_id": question_id, "model_1": "ours", "model_2": "theirs", "g1_winner": first, "g2_winner": second,
        "judge": ["gpt-4", "pair-v2"], "g1_user_prompt": "p1", "g1_judgment": "j1", "g2_user_prompt": "p2",
        "g2_judgment": "j2", "turn": 1, "tstamp": 1.5,
    } | fields  # fmt: skip


def a_question(question_id: int, category: str) -> dict[str, Any]:
    return {"question_id": question_id, "category": category, "turns": ["First?", "Second?"]}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
