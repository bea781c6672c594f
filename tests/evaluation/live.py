"""A session for tests of what asks models."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tests.evaluation.fastchat_rows import a_question, write
from zephyr_jax.judging.session import Session
from zephyr_jax.respondent_options import Budget, ModelOptions

T = TypeVar("T")


def in_session(
    work: Callable[[Session], Awaitable[T]],
    models: Mapping[str, ModelOptions] | None = None,
    *,
    folder: Path | None = None,
    budget: Budget | None = None,
) -> T:
    """What `work` gives with a session of these models; their answers are kept in `folder`, or nowhere for long."""

    async def run(calls: Path) -> T:
        session = Session(models or {}, command="test", run="run", folder=calls, budget=budget or Budget())
        async with session:
            return await work(session)

    with tempfile.TemporaryDirectory() as place:
        return asyncio.run(run(folder or Path(place)))


def write_live_recipe(folder: Path, url: str, num_questions: int, *, block: str = "mt_bench") -> Path:
    """A recipe by which a model at `url` judges two models' answers; its output is in `folder`.

    `mt_bench`: both are graded. `alpaca_eval`: `ours` is ranked against `theirs`. Answers of `theirs` are the longer
    ones; of `ours`, the first is `dunno` and the second `late`.
    """
    odd = {0: "dunno", 1: "late"}
    texts = {"ours": [odd.get(number, f"o{number}") for number in range(num_questions)]}
    texts["theirs"] = [f"answer {number}, longer" for number in range(num_questions)]
    for model, given in texts.items():
        rows = [
            {"question_id": number, "model_id": model, "choices": [{"index": 0, "turns": [text, f"{text} again"]}]}
            for number, text in enumerate(given)
        ]
        write(folder / f"{model}.jsonl", rows)
        outputs = [
            {"instruction": f"Instruction {number}?", "output": text, "generator": model}
            for number, text in enumerate(given)
        ]
        write(folder / f"{model}_outputs.jsonl", outputs)
    questions = write(folder / "question.jsonl", [a_question(number, "writing") for number in range(num_questions)])
    prompts = write(
        folder / "judge_prompts.jsonl",
        [
            {"name": name, "system_prompt": "You judge.", "prompt_template": text}
            for name, text in {
                "single-v1": "Q {question} A: {answer}",
                "single-v1-multi-turn": "Q {question_1} A: {answer_1} Q {question_2} A: {answer_2}",
                "pair-v2": "Q {question} A: {answer_a} B: {answer_b}",
                "pair-v2-multi-turn": "Q {question_1} {question_2} A: {answer_a_2} B: {answer_b_2}",
            }.items()
        ],
    )
    prompt = folder / "prompt.txt"
    prompt.write_text(
        "<|im_start|>system\nYou rank.\n<|im_end|>\n<|im_start|>user\n"
        "Instruction {instruction}\n1: {output_1}\n2: {output_2}\n<|im_end|>"
    )
    bench = f"""
mt_bench:
  questions: {questions}
  published: false
  judging:
    answers: [{folder / "ours.jsonl"}, {folder / "theirs.jsonl"}]
    prompts: {prompts}
    judge: judge
    max_tokens: 64
"""
    alpaca = f"""
alpaca_eval:
  judging:
    outputs: {folder / "ours_outputs.jsonl"}
    baseline: {folder / "theirs_outputs.jsonl"}
    prompt: {prompt}
    reading: ranking
    judge: judge
"""
    blocks = {"mt_bench": bench, "alpaca_eval": alpaca}
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: live
output_dir: {folder / "runs"}
report: false
statistics: {{resamples: 200}}
models:
  judge: {{base_url: {url}, model: judge-model, concurrency: 4, retry_seconds: 0.01, timeout_seconds: 30}}
{blocks[block]}
""")
    return path
