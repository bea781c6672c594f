"""Greedy answers against transformers' own generate, live, in float32."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
pytest.importorskip("trl", reason="needs the [parity] extra")

from tests.parity import our_side, small_models, torch_side, torch_smollm2  # noqa: E402
from zephyr_jax.generation.loading import open_answer_model  # noqa: E402
from zephyr_jax.generation.options import GenerationOptions  # noqa: E402
from zephyr_jax.generation.responses import generate_responses  # noqa: E402
from zephyr_jax.model.mistral import ModelSettings  # noqa: E402

pytestmark = pytest.mark.parity

PROMPT_LENGTHS = (40, 3, 17)
NUM_NEW = 24
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write a haiku about the sea, and then explain it in one sentence.",
)
needs_smollm2 = pytest.mark.skipif(torch_smollm2.gguf_file() is None, reason="needs `make smollm2`")


def _greedy(model: torch.nn.Module, prompt: np.ndarray, *, stop_ids: list[int], use_cache: bool = True) -> list[int]:
    """Ids of transformers' answer to one prompt, unpadded, the stop token left out."""
    ids = torch.from_numpy(prompt).long()[None]
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        use_cache=use_cache,
        eos_token_id=stop_ids or None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return whole[:-1] if whole[-1] in stop_ids else whole


@pytest.mark.parametrize("model", small_models.SMALL_MODELS, ids=lambda model: model.name)
def test_greedy_answers_of_small_models_equal_transformers(model: small_models.SmallModel, tmp_path: pathlib.Path):
    """Three unequal prompts in one batch of ours; windows shorter than the text, passed while decoding.

    Transformers goes without its cache here: with a window of 1 it keeps all keys (it slices from -(window - 1)).
    """
    params, shape = our_side.load_small_model(model, tmp_path)
    tokens = small_models.make_tokens(model, batch_size=len(PROMPT_LENGTHS))
    prompts = [row[:length] for row, length in zip(tokens, PROMPT_LENGTHS, strict=True)]
    ours = generate_responses(
        params,
        prompts,
        shape=shape,
        settings=ModelSettings(compute_dtype="float32"),
        stop_ids=(2,),
        max_new_tokens=NUM_NEW,
        batch_size=len(prompts),
    )
    theirs = torch_side.load_model(model)
    assert [answer.ids.tolist() for answer in ours] == [
        _greedy(theirs, prompt, stop_ids=[2], use_cache=False) for prompt in prompts
    ]


@needs_smollm2
def test_greedy_answers_of_smollm2_equal_transformers():
    model = open_answer_model("builtin:smollm2-135m-instruct", dtype="float32", num_devices=1).load()
    prompts = [model.encode([{"role": "user", "content": text}], max_new_tokens=NUM_NEW) for text in QUESTIONS]
    ended = model.answer(prompts, options=GenerationOptions(NUM_NEW), row_indexes=range(3), batch_size=3)
    ours = {index: answer for answers in ended for index, answer in answers.items()}
    theirs, tokenizer = torch_smollm2.load_smollm2(), torch_smollm2.load_smollm2_tokenizer()
    for index, text in enumerate(QUESTIONS):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert prompts[index].tolist() == asked
        answer = _greedy(theirs, prompts[index], stop_ids=list(model.stop_ids))
        assert ours[index].ids.tolist() == answer
        assert model.text(ours[index]) == tokenizer.decode(answer, skip_special_tokens=True)
