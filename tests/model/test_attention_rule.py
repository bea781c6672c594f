"""Which attention rows get: the table of auto, and what each implementation is refused for."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from zephyr_jax.model.attention_rule import (
    AUTO,
    IMPLEMENTATIONS,
    MEASURED,
    OLD_GPU,
    choose_attention,
    platform_here,
)
from zephyr_jax.model.blockwise_attention import MAX_BLOCK_TOKENS
from zephyr_jax.records import InputError

PLACE = {"platform": "gpu", "dtype": "bfloat16", "head_dim": 128, "rows": "pairs"}


def test_auto_takes_blocks_for_rows_longer_than_one_block():
    on_cpu = PLACE | {"platform": "cpu"}
    assert choose_attention("auto", MAX_BLOCK_TOKENS, **on_cpu) == "xla"
    assert choose_attention("auto", MAX_BLOCK_TOKENS + 1, **on_cpu) == "blockwise"


@pytest.mark.parametrize(
    "place, chosen",
    [
        ({"rows": "plain"}, "cudnn"),
        ({"rows": "plain", "platform": OLD_GPU}, "blockwise"),
        ({"rows": "plain", "dtype": "float32"}, "pallas"),
        ({"rows": "plain", "head_dim": 60}, "blockwise"),
        ({"rows": "dialogues"}, "pallas"),
        ({"rows": "pairs"}, "pallas"),
        ({"rows": "pairs", "head_dim": 96}, "blockwise"),
        ({"rows": "plain", "platform": "tpu"}, "splash"),
        ({"rows": "dialogues", "platform": "tpu", "head_dim": 96}, "splash"),
        ({"rows": "pairs", "platform": "tpu"}, "blockwise"),
        ({"rows": "forks"}, "blockwise"),
        ({"rows": "forks", "platform": "tpu"}, "blockwise"),
        ({"rows": "plain", "platform": "METAL"}, "blockwise"),
    ],
)
def test_auto_takes_the_first_that_can_run(place, chosen):
    assert choose_attention("auto", 2048, **PLACE | place) == chosen


def test_the_table_names_what_there_is_and_ends_with_what_runs_everywhere():
    for choices in AUTO.values():
        assert set(choices) == {"plain", "dialogues", "pairs", "forks"}
        for names in choices.values():
            assert set(names) <= set(IMPLEMENTATIONS) and names[-1] == "blockwise"
    assert set(MEASURED) <= set(AUTO)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_named_implementation_is_taken_never_replaced(name):
    platform = {"cudnn": "gpu", "pallas": "gpu", "splash": "tpu"}.get(name, "cpu")
    for num_tokens in (8, 4096):
        assert choose_attention(name, num_tokens, **PLACE | {"platform": platform, "rows": "dialogues"}) == name


@pytest.mark.parametrize(
    "name, num_tokens, place, message",
    [
        (
            "cudnn",
            64,
            {"platform": "cpu"},
            "cudnn needs an NVIDIA GPU of compute capability 8.0 or more, this is cpu; use auto, xla or blockwise",
        ),
        (
            "pallas",
            64,
            {"platform": OLD_GPU},
            "pallas needs an NVIDIA GPU of compute capability 8.0 or more, this is gpu<8",
        ),
        ("cudnn", 64, {"dtype": "float32"}, "cudnn computes in bfloat16, got compute_dtype float32; use auto, xla"),
        ("cudnn", 64, {"head_dim": 256}, "cudnn takes head sizes of 8, 16, ... 128, got 256; use auto, xla or block"),
        ("splash", 64, {}, "splash needs a TPU, this is gpu; use auto, xla, blockwise, pallas or cudnn"),
        ("splash", 64, {"platform": "tpu"}, "splash takes plain rows and packed dialogues, not pairs that share their"),
        (
            "pallas",
            64,
            {"platform": "tpu"},
            "pallas needs an NVIDIA GPU of compute capability 8.0 or more, this is tpu; use auto, xla or blockwise",
        ),
        ("pallas", 64, {"head_dim": 96}, "pallas takes head sizes of 64 and 128, got 96; use auto, xla, blockwise or"),
        ("cudnn", 65, {}, "cudnn takes rows of an even number of tokens where they are packed, got 65; use auto"),
    ],
)
def test_a_named_implementation_that_cannot_run_is_refused_with_the_way_out(name, num_tokens, place, message):
    with pytest.raises(InputError) as refusal:
        choose_attention(name, num_tokens, **PLACE | place)
    assert str(refusal.value).startswith(f"model.attention: {message}")


@pytest.mark.parametrize(
    "backend, capability, platform",
    [
        ("gpu", "9.0", "gpu"),
        ("gpu", "12.0", "gpu"),
        ("gpu", "7.5", OLD_GPU),
        ("gpu", "gfx942", "rocm"),
        ("tpu", None, "tpu"),
        ("cpu", None, "cpu"),
    ],
)
def test_a_gpu_is_known_by_its_compute_capability(backend, capability, platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert platform_here() == platform
