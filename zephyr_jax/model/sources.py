"""Finds the weights that a user names: `model.weights` of a recipe, `--model` of a command."""

from __future__ import annotations

import re
from pathlib import Path

from zephyr_jax.model import builtin
from zephyr_jax.model.hf_weights import open_folder
from zephyr_jax.model.weight_source import WeightSource
from zephyr_jax.records import InputError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What a model needs of a repository; the PyTorch weights beside it would double the download.
_HUB_FILES = ("model*.safetensors", "*.json", "tokenizer.model", "*.jinja")


def open_weights(spec: str) -> WeightSource:
    """Opens a model's weights; nothing is loaded yet.

    Args:
      spec: a Hugging Face folder | a run's stage folder | hf:ORG/NAME | builtin:smollm2-135m-instruct

    Returns:
      The weights.

    Raises:
      InputError: when there is no such model, or it cannot be used.
    """
    if spec.startswith("builtin:"):
        if spec != builtin.SMOLLM2:
            raise InputError(f"no embedded model {spec!r}; there is {builtin.SMOLLM2}")
        return builtin.open_smollm2()
    if spec.startswith("hf:"):
        return open_folder(_download(spec))
    return open_folder(find_model_folder(Path(spec).expanduser()))


def find_model_folder(path: Path) -> Path:
    """The Hugging Face folder that a path means: itself, or `model/` of a run's stage folder.

    Raises:
      InputError: when there is none, with the folders that could have been meant.
    """
    if not path.exists():
        raise InputError(
            f"{path}: there is no such folder; wanted a Hugging Face folder, a run's stage folder (RUN/dsft), "
            f"hf:ORG/NAME or {builtin.SMOLLM2}"
        )
    if not path.is_dir():
        raise InputError(f"{path}: is a file; pass the folder that it lies in, with config.json and *.safetensors")
    if (path / "config.json").is_file():
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    stages = sorted(file.parent.parent for file in path.glob("*/model/config.json"))
    if stages:
        raise InputError(f"{path}: is a run; pass one of its stages: {', '.join(map(str, stages))}")
    if (path / "checkpoints").is_dir():
        raise InputError(
            f"{path}: this stage has checkpoints but no model/ yet, as it did not end; finish it with "
            "`python -m zephyr_jax.train`, or write a checkpoint with `python -m zephyr_jax.export`"
        )
    raise InputError(f"{path}: no config.json in it; wanted a Hugging Face folder (config.json, *.safetensors)")


def _download(spec: str) -> Path:
    """A model of the Hugging Face hub as a folder, from the local cache where it is there already."""
    name = spec.removeprefix("hf:")
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{spec!r}: wanted hf:ORG/NAME, as in hf:mistralai/Mistral-7B-v0.1")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # no network, no such model, no permission: its own classes and those of its transport
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{spec}: could not be fetched ({type(error).__name__}: {reason}); download the model where there is a "
            "network, and pass its folder"
        ) from error
