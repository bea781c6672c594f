"""Cutting and dropping: what is kept is a prefix of whole turns or a whole response, and every other row is counted."""

from __future__ import annotations

import types

import numpy as np
import pytest

from zephyr_jax.data import preparing
from zephyr_jax.data.preparing import cut_prompt, prepare_conversations, prepare_pairs
from zephyr_jax.records import Conversation, InputError, PreferencePair, ReadReport


class CharacterTokenizer:
    """One id per character; an assistant's turn is its characters and the end 0, all of them targets."""

    def encode_conversation(self, messages):
        ids, is_target, turn_ends = [1], [False], []
        for message in messages:
            answer = message["role"] == "assistant"
            new = [ord(c) for c in message["content"]] + ([0] if answer else [])
            ids += new
            is_target += [answer] * len(new)
            if answer:
                turn_ends.append(len(ids))
        return types.SimpleNamespace(
            ids=np.array(ids, np.int32), is_target=np.array(is_target, np.bool_), turn_ends=tuple(turn_ends)
        )

    def encode_pair(self, prompt_messages, chosen, rejected):
        def encode(text):
            return np.array([ord(c) for c in text], np.int32)

        prompt = "".join(message["content"] for message in prompt_messages)
        return types.SimpleNamespace(prompt=encode(prompt), chosen=encode(chosen), rejected=encode(rejected))


def dialogue(*texts):
    roles = ("user", "assistant")
    return Conversation(
        messages=tuple({"role": roles[turn % 2], "content": text} for turn, text in enumerate(texts)),
        prompt_id=None,
        location="file:1",
    )


def pair(prompt, chosen, rejected):
    return PreferencePair(({"role": "user", "content": prompt},), chosen, rejected, None, "file:1")


def prepare(conversations, *, max_length, loss_on="assistant"):
    report = ReadReport()
    dialogues = prepare_conversations(
        conversations, CharacterTokenizer(), max_length=max_length, loss_on=loss_on, report=report
    )
    return dialogues, report


def prepare_pair_rows(pairs, *, max_length=10, max_prompt_length=4, row_length=None):
    report = ReadReport()
    encoded = prepare_pairs(
        pairs,
        CharacterTokenizer(),
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        row_length=row_length,
        report=report,
    )
    return encoded, report


def test_a_long_dialogue_loses_whole_turns_and_keeps_its_end_token():
    """1 + 2 + (2 + 1) = 6 tokens to the first answer's end, + 2 + (3 + 1) = 12 to the second's."""
    dialogues, report = prepare([dialogue("ab", "cd", "ef", "ghi")], max_length=11)
    ids, is_target = dialogues[0]
    assert ids.tolist() == [1, *map(ord, "abcd"), 0]
    assert is_target.tolist() == [False, False, False, True, True, True]
    assert report.cut == {preparing.CUT_TURNS: 1} and report.dropped == {}


def test_a_dialogue_of_exactly_max_length_is_whole():
    dialogues, report = prepare([dialogue("ab", "cd", "ef", "ghi")], max_length=12)
    assert dialogues.lengths.tolist() == [12] and report.cut == {}


def test_a_dialogue_whose_first_answer_does_not_fit_is_dropped_and_counted():
    dialogues, report = prepare([dialogue("ab", "c" * 20), dialogue("a", "b")], max_length=8)
    assert dialogues.rows.tolist() == [1]
    assert dialogues.dropped == {0: preparing.DROPPED_LONG_DIALOGUE}
    assert report.dropped == {preparing.DROPPED_LONG_DIALOGUE: 1}


def test_loss_on_all_targets_every_token_but_the_first():
    dialogues, _ = prepare([dialogue("ab", "cd")], max_length=8, loss_on="all")
    assert dialogues[0][1].tolist() == [False, True, True, True, True, True]
    assert dialogues.num_targets.tolist() == [5]


def test_a_dialogue_without_targets_is_dropped_and_counted():
    dialogues, report = prepare([dialogue("ab"), dialogue("a", "b")], max_length=8)
    assert dialogues.rows.tolist() == [1] and report.dropped == {preparing.DROPPED_NO_TARGETS: 1}


def test_an_unknown_loss_on_is_refused():
    with pytest.raises(ValueError, match="loss_on: got 'user'"):
        prepare([], max_length=8, loss_on="user")


def test_no_usable_row_gives_empty_data_and_not_an_error():
    dialogues, _ = prepare([], max_length=8)
    pairs, _ = prepare_pair_rows([])
    assert len(dialogues) == len(pairs) == 0
    assert dialogues.lengths.tolist() == dialogues.num_targets.tolist() == [] and pairs.lengths.shape == (0, 3)


def test_kept_dialogues_equal_their_own_tokenisation():
    rng = np.random.default_rng(0)
    conversations = [
        dialogue(*("x" * int(rng.integers(1, 9)) for _ in range(2 * int(rng.integers(1, 4))))) for _ in range(50)
    ]
    dialogues, report = prepare(conversations, max_length=24)
    for index, row in enumerate(dialogues.rows):
        whole = CharacterTokenizer().encode_conversation(conversations[row].messages)
        ids, is_target = dialogues[index]
        assert len(ids) in (*whole.turn_ends, len(whole.ids)) and len(ids) <= 24
        np.testing.assert_array_equal(ids, whole.ids[: len(ids)])
        np.testing.assert_array_equal(is_target, whole.is_target[: len(ids)])
        assert dialogues.num_targets[index] == is_target.sum()
    assert len(dialogues) + len(dialogues.dropped) == 50 and sum(report.dropped.values()) == len(dialogues.dropped)
    assert not dialogues.ids.flags.writeable


def test_a_prompt_is_cut_only_where_it_and_the_longest_response_do_not_fit():
    prompt = np.arange(8)
    assert cut_prompt(prompt, 2, max_length=10, max_prompt_length=4).tolist() == list(range(8))
    assert cut_prompt(prompt, 3, max_length=10, max_prompt_length=4).tolist() == [4, 5, 6, 7]
    assert cut_prompt(prompt[:3], 9, max_length=10, max_prompt_length=4).tolist() == [0, 1, 2]


def test_pairs_are_cut_at_the_prompt_or_dropped_and_a_response_stays_whole():
    pairs = [
        pair("abcdefgh", "xy", "z"),  # 8 + 2 fit
        pair("abcdefgh", "z", "xyz"),  # 8 + 3 do not: the prompt keeps 4
        pair("abcdefgh", "x", "y" * 7),  # nor 4 + 7: dropped
        pair("abc", "", "y"),
        pair("", "x", "y"),
    ]
    encoded, report = prepare_pair_rows(pairs)
    assert encoded.rows.tolist() == [0, 1]
    assert encoded.lengths.tolist() == [[8, 2, 1], [4, 1, 3]]
    assert ["".join(map(chr, part)) for part in encoded[1]] == ["efgh", "z", "xyz"]
    assert report.cut == {preparing.CUT_PROMPT: 1}
    assert encoded.dropped == {
        2: preparing.DROPPED_LONG_PAIR,
        3: preparing.DROPPED_EMPTY_RESPONSE,
        4: preparing.DROPPED_EMPTY_PROMPT,
    }
    assert sum(report.dropped.values()) == 3


def test_a_pair_longer_than_a_packed_row_is_dropped_and_counted():
    """4 + 6 + 6 = 16 tokens: each response fits beside the prompt, both fit a row of 16 and not one of 15."""
    pairs = [pair("abcd", "x" * 6, "y" * 6)]
    assert len(prepare_pair_rows(pairs, row_length=16)[0]) == 1
    encoded, report = prepare_pair_rows(pairs, row_length=15)
    assert len(encoded) == 0 and report.dropped == {preparing.DROPPED_LONG_ROW: 1}


def test_the_fingerprint_changes_with_any_id_order_or_boundary():
    pairs = [pair("ab", "c", "de"), pair("ab", "cd", "e")]
    prints = {
        prepare_pair_rows(chosen)[0].fingerprint()
        for chosen in (pairs, pairs[::-1], pairs[:1], pairs[1:], [pair("ab", "x", "de"), pairs[1]])
    }
    assert len(prints) == 5
    assert prepare_pair_rows(pairs)[0].fingerprint() == prepare_pair_rows(list(pairs))[0].fingerprint()


def test_progress_shows_the_rate_on_stderr(capsys):
    prepare_conversations(
        [dialogue("a", "b")] * 3,
        CharacterTokenizer(),
        max_length=8,
        loss_on="all",
        report=ReadReport(),
        progress=True,
    )
    shown = capsys.readouterr()
    assert "3/3" in shown.err and "dialogues/s" in shown.err and shown.out == ""


def test_a_row_that_the_chat_template_refuses_is_dropped_and_counted():
    class Refusing:
        def encode_pair(self, prompt, chosen, rejected):
            raise InputError("template: no system messages")

    report = ReadReport()
    pair = PreferencePair(({"role": "user", "content": "q"},), "a", "b", None, "f:1")
    pairs = prepare_pairs([pair], Refusing(), max_length=9, max_prompt_length=4, row_length=None, report=report)
    assert len(pairs) == 0 and pairs.dropped == {0: "refused by the chat template: template: no system messages"}
    assert report.dropped == {"refused by the chat template": 1}
