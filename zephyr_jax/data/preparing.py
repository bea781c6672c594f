"""From validated rows to token ids that fit: tokenised once, cut or dropped by stated rules, kept compactly.

Whole turns leave a dialogue's end and tokens leave a prompt's start; a response never loses a token, so an
end-of-sequence token is never lost in silence. Every row cut or dropped is counted in the report.
Not here: reading rows (data/sources.py), the chat template (data/chat.py), how the ids are held (data/encoded.py),
processes (data/worker_pool.py), the folder that tokenised rows are kept in (data/tokenised.py).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.worker_pool import choose_num_workers, map_chunks
from zephyr_jax.records import Conversation, InputError, Message, PreferencePair, ReadReport

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

# What a chunk of rows becomes: the rows kept and dropped, how many there were, and reason -> rows shortened.
Chunk = tuple[EncodedConversations | EncodedPairs, int, Counter[str]]


def prepare_conversations(
    conversations: Sequence[Conversation],
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    loss_on: str,
    report: ReadReport,
    progress: bool = False,
    num_workers: int | None = None,
) -> EncodedConversations:
    """Tokenises dialogues and makes them fit: one that is too long keeps the turns up to the last answer that fits.

    Args:
      conversations: validated dialogues.
      tokenizer: gives ids, targets and the ends of the turns.
      max_length: the most tokens of a dialogue.
      loss_on: "assistant": the targets are the tokenizer's; "all": every token but the first.
      report: gets the counts of rows cut and dropped.
      progress: whether to show a bar with dialogues per second on stderr.
      num_workers: processes to work in, 1 for this one; None: what the rows are worth, `choose_num_workers`.

    Returns:
      The dialogues kept, in the order given; the same whatever the number of processes.

    Raises:
      ValueError: `loss_on` is neither of the two.
    """
    if loss_on not in ("assistant", "all"):
        raise ValueError(f"loss_on: got {loss_on!r}, wanted 'assistant' or 'all'")
    rows = [conversation.messages for conversation in conversations]
    chunks = map_chunks(
        _encode_conversations,
        rows,
        shared=(tokenizer, max_length, loss_on),
        num_workers=num_workers or conversation_workers(conversations),
    )
    dialogues = EncodedConversations.join(_reported(chunks, len(rows), "dialogues", report, progress))
    _count_dropped(dialogues.dropped, report)
    return dialogues


def conversation_workers(conversations: Sequence[Conversation]) -> int:
    """The processes that tokenise these dialogues where no number is given."""
    return choose_num_workers(sum(len(turn["content"]) for row in conversations for turn in row.messages))


def _encode_conversations(
    rows: Sequence[Sequence[Message]], tokenizer: ChatTokenizer, max_length: int, loss_on: str
) -> Chunk:
    dropped: dict[int, str] = {}
    cut: Counter[str] = Counter()

    def kept() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for row, messages in enumerate(rows):
            try:
                encoded = tokenizer.encode_conversation(messages)
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
                cut[CUT_TURNS] += 1
            yield row, encoded.ids[:end], is_target

    dialogues = EncodedConversations.collect(kept())
    return dataclasses.replace(dialogues, dropped=dropped), len(rows), cut


def prepare_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    max_prompt_length: int,
    row_length: int | None,
    report: ReadReport,
    progress: bool = False,
    num_workers: int | None = None,
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
      num_workers: as of `prepare_conversations`.

    Returns:
      The pairs kept, in the order given; the same whatever the number of processes.
    """
    rows = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    chunks = map_chunks(
        _encode_pairs,
        rows,
        shared=(tokenizer, max_length, max_prompt_length, row_length),
        num_workers=num_workers or pair_workers(pairs),
    )
    encoded = EncodedPairs.join(_reported(chunks, len(rows), "pairs", report, progress))
    _count_dropped(encoded.dropped, report)
    return encoded


def pair_workers(pairs: Sequence[PreferencePair]) -> int:
    """The processes that tokenise these pairs where no number is given."""
    # A prompt is tokenised with each answer and alone.
    prompts = sum(3 * len(turn["content"]) for pair in pairs for turn in pair.prompt)
    return choose_num_workers(prompts + sum(len(pair.chosen) + len(pair.rejected) for pair in pairs))


def _encode_pairs(
    rows: Sequence[tuple[Sequence[Message], str, str]],
    tokenizer: ChatTokenizer,
    max_length: int,
    max_prompt_length: int,
    row_length: int | None,
) -> Chunk:
    dropped: dict[int, str] = {}
    cut: Counter[str] = Counter()

    def kept() -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for row, messages_and_answers in enumerate(rows):
            try:
                encoded = tokenizer.encode_pair(*messages_and_answers)
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
                    cut[CUT_PROMPT] += 1
                yield row, prompt, chosen, rejected

    encoded_pairs = EncodedPairs.collect(kept())
    return dataclasses.replace(encoded_pairs, dropped=dropped), len(rows), cut


def cut_prompt(prompt: np.ndarray, longest_response: int, *, max_length: int, max_prompt_length: int) -> np.ndarray:
    """The prompt's last `max_prompt_length` tokens where prompt and longest response exceed `max_length`, else all.

    A prompt that fits beside its responses is left whole even when longer than `max_prompt_length`, as in the
    original's trainer (TRL 0.7); unlike there, no response is ever cut.
    """
    if len(prompt) + longest_response <= max_length:
        return prompt
    return prompt[max(0, len(prompt) - max_prompt_length) :]


def _count_dropped(dropped: Mapping[int, str], report: ReadReport) -> None:
    for reason in dropped.values():
        report.count_dropped(DROPPED_TEMPLATE if reason.startswith(DROPPED_TEMPLATE) else reason)


def _reported(
    chunks: Iterable[tuple[int, Chunk]], num_rows: int, unit: str, report: ReadReport, progress: bool
) -> Iterator[tuple[int, Any]]:
    """The chunks' rows as they come, counted into the report and shown in the bar."""
    with tqdm(total=num_rows, desc="tokenising", unit=f" {unit}", mininterval=0.5, disable=not progress) as bar:
        for start, (encoded, num_chunk_rows, cut) in chunks:
            for reason, count in cut.items():
                report.count_cut(reason, count)
            bar.update(num_chunk_rows)
            yield start, encoded
