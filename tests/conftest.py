"""What every test needs before JAX is imported: sixteen fake CPU devices, no network, and the folder of real data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest

# setdefault: what the caller has set wins, so that the same tests run on real devices too.
# Without the optimiser and the fusion emitters XLA compiles a small train step in an eighth of the time; the tests'
# time is compilation, and the numbers are the same. Later XLA has one kind of emitter and ends at a flag unknown to it.
_XLA_FLAGS = ["--xla_force_host_platform_device_count=16", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_XLA_FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")  # a test must not leave anything in the home folder
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def zephyr_data() -> Path:
    """The folder of real data that ZEPHYR_DATA names; the test is skipped where it is not set."""
    folder = os.environ.get("ZEPHYR_DATA")
    if not folder:
        pytest.skip("ZEPHYR_DATA is not set: this test reads the folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def cuda_plugin() -> None:
    """The test is skipped where the CUDA plugin is missing: it compiles for GPUs that are not here."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("the CUDA plugin is not here: `make plan-tests` brings it and runs this test")
    if os.environ["XLA_FLAGS"]:
        pytest.skip("XLA_FLAGS is set, so that another program would be compiled: `make plan-tests` runs this test")
