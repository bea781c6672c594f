"""Compiled programs: kept on disk between runs, compiled ahead of need, counted, and asked what memory they plan with.

Not here: what is compiled, and what is said of it (training/loop.py). The store itself is JAX's persistent compilation
cache; its own environment variables (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=0, ...) are honoured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax

# Room for hundreds of programs: a train step takes 0.2 to a few MB. JAX takes out the least recently used ones.
MAX_CACHE_BYTES = 256 << 20
# Reading a small program takes some 5 ms. With JAX's own threshold of a second nearly nothing of a small model's run is
# kept; with 0.1 its second start took 16.7 s, with none 15.1 s. A file for every trifle is not worth having either.
MIN_COMPILE_SECONDS = 0.02

_READ_FROM_CACHE = "/jax/compilation_cache/cache_hits"
_MADE_READY = "/jax/core/compile/backend_compile_duration"  # compiled by XLA, or read from the cache


def keep_compiled_programs() -> Path | str | None:
    """Switches JAX's persistent compilation cache on, in a folder of this user and this kind of CPU.

    The folder that JAX_COMPILATION_CACHE_DIR names is not bounded, since it may be others' too; ours is
    `$XDG_CACHE_HOME/zephyr_jax/compiled/KIND`. What is kept is the same in both. It must be nobody else's to write: a
    program out of it is run as it is. A folder that cannot be used is said on stderr, once, and the run goes on
    without.

    Returns:
      The folder (or address); None: nothing is kept.
    """
    if not _setting("jax_enable_compilation_cache"):
        return None
    _unless_given("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    given: str | None = _setting("jax_compilation_cache_dir")
    if given is not None and "://" in given:
        return given
    try:
        if given is not None:
            _check_writable(Path(given))
            return Path(given)
        folder = default_cache_folder()
        _prepare(folder)
    except (OSError, RuntimeError) as error:  # no right to write, no home, no file locks there
        jax.config.update("jax_enable_compilation_cache", False)
        print(
            f"compiled programs are not kept for the next run: their folder cannot be used ({error}); name another one "
            "in JAX_COMPILATION_CACHE_DIR, or set JAX_ENABLE_COMPILATION_CACHE=0 to do without",
            file=sys.stderr,
            flush=True,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _unless_given("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
    return folder


def _unless_given(name: str, value: Any) -> None:
    """Sets a setting of JAX that the environment does not."""
    if name.upper() not in os.environ:
        jax.config.update(name, value)


def _setting(name: str) -> Any:
    return getattr(jax.config, name)  # its attributes are made at run time


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/zephyr_jax/compiled/KIND`, or in ~/.cache.

    KIND stands for the CPU's features: a home folder may be shared by unlike machines, and a program that was compiled
    for one must not run on another. JAX's key holds the versions, the flags and the devices, and in 0.10.2 something of
    the CPU; that is its own affair, and may change.

    Raises:
      RuntimeError: there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # a relative one is to be ignored, says XDG
    return root / "zephyr_jax" / "compiled" / f"{platform.machine()}-{_cpu_features_hash()}"


def _cpu_features_hash() -> str:
    telling = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):  # Linux only; elsewhere the two above must do
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        lines += [line for line in first.splitlines() if line.split(":")[0].strip() in telling]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _prepare(folder: Path) -> None:
    """Makes the folder, and takes out what a kill has torn: JAX would stumble over it at every start."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # JAX's own lock, which it holds while it reads and writes: whatever has no time stamp now is nobody's any more.
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        _check_writable(folder)
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink()


@dataclasses.dataclass
class CompilationCount:
    """How many programs were made ready, how many of them out of the cache, and the seconds that compiling took."""

    num_programs: int = 0
    num_from_cache: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def count_compilations(*, in_thread: int | None = None) -> Iterator[CompilationCount]:
    """Counts what JAX compiles or reads from the cache meanwhile, in this process or in one thread of it."""
    count = CompilationCount()

    def is_counted() -> bool:
        return in_thread is None or threading.get_ident() == in_thread

    def on_event(event: str, **_: Any) -> None:
        if event == _READ_FROM_CACHE and is_counted():
            count.num_from_cache += 1

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event == _MADE_READY and is_counted():
            count.num_programs += 1
            count.seconds += duration_secs

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """What a program plans with on each device, in bytes, as the compiler says.

    Attributes:
      arguments: all that it is given.
      in_place: the part of the arguments whose place its results take.
      temporaries: what it needs in between: activations, gradients, scratch. One planned area, the largest at any time.
    """

    arguments: int
    in_place: int
    temporaries: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      call: runs it, on arguments of the shapes and shardings that it was compiled for.
      seconds: tracing, lowering and compiling it, or reading it from the cache instead.
      from_cache: whether it was read.
      memory: what it plans with; None where the backend does not say.
    """

    call: jax.stages.Compiled
    seconds: float
    from_cache: bool
    memory: ProgramMemory | None


def compile_ahead(function: jax.stages.Wrapped, *arguments: Any) -> Program:
    """Compiles a jitted function for arguments like these, or reads it from the cache."""
    began = time.perf_counter()
    with count_compilations(in_thread=threading.get_ident()) as count:
        compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - began
    from_cache = 0 < count.num_programs == count.num_from_cache
    return Program(call=compiled, seconds=seconds, from_cache=from_cache, memory=_memory(compiled))


def _memory(compiled: jax.stages.Compiled) -> ProgramMemory | None:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return ProgramMemory(
        arguments=analysis.argument_size_in_bytes,
        in_place=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """What the arrays of a tree take on one device, by their shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_text(num_bytes: float) -> str:
    """`12.34 GB`; below 5 MB `1.23 MB`."""
    return f"{num_bytes / 1e9:,.2f} GB" if abs(num_bytes) >= 5e6 else f"{num_bytes / 1e6:.2f} MB"
