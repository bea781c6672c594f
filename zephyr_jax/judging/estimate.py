"""How many calls a run makes, about how many tokens, and what they cost: said before the first call.

Prompts' tokens go by the length of the texts, answers' by the recipe's `expected_tokens`. Nothing is asked here, and
answers that are in the journals already are not taken off.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from zephyr_jax.feedback_recipe import AnnotationOptions, CompletionOptions, FeedbackRecipe, InstructionOptions
from zephyr_jax.judging.budget import spent_on
from zephyr_jax.judging.completions import draw_students
from zephyr_jax.judging.protocol import CHARACTERS_PER_TOKEN, ChatRequest
from zephyr_jax.judging.rubrics import (
    PRINCIPLES,
    digit_messages,
    follow_up_messages,
    rating_messages,
    refine_messages,
    write_messages,
)
from zephyr_jax.records import Message, Prompt

TASK_TOKENS = 60  # of a task that is to be written
SEED_TOKENS = 20


@dataclasses.dataclass
class Estimate:
    """Of one model in one step."""

    step: str
    model: str
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def estimate(recipe: FeedbackRecipe, prompts: Sequence[Prompt]) -> list[Estimate]:
    """Estimates for each step and model, in the order of the steps."""
    found: list[Estimate] = []
    if recipe.instructions is not None:
        found.append(_instructions(recipe.instructions, teacher=recipe.teacher))
    if recipe.completions is not None:
        found += _completions(recipe.completions, prompts, seed=recipe.seed)
        if recipe.annotation is not None:
            found.append(_annotation(recipe.annotation, recipe.completions, prompts, teacher=recipe.teacher))
    return found


def assumed_prompts(count: int) -> list[Prompt]:
    """Prompts of TASK_TOKENS tokens, in place of tasks that are not written yet."""
    text = "x" * CHARACTERS_PER_TOKEN * TASK_TOKENS
    return [Prompt(({"role": "user", "content": text},), str(number), "") for number in range(count)]


def _instructions(options: InstructionOptions, *, teacher: str) -> Estimate:
    """As if every draft became a dialogue of the mean number of turns."""
    found = Estimate("instructions", teacher)
    answer, drafts = min(options.expected_tokens, options.max_tokens), options.num_drafts
    found.calls = drafts * (1 + options.refinements)
    found.prompt_tokens = drafts * (
        _tokens(write_messages("", ()))
        + options.num_examples * SEED_TOKENS
        + options.refinements * (_tokens(refine_messages("")) + TASK_TOKENS)
    )
    found.completion_tokens = found.calls * TASK_TOKENS
    # A dialogue of n turns is as likely as one of any other number up to max_turns; turn t reads the t before it.
    for turn in range(options.max_turns):
        dialogues = drafts * (options.max_turns - turn) // options.max_turns
        before = turn * (answer + TASK_TOKENS)
        found.calls += dialogues
        found.prompt_tokens += dialogues * (before + TASK_TOKENS)
        found.completion_tokens += dialogues * answer
        if turn:
            found.calls += dialogues
            found.prompt_tokens += dialogues * (before + _tokens(follow_up_messages(())))
            found.completion_tokens += dialogues * TASK_TOKENS
    return found


def _completions(options: CompletionOptions, prompts: Sequence[Prompt], *, seed: int) -> list[Estimate]:
    wordings = [text for name in options.principles for text in PRINCIPLES[name]]
    principle_tokens = sum(map(_text_tokens, wordings)) // len(wordings) if wordings else 0
    expected = min(options.expected_tokens, options.max_tokens)
    found: dict[str, Estimate] = collections.defaultdict(lambda: Estimate("completions", ""))
    for prompt in prompts:
        tokens = principle_tokens + _tokens(prompt.messages)
        for student in draw_students(options.students, options.per_prompt, seed=seed, prompt_id=prompt.prompt_id):
            part = found[student]
            part.model = student
            part.calls += 1
            part.prompt_tokens += tokens
            part.completion_tokens += expected
    return [found[name] for name in options.students if name in found]


def _annotation(
    options: AnnotationOptions, completions: CompletionOptions, prompts: Sequence[Prompt], *, teacher: str
) -> Estimate:
    found = Estimate("annotation", teacher)
    per_prompt = completions.per_prompt
    empty: tuple[Message, ...] = ({"role": "user", "content": ""},)
    prompt_tokens = sum(_tokens(prompt.messages) for prompt in prompts)
    for aspect in options.aspects:
        if options.rating == "json":
            calls, shown, written = 1, per_prompt, min(options.expected_tokens, options.max_tokens)
            rubric = _tokens(rating_messages(aspect, empty, [""] * per_prompt))
        else:
            calls, shown, written = per_prompt, 1, 1
            rubric = _tokens(digit_messages(aspect, empty, ""))
        found.calls += calls * len(prompts)
        answers = shown * min(completions.expected_tokens, completions.max_tokens)
        found.prompt_tokens += calls * (len(prompts) * (rubric + answers) + prompt_tokens)
        found.completion_tokens += calls * len(prompts) * written
    return found


def _text_tokens(text: str) -> int:
    return _tokens(({"role": "user", "content": text},))


def _tokens(messages: tuple[Message, ...]) -> int:
    return ChatRequest(messages, max_tokens=1).estimated_prompt_tokens()


def estimates_table(recipe: FeedbackRecipe, estimates: Sequence[Estimate]) -> str:
    """The estimates for people, with their sum and what they assume."""
    lines = [f"{'step':<14}{'model':<20}{'calls':>12}{'tokens in':>16}{'out':>16}{'cost':>12}"]
    total = Estimate("all", "")
    total_cost = 0.0
    for part in estimates:
        cost = spent_on(part.prompt_tokens, part.completion_tokens, recipe.models[part.model].price).cost
        lines.append(_line(part, cost))
        total.calls += part.calls
        total.prompt_tokens += part.prompt_tokens
        total.completion_tokens += part.completion_tokens
        total_cost += cost
    lines.append(_line(total, total_cost))
    lines.append(
        "estimated: four characters to a token, answers of expected_tokens, nothing asked twice; answers that are kept "
        "from before cost nothing"
    )
    return "\n".join(lines)


def _line(part: Estimate, cost: float) -> str:
    counts = f"{part.calls:>12,}{part.prompt_tokens:>16,}{part.completion_tokens:>16,}"
    return f"{part.step:<14}{part.model:<20}{counts}{cost:>12,.2f}"
