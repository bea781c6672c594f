"""Asking on behalf of a run: nothing twice, nothing over the budget, results in the order of the jobs."""

from __future__ import annotations

import asyncio
import collections
import errno
import os
import random
import re
from pathlib import Path

import pytest

from zephyr_jax.judging.budget import BudgetSpent, Purse
from zephyr_jax.judging.calls import Caller, ask_until, run_jobs
from zephyr_jax.judging.journal import Journal
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply, Stop, derived_seed, draw_order
from zephyr_jax.judging.tally import Tally
from zephyr_jax.records import Unfinished
from zephyr_jax.respondent_options import Budget, Price

NO_LIMIT, FREE = Budget(), Price()


class Echo:
    """A respondent that says the request back, after a moment of random length."""

    identity = {"model": "echo"}
    window = 4

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def reply(self, request: ChatRequest) -> Reply:
        self.asked.append(request.seed)
        await asyncio.sleep(random.random() / 200)
        if request.seed == 13:
            raise CallFailed("13")
        return Reply(f"{request.messages[-1]['content']}/{request.seed}", "stop", 6, 4)

    async def close(self) -> None: ...


def _request(number: int) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": "x" * 8},), max_tokens=10, seed=number)


def _run(folder: Path, numbers: list[int], *, budget: Budget = NO_LIMIT, price: Price = FREE):
    """One session: the texts in order, whom it asked, what was spent, and why it stopped."""

    async def session():
        echo, purse, stop, tally = Echo(), Purse(budget), Stop(), Tally()
        journal = Journal(folder / "calls.jsonl")
        caller = Caller(echo, journal, run="run", price=price, purse=purse, tally=tally, stop=stop)
        caller.pay_for_earlier_sessions()

        async def ask(number: int) -> str:
            return (await caller.ask(_request(number), call=f"test:{number}")).text

        jobs = [lambda number=number: ask(number) for number in numbers]
        texts = await run_jobs(jobs, window=echo.window, stop=stop)
        journal.close()
        return texts, sorted(echo.asked), purse.spent, stop.reason

    return asyncio.run(session())


def test_results_are_in_the_order_of_the_jobs_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    texts, asked, spent, _ = _run(tmp_path, list(range(12)))
    assert texts == [f"xxxxxxxx/{number}" for number in range(12)] and asked == list(range(12))
    again, asked, spent_again, _ = _run(tmp_path, list(range(13)))
    assert again[:12] == texts and asked == [12]
    assert spent.requests == 12 and spent_again.requests == 13


@pytest.mark.parametrize(
    "budget",
    [Budget(requests=5), Budget(tokens=62), Budget(cost=0.000062)],
    ids=["requests", "tokens", "cost"],
)
def test_a_budget_is_never_passed_and_the_run_goes_on_with_a_larger_one(tmp_path: Path, budget: Budget) -> None:
    """An answer takes 10 tokens, its worst case is 6 by estimate and 10 allowed: five take 50 of 62, and 66 is more."""
    price = Price(input=1.0, output=1.0)
    texts, asked, spent, reason = _run(tmp_path, list(range(10)), budget=budget, price=price)
    assert isinstance(reason, BudgetSpent) and "budget." in str(reason)
    assert spent.requests == 5 == len(asked) == sum(text is not None for text in texts)
    _, asked, _, reason = _run(tmp_path, list(range(10)), budget=budget, price=price)
    assert asked == [] and isinstance(reason, BudgetSpent)
    texts, asked, spent, reason = _run(tmp_path, list(range(10)), price=price)
    assert None not in texts and len(asked) == 5 and spent.requests == 10 and reason is None


def test_a_full_disk_stops_the_run_in_one_sentence(tmp_path: Path, monkeypatch) -> None:
    keep = Journal.keep

    def fail_at_three(journal: Journal, *arguments, **options) -> None:
        if len(journal) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        keep(journal, *arguments, **options)

    monkeypatch.setattr(Journal, "keep", fail_at_three)
    texts, asked, _, reason = _run(tmp_path, list(range(20)))
    assert isinstance(reason, Unfinished) and re.search(
        r"calls\.jsonl: an answer cannot be kept .*No space", str(reason)
    )
    assert sum(text is not None for text in texts) == 3 and len(asked) <= 3 + Echo.window


def test_an_unusable_answer_is_asked_again_then_counted(tmp_path: Path) -> None:
    async def session():
        journal = Journal(tmp_path / "calls.jsonl")
        caller = Caller(Echo(), journal, run="run", price=Price(), purse=Purse(Budget()), tally=Tally(), stop=Stop())
        unusable: collections.Counter[str] = collections.Counter()

        async def ask(first: int, wanted: int) -> int | None:
            def parse(reply: Reply) -> int | None:
                seed = int(reply.text.split("/")[1])
                return seed if seed == wanted else None

            return await ask_until(
                caller, lambda attempt: _request(first + attempt), parse, max_tries=3, call="rate:p", unusable=unusable
            )

        found = [await ask(0, 2), await ask(20, 99), await ask(13, 13)]
        journal.close()
        return found, unusable

    found, unusable = asyncio.run(session())
    assert found == [2, None, None]
    assert unusable == {"rate: unusable answer, asked again": 4, "rate: given up": 1, "rate: no answer": 1}


def test_a_job_that_fails_ends_the_others_with_its_own_error() -> None:
    async def wait() -> None:
        await asyncio.sleep(60)

    async def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(run_jobs([wait, fail, wait], window=3, stop=Stop()))


def test_draws_depend_on_their_names_alone() -> None:
    """A further model moves no other in the order, and seeds are those of every machine and version
    (`printf '["42", "a", "1"]' | sha256sum`, the first 31 bits)."""
    names = [f"model-{number}" for number in range(6)]
    order = draw_order(names, 42, "prompt")
    assert sorted(order) == names and order != names
    longer = draw_order([*names, "model-6"], 42, "prompt")
    assert [name for name in longer if name != "model-6"] == order
    assert draw_order(names, 43, "prompt") != order != draw_order(names, 42, "other prompt")
    assert derived_seed(42, "a", 1) == derived_seed("42", "a", "1") == 1118629475
    assert all(0 <= derived_seed(number) < 2**31 for number in range(100))
