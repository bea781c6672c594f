"""From prompts to an aligned model: feedback in this process makes pairs, and dDPO trains on them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax import feedback, train


def test_ddpo_trains_on_what_feedback_made(tmp_path: Path) -> None:
    model = write_chat_model(tmp_path / "model", context=1024)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {number}?"}) + "\n" for number in range(6)))
    (tmp_path / "feedback.yaml").write_text(f"""
name: made
output_dir: {tmp_path / "runs"}
models: {{ours: {{model: {model}, batch_size: 8}}}}
teacher: ours
prompts: [{prompts}]
completions: {{students: [ours], per_prompt: 2, principles: [], max_tokens: 6}}
annotation: {{rating: logprobs, aspects: [helpfulness]}}
binarisation: {{}}
""")
    assert feedback.main(["--config", str(tmp_path / "feedback.yaml")]) == 0
    pairs = tmp_path / "runs/made/aif/preferences.jsonl"
    assert len(pairs.read_text().splitlines()) >= 4
    (tmp_path / "train.yaml").write_text(f"""
name: aligned
output_dir: {tmp_path / "runs"}
stages: [ddpo]
model: {{weights: {model}, compute_dtype: float32, remat: none}}
ddpo:
  data: {{train: [{pairs}]}}
  max_length: 96
  max_prompt_length: 64
  row_length: 192
  batch_size: 4
  max_steps: 2
  learning_rate: 1.0e-3
""")
    assert train.main(["--config", str(tmp_path / "train.yaml")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs/aligned/ddpo/metrics.jsonl").read_text().splitlines()]
    assert abs(lines[0]["loss"] - 0.6931) < 1e-3 and lines[-1]["step"] == 2
