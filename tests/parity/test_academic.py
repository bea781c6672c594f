"""Academic tasks against lm-evaluation-harness's own task objects: the very requests, and the very scores."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm_eval: extra [parity]")
pytest.importorskip("sacrebleu", reason="needs all of lm_eval: extra [parity]")

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from tests.evaluation import academic_rows
from tests.evaluation.academic_rows import a_task
from zephyr_jax.evaluation.academic.items import Generated, Likelihood

pytestmark = pytest.mark.parity

SHOTS = [
    ("arc_easy", academic_rows.ARC, 0),
    ("arc_challenge", academic_rows.ARC, 3),
    ("hellaswag", academic_rows.HELLASWAG, 0),
    ("hellaswag", academic_rows.HELLASWAG, 2),
    ("mmlu_high_school_physics", academic_rows.MMLU[:8], 0),
    ("mmlu_high_school_physics", academic_rows.MMLU[:8], 2),
    ("mmlu_anatomy", academic_rows.MMLU[8:], 3),
    ("truthfulqa_mc1", academic_rows.TRUTHFULQA, 0),
    ("truthfulqa_mc2", academic_rows.TRUTHFULQA, 0),
    ("gsm8k", academic_rows.GSM8K, 0),
    ("gsm8k", academic_rows.GSM8K, 3),
]


@functools.cache
def _manager() -> TaskManager:
    return TaskManager()


def harness_task(name: str, rows: Sequence[Mapping[str, Any]], num_shots: int) -> Any:
    """The harness's task on these rows, the last four of them its examples."""
    parts = {"train": rows[-4:], "dev": rows[-4:], "validation": rows[:4], "test": rows[:4]}
    content = {part: datasets.Dataset.from_list([dict(row) for row in chosen]) for part, chosen in parts.items()}
    config = load_yaml(_manager().task_index[name].yaml_path)
    task = ConfigurableTask(config=config | {"num_fewshot": num_shots, "custom_dataset": lambda **options: content})
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return task


def our_task(folder: Any, name: str, rows: Sequence[Mapping[str, Any]], num_shots: int) -> Any:
    options = {"fewshot": rows[-4:]} if num_shots else {}
    return a_task(folder, "mmlu" if name.startswith("mmlu") else name, rows[:4], shots=num_shots, **options)


@pytest.mark.parametrize(("name", "rows", "num_shots"), SHOTS, ids=[f"{name}-{shots}" for name, _, shots in SHOTS])
def test_requests_and_scores_equal_the_harness(name, rows, num_shots, tmp_path) -> None:
    theirs, ours = harness_task(name, rows, num_shots), our_task(tmp_path, name, rows, num_shots)
    rng = random.Random(0)
    assert len(ours.items) == 4
    for number, item in enumerate(ours.items):
        instances = [instance for instance in theirs.instances if instance.doc_id == number]
        if name == "gsm8k":
            (instance,) = instances
            assert item.prompt == instance.args[0] and list(item.until) == instance.args[1]["until"]
            continue
        assert item.requests() == [instance.args for instance in instances]
        for _ in range(5):
            likelihoods = [Likelihood(-10 * rng.random(), False, 1) for _ in instances]
            scores = ours.scores(item, likelihoods)
            wanted = theirs.process_results(theirs.eval_docs[number], [value[:2] for value in likelihoods])
            names = {"mc1": "acc", "mc2": "acc"}
            assert scores == pytest.approx({name: wanted[names.get(name, name)] for name in scores}, abs=1e-12)


GSM8K_ANSWERS = (
    "so #### 1,000.",
    "#### 1000\n\n",
    "The answer is $1,000.",
    "1000 it is, #### 999 and 1000",
    "####1000",
    "It is .5 or -1000",
    "#### -1,000 then #### 1000",
    "",
    "no number",
    "A: 1000.",
    "$",
    "we find 1000 , . and",
)


def test_sums_are_read_as_the_harness_reads_them(tmp_path) -> None:
    theirs, ours = harness_task("gsm8k", academic_rows.GSM8K, 0), our_task(tmp_path, "gsm8k", academic_rows.GSM8K, 0)
    for answer in GSM8K_ANSWERS:
        for instance in theirs.instances:
            instance.resps = [answer]
        theirs.apply_filters()
        for item, instance in zip(ours.items, theirs.instances, strict=True):
            wanted = {
                name: theirs.process_results(instance.doc, [response])["exact_match"]
                for name, response in instance.filtered_resps.items()
            }
            assert ours.scores(item, Generated(answer, 1, "stop")) == wanted, answer


def test_the_preamble_is_read_from_the_installed_harness(tmp_path) -> None:
    task = our_task(tmp_path, "truthfulqa_mc2", academic_rows.TRUTHFULQA, 0)
    assert "lm_eval" in task.notes[0] and task.items[0].context.count("Q: ") == 7


INSTRUCTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("keywords:existence", {"keywords": ["stone", "leaf"]}, "A Stone and a leaflet."),
    ("keywords:frequency", {"keyword": " stone", "relation": "less than", "frequency": 2}, "stones, STONE"),
    ("keywords:forbidden_words", {"forbidden_words": ["leaf"]}, "A leaflet, a Leaf"),
    ("keywords:letter_frequency", {"letter": "S", "let_relation": "at least", "let_frequency": 3}, "Sssh"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***\n"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 4}, "it's well-done"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "One.\n\n'Then, two.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b c]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p. p.s. yes"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "P. S. yes"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n**c**"),
    ("detectable_format:constrained_response", {}, "My answer is no. Or so."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 3}, "*a* **b** * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 x\nPart2 y"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```'),
    ("detectable_format:title", {}, "<<a>>\nb"),
    ("combination:two_responses", {}, "a\n******\nb"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say so."}, " say SO. So."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'It is "the end."'),
    ("startend:quotation", {}, '"so"'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 4},
        "I SAW NASA'S X-RAY",
    ),
    ("change_case:english_capital", {}, "THIS IS ALL IN CAPITAL LETTERS AND IN ENGLISH."),
    ("change_case:english_lowercase", {}, "this is all in small letters, and it is english."),
    ("language:response_language", {"language": "de"}, "Das ist ein deutscher Satz, und noch einer."),
    ("punctuation:no_comma", {}, "No, no"),
]


@pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in ("langdetect", "nltk", "immutabledict")),
    reason="needs langdetect, nltk and immutabledict: lm_eval[ifeval]",
)
def test_instructions_are_checked_as_the_harness_checks_them(tmp_path, monkeypatch) -> None:
    """All but sentences, which it counts with a model that has to be fetched."""
    import langdetect
    import nltk

    monkeypatch.setattr(nltk.data, "find", lambda *names, **options: "")
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    from lm_eval.tasks.ifeval.utils import process_results

    monkeypatch.setattr(nltk, "word_tokenize", nltk.tokenize.NLTKWordTokenizer().tokenize)
    edits = (
        lambda text: text,
        lambda text: f"Sure:\n{text}",
        lambda text: text + " and more",
        lambda text: f"{text}\n\nBye.",
        str.upper,
        str.lower,
        lambda text: f"**{text}**",
        lambda text: text[: len(text) // 2],
        lambda text: "",
    )
    rows = [
        {"key": 0, "prompt": "?", "instruction_id_list": [name, "punctuation:no_comma"], "kwargs": [values, {}]}
        for name, values, _ in INSTRUCTIONS
    ]
    task = a_task(tmp_path, "ifeval", rows)
    for item, row, (name, _, answer) in zip(task.items, rows, INSTRUCTIONS, strict=True):
        for edit in edits:
            scores = task.scores(item, Generated(edit(answer), 1, "stop"))
            wanted = process_results(row, [edit(answer)])
            wanted = {key: tuple(value) if isinstance(value, list) else value for key, value in wanted.items()}
            assert scores == wanted, (name, edit(answer))
