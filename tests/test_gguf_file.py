"""Headers of GGUF files, against the package that writes and reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zephyr_jax.gguf_file import read_header

gguf = pytest.importorskip("gguf", reason="needs the package gguf: extra [smollm2]")


def write_file(file: Path, *, alignment: int | None = None) -> dict[str, np.ndarray]:
    """One metadata value of each kind, two plain tensors and a quantised one."""
    writer = gguf.GGUFWriter(file, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("a.u8", 200)
    writer.add_int16("a.i16", -300)
    writer.add_uint64("a.u64", 2**60)
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "grüße")
    writer.add_array("a.strings", ["x", "", "ŷ z"])
    writer.add_array("a.ints", [1, -2, 3])
    tensors = {
        "vector": np.arange(3, dtype=np.float32),
        "matrix": np.arange(128, dtype=np.float32).reshape(2, 64),
    }
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    quantised = gguf.quants.quantize(tensors["matrix"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("quantised", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors | {"quantised": quantised}


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    write_file(tmp_path / "x.gguf")
    metadata, _ = read_header(tmp_path / "x.gguf")
    assert {key: value for key, value in metadata.items() if key.startswith("a.")} == {
        "a.u8": 200,
        "a.i16": -300,
        "a.u64": 2**60,
        "a.f32": 0.5,
        "a.f64": 0.1,
        "a.bool": True,
        "a.string": "grüße",
        "a.strings": ["x", "", "ŷ z"],
        "a.ints": [1, -2, 3],
    }


@pytest.mark.parametrize("alignment", [None, 64])
def test_tensors_lie_where_the_header_says(tmp_path: Path, alignment: int | None) -> None:
    tensors = write_file(tmp_path / "x.gguf", alignment=alignment)
    _, entries = read_header(tmp_path / "x.gguf")
    content = (tmp_path / "x.gguf").read_bytes()
    shapes = {name: (entry.shape, entry.kind) for name, entry in entries.items()}
    assert shapes == {"vector": ((3,), 0), "matrix": ((2, 64), 0), "quantised": ((2, 64), 8)}
    for name, values in tensors.items():
        assert content[entries[name].start :].startswith(values.tobytes()), name


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="not a GGUF file"):
        read_header(tmp_path / "x")
