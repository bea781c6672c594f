"""Reads the weights of a Hugging Face folder: config.json and safetensors, one file or many with an index.

Not here: the tokenizer (data/chat.py), writing a folder (hf_folder.py), finding the folder (sources.py).
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zephyr_jax.model import hf_config, safetensors_files
from zephyr_jax.model.weight_source import WeightSource, check_tensors
from zephyr_jax.peers import ALONE, Peers
from zephyr_jax.records import InputError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_HASHED_AT_ONCE_BYTES = 1 << 24


def open_folder(folder: Path) -> WeightSource:
    """Opens a Hugging Face folder: reads its configuration and headers, and holds the tensors against the table.

    Args:
      folder: a folder with config.json and safetensors files.

    Returns:
      The weights, not loaded yet.

    Raises:
      InputError: when a file is missing or damaged, the model is of another kind, or the tensors do not fit it.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder}: no config.json in it; wanted a Hugging Face folder (config.json, *.safetensors)")
    config = read_json(config_file)
    shape = hf_config.read_shape(config, where=str(config_file))
    generation_file = folder / "generation_config.json"
    generation_config = read_json(generation_file) if generation_file.is_file() else {}
    tensors = _open_tensors(folder)
    checked = check_tensors(tensors, shape, where=str(folder))
    return WeightSource(
        name=str(folder),
        shape=shape,
        folder=folder,
        tokenizer=str(folder),
        stop_ids=hf_config.read_stop_ids(generation_config, config),
        open_tensors=lambda: checked,
        hash_content=functools.cache(lambda peers: hash_tensors({name: tensors[name] for name in checked}, peers)),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object; InputError where it does not."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}; wanted a JSON object; fetch it again")
    return content


def _open_tensors(folder: Path) -> dict[str, safetensors_files.StoredTensor]:
    """All tensors of the folder by name, from the index where there is one."""
    index_file = folder / INDEX_NAME
    if index_file.is_file():
        return _open_sharded(folder, index_file)
    if (folder / SINGLE_NAME).is_file():
        return safetensors_files.open_safetensors(folder / SINGLE_NAME)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise InputError(
            f"{folder}: holds PyTorch .bin weights only; wanted safetensors. Convert it once, where torch and "
            f"transformers are installed: AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW)"
        )
    stray = sorted(file.name for file in folder.glob("*.safetensors"))
    found = f"only {', '.join(stray[:5])}" if stray else "none"
    raise InputError(f"{folder}: no {SINGLE_NAME} or {INDEX_NAME} in it (safetensors files found: {found})")


def _open_sharded(folder: Path, index_file: Path) -> dict[str, safetensors_files.StoredTensor]:
    file_of = read_json(index_file).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise InputError(f"{index_file}: has no weight_map of tensor names to file names; fetch it again")
    file_names = sorted(set(file_of.values()))
    absent = [name for name in file_names if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{folder}: {len(absent)} of the {len(file_names)} files that {INDEX_NAME} names are not there: "
            f"{', '.join(absent[:10])}; fetch them"
        )
    tensors: dict[str, safetensors_files.StoredTensor] = {}
    for file_name in file_names:
        stored = safetensors_files.open_safetensors(folder / file_name)
        listed = {name for name, own_file in file_of.items() if own_file == file_name}
        # A tensor in two files, or one that the index does not know, means that two checkpoints were mixed up.
        odd = sorted(listed.symmetric_difference(stored))
        if odd:
            raise InputError(
                f"{folder}: {INDEX_NAME} and {file_name} disagree on {len(odd)} tensors: {', '.join(odd[:10])}; "
                "files of two checkpoints seem to be mixed; fetch the folder again"
            )
        tensors |= stored
    return tensors


def hash_tensors(tensors: Mapping[str, safetensors_files.StoredTensor], peers: Peers = ALONE) -> str:
    """sha256 over the name, type, shape and sha256 of the bytes of each tensor, in the order of the names.

    The same tensors in one file or in ten have the same hash. Tensors are read by pieces, several at a time, and each
    by one of the processes.
    """
    names = sorted(tensors)
    mine = names[peers.index :: peers.count]
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:  # hashlib computes outside Python's lock
        hashed = dict(zip(mine, pool.map(lambda name: _hash_bytes(tensors[name]), mine), strict=True))
    digests: dict[str, str] = {}
    for part in peers.gather("the hashes of the weights", hashed):
        digests |= part
    total = hashlib.sha256()
    for name in names:
        tensor = tensors[name]
        total.update(json.dumps([name, tensor.dtype.name, tensor.shape, digests[name]]).encode())
    return total.hexdigest()


def _hash_bytes(tensor: safetensors_files.StoredTensor) -> str:
    raw, digest = tensor.raw_bytes(), hashlib.sha256()
    for start in range(0, raw.size, _HASHED_AT_ONCE_BYTES):
        digest.update(raw[start : start + _HASHED_AT_ONCE_BYTES].data)
    return digest.hexdigest()
