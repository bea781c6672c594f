"""Training step by step against TRL's trainers, live; the stored twin, with more runs, is tests/test_golden_trl.py."""

from __future__ import annotations

import json
import pathlib

import pytest

pytest.importorskip("torch", reason="needs the [parity] extra")
pytest.importorskip("trl", reason="needs the [parity] extra")

from tests.parity import our_training, runs, small_data, small_models, torch_side

pytestmark = pytest.mark.parity

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "trl.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("run", runs.DPO_RUNS, ids=lambda run: run.name)
def test_trl_dpo_still_gives_the_stored_numbers(run, golden):
    result = torch_side.train_dpo(small_models.TRAINED_MODEL, small_data.make_pairs(), run)
    assert runs.differences(result.steps, golden["dpo"][run.name]["steps"], runs.DPO_METRICS) == []
    assert result.tokens == golden["dpo_tokens"]


@pytest.mark.parametrize("run", runs.SFT_RUNS, ids=lambda run: run.name)
def test_trl_sft_still_gives_the_stored_numbers(run, golden):
    result = torch_side.train_sft(small_models.TRAINED_MODEL, small_data.make_dialogues(), run)
    metrics = runs.SFT_METRICS + runs.SFT_EXTRA_METRICS
    assert runs.differences(result.steps, golden["sft"][run.name]["steps"], metrics) == []


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_ddpo_metrics_equal_trl_at_every_step(tied, tmp_path):
    """On a model that no stored file knows: other weights, tied and untied head, one key head."""
    model = small_models.SmallModel(
        f"live_{tied}",
        seed=21,
        hidden_size=48,
        num_key_value_heads=1,
        vocab_size=259,
        sliding_window=48,
        tie_word_embeddings=tied,
    )
    run = runs.DpoRun("live", schedule="cosine", weight_decay=0.1, beta=0.3)
    theirs = torch_side.train_dpo(model, small_data.make_pairs(), run).steps
    ours = our_training.train(model, small_data.make_pairs(), run, folder=tmp_path)
    assert runs.differences(ours, theirs, runs.DPO_METRICS) == []


def test_dsft_metrics_equal_trl_at_every_step(tmp_path):
    run = runs.SftRun("live", micro_batch_size=2, schedule="cosine", weight_decay=0.1)
    theirs = torch_side.train_sft(small_models.TRAINED_MODEL, small_data.make_dialogues(), run).steps
    ours = our_training.train(small_models.TRAINED_MODEL, small_data.make_dialogues(), run, folder=tmp_path)
    assert runs.differences(ours, theirs, runs.SFT_METRICS) == []
