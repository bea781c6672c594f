"""The training runs that TRL and we both make: hyper-parameters only, and their names in a recipe. No torch, no jax."""

from __future__ import annotations

import dataclasses
from typing import Any

NUM_STEPS = 5
BATCH_SIZE = 4

# What is compared per step. `rewards/*` and `logps/*` are dDPO's.
DPO_METRICS = (
    "loss",
    "grad_norm",
    "learning_rate",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "num_tokens",
)
SFT_METRICS = ("loss", "grad_norm", "learning_rate", "num_tokens")
SFT_EXTRA_METRICS = ("mean_token_accuracy", "entropy")


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What a run of either stage is told; the defaults make the plain run of each stage."""

    name: str
    micro_batch_size: int = BATCH_SIZE
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup_ratio: float = 0.1
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def recipe_keys(self) -> dict[str, Any]:
        """The keys of the recipe's stage that say the same."""
        keys = dataclasses.asdict(self)
        del keys["name"]
        return keys | {"batch_size": BATCH_SIZE, "max_steps": NUM_STEPS, "shuffle": False, "log_every": 1}


@dataclasses.dataclass(frozen=True)
class DpoRun(TrainingRun):
    """A dDPO run; `loss` and `label_smoothing` are ours (TRL's names differ, see torch_side.py)."""

    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class SftRun(TrainingRun):
    """A dSFT run without packing."""

    loss_on: str = "assistant"


# Losses, optimizers and schedules do not meet each other in the code, so five runs meet all of them.
DPO_RUNS = (
    DpoRun("sigmoid"),
    DpoRun("accumulated", micro_batch_size=2),
    DpoRun("hinge_cosine_long_warmup", loss="hinge", schedule="cosine", warmup_ratio=0.5, beta=0.5),
    DpoRun("ipo_constant_decayed", loss="ipo", beta=0.5, schedule="constant", warmup_ratio=0.0, weight_decay=20.0),
    DpoRun("smoothed_rmsprop_clipped", label_smoothing=0.1, optimizer="rmsprop", learning_rate=1e-4, max_grad_norm=0.1),
)
SFT_RUNS = (
    SftRun("all_tokens", loss_on="all"),
    SftRun("assistant_accumulated", micro_batch_size=1, schedule="cosine"),
)


def differences(ours: list[dict[str, float]], theirs: list[dict[str, float]], metrics: tuple[str, ...]) -> list[str]:
    """Where two runs differ by more than the tolerance, a line each; empty where they agree.

    The tolerance is 1e-3 of their value, plus 1e-4 for rewards, which are differences of large sums. The accuracy is
    left out while the policy is the reference: whether a margin of 0 comes out above 0 is a matter of the last bit.
    """
    if len(ours) != len(theirs):
        return [f"{len(ours)} steps, wanted {len(theirs)}"]
    found = []
    moved = False
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True), start=1):
        for name in metrics:
            if name == "rewards/accuracies" and not moved:
                continue
            tolerance = 1e-3 * abs(their[name]) + (1e-4 if name.startswith("rewards/") else 1e-12)
            if not abs(our[name] - their[name]) <= tolerance:
                found.append(f"step {step}, {name}: {our[name]!r}, wanted {their[name]!r}")
        moved = moved or their["learning_rate"] > 0  # the learning rate of the first step of a warm-up is 0
    return found
