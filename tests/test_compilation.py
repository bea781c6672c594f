"""The compilation cache of the commands, in processes of their own; counting what is compiled, and its memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zephyr_jax.compilation import bytes_per_device, compile_ahead, count_compilations, default_cache_folder

# A train step in little: state sharded and donated, over all devices. Prints where it is kept, how it came, its result.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from zephyr_jax import compilation
from zephyr_jax.compilation import compile_ahead, keep_compiled_programs

compilation.MIN_COMPILE_SECONDS = 0.0
print(keep_compiled_programs())
keep_compiled_programs()  # a second command in one process changes nothing
mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))

def step(weights, x):
    gradient = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(weights)
    return weights - 0.01 * gradient

weights = jax.device_put(np.sin(np.arange(64 * 16, dtype=np.float32)).reshape(64, 16), rows)
x = jax.device_put(np.cos(np.arange(32 * 64, dtype=np.float32)).reshape(32, 64), rows)
program = compile_ahead(jax.jit(step, out_shardings=rows, donate_argnums=0), weights, x)
print(program.from_cache, program.memory)
result = program.call(weights, x)
print(weights.is_deleted(), np.asarray(result).tobytes().hex())
print(jax.config.jax_compilation_cache_max_size, jax.config.jax_persistent_cache_min_compile_time_secs)
"""


def _start(**environment: str) -> tuple[list[str], str]:
    """One process: its lines, and what it said on stderr."""
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name and name != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, env=kept | environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def test_a_second_start_reads_the_program_and_gives_the_same_bits(tmp_path):
    """Nothing is said on stderr, what memory it plans with is the same, and the donated buffer is gone both times.

    Another number of devices has a program of its own, in the same bounded folder.
    """
    environment = {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": "--xla_force_host_platform_device_count=16"}
    first, first_err = _start(**environment)
    second, second_err = _start(**environment)
    assert first[1].startswith("False") and second[1] == first[1].replace("False", "True")
    assert second[2:] == first[2:] and first[2].startswith("True ")
    assert first_err == second_err == ""
    folder = Path(first[0])
    assert folder.is_relative_to(tmp_path / "zephyr_jax") and list(folder.glob("jit_step-*-cache"))
    assert folder.stat().st_mode & 0o077 == 0  # what lies there is run
    on_one, _ = _start(XDG_CACHE_HOME=str(tmp_path))
    assert on_one[1].startswith("False") and on_one[-1] == f"{256 << 20} 0.0"


def test_jaxs_own_variables_win(tmp_path):
    """The folder is the user's: it may hold programs of others, so it is not bounded by us; as much is kept in it."""
    lines, err = _start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert lines[0] == str(tmp_path / "mine") and lines[-1] == "-1 0.0" and err == ""
    assert not (tmp_path / "xdg").exists() and list((tmp_path / "mine").glob("jit_step-*-cache"))
    lines, _ = _start(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_MAX_SIZE="1000000")
    assert lines[-1] == "1000000 0.0"
    lines, _ = _start(XDG_CACHE_HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.5")
    assert lines[-1].endswith(" 0.5")


def test_it_can_be_switched_off(tmp_path):
    lines, err = _start(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="0")
    assert lines[:2] == ["None", lines[1]] and lines[1].startswith("False") and err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_a_folder_that_cannot_be_used_is_said_once_and_fails_nothing(variable, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    lines, err = _start(**{variable: str(tmp_path / "file")})
    assert lines[0] == "None" and lines[1].startswith("False")
    assert err.count("\n") == 1 and err.startswith("compiled programs are not kept for the next run")
    assert str(tmp_path / "file") in err and "JAX_ENABLE_COMPILATION_CACHE=0" in err


def test_a_program_torn_by_a_kill_is_taken_out(tmp_path):
    """JAX writes the program, then its time stamp; with no stamp it would neither be read nor be replaced."""
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = Path(_start(**environment)[0][0])
    (entry,) = folder.glob("jit_step-*-cache")
    entry.write_bytes(entry.read_bytes()[:100])
    next(folder.glob("jit_step-*-atime")).unlink()
    for from_cache in ("False", "True"):
        lines, err = _start(**environment)
        assert lines[1].startswith(from_cache) and err == ""


def test_the_folder_is_the_users_and_the_cpus(monkeypatch, tmp_path):
    """XDG: a relative XDG_CACHE_HOME is to be ignored."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, root in [("", tmp_path / ".cache"), ("relative", tmp_path / ".cache"), ("/abs", Path("/abs"))]:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_folder().parent == root / "zephyr_jax" / "compiled"
    here = default_cache_folder()
    monkeypatch.setattr("platform.processor", lambda: "another one")
    assert default_cache_folder() != here


def test_what_is_compiled_is_counted_and_what_was_compiled_already_is_not():
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    with count_compilations() as count:
        double(x)
        double(x)
    double(jnp.ones(4))
    assert count.num_programs == 1 and count.num_from_cache == 0 and count.seconds > 0


def test_a_count_of_one_thread_leaves_out_the_others():
    x = jnp.ones(3)
    thread = threading.Thread(target=lambda: jax.jit(lambda x: 3 * x)(x))
    with count_compilations(in_thread=threading.get_ident()) as here, count_compilations() as everywhere:
        thread.start()
        thread.join()
    assert (here.num_programs, everywhere.num_programs) == (0, 1)


@pytest.mark.parametrize("num_devices", [1, 16])
def test_memory_is_that_of_one_device(num_devices):
    """x, float32 [64, 32] in rows over the devices, is replaced in place; y, [32], lies whole on each; and a scalar."""
    mesh = jax.make_mesh((num_devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])
    rows, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    x = jax.device_put(np.ones((64, 32), np.float32), rows)
    y = jax.device_put(np.ones(32, np.float32), whole)
    step = jax.jit(lambda x, y: (x + y, jnp.sum(y)), out_shardings=(rows, whole), donate_argnums=0)
    program = compile_ahead(step, x, y)
    x_bytes = 64 * 32 * 4 // num_devices
    assert bytes_per_device({"x": x}) == x_bytes and bytes_per_device([x, y]) == x_bytes + 128
    assert program.memory is not None and not program.from_cache
    assert program.memory.arguments == x_bytes + 128
    assert program.memory.in_place == x_bytes
