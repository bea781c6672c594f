"""IFEval: prompts with instructions that a program can check, followed or not.

An instruction is followed strictly, or loosely: after removing the first line, the last line or both, each with and
without asterisks (arXiv:2311.07911, section 2.3). A prompt is followed when all its instructions are. Instructions on
the answer's language need langdetect (extra [ifeval]); without it they have no score, and their prompts have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from zephyr_jax.evaluation.academic.instruction_checks import CHECKS, NEED_LANGUAGE, can_tell_languages
from zephyr_jax.evaluation.academic.items import Generated, PromptItem
from zephyr_jax.evaluation.stored_rows import field
from zephyr_jax.records import InputError

MAX_NEW_TOKENS = 1280
_WANTED = "a row of IFEval: prompt, instruction_id_list, and kwargs with the values of each instruction"


def read_ifeval(row: Mapping[str, Any], location: str) -> tuple[str, Mapping[str, Any]]:
    """The prompt of a row, and what scoring needs: its instructions with their values."""
    prompt = field(row, "prompt", str, location, wanted=_WANTED)
    names = field(row, "instruction_id_list", (list, tuple), location, wanted=_WANTED)
    values = field(row, "kwargs", (list, tuple), location, wanted=_WANTED)
    if not names or len(names) != len(values):
        raise InputError(f"{location}: has {len(names)} instructions and {len(values)} kwargs; wanted {_WANTED}")
    instructions = []
    for name, given in zip(names, values, strict=True):
        if name not in CHECKS:
            raise InputError(f"{location}: knows no instruction {name!r}; wanted one of {', '.join(CHECKS)}")
        missing = [key for key in CHECKS[name][1] if given.get(key) is None]
        if missing:
            raise InputError(f"{location}: {name} has no {', '.join(missing)} in its kwargs; wanted {_WANTED}")
        instructions.append({"name": name, "values": {key: given[key] for key in CHECKS[name][1]}})
    return prompt, {"instructions": instructions}


def instructions_followed(item: PromptItem, generated: Generated) -> dict[str, float | None | tuple[float | None, ...]]:
    """The four scores of an answer: by prompt and by instruction, strict and loose.

    An empty answer follows nothing.
    """
    strict = _followed(item, (generated.text,))
    loose = _followed(item, _variants(generated.text))
    return {
        "prompt_level_strict_acc": _all(strict),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": _all(loose),
        "inst_level_loose_acc": loose,
    }


def _variants(answer: str) -> tuple[str, ...]:
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return tuple(itertools.chain.from_iterable((text, text.replace("*", "")) for text in cut))


def _followed(item: PromptItem, variants: tuple[str, ...]) -> tuple[float | None, ...]:
    return tuple(
        None
        if instruction["name"] in NEED_LANGUAGE and not can_tell_languages()
        else float(
            any(text.strip() and CHECKS[instruction["name"]][0](text, instruction["values"]) for text in variants)
        )
        for instruction in item.row["instructions"]
    )


def _all(followed: tuple[float | None, ...]) -> float | None:
    return None if None in followed else float(all(followed))
