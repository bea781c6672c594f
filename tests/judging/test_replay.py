"""A replaying judge says what is stored, in its order, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply
from zephyr_jax.judging.replay import ReplayJudge


def _asked(judge: ReplayJudge, text: str, *, seed: int = 0) -> str:
    messages = ({"role": "system", "content": "any"}, {"role": "user", "content": text})
    return asyncio.run(judge.reply(ChatRequest(messages, max_tokens=1, seed=seed))).text


def test_stored_answers_come_in_their_order_and_then_no_more() -> None:
    stored = [("q", "first"), ("other", "x"), ("q", "second")]
    judge = ReplayJudge("gpt-4", [(text, Reply(answer, "stop", 0, 0)) for text, answer in stored])
    assert [_asked(judge, "q"), _asked(judge, "q", seed=1)] == ["first", "second"]
    with pytest.raises(CallFailed, match="no further answer is stored"):
        _asked(judge, "q")
    with pytest.raises(CallFailed, match="nothing is stored to the question that begins 'new'"):
        _asked(judge, "new")
    assert judge.identity["model"] == "gpt-4"
