"""What we save, transformers reads the same: AutoTokenizer's ids of the rendered text, and the text it renders."""

from __future__ import annotations

import json

import pytest

from tests.data.chat_cases import KINDS, NASTY_DIALOGUES, PACKAGES, open_kind, turns
from zephyr_jax.data.chat import ChatTokenizer

AutoTokenizer = pytest.importorskip("transformers", reason="reads the saved folders").AutoTokenizer


@pytest.fixture(scope="module", params=[*KINDS, "builtin:smollm2 tokenizer"])
def saved(request, tmp_path_factory) -> tuple[ChatTokenizer, str]:
    """Ours, and the folder it was saved to beside a model's config, whose type steers transformers' choice of class."""
    kind, _, template = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("saved")
    ours = open_kind(kind, folder / "made", chat_template=template or "zephyr")
    ours.save(folder / "model")
    model_type = "llama" if "smollm2" in kind else "mistral"
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": model_type, "transformers_version": "5.0"}))
    return ours, str(folder / "model")


@pytest.fixture(scope="module")
def theirs(saved):
    return AutoTokenizer.from_pretrained(saved[1])


def test_ids_of_rendered_texts_are_equal(saved, theirs):
    """BOS included: our policy is in the saved post-processor."""
    ours = saved[0]
    texts = [ours.render(dialogue, add_generation_prompt=False) for dialogue in NASTY_DIALOGUES]
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ids == ours._with_bos(ours._part(text, [])[0])


def test_ids_of_dialogues_are_equal_where_no_boundary_is_forced(saved, theirs):
    ours = saved[0]
    for dialogue in (turns("Q", "one", "Q", "two", system="S"), turns("\n Q \U0001f469", "caf\u00e9 12")):
        text = theirs.apply_chat_template(dialogue, tokenize=False)
        ids, whole = theirs(text)["input_ids"], ours.encode_conversation(dialogue)
        if len(ids) == len(whole.ids):
            assert ids == whole.ids.tolist()
        else:  # the small test tokenizer whose merges cross the end of every header
            assert ours.encode_text("\n<") != [*ours.encode_text("\n"), *ours.encode_text("<")]


def test_rendered_texts_are_equal(saved, theirs):
    ours = saved[0]
    for dialogue in NASTY_DIALOGUES:
        for generation in (False, True):
            text = theirs.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=generation)
            assert text == ours.render(dialogue, add_generation_prompt=generation)


def test_special_tokens_are_equal(saved, theirs):
    ours = saved[0]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size
    ids = ours.encode_conversation(turns("Q", "A")).ids.tolist()
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("bos", ["always", "never"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PACKAGES])
def test_bos_policy_goes_with_the_folder(kind, bos, tmp_path):
    ours = open_kind(kind, tmp_path / "made", bos=bos)
    ours.save(tmp_path / "saved")
    text = ours.render(turns("Q"), add_generation_prompt=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"][0:1] == (
        [ours.bos_id] if bos == "always" else ours.encode_prompt(turns("Q")).tolist()[:1]
    )
