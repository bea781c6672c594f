"""One part of the day, in a process of its own: `python -m benchmarks.gpu_day.part NAME --out FILE.json [--toy]`.

Every figure is written as it is measured, so that a part that is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.sizes import GPU, TOY, Sizes


class Recorder:
    """Collects entries and keeps them in a file: called with one, the file holds it when the call returns."""

    def __init__(self, path: Path):
        self._path, self._entries = path, []

    def __call__(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)
        unfinished = self._path.with_name(self._path.name + ".partial")
        unfinished.write_text(json.dumps(self._entries), encoding="utf-8")
        os.replace(unfinished, self._path)
        print(json.dumps(entry)[:2000], flush=True)


def machine(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.machine import describe_machine

    describe_machine(sizes, record)


def numbers(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.attention_numbers import check_numbers

    check_numbers(sizes, record)


def model(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.training import check_model

    check_model(sizes, record)


def dsft(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.training import measure_stage

    measure_stage(sizes, record, stage="dsft")


def dsft_o1(sizes: Sizes, record: Recorder) -> None:
    """The same under the optimisation level that NVIDIA recommends (launch/xla_flags.sh says more): does it help?"""
    os.environ["JAX_OPTIMIZATION_LEVEL"] = "O1"
    dsft(sizes, record)


def ddpo(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.training import measure_stage

    measure_stage(sizes, record, stage="ddpo")


def kernels(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.attention_numbers import time_kernels

    time_kernels(sizes, record)


def decode(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.decoding import time_decoding

    time_decoding(sizes, record)


def trl(sizes: Sizes, record: Recorder) -> None:
    from benchmarks.gpu_day.peer import time_trl
    from benchmarks.gpu_day.training import HERE
    from zephyr_jax.recipe import load_recipe

    os.environ.setdefault("GPU_DAY_ROWS", ".")  # the recipe names it; the rows are made anew
    time_trl(sizes, load_recipe(HERE / "recipe.yaml", list(sizes.overrides)), record)


PARTS: dict[str, Callable[[Sizes, Recorder], None]] = {
    part.__name__: part for part in (machine, numbers, model, dsft, ddpo, kernels, decode, trl, dsft_o1)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    PARTS[arguments.part](TOY if arguments.toy else GPU, Recorder(arguments.out))


if __name__ == "__main__":
    main()
