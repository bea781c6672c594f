"""Programs compiled ahead of need, one for each shape of step batch that comes, and what is said of them.

Not here: compiling itself and the cache (compilation.py), the train step with its memory (loop.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from zephyr_jax.compilation import Program, compile_ahead


class ShapePrograms:
    """A jitted function of (parameters, step batch) as one program for each shape of batch, said when it is made.

    Unlike jit it compiles nothing in silence: arguments that differ in more than the batch's shape are an error.

    Args:
      function: the function.
      name: of the work, for the message: reference (train).
      what: of the program, for the message: the pass.
    """

    def __init__(self, function: jax.stages.Wrapped, *, name: str, what: str):
        self._function, self._name, self._what = function, name, what
        self._programs: dict[tuple[int, ...], Program] = {}

    def __call__(self, params: Any, batch: Mapping[str, jax.Array]) -> Any:
        """The function's result."""
        shape = batch["tokens"].shape
        if shape not in self._programs:
            program = self._programs[shape] = compile_ahead(self._function, params, batch)
            tqdm.write(f"{self._name}: {made_text(self._what, shape, program)}", file=sys.stderr)
        return self._programs[shape].call(params, batch)


def made_text(what: str, shape: Sequence[int], program: Program) -> str:
    """`compiled the train step for 1 x 4 x 512 tokens in 2.1 s`, or that it was read from the cache.

    Args:
      what: the program.
      shape: of the batch's tokens: micro-batches x rows x row.
      program: what came of it.
    """
    verb, source = ("read", " from the compilation cache") if program.from_cache else ("compiled", "")
    return f"{verb} {what} for {' x '.join(map(str, shape))} tokens{source} in {program.seconds:.1f} s"
