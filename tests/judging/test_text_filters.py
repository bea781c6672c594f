"""What is left out of written tasks and answers, and what is not."""

from __future__ import annotations

import pytest

from zephyr_jax.judging.text_filters import NearDuplicates, has_wrong_casing, is_refusal, is_short


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I can tell you that rain falls.",
        "Well, I'm just a language model, but here you go.",
        "I\u2019m sorry, but I cannot help with that.",
        "I'm very sorry, I won't do this.",
        "I cannot assist with this request.",
        "Unfortunately, I am unable to open files.",
        "Nice question! I don't have personal opinions on that.",
        "I apologize, but this is beyond me.",
        "I'm unable to assist with that.",
        "I cannot and will not provide this.",
        "My training data ends in 2023.",
        "I do not have preferences.",
    ],
)
def test_refusals_and_talk_of_being_an_ai_are_seen(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Write 'I'm sorry that I was late' in a formal way.",
        "You cannot help it: water freezes at 0 degrees.",
        "An AI is a program that learns from examples.",
        "Sorry is what people say after a mistake.",
        "I have a plan for Sunday.",
        "How can I get better at my programming in Python?",
        "Explain how I should clean my training data.",
        "I don't have personal transport. How do I get to the coast?",
    ],
)
def test_texts_about_such_things_are_not(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("The sun rises. It sets.", False),
        ("the sun rises. It sets.", True),
        ("The sun rises. it sets.", True),
        ("One. Two. Three. four.", False),
        ("THE SUN RISES IN THE EAST", True),
        ("NASA", False),
        ("3.14 is pi, more or less.", False),
        ("Use this:\n```python\nprint('x'). y\n```", False),
        ("Call `foo`. Then stop.", False),
        ("Buy these:\n1. apples\n2. eggs\n3. milk", False),
        ("Put these words in order.\n\ndrank we a latte", False),
        ("a) It stops. b) It goes on.", False),
        ("Stop. and go on.", True),
        ("東京は日本の首都です。", False),
        ("", False),
    ],
)
def test_casing(text: str, wrong: bool) -> None:
    assert has_wrong_casing(text) is wrong


def test_words_are_counted() -> None:
    assert is_short("two words", min_words=3) and not is_short("now three words", min_words=3)


def test_near_duplicates_go_by_the_jaccard_index_of_word_triples() -> None:
    """Ten words have 8 triples; another last word changes one of them: 7 / 9 = 0.78."""
    pytest.importorskip("datasketch", reason="the extra [feedback] is not installed")
    text = "Explain to a child why the moon changes its shape"
    other = "Explain to a child why the moon changes its colour"
    for threshold, is_new in ((0.7, False), (0.85, True)):
        duplicates = NearDuplicates(threshold)
        assert duplicates.is_new(text) and not duplicates.is_new(text.upper() + "!")
        assert duplicates.is_new(other) is is_new
        assert duplicates.is_new("Plan a rainy Sunday afternoon in a city for two adults")
        assert duplicates.is_new("Why?") and not duplicates.is_new("why")
