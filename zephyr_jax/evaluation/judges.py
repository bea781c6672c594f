"""Who judges: a model of the recipe that is asked now, or a judge that says again what is stored of it.

Not here: what they are shown, and how their words are read (bench_judging.py, alpaca_judging.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

from zephyr_jax.judging.calls import run_jobs
from zephyr_jax.judging.protocol import ChatRequest, Reply, Stop
from zephyr_jax.judging.replay import ReplayJudge
from zephyr_jax.judging.session import Session
from zephyr_jax.records import Message

T = TypeVar("T")
# Answers a request; the text says what it is for, to people who read the journal.
Ask = Callable[[ChatRequest, str], Awaitable[Reply]]


class Judge(Protocol):
    """Whoever judges, by the name that stands in the rows."""

    name: str

    async def ask(self, request: ChatRequest, call: str) -> Reply:
        """Answers one request; see Respondent. Raises CallFailed where there is no answer."""
        ...

    async def run(self, title: str, jobs: Sequence[Callable[[], Awaitable[T | None]]]) -> list[T | None]:
        """Runs jobs that ask it, as many side by side as keep it busy; results in the order of the jobs."""
        ...


def why_silent(block: str, system_as: Literal["system", "user"]) -> str:
    """Where to look when a judge has answered nothing; `block` is the recipe's."""
    user = f"; a chat template without system turns wants {block}.judging.system_as: user"
    return f"(above: why{user if system_as == 'system' else ''})"


class LiveJudge:
    """A Judge that is a model of the recipe, asked through the run's session: journal, budget, progress bar."""

    def __init__(self, session: Session, name: str, *, system_as: Literal["system", "user"] = "system"):
        """Opens the model.

        Args:
          session: of the run.
          name: the model's in the recipe.
          system_as: user: a system message goes before the user's text, for chat templates that know none.

        Raises:
          InputError: it cannot be opened.
        """
        self.name, self._session, self._caller = name, session, session.caller(name)
        self._system_as = system_as

    async def ask(self, request: ChatRequest, call: str) -> Reply:
        """See Judge."""
        if self._system_as == "user":
            request = dataclasses.replace(request, messages=_with_system_in_first_turn(request.messages))
        return await self._caller.ask(request, call=call)

    async def run(self, title: str, jobs: Sequence[Callable[[], Awaitable[T | None]]]) -> list[T | None]:
        """See Judge; raises what Session.run_jobs does."""
        found: dict[int, Any] = await self._session.run_jobs(title, {self._caller: list(enumerate(jobs))})
        return [found[index] for index in range(len(jobs))]


def _with_system_in_first_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0]["role"] != "system":
        return messages
    text = "\n\n".join(message["content"] for message in messages[:2])
    return {"role": messages[1]["role"], "content": text}, *messages[2:]


class StoredJudge:
    """A Judge that says again what is stored of it."""

    def __init__(self, name: str, stored: ReplayJudge):
        self.name, self._stored = name, stored

    async def ask(self, request: ChatRequest, call: str) -> Reply:
        """See Judge."""
        return await self._stored.reply(request)

    async def run(self, title: str, jobs: Sequence[Callable[[], Awaitable[T | None]]]) -> list[T | None]:
        """See Judge."""
        return await run_jobs(jobs, window=self._stored.window, stop=Stop())
