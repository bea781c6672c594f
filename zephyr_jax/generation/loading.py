"""A model made ready to answer chat prompts: weights on the devices, tokenizer, stop ids, and how many tokens it reads.

Not here: decoding (responses.py), the commands' options (options.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from zephyr_jax import recipe, sharding
from zephyr_jax.compilation import keep_compiled_programs
from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.generation.choices import iterate_choice_logprobs
from zephyr_jax.generation.options import GenerationOptions
from zephyr_jax.generation.responses import Response, iterate_responses
from zephyr_jax.host_memory import keep_freed_memory
from zephyr_jax.model.decoder import DecoderParams, prepare_params
from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, abstract_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.records import InputError, Message

if TYPE_CHECKING:
    from zephyr_jax.model.weight_source import WeightSource


@dataclasses.dataclass(frozen=True)
class AnswerModel:
    """A model and all that answering takes; the weights come to the devices with `load`.

    Attributes:
      source: the weights.
      tokenizer: with its chat template.
      settings: how the forward pass is computed.
      stop_ids: ids that end an answer: the model's own and those of the chat template.
      mesh: the devices.
      params: the parameters as decoding takes them, None before `load`.
    """

    source: WeightSource
    tokenizer: ChatTokenizer
    settings: ModelSettings
    stop_ids: tuple[int, ...]
    mesh: jax.sharding.Mesh
    params: DecoderParams | None = None

    def load(self) -> AnswerModel:
        """Reads the weights; returns the model with its parameters."""
        keep_compiled_programs()
        shardings = sharding.tree_shardings(abstract_params(self.source.shape), PARTITION_RULES, self.mesh)
        params = self.source.load_params(shardings)
        # Once for good, instead of for every call: the tree is let go.
        prepared = prepare_params(params, shape=self.source.shape, dtype=self.settings.compute_dtype, mesh=self.mesh)
        return dataclasses.replace(self, params=prepared)

    def settings_text(self) -> str:
        """What it computes with, for people: `float32 on 1 x cpu`."""
        devices = self.mesh.devices.ravel()
        return f"{self.settings.compute_dtype} on {devices.size} x {devices[0].device_kind}"

    def fingerprint(self) -> dict[str, Any]:
        """Everything of the model that decides its answers, as JSON values."""
        return {
            "weights": self.source.fingerprint(),
            **{f"shape.{name}": value for name, value in self.source.shape.model_dump().items()},
            **self.tokenizer.fingerprint(),
            "stop_ids": list(self.stop_ids),
            "dtype": self.settings.compute_dtype,
        }

    def encode(self, messages: Sequence[Message], *, max_new_tokens: int) -> np.ndarray:
        """Token ids [P] of a dialogue, up to where the answer begins.

        Raises:
          InputError: the chat template refuses it, or it and its answer do not fit the model's context.
        """
        ids = self.tokenizer.encode_prompt(messages)
        context = self.source.shape.max_position_embeddings
        if len(ids) + max_new_tokens > context:
            raise InputError(
                f"the prompt has {len(ids)} tokens, which with {max_new_tokens} of the answer is more than the "
                f"{context} that the model reads; shorten the prompt or lower --max-new-tokens"
            )
        return ids

    def answer(
        self,
        prompts: Sequence[np.ndarray],
        *,
        options: GenerationOptions,
        row_indexes: Sequence[int],
        batch_size: int,
        has_ended: Callable[[np.ndarray], bool] | None = None,
    ) -> Iterator[dict[int, Response]]:
        """Answers prompts as rows become free (see iterate_responses), sampling as the options say."""
        assert self.params is not None, "load() comes before answer()"
        return iterate_responses(
            self.params,
            prompts,
            shape=self.source.shape,
            settings=self.settings,
            stop_ids=self.stop_ids,
            batch_size=batch_size,
            row_indexes=row_indexes,
            has_ended=has_ended,
            mesh=self.mesh,
            **dataclasses.asdict(options),
        )

    def choice_ids(self, choices: Sequence[str]) -> list[int]:
        """The token that each choice begins with as an answer.

        Raises:
          InputError: two choices begin with the same token, so that the next token does not tell them apart.
        """
        question: list[Message] = [{"role": "user", "content": "?"}]
        prompt = self.tokenizer.encode_prompt(question)
        first = []
        for choice in choices:
            whole = self.tokenizer.encode_conversation([*question, {"role": "assistant", "content": choice}])
            first.append(int(whole.ids[len(prompt)]))
        if len(set(first)) < len(first):
            raise InputError(
                f"the choices {', '.join(choices)} do not differ in their first token with tokenizer "
                f"{self.tokenizer.name}; wanted a tokenizer in which they do, or another way of rating"
            )
        return first

    def choice_logprobs(
        self, prompts: Sequence[np.ndarray], *, choice_ids: Sequence[int], batch_size: int
    ) -> Iterator[dict[int, np.ndarray]]:
        """How likely each choice is as the next token (see iterate_choice_logprobs)."""
        assert self.params is not None, "load() comes before choice_logprobs()"
        return iterate_choice_logprobs(
            self.params,
            prompts,
            choice_ids=choice_ids,
            shape=self.source.shape,
            batch_size=batch_size,
            mesh=self.mesh,
        )

    def text(self, response: Response) -> str:
        """The answer as text, special tokens left out."""
        return self.tokenizer.decode(response.ids, continues=True)


def open_answer_model(
    spec: str,
    *,
    chat_template: str = "tokenizer",
    bos: str = "auto",
    dtype: str | None = None,
    num_devices: int | None = None,
) -> AnswerModel:
    """Opens a model that is to answer; no weights are read yet.

    Args:
      spec: as open_weights takes it.
      chat_template: as load_chat_tokenizer takes it.
      bos: auto, always or never.
      dtype: compute dtype; None: default_dtype of the platform.
      num_devices: how many devices to use, the first ones; None: all.

    Returns:
      The model, without parameters.

    Raises:
      InputError: there is no such model, tokenizer, chat template or number of devices.
    """
    keep_freed_memory()  # before the first question for a device
    devices = jax.devices()
    if num_devices is not None and num_devices > len(devices):
        raise InputError(f"--devices: got {num_devices}, but there are {len(devices)} here ({devices[0].platform})")
    source = open_weights(spec)
    tokenizer = load_chat_tokenizer(source.tokenizer, chat_template=chat_template, bos=bos)
    return AnswerModel(
        source=source,
        tokenizer=tokenizer,
        settings=ModelSettings(compute_dtype=dtype or default_dtype(devices[0].platform)),
        stop_ids=tuple(dict.fromkeys((*source.stop_ids, *tokenizer.stop_ids))),
        mesh=sharding.make_mesh(recipe.Mesh(), devices[:num_devices]),
    )


def default_dtype(platform: str) -> str:
    """bfloat16 where the hardware multiplies it; a CPU does not, and is slower with it."""
    return "float32" if platform == "cpu" else "bfloat16"
