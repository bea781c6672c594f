"""AlpacaEval's instructions are asked with Zephyr's sampling, and the rows are what the judging takes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import write
from zephyr_jax.evaluation.alpaca_answering import Answering, Instruction, read_instructions, write_outputs
from zephyr_jax.evaluation.alpaca_judging import Output, read_outputs
from zephyr_jax.evaluation.answering import AnswerCounts
from zephyr_jax.judging.protocol import ChatRequest, Reply, Unanswerable
from zephyr_jax.records import InputError


def test_outputs_are_written_as_alpaca_eval_reads_them(tmp_path: Path) -> None:
    asked: list[ChatRequest] = []

    async def ask(request: ChatRequest, call: str) -> Reply:
        asked.append(request)
        if request.messages[0]["content"] == "long":
            raise Unanswerable("too long")
        return Reply(" yes\n", "length", 3, 2)

    counts = AnswerCounts("ours")
    instructions = [Instruction("one", "set"), Instruction("long", None)]

    answering = Answering("ours")

    async def run():
        return {key: await job() for key, job in answering.jobs(instructions, ask, counts)}

    rows = answering.rows(instructions, asyncio.run(run()))
    assert rows[0] == {
        "instruction": "one", "output": "yes", "generator": "ours", "dataset": "set", "datasplit": "eval",
    }  # fmt: skip
    assert [(request.temperature, request.top_p, request.max_tokens) for request in asked] == [(0.7, 1.0, 2048)] * 2
    assert asked[0].messages == ({"role": "user", "content": "one"},) and asked[0].seed != asked[1].seed
    assert asked[0].seed == Answering("theirs", temperature=0.0).request("one").seed
    assert (counts.num_answers, counts.num_cut, counts.num_unanswerable, counts.mean_characters) == (1, 1, 1, 3)
    file = tmp_path / "ours" / "model_outputs.json"
    write_outputs(file, rows)
    assert read_outputs(str(file)) == [Output("one", "yes", "ours", "set"), Output("long", "", "ours", None)]


def test_instructions_are_read_in_order_each_once(tmp_path: Path) -> None:
    rows = [{"instruction": f"question {number}", "dataset": "set", "index": number} for number in range(5)]
    file = write(tmp_path / "eval.jsonl", rows)
    assert read_instructions(file, limit=2) == [Instruction("question 0", "set"), Instruction("question 1", "set")]
    assert len(read_instructions(file)) == 5
    with pytest.raises(InputError, match="limit: got 6, but .* has 5 instructions"):
        read_instructions(file, limit=6)
    with pytest.raises(InputError, match="eval.jsonl:6: its instruction is there before"):
        read_instructions(write(tmp_path / "eval.jsonl", [*rows, rows[0]]))
    with pytest.raises(InputError, match="wanted an instruction of AlpacaEval"):
        read_instructions(write(tmp_path / "eval.jsonl", [{"prompt": "?"}]))
