"""From validated rows to token ids that fit: tokenised once, cut or dropped by stated rules, kept compactly.

Whole turns leave a dialogue's end and tokens leave a prompt's start; a response never loses a token, so an
end-of-sequence token is never lost in silence. Every row cut or dropped is counted in the report.
Not here: reading rows (data/sources.py), the chat template (data/chat.py), how the ids are kept (data/encoded.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.records import Conversation, InputError, PreferencePair, ReadReport

if TYPE_CHECKING:
    from zephyr_jax.data.chat import ChatTokenizer

CUT_TURNS = "turns cut to fit max_length"
CUT_PROMPT = "prompt cut to its last max_prompt_length tokens"
DROPPED_LONG_DIALOGUE = "longer than max_length up to the first answer"
DROPPED_NO_TARGETS = "no target tokens"
DROPPED_TEMPLATE = "refused by the chat template"
DROPPED_EMPTY_PROMPT = "empty prompt"
DROPPED_EMPTY_RESPONSE = "empty response"
DROPPED_LONG_PAIR = "prompt and response longer than max_length"
DROPPED_LONG_ROW = "prompt and both responses longer than row_length"


def prepare_conversations(
    conversations: Sequence[Conversation],
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    loss_on: str,
    report: ReadReport,
    progress: bool = False,
) -> EncodedConversations:
    """Tokenises dialogues and makes them fit: one that is too long keeps the turns up to the last answer that fits.

    Args:
      conversations: validated dialogues.
      tokenizer: gives ids, targets and the ends of the turns.
      max_length: the most tokens of a dialogue.
      loss_on: "assistant": the targets are the tokenizer's; "all": every token but the first.
      report: gets the counts of rows cut and dropped.
      progress: whether to show a bar with dialogues per second on stderr.

    Returns:
      The dialogues kept, in the order given.

    Raises:
      ValueError: `loss_on` is neither of the two.
    """
    if loss_on not in ("assistant", "all"):
        raise ValueError(f"loss_on: got {loss_on!r}, wanted 'assistant' or 'all'")
    dropped: dict[int, str] = {}

    def kept() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for row, conversation in enumerate(_shown(conversations, "dialogues", progress)):
            try:
                encoded = tokenizer.encode_conversation(conversation.messages)
            except InputError as error:
                dropped[row] = f"{DROPPED_TEMPLATE}: {error}"
                continue
            end = len(encoded.ids)
            is_cut = end > max_length
            if is_cut:
                end = max((turn_end for turn_end in encoded.turn_ends if turn_end <= max_length), default=0)
            if end == 0:
                dropped[row] = DROPPED_LONG_DIALOGUE if is_cut else DROPPED_NO_TARGETS
                continue
            is_target = np.ones(end, np.bool_) if loss_on == "all" else np.array(encoded.is_target[:end], np.bool_)
            is_target[0] = False  # nothing stands before the first token to predict it from
            if not is_target.any():
                dropped[row] = DROPPED_NO_TARGETS
                continue
            if is_cut:
                report.count_cut(CUT_TURNS)
            yield row, encoded.ids[:end], is_target

    dialogues = EncodedConversations.collect(kept())
    return dataclasses.replace(dialogues, dropped=_counted(dropped, report))


def prepare_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    max_prompt_length: int,
    row_length: int | None,
    report: ReadReport,
    progress: bool = False,
) -> EncodedPairs:
    """Tokenises preference pairs and makes them fit, see `cut_prompt`; what cannot fit is dropped and counted.

    Args:
      pairs: validated pairs.
      tokenizer: gives the ids of prompt, chosen and rejected.
      max_length: the most tokens of a prompt and one response.
      max_prompt_length: what a prompt is cut to where it must be.
      row_length: the most tokens of a prompt and both responses (packed layout), or None (padded layout).
      report: gets the counts of rows cut and dropped.
      progress: whether to show a bar with pairs per second on stderr.

    Returns:
      The pairs kept, in the order given.
    """
    dropped: dict[int, str] = {}

    def kept() -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for row, pair in enumerate(_shown(pairs, "pairs", progress)):
            try:
                encoded = tokenizer.encode_pair(pair.prompt, pair.chosen, pair.rejected)
            except InputError as error:
                dropped[row] = f"{DROPPED_TEMPLATE}: {error}"
                continue
            chosen, rejected = encoded.chosen, encoded.rejected
            longest = max(len(chosen), len(rejected))
            prompt = cut_prompt(encoded.prompt, longest, max_length=max_length, max_prompt_length=max_prompt_length)
            if min(len(chosen), len(rejected)) == 0:
                dropped[row] = DROPPED_EMPTY_RESPONSE
            elif len(prompt) == 0:
                dropped[row] = DROPPED_EMPTY_PROMPT
            elif len(prompt) + longest > max_length:
                dropped[row] = DROPPED_LONG_PAIR
            elif row_length is not None and len(prompt) + len(chosen) + len(rejected) > row_length:
                dropped[row] = DROPPED_LONG_ROW
            else:
                if len(prompt) < len(encoded.prompt):
                    report.count_cut(CUT_PROMPT)
                yield row, prompt, chosen, rejected

    encoded_pairs = EncodedPairs.collect(kept())
    return dataclasses.replace(encoded_pairs, dropped=_counted(dropped, report))


def cut_prompt(prompt: np.ndarray, longest_response: int, *, max_length: int, max_prompt_length: int) -> np.ndarray:
    """The prompt's last `max_prompt_length` tokens where prompt and longest response exceed `max_length`, else all.

    A prompt that fits beside its responses is left whole even when longer than `max_prompt_length`, as in the
    original's trainer (TRL 0.7); unlike there, no response is ever cut.
    """
    if len(prompt) + longest_response <= max_length:
        return prompt
    return prompt[max(0, len(prompt) - max_prompt_length) :]


def _counted(dropped: dict[int, str], report: ReadReport) -> dict[int, str]:
    for reason in dropped.values():
        report.count_dropped(DROPPED_TEMPLATE if reason.startswith(DROPPED_TEMPLATE) else reason)
    return dropped


def _shown(rows: Sequence, unit: str, progress: bool) -> Iterable:
    if not progress:
        return rows
    from tqdm import tqdm

    return tqdm(rows, desc="tokenising", unit=f" {unit}", mininterval=0.5)
