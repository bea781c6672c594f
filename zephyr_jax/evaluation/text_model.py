"""A model asked about plain texts, as academic tasks do: how likely a continuation is, and how a text goes on.

    model = open_text_model("builtin:smollm2-135m-instruct").load()
    requests = [model.encode_pair("The capital of France is", " " + city) for city in ("Paris", "Rome")]
    [score.log_prob for score in model.loglikelihoods(requests)]

Texts become ids as in lm-evaluation-harness with a Hugging Face model, so that scores can be compared. Not here: the
harness itself, tasks and their scores.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from zephyr_jax import recipe, sharding
from zephyr_jax.compilation import keep_compiled_programs
from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.evaluation.likelihoods import LogLikelihood, Request, iterate_loglikelihoods, loglikelihoods
from zephyr_jax.generation.loading import default_dtype
from zephyr_jax.generation.responses import iterate_responses
from zephyr_jax.host_memory import keep_freed_memory
from zephyr_jax.model.decoder import DecoderParams, prepare_params
from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, Params, abstract_params, cast_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

if TYPE_CHECKING:
    from zephyr_jax.model.weight_source import WeightSource


class Answer(NamedTuple):
    """How a text goes on.

    Attributes:
      text: up to where it stops.
      num_tokens: that were made, a text to stop at and some after it among them.
      finish_reason: stop or length.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A model and all that asking it takes; the weights come to the devices with `load`.

    Attributes:
      source: the weights.
      tokenizer: with its chat template and BOS policy.
      settings: how the forward pass is computed.
      mesh: the devices.
      max_length: the most tokens that it reads at once.
      tokens_per_step: see loglikelihoods.
      params: the parameter tree, None before `load`.
    """

    source: WeightSource
    tokenizer: ChatTokenizer
    settings: ModelSettings
    mesh: jax.sharding.Mesh
    max_length: int
    tokens_per_step: int | None = None
    params: Params | None = None

    @property
    def shape(self) -> ModelShape:
        """The model's shape."""
        return self.source.shape

    def load(self) -> TextModel:
        """Reads the weights; returns the model with its parameters, in the compute dtype."""
        keep_compiled_programs()
        shardings = sharding.tree_shardings(abstract_params(self.shape), PARTITION_RULES, self.mesh)
        params = self.source.load_params(shardings)
        dtype = self.settings.compute_dtype
        if dtype != "float32":
            with jax.set_mesh(self.mesh):
                params = jax.jit(lambda tree: cast_params(tree, dtype), out_shardings=shardings)(params)
        return dataclasses.replace(self, params=params)

    @property
    def prefix_id(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is none."""
        return self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ids of a text, special tokens in it read as such; BOS before it by the tokenizer's policy, or as told."""
        return self.tokenizer.encode_rendered(text, bos=bos)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what may follow it, parted as lm-evaluation-harness parts them.

        Spaces at the context's end go to the continuation. The whole is tokenised, and all ids after as many as the
        context alone has are the continuation's: a token across the boundary is its own where the numbers agree. With
        no context, `prefix_id` stands for it; a continuation that begins with that very id parts behind it.

        Raises:
          InputError: nothing is left of the continuation.
        """
        if context:
            spaces = len(context) - len(context.rstrip())
            cut = len(context) - spaces
            context, continuation = context[:cut], context[cut:] + continuation
            whole, first = self.encode(context + continuation), self.encode(context)
            parts = first, whole[len(first) :]
        else:
            ids = self.encode(continuation, bos=False)
            parts = (ids[:1], ids[1:]) if ids[:1] == [self.prefix_id] else ([self.prefix_id], ids)
        if not parts[1]:
            raise InputError(f"continuation {continuation!r}: has no tokens of its own after its context; wanted some")
        return parts

    def loglikelihoods(
        self, requests: Sequence[Request], *, name: str | None = "log-likelihoods"
    ) -> list[LogLikelihood]:
        """How likely each continuation is after its context; see `loglikelihoods` of likelihoods.py."""
        return loglikelihoods(self._loaded(), requests, name=name, **self._options())

    def iterate_loglikelihoods(
        self, requests: Sequence[Request], *, name: str | None = None
    ) -> Iterator[dict[int, LogLikelihood]]:
        """The same, a step after another; see `iterate_loglikelihoods` of likelihoods.py."""
        return iterate_loglikelihoods(self._loaded(), requests, name=name, **self._options())

    def _loaded(self) -> Params:
        assert self.params is not None, "load() comes before asking"
        return self.params

    def _options(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "settings": self.settings,
            "mesh": self.mesh,
            "max_length": self.max_length,
            "tokens_per_step": self.tokens_per_step,
        }

    def generate_until(
        self,
        contexts: Sequence[str],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 8,
        name: str | None = "generations",
    ) -> list[str]:
        """How each text goes on, up to the first of the texts to stop at, which is left out, or a stop token.

        Args:
          contexts: not empty; the longest lose tokens from their start where the answer would not fit (counted, said).
          until: texts to stop at.
          max_new_tokens: the most tokens of an answer; less than `max_length`.
          temperature: 0 is greedy.
          top_p: share of the probability that is sampled from.
          seed: of the sampling.
          batch_size: answers made side by side.
          name: of the progress bar; None: no bar.

        Returns:
          The answers, in the order of the contexts.

        Raises:
          InputError: an option is out of its range, or a context has no tokens.
        """
        prompts = [np.array(self.encode(context), np.int32) for context in contexts]
        answers = self.iterate_until(
            prompts,
            until=until,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            name=name,
        )
        texts = [""] * len(prompts)
        with tqdm(desc=name, total=len(prompts), unit="answer", mininterval=0.5, disable=name is None) as bar:
            for ended in answers:
                for index, answer in ended.items():
                    texts[index] = answer.text
                bar.update(len(ended))
        return texts

    def iterate_until(
        self,
        prompts: Sequence[np.ndarray],
        *,
        until: Sequence[str],
        max_new_tokens: int,
        batch_size: int,
        stop_ids: Sequence[int] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        name: str | None = None,
    ) -> Iterator[dict[int, Answer]]:
        """How each prompt goes on, as answers end: index in `prompts` -> answer.

        Args:
          prompts: token ids, int [P_i].
          until, max_new_tokens, batch_size, temperature, top_p, seed: as in generate_until.
          stop_ids: ids that end an answer beside the model's own, such as those of a chat template.
          name: begins the line on stderr that says how many prompts lost tokens; None: it is not said.

        Raises:
          InputError: as in generate_until.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise InputError(
                f"max_new_tokens: got {max_new_tokens}, wanted less than the {self.max_length} tokens that are read"
            )
        num_truncated = sum(len(ids) > room for ids in prompts)
        if name and num_truncated:
            print(
                f"{name}: {num_truncated} of {len(prompts)} contexts lost tokens from their start, to leave "
                f"{max_new_tokens} of {self.max_length} for the answer",
                file=sys.stderr,
            )
        stops = [text for text in until if text]
        for ended in iterate_responses(
            self._decoder_params,
            [ids[-room:] for ids in prompts],
            shape=self.shape,
            settings=self.settings,
            stop_ids=tuple(dict.fromkeys((*self.source.stop_ids, self.tokenizer.eos_id, *stop_ids))),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            has_ended=functools.partial(self._stops, stops=stops) if stops else None,
            mesh=self.mesh,
        ):
            yield {
                index: Answer(self._up_to(answer.ids, stops), len(answer.ids), answer.finish_reason)
                for index, answer in ended.items()
            }

    def _stops(self, ids: np.ndarray, stops: Sequence[str]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return any(stop in text for stop in stops)

    def _up_to(self, ids: np.ndarray, stops: Sequence[str]) -> str:
        """The text of an answer before the first text to stop at; special tokens are seen there, and not shown."""
        if self._stops(ids, stops):
            ids = next(ids[:end] for end in range(len(ids) + 1) if self._stops(ids[:end], stops))
        text = self.tokenizer.decode(ids)
        return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]

    @functools.cached_property
    def _decoder_params(self) -> DecoderParams:
        """The weights laid out for decoding, beside the tree: made when texts are first asked for."""
        assert self.params is not None, "load() comes before generate_until()"
        return prepare_params(self.params, shape=self.shape, dtype=self.settings.compute_dtype, mesh=self.mesh)


def open_text_model(
    spec: str,
    *,
    chat_template: str = "tokenizer",
    bos: str = "auto",
    dtype: str | None = None,
    max_length: int | None = None,
    mesh: recipe.Mesh | None = None,
    tokens_per_step: int | None = None,
) -> TextModel:
    """Opens a model that is to be asked; no weights are read yet.

    Args:
      spec: as open_weights takes it: a Hugging Face folder, a run's stage folder, builtin:NAME.
      chat_template: as load_chat_tokenizer takes it.
      bos: auto, always or never.
      dtype: compute dtype; None: bfloat16, on a CPU float32.
      max_length: the most tokens that it reads at once; None: its max_position_embeddings.
      mesh: axis sizes; None: all devices on `fsdp`.
      tokens_per_step: see loglikelihoods.

    Raises:
      InputError: there is no such model, tokenizer or chat template; the devices do not fill the mesh; `max_length` is
        not one that the model has.
    """
    keep_freed_memory()  # before the first question for a device
    source = open_weights(spec)
    longest = source.shape.max_position_embeddings
    if max_length is not None and not 1 <= max_length <= longest:
        raise InputError(f"max_length: got {max_length}, wanted 1 to the {longest} tokens that the model reads")
    return TextModel(
        source=source,
        tokenizer=load_chat_tokenizer(source.tokenizer, chat_template=chat_template, bos=bos),
        settings=ModelSettings(
            compute_dtype=dtype or default_dtype(jax.devices()[0].platform), attention="auto", rows="pairs"
        ),
        mesh=sharding.make_mesh(mesh or recipe.Mesh()),
        max_length=max_length or longest,
        tokens_per_step=tokens_per_step,
    )
