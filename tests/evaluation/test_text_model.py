"""Texts to ids as the harness parts them, and a small model asked from a folder."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax.evaluation.text_model import open_text_model
from zephyr_jax.records import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that reads 64 tokens, a token a character, with BOS before every text."""
    return write_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=64, bos="always")


@pytest.fixture(scope="module")
def model(folder):
    return open_text_model(str(folder), max_length=32).load()


def test_spaces_at_the_contexts_end_go_to_the_continuation(model):
    context, continuation = model.encode_pair("Is it  ", "so?")
    assert context == model.encode("Is it") and context[0] == model.tokenizer.bos_id
    assert model.tokenizer.decode(continuation) == "  so?"
    assert [*context, *continuation] == model.encode("Is it  so?")


def test_no_context_is_the_prefix_token_and_it_is_not_doubled(model):
    bos, text = model.tokenizer.bos_id, model.encode("ab", bos=False)
    assert model.encode_pair("", "ab") == ([bos], text)
    assert model.encode_pair("", "<s>ab") == ([bos], text)
    assert model.encode("<s>ab") == [bos, *text] == model.encode("ab")


def test_a_continuation_of_nothing_is_refused(model):
    with pytest.raises(InputError, match="has no tokens of its own"):
        model.encode_pair("context", "")


def test_scores_come_in_the_order_of_the_requests_on_all_devices(model):
    """Requests of unlike lengths, more than one context; the sums are those of each by itself."""
    texts = [("A cat", " sat"), ("The dog that I saw", " ran off"), ("A cat", " ran"), ("", "x"), ("y" * 60, "long")]
    requests = [model.encode_pair(*pair) for pair in texts]
    together = model.loglikelihoods(requests, name=None)
    alone = [model.loglikelihoods([request], name=None)[0] for request in requests]
    np.testing.assert_allclose([s.log_prob for s in together], [s.log_prob for s in alone], atol=1e-4)
    assert [score.num_tokens for score in together] == [4, 8, 4, 1, 4]
    assert len(jax.tree.leaves(model.params)[0].sharding.device_set) == len(jax.devices())


def test_weights_are_cast_once_to_the_compute_dtype(folder):
    model = open_text_model(str(folder), dtype="bfloat16").load()
    assert model.params["embedding"].dtype == "bfloat16" and model.params["final_norm"]["scale"].dtype == "float32"
    assert model.max_length == 64


def test_more_than_the_model_reads_is_refused(folder):
    with pytest.raises(InputError, match="max_length: got 65, wanted 1 to the 64 tokens"):
        open_text_model(str(folder), max_length=65)


def test_answers_end_before_the_first_text_to_stop_at(model):
    """Greedy answers of 20 bytes; with a letter of theirs to stop at, they are what stood before it."""
    contexts = ["One", "Two and three", "y" * 40]
    whole = model.generate_until(contexts, until=[], max_new_tokens=20, batch_size=2, name=None)
    stop = next(letter for letter in whole[0][1:] if letter.isprintable())
    cut = model.generate_until(contexts, until=[stop, ""], max_new_tokens=20, batch_size=2, name=None)
    assert cut == [text.split(stop)[0] for text in whole]
    assert any(len(short) < len(long) for short, long in zip(cut, whole, strict=True))


def test_a_special_token_to_stop_at_is_seen_though_it_is_not_shown(model):
    ids = np.array([*model.encode("ab", bos=False), model.tokenizer.eos_id, *model.encode("cd", bos=False)])
    assert model._up_to(ids, ["</s>"]) == "ab" and model._up_to(ids, []) == "abcd" and model._up_to(ids, ["d"]) == "abc"


def test_contexts_leave_room_for_the_answer(model, capsys):
    """32 tokens are read: 12 of the context are left beside 20 of the answer."""
    long = model.generate_until(["x" * 50 + "abcdefghijkl"], until=[], max_new_tokens=20)
    assert "1 of 1 contexts lost tokens from their start" in capsys.readouterr().err
    assert long == model.generate_until(["y" * 50 + "abcdefghijkl"], until=[], max_new_tokens=20, name=None)
    with pytest.raises(InputError, match="max_new_tokens: got 32, wanted less than the 32"):
        model.generate_until(["a"], until=[], max_new_tokens=32)
