"""Tokenising by all processes of a job: each its part of the rows, joined under the key that they have in any case.

Every process writes its part beside the key's folder. When all are there process 0 joins them and takes them away, and
all read the whole from there. What comes of it does not depend on how many they were, to the byte.
Not here: the key, and a process alone (tokenised.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.tokenised_store import TokenisedStore
from zephyr_jax.peers import WAIT_SECONDS, Peers, comes_to_be_seen
from zephyr_jax.records import InputError, ReadReport

Encoded = TypeVar("Encoded", EncodedConversations, EncodedPairs)


def tokenise_together(
    records: list[Any],
    *,
    prepare: Callable[[list[Any], ReadReport, int], Encoded],
    num_workers: int,
    has_changed: Callable[[], bool],
    store: TokenisedStore,
    names: Sequence[str],
    kind: type[Encoded],
    report: ReadReport,
    replace: bool,
    name: str,
    peers: Peers,
) -> tuple[Encoded, str]:
    """Tokenises this process's part of the rows, and gives the rows of all.

    Args:
      records: the part; the parts of all processes, in their order, are all the rows.
      prepare: (rows, report of what is cut and dropped, worker processes) -> tokenised rows.
      num_workers: worker processes that the part is worth; shared with processes that run on the same CPUs.
      has_changed: whether a file is no longer what the key was made of.
      store: where the whole is kept.
      names: the sources.
      kind: what the rows are.
      report: of reading all rows; gets the counts of rows cut and dropped by all.
      replace: whether the store is damaged, and goes.
      name: what to call the rows.
      peers: the processes.

    Returns:
      The rows of all processes, and what was done in a line.

    Raises:
      InputError: the folder cannot be written, is not shared, or a file changed while it was read.
    """
    began = time.perf_counter()
    num_workers = max(1, num_workers // _num_on_same_cpus(peers))
    own_report = ReadReport()
    encoded = prepare(records, own_report, num_workers)
    if peers.any(f"{name}: changed?", has_changed()):
        raise InputError(f"{name}: a file changed while it was read; start again when it is whole")
    part = _part(store, peers.index, peers)
    try:
        part.write(encoded, own_report, names, replace=False)
    except OSError as error:
        raise InputError(f"{store.parent}: cannot be written ({error}); give another output_dir") from error
    seconds = time.perf_counter() - began
    done = peers.gather(
        f"{name}: tokenised",
        [len(records), len(encoded), own_report.dropped, own_report.cut],
        seconds=max(WAIT_SECONDS, 10 * seconds),
    )
    for _, _, dropped, cut in done:
        for reason, count in dropped.items():
            report.dropped[reason] = report.dropped.get(reason, 0) + count
        for reason, count in cut.items():
            report.count_cut(reason, count)
    num_records = [entry[0] for entry in done]
    if peers.is_first:
        whole = kind.join(_parts(store, num_records, names, kind, peers))
        if len(whole):
            store.write(whole, report, names, replace=replace)
        for index in range(peers.count):
            _part(store, index, peers).remove()
    seconds = time.perf_counter() - began
    said = (
        f"{name}: {sum(num_records)} rows in {seconds:.1f} s ({sum(num_records) / max(seconds, 1e-9):,.0f} rows/s), "
        f"tokenised by the {peers.count} processes of this job"
    )
    if not sum(entry[1] for entry in done):
        return kind.join(()), said
    peers.check_all_see(store.manifest)
    found = store.read(kind, names)
    assert found is not None  # it is seen
    return found[0], f"{said}; kept in {store.folder}"


def _part(store: TokenisedStore, index: int, peers: Peers) -> TokenisedStore:
    return TokenisedStore(store.parent, store.fields, part=f"{index}-of-{peers.count}")


def _parts(
    store: TokenisedStore, num_records: Sequence[int], names: Sequence[str], kind: type[Encoded], peers: Peers
) -> list[tuple[int, Encoded]]:
    """Every process's part, with the place of its first row among all."""
    parts = []
    for index in range(peers.count):
        part = _part(store, index, peers)
        found = part.read(kind, names) if comes_to_be_seen(part.manifest) else None
        if found is None:
            raise InputError(
                f"{part.folder}: written by {peers.name(index)}, and not seen by process 0; wanted a folder "
                "(output_dir) that all hosts share"
            )
        parts.append((sum(num_records[:index]), found[0]))
    return parts


def _num_on_same_cpus(peers: Peers) -> int:
    """How many processes, this one among them, have been given the same CPUs of the same host."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places = [[host, given] for host, given in zip(peers.hosts, peers.gather("CPUs", cpus), strict=True)]
    return places.count(places[peers.index])
