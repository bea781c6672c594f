"""From a recipe's sources to tokenised rows: found on disk where they have been made before, else made and kept.

The key is made of content: the rows, the tokenizer, the template, the lengths; no path, no date, no training option.
Sources that are files are known by the hash of their bytes, so that a warm start reads no row at all; of others
(`hf:`, `tfds:`, `builtin:`) the rows are read and hashed. What was done, and how fast, is said on stderr.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tqdm import tqdm

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.preparing import conversation_workers, pair_workers, prepare_conversations, prepare_pairs
from zephyr_jax.data.sources import is_file, read_conversations, read_pairs, show_bad_rows
from zephyr_jax.data.tokenised_parts import tokenise_together
from zephyr_jax.data.tokenised_store import DamagedStoreError, TokenisedStore
from zephyr_jax.peers import ALONE, Peers, comes_to_be_seen
from zephyr_jax.records import Conversation, InputError, PreferencePair, ReadReport

if TYPE_CHECKING:
    from zephyr_jax.data.chat import ChatTokenizer
    from zephyr_jax.recipe import Source

# Raise when a change to reading, validating, cutting or keeping gives other rows or another report for the same bytes.
_FORMAT = 1

Record = TypeVar("Record", Conversation, PreferencePair)
Encoded = TypeVar("Encoded", EncodedConversations, EncodedPairs)


@dataclasses.dataclass(frozen=True)
class TokenisedRows(Generic[Record, Encoded]):
    """A data set ready for batches.

    Attributes:
      encoded: the rows kept, tokenised.
      report: what was read, cut and dropped; the same whether the rows were made or found.
      records: the validated rows, where they were asked for; else None.
    """

    encoded: Encoded
    report: ReadReport
    records: list[Record] | None


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Where tokenised rows are kept, and whether new ones are: a dry run keeps none."""

    folder: Path
    writes: bool = True


def load_conversations(
    sources: Sequence[Source],
    tokenizer: ChatTokenizer,
    *,
    name: str,
    keeping: Keeping,
    seed: int,
    max_bad_rows: float,
    max_length: int,
    loss_on: str,
    wants_records: bool,
    peers: Peers = ALONE,
) -> TokenisedRows[Conversation, EncodedConversations]:
    """Dialogues, tokenised and cut to fit: found, or made and kept.

    Args:
      sources: where from, as of `read_conversations`.
      tokenizer: as of `prepare_conversations`.
      name: what to call the rows in messages: "dsft train".
      keeping: where tokenised rows lie.
      seed: as of `read_conversations`.
      max_bad_rows: as of `read_conversations`.
      max_length: as of `prepare_conversations`.
      loss_on: as of `prepare_conversations`.
      wants_records: whether the validated rows are needed too.
      peers: the processes that share the work, all of which call this and get all the rows.

    Raises:
      InputError: as of `read_conversations`; with several processes also where their files differ or cannot be shared.
    """
    making = _Making(
        kind=EncodedConversations,
        read=lambda readers, on_part: read_conversations(
            sources, seed=seed, max_bad_rows=max_bad_rows, progress=True, peers=readers, on_part=on_part
        ),
        prepare=lambda rows, report, num_workers: prepare_conversations(
            rows,
            tokenizer,
            max_length=max_length,
            loss_on=loss_on,
            report=report,
            progress=True,
            num_workers=num_workers,
        ),
        content=lambda row: row.messages,
        num_workers=conversation_workers,
        options={"max_length": max_length, "loss_on": loss_on},
    )
    return _load(making, sources, tokenizer, name, keeping, seed, max_bad_rows, wants_records, peers)


def load_pairs(
    sources: Sequence[Source],
    tokenizer: ChatTokenizer,
    *,
    name: str,
    keeping: Keeping,
    seed: int,
    max_bad_rows: float,
    max_length: int,
    max_prompt_length: int,
    row_length: int | None,
    wants_records: bool,
    peers: Peers = ALONE,
) -> TokenisedRows[PreferencePair, EncodedPairs]:
    """Preference pairs, tokenised and cut to fit; arguments as of `load_conversations` and `prepare_pairs`."""
    options: dict[str, Any] = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "row_length": row_length,
    }
    making = _Making(
        kind=EncodedPairs,
        read=lambda readers, on_part: read_pairs(
            sources, seed=seed, max_bad_rows=max_bad_rows, progress=True, peers=readers, on_part=on_part
        ),
        prepare=lambda rows, report, num_workers: prepare_pairs(
            rows, tokenizer, report=report, progress=True, num_workers=num_workers, **options
        ),
        content=lambda row: (row.prompt, row.chosen, row.rejected),
        num_workers=pair_workers,
        options=options,
    )
    return _load(making, sources, tokenizer, name, keeping, seed, max_bad_rows, wants_records, peers)


@dataclasses.dataclass(frozen=True)
class _Making(Generic[Record, Encoded]):
    """What differs between dialogues and pairs."""

    kind: type[Encoded]
    read: Callable[[Peers, Callable[[Sequence[Record]], None]], tuple[list[Record], ReadReport]]
    prepare: Callable[[list[Record], ReadReport, int], Encoded]
    content: Callable[[Record], Any]
    num_workers: Callable[[Sequence[Record]], int]
    options: dict[str, Any]


def _load(
    making: _Making[Record, Encoded],
    sources: Sequence[Source],
    tokenizer: ChatTokenizer,
    name: str,
    keeping: Keeping,
    seed: int,
    max_bad_rows: float,
    wants_records: bool,
    peers: Peers,
) -> TokenisedRows[Record, Encoded]:
    names = [source.source for source in sources]
    # A template that asks for the date writes another text tomorrow.
    is_kept = "strftime_now" not in tokenizer.template_text
    # Rows that go from process to process do so by the folder where they are kept.
    workers = peers if is_kept else ALONE
    readers = ALONE if wants_records else workers
    read: tuple[list[Record], ReadReport] | None = None
    digests: list[str] = []
    content: Any = _file_content(sources, seed)
    peers.check_same(f"{name}: the hashes of the files", content)
    if content is None or wants_records:
        read = making.read(readers, lambda rows: digests.append(_digest(map(making.content, rows))))
    if content is None:
        digests = [digest for part in readers.gather(f"{name}: the hashes of the rows", digests) for digest in part]
        content = {"sources": len(sources), "rows": _digest(digests)}
    began = time.perf_counter()
    fields = {"format": _FORMAT, "kind": making.kind.__name__, **making.options, "content": content}
    store = TokenisedStore(keeping.folder, fields | tokenizer_fields(tokenizer))
    found, damaged = _find(store, making.kind, names) if is_kept else (None, False)
    # Too many bad rows for this recipe: reading them says so.
    is_usable = found is not None and (read is not None or _share_of_bad_rows(found[1]) <= max_bad_rows)
    if peers.first_says(f"{name}: found?", lambda: is_usable):
        encoded, report = found or _find_what_process_0_has(store, making.kind, names)
        if read is None:
            show_bad_rows(report)
        else:
            read[1].dropped, read[1].cut = report.dropped, report.cut
            report = read[1]
        _say(f"{name}: {_rate(report.num_rows, time.perf_counter() - began)}, found tokenised in {store.folder}")
        return TokenisedRows(encoded, report, read[0] if read is not None and wants_records else None)
    records, report = read or making.read(readers, lambda rows: None)

    def has_changed() -> bool:
        return isinstance(content, list) and _file_content(sources, seed) != content

    if workers.count > 1:
        mine = records if readers.count > 1 else _own_share(records, workers)
        encoded, said = tokenise_together(
            mine,
            prepare=making.prepare,
            num_workers=making.num_workers(mine),
            has_changed=has_changed,
            store=store,
            names=names,
            kind=making.kind,
            report=report,
            replace=damaged,
            name=name,
            peers=workers,
        )
        _say(said)
        return TokenisedRows(encoded, report, records if wants_records else None)
    num_workers, began = making.num_workers(records), time.perf_counter()
    encoded = making.prepare(records, report, num_workers)
    processes = "1 process" if num_workers == 1 else f"{num_workers} processes"
    said = f"{name}: {_rate(len(records), time.perf_counter() - began)}, tokenised in {processes}"
    if not is_kept:
        said += "; not kept, since the chat template asks for the date"
    elif keeping.writes and has_changed():
        said += "; not kept, since a file changed while it was read"
    elif keeping.writes and len(encoded):
        said += _keep(store, encoded, report, names, replace=damaged)
    _say(said)
    return TokenisedRows(encoded, report, records if wants_records else None)


def _own_share(records: list[Record], peers: Peers) -> list[Record]:
    start, stop = (len(records) * number // peers.count for number in (peers.index, peers.index + 1))
    return records[start:stop]


def tokenizer_fields(tokenizer: ChatTokenizer) -> dict[str, str]:
    """What decides a row's ids: tokenizer, template, policies, and the libraries that carry them out."""
    libraries = {f"library {name}": importlib.metadata.version(name) for name in ("tokenizers", "jinja2")}
    return tokenizer.fingerprint() | libraries


def _file_content(sources: Sequence[Source], seed: int) -> list[dict[str, Any]] | None:
    """What decides the rows taken, where every source is a file that is there; else None."""
    content: list[dict[str, Any]] = []
    for place, source in enumerate(sources):
        path = Path(source.source)
        if not is_file(source.source) or not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # reading the rows says what is wrong
            return None
        entry = {"sha256": digest, "form": path.suffix.lower(), "fraction": source.fraction, "limit": source.limit}
        # Which rows a fraction takes hangs on the seed and on the source's place; a whole file does not.
        content.append(entry | ({"seed": seed, "place": place} if source.fraction < 1 else {}))
    return content or None


def _digest(rows: Iterable[Any]) -> str:
    """sha256 over the rows as JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _find_what_process_0_has(
    store: TokenisedStore, kind: type[Encoded], names: Sequence[str]
) -> tuple[Encoded, ReadReport]:
    """What another host may see a little later."""
    found = _find(store, kind, names)[0] if comes_to_be_seen(store.manifest) else None
    if found is None:
        raise InputError(
            f"{store.folder}: holds tokenised rows for process 0, and none that this process can see; wanted a folder "
            "(output_dir) that all hosts share"
        )
    return found


def _find(
    store: TokenisedStore, kind: type[Encoded], names: Sequence[str]
) -> tuple[tuple[Encoded, ReadReport] | None, bool]:
    """What is kept under the key, and whether it is damaged."""
    try:
        return store.read(kind, names), False
    except DamagedStoreError as error:
        _say(f"tokenised rows in {store.folder} are damaged ({error}): they are made anew")
        return None, True


def _keep(
    store: TokenisedStore,
    encoded: EncodedConversations | EncodedPairs,
    report: ReadReport,
    names: Sequence[str],
    *,
    replace: bool,
) -> str:
    try:
        store.write(encoded, report, names, replace=replace)
    except OSError as error:  # training goes on without
        return f"; not kept, since {store.parent} cannot be written ({error})"
    return f"; kept in {store.folder}"


def _share_of_bad_rows(report: ReadReport) -> float:
    return len(report.bad_rows) / report.num_rows


def _rate(num_rows: int, seconds: float) -> str:
    return f"{num_rows} rows in {seconds:.1f} s ({num_rows / max(seconds, 1e-9):,.0f} rows/s)"


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
