"""A model of ours in this process as a student or a teacher: requests that wait together are answered as batches.

The event loop stays free: batches run in a thread, and each answer is handed over as soon as its row has ended.
Sampling draws by each request's own seed, so that an answer does not hang on who is beside it. JAX comes with the
first model that is opened.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zephyr_jax.judging.protocol import ChatRequest, Reply, Stop, Stopped, Unanswerable
from zephyr_jax.judging.tally import Tally
from zephyr_jax.records import InputError
from zephyr_jax.respondent_options import ModelOptions

if TYPE_CHECKING:
    import numpy as np

    from zephyr_jax.generation.loading import AnswerModel

# Rows are sorted by length among so many batches (as `generate` does).
BATCHES_PER_CHUNK = 8


class LocalModel:
    """A Respondent: see protocol.py."""

    def __init__(
        self, options: ModelOptions, *, name: str, tally: Tally, stop: Stop | None = None, command: str = "feedback"
    ):
        """Opens a model; the weights are loaded with the first request that is not in the journal.

        Args:
          options: without `base_url`.
          name: the model's name in the recipe, for messages.
          tally: is told of every request.
          stop: what waits for its batch is dropped when it is asked for; an interruption drops the batch too.
          command: begins the lines on stderr.

        Raises:
          InputError: there is no such model, tokenizer or chat template.
        """
        from zephyr_jax.generation.loading import open_answer_model

        self.options, self.name, self.tally, self.stop = options, name, tally, stop or Stop()
        self.command = command
        self._model: AnswerModel = open_answer_model(
            options.model, chat_template=options.chat_template, dtype=options.dtype
        )
        self.identity = self._model.fingerprint()
        self.window = BATCHES_PER_CHUNK * options.batch_size
        self._waiting: list[tuple[ChatRequest, np.ndarray, asyncio.Future[Reply]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._is_cancelled = False

    async def reply(self, request: ChatRequest) -> Reply:
        """Answers one request; see Respondent."""
        try:
            ids = self._model.encode(request.messages, max_new_tokens=request.max_tokens)
        except InputError as error:
            self.tally.trouble("not answerable", str(error))
            self.tally.failed += 1
            raise Unanswerable(f"{self.name}: {error}") from None
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, ids, future))
        self.tally.begin_try()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await future
        finally:
            self.tally.end_try()

    def unload(self) -> None:
        """Lets the weights go; they are read again with the next request. Not while it answers."""
        self._model = dataclasses.replace(self._model, params=None)

    async def close(self) -> None:
        """Lets the weights go."""
        self.unload()

    async def _work(self) -> None:
        """Answers what waits, chunk by chunk, until nothing does."""
        while self._waiting:
            await self._until_nobody_joins()
            chunk, self._waiting = self._waiting, []
            groups: dict[Any, list[tuple[ChatRequest, np.ndarray, asyncio.Future[Reply]]]] = {}
            for item in chunk:
                request = item[0]
                kind = (request.choices, request.max_tokens, request.temperature, request.top_p)
                groups.setdefault(kind, []).append(item)
            for group in groups.values():
                try:
                    self.stop.check()
                    await self._answer_group(group)
                except Exception as error:  # whoever asked is told; a task's own error would be seen at exit only
                    for _, _, future in chunk:
                        if not future.done():
                            future.set_exception(error)
                    break

    async def _until_nobody_joins(self) -> None:
        """Lets all who are about to ask do so: whoever needs no other answer first asks within a few turns."""
        num_waiting, quiet_turns = -1, 0
        while quiet_turns < 3:
            quiet_turns = quiet_turns + 1 if len(self._waiting) == num_waiting else 0
            num_waiting = len(self._waiting)
            await asyncio.sleep(0)

    async def _answer_group(self, group: Sequence[tuple[ChatRequest, np.ndarray, asyncio.Future[Reply]]]) -> None:
        """Answers requests of one kind together."""
        loop = asyncio.get_running_loop()
        requests, prompts, futures = zip(*group, strict=True)

        def hand_over(index: int, reply: Reply) -> None:
            if not futures[index].done():
                futures[index].set_result(reply)

        def answer() -> None:
            if self._model.params is None:
                print(f"{self.command}: loading {self.name}, {self._model.settings_text()}", file=sys.stderr)
                self._model = self._model.load()
            for index, reply in self._replies(requests, prompts):
                loop.call_soon_threadsafe(hand_over, index, reply)

        try:
            await asyncio.to_thread(answer)
        except asyncio.CancelledError:
            self._is_cancelled = True  # the thread ends by itself: it cannot be stopped from outside
            raise

    def _check(self) -> None:
        """Raises Stopped where nobody waits any more: unlike a server's, answers here are not paid for."""
        if self._is_cancelled or isinstance(self.stop.reason, KeyboardInterrupt):
            raise Stopped

    def _has_ended(self, ids: np.ndarray) -> bool:
        """No answer has, before its own end; asked every few tokens, when to stop can be seen."""
        self._check()
        return False

    def _replies(self, requests: Sequence[ChatRequest], prompts: Sequence[np.ndarray]) -> Iterator[tuple[int, Reply]]:
        """Index and answer, as rows end; runs in the thread."""
        from zephyr_jax.generation.options import GenerationOptions

        model, first, batch_size = self._model, requests[0], self.options.batch_size
        if first.choices:
            choice_ids = model.choice_ids(first.choices)
            for found in model.choice_logprobs(prompts, choice_ids=choice_ids, batch_size=batch_size):
                for index, logprobs_C in found.items():
                    best = first.choices[int(logprobs_C.argmax())]
                    yield index, Reply(best, "stop", len(prompts[index]), 1, tuple(map(float, logprobs_C)))
                self._check()
            return
        options = GenerationOptions(first.max_tokens, first.temperature, first.top_p)
        seeds = [request.seed for request in requests]
        answers = model.answer(
            prompts, options=options, row_indexes=seeds, batch_size=batch_size, has_ended=self._has_ended
        )
        for batch in answers:
            for index, response in batch.items():
                tokens = len(response.ids)
                yield index, Reply(model.text(response), response.finish_reason, len(prompts[index]), tokens)
            self._check()
