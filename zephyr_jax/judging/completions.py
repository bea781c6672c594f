"""Step (b): k of n models answer each prompt, each under a principle; rows in UltraFeedback's raw layout.

Who answers, under what, and with which seed is drawn from the run's seed and the prompt's id alone.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from zephyr_jax.feedback_recipe import CompletionOptions
from zephyr_jax.judging.calls import Caller, ask_until
from zephyr_jax.judging.protocol import ChatRequest, Reply, derived_seed, draw_order
from zephyr_jax.judging.rubrics import PRINCIPLES, with_principle
from zephyr_jax.records import Prompt

Job = Callable[[], Awaitable[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Part:
    """One answer that is wanted.

    Attributes:
      student: who is asked.
      principle: name of the principle, or None.
      principle_text: its wording.
      requests: request of each attempt.
    """

    student: str
    principle: str | None
    principle_text: str | None
    requests: tuple[ChatRequest, ...]


def draw_students(students: Sequence[str], per_prompt: int, *, seed: int, prompt_id: str) -> list[str]:
    """Who answers a prompt: different students while there are some, then again in another order."""
    drawn: list[str] = []
    while len(drawn) < per_prompt:
        drawn += draw_order(list(students), seed, "students", prompt_id, len(drawn))
    return drawn[:per_prompt]


def parts_of(prompt: Prompt, options: CompletionOptions, *, seed: int) -> list[Part]:
    """What is asked about one prompt."""
    parts = []
    students = draw_students(options.students, options.per_prompt, seed=seed, prompt_id=prompt.prompt_id)
    for slot, student in enumerate(students):
        name, text, messages = None, None, prompt.messages
        if options.principles:
            name = options.principles[derived_seed(seed, "principle", prompt.prompt_id, slot) % len(options.principles)]
            wordings = PRINCIPLES[name]
            text = wordings[derived_seed(seed, "wording", prompt.prompt_id, slot) % len(wordings)]
            messages = with_principle(prompt.messages, text, as_role=options.principle_as)
        requests = tuple(
            ChatRequest(
                messages,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=derived_seed(seed, "completion", prompt.prompt_id, slot, student, attempt),
            )
            for attempt in range(options.max_tries)
        )
        parts.append(Part(student, name, text, requests))
    return parts


def completion_jobs(
    prompts: Sequence[Prompt],
    options: CompletionOptions,
    callers: Mapping[str, Caller],
    *,
    seed: int,
    unusable: collections.Counter[str],
) -> dict[str, list[tuple[tuple[int, int], Job]]]:
    """All calls of the step: student -> ((prompt, slot), job that gives the completion)."""
    jobs: dict[str, list[tuple[tuple[int, int], Job]]] = {name: [] for name in options.students}
    for index, prompt in enumerate(prompts):
        students = draw_students(options.students, options.per_prompt, seed=seed, prompt_id=prompt.prompt_id)
        for slot, student in enumerate(students):
            jobs[student].append(
                ((index, slot), _job(prompt, slot, options, callers[student], seed=seed, unusable=unusable))
            )
    return jobs


def _job(
    prompt: Prompt,
    slot: int,
    options: CompletionOptions,
    caller: Caller,
    *,
    seed: int,
    unusable: collections.Counter[str],
) -> Job:
    async def answer() -> dict[str, Any]:
        # Made when its turn comes: a run has hundreds of thousands.
        part = parts_of(prompt, options, seed=seed)[slot]
        reply = await ask_until(
            caller,
            lambda attempt: part.requests[attempt],
            _with_text,
            max_tries=options.max_tries,
            call=f"completion:{prompt.prompt_id}:{slot}",
            unusable=unusable,
        )
        return {
            "model": part.student,
            "principle": part.principle,
            "custom_system_prompt": part.principle_text,
            "response": "" if reply is None else reply.text.strip(),
            "finish_reason": None if reply is None else reply.finish_reason,
        }

    return answer


def _with_text(reply: Reply) -> Reply | None:
    return reply if reply.text.strip() else None


def completion_row(prompt: Prompt, completions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A prompt's row: UltraFeedback's columns, `messages` where the prompt is more than one turn."""
    row: dict[str, Any] = {
        "source": prompt.source,
        "instruction": prompt.messages[-1]["content"],
        "prompt_id": prompt.prompt_id,
    }
    if len(prompt.messages) > 1:
        row["messages"] = [dict(message) for message in prompt.messages]
    return row | {"models": [completion["model"] for completion in completions], "completions": list(completions)}
