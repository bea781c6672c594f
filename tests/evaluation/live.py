"""A session for tests of what asks models."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

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
