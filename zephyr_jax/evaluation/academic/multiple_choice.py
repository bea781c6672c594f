"""ARC, HellaSwag, MMLU and TruthfulQA: rows to questions with choices, and log-likelihoods to scores.

Rows are those of the hub, or of files in which ARC's and HellaSwag's questions are joined already (`query`, `choices`,
`gold`). Formats and scores are those of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zephyr_jax.evaluation.academic.items import ChoiceItem, Likelihood
from zephyr_jax.evaluation.stored_rows import field
from zephyr_jax.records import InputError

LETTERS = ("A", "B", "C", "D")

_WANTED = {
    "arc": "a row of ARC: question, choices with text and label, answerKey; or query, choices, gold",
    "hellaswag": "a row of HellaSwag: activity_label, ctx_a, ctx_b, endings, label; or query, choices, gold",
    "mmlu": "a row of MMLU: question, subject, four choices, answer as a number",
    "truthfulqa": "a row of TruthfulQA: question, mc1_targets and mc2_targets with choices and labels",
}


class Question(NamedTuple):
    """A row, read.

    Attributes:
      text: up to where the answer begins.
      choices: texts that may follow.
      correct: which are right.
      group: MMLU's subject; empty for the others.
    """

    text: str
    choices: tuple[str, ...]
    correct: tuple[bool, ...]
    group: str = ""


def read_arc(row: Mapping[str, Any], location: str) -> Question:
    """A row of ARC."""
    wanted = _WANTED["arc"]
    if "query" in row:
        return _joined(row, location, wanted=wanted)
    stored = field(row, "choices", dict, location, wanted=wanted)
    labels = list(field(stored, "label", (list, tuple), location, wanted=wanted))
    choices = field(stored, "text", (list, tuple), location, wanted=wanted)
    key = field(row, "answerKey", str, location, wanted=wanted)
    if key not in labels:
        raise InputError(f"{location}: 'answerKey' is {key!r}, and the labels are {labels}; wanted {wanted}")
    text = f"Question: {field(row, 'question', str, location, wanted=wanted)}\nAnswer:"
    return _question(text, choices, labels.index(key), location, wanted=wanted)


def read_hellaswag(row: Mapping[str, Any], location: str) -> Question:
    """A row of HellaSwag."""
    wanted = _WANTED["hellaswag"]
    if "query" in row:
        return _joined(row, location, wanted=wanted)
    label, first, second = (
        field(row, key, str, location, wanted=wanted) for key in ("activity_label", "ctx_a", "ctx_b")
    )
    endings = field(row, "endings", (list, tuple), location, wanted=wanted)
    answer = field(row, "label", (int, str), location, wanted=wanted)
    if not str(answer).isdigit():
        raise InputError(f"{location}: 'label' is {answer!r}; wanted {wanted}")
    # `capitalize` also makes everything behind the first letter small.
    text = without_artifacts(f"{label}: {first} {second.capitalize()}")
    choices = [without_artifacts(_text(ending, location, wanted=wanted)) for ending in endings]
    return _question(text, choices, int(answer), location, wanted=wanted)


def without_artifacts(text: str) -> str:
    """A text of HellaSwag without what WikiHow left in it: bracketed marks such as [header] and doubled spaces."""
    marked = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", marked).replace("  ", " ")


def read_mmlu(row: Mapping[str, Any], location: str) -> Question:
    """A row of MMLU; the choices stand in the question, and a letter is what follows."""
    wanted = _WANTED["mmlu"]
    choices = field(row, "choices", (list, tuple), location, wanted=wanted)
    if len(choices) != len(LETTERS):
        raise InputError(f"{location}: has {len(choices)} choices; wanted {wanted}")
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    text = "\n".join([field(row, "question", str, location, wanted=wanted).strip(), *lines, "Answer:"])
    answer = field(row, "answer", int, location, wanted=wanted)
    subject = field(row, "subject", str, location, wanted=wanted)
    return _question(text, LETTERS, answer, location, wanted=wanted)._replace(group=subject)


def mmlu_description(subject: str) -> str:
    """What stands above the examples of a subject."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def read_truthfulqa(row: Mapping[str, Any], location: str, *, targets: str) -> Question:
    """A row of TruthfulQA with the choices of `mc1_targets` or `mc2_targets`."""
    wanted = _WANTED["truthfulqa"]
    stored = field(row, targets, dict, location, wanted=wanted)
    choices = field(stored, "choices", (list, tuple), location, wanted=wanted)
    labels = field(stored, "labels", (list, tuple), location, wanted=wanted)
    if len(labels) != len(choices) or not any(labels) or (targets == "mc2_targets" and all(labels)):
        raise InputError(f"{location}: {targets} has labels {list(labels)} for {len(choices)} choices; wanted {wanted}")
    question = field(row, "question", str, location, wanted=wanted)
    correct = tuple(bool(label) for label in labels)
    return Question(f"Q: {question}\nA:", _choices(choices, location, wanted=wanted), correct)


def _joined(row: Mapping[str, Any], location: str, *, wanted: str) -> Question:
    text, gold = field(row, "query", str, location, wanted=wanted), field(row, "gold", int, location, wanted=wanted)
    choices = field(row, "choices", (list, tuple), location, wanted=wanted)
    return _question(text, choices, gold, location, wanted=wanted)


def _question(text: str, choices: Sequence[Any], answer: int, location: str, *, wanted: str) -> Question:
    texts = _choices(choices, location, wanted=wanted)
    if not 0 <= answer < len(texts):
        raise InputError(f"{location}: the answer is choice {answer} of 0 to {len(texts) - 1}; wanted {wanted}")
    return Question(text, texts, tuple(index == answer for index in range(len(texts))))


def _choices(choices: Sequence[Any], location: str, *, wanted: str) -> tuple[str, ...]:
    if not choices:
        raise InputError(f"{location}: has no choices; wanted {wanted}")
    return tuple(_text(choice, location, wanted=wanted) for choice in choices)


def _text(value: Any, location: str, *, wanted: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{location}: a choice is {value!r}; wanted {wanted}")
    return value


def accuracy(item: ChoiceItem, likelihoods: Sequence[Likelihood]) -> dict[str, float]:
    """acc: the likeliest choice is right; acc_norm: so is the likeliest by log-prob per character of the choice.

    The space before a choice is no part of its length; of equals the first one counts.
    """
    logprobs_C = np.array([likelihood.logprob for likelihood in likelihoods])
    lengths_C = np.array([len(choice) for choice in item.choices])
    return {
        "acc": float(item.correct[int(np.argmax(logprobs_C))]),
        "acc_norm": float(item.correct[int(np.argmax(logprobs_C / lengths_C))]),
    }


def true_probability(item: ChoiceItem, likelihoods: Sequence[Likelihood]) -> dict[str, float]:
    """mc2: the share of the right choices in the probability of all of them (arXiv:2109.07958, appendix)."""
    logprobs_C = np.array([likelihood.logprob for likelihood in likelihoods])
    # Relative to the likeliest, so that long choices do not all have a probability of 0.
    probabilities_C = np.exp(logprobs_C - logprobs_C.max())
    return {"mc2": float(probabilities_C[np.array(item.correct)].sum() / probabilities_C.sum())}


def best_is_true(item: ChoiceItem, likelihoods: Sequence[Likelihood]) -> dict[str, float]:
    """mc1: the likeliest choice is the right one."""
    return {"mc1": accuracy(item, likelihoods)["acc"]}
