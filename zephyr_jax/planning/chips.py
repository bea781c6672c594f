"""The GPUs that can be planned for: what XLA must know to compile for one, and what its data sheet promises.

The peaks are NVIDIA's data sheets' for A100 and H100. Not here: making devices of them (machine.py).
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import re

# No target's name may be read as a device that is here: `cpu` is a smoke test of the planner itself.
CPU = "cpu"


@dataclasses.dataclass(frozen=True)
class Chip:
    """A GPU by its data sheet; peaks are dense, without sparsity.

    Attributes:
      name: as `--target` takes it.
      label: as people know it.
      peak_flops: FLOP/s of a matmul by compute dtype. float32 is TF32's: what JAX's default precision takes on it.
      link_bandwidth: bytes per second that NVLink moves in each direction, all links of a GPU together.
      device_kinds: how jax.Device.device_kind begins on chips with these peaks.
    """

    name: str
    label: str
    peak_flops: dict[str, float]
    link_bandwidth: float
    device_kinds: tuple[str, ...]

    @property
    def target_config(self) -> str:
        """The text proto (xla.GpuTargetConfigProto) that XLA compiles for."""
        folder = importlib.resources.files("zephyr_jax.planning") / "targets"
        return (folder / f"{self.name.replace('-', '_')}.txtpb").read_text(encoding="utf-8")

    @property
    def memory_bytes(self) -> int:
        """Device memory as the driver reports it."""
        found = re.search(r"^ +device_memory_size: (\d+)$", self.target_config, flags=re.MULTILINE)
        assert found is not None
        return int(found.group(1))


CHIPS = {
    chip.name: chip
    for chip in (
        # 108 SMs x 2048 FLOP a clock x 1.41 GHz
        Chip("a100-80gb", "A100 SXM 80 GB", {"bfloat16": 312e12, "float32": 156e12}, 300e9, ("NVIDIA A100-SXM4-80GB",)),
        Chip("a100-40gb", "A100 SXM 40 GB", {"bfloat16": 312e12, "float32": 156e12}, 300e9, ("NVIDIA A100-SXM4-40GB",)),
        # 132 SMs x 4096 FLOP a clock x 1.83 GHz
        Chip(
            "h100",
            "H100 SXM 80 GB",
            {"bfloat16": 989e12, "float32": 494e12},
            450e9,
            ("NVIDIA H100 80GB HBM3", "NVIDIA H200"),  # the same die at the same clock, with other memory
        ),
    )
}


def chip_at_hand(device_kind: str) -> Chip | None:
    """The chip that JAX names so, None where its peak is not known: bench then has no MFU to give."""
    return next((chip for chip in CHIPS.values() if device_kind.startswith(chip.device_kinds)), None)
