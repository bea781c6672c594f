"""A model in this process answers as `generate` would, whoever asks beside it, and judges by probabilities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax.feedback_recipe import load_feedback_recipe
from zephyr_jax.generation import loading
from zephyr_jax.judging.local_model import LocalModel
from zephyr_jax.judging.protocol import ChatRequest, Reply, Stop, Stopped, Unanswerable
from zephyr_jax.judging.ratings import DIGITS, expected_rating
from zephyr_jax.judging.tally import Tally
from zephyr_jax.respondent_options import ModelOptions
from zephyr_jax.stages.aif import run_feedback


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model that reads 1024 tokens."""
    return write_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=1024)


def _request(number: int, **options) -> ChatRequest:
    return ChatRequest(
        ({"role": "user", "content": f"Question {number}?"},),
        **{"max_tokens": 5, "temperature": 1.0, "seed": number, **options},
    )


def _ask(model: Path, requests: list[ChatRequest]) -> tuple[list[Reply | BaseException], Tally]:
    tally = Tally()

    async def ask_all() -> list[Reply | BaseException]:
        local = LocalModel(ModelOptions(model=str(model), batch_size=4), name="ours", tally=tally)
        return await asyncio.gather(*(local.reply(request) for request in requests), return_exceptions=True)

    return asyncio.run(ask_all()), tally


def test_an_answer_hangs_on_its_request_alone(model: Path) -> None:
    requests = [_request(number) for number in range(6)]
    together, tally = _ask(model, [*requests, _request(0, temperature=0.0), _request(1, max_tokens=9)])
    alone = [_ask(model, [request])[0][0] for request in (requests[2], requests[5])]
    assert [together[2], together[5]] == alone
    assert len({reply.text for reply in together[:6]}) > 1 and tally.tries == 8
    assert together[7].completion_tokens <= 9 and together[0].prompt_tokens > 10


def test_a_prompt_that_is_too_long_fails_alone(model: Path) -> None:
    long = ChatRequest(({"role": "user", "content": "x" * 2000},), max_tokens=5)
    (good, bad), tally = _ask(model, [_request(0), long])
    assert isinstance(good, Reply) and isinstance(bad, Unanswerable) and tally.failed == 1


def test_choices_are_rated_by_their_probabilities(model: Path) -> None:
    (reply, same), _ = _ask(model, [_request(3, choices=DIGITS, max_tokens=1)] * 2)
    assert reply == same and len(reply.choice_logprobs) == 5
    assert reply.text == DIGITS[max(range(5), key=lambda index: reply.choice_logprobs[index])]
    rating = expected_rating(reply)
    assert rating is not None and 1 < float(rating.rating) < 5


def test_what_waits_for_its_batch_is_dropped_when_a_stop_is_asked_for(model: Path) -> None:
    async def session() -> list[object]:
        stop = Stop()
        local = LocalModel(ModelOptions(model=str(model), batch_size=4), name="ours", tally=Tally(), stop=stop)
        asked = asyncio.gather(*(local.reply(_request(number)) for number in range(4)), return_exceptions=True)
        stop.ask(KeyboardInterrupt())
        return await asked

    assert all(isinstance(answer, Stopped) for answer in asyncio.run(session()))


@pytest.mark.parametrize(
    "options", [{"max_tokens": 600}, {"choices": DIGITS, "max_tokens": 1}], ids=["words", "choices"]
)
def test_an_interruption_drops_the_batch_that_is_answered(model: Path, monkeypatch, options) -> None:
    """In the first of three batches (16 rows, one a device): it ends within some tokens, or after that batch."""
    stop, num_steps = Stop(), 0

    def interrupted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def steps(*args: Any, **given: Any) -> Iterator[Any]:
            nonlocal num_steps
            stop.reason = KeyboardInterrupt()
            for found in plain(*args, **given):
                num_steps += 1
                yield found

        return steps

    for name in ("iterate_responses", "iterate_choice_logprobs"):
        monkeypatch.setattr(loading, name, interrupted(getattr(loading, name)))

    async def ask() -> list[object]:
        local = LocalModel(ModelOptions(model=str(model), batch_size=2), name="ours", tally=Tally(), stop=stop)
        asked = (local.reply(_request(number, **options)) for number in range(40))
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert num_steps <= 1 and sum(isinstance(answer, Stopped) for answer in found) >= 24


def test_feedback_without_any_server(tmp_path: Path, model: Path) -> None:
    """One model answers twice under different principles and judges by probabilities; every prompt has its ratings."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {number}?"}) + "\n" for number in range(5)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
name: small
output_dir: {tmp_path / "runs"}
models:
  ours: {{model: {model}, batch_size: 8}}
  twin: {{model: {model}, batch_size: 8}}
teacher: ours
prompts: [{prompts}]
completions: {{students: [ours, twin], per_prompt: 3, max_tokens: 6}}
annotation: {{rating: logprobs}}
binarisation: {{}}
""")
    summary = run_feedback(load_feedback_recipe(recipe))
    assert summary["completions"]["questions"] == 15 and summary["annotation"]["without_usable_answer"] == 0
    folder = tmp_path / "runs/small/aif"
    for line in (folder / "feedback.jsonl").read_text().splitlines():
        for completion in json.loads(line)["completions"]:
            ratings = [annotation["Rating"] for annotation in completion["annotations"].values() if annotation]
            assert len(ratings) == (4 if completion["response"] else 0)
            assert all(1 <= float(rating) <= 5 for rating in ratings)
    assert summary["binarisation"]["pairs"] >= 3
    before = (folder / "preferences.jsonl").read_bytes()
    for name in ("completions", "feedback", "preferences"):
        (folder / f"{name}.jsonl").unlink()
    run_feedback(load_feedback_recipe(recipe))
    assert (folder / "preferences.jsonl").read_bytes() == before
