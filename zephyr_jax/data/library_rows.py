"""Rows through Hugging Face `datasets` (`hf:`) and TensorFlow Datasets (`tfds:`, without TensorFlow).

Both libraries are imported when such a source is opened, not before: it takes seconds. Their own errors come out as an
InputError that names the source and keeps the start of their text; `--debug` shows the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.data.row_source import LocatedRow, RowSource, brief, import_package, missing_package, plain_row
from zephyr_jax.records import BadRow, InputError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAVED_SPLITS, _SAVED_SPLIT = "dataset_dict.json", "state.json"  # what datasets.save_to_disk writes
_TFDS_INFO = "dataset_info.json"


def split_place(source: str) -> tuple[str, str]:
    """Cuts `KIND:PLACE:SPLIT` after its kind and at the last colon outside brackets.

    >>> split_place("hf:HuggingFaceH4/ultrachat_200k:train_sft[:1000]")
    ('HuggingFaceH4/ultrachat_200k', 'train_sft[:1000]')

    Raises:
      InputError: the place or the split is missing.
    """
    kind, _, rest = source.partition(":")
    depth = 0
    for end in range(len(rest) - 1, -1, -1):
        depth += (rest[end] == "]") - (rest[end] == "[")
        if rest[end] == ":" and depth == 0 and rest[:end].strip() and rest[end + 1 :].strip():
            return rest[:end].strip(), rest[end + 1 :].strip()
    raise InputError(
        f"source {source!r}: no split; wanted {kind}:PLACE:SPLIT, such as {kind}:{rest.strip(':') or 'PLACE'}:train"
    )


def open_hugging_face(source: str) -> RowSource:
    """Opens `hf:ORG/NAME:SPLIT` on the hub, or `hf:FOLDER:SPLIT` as `save_to_disk` wrote it (or holding data files).

    Args:
      source: the source; its split may be a slice or a sum of slices, as `datasets` takes them: `train[:10%]`.

    Raises:
      InputError: the package, the data set or the split is missing, or the hub cannot be reached.
    """
    place, split = split_place(source)
    folder = Path(place)
    if not folder.exists() and not _HUB_NAME.fullmatch(place):
        raise InputError(
            f"source {source!r}: no such folder: {place}; wanted a folder that is there, or ORG/NAME of the hub"
        )
    datasets = import_package("datasets", source, install="datasets")
    try:
        if any((folder / name).is_file() for name in (_SAVED_SPLITS, _SAVED_SPLIT)):
            rows = _saved_rows(datasets, folder, split)
        else:
            rows = datasets.load_dataset(place, split=split)
    except ConnectionError as error:
        raise InputError(
            f"source {source!r}: the hub cannot be reached: {brief(error)}; "
            "check the network, or give a folder or file that is here"
        ) from error
    except Exception as error:  # the library raises a dozen kinds of its own and of its file formats'
        raise InputError(f"source {source!r}: datasets cannot load it: {brief(error)}") from error

    def read(indices: Sequence[int]) -> Iterator[LocatedRow]:
        for index, row in zip(indices, rows.select(indices), strict=True):
            location = f"{source}:{index + 1}"
            yield location, plain_row(row, location)

    return _not_empty(RowSource(source, len(rows), read))


def _saved_rows(datasets: Any, folder: Path, split: str) -> Any:
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        # A data set saved without its splits has no name for them; `train` is what the library itself would call it.
        saved = {str(saved.split or "train"): saved}
    # An unknown split is a ValueError here, and its text lists those that exist.
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in saved.items()})
    return datasets.concatenate_datasets([saved[part.splitname].select(range(part.from_, part.to)) for part in parts])


def open_tfds(source: str) -> RowSource:
    """Opens `tfds:NAME:SPLIT` or `tfds:FOLDER:SPLIT` (the folder of one version) as a data source on ArrayRecord files.

    TensorFlow is not needed. Messages, which arrive as lists of bytes per field, are turned back into messages; a score
    that is not a number is null, since such a data set has no other way to say so.

    Args:
      source: the source; its split may be a slice: `train[:10%]`.

    Raises:
      InputError: the package, the data set or the split is missing, or the files are of another format.
    """
    place, split = split_place(source)
    folder = Path(place)
    if folder.is_dir() and not (folder / _TFDS_INFO).is_file():
        found = sorted(str(path.parent) for depth in (1, 2, 3) for path in folder.glob("*/" * depth + _TFDS_INFO))
        hint = f"; below it are {', '.join(found[:5])}" if found else ""
        raise InputError(f"source {source!r}: no {_TFDS_INFO} in {place}; wanted the folder of one version{hint}")
    tfds = import_package("tensorflow_datasets", source, install="tensorflow-datasets")
    import_package("array_record.python", source, install="array-record")
    try:
        if folder.is_dir():
            records = tfds.builder_from_directory(place).as_data_source(split)
        else:
            records = tfds.data_source(place, split=split)
    except ImportError as error:  # what preparing a data set by its name needs is not all in the library's requirements
        raise missing_package(error, source) from error
    except NotImplementedError as error:
        raise InputError(
            f"source {source!r}: is not stored as ArrayRecord: {brief(error)}; "
            "prepare it again with file_format='array_record'"
        ) from error
    except Exception as error:  # the library raises a dozen kinds of its own
        raise InputError(f"source {source!r}: tfds cannot load it: {brief(error)}") from error

    def read(indices: Sequence[int]) -> Iterator[LocatedRow]:
        for index in indices:
            location = f"{source}:{index + 1}"
            yield location, _null_for_nan(plain_row(records[int(index)], location))

    return _not_empty(RowSource(source, len(records), read))


def _null_for_nan(row: dict[str, Any] | BadRow) -> dict[str, Any] | BadRow:
    if isinstance(row, BadRow):
        return row
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _not_empty(opened: RowSource) -> RowSource:
    if not opened.num_rows:
        raise InputError(f"source {opened.name!r}: has no rows; wanted at least one")
    return opened
