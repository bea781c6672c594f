"""Tasks put to a model that is made up: kept as it comes, never asked twice, scored, and two models compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.academic_rows import ARC, GSM8K, MMLU, a_task
from zephyr_jax.evaluation.academic.asking import ask_tasks
from zephyr_jax.evaluation.academic.blocks import academic_block
from zephyr_jax.evaluation.academic.items import Generated, Likelihood, PromptItem
from zephyr_jax.evaluation.academic.results import academic_results
from zephyr_jax.evaluation.academic.samples import SampleFile
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.records import InputError
from zephyr_jax.reporting.blocks import Block, blocks_text

SAMPLING = Sampling(resamples=500)


class MadeUp:
    """Finds the letter or text that it likes the likeliest; answers sums with one number; stops after `most` items."""

    def __init__(self, name: str, likes: str, most: int | None = None):
        self.name, self.likes, self.most, self.num_asked = name, likes, most, 0

    def fingerprint(self) -> Mapping[str, Any]:
        return {"likes": self.likes}

    def load(self) -> None:
        assert self.num_asked == 0

    def _count(self, number: int) -> None:
        self.num_asked += number
        if self.most is not None and self.num_asked > self.most:
            raise KeyboardInterrupt

    def loglikelihoods(self, requests: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Likelihood]]:
        for index in reversed(range(len(requests))):
            self._count(1)
            yield index, Likelihood(-1.0 if requests[index][1].strip() == self.likes else -2.0, False, 1)

    def generate(self, items: Sequence[PromptItem]) -> Iterator[tuple[int, Generated]]:
        for index, _ in enumerate(items):
            self._count(1)
            yield index, Generated(f"#### {self.likes}", 3, "stop")


def test_a_stopped_run_goes_on_without_asking_again(tmp_path: Path) -> None:
    """Killed after 10 of 32 requests: two whole items are kept; the line that was torn is forgotten."""
    task = a_task(tmp_path, "arc_easy", ARC)
    with pytest.raises(KeyboardInterrupt):
        ask_tasks(MadeUp("m", "fall", most=10), [task], folder=tmp_path / "academic")
    partial = tmp_path / "academic" / "m" / "arc_easy-0shot.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 2
    partial.write_text(partial.read_text() + '{"key": "tor')
    again = MadeUp("m", "fall")
    (found,) = ask_tasks(again, [task], folder=tmp_path / "academic")
    assert again.num_asked == 24 and not partial.exists()
    (untouched,) = ask_tasks(MadeUp("m", "fall"), [task], folder=tmp_path / "other")
    assert found.samples.read_bytes() == untouched.samples.read_bytes()
    lines = [json.loads(line) for line in found.samples.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(8)) and lines[0]["scores"] == {"acc_norm": 0, "acc": 1}
    same = MadeUp("m", "fall")
    ask_tasks(same, [task], folder=tmp_path / "academic")
    assert same.num_asked == 0


def test_another_model_of_that_name_or_another_question_is_asked_anew(tmp_path: Path) -> None:
    folder = tmp_path / "academic"
    ask_tasks(MadeUp("m", "1000"), [a_task(tmp_path, "gsm8k", GSM8K[:4], shots=0)], folder=folder)
    longer, other = MadeUp("m", "1000"), MadeUp("m", "1001")
    ask_tasks(longer, [a_task(tmp_path, "gsm8k", GSM8K[:6], shots=0)], folder=folder)
    (found,) = ask_tasks(other, [a_task(tmp_path, "gsm8k", GSM8K[:6], shots=0)], folder=folder)
    assert (longer.num_asked, other.num_asked) == (2, 6)
    results = academic_results([found], sampling=SAMPLING).as_dict()["tasks"][0]
    assert results["metrics"]["strict-match"]["score"] == pytest.approx(100 / 6)
    assert results["metric"] == "strict-match" and results["guessing"] is None


def test_a_task_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    task = a_task(tmp_path, "arc_easy", ARC)
    SampleFile(tmp_path, task, model="m", fingerprint={})  # let go when it is collected
    held = SampleFile(tmp_path, task, model="m", fingerprint={})
    with pytest.raises(InputError, match="another run is writing these answers"):
        SampleFile(tmp_path, task, model="m", fingerprint={})
    held.close()


def test_models_are_compared_on_the_same_items_and_noise_is_called_so(tmp_path: Path) -> None:
    """A always right on 8 of 32 (each letter is right so often) as B is; C is A under another name: no difference."""
    rows = [row | {"answer": 0 if number < 12 else 1} for number, row in enumerate(MMLU)]
    models = [MadeUp("likes-A", "A"), MadeUp("likes-B", "B"), MadeUp("twin", "A")]
    task = a_task(tmp_path, "mmlu", rows)
    answered = [found for model in models for found in ask_tasks(model, [task], folder=tmp_path / "academic")]
    results = academic_results(answered, sampling=SAMPLING)
    assert [score.estimate.mean for score in results.scores] == [75, 25, 75]
    first = results.scores[0]
    assert first.guessing == 25 and not first.within_noise_of_guessing and results.scores[1].within_noise_of_guessing
    assert {name: found.mean for name, found in first.groups.items()} == {"anatomy": 50, "high_school_physics": 100}
    differences = {(found.first, found.second): found for _, found in results.comparisons}
    assert differences["likes-A", "twin"].within_noise and differences["likes-A", "twin"].difference.mean == 0
    assert differences["likes-A", "likes-B"].difference.mean == 50
    block = academic_block(results, level=0.95)
    text = blocks_text([block])
    for wanted in (
        "| likes-A | mmlu | 0     | acc    | 75.00 |",
        "likes-B on mmlu is within noise of guessing (25.00 %)",
        "mmlu-0shot: likes-A and twin are within noise of each other",
    ):
        assert wanted in text, text
    assert Block.from_dict(json.loads(json.dumps(block.as_dict()))).tiles == {
        "mmlu, acc: likes-A": "75.00 %",
        "mmlu, acc: likes-B": "25.00 %",
        "mmlu, acc: twin": "75.00 %",
    }


def test_a_difference_on_a_few_items_that_are_all_alike_is_not_certain(tmp_path: Path) -> None:
    """Four of four the one way: the interval of the difference is not 100 to 100."""
    task = a_task(tmp_path, "mmlu", [row | {"answer": 0} for row in MMLU[:4]])
    models = [MadeUp("likes-A", "A"), MadeUp("likes-B", "B")]
    answered = [found for model in models for found in ask_tasks(model, [task], folder=tmp_path / "academic")]
    ((_, comparison),) = academic_results(answered, sampling=SAMPLING).comparisons
    assert comparison.difference.mean == 100 and comparison.difference.low is not None
    assert comparison.difference.low < 50 and comparison.within_noise


def test_items_that_cannot_be_checked_are_counted_apart(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("zephyr_jax.evaluation.academic.ifeval.can_tell_languages", lambda: False)
    rows = [
        {"prompt": "?", "instruction_id_list": ["punctuation:no_comma", name], "kwargs": [{}, values]}
        for name, values in (("language:response_language", {"language": "de"}), ("startend:quotation", {}))
    ]
    answered = ask_tasks(MadeUp("m", "1"), [a_task(tmp_path, "ifeval", rows)], folder=tmp_path / "academic")
    results = academic_results(answered, sampling=SAMPLING)
    (score,) = results.scores
    assert score.num_unchecked == 1 and score.estimate.num_items == 1
    by_instruction = score.metrics["inst_level_strict_acc"]
    assert by_instruction.mean == pytest.approx(200 / 3) and (by_instruction.num_items, by_instruction.num_groups) == (
        3,
        2,
    )
    assert "1 of 2 items of ifeval have no score" in blocks_text([academic_block(results, level=0.95)])
