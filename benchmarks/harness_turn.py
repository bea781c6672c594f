"""One turn of loglikelihood_vs_harness.py: the harness's requests to one model, in a process of its own; a JSON line.

The model is ours under the harness (zephyr_jax/evaluation/harness_model.py) or the harness's own Hugging Face model,
each made as its users make it. What is timed is `loglikelihood`, tokenising included, after a call that is not counted
(of the first requests on the peer's side, which compiles nothing; of all on ours).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lm_eval.api.instance import Instance

# Task -> its file, and what stands before a choice.
FILES = {"arc_easy": "arc_easy_test_subset.jsonl", "hellaswag": "hellaswag_val_subset.jsonl"}
WARM_UP = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", required=True, choices=["ours", "hf"])
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", required=True, type=Path, help="the folder of the tasks' files")
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", required=True, type=int, help="requests of a batch of the peer's")
    parser.add_argument("--limits", required=True, help="questions of each task: 100,60")
    arguments = parser.parse_args()
    model = open_model(arguments)
    result: dict[str, Any] = {"seconds": {}, "answers": {}, "accuracies": {}}
    for (task, file), limit in zip(FILES.items(), map(int, arguments.limits.split(",")), strict=True):
        lines = (arguments.data / file).read_text(encoding="utf-8").splitlines()[:limit]
        rows = [json.loads(line) for line in lines]
        requests = make_requests(rows)
        model.loglikelihood(requests if arguments.side == "ours" else requests[:WARM_UP], disable_tqdm=True)
        began = time.perf_counter()
        answers = model.loglikelihood(requests, disable_tqdm=True)
        result["seconds"][task] = round(time.perf_counter() - began, 3)
        result["answers"][task] = [log_prob for log_prob, _ in answers]
        result["accuracies"][task] = accuracies(rows, result["answers"][task])
    libraries = ("jax", "lm_eval") if arguments.side == "ours" else ("torch", "transformers", "lm_eval")
    result["versions"] = {name: importlib.metadata.version(name) for name in libraries}
    print(json.dumps(result))


def open_model(arguments: argparse.Namespace) -> Any:
    """Ours or the harness's own."""
    if arguments.side == "ours":
        from zephyr_jax.evaluation.harness_model import ZephyrLM

        return ZephyrLM(arguments.model, dtype=arguments.dtype)
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return HFLM(arguments.model, dtype=arguments.dtype, batch_size=arguments.batch_size, device="cpu")


def make_requests(rows: Sequence[Mapping[str, Any]]) -> list[Instance]:
    """Every choice of every question, a space before it, as the harness's tasks ask."""
    pairs = [(row["query"], f" {choice}") for row in rows for choice in row["choices"]]
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def accuracies(rows: Sequence[Mapping[str, Any]], log_probs: Sequence[float]) -> dict[str, float]:
    """acc and acc_norm: how often the right choice is the likeliest, as it is and by its characters."""
    right, start = {"acc": 0, "acc_norm": 0}, 0
    for row in rows:
        own = log_probs[start : start + len(row["choices"])]
        start += len(own)
        normed = [log_prob / len(choice) for log_prob, choice in zip(own, row["choices"], strict=True)]
        for name, values in (("acc", own), ("acc_norm", normed)):
            right[name] += max(range(len(own)), key=values.__getitem__) == row["gold"]
    return {name: count / len(rows) for name, count in right.items()}


if __name__ == "__main__":
    main()
