"""Published scores to stand beside ours: facts with their sources, no data of the benchmarks.

A score of MT-Bench moves by 0.16 to 0.2 when GPT-4 judges the same answers again, and GPT-4 itself has changed since:
small differences to these mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_PAPER = "arXiv:2310.16944"
_CARD = "model card of HuggingFaceH4/zephyr-7b-beta"
_PER_CATEGORY = "leaderboard_data.jsonl of huggingface.co/spaces/allenai/URIAL-Bench"


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedBench:
    """A published MT-Bench score.

    Attributes:
      model: its name.
      score: the mean of all gradings.
      source: where it stands.
      categories: category -> score; empty where they are not published as numbers.
    """

    model: str
    score: float
    source: str
    categories: Mapping[str, float] = dataclasses.field(default_factory=dict)


MT_BENCH = (
    PublishedBench(
        "GPT-4", 8.990625, _PER_CATEGORY,
        {"writing": 9.65, "roleplay": 8.9, "reasoning": 9.0, "math": 6.8, "coding": 8.55, "extraction": 9.375,
         "stem": 9.7, "humanities": 9.95},
    ),
    PublishedBench(
        "GPT-3.5-turbo", 7.94375, _PER_CATEGORY,
        {"writing": 9.2, "roleplay": 8.4, "reasoning": 5.65, "math": 6.3, "coding": 6.9, "extraction": 8.85,
         "stem": 8.7, "humanities": 9.55},
    ),
    PublishedBench("Zephyr-7B", 7.34, _CARD),
    PublishedBench("Llama-2-Chat 70B", 6.86, _CARD),
    PublishedBench("Mistral-7B-Instruct v0.1", 6.84, _CARD),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedTask:
    """A published score of an academic task.

    Attributes:
      model: its name.
      task, shots, metric: as in a recipe.
      score: in percent.
      source: where it stands.
    """

    model: str
    task: str
    shots: int
    metric: str
    score: float
    source: str


ACADEMIC = (
    PublishedTask("Zephyr-7B", "arc_challenge", 25, "acc_norm", 62.03, _PAPER),
    PublishedTask("Zephyr-7B", "hellaswag", 10, "acc_norm", 84.52, _PAPER),
    PublishedTask("Zephyr-7B", "mmlu", 5, "acc", 61.44, _PAPER),
    PublishedTask("Zephyr-7B", "truthfulqa_mc2", 0, "mc2", 57.44, _PAPER),
)
