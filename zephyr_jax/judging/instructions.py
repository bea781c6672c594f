"""Step (a): self-instruct (arXiv:2212.10560) and UltraChat's dialogues (arXiv:2305.14233), by one teacher.

    write   a task about a topic, after a few seed tasks
    refine  it, so that it asks for more
    filter  tasks: too short, refusals, casing, near-duplicates of each other or of the seed tasks
    talk    the teacher answers, plays the person who asks on, answers again ...
    filter  answers: cut off, too short, refusals, casing; a dialogue ends before such an answer, or is none

Every draw hangs on the run's seed and the draft's number, and near-duplicates go by the drafts' order, so that
concurrency changes nothing. The rows have the columns of ultrachat_200k.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from zephyr_jax.feedback_recipe import InstructionOptions
from zephyr_jax.judging.calls import Caller, ask_until
from zephyr_jax.judging.protocol import ChatRequest, Reply, derived_seed, draw_order
from zephyr_jax.judging.rubrics import follow_up_messages, refine_messages, write_messages
from zephyr_jax.judging.text_filters import NearDuplicates, has_wrong_casing, is_refusal, is_short
from zephyr_jax.records import Message

# "Rewritten task:", "**Task 4:**", "Sure! Here is a new task:", "Person:" before the text itself.
_LABEL = re.compile(
    r"\A[*#\s]*(?:(?:(?:sure|certainly|of course)\W+)?here(?:'s|\u2019s| is) (?=[\w ]*(?:task|question)\b))?"
    r"(?:the |a |my )?(?:new |rewritten |next |user )*(?:task|question|request|message|person|user)(?: \d+)?"
    r"[*\s]*:[*\s]*",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Draft:
    """A task as the teacher left it.

    Attributes:
      number: of the draft, from 0.
      topic: it was to be about.
      task: the text; None where no usable answer came.
    """

    number: int
    topic: str
    task: str | None


@dataclasses.dataclass
class Writer:
    """The teacher of step (a) and what it needs.

    Attributes:
      teacher: who writes.
      options: the recipe's block.
      seed: of the run.
      topics: drawn from for each draft.
      seed_tasks: examples are drawn from them.
      unusable: counts answers that came to nothing.
      left_out: why drafts and dialogues were left out or ended early -> how many.
    """

    teacher: Caller
    options: InstructionOptions
    seed: int
    topics: Sequence[str]
    seed_tasks: Sequence[str]
    unusable: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def draft_jobs(self) -> list[tuple[int, Callable[[], Awaitable[Draft]]]]:
        """A job for each draft: written, and refined."""
        return [(number, functools.partial(self._draft, number)) for number in range(self.options.num_drafts)]

    async def _draft(self, number: int) -> Draft:
        topic = self.topics[derived_seed(self.seed, "topic", number) % len(self.topics)]
        examples = draw_order(list(self.seed_tasks), self.seed, "examples", number)[: self.options.num_examples]
        task = await self._ask(
            write_messages(topic, examples), f"write:{number}", self.options.max_task_tokens, bare_task
        )
        for step in range(self.options.refinements):
            if task is not None:
                task = await self._ask(
                    refine_messages(task), f"refine:{number}:{step}", self.options.max_task_tokens, bare_task
                )
        return Draft(number, topic, task)

    def keep_good(self, drafts: Sequence[Draft]) -> list[Draft]:
        """The drafts that pass the filters, in their order; the others are counted."""
        duplicates = NearDuplicates(self.options.near_duplicate)
        for task in self.seed_tasks:
            duplicates.is_new(task)
        kept = []
        for draft in drafts:
            if draft.task is None:
                self.left_out["task: none written"] += 1
            elif reason := self._fault(draft.task, self.options.min_words):
                self.left_out[f"task: {reason}"] += 1
            elif not duplicates.is_new(draft.task):
                self.left_out["task: near-duplicate"] += 1
            else:
                kept.append(draft)
        return kept

    def dialogue_jobs(
        self, drafts: Sequence[Draft]
    ) -> list[tuple[int, Callable[[], Awaitable[dict[str, Any] | None]]]]:
        """A job for each draft: the row of its dialogue, or None where the first answer is none."""
        return [(draft.number, functools.partial(self._dialogue, draft)) for draft in drafts]

    async def _dialogue(self, draft: Draft) -> dict[str, Any] | None:
        assert draft.task is not None
        num_turns = 1 + derived_seed(self.seed, "turns", draft.number) % self.options.max_turns
        messages: list[Message] = [{"role": "user", "content": draft.task}]
        while True:
            turn = len(messages) // 2
            call = f"{draft.number}:{turn}"
            reply = await self._ask(tuple(messages), f"answer:{call}", self.options.max_tokens, _as_it_is)
            reason = self._answer_fault(reply)
            if reason:
                self.left_out[f"{'dialogue' if turn == 0 else 'later turn'}: answer {reason}"] += 1
                messages.pop()
                break
            assert reply is not None
            messages.append({"role": "assistant", "content": reply.text.strip()})
            if turn + 1 == num_turns:
                break
            asked = await self._ask(
                follow_up_messages(messages), f"follow-up:{call}", self.options.max_task_tokens, bare_task
            )
            reason = "none written" if asked is None else self._fault(asked, 1)
            if asked is None or reason:
                self.left_out[f"later turn: question {reason}"] += 1
                break
            messages.append({"role": "user", "content": asked})
        return self._row(draft, messages) if messages else None

    def _row(self, draft: Draft, messages: Sequence[Message]) -> dict[str, Any]:
        prompt = messages[0]["content"]
        return {
            "prompt": prompt,
            "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
            "messages": [dict(message) for message in messages],
            "source": "self-instruct",
            "topic": draft.topic,
            "draft": draft.number,
        }

    async def _ask(
        self, messages: tuple[Message, ...], call: str, max_tokens: int, parse: Callable[[Reply], Any]
    ) -> Any:
        options = self.options

        def request(attempt: int) -> ChatRequest:
            seed = derived_seed(self.seed, "instructions", call, attempt)
            return ChatRequest(messages, max_tokens, temperature=options.temperature, top_p=options.top_p, seed=seed)

        return await ask_until(
            self.teacher, request, parse, max_tries=options.max_tries, call=call, unusable=self.unusable
        )

    def _answer_fault(self, reply: Reply | None) -> str | None:
        if reply is None:
            return "none came"
        if reply.finish_reason == "length":
            return "cut off"  # a text without its end teaches not to end
        return self._fault(reply.text, self.options.min_answer_words)

    def _fault(self, text: str, min_words: int) -> str | None:
        """Why a text is left out, or None."""
        if is_short(text, min_words=min_words):
            return "too short"
        if is_refusal(text):
            return "refusal or 'as an AI'"
        return "casing" if has_wrong_casing(text) else None


def bare_task(reply: Reply) -> str | None:
    """A task without a label or quotes around it; None where nothing is left or it was cut off."""
    if reply.finish_reason == "length":
        return None
    text = _LABEL.sub("", reply.text.strip()).strip()
    if len(text) > 1 and text[0] + text[-1] in ('""', "''", "\u201c\u201d") and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text or None


def _as_it_is(reply: Reply) -> Reply | None:
    return reply if reply.text.strip() else None


def read_seeds(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Topics and tasks out of rows with `topic`, `task` or both, each once and in order."""
    topics = dict.fromkeys(str(row["topic"]) for row in rows if row.get("topic"))
    tasks = dict.fromkeys(str(row["task"]) for row in rows if row.get("task"))
    return list(topics), list(tasks)
