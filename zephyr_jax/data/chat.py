"""Dialogues to token ids, with the answers' tokens known exactly.

The rendered text is tokenised once, as everybody does who serves the model, and then parted at its *edges*: after the
generation prompt of every assistant turn, and where that turn ends. Where the tokenisation has a boundary at an edge
it is taken; where it has none (an answer that begins with a newline, after a header that ends with one) it is forced:
the two sides are tokenised apart, with no dummy prefix put in the middle. So the ids of a prompt are a prefix of the
ids of every dialogue that begins with it, by construction.

    Zephyr's template, builtin:bytes, one character per token but for the special ones:
      <s> <|user|>\\nQ </s> \\n<|assistant|>\\n | A </s> \\n |
      BOS prompt                               target tokens

A message that spells a special token (`</s>`) gets that token, as with everybody who tokenises rendered texts.

What it is not: templates (templates.py), files (tokenizer_files.py), truncation (preparing.py).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from zephyr_jax.data.templates import ChatTemplate, load_template
from zephyr_jax.data.tokenizer_files import LoadedTokenizer, bos_adder, open_tokenizer
from zephyr_jax.data.tokenizer_folder import write_tokenizer_folder
from zephyr_jax.records import InputError, Message

logger = logging.getLogger(__name__)

BOS_POLICIES = ("auto", "always", "never")
# Raise when a change here gives other ids for the same tokenizer, template and policy: stores of log-probs key on it.
_EDGE_RULE = "1"
_LONGEST_CACHED_TAIL = 64


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedConversation:
    """A tokenised dialogue of T tokens.

    Attributes:
      ids: int32 [T], BOS included as the policy says.
      is_target: bool [T], the token belongs to an answer: everything after a generation prompt, EOS included.
      turn_ends: number of ids up to the end of each assistant turn; ids[:end] is the dialogue cut after that turn.
    """

    ids: np.ndarray
    is_target: np.ndarray
    turn_ends: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A tokenised preference pair: int32 [P], [C] and [R]; prompt + either response is that whole dialogue."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def load_chat_tokenizer(
    tokenizer: str, *, chat_template: str = "zephyr", bos: str = "auto", empty_system_turn: bool = False
) -> ChatTokenizer:
    """Opens a tokenizer together with a chat template and a BOS policy.

    Args:
      tokenizer: PATH of a Hugging Face folder | hf:ORG/NAME | builtin:{mistral-7b-v0.1, smollm2, bytes}.
      chat_template: zephyr | tokenizer (its own) | PATH of a jinja file.
      bos: auto (as the tokenizer does with any text) | always | never.
      empty_system_turn: Zephyr's template: an empty system turn where none is given.

    Returns:
      The tokenizer.

    Raises:
      InputError: something named is missing or cannot be read exactly, or no BOS where one is wanted.
    """
    if bos not in BOS_POLICIES:
        raise InputError(f"bos: got {bos!r}, wanted one of {', '.join(BOS_POLICIES)}")
    loaded = open_tokenizer(tokenizer)
    if bos == "always" and "bos_token" not in loaded.special_tokens:
        raise InputError(f"bos: got always, but tokenizer {tokenizer} has no BOS token; wanted auto or never")
    template = load_template(
        chat_template,
        loaded.special_tokens,
        tokenizer_name=tokenizer,
        tokenizer_template=loaded.chat_template,
        empty_system_turn=empty_system_turn,
    )
    return ChatTokenizer(loaded, template, bos=bos)


class ChatTokenizer:
    """A tokenizer, a chat template and a BOS policy: the one way from messages to ids in training, scoring, generation.

    Attributes:
      name: the tokenizer, as it was asked for.
      template_text: the chat template's jinja text.
      vocab_size: highest id + 1.
      bos_id: or None.
      eos_id: EOS, also the templates' `eos_token`.
      pad_id: a valid id to fill arrays with, the EOS where there is no pad token; no mask is ever made from it.
      stop_ids: ids that end an answer, EOS first.
      adds_bos: whether BOS goes before a dialogue that does not start with it already.
    """

    def __init__(self, loaded: LoadedTokenizer, template: ChatTemplate, *, bos: str = "auto"):
        self._loaded, self._template, self._tokenizer = loaded, template, loaded.tokenizer
        self.name, self.template_text, self.stop_ids = loaded.name, template.text, loaded.stop_ids
        ids = {role: self._tokenizer.token_to_id(text) for role, text in loaded.special_tokens.items()}
        self.bos_id: int | None = ids.get("bos_token")
        self.eos_id: int = loaded.stop_ids[0]
        pad_id = ids.get("pad_token")
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

        as_it_does = self._tokenizer.encode("a").ids[:1] == [self.bos_id]
        self.adds_bos: bool = as_it_does if bos == "auto" else bos == "always"
        # What the saved folder does to a text follows the policy. While we encode there is no post-processor: those
        # of byte-level tokenizers trim spaces off the offsets, and our edges are read from the offsets.
        self._saved_processor = self._tokenizer.post_processor if self.adds_bos == as_it_does else self._bos_processor()
        self._tokenizer.post_processor = None

        added = self._tokenizer.get_added_tokens_decoder().items()
        # Texts on the two sides of these are tokenised apart, whatever stands there.
        self._anchors = frozenset(index for index, token in added if not token.normalized and not token.lstrip)
        self._tails: dict[str, list[int]] = {}
        self._warn_where_nothing_ends_an_answer()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The dialogue as text, without BOS unless the template writes one; InputError if the template refuses it."""
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_conversation(self, messages: Sequence[Message]) -> EncodedConversation:
        """Tokenises a dialogue.

        Args:
          messages: [system], then user and assistant in turn.

        Returns:
          Ids, which of them belong to answers, and where the assistant turns end.

        Raises:
          InputError: the template refuses the dialogue or rewrites its earlier turns.
        """
        text = self.render(messages, add_generation_prompt=False)
        spans = self._template.answer_spans(messages, text)
        ids, cuts = self._part(text, [edge for span in spans for edge in span])
        with_bos = np.array(self._with_bos(ids), np.int32)
        shift = len(with_bos) - len(ids)
        is_target = np.zeros(len(with_bos), np.bool_)
        for start, end in zip(cuts[::2], cuts[1::2], strict=True):
            is_target[start + shift : end + shift] = True
        return EncodedConversation(with_bos, is_target, tuple(end + shift for end in cuts[1::2]))

    def encode_prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """int32 [P]: the dialogue so far with the generation prompt; what generation starts from."""
        return self._prompt(messages)[0]

    def encode_pair(self, prompt_messages: Sequence[Message], chosen: str, rejected: str) -> EncodedPair:
        """Tokenises a prompt and two answers to it.

        Args:
          prompt_messages: every message before the answer.
          chosen: the preferred answer.
          rejected: the other.

        Returns:
          The prompt's ids, which are those of `encode_prompt`, and of each answer what follows them: the answer, EOS,
          and whatever the template puts behind it.

        Raises:
          InputError: the template refuses the dialogue, or writes the prompt differently once there is an answer.
        """
        prompt, text, edges = self._prompt(prompt_messages)
        return EncodedPair(
            prompt, *(self._response(prompt_messages, text, edges, answer) for answer in (chosen, rejected))
        )

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text that is no chat, with no special tokens added; for SentencePiece models exactly sentencepiece's
        (which sees no special token in `</s>`; other tokenizers do)."""
        return (self._loaded.plain or self._tokenizer).encode(text, add_special_tokens=False).ids

    def encode_rendered(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ids of a text that may spell special tokens, such as a rendered chat or a task's prompt.

        Args:
          text: the text.
          bos: whether BOS goes before it, where it does not begin with one; None: by the policy.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._with_bos(ids) if bos is not False else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True, *, continues: bool = False) -> str:
        """The text of ids; with `continues` they are an answer's, whose leading space is no dummy prefix."""
        tokenizer = self._bare if continues else self._tokenizer
        return tokenizer.decode([int(token_id) for token_id in ids], skip_special_tokens=skip_special_tokens)

    def fingerprint(self) -> dict[str, str]:
        """What decides the ids, for the keys of stored results: sha256 of contents, never names or paths."""
        content = json.loads(self._tokenizer.to_str())
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
        used = {role: text for role, text in self._loaded.special_tokens.items() if role in self.template_text}
        template = json.dumps([self.template_text, used], sort_keys=True)
        return {
            "tokenizer": hashlib.sha256(canonical.encode("utf-8")).hexdigest(),
            "chat_template": hashlib.sha256(template.encode("utf-8")).hexdigest(),
            "bos": "added" if self.adds_bos else "not added",
            "edge_rule": _EDGE_RULE,
        }

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer, the template and the BOS policy as a Hugging Face folder.

        `AutoTokenizer.from_pretrained(folder)` gives `apply_chat_template` the same text, and that text the same ids
        (BOS included) wherever no boundary is forced. Who takes ids from `apply_chat_template` itself, as servers do,
        gets no BOS but the template's own, and a warning says so here.
        """
        self._warn_where_servers_leave_bos_out()
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        if self._saved_processor is not None:
            tokenizer.post_processor = self._saved_processor
        write_tokenizer_folder(
            Path(folder),
            tokenizer,
            special_tokens=self._loaded.special_tokens,
            chat_template=self.template_text,
            settings=self._loaded.settings,
        )

    def _prompt(self, messages: Sequence[Message]) -> tuple[np.ndarray, str, list[int]]:
        """Ids, text and inner edges of a prompt: earlier answers are parted as in training, where the template leaves
        them as they were."""
        text = self.render(messages, add_generation_prompt=True)
        edges = [edge for span in self._template.answer_spans(messages, text, strict=False) for edge in span]
        return np.array(self._with_bos(self._part(text, edges)[0]), np.int32), text, edges

    def _response(self, prompt: Sequence[Message], prompt_text: str, edges: list[int], answer: str) -> np.ndarray:
        messages: list[Message] = [*prompt, {"role": "assistant", "content": answer}]
        text = self.render(messages, add_generation_prompt=False)
        if not text.startswith(prompt_text):
            self._template.answer_spans(messages, text)  # raises, and says what differs
        ids, cuts = self._part(text, [*edges, len(prompt_text)])
        return np.array(ids[cuts[-1] :], np.int32)

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def _part(self, text: str, edges: list[int], *, tokenizer: Tokenizer | None = None) -> tuple[list[int], list[int]]:
        """Tokenises `text` with a boundary at every edge.

        Args:
          text: the text.
          edges: characters, ascending.
          tokenizer: another one than ours (the one without dummy prefix).

        Returns:
          The ids, and for every edge the number of ids before it.
        """
        tokenizer = tokenizer or self._tokenizer
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, cuts = encoding.ids, []
        for number, edge in enumerate(edges):
            cut = self._boundary(tokenizer, text, encoding, ids, edge)
            if cut is None:
                left, left_cuts = self._part(text[:edge], edges[:number], tokenizer=tokenizer)
                right, right_cuts = self._part_after(text[edge:], [later - edge for later in edges[number + 1 :]])
                return left + right, [*left_cuts, len(left), *(len(left) + later for later in right_cuts)]
            cuts.append(cut)
        return ids, cuts

    def _part_after(self, text: str, edges: list[int]) -> tuple[list[int], list[int]]:
        """As `_part`, for a text that goes on after a forced boundary: no dummy prefix at its start.

        Only the start differs: from the first special token on, the tokenizer does what it does in any text.
        """
        if self._bare is self._tokenizer:
            return self._part(text, edges)
        bare = self._bare.encode(text, add_special_tokens=False)
        starts = (span[0] for token_id, span in zip(bare.ids, bare.offsets, strict=True) if token_id in self._anchors)
        first = next(starts, len(text))
        left, left_cuts = self._part(text[:first], [edge for edge in edges if edge <= first], tokenizer=self._bare)
        right, right_cuts = self._part(text[first:], [edge - first for edge in edges if edge > first])
        return left + right, [*left_cuts, *(len(left) + cut for cut in right_cuts)]

    def _boundary(self, tokenizer: Tokenizer, text: str, encoding: Encoding, ids: list[int], edge: int) -> int | None:
        """The number of ids before character `edge`, or None if the tokenisation has no boundary there.

        A boundary also needs the left side to read as it would with nothing after it (a pre-tokenizer may look ahead),
        else a prompt would have other ids with its answer than without. As nothing before the last special token can
        change, only the tail from there on is compared, and tails (`</s>\\n<|assistant|>\\n`) are few.
        """
        if edge == len(text):
            return len(ids)
        cut = encoding.char_to_token(edge)
        if cut is None:  # the normaliser dropped this character
            cut = next((i for i, (start, _) in enumerate(encoding.offsets) if start >= edge), len(ids))
            if cut and _span(encoding, cut - 1)[1] > edge:
                return None
        elif _span(encoding, cut)[0] != edge:
            return None
        anchor = cut - 1
        while anchor > 0 and ids[anchor] not in self._anchors:
            anchor -= 1
        if anchor <= 0:
            left = tokenizer.encode(text[:edge], add_special_tokens=False).ids if edge else []
            return cut if left == ids[:cut] else None
        tail = text[_span(encoding, anchor)[0] : edge]
        return cut if self._tail_ids(tail) == ids[anchor:cut] else None

    def _tail_ids(self, tail: str) -> list[int]:
        ids = self._tails.get(tail)
        if ids is None:
            ids = self._tokenizer.encode(tail, add_special_tokens=False).ids
            if len(tail) <= _LONGEST_CACHED_TAIL and len(self._tails) < 1000:
                self._tails[tail] = ids
        return ids

    @functools.cached_property
    def _bare(self) -> Tokenizer:
        """The tokenizer without its dummy prefix; the tokenizer itself if it has none."""
        content = json.loads(self._tokenizer.to_str())
        prefixless = {
            **content,
            "normalizer": _without_prefix(content["normalizer"]),
            "pre_tokenizer": _without_prefix(content["pre_tokenizer"]),
            "decoder": _without_strip(content["decoder"]),
        }
        return self._tokenizer if prefixless == content else Tokenizer.from_str(json.dumps(prefixless))

    def _bos_processor(self) -> Any:
        return bos_adder(self._tokenizer, self._loaded.special_tokens["bos_token"]) if self.adds_bos else None

    def _warn_where_nothing_ends_an_answer(self) -> None:
        example: list[Message] = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        encoded = self.encode_conversation(example)
        if not set(encoded.ids[encoded.is_target].tolist()) & set(self.stop_ids):
            logger.warning(
                "chat template %s puts no end-of-sequence token of %s after an answer: models trained with it will not "
                "learn to stop",
                self._template.name,
                self.name,
            )

    def _warn_where_servers_leave_bos_out(self) -> None:
        text = self.render([{"role": "user", "content": "Q"}], add_generation_prompt=True)
        if self.adds_bos and self.encode_rendered(text, bos=False)[:1] != [self.bos_id]:
            _warn_once(
                f"tokenizer {self.name}: BOS goes before every dialogue, and chat template {self._template.name} does "
                "not write it; a server puts it there only if told to (vLLM: `add_special_tokens: true` in each "
                "request; `transformers serve` never)"
            )


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)  # a run saves its tokenizer with each stage


def _span(encoding: Encoding, index: int) -> tuple[int, int]:
    """The characters (start, end) of a token; cheaper than the list of all offsets."""
    span = encoding.token_to_chars(index)
    assert span is not None  # only special tokens added by a post-processor have none, and there is no post-processor
    return span


def _without_prefix(part: Any) -> Any:
    """A normaliser's or pre-tokenizer's JSON without what puts a prefix before a text."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    part = {**part, **{key: value for key, value in changes.items() if key in part}}
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            part[key] = [kept for inner in part[key] if (kept := _without_prefix(inner)) is not None]
    return part


def _without_strip(part: Any) -> Any:
    """A decoder's JSON without what takes the prefix off again."""
    if not isinstance(part, dict):
        return part
    if "decoders" in part:
        return {**part, "decoders": [kept for inner in part["decoders"] if (kept := _without_strip(inner)) is not None]}
    if part.get("type") == "Strip":
        return None
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    return {**part, **{key: value for key, value in changes.items() if key in part}}
