"""safetensors files, read by byte range and written tensor by tensor.

The package `safetensors` hands out and takes whole tensors; here a slice touches only its own bytes (a memory map), and
a file is written while only one of its tensors lies in memory. What the tensors mean is not known here.

Format (https://github.com/huggingface/safetensors): 8 bytes little-endian length n, n bytes of JSON
`{name: {dtype, shape, data_offsets: [begin, end]}}`, then the data, row-major, offsets counted from its start.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from zephyr_jax.model.tensor_names import Index
from zephyr_jax.records import InputError

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the limit that the format's own reader sets


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a safetensors file; `start` is the position of its first byte in the file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def read(self, index: tuple[Index, ...]) -> np.ndarray:
        """Reads the outer product of one index per axis, in the stored type; slices give a view of the file."""
        part: np.ndarray = np.memmap(self.file, self.dtype, mode="r", offset=self.start, shape=self.shape)
        # Slices first: they cost nothing, and what then is copied for listed positions is only what was asked for.
        part = part[tuple(one if isinstance(one, slice) else slice(None) for one in index)]
        for axis, one in enumerate(index):
            if not isinstance(one, slice):
                part = np.take(part, one, axis=axis)
        return part

    def raw_bytes(self) -> np.ndarray:
        """The tensor's bytes as stored, a uint8 view of the file."""
        num_bytes = self.dtype.itemsize * math.prod(self.shape)
        return np.memmap(self.file, np.uint8, mode="r", offset=self.start, shape=(num_bytes,))


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Reads a file's header.

    Args:
      file: the safetensors file.

    Returns:
      Its tensors by name.

    Raises:
      InputError: when the file is cut off or damaged, or has a type other than float32, float16, bfloat16.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_size = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_size > min(_MAX_HEADER_BYTES, size - 8):
            raise InputError(f"{file}: not a safetensors file, or cut off in its header ({size} bytes); fetch it again")
        header_bytes = stream.read(header_size)
    try:
        header = json.loads(header_bytes)
        header.pop("__metadata__", None)
        entries = {
            name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: the header is not that of a safetensors file ({error}); fetch it again") from error
    tensors, expected_begin = {}, 0
    for name, (dtype_name, shape, begin, end) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if dtype_name not in DTYPES:
            raise InputError(
                f"{file}: tensor {name} has type {dtype_name}; wanted one of {', '.join(DTYPES)} "
                "(quantised checkpoints have to be converted first)"
            )
        if begin != expected_begin or end - begin != DTYPES[dtype_name].itemsize * math.prod(shape):
            raise InputError(f"{file}: damaged, bytes {begin} to {end} cannot hold tensor {name} {list(shape)}")
        tensors[name] = StoredTensor(file, DTYPES[dtype_name], shape, 8 + header_size + begin)
        expected_begin = end
    if size != 8 + header_size + expected_begin:
        wanted = 8 + header_size + expected_begin
        raise InputError(f"{file}: {size} bytes, but its header speaks of {wanted}: cut off or damaged; fetch it again")
    return tensors


def write_safetensors(
    file: Path, layout: Mapping[str, tuple[int, ...]], *, dtype: np.dtype, arrays: Iterable[np.ndarray]
) -> None:
    """Writes a file, drawing one array after the other.

    Args:
      file: the file to write.
      layout: name and shape of each tensor, in the order of `arrays`.
      dtype: the stored type, one of `DTYPES`.
      arrays: the values, cast to `dtype` here; drawn one at a time.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say so
    begin = 0
    for name, shape in layout.items():
        end = begin + num_bytes(shape, dtype)
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    header_bytes = json.dumps(header, separators=(",", ":")).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)  # the data then starts aligned, as readers that map it like it
    with file.open("wb") as stream:
        stream.write(len(header_bytes).to_bytes(8, "little"))
        stream.write(header_bytes)
        for shape, array in zip(layout.values(), arrays, strict=True):
            assert array.shape == shape, (array.shape, shape)
            stream.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)


def num_bytes(shape: Sequence[int], dtype: np.dtype) -> int:
    """Bytes of a stored tensor."""
    return dtype.itemsize * math.prod(shape)
