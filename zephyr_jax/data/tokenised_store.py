"""Tokenised rows on disk under a key of their content: output_dir/tokenised/KEY/, an Arrow file mapped into memory.

    manifest.json   what the key is made of, the hashes of the files beside it, and counts for people
    rows.arrow      a row a dialogue: row, ids, is_target; or a pair: row, parts (prompt, chosen, rejected)
    left_out.json   the report: rows that could not be read, were dropped or cut, and why

A folder appears whole or not at all, and may be deleted at any time. Not here: what the key is made of (tokenised.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.records import BadRow, ReadReport

_MANIFEST, _ROWS, _LEFT_OUT = "manifest.json", "rows.arrow", "left_out.json"
_PARTIAL = ".partial-"
_ABANDONED_SECONDS = 24 * 3600.0


class DamagedStoreError(Exception):
    """The folder of a key does not hold what was written there."""


@dataclasses.dataclass(frozen=True)
class TokenisedStore:
    """A place on disk for one data set's tokenised rows.

    Attributes:
      parent: the folder of all keys.
      fields: what the rows depend on, by name; JSON.
      part: "3-of-8" for the part of the rows that one of several processes has made; None: all of them.
    """

    parent: Path
    fields: Mapping[str, Any]
    part: str | None = None

    @property
    def folder(self) -> Path:
        """Named by the first 16 hex digits of the sha256 of the fields; a part is swept up like what a kill leaves."""
        key = hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:16]
        return self.parent / (key if self.part is None else f"{key}{_PARTIAL}{self.part}")

    @property
    def manifest(self) -> Path:
        """There when the rest is."""
        return self.folder / _MANIFEST

    def read(
        self, kind: type[EncodedConversations] | type[EncodedPairs], names: Sequence[str]
    ) -> tuple[Any, ReadReport] | None:
        """The rows and their report, or None where there are none.

        Args:
          kind: what the rows are.
          names: the sources as they are called now; bad rows are located in them.

        Raises:
          DamagedStoreError: a file is missing, or not what was written.
        """
        if not self.folder.exists():
            return None
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            if manifest["fields"] != self.fields:
                raise DamagedStoreError("its manifest is of other rows")
            for name, digest in manifest["sha256"].items():
                if _sha256(self.folder / name) != digest:
                    raise DamagedStoreError(f"{name} is not what was written")
            left_out = json.loads((self.folder / _LEFT_OUT).read_text(encoding="utf-8"))
            encoded = _read_arrow(self.folder / _ROWS, kind)
            report = ReadReport(
                num_rows=left_out["num_rows"],
                bad_rows=[BadRow(f"{names[place]}:{line}", reason) for place, line, reason in left_out["bad_rows"]],
                dropped=left_out["reasons_dropped"],
                cut=left_out["reasons_cut"],
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedStoreError(f"{type(error).__name__}: {error}") from error
        return dataclasses.replace(encoded, dropped=dict(left_out["dropped"])), report

    def write(
        self, encoded: EncodedConversations | EncodedPairs, report: ReadReport, names: Sequence[str], *, replace: bool
    ) -> None:
        """Keeps the rows: into a folder beside the final one, which is then renamed.

        Args:
          encoded: the rows.
          report: theirs, complete.
          names: the sources.
          replace: whether what is there is damaged, and goes. Else, what another process has written first stays.

        Raises:
          OSError: the disk is full, or may not be written.
        """
        self.parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        temporary = self._fresh()
        temporary.mkdir()
        try:
            _write_arrow(temporary / _ROWS, encoded)
            bad_rows = []
            for bad in report.bad_rows:  # a key knows no paths: `file:line` becomes the source's place and the line
                name, _, line = bad.location.rpartition(":")
                bad_rows.append([list(names).index(name), line, bad.reason])
            left_out = {
                "num_rows": report.num_rows,
                "bad_rows": bad_rows,
                "dropped": sorted(encoded.dropped.items()),
                "reasons_dropped": report.dropped,
                "reasons_cut": report.cut,
            }
            (temporary / _LEFT_OUT).write_text(json.dumps(left_out, ensure_ascii=False), encoding="utf-8")
            manifest = {
                "fields": self.fields,
                "report": report.as_dict(),  # for people, as the next two and the sources: nothing is read from them
                "kept": len(encoded),
                "tokens": len(encoded.ids),
                "made_from": list(names),
                "sha256": {name: _sha256(temporary / name) for name in (_ROWS, _LEFT_OUT)},
            }
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (temporary / _MANIFEST).write_text(text + "\n", encoding="utf-8")
            if replace:
                damaged = self._fresh()
                with contextlib.suppress(FileNotFoundError):  # another process may have been quicker
                    os.rename(self.folder, damaged)
                shutil.rmtree(damaged, ignore_errors=True)
            try:
                os.rename(temporary, self.folder)
            except OSError:
                if not self.folder.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove(self) -> None:
        """Takes the rows away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _fresh(self) -> Path:
        return self.parent / f"{self.folder.name}{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}"

    def _sweep(self) -> None:
        """Removes what killed processes have left; a younger folder may be another's who is at work."""
        for folder in self.parent.glob(f"*{_PARTIAL}*"):
            try:
                if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:
                continue


def _write_arrow(path: Path, encoded: EncodedConversations | EncodedPairs) -> None:
    import pyarrow as pa

    rows = pa.array(encoded.rows)
    if isinstance(encoded, EncodedConversations):
        offsets = pa.array(encoded.offsets)
        # Arrow's own booleans are bits, which cannot be mapped as NumPy's.
        is_target = pa.array(encoded.is_target.view(np.uint8))
        columns = {
            "row": rows,
            "ids": pa.LargeListArray.from_arrays(offsets, pa.array(encoded.ids)),
            "is_target": pa.LargeListArray.from_arrays(offsets, is_target),
        }
    else:
        parts = pa.LargeListArray.from_arrays(pa.array(encoded.offsets), pa.array(encoded.ids))
        columns = {"row": rows, "parts": pa.FixedSizeListArray.from_arrays(parts, 3)}
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _read_arrow(path: Path, kind: type[EncodedConversations] | type[EncodedPairs]) -> Any:
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    rows = batch.column("row").to_numpy()
    if kind is EncodedPairs:
        parts = batch.column("parts").values
        return EncodedPairs(ids=parts.values.to_numpy(), offsets=parts.offsets.to_numpy(), rows=rows)
    ids, is_target = batch.column("ids"), batch.column("is_target")
    return EncodedConversations(
        ids=ids.values.to_numpy(),
        is_target=is_target.values.to_numpy().view(np.bool_),
        offsets=ids.offsets.to_numpy(),
        rows=rows,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
