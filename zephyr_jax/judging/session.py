"""One sitting of a run with its models: jobs side by side under a progress bar, a clean stop, and what happened.

    async with Session(models, command="feedback", run=name, folder=calls, budget=budget, log=path) as session:
        caller = session.caller("teacher")
        found = await session.run_jobs("annotation", {caller: [(key, job), ...]})

While jobs run, the first Ctrl-C or SIGTERM lets calls in flight end, since servers are paid for them, and drops what a
model in this process is about; the second ends at once. Whatever else stops the jobs lets calls end too: a budget that
is spent, a key that is refused. Every answer is in a journal as it comes, so that the next sitting asks again at most
what was in flight when this one was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zephyr_jax.judging.budget import BudgetSpent
from zephyr_jax.judging.calls import Caller, run_jobs
from zephyr_jax.judging.protocol import Stop
from zephyr_jax.judging.respondents import Respondents
from zephyr_jax.judging.tally import tallies_table
from zephyr_jax.records import Unfinished
from zephyr_jax.respondent_options import Budget, ModelOptions

KeyedJob = tuple[Any, Callable[[], Awaitable[Any]]]


class Session:
    """Who may be asked, and asking them; a context that closes them all.

    Attributes:
      stop: asked for by a signal, by a budget that is spent, by a model that cannot be asked, or by whoever runs jobs.
      respondents: the models, opened as they are first asked.
    """

    def __init__(
        self,
        models: Mapping[str, ModelOptions],
        *,
        command: str,
        run: str,
        folder: Path,
        budget: Budget,
        log: Path | None = None,
    ):
        """Nothing is opened yet.

        Args:
          models: of the recipe, by name.
          command: begins the lines on stderr.
          run: the run's name: whose answers the budget pays for.
          folder: where the journals are.
          budget: of all sittings of the run together.
          log: a file of JSON lines that gets one with this sitting's counts.
        """
        self.command, self.log, self.stop = command, log, Stop(self._say_stopping)
        self.respondents = Respondents(models, run=run, folder=folder, budget=budget, stop=self.stop, command=command)

    async def __aenter__(self) -> Session:
        # Reading a large file between jobs keeps the loop from seeing a signal that is asyncio's.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.respondents.close()
        self._say_what_happened()

    def _say_stopping(self, reason: BaseException) -> None:
        num_calls = self.respondents.num_in_flight()
        if isinstance(reason, KeyboardInterrupt):
            self.say("interrupted: waiting for the calls in flight; once more ends at once")
        elif num_calls:
            self.say(f"stopping: waiting for the {num_calls} calls in flight")

    def say(self, text: str) -> None:
        """A line on stderr that leaves the progress bar whole."""
        tqdm.write(f"{self.command}: {text}", file=sys.stderr)

    def caller(self, name: str) -> Caller:
        """The model of this name.

        Raises:
          InputError: it cannot be opened.
        """
        return self.respondents.caller(name)

    async def run_jobs(
        self,
        title: str,
        jobs: Mapping[Caller, Sequence[KeyedJob]],
        *,
        on_result: Callable[[Any], object] = lambda result: None,
    ) -> dict[Any, Any]:
        """Runs the jobs of several models side by side; see `calls.run_jobs`. Others let go of their weights.

        Args:
          title: of the progress bar.
          jobs: model -> (key, job) in the order in which they begin.
          on_result: called with each result as it comes; may ask for a stop.

        Returns:
          Key -> result, in no certain order.

        Raises:
          Unfinished: the budget is spent, or another reason to stop; all answers so far are kept.
          InputError: a model cannot be asked, for a reason that the user can mend.
          KeyboardInterrupt: it was interrupted; like the others after the calls in flight had ended.
        """
        self.respondents.make_room(busy=[caller.respondent for caller in jobs])
        found: dict[Any, Any] = {}
        total = sum(map(len, jobs.values()))
        with tqdm(total=total, unit=" items", desc=title, file=sys.stderr, smoothing=0.1) as bar:

            def done(result: Any) -> None:
                bar.set_postfix_str(self.respondents.progress_text(), refresh=False)
                bar.update()
                on_result(result)

            async def run_part(caller: Caller, part: Sequence[KeyedJob]) -> None:
                results = await run_jobs(
                    [job for _, job in part], window=caller.respondent.window, stop=self.stop, done=done
                )
                found.update(zip((key for key, _ in part), results, strict=True))

            with _signals_ask(self.stop):
                try:
                    async with asyncio.TaskGroup() as group:
                        for caller, part in jobs.items():
                            group.create_task(run_part(caller, part))
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None
        reason = self.stop.reason
        if isinstance(reason, BudgetSpent):
            raise Unfinished(f"{reason}; all answers so far are kept: raise it and start again to go on")
        if reason is not None:
            raise reason
        return found

    def _say_what_happened(self) -> None:
        """The table of this sitting, on stderr and as a line of the log."""
        tallies = self.respondents.tallies.items()
        asked = {name: tally for name, tally in tallies if tally.kept or tally.tries or tally.failed}
        if not asked:
            return
        print(tallies_table(asked), file=sys.stderr)
        if self.log is not None:
            record: dict[str, Any] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            record["models"] = {name: tally.as_dict() for name, tally in asked.items()}
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def _signals_ask(stop: Stop) -> Iterator[None]:
    """Within, the first Ctrl-C or SIGTERM asks for a stop; after it, and behind the block, they end the process."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def let_go() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def interrupt() -> None:
        stop.ask(KeyboardInterrupt())
        let_go()
        # No exception: it would wait for the thread in which a model of this process answers.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        for number in numbers:
            loop.add_signal_handler(number, interrupt)
    except (RuntimeError, ValueError):  # not the main thread: signals are someone else's
        yield
        return
    try:
        yield
    finally:
        let_go()
        signal.signal(signal.SIGINT, signal.default_int_handler)
