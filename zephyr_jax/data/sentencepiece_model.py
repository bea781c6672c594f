"""A SentencePiece BPE model file (`tokenizer.model`) as `tokenizers.Tokenizer` objects, without sentencepiece or torch.

What it is: a reader of the few protobuf fields that matter, and the two tokenizers built from them: one with the
ids of `SentencePieceProcessor.encode` for plain texts, one for rendered chats, where `<s>` and `</s>` are tokens.
What it is not: a general SentencePiece: unigram models, normalisers that rewrite text, and pieces defined by the
model's maker are refused, since their ids would be wrong without a word.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from zephyr_jax.records import InputError

# How SentencePiece writes a space inside a piece (U+2581).
SPACE = "▁"

# Numbers of sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MODEL_TYPE_BPE = 2


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a BPE model file says: pieces in the order of their ids, and the ids with a role (-1: none)."""

    pieces: tuple[tuple[str, float, int], ...]  # text, score, type
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    add_dummy_prefix: bool

    def text_of(self, token_id: int) -> str | None:
        """The piece of a role's id, or None where the model has no such role."""
        return self.pieces[token_id][0] if 0 <= token_id < len(self.pieces) else None


def read_model(data: bytes, *, name: str) -> SentencePieceModel:
    """Reads a `tokenizer.model` file.

    Args:
      data: the file's bytes.
      name: what to call the file in messages.

    Returns:
      The model.

    Raises:
      InputError: not such a file, or a kind whose ids we would not get right.
    """
    try:
        fields = list(_fields(data))
        pieces = tuple(_piece(value) for number, value in fields if number == 1)
        trainer = dict(_fields(next((value for number, value in fields if number == 2), b"")))
        normalizer = dict(_fields(next((value for number, value in fields if number == 3), b"")))
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: not a SentencePiece model file ({error}); give a folder with tokenizer.json"
        ) from error
    kinds = {kind for _, _, kind in pieces}
    complaints = {
        "it is not a BPE model": trainer.get(3, 1) != _MODEL_TYPE_BPE,
        "it rewrites text before cutting it (normaliser)": bool(normalizer.get(2)),
        "it removes repeated spaces": bool(normalizer.get(4, 1)),
        "it puts the space after a word": bool(trainer.get(24, 0)),
        "it has pieces defined by its maker or unused ones": bool(kinds & {_USER_DEFINED, _UNUSED}),
        "it has no byte pieces": _BYTE not in kinds,
    }
    found = [text for text, wrong in complaints.items() if wrong]
    if not pieces or found:
        raise InputError(
            f"{name}: this SentencePiece model cannot be read exactly: {'; '.join(found) or 'it has no pieces'}. "
            "Wanted a byte-fallback BPE model as Llama's and Mistral's; "
            "save the tokenizer as tokenizer.json (transformers: tokenizer.save_pretrained) and give that folder"
        )
    return SentencePieceModel(
        pieces,
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        pad_id=_signed(trainer.get(43, -1)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
    )


def build_tokenizers(model: SentencePieceModel) -> tuple[Tokenizer, Tokenizer]:
    """Builds (chat, plain) tokenizers that share one vocabulary.

    `plain` equals `SentencePieceProcessor.encode` on every text: the dummy prefix is put before any text, and
    `</s>` in a text is four ordinary characters. `chat` finds control pieces in the text, as every chat model's
    tokenizer does, and puts the dummy prefix at the very start of the text only, never after a control piece.
    `chat` can be saved as tokenizer.json. One corner differs from sentencepiece there: to a text that already starts
    with a space, Metaspace adds no second one.
    """
    vocab = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    unk = model.text_of(model.unk_id)
    bpe = models.BPE(vocab=vocab, merges=_merges(model), unk_token=unk, fuse_unk=True, byte_fallback=True)
    plain, chat = Tokenizer(bpe), Tokenizer(bpe)

    replace = normalizers.Replace(" ", SPACE)
    prepend = [normalizers.Prepend(SPACE)] if model.add_dummy_prefix else []
    plain.normalizer = normalizers.Sequence([*prepend, replace])

    scheme = "first" if model.add_dummy_prefix else "never"
    chat.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    chat.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text, _, kind in model.pieces
            if kind in (_UNKNOWN, _CONTROL)
        ]
    )
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    for tokenizer in (plain, chat):
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    return chat, plain


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """The merge table: a piece's score is its rank, and every way to cut it in two known pieces is one merge.

    Pieces with roles and byte pieces take no part: sentencepiece never makes them out of text. Pieces of equal score
    (Mistral's runs of spaces) are ordered by id; sentencepiece takes the leftmost, which comes to the same ids there.
    """
    ids = {text: index for index, (text, _, kind) in enumerate(model.pieces) if kind == _NORMAL}
    ranked: list[tuple[float, int, int, int, tuple[str, str]]] = []
    for text, index in ids.items():
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-model.pieces[index][1], index, left, right, (text[:cut], text[cut:])))
    ranked.sort()
    return [pair for *_, pair in ranked]


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    return fields[1].decode("utf-8"), struct.unpack("<f", fields.get(2, b"\0\0\0\0"))[0], fields.get(3, _NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (field number, value) of one protobuf message: integers as int, everything else as raw bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(data):
            raise ValueError("the file ends too early")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _signed(value: int) -> int:
    """A protobuf int32: negative numbers are written as their 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value
