"""Log-probs and exported folders against transformers, live; the stored twin is tests/test_golden_logprobs.py."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
pytest.importorskip("trl", reason="needs the [parity] extra")

from tests.parity import our_side, small_models, torch_side, torch_smollm2  # noqa: E402
from zephyr_jax.data.chat import load_chat_tokenizer  # noqa: E402
from zephyr_jax.model.hf_folder import save_model  # noqa: E402

pytestmark = pytest.mark.parity

SMALL_TOLERANCE = 1e-4
SMOLLM2_TOLERANCE = 5e-4
SMOLLM2 = "builtin:smollm2-135m-instruct"
NUM_REAL_TEXTS = 50
MAX_TEXT_TOKENS = 192

needs_smollm2 = pytest.mark.skipif(torch_smollm2.gguf_file() is None, reason="needs `make smollm2`")


@pytest.mark.parametrize("model", small_models.SMALL_MODELS, ids=lambda model: model.name)
def test_log_probs_of_small_models_equal_transformers(model, tmp_path):
    params, shape = our_side.load_small_model(model, tmp_path)
    tokens = small_models.make_tokens(model, batch_size=3)
    theirs = torch_side.log_probs(torch_side.load_model(model), tokens)
    np.testing.assert_allclose(our_side.log_probs(params, tokens, shape=shape), theirs, rtol=0, atol=SMALL_TOLERANCE)


def test_blockwise_attention_over_two_blocks_equals_transformers(tmp_path):
    """1024 tokens are two query blocks; the window reaches from the second into the first."""
    model = dataclasses.replace(small_models.SMALL_MODELS[1], sliding_window=200)
    params, shape = our_side.load_small_model(model, tmp_path)
    tokens = np.random.RandomState(5).randint(0, model.vocab_size, (1, 1024)).astype(np.int32)
    theirs = torch_side.log_probs(torch_side.load_model(model), tokens)
    ours = our_side.log_probs(params, tokens, shape=shape, attention="blockwise")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=SMALL_TOLERANCE)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_exported_folder_gives_transformers_the_same_model(tied, tmp_path):
    """Several files with an index, float32: configuration, log-probs and tokenizer are those that we have."""
    model = dataclasses.replace(small_models.TRAINED_MODEL, tie_word_embeddings=tied, rope_theta=50000.0)
    params, shape = our_side.load_small_model(model, tmp_path / "given")
    tokenizer = load_chat_tokenizer("builtin:bytes")
    save_model(params, tmp_path / "out", shape=shape, dtype="float32", tokenizer=tokenizer, max_shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    theirs = torch_side.load_folder(tmp_path / "out")
    tokens = np.random.RandomState(6).randint(3, 259, (2, 100)).astype(np.int32)
    np.testing.assert_allclose(
        our_side.log_probs(params, tokens, shape=shape),
        torch_side.log_probs(theirs, tokens),
        rtol=0,
        atol=SMALL_TOLERANCE,
    )
    assert theirs.generation_config.eos_token_id in (tokenizer.eos_id, list(tokenizer.stop_ids))
    messages = [{"role": "user", "content": "Žluté </s> a 12?"}]
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = loaded.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    ours = list(tokenizer.encode_prompt(messages))
    assert ids == (ours[1:] if ours[0] == tokenizer.bos_id else ours)


@pytest.fixture(scope="module")
def smollm2():
    """(our parameters, our shape, torch's model), each from the package's file by its own reader."""
    return *our_side.load_params(SMOLLM2), torch_smollm2.load_smollm2()


@needs_smollm2
@pytest.mark.skipif(not os.environ.get("ZEPHYR_DATA"), reason="ZEPHYR_DATA (the folder of real data) is not set")
def test_smollm2_on_real_texts_equals_transformers(smollm2):
    """The whole vocabulary at every position of the first tokens of 50 chats, by our tokenizer and template."""
    params, shape, theirs = smollm2
    tokenizer = load_chat_tokenizer("builtin:smollm2", chat_template="tokenizer")
    lines = (pathlib.Path(os.environ["ZEPHYR_DATA"]) / "chat_eval.jsonl").read_text(encoding="utf-8").splitlines()
    worst = 0.0
    for line in lines[:NUM_REAL_TEXTS]:
        ids = tokenizer.encode_conversation(json.loads(line)["messages"]).ids[:MAX_TEXT_TOKENS]
        # One length, so that one program is compiled: what comes after a token cannot change its log-probs.
        padded = np.pad(ids, (0, MAX_TEXT_TOKENS - len(ids)))
        ours = our_side.log_probs(params, padded[None], shape=shape)[0, : len(ids)]
        worst = max(worst, float(np.abs(ours - torch_side.log_probs(theirs, ids[None])[0]).max()))
    assert worst <= SMOLLM2_TOLERANCE


@needs_smollm2
def test_exported_smollm2_is_bit_for_bit_what_transformers_reads_from_the_package(smollm2, tmp_path):
    params, shape, theirs = smollm2
    tokenizer = load_chat_tokenizer("builtin:smollm2", chat_template="tokenizer")
    save_model(params, tmp_path / "out", shape=shape, dtype="float32", tokenizer=tokenizer)
    exported = torch_side.load_folder(tmp_path / "out").state_dict()
    wanted = theirs.state_dict()
    assert exported.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], exported[name])] == []
