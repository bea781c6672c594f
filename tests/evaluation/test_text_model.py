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
