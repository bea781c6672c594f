"""Many prompts to many responses: batches of similar length, few different shapes, results in the order of the prompts.

Not here: the compiled program (decoding.py), text and files (the commands).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax import sharding
from zephyr_jax.generation.decoding import generate_batch
from zephyr_jax.generation.options import check_count, check_seed, check_temperature, check_top_p
from zephyr_jax.generation.sampling import Sampling
from zephyr_jax.model.mistral import ModelSettings
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

SMALLEST_PADDED_TOKENS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """What a model said to one prompt.

    Attributes:
      ids: int32 [T], the stop token left out; T is the response's number of tokens.
      finish_reason: stop (a stop token came) or length (as many tokens as were allowed).
    """

    ids: np.ndarray
    finish_reason: Literal["stop", "length"]


def padded_length(num_tokens: int) -> int:
    """The length that a prompt is padded to: a power of two, so that all lengths need few compilations."""
    return max(SMALLEST_PADDED_TOKENS, 1 << (num_tokens - 1).bit_length())


def generate_responses(params: dict[str, Any], prompts: Sequence[np.ndarray], **options: Any) -> list[Response]:
    """Answers prompts.

    Args:
      params: the parameter tree, float32 or cast, on one device or sharded on `mesh`.
      prompts: token ids, int [P_i], each of 1 or more.
      **options: see iterate_responses.

    Returns:
      One response per prompt, in the prompts' order.

    Raises:
      InputError: see iterate_responses.
    """
    responses: list[Response | None] = [None] * len(prompts)
    for batch in iterate_responses(params, prompts, **options):
        for index, response in batch.items():
            responses[index] = response
    return [response for response in responses if response is not None]


def iterate_responses(
    params: dict[str, Any],
    prompts: Sequence[np.ndarray],
    *,
    shape: ModelShape,
    settings: ModelSettings,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    row_indexes: Sequence[int] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[dict[int, Response]]:
    """Answers prompts batch by batch, shortest prompts first.

    Args:
      params: as in generate_responses.
      prompts: as in generate_responses.
      shape: the model's shape.
      settings: the compute dtype is taken; attention and remat are decoding's own.
      stop_ids: ids that end a response.
      max_new_tokens: most tokens of a response, 1 or more.
      batch_size: rows decoded together; rounded up to a multiple of the mesh's row shards. The last batch is filled
        by repeating one of its rows.
      temperature: 0 is greedy.
      top_p: in (0, 1].
      seed: of the random numbers.
      row_indexes: the index that each prompt draws its random numbers by; None: its place in `prompts`.
      mesh: the mesh that the parameters are sharded on; None: they lie on one device.

    Yields:
      For each batch, index in `prompts` -> response.

    Raises:
      InputError: a prompt is empty, or has ids that the model does not have; an option is out of its range.
    """
    check_temperature("temperature", temperature)
    check_top_p("top_p", top_p)
    check_seed("seed", seed)
    check_count("max_new_tokens", max_new_tokens)
    check_count("batch_size", batch_size)
    for index, prompt in enumerate(prompts):
        _check_prompt(index, prompt, shape=shape)
    rows = range(len(prompts)) if row_indexes is None else row_indexes
    assert len(rows) == len(prompts), (len(rows), len(prompts))
    if mesh is not None:
        # Splitting rows evenly costs no device more than one of them would spend on the ungrouped rows.
        batch_size += -batch_size % sharding.num_row_shards(mesh)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        # Equal rows end together: the repeated ones never keep the batch waiting.
        filled = chosen + chosen[-1:] * (batch_size - len(chosen))
        lengths_B = np.array([len(prompts[index]) for index in filled], np.int32)
        prompts_BP = np.zeros((batch_size, padded_length(int(lengths_B.max()))), np.int32)
        for row, index in enumerate(filled):
            prompts_BP[row, : lengths_B[row]] = prompts[index]
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            decoded = generate_batch(
                params,
                _place(prompts_BP, mesh),
                lengths_B=_place(lengths_B, mesh),
                row_indexes_B=_place(np.array([rows[index] for index in filled], np.uint32), mesh),
                seed=np.uint32(seed),
                shape=shape,
                settings=settings,
                sampling=Sampling(float(temperature), float(top_p)),
                stop_ids=tuple(stop_ids),
                max_new_tokens=max_new_tokens,
                result_sharding=None if mesh is None else sharding.replicated(mesh),
            )
        tokens_BT, num_tokens_B, stopped_B = (np.asarray(array) for array in decoded)
        yield {
            index: Response(tokens_BT[row, : num_tokens_B[row]], "stop" if stopped_B[row] else "length")
            for row, index in enumerate(chosen)
        }


def _place(array: np.ndarray, mesh: jax.sharding.Mesh | None) -> np.ndarray | jax.Array:
    """Sends rows to the devices of the mesh, each its own; without a mesh jit places them."""
    if mesh is None:
        return array
    by_rows = NamedSharding(mesh, PartitionSpec(sharding.ROW_AXES))
    return jax.make_array_from_callback(array.shape, by_rows, lambda index: array[index])


def _check_prompt(index: int, prompt: np.ndarray, *, shape: ModelShape) -> None:
    if len(prompt) == 0:
        raise InputError(f"prompt {index} has no tokens; a model needs at least one to go on from")
    low, high = int(np.min(prompt)), int(np.max(prompt))
    if low < 0 or high >= shape.vocab_size:
        raise InputError(
            f"prompt {index} has token id {high if low >= 0 else low}, but the model has ids 0 to "
            f"{shape.vocab_size - 1}; is the tokenizer another model's?"
        )
