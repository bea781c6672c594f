"""A small AI feedback recipe against a stub server, shared by the tests of the step and of the command."""

from __future__ import annotations

import json
from pathlib import Path

NUM_PROMPTS = 12


def write_prompts(path: Path, num_prompts: int = NUM_PROMPTS) -> Path:
    """Prompts of one turn, but for the last, which is a dialogue."""
    rows: list[dict] = [{"prompt": f"Question {number}?", "source": "made"} for number in range(num_prompts - 1)]
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?")]
    rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder: Path, url: str, *, num_prompts: int = NUM_PROMPTS) -> Path:
    """The recipe; its output goes below `folder`."""
    prompts = write_prompts(folder / "prompts.jsonl", num_prompts)
    server = f"base_url: {url}, retry_seconds: 0.01, timeout_seconds: 30, concurrency: 4"
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: small
output_dir: {folder / "runs"}
models:
  judge: {{{server}, model: judge-model}}
  a: {{{server}, model: model-a}}
  b: {{{server}, model: model-b}}
  c: {{{server}, model: model-c}}
teacher: judge
prompts: [{prompts}]
completions: {{students: [a, b, c], per_prompt: 2, max_tokens: 32}}
annotation: {{max_tokens: 64}}
binarisation: {{}}
""")
    return path
