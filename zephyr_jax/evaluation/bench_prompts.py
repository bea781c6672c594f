"""What an MT-Bench judge is shown: FastChat's prompts (judge_prompts.jsonl) filled in with question and answers.

Math, reasoning and coding are judged beside a reference answer; turn 2 with both turns shown. Source of the rules:
FastChat's llm_judge/common.py and gen_judgment.py. The prompts themselves are the user's file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from zephyr_jax.evaluation.fastchat_files import Question
from zephyr_jax.evaluation.stored_rows import field, read_rows
from zephyr_jax.records import InputError, Message

WITH_REFERENCE = ("math", "reasoning", "coding")
Mode = Literal["single", "pair"]
_WANTED = "a judge prompt of FastChat, with name, system_prompt and prompt_template"
_NAMES: Mapping[Mode, tuple[str, str]] = {
    "single": ("single-v1", "single-math-v1"),
    "pair": ("pair-v2", "pair-math-v1"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A row of judge_prompts.jsonl."""

    name: str
    system_prompt: str
    prompt_template: str
    location: str


def read_judge_prompts(source: str) -> dict[str, JudgePrompt]:
    """Name -> prompt.

    Raises:
      InputError: the file cannot be read, or a row is no judge prompt.
    """
    prompts = {}
    for location, row in read_rows(source):
        texts = [field(row, key, str, location, wanted=_WANTED) for key in ("name", "system_prompt", "prompt_template")]
        prompts[texts[0]] = JudgePrompt(texts[0], texts[1], texts[2], location)
    return prompts


def prompt_name(mode: Mode, category: str, turn: int) -> str:
    """Which of FastChat's prompts a turn (from 1) of a question is judged by."""
    name = _NAMES[mode][category in WITH_REFERENCE]
    return f"{name}-multi-turn" if turn > 1 else name


def judge_messages(
    prompt: JudgePrompt,
    question: Question,
    answers: Sequence[Sequence[str]],
    reference: Sequence[str] | None,
    *,
    turn: int,
) -> tuple[Message, ...]:
    """The system and the user turn for a judge.

    Args:
      prompt: filled in.
      question: with at least `turn` turns.
      answers: one, or two in the order in which they are shown; each a text a turn.
      reference: its turns, where the category has one.
      turn: 1, or 2 with both turns shown.

    Raises:
      InputError: the prompt has a place that is not known or lacks one for the answer, or needs a reference that there
        is not.
    """
    letters = [""] if len(answers) == 1 else ["_a", "_b"]
    places = {f"ref_answer_{number}": text for number, text in enumerate(reference or (), start=1)}
    if turn == 1:
        places["question"] = question.turns[0]
        places |= {f"answer{letter}": answer[0] for letter, answer in zip(letters, answers, strict=True)}
    else:
        for number in range(1, turn + 1):
            places[f"question_{number}"] = question.turns[number - 1]
            for letter, answer in zip(letters, answers, strict=True):
                places[f"answer{letter}_{number}"] = answer[number - 1]
    last = f"answer{letters[-1]}" if turn == 1 else f"answer{letters[-1]}_{turn}"
    if f"{{{last}}}" not in prompt.prompt_template:
        raise InputError(
            f"{prompt.location}: prompt {prompt.name} has no place {{{last}}}, so that it cannot show turn {turn} of "
            f"question {question.question_id} (MT-Bench's show two turns); wanted one with it, or another question"
        )
    try:
        text = prompt.prompt_template.format(**places)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(
            f"{prompt.location}: prompt {prompt.name} for turn {turn} of question {question.question_id} has the place "
            f"{error}, wanted some of {', '.join(places)} (references are those of the file "
            "mt_bench.judging.references, without it those in the questions' rows)"
        ) from error
    return {"role": "system", "content": prompt.system_prompt}, {"role": "user", "content": text}
