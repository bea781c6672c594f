"""Dialogues to ids: prompts are prefixes, answers are exactly the targets, boundaries are forced only where needed."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tests.data.chat_cases import (
    KINDS,
    NASTY_DIALOGUES,
    NASTY_TEXTS,
    PACKAGES,
    SENTENCEPIECE_KINDS,
    legacy_folder,
    merging_folder,
    need_package,
    open_kind,
    turns,
)
from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.records import InputError

HEADER = [63, 127]  # "<|" of builtin:bytes: ids are 3 + byte


def byte_ids(text: str) -> list[int]:
    return [3 + byte for byte in text.encode()]


def raw_ids(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """The whole text in one go, as tokenizer.json has it."""
    return tokenizer._tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind, tmp_path_factory) -> ChatTokenizer:
    return open_kind(kind, tmp_path_factory.mktemp("tokenizer"))


def test_worked_example_of_one_turn():
    """The table at the top of chat.py: BOS, the user's turn, EOS, newline, header | A, EOS, newline."""
    tokenizer = load_chat_tokenizer("builtin:bytes")
    encoded = tokenizer.encode_conversation(turns("Q", "A"))
    prompt = [1, *byte_ids("<|user|>\nQ"), 2, *byte_ids("\n<|assistant|>\n")]
    assert encoded.ids.tolist() == [*prompt, *byte_ids("A"), 2, *byte_ids("\n")]
    assert encoded.is_target.tolist() == [False] * len(prompt) + [True] * 3
    assert encoded.turn_ends == (len(encoded.ids),)
    assert encoded.ids.dtype == np.int32 and encoded.is_target.dtype == np.bool_


def test_worked_example_of_a_pair_with_a_system_turn():
    pair = load_chat_tokenizer("builtin:bytes").encode_pair(turns("Q", system="S"), "yes", " no")
    text = [*byte_ids("<|system|>\nS"), 2, *byte_ids("\n<|user|>\nQ"), 2, *byte_ids("\n<|assistant|>\n")]
    assert pair.prompt.tolist() == [1, *text]
    assert pair.chosen.tolist() == [*byte_ids("yes"), 2, 13]
    assert pair.rejected.tolist() == [*byte_ids(" no"), 2, 13]


def test_mistral_writes_a_header_as_five_ids():
    """`<|user|>` is no special token; after `</s>` and a newline it is 28789 28766 1838 28766 28767, and only at the
    very start of the text its first piece carries the dummy prefix (523)."""
    need_package("builtin:mistral-7b-v0.1")
    tokenizer = load_chat_tokenizer("builtin:mistral-7b-v0.1")
    ids = tokenizer.encode_conversation(turns("Q", "A", "Q", "A")).ids.tolist()
    header = [28789, 28766, 1838, 28766, 28767]
    assert ids[:6] == [1, 523, *header[1:]]
    assert ids[20 : 20 + 5] == header
    assert tokenizer.decode(ids[20 : 20 + 5], continues=True) == "<|user|>"
    assert ids[17:20] == [28741, 2, 13]  # "A" without a prefix, EOS, newline
    assert 28705 not in ids  # no lone "▁" anywhere


@pytest.mark.parametrize("dialogue", NASTY_DIALOGUES, ids=range(len(NASTY_DIALOGUES)))
def test_prompts_and_cut_dialogues_are_prefixes(tokenizer, dialogue):
    whole = tokenizer.encode_conversation(dialogue)
    ends = iter(whole.turn_ends)
    for index, message in enumerate(dialogue):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.encode_prompt(dialogue[:index])
        end = next(ends)
        assert whole.ids[: len(prompt)].tolist() == prompt.tolist()
        assert whole.ids[:end].tolist() == tokenizer.encode_conversation(dialogue[: index + 1]).ids.tolist()
        assert not whole.is_target[len(prompt) - 1] and whole.is_target[len(prompt) : end].all()
    assert end == len(whole.ids)


def test_targets_are_the_answers_and_their_eos(kind, tokenizer):
    """What is a target reads, turn by turn, as the answer, EOS and newline."""
    eos = tokenizer.decode([tokenizer.eos_id], False)
    for text in NASTY_TEXTS:
        encoded = tokenizer.encode_conversation(turns("Q", text, text, "A"))
        read = tokenizer.decode(encoded.ids[encoded.is_target], False, continues=True)
        written = f"{text}{eos}\nA{eos}\n"
        if kind in SENTENCEPIECE_KINDS:  # there an escaped space and a space are one
            read, written = read.replace("▁", " "), written.replace("▁", " ")
        if kind == "legacy":  # a prefix after every special token
            read, written = read.replace(" ", ""), written.replace(" ", "")
        assert read == written
        assert (encoded.ids[encoded.is_target] == tokenizer.eos_id).sum() >= 2


def test_pair_is_the_conversation_parted(tokenizer):
    prompt = turns("Q", "\nA", "and?", system="S")
    for answer in NASTY_TEXTS:
        pair = tokenizer.encode_pair(prompt, answer, answer + "!")
        assert pair.prompt.tolist() == tokenizer.encode_prompt(prompt).tolist()
        whole = tokenizer.encode_conversation([*prompt, {"role": "assistant", "content": answer}])
        assert [*pair.prompt, *pair.chosen] == whole.ids.tolist()
        assert whole.is_target[-len(pair.chosen) :].all() and not whole.is_target[-len(pair.chosen) - 1]


def test_ids_are_the_whole_texts_own_where_it_has_boundaries(kind, tokenizer):
    dialogue = turns("Q", "1. one", "and then?", "2. two", system="S")
    text = tokenizer.render(dialogue, add_generation_prompt=False)
    expected = raw_ids(tokenizer, text)
    ids = tokenizer.encode_conversation(dialogue).ids.tolist()
    if kind == "merging":  # its "\n<" crosses the end of every turn
        assert ids[1:] != expected
    else:
        assert ids[tokenizer.adds_bos :] == expected


def test_boundary_is_forced_where_a_token_crosses_it(tmp_path):
    r"""In the whole text the header's newline and the answer's "A" are one token (`\nA`); no prompt could end there."""
    tokenizer = load_chat_tokenizer(str(merging_folder(tmp_path)))
    crossing = tokenizer.encode_text("\nA")
    assert len(crossing) == 1
    pair = tokenizer.encode_pair(turns("Q"), "A", "B")
    assert pair.prompt[-1] == 13
    assert pair.chosen.tolist() == [*byte_ids("A"), 2, 13]
    text = tokenizer.render(turns("Q", "A"), add_generation_prompt=False)
    assert crossing[0] in raw_ids(tokenizer, text)


def test_spaces_trimmed_from_offsets_hide_no_crossing_token(tmp_path):
    """tokenizer.json of byte-level models trims a token's leading space from its offsets: `\\n` + space would look like
    it began at the answer."""
    tokenizer = load_chat_tokenizer(str(merging_folder(tmp_path)))
    pair = tokenizer.encode_pair(turns("Q"), " x", "x")
    assert pair.chosen.tolist() == byte_ids(" x") + [2, 13]
    assert pair.prompt.tolist()[-1] == 13


def test_left_side_reads_as_it_would_alone(tmp_path):
    r"""A pre-tokenizer that looks ahead: after `Q: \n\n` GPT-2's regex parts the newlines only if a word follows. The
    prompt is what generation will see, one token, and the answer is forced to start after it."""
    need_package("builtin:smollm2")
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ': \\n\\n' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: \\n\\n' }}{% endif %}"
    )
    tokenizer = load_chat_tokenizer("builtin:smollm2", chat_template=str(template))
    prompt = tokenizer.encode_prompt(turns("Q"))
    encoded = tokenizer.encode_conversation(turns("Q", "word"))
    assert encoded.ids[: len(prompt)].tolist() == prompt.tolist()
    assert encoded.ids.tolist() != raw_ids(tokenizer, tokenizer.render(turns("Q", "word"), add_generation_prompt=False))
    assert tokenizer.decode(encoded.ids[encoded.is_target], False) == "word<|im_end|>"


def test_legacy_prefixes_stay_but_none_is_put_at_a_forced_boundary(tmp_path):
    """`▁` after every special token is that tokenizer's truth; the answer after `\\n`, parted by force, gets none."""
    tokenizer = load_chat_tokenizer(str(legacy_folder(tmp_path)))
    ids = {text: tokenizer._tokenizer.token_to_id(text) for text in ("▁\n", "A", "\nA", "▁")}
    pair = tokenizer.encode_pair(turns("Q"), "A", "B")
    assert pair.chosen.tolist() == [ids["A"], tokenizer.eos_id, ids["▁\n"]]
    assert ids["\nA"] in raw_ids(tokenizer, tokenizer.render(turns("Q", "A"), add_generation_prompt=False))


def test_prefix_goes_to_the_start_of_the_text_only(tmp_path):
    tokenizer = load_chat_tokenizer(str(legacy_folder(tmp_path, prefix="first")))
    ids = tokenizer.encode_conversation(turns("A", "A", "A", "A")).ids.tolist()
    space = tokenizer._tokenizer.token_to_id("▁")
    assert ids[:2] == [1, space] and space not in ids[2:]


def test_eos_is_a_target_where_pad_is_eos(tokenizer):
    """Masks never come from the pad id: every answer ends in EOS, and the EOS of a user's turn is no target."""
    encoded = tokenizer.encode_conversation(turns("Q", "one", "Q", "two"))
    is_eos = encoded.ids == tokenizer.eos_id
    assert is_eos.sum() == 4
    assert encoded.is_target[is_eos].tolist() == [False, True, False, True]
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


def test_bos_policies(tmp_path):
    messages = turns("Q")
    ids = {
        bos: load_chat_tokenizer("builtin:bytes", bos=bos).encode_prompt(messages).tolist()
        for bos in ("auto", "always", "never")
    }
    assert ids["auto"] == ids["always"] == [1, *ids["never"]]
    folder = merging_folder(tmp_path)  # has a BOS token and does not add it
    assert load_chat_tokenizer(str(folder)).encode_prompt(messages)[0] != 1
    always = load_chat_tokenizer(str(folder), bos="always")
    assert always.encode_prompt(messages)[0] == 1
    assert always.encode_conversation(turns("Q", "A")).ids[0] == 1
    assert always.encode_pair(messages, "a", "b").prompt[0] == 1


def test_a_template_without_bos_is_said_to_be_served_without_one(tmp_path, caplog):
    """Servers take the template's ids, where nothing else puts a BOS."""
    for bos, said in (("always", True), ("never", False)):
        caplog.clear()
        open_kind("merging", tmp_path / f"made {bos}", bos=bos).save(tmp_path / bos)
        assert ("add_special_tokens" in caplog.text) == said


def test_bos_is_never_doubled(tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    for bos in ("auto", "always"):
        tokenizer = load_chat_tokenizer("builtin:bytes", chat_template=str(template), bos=bos)
        assert tokenizer.encode_conversation(turns("Q", "A")).ids.tolist() == [1, *byte_ids("Q"), 2, *byte_ids("A"), 2]


@pytest.mark.parametrize("empty_system_turn", [False, True])
def test_empty_system_turn_of_the_original(empty_system_turn):
    tokenizer = load_chat_tokenizer("builtin:bytes", empty_system_turn=empty_system_turn)
    start = [1, *byte_ids("<|system|>\n"), 2, 13] if empty_system_turn else [1]
    assert tokenizer.encode_prompt(turns("Q"))[: len(start) + 2].tolist() == [*start, *HEADER]
    given = tokenizer.render(turns("Q", system="S"), add_generation_prompt=False)
    assert given == "<|system|>\nS</s>\n<|user|>\nQ</s>\n"


def test_template_without_eos_is_said_once(tmp_path, caplog):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    with caplog.at_level(logging.WARNING):
        tokenizer = load_chat_tokenizer("builtin:bytes", chat_template=str(template))
        tokenizer.encode_conversation(turns("Q", "A"))
        tokenizer.encode_conversation(turns("Q", "A"))
    assert [record.message.count("end-of-sequence") for record in caplog.records] == [1]


def test_template_that_rewrites_history_trains_single_turns_only(tmp_path):
    """Such templates (they drop earlier reasoning) write no text that a prompt and the whole dialogue begin with."""
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U' + m['content'] + eos_token }}"
        "{% elif loop.last %}{{ 'A<think>' + m['content'] + eos_token }}{% else %}{{ 'A' + m['content'] + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A' }}{% endif %}"
    )
    tokenizer = load_chat_tokenizer("builtin:bytes", chat_template=str(template))
    assert tokenizer.encode_conversation(turns("Q", "A")).is_target.sum() == len("<think>A") + 1
    with pytest.raises(InputError, match=r"chat template .*t\.jinja: up to message 2 it renders '<think>one"):
        tokenizer.encode_conversation(turns("Q", "one", "Q", "two"))
    pair = tokenizer.encode_pair(turns("Q", "one", "Q"), "two", "three")
    assert pair.chosen.tolist() == [*byte_ids("<think>two"), 2]


def test_generation_prompt_that_the_answer_overwrites_is_an_error(tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant<think>' }}{% endif %}"
    )
    with pytest.raises(InputError, match="no generation prompt"):
        load_chat_tokenizer("builtin:bytes", chat_template=str(template))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "sometimes"}, "bos: got 'sometimes', wanted one of auto, always, never"),
        ({"chat_template": "tokenizer"}, "builtin:bytes has no chat template of its own"),
        ({"chat_template": "missing.jinja"}, "'missing.jinja', which is no file here"),
        ({"tokenizer": "builtin:bits"}, "unknown name 'builtin:bits'; wanted one of builtin:mistral"),
        ({"tokenizer": "no/such/folder"}, "'no/such/folder', which is no folder here"),
    ],
)
def test_wrong_choices_say_what_is_wanted(options, message):
    with pytest.raises(InputError, match=message):
        load_chat_tokenizer(options.pop("tokenizer", "builtin:bytes"), **options)


def test_bos_always_needs_a_bos_token(tmp_path):
    folder = merging_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(InputError, match="bos: got always, but tokenizer .* has no BOS token"):
        load_chat_tokenizer(str(folder), bos="always")


@pytest.mark.parametrize("kind", ["builtin:bytes", "merging", *PACKAGES], scope="module")
def test_decode_gives_the_text_back(kind, tokenizer):
    for text in NASTY_TEXTS:
        if "▁" in text or "<" in text:
            continue  # the escape of a space reads as a space; special tokens are left out
        assert tokenizer.decode(np.array(tokenizer.encode_text(text), np.int32)) == text


def test_fingerprint_tells_contents_apart(tmp_path):
    base = load_chat_tokenizer("builtin:bytes").fingerprint()
    assert base == load_chat_tokenizer("builtin:bytes", bos="always").fingerprint()  # the same ids
    for changed, field in (
        (load_chat_tokenizer("builtin:bytes", bos="never"), "bos"),
        (load_chat_tokenizer("builtin:bytes", empty_system_turn=True), "chat_template"),
        (load_chat_tokenizer(str(merging_folder(tmp_path)), bos="always"), "tokenizer"),
    ):
        assert {key for key, value in changed.fingerprint().items() if value != base[key]} == {field}


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_saved_folder_reads_back_the_same(bos, kind, tmp_path):
    """The BOS policy and the template go with the folder: `auto` and `tokenizer` there are what was trained with."""
    if kind in PACKAGES and bos != "never":
        pytest.skip("large vocabularies: one policy is enough")
    ours = open_kind(kind, tmp_path / "made", bos=bos)
    ours.save(tmp_path / "saved")
    again = load_chat_tokenizer(str(tmp_path / "saved"), chat_template="tokenizer")
    assert again.fingerprint() == ours.fingerprint()
    assert (again.stop_ids, again.pad_id, again.eos_id) == (ours.stop_ids, ours.pad_id, ours.eos_id)
    for dialogue in NASTY_DIALOGUES[::4]:
        assert again.encode_conversation(dialogue).ids.tolist() == ours.encode_conversation(dialogue).ids.tolist()
