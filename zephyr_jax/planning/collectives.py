"""What a compiled program sends between devices, read out of its optimised HLO text.

Every collective with its kind, dtype, bytes, mesh axes and how often it runs: the loops around it times their turns.
Not here: which of them are needed (soundness.py), what they cost in time (estimate.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_DTYPE_BITS = re.compile(r"(?:bf|f|s|u|c)(\d+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*-> .* \{")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([a-z-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_Key = tuple[str, str, str, int, int]  # kind, dtype, axes, group size, rings
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A sort of collective in a program, all of its kind, dtype and axes together.

    Attributes:
      kind: one of KINDS.
      dtype: as HLO writes it: bf16, f32, s32, ...
      axes: the mesh axes that it goes over, joined by `+`; `devices` where these are not axes of the mesh.
      group_size: devices that take part together.
      num_rings: groups that leave a host side by side and share its network; 0: all stay within a host.
      count: how often it runs in a step.
      num_bytes: of a step, of the full buffer: what an all-gather gives, what a reduce-scatter or an all-reduce is
        given, what a device holds of an all-to-all or sends in a permute.
      largest_bytes: of the largest single one.
    """

    kind: str
    dtype: str
    axes: str
    group_size: int
    num_rings: int
    count: int
    num_bytes: int
    largest_bytes: int

    @property
    def crosses_hosts(self) -> bool:
        """Whether any group has devices of several hosts."""
        return self.num_rings > 0

    @property
    def wire_bytes(self) -> float:
        """What a device sends in a step where the devices of a group form a ring."""
        share = (self.group_size - 1) / self.group_size
        return self.num_bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of a program, and the loops around them whose turns the compiler does not tell (taken as one)."""

    collectives: tuple[Collective, ...]
    unknown_loops: int

    def num_bytes(self, kind: str) -> int:
        """Full-buffer bytes of a step in collectives of a kind."""
        return sum(collective.num_bytes for collective in self.collectives if collective.kind == kind)

    @property
    def wire_bytes(self) -> float:
        """What a device sends in a step."""
        return sum(collective.wire_bytes for collective in self.collectives)

    @property
    def crossing_bytes(self) -> float:
        """The part of it in rings that go over several hosts."""
        return sum(collective.wire_bytes for collective in self.collectives if collective.crosses_hosts)


def read_traffic(text: str, *, mesh_shape: Mapping[str, int], devices_per_host: int) -> Traffic:
    """Reads the collectives of a compiled program.

    Args:
      text: optimised HLO (`compiled.as_text()`).
      mesh_shape: sizes of the mesh's axes; device i of the program is the mesh's i-th in row-major order.
      devices_per_host: devices of a host, which are neighbours in that order.
    """
    computations, entry = _computations(text)
    times, unknown_loops = _times(computations, entry)
    axes_of_groups = _axes_of_groups(mesh_shape)
    counts: Counter[_Key] = Counter()
    sums: Counter[_Key] = Counter()
    largest: dict[_Key, int] = defaultdict(int)
    for name, lines in computations.items():
        for line in lines if times[name] else ():
            found = _INSTRUCTION.match(line)
            kind = found.group(2).removesuffix("-start") if found else ""
            if found is None or kind not in KINDS:
                continue
            groups = _groups(line, kind) or [list(range(math.prod(mesh_shape.values())))]
            size, axes = len(groups[0]), axes_of_groups.get(_canonical(groups), "devices")
            if size == 1:
                continue
            hosts = [{device // devices_per_host for device in group} for group in groups]
            leaving = Counter(host for group in hosts if len(group) > 1 for host in group)
            num_rings = max(leaving.values(), default=0)
            by_dtype = _result_bytes(found.group(1), is_start=found.group(2) != kind and kind != "all-reduce")
            for dtype, num_bytes in by_dtype.items():
                key = (kind, dtype, axes, size, num_rings)
                num_bytes *= size if kind == "reduce-scatter" else 1
                counts[key] += times[name]
                sums[key] += num_bytes * times[name]
                largest[key] = max(largest[key], num_bytes)
    ordered = sorted(sums, key=lambda key: -sums[key])
    return Traffic(tuple(Collective(*key, counts[key], sums[key], largest[key]) for key in ordered), unknown_loops)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by name, and the entry's name."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        found = _COMPUTATION.match(line)
        if found:
            name = found.group(2)
            computations[name] = []
            entry = name if found.group(1) else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _times(computations: Mapping[str, Sequence[str]], entry: str) -> tuple[Counter[str], int]:
    """How often each computation runs in a step, and the number of loops of unknown length on the way."""
    times: Counter[str] = Counter()
    unknown = 0

    def visit(name: str, factor: int) -> None:
        nonlocal unknown
        times[name] += factor
        for line in computations.get(name, ()):
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):  # each once: at most one of them runs
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            turns = 1
            if called and " while(" in line:
                known = _TURNS.search(line)
                unknown += known is None
                turns = int(known.group(1)) if known else 1
            for other in called:
                visit(other, factor * turns)

    visit(entry, 1)
    return times, unknown


def _result_bytes(result: str, *, is_start: bool) -> Counter[str]:
    """Bytes of an instruction's result by dtype; of an asynchronous start the second part, the first being operands."""
    if is_start:
        result = _tuple_parts(result)[1]
    sizes: Counter[str] = Counter()
    for dtype, dims in _ARRAY.findall(result):
        bits = _DTYPE_BITS.fullmatch(dtype)
        num_bits = int(bits.group(1)) if bits else 8  # pred, f8e4m3fn, ...
        sizes[dtype] += math.prod(int(dim) for dim in dims.split(",") if dim) * num_bits // 8
    return sizes


def _tuple_parts(text: str) -> list[str]:
    """`((a, b), c)` as `(a, b)` and `c`; commas inside brackets of any kind do not part."""
    parts, depth, start = [], 0, 1
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return parts


def _groups(line: str, kind: str) -> list[list[int]]:
    """The groups of devices that a collective goes over; [] is all devices together."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        return _listed(pairs.group(1) + "}") if pairs else []
    listed = re.search(r"replica_groups=\{(\{.*?\})?\}", line)
    if listed:
        return _listed(listed.group(1) or "")
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if iota:
        return _device_ids(iota.group(2)).reshape(_integers(iota.group(1))).tolist()
    axes = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*?)\}", line)
    assert axes is not None, f"replica groups of a form that is not known: {line.strip()[:300]}"
    return _mesh_groups(*axes.groups())


def _mesh_groups(axes: str, device_ids: str | None, grouped: str) -> list[list[int]]:
    """`'a'=2,'b'=8` and `'b'` as [[0, ..., 7], [8, ..., 15]]; `'b':(1)2` is the first 2 of b's 8 = 2 x 4."""
    sizes = dict(pair.split("=") for pair in axes.split(","))
    shape: list[int] = []
    taken: list[int] = []
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for reference in grouped.split(","):
        name, _, part = reference.partition(":")
        pre, size = re.match(r"\((\d+)\)(\d+)", part).groups() if part else (1, sizes[name])  # type: ignore[union-attr]
        wanted[name].append((int(pre), int(size)))
    for name, text in sizes.items():
        done = 1
        for pre, size in sorted(wanted.get(name, [])):
            shape += [pre // done, size]
            taken.append(len(shape) - 1)
            done = pre * size
        shape.append(int(text) // done)
    ids = _device_ids(device_ids) if device_ids else np.arange(math.prod(shape))
    group_size = math.prod(shape[axis] for axis in taken)
    kept = [axis for axis in range(len(shape)) if axis not in taken]
    return ids.reshape(shape).transpose(kept + taken).reshape(-1, group_size).tolist()


def _device_ids(text: str) -> np.ndarray:
    """`[2,8]T(1,0)` as 0 ... 15 in two rows of eight, transposed; `0,4,1,5` as it stands."""
    iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text)
    if iota is None:
        return np.array(_integers(text))
    dims, order = _integers(iota.group(1)), _integers(iota.group(2) or "")
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order) if order else ids


def _listed(text: str) -> list[list[int]]:
    return [_integers(group) for group in re.findall(r"\{([^{}]*)\}", text)]


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _canonical(groups: Sequence[Sequence[int]]) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(group) for group in groups)


def _axes_of_groups(mesh_shape: Mapping[str, int]) -> dict[frozenset[frozenset[int]], str]:
    """The groups of devices that each set of mesh axes makes, by name."""
    names = [name for name, size in mesh_shape.items() if size > 1]
    ids = np.arange(math.prod(mesh_shape.values())).reshape([mesh_shape[name] for name in names])
    found = {}
    for num in range(1, len(names) + 1):
        for taken in itertools.combinations(range(len(names)), num):
            kept = [axis for axis in range(len(names)) if axis not in taken]
            size = math.prod(mesh_shape[names[axis]] for axis in taken)
            groups = ids.transpose([*kept, *taken]).reshape(-1, size)
            found[_canonical(groups.tolist())] = "+".join(names[axis] for axis in taken)
    return found
