"""GSM8K: grade-school sums, worked in words; the answer's number is compared.

Format and scores are those of lm-evaluation-harness 0.4.13: `strict-match` reads the number behind ####, as the
examples write it, `flexible-extract` the last number of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zephyr_jax.evaluation.academic.few_shot import Example
from zephyr_jax.evaluation.academic.items import Generated, PromptItem
from zephyr_jax.evaluation.stored_rows import field

UNTIL = ("Question:", "</s>", "<|im_end|>")
MAX_NEW_TOKENS = 256
_WANTED = "a row of GSM8K: question, and answer that ends in #### and a number"
_NOTHING = "[invalid]"  # what the harness compares where it finds no number

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def read_gsm8k(row: Mapping[str, Any], location: str) -> Example:
    """A row of GSM8K."""
    question, answer = (field(row, key, str, location, wanted=_WANTED) for key in ("question", "answer"))
    return Example(f"Question: {question}\nAnswer:", answer)


def exact_match(item: PromptItem, generated: Generated) -> dict[str, float]:
    """Whether the number is the row's, read strictly and flexibly."""
    wanted = _bare(item.row["answer"])
    strict = _STRICT.search(generated.text)
    flexible = _FLEXIBLE.findall(generated.text)
    return {
        "strict-match": float(_bare(strict[1] if strict else _NOTHING) == wanted),
        "flexible-extract": float(_bare(flexible[-1] if flexible else _NOTHING) == wanted),
    }


def _bare(text: str) -> str:
    """A number as it is compared: no thousands' commas, no dollar sign, no full stop, nothing before ####."""
    text = text.replace(",", "").replace("$", "")
    return re.sub(r"\.$", "", text[text.rfind("#### ") + 5 :] if "#### " in text else text).lower()
