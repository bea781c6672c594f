"""From one row of a file to a conversation, a preference pair or a prompt, or to the reason why it is none.

A reason is a short phrase that is the same for every row with the same fault, so that reasons can be counted. Columns
that are not asked for are ignored. Where rows come from is in `file_rows.py` and `library_rows.py`; what becomes of a
whole set, in `sources.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from zephyr_jax.records import Conversation, Message, PreferencePair, Prompt

# One string object per role, however many rows are kept.
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}


# Our name of a column (HuggingFaceH4/ultrafeedback_binarized's) -> its names in Argilla's binarised sets: the first is
# ultrafeedback-binarized-preferences, whose answers are texts; then -cleaned, and dpo-mix-7k.
_ARGILLA_ANSWERS = {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}
_ARGILLA_NOTES = {
    "score_chosen": ("chosen_avg_rating", "chosen-rating", "chosen_rating"),
    "score_rejected": ("rejected_avg_rating", "rejected-rating", "rejected_rating"),
    "chosen_model": ("chosen-model",),
    "rejected_model": ("rejected-model",),
}


class RowError(ValueError):
    """A row that cannot be used; its text is the reason, one short phrase."""

    @property
    def reason(self) -> str:
        """Why the row cannot be used."""
        return str(self)


def parse_conversation(row: Mapping[str, Any], location: str) -> Conversation:
    """Validates a row with the columns of ultrachat_200k: `messages`, and `prompt_id` where there is one.

    Args:
      row: column name -> value; only `messages` must be there.
      location: where the row was read, `file:line`.

    Returns:
      The dialogue, its text untouched.

    Raises:
      RowError: the dialogue is not an optional system message, then user and assistant in turn, ending with an
        assistant's, all of them with text.
    """
    messages = _dialogue(_required(row, "messages"), "messages")
    if messages[-1]["role"] == "user":
        raise RowError("messages ends with a user turn")
    return Conversation(messages, _prompt_id(row), location)


def pair_columns(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of Argilla's binarised sets with the names of ultrafeedback_binarized beside its own; any other as it is.

    >>> pair_columns({"chosen": [], "chosen-rating": 4.5})
    {'chosen': [], 'chosen-rating': 4.5, 'score_chosen': 4.5}
    """
    renamed: dict[str, Any] = {}
    if row.get("chosen") is None and row.get("chosen_response") is not None:
        renamed |= {ours: row.get(theirs) for ours, theirs in _ARGILLA_ANSWERS.items()}
    for ours, names in _ARGILLA_NOTES.items():
        values = [row[name] for name in names if row.get(name) is not None]
        if values and row.get(ours) is None:
            renamed[ours] = values[0]
    return {**row, **renamed} if renamed else row


def parse_pair(row: Mapping[str, Any], location: str) -> PreferencePair:
    """Validates a row with the columns of ultrafeedback_binarized: `chosen`, `rejected`, and scores if there are some.

    Argilla's names of these columns do as well (`pair_columns`).

    The answers are message lists with equal prompts; or message lists of one assistant's message, or plain strings,
    beside a `prompt` (a string, or a message list). Where the answers hold the prompt themselves, `prompt` is ignored.

    Args:
      row: column name -> value.
      location: where the row was read, `file:line`.

    Returns:
      The pair, its text untouched.

    Raises:
      RowError: the answers are not such, are equal, or a score is neither null nor a finite number.
    """
    row = pair_columns(row)
    chosen, rejected = _required(row, "chosen"), _required(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = _prompt_of_answers(row)
        answers = (checked_text(chosen, "chosen"), checked_text(rejected, "rejected"))
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("chosen and rejected are not both text or both message lists")
    else:
        prompt, chosen_answer = _split_answer(row, chosen, "chosen")
        rejected_prompt, rejected_answer = _split_answer(row, rejected, "rejected")
        if prompt != rejected_prompt:
            raise RowError("prompts of chosen and rejected differ")
        answers = (chosen_answer, rejected_answer)
    if answers[0] == answers[1]:
        raise RowError("chosen equals rejected")
    scores = (_score(row, "score_chosen"), _score(row, "score_rejected"))
    return PreferencePair(prompt, *answers, _prompt_id(row), location, *scores)


def parse_prompt(row: Mapping[str, Any], location: str) -> tuple[Message, ...]:
    """Validates a row that asks for an answer: `messages` ending with a user turn, or `prompt` as one user turn.

    Args:
      row: column name -> value; where it has `messages`, `prompt` is ignored.
      location: where the row was read; taken so that all three parsers are called alike.

    Raises:
      RowError: there is neither, or the messages are no dialogue that waits for an answer.
    """
    del location
    if row.get("messages") is None:
        if row.get("prompt") is None:
            raise RowError("neither messages nor prompt")
        return _prompt_messages(row["prompt"])
    messages = _dialogue(row["messages"], "messages")
    if messages[-1]["role"] != "user":
        raise RowError("ends with an assistant turn, which leaves nothing to answer")
    return messages


def parse_question(row: Mapping[str, Any], location: str) -> Prompt:
    """Validates a row whose prompt is to be answered anew: a dialogue, a prompt, or a row of AI feedback.

    Args:
      row: column name -> value: `messages` (a last assistant's turn is left out), else `prompt`, else `instruction`.
      location: where the row was read, `file:line`.

    Raises:
      RowError: there is none of them, or no dialogue that could wait for an answer.
    """
    if row.get("messages") is not None:
        messages = _dialogue(row["messages"], "messages")
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    elif row.get("prompt") is not None:
        messages = _prompt_messages(row["prompt"])
    else:
        messages = _prompt_messages(_required(row, "instruction"))
    text = messages[-1]["content"]
    source = row.get("source")
    return Prompt(
        messages,
        _prompt_id(row) or hashlib.sha256(text.encode()).hexdigest(),
        location,
        None if source is None else str(source),
    )


def _split_answer(row: Mapping[str, Any], value: Any, column: str) -> tuple[tuple[Message, ...], str]:
    """A list that ends with the answer, as (prompt, answer); the prompt may stand in a column of its own."""
    parsed = _messages(value, column)
    if len(parsed) == 1 and parsed[0]["role"] == "assistant" and row.get("prompt") is not None:
        return _prompt_of_answers(row), parsed[0]["content"]
    _check_turns(parsed, column)
    if parsed[-1]["role"] == "user":
        raise RowError(f"{column} ends with a user turn")
    return parsed[:-1], parsed[-1]["content"]


def _prompt_of_answers(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if row.get("prompt") is None:
        raise RowError("no prompt beside the answers")
    return _prompt_messages(row["prompt"])


def _prompt_messages(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return ({"role": "user", "content": checked_text(prompt, "prompt")},)
    messages = _dialogue(prompt, "prompt")
    if messages[-1]["role"] != "user":
        raise RowError("prompt does not end with a user turn")
    return messages


def _dialogue(value: Any, column: str) -> tuple[Message, ...]:
    messages = _messages(value, column)
    _check_turns(messages, column)
    return messages


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    """Checks each message for itself; their order is `_check_turns`'s."""
    if not isinstance(value, list | tuple):
        raise RowError(f"{column} is not a list of messages")
    if not value:
        raise RowError(f"{column} is empty")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise RowError(f"a message of {column} is not an object with role and content")
        role = _ROLES.get(message["role"]) if isinstance(message["role"], str) else None
        if role is None:
            raise RowError(f"a role in {column} is none of {', '.join(_ROLES)}")
        messages.append({"role": role, "content": checked_text(message["content"], f"a message of {column}")})
    return tuple(messages)


def _check_turns(messages: tuple[Message, ...], column: str) -> None:
    turns = [message["role"] for message in messages]
    if turns[0] == "system":
        turns = turns[1:]
    if not turns:
        raise RowError(f"{column} has a system message only")
    if "system" in turns:
        raise RowError(f"{column} has a system message after the first")
    if turns[0] == "assistant":
        raise RowError(f"{column} starts with an assistant turn")
    if any(first == second for first, second in zip(turns, turns[1:], strict=False)):
        raise RowError(f"roles of {column} do not alternate")


def checked_text(value: Any, what: str) -> str:
    """A value that has to be text with more than white space, untouched; `what` names it in the reason.

    Raises:
      RowError: it is not.
    """
    if not isinstance(value, str):
        raise RowError(f"{what} is not text" if value is not None else f"{what} has no text")
    if not value.strip():
        raise RowError(f"{what} has no text")
    try:
        value.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError:
        raise RowError(f"{what} has half a surrogate pair") from None
    return value


def _score(row: Mapping[str, Any], column: str) -> float | None:
    score = row.get(column)
    if score is None:
        return None
    try:
        if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
            return float(score)
    except OverflowError:  # an integer beyond float's range
        pass
    raise RowError(f"{column} is neither null nor a finite number")


def _prompt_id(row: Mapping[str, Any]) -> str | None:
    prompt_id = row.get("prompt_id")
    return None if prompt_id is None else str(prompt_id)


def _required(row: Mapping[str, Any], column: str) -> Any:
    if row.get(column) is None:
        raise RowError(f"no column {column}")
    return row[column]
