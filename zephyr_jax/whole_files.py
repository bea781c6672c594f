"""Files that are there whole or not at all: written under another name beside the final one, then renamed.

Whoever reads, or is killed, never meets half a file. Not here: what is written, and files that only grow.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def open_whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write, under a name of its own until the block ends; after an error nothing is left of it.

    Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes JSON's escape of it in a text.

    Args:
      path: the file; one that is there is replaced.
      mode: "w" for UTF-8 text, "wb" for bytes.

    Raises:
      OSError: it cannot be written.
    """
    # A name that no other process takes: two runs may write the same file of a store that they share.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with partial.open(mode, encoding=encoding, errors=errors) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file, indented; see `open_whole`."""
    with open_whole(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
