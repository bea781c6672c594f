"""Many prompts to many responses: rows of similar length side by side, replaced as they end, in few different shapes.

Not here: the compiled programs (decoding.py), text and files (the commands).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from zephyr_jax import sharding
from zephyr_jax.generation.decoding import Decoding, admit, decode, empty_state, make_room
from zephyr_jax.generation.options import check_count, check_seed, check_temperature, check_top_p
from zephyr_jax.generation.sampling import Sampling
from zephyr_jax.model.decoder import DecoderParams, prepare_params
from zephyr_jax.model.mistral import ModelSettings, Params
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

SMALLEST_PADDED_TOKENS = 32
# A quarter of the rows is refilled at once: on average an eighth of them stands idle, and prefill has some width.
REFILLS_PER_BATCH = 4
# How often the host is asked whether texts have ended: at half of it a row goes on too long, on average.
TOKENS_BETWEEN_LOOKS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """What a model said to one prompt.

    Attributes:
      ids: int32 [T], the stop token left out; T is the response's number of tokens.
      finish_reason: stop (a stop token came, or `has_ended` said so) or length (as many tokens as were allowed).
    """

    ids: np.ndarray
    finish_reason: Literal["stop", "length"]


def padded_length(num_tokens: int) -> int:
    """The length that a prompt is padded to: a power of two, so that all lengths need few compilations."""
    return max(SMALLEST_PADDED_TOKENS, 1 << (num_tokens - 1).bit_length())


def shared_lengths(prompts: Sequence[np.ndarray], *, fewest: int) -> dict[int, int]:
    """Padded length -> the one that is used for it: fewer than `fewest` prompts are not worth programs of their own.

      prompts of 64, 128, 256 and 512     31  28   2   2
      with at least 3 a length they use   64 128 512 512

    On a CPU three programs of a model of 30 layers take some 10 s, or 3 where they are read from the cache.
    """
    counts = collections.Counter(padded_length(len(prompt)) for prompt in prompts)
    lengths, shared, together = sorted(counts), dict[int, int](), list[int]()
    for length in lengths:
        together.append(length)
        if sum(counts[one] for one in together) >= fewest or length == lengths[-1]:
            shared |= dict.fromkeys(together, length)
            together = []
    return shared


def generate_responses(params: Params | DecoderParams, prompts: Sequence[np.ndarray], **options: Any) -> list[Response]:
    """Answers prompts.

    Args:
      params: the parameter tree, float32 or cast, on one device or sharded on `mesh`; or prepare_params of it, which
        is else done here.
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
    params: Params | DecoderParams,
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
    has_ended: Callable[[np.ndarray], bool] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[dict[int, Response]]:
    """Answers prompts, shortest first; a row whose answer has ended takes the next prompt.

    Args:
      params: as in generate_responses.
      prompts: as in generate_responses.
      shape: the model's shape.
      settings: the compute dtype is taken; attention and remat are decoding's own.
      stop_ids: ids that end a response.
      max_new_tokens: most tokens of a response, 1 or more.
      batch_size: rows decoded together; rounded up to a multiple of the mesh's row shards.
      temperature: 0 is greedy.
      top_p: in (0, 1].
      seed: of the random numbers.
      row_indexes: the index that each prompt draws its random numbers by; None: its place in `prompts`.
      has_ended: says of the ids of an unfinished answer whether it has ended, such as by a text to stop at; asked every
        few tokens, so that an answer may hold some more. On several processes it must say the same in all of them.
      mesh: the mesh that the parameters are sharded on; None: they lie on one device.

    Yields:
      The answers that have ended since, index in `prompts` -> response.

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
    indexes = range(len(prompts)) if row_indexes is None else row_indexes
    assert len(indexes) == len(prompts), (len(indexes), len(prompts))
    if not prompts:
        return
    if not isinstance(params, DecoderParams):
        params = prepare_params(params, shape=shape, dtype=settings.compute_dtype, mesh=mesh)
    sampling = Sampling(float(temperature), float(top_p))
    decoding = Decoding(shape, settings.compute_dtype, sampling, tuple(stop_ids), max_new_tokens)
    shards = 1 if mesh is None else sharding.num_row_shards(mesh)
    # Splitting rows evenly costs no device more than one of them would spend on the ungrouped rows.
    batch_size += -batch_size % shards
    refill_size = max(shards, batch_size // REFILLS_PER_BATCH // shards * shards)
    waiting = collections.deque(sorted(range(len(prompts)), key=lambda index: len(prompts[index])))
    answering: list[int | None] = [None] * batch_size  # row -> the prompt whose answer it holds
    shared = shared_lengths(prompts, fewest=refill_size + 1)
    longest = shared[padded_length(len(prompts[waiting[min(batch_size, len(waiting)) - 1]]))]
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        state = empty_state(decoding=decoding, num_rows=batch_size, prompt_tokens=longest)
    while waiting or any(index is not None for index in answering):
        free = [row for row, index in enumerate(answering) if index is None]
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            # The host may look before so many have ended: a refill has its width, however few prompts are in it.
            while waiting and len(free) >= min(refill_size, len(waiting)):
                # All rows at first, then a few at a time: two shapes, and no row waits long for others to end.
                size = batch_size if len(free) == batch_size else refill_size
                chosen = [waiting.popleft() for _ in range(min(size, len(free), len(waiting)))]
                rows, free = free[: len(chosen)], free[len(chosen) :]
                for row, index in zip(rows, chosen, strict=True):
                    answering[row] = index
                padded = shared[padded_length(max(len(prompts[index]) for index in chosen))]
                if padded > longest:
                    longest = padded
                    state = make_room(state, decoding=decoding, prompt_tokens=longest)
                admitted = _pad_prompts([prompts[index] for index in chosen], padded, size=size)
                state = admit(
                    params,
                    state,
                    prompts_NP=sharding.place_rows(admitted[0], mesh),
                    lengths_N=sharding.place_rows(admitted[1], mesh),
                    rows_N=sharding.place_rows(_filled(rows, size, batch_size, np.int32), mesh),
                    indexes_N=sharding.place_rows(
                        _filled([indexes[index] for index in chosen], size, 0, np.uint32), mesh
                    ),
                    seed=np.uint32(seed),
                    decoding=decoding,
                )
            state, responses = decode(
                params,
                state,
                num_ended=np.int32(min(batch_size, (0 if waiting else answering.count(None)) + refill_size)),
                seed=np.uint32(seed),
                decoding=decoding,
                free_B=sharding.place_rows(np.array([index is None for index in answering]), mesh),
                num_steps=np.int32(max_new_tokens if has_ended is None else TOKENS_BETWEEN_LOOKS),
                result_sharding=None if mesh is None else sharding.replicated(mesh),
            )
        # Copied: the next call takes the state's memory.
        tokens_BT, num_tokens_B, ended_B, stopped_B = (np.array(array) for array in responses)
        ended: dict[int, Response] = {}
        for row, asked in enumerate(answering):
            if asked is None:
                continue
            ids, stopped = tokens_BT[row, : num_tokens_B[row]].copy(), bool(stopped_B[row])
            if not ended_B[row]:
                if has_ended is None or not has_ended(ids):
                    continue
                stopped = True
            ended[asked] = Response(ids, "stop" if stopped else "length")
            answering[row] = None
        yield ended


def _pad_prompts(prompts: Sequence[np.ndarray], padded: int, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the left and their lengths; prompts of one token fill up to `size`."""
    prompts_NP, lengths_N = np.zeros((size, padded), np.int32), np.ones((size,), np.int32)
    for row, prompt in enumerate(prompts):
        prompts_NP[row, padded - len(prompt) :] = prompt
        lengths_N[row] = len(prompt)
    return prompts_NP, lengths_N


def _filled(values: Sequence[int], size: int, value: int, dtype: type) -> np.ndarray:
    return np.array([*values, *[value] * (size - len(values))], dtype)


def _check_prompt(index: int, prompt: np.ndarray, *, shape: ModelShape) -> None:
    if len(prompt) == 0:
        raise InputError(f"prompt {index} has no tokens; a model needs at least one to go on from")
    low, high = int(np.min(prompt)), int(np.max(prompt))
    if low < 0 or high >= shape.vocab_size:
        raise InputError(
            f"prompt {index} has token id {high if low >= 0 else low}, but the model has ids 0 to "
            f"{shape.vocab_size - 1}; is the tokenizer another model's?"
        )
