"""Overlap by words: what counts, what does not, and the same answer as a search over all pairs of n-grams."""

from __future__ import annotations

import random

import pytest

from zephyr_jax.data.decontamination import OverlapIndex, evaluation_texts, training_texts, words_of
from zephyr_jax.data.rows import RowError

# 16 different words, and 10 of them.
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
SHORT = "Who first flew over the sea in a balloon?"


def items(*texts):
    return [item for text in texts for item in evaluation_texts({"question": text}, "set.jsonl:1", file="set.jsonl")]


def overlaps(training, *texts, **options):
    row = {"messages": [{"role": "user", "content": training}]}
    return [(o.kind, o.share, o.words) for o in OverlapIndex(items(*texts), **options).overlaps(row)]


def some_words(first, last):
    return " ".join(LONG.split()[first - 1 : last])


@pytest.mark.parametrize("training", [LONG, LONG.upper(), f"  {LONG}!\n", LONG.replace(" ", ", ")])
def test_the_same_words_are_an_exact_overlap_whatever_their_case_and_punctuation(training) -> None:
    assert overlaps(training, LONG) == [("exact", 1.0, LONG)]


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    assert overlaps(f"Say {some_words(2, 14)} now", LONG) == [("n-gram", 13 / 16, some_words(2, 14))]
    assert overlaps(f"Say {some_words(2, 13)} now", LONG) == []
    assert overlaps(f"{some_words(1, 12)} and {some_words(4, 16)}", LONG) == [("n-gram", 13 / 16, some_words(4, 16))]
    assert overlaps(f"{some_words(1, 14)} and {some_words(4, 16)}", LONG) == [("n-gram", 1.0, LONG)]


def test_a_text_shorter_than_n_has_to_stand_whole_in_the_training_text() -> None:
    words = " ".join(words_of(SHORT))
    assert overlaps(f"I wonder: {SHORT} Do you know?", SHORT) == [("contained", 1.0, words)]
    assert overlaps("Who first flew over the sea in a plane?", SHORT) == []


def test_a_text_below_eight_words_has_to_be_the_whole_message() -> None:
    assert overlaps("Who invented it, and what is it for?", "What is it for?") == []
    assert overlaps("what is it for", "What is it for?") == [("exact", 1.0, "what is it for")]


def test_shorter_ngrams_find_more() -> None:
    assert overlaps(some_words(3, 10), LONG, ngram_words=8) == [("n-gram", 0.5, some_words(3, 10))]


def test_a_text_without_words_overlaps_with_nothing() -> None:
    assert overlaps("?!", "...") == []


def test_the_words_of_one_language_are_those_of_any_other() -> None:
    assert words_of("Größe: ½ ﬁne_Straße") == ("grösse", "1", "2", "fine", "strasse")


def test_in_scripts_without_spaces_each_character_is_a_word() -> None:
    """Without that a Chinese message is a single word, and nothing but the whole of it is ever found."""
    question = "请写一篇关于去夏威夷旅行的博客文章，重点介绍文化体验。"
    assert overlaps(f"你好！{question}谢谢。", question)[0][:2] == ("n-gram", 1.0)
    assert overlaps("请写一篇关于去巴黎旅行的博客文章。", question) == []
    assert words_of("カタカナ GPT4 と") == ("カ", "タ", "カ", "ナ", "gpt4", "と")


def test_random_texts_overlap_where_a_search_over_all_ngrams_says_so() -> None:
    """Words of an alphabet of three, so that repeats and overlapping matches abound."""
    draw = random.Random(0)

    def text(length):
        return " ".join(draw.choice("abc") for _ in range(length))

    evaluation = [text(draw.randrange(1, 16)) for _ in range(60)]
    index = OverlapIndex(items(*evaluation), ngram_words=9)
    num_found = 0
    for _ in range(200):
        training = text(draw.randrange(1, 60))
        expected = {}
        for place, other in enumerate(evaluation):
            words, span = other.split(), min(9, len(other.split()))
            starts = range(len(words) - span + 1) if span >= 8 else ()
            found = [s for s in starts if f" {' '.join(words[s : s + span])} " in f" {training} "]
            covered = {start + offset for start in found for offset in range(span)}
            if other == training or covered:
                expected[place] = 1.0 if other == training else len(covered) / len(words)
        by_text = [(o.evaluation.text, o.share) for o in index.overlaps({"prompt": training})]
        assert sorted(by_text) == sorted((evaluation[place], share) for place, share in expected.items())
        num_found += len(by_text)
    assert num_found > 20


def test_every_prompt_and_answer_of_a_row_is_looked_at_once() -> None:
    user, answer = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
    other = {"role": "assistant", "content": "B."}
    pair = {"prompt": "Q?", "chosen": [user, answer], "rejected": [user, other], "messages": [user, answer]}
    assert list(training_texts(pair)) == [
        ("prompt", "Q?"),
        ("messages[1].content", "A."),
        ("rejected[1].content", "B."),
    ]
    feedback = {"instruction": "Q?", "completions": [{"response": "A.", "critique": "Bad."}, {"response": "B."}]}
    assert [text for _, text in training_texts(feedback)] == ["Q?", "A.", "B."]
    argilla = {"instruction": "Q?", "chosen_response": "A.", "rejected_response": "B.", "source": "flan"}
    assert [text for _, text in training_texts(argilla)] == ["Q?", "A.", "B."]


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"question_id": 81, "category": "writing", "turns": ["First?", "Second."]}, ["First?", "Second."]),
        ({"instruction": "Do it.", "dataset": "koala"}, ["Do it."]),
        ({"question": "Why?", "choices": ["Because."], "answer": 0}, ["Why?"]),
        ({"prompt": "Write.", "key": 1000}, ["Write."]),
    ],
)
def test_the_questions_of_known_sets_are_found(row, texts) -> None:
    found = evaluation_texts(row, "set.jsonl:7", file="set.jsonl")
    assert [item.text for item in found] == texts
    assert {(item.file, item.location) for item in found} == {("set.jsonl", "set.jsonl:7")}


def test_the_frame_that_lm_eval_puts_around_a_question_is_no_part_of_it() -> None:
    (item,) = evaluation_texts({"query": "Question: Is ice cold?\nAnswer:"}, "x:1", file="x")
    assert item.words == ("is", "ice", "cold")


def test_named_columns_are_taken_in_place_of_the_known_ones() -> None:
    row = {"question": "Why?", "answer": "Because.", "choices": ["Yes.", None]}
    assert [item.text for item in evaluation_texts(row, "x:1", file="x", columns=["answer", "choices"])] == [
        "Because.",
        "Yes.",
    ]
    with pytest.raises(RowError, match="no text in gold"):
        evaluation_texts(row, "x:1", file="x", columns=["gold"])
