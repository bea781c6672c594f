"""Preference pairs by each published rule, against values by hand and against a second computation on real feedback."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json

import pytest

from zephyr_jax.data import sources
from zephyr_jax.data.binarisation import (
    RULES,
    BinarisationOptions,
    BinarisationReport,
    aspect_mean,
    binarise,
    repaired_overall_score,
)  # fmt: skip
from zephyr_jax.data.feedback_rows import ASPECTS, parse_feedback
from zephyr_jax.data.rows import parse_pair
from zephyr_jax.recipe import Source
from zephyr_jax.records import InputError, ScoredCompletion


def completion(ratings=(), overall=None, response="Yes.", model="m"):
    """An answer with the given ratings, in the order of ASPECTS; None is N/A."""
    return ScoredCompletion(model, response, dict(zip(ASPECTS, ratings, strict=False)), overall)


def feedback(*scores, instruction="Which day follows Monday?", overall=None):
    """A row of answers "A", "B", ... whose four aspects are all rated `scores[i]` (None: not rated at all)."""
    answers = [
        {
            "model": f"model-{letter}",
            "response": letter,
            "annotations": None if score is None else {aspect: {"Rating": str(score)} for aspect in ASPECTS},
            "overall_score": None if overall is None else overall[place],
        }
        for place, (letter, score) in enumerate(zip("ABCDEFG", scores, strict=False))
    ]
    return parse_feedback({"instruction": instruction, "completions": answers, "source": "flan"}, "x:1")


def pair_of(record, seed=0, **options):
    report = BinarisationReport()
    return binarise(record, BinarisationOptions(seed=seed, **options), report), report


def drawn(record, what="rejected", **options):
    """Which answers are drawn, over many prompts with the same scores."""
    letters = collections.Counter()
    for number in range(400):
        pair, _ = pair_of(feedback(*record, instruction=f"Question {number}?"), **options)
        letters[pair[what][-1]["content"] if pair else None] += 1
    return letters


def test_the_columns_are_those_of_ultrafeedback_binarized_and_the_provenance() -> None:
    pair, report = pair_of(feedback(2, 5), seed=42)
    user = {"role": "user", "content": "Which day follows Monday?"}
    chosen, rejected = ([user, {"role": "assistant", "content": letter}] for letter in "BA")
    assert pair == {
        "prompt": user["content"],
        "prompt_id": hashlib.sha256(user["content"].encode()).hexdigest(),
        "chosen": chosen, "rejected": rejected, "messages": chosen,
        "score_chosen": 5.0, "score_rejected": 2.0,
        "source": "flan", "chosen_model": "model-B", "rejected_model": "model-A",
        "chosen_index": 1, "rejected_index": 0, "rule": "best_vs_random", "score_kind": "aspect_mean",
    }  # fmt: skip
    read = parse_pair(pair, "pairs.jsonl:1")
    assert (read.chosen, read.rejected, read.score_chosen, read.score_rejected) == ("B", "A", 5.0, 2.0)
    assert report.num_pairs == 1


def test_the_mean_leaves_out_what_is_not_applicable_or_not_rated() -> None:
    assert aspect_mean(completion([5, None, 4])) == 4.5
    assert aspect_mean(completion([None])) is None and aspect_mean(completion()) is None


def test_the_paper_rejects_any_other_answer_with_even_odds() -> None:
    """400 draws of 3: each 133 on average, standard deviation 9.4."""
    letters = drawn((3, 5, 1, 2))
    assert set(letters) == {"A", "C", "D"} and all(100 < count < 170 for count in letters.values())


def test_best_against_worst_rejects_the_lowest() -> None:
    assert drawn((3, 5, 1, 2), rule="best_vs_worst") == {"C": 400}


def test_argillas_rule_rejects_lower_answers_only() -> None:
    """A ties with the best: the paper's rule may draw it and then has no pair, Argilla's draws among the lower two."""
    assert set(drawn((5, 5, 1, 2), rule="argilla")) == {"C", "D"}
    assert set(drawn((5, 5, 1, 2), rule="best_vs_random")) == {None, "C", "D"}


def test_a_tie_for_the_best_is_drawn_with_even_odds_and_counted() -> None:
    letters = drawn((5, 1, 5, 2), what="chosen", rule="argilla")
    assert set(letters) == {"A", "C"} and 150 < letters["A"] < 250
    assert pair_of(feedback(5, 1, 5, 2), rule="argilla")[1].num_tied_best == 1


def test_the_draw_of_the_best_does_not_steer_the_draw_of_the_other() -> None:
    """Both of one hash, a tied best that lost its draw would less often be the rejected one: 1/4 in place of 1/3."""
    tied = sum(
        pair is not None and pair["score_rejected"] == 5
        for number in range(600)
        for pair, _ in [pair_of(feedback(5, 5, 1, 2, instruction=f"Question {number}?"), keep_ties=True)]
    )
    assert 170 < tied < 230  # 200 on average, standard deviation 11.5


def test_a_pair_of_equal_scores_is_dropped_unless_ties_are_kept() -> None:
    for rule in RULES:
        record = feedback(4, 4, overall=[4, 4])
        pair, report = pair_of(record, rule=rule)
        assert pair is None and report.dropped == {"chosen and rejected tie": 1} and report.num_pairs == 0
        pair, report = pair_of(record, rule=rule, keep_ties=True)
        assert pair["score_chosen"] == pair["score_rejected"] == 4.0 and report.num_ties_kept == 1


def test_answers_without_score_or_text_take_no_part() -> None:
    record = feedback(None, 2, 4)
    pair, report = pair_of(record, rule="best_vs_worst")
    assert (pair["chosen_index"], pair["rejected_index"]) == (2, 1)
    assert report.num_completions == 3 and report.num_without_score == 1 and report.num_unrated == 4
    pair, report = pair_of(feedback(None, None, 4))
    assert pair is None and report.dropped == {"fewer than two answers with text and a score": 1}
    row = {
        "instruction": "Q?",
        "completions": [{"response": text, "overall_score": 5 + len(text)} for text in (" ", "no", "yes")],
    }
    pair, report = pair_of(parse_feedback(row, "x:1"), rule="buggy_overall_score")
    assert pair["rejected"][-1]["content"] == "no" and report.num_without_text == 1


def test_an_answer_that_says_the_same_as_the_best_is_never_rejected() -> None:
    row = {"instruction": "Q?", "completions": [{"response": "Yes.", "overall_score": score} for score in (9, 3)]}
    pair, report = pair_of(parse_feedback(row, "x:1"), score="overall_score")
    assert pair is None and report.dropped == {"no other answer differs from the best": 1}


def test_the_margin_drops_pairs_that_are_too_near() -> None:
    assert set(drawn((5, 4, 1, 3), margin=2)) == {None, "C", "D"}
    assert set(drawn((5, 4, 1, 3), rule="argilla", margin=2)) == {"C", "D"}
    _, report = pair_of(feedback(5, 4), margin=2, rule="argilla")
    assert report.dropped == {"scores differ by less than 2": 1}


def test_a_margin_of_one_is_met_by_means_of_thirds() -> None:
    """14/3 - 11/3 is 1; in floating point it may fall short of it."""
    ratings = {"instruction_following": (5, 4), "honesty": (5, 4), "truthfulness": (4, 3)}
    answers = [
        {"response": text, "annotations": {aspect: {"Rating": both[place]} for aspect, both in ratings.items()}}
        for place, text in enumerate(("good", "bad"))
    ]
    record = parse_feedback({"instruction": "Q?", "completions": answers}, "x:1")
    assert pair_of(record, margin=1)[0] is not None


@pytest.mark.parametrize(
    ("overall", "ratings", "repaired", "counted"),
    [
        (10, [1, 1, 2, 1], 1.0, "repaired"),
        (10, [2, 2, 2, None], 1.0, "repaired"),
        (10, [3, 2, 2, 2], None, "undecided"),
        (10, [4, 4, 4, 4], None, "undecided"),
        (10, [5, 4, 4, 4], 10.0, "kept"),
        (10, [], 10.0, "unchecked"),
        (9, [1, 1, 1, 1], 9.0, None),
        (None, [1, 1, 1, 1], None, None),
    ],
)
def test_a_ten_that_the_aspects_call_a_one_is_repaired(overall, ratings, repaired, counted) -> None:
    answer = completion(ratings, overall)
    assert repaired_overall_score(answer) == repaired
    report = BinarisationReport()
    report.count_completion(answer, repaired)
    assert {name: count for name, count in report.tens.items() if count} == ({counted: 1} if counted else {})


def test_the_bug_turns_the_worst_answer_into_the_chosen_one() -> None:
    record = feedback(1, 4, overall=[10, 8])
    assert pair_of(record, rule="buggy_overall_score")[0]["chosen_index"] == 0
    assert pair_of(record, rule="buggy_overall_score", score="overall_score")[0]["chosen_index"] == 1


def test_a_draw_depends_on_nothing_but_seed_prompt_and_answers() -> None:
    """The same answers in another order give the same pair of texts; another seed, for some prompt, gives another."""
    scores, letters = (5, 5, 2, 3), "ABCD"
    for number in range(20):
        pairs = set()
        for order in itertools.permutations(range(4)):
            row = {
                "instruction": f"Question {number}?",
                "completions": [{"response": letters[i], "overall_score": scores[i]} for i in order],
            }
            pair, _ = pair_of(parse_feedback(row, "x:1"), rule="argilla", score="overall_score", seed=3)
            pairs.add((pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]))
        assert len(pairs) == 1
    records = [feedback(*scores, instruction=f"Question {number}?") for number in range(20)]
    assert len({tuple(str(pair_of(record, seed=seed)[0]) for record in records) for seed in range(3)}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best_vs_wrost"}, "rule: got 'best_vs_wrost', wanted one of .*did you mean 'best_vs_worst'"),
        ({"score": "mean"}, "score: got 'mean', wanted one of aspect_mean, overall_score, buggy_overall_score"),
        ({"margin": -1}, "margin: got -1, wanted a number of 0 or more"),
        ({"margin": float("nan")}, "margin: got nan"),
        ({"margin": 1, "keep_ties": True}, "keep_ties: a tie has no margin"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        BinarisationOptions(seed=0, **options)


def test_counts_are_one_plain_object() -> None:
    _, report = pair_of(feedback(None, 4, 4))
    counts = json.loads(json.dumps(report.as_dict()))
    assert counts["dropped"] == {"chosen and rejected tie": 1} and counts["completions"] == 3
    assert counts["without_score"] == 1 and counts["tied_best"] == 1 and counts["unrated"] == 4


# Real feedback


def second_computation(row, seed, rule):
    """The same pair from the raw row, written without the package: (chosen index, rejected index), or a tie."""

    def place(purpose, index):
        text = row["completions"][index]["response"]
        prompt_id = hashlib.sha256(row["instruction"].encode()).hexdigest()
        return hashlib.sha256("\n".join([str(seed), purpose, prompt_id, text]).encode()).hexdigest()

    scores = [answer["overall_score"] for answer in row["completions"]]
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], place("chosen", index)))
    chosen = ranked[0]
    others = [i for i in ranked[1:] if row["completions"][i]["response"] != row["completions"][chosen]["response"]]
    if rule == "best_vs_worst":
        others = [i for i in others if scores[i] == min(scores[j] for j in others)]
    if rule == "argilla":
        others = [i for i in others if scores[i] < scores[chosen]] or others
    rejected = sorted(others, key=lambda index: place("rejected", index))[0]
    return "tie" if scores[rejected] == scores[chosen] else (chosen, rejected)


@pytest.mark.parametrize("rule", RULES)
def test_real_feedback_gives_the_pairs_of_a_second_computation(rule, zephyr_data) -> None:
    """No aspect is rated there and no overall score is null; every 10 is a real one, so the repair changes nothing."""
    file, seed = zephyr_data / "ultrafeedback_style.jsonl", 42
    records, read = sources.read_feedback([Source(source=str(file))], seed=seed, max_bad_rows=0)
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    score = None if rule == "buggy_overall_score" else "overall_score"
    options = BinarisationOptions(seed=seed, rule=rule, score=score)
    report = BinarisationReport(num_rows=read.num_rows, bad_rows=read.bad_rows)
    pairs = [binarise(record, options, report) for record in records]
    expected = [second_computation(row, seed, rule) for row in rows]
    assert [(p["chosen_index"], p["rejected_index"]) if p else "tie" for p in pairs] == expected
    num_tied_best = sum(
        sorted(scores)[-1] == sorted(scores)[-2]
        for scores in ([answer["overall_score"] for answer in row["completions"]] for row in rows)
    )
    num_ties = expected.count("tie")
    assert report.as_dict() == {
        "rows": 858, "unreadable": {}, "dropped": {"chosen and rejected tie": num_ties}, "pairs": 858 - num_ties,
        "completions": 3638, "without_text": 0, "without_score": 0, "not_applicable": 0, "unrated": 4 * 3638,
        "tied_best": num_tied_best, "ties_kept": 0,
        "tens": {"kept": 0, "unchecked": 70, "repaired": 0, "undecided": 0},
    }  # fmt: skip
    for row, pair in zip(rows, pairs, strict=True):
        if pair:
            assert parse_pair(pair, "x:1").prompt_id == hashlib.sha256(row["instruction"].encode()).hexdigest()
            assert pair["rejected_model"] == row["completions"][pair["rejected_index"]]["model"]


def test_real_feedback_without_ratings_has_no_mean_of_aspects(zephyr_data) -> None:
    source = Source(source=str(zephyr_data / "ultrafeedback_style.jsonl"), limit=50)
    records, _ = sources.read_feedback([source], seed=0, max_bad_rows=0)
    report = BinarisationReport()
    assert [binarise(record, BinarisationOptions(seed=0), report) for record in records] == [None] * 50
    assert report.dropped == {"fewer than two answers with text and a score": 50}
