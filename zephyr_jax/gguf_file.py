"""The header of a GGUF file: its metadata, and where each tensor lies.

The package `gguf` reads headers too, but takes seconds for one with a tokenizer in it; this takes a tenth of one. What
the quantised bytes mean is left to `gguf.quants` (see model/builtin.py). No JAX.

Format, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: the magic number, version,
number of tensors, number of metadata pairs; the pairs; name, sizes, type and offset of each tensor; aligned, the data.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from pathlib import Path
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT_BYTES = 32


@dataclasses.dataclass(frozen=True, slots=True)
class GgufEntry:
    """Where one tensor lies.

    Attributes:
      shape: the slowest axis first, as numpy says it (the file says it the other way round).
      kind: number of the type, a value of `gguf.GGMLQuantizationType`.
      start: position of its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, GgufEntry]]:
    """Reads what stands before the data.

    Args:
      file: a GGUF file of version 3.

    Returns:
      The metadata by key (arrays as lists, strings as str), and the tensors by name.

    Raises:
      ValueError: when the file is no such file.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(content)
        magic, version = bytes(content[:4]), struct.unpack_from("<I", content, 4)[0]
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"{file}: not a GGUF file of version 3 (it starts with {magic!r}, version {version})")
        reader.position = 8
        num_tensors, num_pairs = reader.scalar("Q"), reader.scalar("Q")
        metadata = {reader.string(): reader.value(reader.scalar("I")) for _ in range(num_pairs)}
        infos = []
        for _ in range(num_tensors):
            name, num_axes = reader.string(), reader.scalar("I")
            shape = tuple(reversed([reader.scalar("Q") for _ in range(num_axes)]))
            infos.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
        data_start = -(-reader.position // alignment) * alignment
    return metadata, {name: GgufEntry(shape, kind, data_start + offset) for name, shape, kind, offset in infos}


class _Reader:
    """Walks through the header value by value."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 0

    def scalar(self, code: str) -> Any:
        """One number; `code` is that of the module struct."""
        (found,) = struct.unpack_from(f"<{code}", self.content, self.position)
        self.position += struct.calcsize(f"<{code}")
        return found

    def string(self) -> str:
        """A length, then so many bytes of UTF-8."""
        size = self.scalar("Q")
        self.position += size
        return self.content[self.position - size : self.position].decode()

    def value(self, kind: int) -> Any:
        """A metadata value of this type."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item_kind, count = self.scalar("I"), self.scalar("Q")
        if item_kind not in _SCALARS:
            return [self.value(item_kind) for _ in range(count)]
        layout = f"<{count}{_SCALARS[item_kind]}"
        items = list(struct.unpack_from(layout, self.content, self.position))
        self.position += struct.calcsize(layout)
        return items
