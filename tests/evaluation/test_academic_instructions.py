"""IFEval's checks on answers that follow and answers that do not, and its strict and loose scores."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.academic_rows import a_task
from zephyr_jax.evaluation.academic.instruction_checks import CHECKS, NEED_LANGUAGE
from zephyr_jax.evaluation.academic.items import Generated
from zephyr_jax.evaluation.academic.text_units import count_capital_words, count_sentences, count_words

FIRST_WORD = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}
# Instruction, its values, an answer that follows, one that does not.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["stone", "leaf"]}, "A leaflet, Stones", "a stone"),
    ("keywords:frequency", {"keyword": " stone ", "relation": "at least", "frequency": 2}, "Stones, stone", "stone"),
    ("keywords:frequency", {"keyword": "stone", "relation": "less than", "frequency": 2}, "stone", "stone stone"),
    ("keywords:forbidden_words", {"forbidden_words": ["leaf"]}, "leaflets", "a Leaf"),
    ("keywords:letter_frequency", {"letter": "S", "let_relation": "less than", "let_frequency": 3}, "Ss", "sSs"),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "at least", "let_frequency": 2}, "##", "#"),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "Go on. Stop!",
        "Go? On. Stop",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***\n", "one *** *** two"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 4}, "it's well-done", "it's well"),
    ("length_constraints:nth_paragraph_first_word", FIRST_WORD, "One.\n\n'Then, two.", "One.\n\nTwo then."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b c]", "[a\nb] [c]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "So.\np. s. yes", "PS yes"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P. P.S", "P.S. yes"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b\n**c**", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 x Day2", "Day 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<a poem>>\nb", "<< >>\n<b>"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say so."}, " say SO. So.", "So. Say so."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'It is "the end."', "The end. Or not."),
    ("startend:quotation", {}, ' "so" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 3},
        "I SEE X-RAYS",
        "I SEE x-rays",
    ),
    ("change_case:english_capital", {}, "THIS IS AN ENGLISH SENTENCE.", "This is an English sentence."),
    ("change_case:english_lowercase", {}, "this is an english sentence.", "This is an English sentence."),
    ("language:response_language", {"language": "de"}, "Das ist ein deutscher Satz.", "This is an English one."),
    ("punctuation:no_comma", {}, "No and no", "No, no"),
]


def _check(name: str, values: dict[str, Any], answer: str) -> bool:
    return bool(CHECKS[name][0](answer, values))


@pytest.mark.parametrize(("name", "values", "follows", "fails"), CASES, ids=[case[0] for case in CASES])
def test_an_instruction_is_followed_or_not(name: str, values: dict[str, Any], follows: str, fails: str) -> None:
    if name in NEED_LANGUAGE:
        pytest.importorskip("langdetect", reason="needs langdetect: extra [ifeval]")
    assert set(CHECKS[name][1]) <= set(values)
    assert _check(name, values, follows) and not _check(name, values, fails)


def test_all_25_instructions_are_checked_here() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS) and len(CHECKS) == 25


def _row(*instructions: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    names, values = zip(*instructions, strict=True)
    return {"key": 1, "prompt": "Write.", "instruction_id_list": names, "kwargs": values}


def test_an_answer_is_followed_loosely_without_its_first_or_last_line(tmp_path: Path) -> None:
    """Without the first line the quotation holds; the comma stays whatever is left out."""
    row = _row(("startend:quotation", {}), ("punctuation:no_comma", {}), ("detectable_format:title", {}))
    task = a_task(tmp_path, "ifeval", [row])
    scores = task.scores(task.items[0], Generated('Sure, so:\n"one, <<two>>"', 1, "stop"))
    assert scores == {
        "prompt_level_strict_acc": 0,
        "inst_level_strict_acc": (0, 0, 1),
        "prompt_level_loose_acc": 0,
        "inst_level_loose_acc": (1, 0, 1),
    }
    assert task.scores(task.items[0], Generated(" \n", 1, "stop"))["inst_level_loose_acc"] == (0, 0, 0)


def test_without_langdetect_a_language_has_no_score_and_neither_has_its_prompt(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    row = _row(("language:response_language", {"language": "de"}), ("punctuation:no_comma", {}))
    task = a_task(tmp_path, "ifeval", [row])
    scores = task.scores(task.items[0], Generated("So", 1, "stop"))
    assert scores["inst_level_strict_acc"] == (None, 1) and scores["prompt_level_strict_acc"] is None


@pytest.mark.parametrize(
    ("text", "sentences", "words", "capitals"),
    [
        ("", 0, 0, 0),
        ("One line\n\nof text", 1, 4, 0),
        ("Mr. Fox met J. R. Smith. They spoke!", 2, 8, 2),
        ('He said "Go." Then he went (e.g. home).', 2, 9, 0),
        ("It cost 3.50 etc. and more. Why? Because.", 3, 9, 0),
        ("NASA'S AND/OR AT&T, I CANNOT.", 1, 8, 8),
        ("Wait... what? No... Yes.", 3, 4, 0),
    ],
)
def test_sentences_and_words_are_counted(text: str, sentences: int, words: int, capitals: int) -> None:
    """In the sixth: NASA, 'S, AND/OR, AT, T, I, CAN, NOT."""
    assert (count_sentences(text), count_words(text), count_capital_words(text)) == (sentences, words, capitals)


def test_every_published_prompt_is_read(zephyr_data: Path, tmp_path: Path) -> None:
    lines = (zephyr_data / "academic" / "ifeval_input_data.jsonl").read_text(encoding="utf-8").splitlines()
    task = a_task(tmp_path, "ifeval", [json.loads(line) for line in lines])
    assert len(task.items) == 541 and sum(len(item.row["instructions"]) for item in task.items) == 834
