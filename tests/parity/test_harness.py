"""Our model under lm-evaluation-harness against the harness's own Hugging Face model, live, in float32 on a CPU."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
pytest.importorskip("lm_eval", reason="needs the [harness] extra")
pytest.importorskip("sacrebleu", reason="needs all of the [harness] extra")

from lm_eval.models.huggingface import HFLM  # noqa: E402

from tests.parity import harness_tasks, torch_smollm2  # noqa: E402
from tests.parity.harness_tasks import instances  # noqa: E402
from zephyr_jax.evaluation.harness_model import ZephyrLM  # noqa: E402
from zephyr_jax.records import InputError  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch_smollm2.gguf_file() is None, reason="needs `make smollm2`"),
]

MAX_LENGTH = 64
TOLERANCE = 1e-3

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Paris"),  # the space goes to the continuation
    ("The capital of France is", " the city of Lyon"),
    ("The capital of France is", " the city of Paris"),
    ("", "Once upon a time"),
    ("", "<|im_start|>Once upon a time"),  # begins with the very token that stands for no context
    ("x  ", "  = 12;\n"),
    ("Once upon a time " * 30, "there was a king who had a daughter."),  # longer than 64 tokens
    ("Once upon a time " * 30, "there"),
]
TEXTS = ["A short text.", "One, two, three. " * 30, "7" * 64]
PROMPTS = [
    ("Question: What is 2 + 3?\nAnswer:", {"until": ["\n"], "max_gen_toks": 16}),
    ("The capital of France is", {"until": ["."], "max_gen_toks": 16, "do_sample": False, "temperature": 0.0}),
    ("Once upon a time " * 30, {"until": ["\n\n", "king"], "max_gen_toks": 16}),  # loses its start
    ("List three colours:", {"until": "two", "max_gen_toks": 16}),
]


@pytest.fixture(scope="module")
def theirs() -> HFLM:
    return HFLM(
        torch_smollm2.load_smollm2(),
        tokenizer=torch_smollm2.load_smollm2_tokenizer(),
        batch_size=8,
        max_length=MAX_LENGTH,
        device="cpu",
    )


@pytest.fixture(scope="module")
def ours() -> ZephyrLM:
    return ZephyrLM("builtin:smollm2-135m-instruct", dtype="float32", max_length=MAX_LENGTH)


def _check(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose([one[0] for one in ours], [one[0] for one in theirs], atol=TOLERANCE, rtol=0)
    assert [one[1] for one in ours] == [one[1] for one in theirs]


def test_texts_become_the_same_ids(ours, theirs):
    for context, continuation in PAIRS:
        if context:
            assert ours._encode_pair(context, continuation) == theirs._encode_pair(context, continuation)
            assert ours.model.encode_pair(context, continuation) == theirs._encode_pair(context, continuation)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)


def test_log_likelihoods_equal(ours, theirs):
    requests = instances("loglikelihood", PAIRS)
    said = ours.loglikelihood(requests, disable_tqdm=True)
    _check(said, theirs.loglikelihood(requests, disable_tqdm=True))
    ids = [ours.model.encode_pair(*pair) for pair in PAIRS]
    _check([score[:2] for score in ours.model.loglikelihoods(ids, name=None)], said)


def test_rolling_log_likelihoods_of_texts_longer_than_the_model_reads_equal(ours, theirs):
    requests = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(requests, disable_tqdm=True),
        theirs.loglikelihood_rolling(requests, disable_tqdm=True),
        atol=2 * TOLERANCE,
    )


def test_generations_equal(ours, theirs):
    """One prompt at a time on their side: padded ones attend to their padding's places in transformers' caches."""
    said = ours.generate_until(instances("generate_until", PROMPTS), disable_tqdm=True)
    for text, prompt in zip(said, PROMPTS, strict=True):
        assert [text] == theirs.generate_until(instances("generate_until", [prompt]), disable_tqdm=True)


def test_what_decoding_here_cannot_do_is_refused(ours):
    for options in ({"num_beams": 4}, {"repetition_penalty": 1.2}, {"do_sample": True, "temperature": 1.0, "top_k": 3}):
        with pytest.raises(InputError, match="generation_kwargs: got"):
            ours.generate_until(instances("generate_until", [("a", {"until": [], **options})]))


def test_chats_are_rendered_the_same(ours, theirs):
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "The answer is "}]
    assert ours.apply_chat_template(chat[:1]) == theirs.apply_chat_template(chat[:1])
    opened = ours.apply_chat_template(chat, add_generation_prompt=False)
    assert opened == theirs.apply_chat_template(chat, add_generation_prompt=False)
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_tasks_on_real_questions_score_the_same(zephyr_data: pathlib.Path, theirs, ours):
    """A few; benchmarks/loglikelihood_vs_harness.py holds the first 100 and 60 to the same."""
    tasks = [
        harness_tasks.local_task("arc_easy", zephyr_data, limit=5),
        harness_tasks.local_task("hellaswag", zephyr_data, limit=3),
    ]
    whole = ZephyrLM(dataclasses.replace(ours.model, max_length=8192))
    theirs._max_length = 8192
    try:
        wanted_scores, wanted = harness_tasks.evaluate(theirs, tasks)
    finally:
        theirs._max_length = MAX_LENGTH
    scores, said = harness_tasks.evaluate(whole, tasks)
    _check(said, wanted)
    assert len(said) == 4 * (5 + 3) and scores == wanted_scores
