"""Matmul FLOPs of a traced program: what its products cost, loops times their lengths, kernels by formula.

A product of [m, k] and [k, n] counts 2 m k n. Nothing else is counted: no softmax, norms or optimizer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import jaxprs_in_params

# The products that an attention kernel hides, each of B N H T (T + 1) / 2 terms, as far as causal order allows. Forward
# s = q k^T and p v; backward s again, dp and dq, or dp, dv and dk; cuDNN's in one kernel.
_HIDDEN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
    "attention_forward": 2,
    "attention_dq": 3,
    "attention_dkv": 4,
}


@dataclasses.dataclass
class FlopCount:
    """What was found.

    Attributes:
      flops: of all devices together.
      unknown_loops: loops whose number of turns the trace does not tell; their bodies are counted once.
      unknown_kernels: names of kernels for which there is no formula; they are not counted.
    """

    flops: float = 0.0
    unknown_loops: int = 0
    unknown_kernels: set[str] = dataclasses.field(default_factory=set)


def count_flops(jaxpr: Any, *, num_devices: int = 1) -> FlopCount:
    """Counts a program's matmul FLOPs.

    Args:
      jaxpr: a traced program (jax.core.Jaxpr or ClosedJaxpr), before anything is split over devices.
      num_devices: how often a part runs that was split over the devices by hand (shard_map).
    """
    count = FlopCount()
    for equation, times in _equations(getattr(jaxpr, "jaxpr", jaxpr), 1.0, num_devices):
        name = _name(equation)
        if name == "dot_general":
            count.flops += times * _product_flops(equation)
        elif name in _HIDDEN_PRODUCTS:
            (B, T, N, H), *_ = (variable.aval.shape for variable in equation.invars)
            count.flops += times * _HIDDEN_PRODUCTS[name] * B * N * H * T * (T + 1)
        elif name == "while":
            count.unknown_loops += 1
        elif equation.primitive.name == "pallas_call":
            count.unknown_kernels.add(name)
    return count


def _name(equation: Any) -> str:
    """The primitive's name, or the kernel's."""
    is_kernel = equation.primitive.name == "pallas_call"
    return str(equation.params["name"] if is_kernel else equation.primitive.name)


def _product_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _equations(jaxpr: Any, times: float, num_devices: int) -> Iterator[tuple[Any, float]]:
    """Every equation, those of inner programs included, with how often it runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        name, parts = equation.primitive.name, list(jaxprs_in_params(equation.params))
        if name == "cond":  # one branch runs: the dearest
            parts = sorted(parts, key=lambda part: count_flops(part, num_devices=num_devices).flops)[-1:]
        turns = {"scan": equation.params.get("length", 1), "shard_map": num_devices}.get(name, 1)
        for part in parts if name != "pallas_call" else ():
            yield from _equations(part, times * turns, num_devices)
