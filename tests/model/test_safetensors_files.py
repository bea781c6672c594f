"""Our safetensors files against the public package, and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from zephyr_jax.model.safetensors_files import open_safetensors, write_safetensors
from zephyr_jax.records import InputError

TENSORS = {
    "b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a": np.array([1.5, -2.0], np.float32),
    "c.é": np.arange(5, dtype=np.float32).reshape(5, 1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_files_of_the_public_package_are_read(tmp_path: Path, dtype: type) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt", "note": "ü"})
    opened = open_safetensors(tmp_path / "x")
    assert opened.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert opened[name].shape == tensor.shape and opened[name].dtype == tensor.dtype
        np.testing.assert_array_equal(opened[name].read((slice(None),) * tensor.ndim), tensor)
        assert opened[name].raw_bytes().tobytes() == tensor.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_the_public_package_reads_what_we_write(tmp_path: Path, dtype: type) -> None:
    layout = {name: tensor.shape for name, tensor in TENSORS.items()}
    write_safetensors(tmp_path / "x", layout, dtype=np.dtype(dtype), arrays=iter(TENSORS.values()))
    with safe_open(tmp_path / "x", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(file.get_tensor(name).astype(np.float32), tensor)


def test_slices_and_positions_give_their_outer_product(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x")
    stored, whole = open_safetensors(tmp_path / "x")["b"], TENSORS["b"]
    rows, columns = np.array([2, 0]), np.array([3, 1, 1])
    np.testing.assert_array_equal(stored.read((slice(1, 3), slice(2, 4))), whole[1:3, 2:4])
    np.testing.assert_array_equal(stored.read((rows, slice(2, 4))), whole[rows, 2:4])
    np.testing.assert_array_equal(stored.read((rows, columns)), whole[np.ix_(rows, columns)])


def cut_last_byte(content: bytes) -> bytes:
    return content[:-1]


def cut_in_header(content: bytes) -> bytes:
    return content[:40]


def cut_in_length(content: bytes) -> bytes:
    return content[:5]


def append_a_byte(content: bytes) -> bytes:
    return content + b"\0"


def scribble_over_header(content: bytes) -> bytes:
    return content[:8] + b"#" + content[9:]


def overlap(content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["b"]["data_offsets"] = [0, 48]
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + size :]


def a_page_of_html(content: bytes) -> bytes:
    return b"<html><body>404 not found</body></html>"


@pytest.mark.parametrize(
    "damage",
    [cut_last_byte, cut_in_header, cut_in_length, append_a_byte, scribble_over_header, overlap, a_page_of_html],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    save_file(TENSORS, tmp_path / "good")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(damage((tmp_path / "good").read_bytes()))
    with pytest.raises(InputError, match="bad.safetensors"):
        open_safetensors(bad)
