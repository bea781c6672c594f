"""The model against a plain loop in numpy, and what each token may depend on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.random_models import make_prompts, make_shape
from tests.model.numpy_forward import forward_by_hand
from zephyr_jax.model.mistral import (
    ModelSettings,
    abstract_params,
    cast_params,
    head_matrix,
    hidden_states_and_head,
    init_params,
    rotary_angles,
    rotate,
)
from zephyr_jax.recipe import ModelShape

SETTINGS = ModelSettings(compute_dtype="float32")
SHAPE = make_shape()
ONE_LAYER = make_shape(num_hidden_layers=1)


@functools.cache
def make_params(shape: ModelShape):
    """Matrices of about 1 / sqrt(32), so that every layer matters; norm scales that a forgotten one would show."""
    random = np.random.default_rng(0)

    def leaf(path, abstract):
        is_scale = path[-1].key == "scale"
        values = random.uniform(0.5, 2, abstract.shape) if is_scale else 0.18 * random.standard_normal(abstract.shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map_with_path(leaf, abstract_params(shape))


_hidden_states = jax.jit(
    hidden_states_and_head, static_argnames=("shape", "settings")
)  # eager, each operation is compiled


def _forward(tokens, *, shape=SHAPE, settings=SETTINGS, params=None, positions=None, segments=None, branches=None):
    tokens_BT = np.asarray(tokens, np.int32)

    def rows(values, default):
        return np.broadcast_to(np.asarray(default if values is None else values, np.int32), tokens_BT.shape)

    return _hidden_states(
        make_params(shape) if params is None else params,
        tokens_BT,
        shape=shape,
        settings=settings,
        positions_BT=rows(positions, np.arange(tokens_BT.shape[1])),
        segments_BT=rows(segments, 1),
        branches_BT=rows(branches, 0),
    )[0]


def _dependence(num_tokens: int, *, shape: ModelShape = ONE_LAYER, **where) -> np.ndarray:
    """int [T, S]: 1 where the hidden state of token t changes when the token at s is another one."""
    tokens_S = make_prompts(num_tokens)[0]
    rows = np.tile(tokens_S, (num_tokens + 1, 1))
    rows[np.arange(num_tokens), np.arange(num_tokens)] = (tokens_S + 7) % shape.vocab_size
    hidden = np.asarray(_forward(rows, shape=shape, **where))
    return (np.abs(hidden[:-1] - hidden[-1]).max(axis=-1) > 1e-6).astype(int).T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 5, "rope_theta": 100.0, "num_key_value_heads": 1, "head_dim": 6, "num_hidden_layers": 3},
        {"sliding_window": 13, "rope_theta": 1e6, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ],
    ids=["grouped", "window_of_5_one_kv_head", "tied_ungrouped_window_longer_than_text"],
)
def test_forward_equals_a_plain_loop_over_layers_heads_and_tokens(changes):
    shape = make_shape(rms_norm_eps=1e-3, **changes)
    params, tokens = make_params(shape), make_prompts(12)[0]
    head_VD = np.asarray(head_matrix(params, shape))
    logits = np.asarray(_forward([tokens], shape=shape)[0]) @ head_VD.T
    np.testing.assert_allclose(logits, forward_by_hand(params, tokens, shape), atol=5e-5)


def test_the_head_is_the_embedding_where_they_are_tied():
    for shape in (SHAPE, make_shape(tie_word_embeddings=True)):
        params = make_params(shape)
        wanted = params["embedding"] if shape.tie_word_embeddings else params["head"]
        np.testing.assert_array_equal(head_matrix(params, shape), wanted)


def test_parameters_have_the_documented_shapes_and_start_as_documented():
    """D=32, N=4, K=2, H=8, F=48, V=64, L=2: 64*32*2 + 2*(32*32*2 + 32*16*2 + 3*32*48 + 2*32) + 32."""
    params = jax.device_get(jax.jit(init_params, static_argnums=1)(jax.random.key(0), SHAPE))
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in _leaves(params)}
    assert {path: leaf.shape for path, leaf in paths.items()} == {
        "embedding": (64, 32),
        "layers/attention/query": (2, 32, 4, 8),
        "layers/attention/key": (2, 32, 2, 8),
        "layers/attention/value": (2, 32, 2, 8),
        "layers/attention/output": (2, 4, 8, 32),
        "layers/mlp/gate": (2, 32, 48),
        "layers/mlp/up": (2, 32, 48),
        "layers/mlp/down": (2, 48, 32),
        "layers/attention_norm/scale": (2, 32),
        "layers/mlp_norm/scale": (2, 32),
        "final_norm/scale": (32,),
        "head": (64, 32),
    }
    assert sum(leaf.size for leaf in paths.values()) == 4096 + 2 * (2048 + 1024 + 4608 + 64) + 32
    for path, leaf in paths.items():
        assert leaf.dtype == jnp.float32
        if path.endswith("scale"):
            assert (leaf == 1).all()
        else:
            assert abs(float(leaf.std()) - 0.02) < 0.002 and abs(float(leaf.mean())) < 0.002, path
    assert not np.array_equal(params["layers"]["mlp"]["gate"][0], params["layers"]["mlp"]["gate"][1])


def test_abstract_parameters_are_the_real_ones_without_numbers():
    for shape in (SHAPE, make_shape(tie_word_embeddings=True)):
        abstract, real = abstract_params(shape), jax.jit(init_params, static_argnums=1)(jax.random.key(0), shape)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), real
        )
        assert ("head" in real) != shape.tie_word_embeddings


def test_window_counts_the_current_token():
    """Window 3 in one layer: a token depends on itself and two before, not on the one a window back."""
    expected = np.tril(np.ones((8, 8), int)) - np.tril(np.ones((8, 8), int), -3)
    assert _dependence(8, shape=make_shape(num_hidden_layers=1, sliding_window=3)).tolist() == expected.tolist()


def test_two_layers_reach_twice_as_far():
    """Each layer of window 3 reaches 2 tokens back, two of them 4."""
    expected = np.tril(np.ones((8, 8), int)) - np.tril(np.ones((8, 8), int), -5)
    assert _dependence(8, shape=make_shape(sliding_window=3)).tolist() == expected.tolist()


def test_padding_dialogues_and_answers_do_not_feel_each_other():
    """[prompt of 2 | chosen of 1 | rejected of 2], a dialogue of 1, two of padding, whose own states nobody reads."""
    seen = _dependence(
        8, positions=[0, 1, 2, 2, 3, 0, 0, 0], segments=[1, 1, 1, 1, 1, 2, 0, 0], branches=[0, 0, 1, 2, 2, 0, 0, 0]
    )
    assert seen[:6].tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
    ]


@pytest.mark.parametrize("window", [None, 4])
def test_a_packed_row_equals_its_parts_alone(window):
    """[prompt | chosen | rejected] and a dialogue in one row, against three rows padded to 12 tokens."""
    shape = make_shape(sliding_window=window)
    prompt, chosen, rejected, dialogue = make_prompts(5, 4, 6, 8)
    packed = _forward(
        [np.concatenate([prompt, chosen, rejected, dialogue, [0]])],
        shape=shape,
        positions=[*range(9), *range(5, 11), *range(8), 0],
        segments=[1] * 15 + [2] * 8 + [0],
        branches=[0] * 5 + [1] * 4 + [2] * 6 + [0] * 9,
    )[0]
    alone = np.zeros((3, 12), np.int32)
    texts = [np.concatenate([prompt, chosen]), np.concatenate([prompt, rejected]), dialogue]
    for row, text in zip(alone, texts, strict=True):
        row[: len(text)] = text
    segments = [[1] * len(text) + [0] * (12 - len(text)) for text in texts]
    separate = _forward(alone, shape=shape, segments=segments)
    packed, separate = np.asarray(packed), np.asarray(separate)
    np.testing.assert_allclose(packed[:9], separate[0, :9], atol=1e-5)
    np.testing.assert_allclose(packed[9:15], separate[1, 5:11], atol=1e-5)
    np.testing.assert_allclose(packed[15:23], separate[2, :8], atol=1e-5)


def test_rope_depends_on_differences_of_positions_alone():
    tokens = make_prompts(10)[0]
    near, shifted, stretched = (
        np.asarray(_forward([tokens], positions=positions))
        for positions in (np.arange(10), np.arange(10) + 50, 2 * np.arange(10))
    )
    np.testing.assert_allclose(shifted, near, atol=5e-5)
    assert np.abs(stretched - near).max() > 0.1


def test_rope_turns_pairs_of_the_two_halves_by_hand():
    """H=4, theta=100: frequencies 1 and 1/10; at position 3 the pair (x0, x2) turns by 3, (x1, x3) by 0.3."""
    x = jnp.asarray(np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 1, 4))
    wanted = [
        np.cos(3) - 3 * np.sin(3),
        2 * np.cos(0.3) - 4 * np.sin(0.3),
        3 * np.cos(3) + np.sin(3),
        4 * np.cos(0.3) + 2 * np.sin(0.3),
    ]
    np.testing.assert_allclose(
        np.ravel(jax.jit(rotate)(x, *rotary_angles(np.array([[3]]), head_dim=4, theta=100.0))), wanted, rtol=1e-6
    )


def test_remat_policies_and_attentions_give_the_same_gradients():
    tokens = np.stack(make_prompts(10, 10))

    def gradients(**settings):
        def total(params):
            return jnp.sum(jnp.sin(_forward(tokens, params=params, settings=SETTINGS._replace(**settings))))

        return jax.tree.leaves(jax.device_get(jax.jit(jax.grad(total))(make_params(SHAPE))))

    plain = gradients()
    remats = [{"remat": policy, "attention": "blockwise"} for policy in ("full", "attention", "mlp", "dots")]
    for settings in ({"attention": "blockwise"}, *remats):
        for leaf, other in zip(plain, gradients(**settings), strict=True):
            np.testing.assert_allclose(other, leaf, atol=1e-5 * np.abs(leaf).max(), err_msg=str(settings))


@pytest.mark.parametrize(
    "remat, saved_widths",
    [
        ("full", []),
        ("attention", ["heads"]),
        ("mlp", ["feed-forward", "feed-forward", "heads"]),
        ("dots", ["feed-forward", "feed-forward", "heads", "heads", "keys", "keys", "model"]),
    ],
)
def test_a_remat_policy_keeps_what_it_says(remat, saved_widths):
    """Arrays [L, B, T, ...] that leave the forward scan beside the layers' inputs: a token's size tells what is what.

    Rows are one block long. dots keeps queries [N H], keys and values [K H] before the rotation, gate and up [F], the
    attention's output projection [D]; nothing in the backward pass needs the layer's last product.
    """
    shape = make_shape(hidden_size=20, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=28)
    widths = {20: "model", 32: "heads", 16: "keys", 28: "feed-forward"}
    tokens = np.stack(make_prompts(16, 16))
    settings = SETTINGS._replace(remat=remat, attention="blockwise")

    def total(params):
        return jnp.sum(jnp.sin(_forward(tokens, shape=shape, params=params, settings=settings)))

    jaxpr = jax.make_jaxpr(jax.grad(total))(make_params(shape))
    scan = next(equation for equation in _equations(jaxpr.jaxpr) if equation.primitive.name == "scan")
    stacked = [v.aval.shape for v in scan.outvars if v.aval.shape[:3] == (shape.num_hidden_layers, *tokens.shape)]
    found = sorted(widths[int(np.prod(s[3:]))] for s in stacked)
    found.remove("model")  # the layers' inputs, which every policy keeps
    assert found == saved_widths


def test_bfloat16_results_are_kept_as_their_bits():
    """Gate and up [F], attention's result [N H]: uint16 in the stack; the same gradients as without remat."""
    tokens = np.stack(make_prompts(16, 16))

    def gradients(remat):
        settings = SETTINGS._replace(remat=remat, attention="blockwise", compute_dtype="bfloat16")
        return jax.grad(lambda params: jnp.sum(jnp.sin(_forward(tokens, params=params, settings=settings))))

    jaxpr = jax.make_jaxpr(gradients("mlp"))(make_params(SHAPE))
    scan = next(equation for equation in _equations(jaxpr.jaxpr) if equation.primitive.name == "scan")
    assert [v.aval.dtype for v in scan.outvars].count(jnp.uint16) == 3
    kept, plain = (jax.tree.leaves(jax.jit(gradients(remat))(make_params(SHAPE))) for remat in ("mlp", "none"))
    for leaf, other in zip(plain, kept, strict=True):
        np.testing.assert_allclose(other, leaf, atol=0.02 * np.abs(leaf).max())


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr)


def test_casting_leaves_norm_scales_in_float32():
    cast = dict(_leaves(cast_params(make_params(SHAPE), "bfloat16")))
    assert {leaf.dtype for path, leaf in cast.items() if path[-1].key == "scale"} == {jnp.dtype("float32")}
    assert {leaf.dtype for path, leaf in cast.items() if path[-1].key != "scale"} == {jnp.dtype("bfloat16")}


def test_bfloat16_computes_in_bfloat16_and_stays_near():
    """bf16 keeps 8 bits: after two layers about one part in 50 of states whose size is about 1, and never exactly."""
    tokens = make_prompts(10)
    half = np.asarray(_forward(tokens, settings=SETTINGS._replace(compute_dtype="bfloat16")))
    assert half.dtype == jnp.bfloat16
    error = np.abs(half.astype(np.float32) - np.asarray(_forward(tokens))).max()
    assert 1e-4 < error < 0.2


def test_weights_may_be_cast_before_or_in_every_layer():
    """Before is what GPUs do (they send bf16 between them), in the layers what CPUs do: the same states, bit by bit.

    Their gradients come in the weights' dtype: of bf16 weights rounded to bf16, else float32, the same to rounding.
    """
    params, tokens = make_params(make_shape(tie_word_embeddings=True)), make_prompts(10)
    settings = SETTINGS._replace(compute_dtype="bfloat16")
    shape = make_shape(tie_word_embeddings=True)

    def total(params):
        return jnp.sum(_forward(tokens, shape=shape, settings=settings, params=params).astype(jnp.float32) ** 3)

    cast = cast_params(params, "bfloat16")
    (before, dcast), (inside, dparams) = (jax.jit(jax.value_and_grad(total))(tree) for tree in (cast, params))
    assert before == inside
    for (path, gradient), (_, rounded) in zip(_leaves(dparams), _leaves(dcast), strict=True):
        assert gradient.dtype == jnp.float32
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(rounded.astype(np.float32) / scale, gradient / scale, atol=5e-3, err_msg=str(path))


def test_a_frequent_token_has_its_gradient_summed_in_float32():
    """600 times the same token: 600 times the gradient of one. Added up one by one in bf16 it would stall at 256.

    With all matrices 0 every position is the embedding's row, normed: all positions have the same gradient.
    """
    shape = make_shape(num_hidden_layers=1)
    params = jax.tree.map(np.zeros_like, jax.device_get(make_params(shape)))
    params["final_norm"]["scale"] += 1
    params["embedding"] = make_params(shape)["embedding"]
    direction_D = np.random.default_rng(0).standard_normal(32).astype(np.float32)

    def make_total(num_tokens):
        def total(embedding):
            settings = SETTINGS._replace(compute_dtype="bfloat16")
            tokens = np.full((1, num_tokens), 3)
            used = params | {"embedding": embedding}
            return jnp.sum(_forward(tokens, shape=shape, params=used, settings=settings) @ direction_D)

        return total

    def gradient(num_tokens):
        return np.asarray(jax.jit(jax.grad(make_total(num_tokens)))(params["embedding"]))[3]

    np.testing.assert_allclose(gradient(600), 600 * gradient(1), rtol=2e-2)
    # XLA for CPUs widens such sums by itself, which other devices do not, so the program is looked at too.
    half = cast_params(params, "bfloat16")["embedding"]
    assert "f32[64,32] = scatter-add" in str(jax.make_jaxpr(jax.grad(make_total(600)))(half))


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)
