"""Asks models on behalf of a run: looks in the journal first, sets the money aside, asks, keeps the answer, counts.

Steps write one coroutine for each prompt or answer, as if it were alone, and `run_jobs` runs as many side by side as
keep the model busy. What is asked depends on the prompt alone, so order and concurrency change nothing.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from zephyr_jax.judging.budget import BudgetSpent, Purse
from zephyr_jax.judging.journal import Journal
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply, Respondent, Stop, Stopped
from zephyr_jax.judging.tally import Tally
from zephyr_jax.records import InputError, Unfinished
from zephyr_jax.respondent_options import Price

T = TypeVar("T")

# How a question ends without a usable answer: none came, or none of those that came could be used.
NO_ANSWER, GIVEN_UP = "no answer", "given up"


class Caller:
    """One model as a run asks it."""

    def __init__(
        self,
        respondent: Respondent,
        journal: Journal,
        *,
        run: str,
        price: Price,
        purse: Purse,
        tally: Tally,
        stop: Stop,
    ):
        self.respondent, self.journal, self.run = respondent, journal, run
        self.price, self.purse, self.tally, self.stop = price, purse, tally, stop
        self._estimated_tokens = self._prompt_tokens = 0

    def pay_for_earlier_sessions(self) -> None:
        """Counts what the run has spent on this journal's answers."""
        for line in self.journal.lines():
            if line["run"] == self.run:
                self.purse.pay_before(line["prompt_tokens"], line["completion_tokens"], self.price)

    async def pay_for_waste(self, request: ChatRequest, kind: str) -> None:
        """Counts a try that came to nothing at the most that may be billed for it.

        Args:
          request: what was asked.
          kind: what went wrong.

        Raises:
          Stopped: the budget has nothing left for another try.
        """
        prompt_tokens, completion_tokens = self._prompt_tokens_of(request), request.max_tokens
        self.journal.keep_waste(kind, run=self.run, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        try:
            await self.purse.pay_for_waste(prompt_tokens, completion_tokens, self.price)
        except BudgetSpent as spent:
            self.stop.ask(spent)
            raise Stopped from None

    def _prompt_tokens_of(self, request: ChatRequest) -> int:
        """By estimate, mended by how far off it was for the answers so far where it was too low."""
        estimated = request.estimated_prompt_tokens()
        return max(estimated, math.ceil(estimated * self._prompt_tokens / max(1, self._estimated_tokens)))

    async def ask(self, request: ChatRequest, *, call: str) -> Reply:
        """The answer to a request, from the journal or from the model.

        Args:
          request: the question.
          call: what it is for, for people who read the journal.

        Raises:
          CallFailed: it got none.
          Stopped: it was not asked any more; also where nobody can be, for the reason that the stop then has.
        """
        key = request.key(self.respondent.identity)
        kept = self.journal.find(key)
        if kept is not None:
            self.tally.kept += 1
            return kept
        self.stop.check()
        try:
            worst = await self.purse.set_aside(self._prompt_tokens_of(request), request.max_tokens, self.price)
        except BudgetSpent as spent:
            self.stop.ask(spent)
            raise Stopped from None
        reply = None
        started = time.monotonic()
        try:
            reply = await self.respondent.reply(request)
            self.tally.add(reply)
            self._prompt_tokens += reply.prompt_tokens
            self._estimated_tokens += request.estimated_prompt_tokens()
            self.journal.keep(key, reply, run=self.run, call=call, seconds=time.monotonic() - started)
        except (InputError, Unfinished) as reason:
            self.stop.ask(reason)
            raise Stopped from None
        except OSError as error:
            self.stop.ask(Unfinished(f"{self.journal.path}: an answer cannot be kept there ({error.strerror})"))
            raise Stopped from None
        finally:
            await self.purse.settle(worst, reply, self.price)
        return reply


async def ask_until(
    caller: Caller,
    request_of: Callable[[int], ChatRequest],
    parse: Callable[[Reply], T | None],
    *,
    max_tries: int,
    call: str,
    unusable: collections.Counter[str],
) -> T | None:
    """Asks until an answer can be used, each time as another request.

    Args:
      caller: whom.
      request_of: the request of an attempt, counted from 0.
      parse: what an answer says, or None where it cannot be used.
      max_tries: attempts at most.
      call: name for the journal.
      unusable: counts what came to nothing, under what and why.

    Returns:
      What the first usable answer says; None after max_tries, or where the model gave no answer.
    """
    kind = call.split(":", 1)[0]
    for attempt in range(max_tries):
        try:
            reply = await caller.ask(request_of(attempt), call=f"{call}:{attempt}")
        except CallFailed:
            unusable[f"{kind}: {NO_ANSWER}"] += 1
            return None
        parsed = parse(reply)
        if parsed is not None:
            return parsed
        caller.tally.trouble("unusable answer", f"({reply.finish_reason}) {reply.text}")
        unusable[f"{kind}: unusable answer, asked again" if attempt + 1 < max_tries else f"{kind}: {GIVEN_UP}"] += 1
    return None


async def run_jobs(
    jobs: Sequence[Callable[[], Awaitable[T]]],
    *,
    window: int,
    stop: Stop,
    done: Callable[[T], object] = lambda result: None,
) -> list[T | None]:
    """Runs jobs side by side, in their order as places become free.

    Args:
      jobs: each is called once, when its turn comes.
      window: how many at a time.
      stop: when it is asked for, no job begins any more, and those that need another call end without it.
      done: called with the result of each job as it comes.

    Returns:
      The results in the order of the jobs; None for jobs that were stopped.
    """
    results: list[T | None] = [None] * len(jobs)
    waiting = iter(range(len(jobs)))

    async def work() -> None:
        for index in waiting:
            if stop.reason is not None:
                return
            try:
                results[index] = result = await jobs[index]()
            except Stopped:
                return
            done(result)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(window, len(jobs))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return results
