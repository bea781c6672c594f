"""Which rows are dialogues, pairs and prompts, and the reasons for which the others are not."""

from __future__ import annotations

import pytest

from zephyr_jax.data.rows import RowError, pair_columns, parse_conversation, parse_pair, parse_prompt
from zephyr_jax.records import Conversation, PreferencePair

USER = {"role": "user", "content": "Which day follows Monday?"}
ASSISTANT = {"role": "assistant", "content": "Tuesday."}
WRONG = {"role": "assistant", "content": "Sunday."}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(content):
    return {"role": "user", "content": content}


def test_a_dialogue_keeps_its_text_id_and_place():
    row = {"messages": [SYSTEM, user("  Hi \n"), ASSISTANT], "prompt_id": "7", "source": "ignored"}
    conversation = parse_conversation(row, "chat.jsonl:3")
    assert conversation == Conversation((SYSTEM, user("  Hi \n"), ASSISTANT), "7", "chat.jsonl:3")


def test_a_dialogue_needs_neither_prompt_nor_id():
    assert parse_conversation({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "x:1").prompt_id is None


def test_extra_fields_of_a_message_are_left_out():
    row = {"messages": [{**USER, "weight": 1}, ASSISTANT]}
    assert parse_conversation(row, "x:1").messages == (USER, ASSISTANT)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "no column messages"),
        ("Hi", "messages is not a list of messages"),
        ([], "messages is empty"),
        (["Hi"], "a message of messages is not an object with role and content"),
        ([{"role": "user"}], "a message of messages is not an object with role and content"),
        ([{"role": "human", "content": "Hi"}, ASSISTANT], "a role in messages is none of system, user, assistant"),
        ([{"role": ["user"], "content": "Hi"}, ASSISTANT], "a role in messages is none of system, user, assistant"),
        ([user("Hi"), {"role": "assistant", "content": " \n"}], "a message of messages has no text"),
        ([user(None), ASSISTANT], "a message of messages has no text"),
        ([user(5), ASSISTANT], "a message of messages is not text"),
        ([user("\ud83d"), ASSISTANT], "a message of messages has half a surrogate pair"),
        ([SYSTEM], "messages has a system message only"),
        ([USER, SYSTEM, ASSISTANT], "messages has a system message after the first"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "messages has a system message after the first"),
        ([ASSISTANT], "messages starts with an assistant turn"),
        ([SYSTEM, ASSISTANT], "messages starts with an assistant turn"),
        ([USER, USER, ASSISTANT], "roles of messages do not alternate"),
        ([USER, ASSISTANT, ASSISTANT], "roles of messages do not alternate"),
        ([USER, ASSISTANT, USER], "messages ends with a user turn"),
    ],
)
def test_a_dialogue_that_cannot_be_used_says_why(messages, reason):
    with pytest.raises(RowError) as error:
        parse_conversation({"messages": messages}, "x:1")
    assert error.value.reason == reason


def test_the_prompt_of_a_pair_is_every_message_before_the_last():
    prompt = [SYSTEM, USER, ASSISTANT, user("And then?")]
    row = {"chosen": [*prompt, ASSISTANT], "rejected": [*prompt, WRONG], "score_chosen": 8, "score_rejected": None}
    pair = parse_pair({**row, "prompt": "ignored, since the lists hold it", "prompt_id": "p"}, "x:1")
    assert pair == PreferencePair(tuple(prompt), "Tuesday.", "Sunday.", "p", "x:1", 8.0, None)


@pytest.mark.parametrize("prompt", [USER["content"], [USER]])
def test_answers_may_be_plain_text_beside_a_prompt(prompt):
    pair = parse_pair({"prompt": prompt, "chosen": "Tuesday.", "rejected": "Sunday."}, "x:1")
    assert pair == PreferencePair((USER,), "Tuesday.", "Sunday.", None, "x:1")


def test_answers_may_be_single_messages_beside_a_prompt():
    pair = parse_pair({"prompt": [SYSTEM, USER], "chosen": [ASSISTANT], "rejected": [WRONG]}, "x:1")
    assert pair.prompt == (SYSTEM, USER) and (pair.chosen, pair.rejected) == ("Tuesday.", "Sunday.")


def test_argillas_first_columns_are_a_pair():
    row = {"instruction": USER["content"], "chosen_response": "Tuesday.", "rejected_response": "Sunday."}
    row |= {"source": "flan", "chosen_avg_rating": 4.5, "rejected_avg_rating": 2.0, "chosen_model": "gpt-4"}
    assert parse_pair(row, "x:1") == PreferencePair((USER,), "Tuesday.", "Sunday.", None, "x:1", 4.5, 2.0)


@pytest.mark.parametrize("dash", ["-", "_"])
def test_argillas_cleaned_columns_are_a_pair(dash):
    row = {"prompt": "Q?", "chosen": [USER, ASSISTANT], "rejected": [USER, WRONG], f"chosen{dash}model": "gpt-4"}
    row |= {f"chosen{dash}rating": 5.0, f"rejected{dash}rating": 3.75, f"rejected{dash}model": "alpaca-7b"}
    assert parse_pair(row, "x:1") == PreferencePair((USER,), "Tuesday.", "Sunday.", None, "x:1", 5.0, 3.75)
    named = pair_columns(row)
    assert (named["chosen_model"], named["rejected_model"]) == ("gpt-4", "alpaca-7b")


def test_a_row_in_the_usual_columns_is_not_renamed():
    row = {"chosen": "A.", "rejected": "B.", "prompt": "Q?", "instruction": "ignored", "score_chosen": 1}
    row["chosen_rating"] = 5
    assert pair_columns(row) is row


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"chosen": None}, "no column chosen"),
        ({"rejected": None}, "no column rejected"),
        ({"chosen": "Tuesday."}, "chosen and rejected are not both text or both message lists"),
        ({"chosen": 3}, "chosen is not a list of messages"),
        ({"rejected": [ASSISTANT]}, "rejected starts with an assistant turn"),
        ({"rejected": [user("Another?"), WRONG]}, "prompts of chosen and rejected differ"),
        ({"rejected": [SYSTEM, USER, WRONG]}, "prompts of chosen and rejected differ"),
        ({"rejected": [USER, ASSISTANT]}, "chosen equals rejected"),
        ({"rejected": [USER, WRONG, USER]}, "rejected ends with a user turn"),
        ({"rejected": [USER, WRONG, WRONG]}, "roles of rejected do not alternate"),
        ({"chosen": "Tuesday.", "rejected": "Sunday."}, "no prompt beside the answers"),
        ({"chosen": "Same.", "rejected": "Same.", "prompt": "Q?"}, "chosen equals rejected"),
        ({"chosen": "Tuesday.", "rejected": " ", "prompt": "Q?"}, "rejected has no text"),
        ({"chosen": "Tuesday.", "rejected": "No.", "prompt": " "}, "prompt has no text"),
        ({"chosen": "A.", "rejected": "B.", "prompt": [USER, ASSISTANT]}, "prompt does not end with a user turn"),
        ({"score_chosen": float("nan")}, "score_chosen is neither null nor a finite number"),
        ({"score_rejected": "8"}, "score_rejected is neither null nor a finite number"),
        ({"score_rejected": True}, "score_rejected is neither null nor a finite number"),
        ({"score_rejected": 10**400}, "score_rejected is neither null nor a finite number"),
    ],
)
def test_a_pair_that_cannot_be_used_says_why(changed, reason):
    row = {"chosen": [USER, ASSISTANT], "rejected": [USER, WRONG], **changed}
    with pytest.raises(RowError) as error:
        parse_pair(row, "x:1")
    assert error.value.reason == reason


def test_answers_that_differ_in_white_space_alone_are_a_pair():
    assert parse_pair({"prompt": "Q?", "chosen": "A.", "rejected": "A. "}, "x:1").rejected == "A. "


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi"}, (user("Hi"),)),
        ({"prompt": "Hi", "messages": None}, (user("Hi"),)),
        ({"prompt": "ignored", "messages": [SYSTEM, USER]}, (SYSTEM, USER)),
        ({"messages": [USER, ASSISTANT, USER]}, (USER, ASSISTANT, USER)),
    ],
)
def test_a_prompt_is_messages_or_one_user_turn(row, prompt):
    assert parse_prompt(row, "x:1") == prompt


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "Hi"}, "neither messages nor prompt"),
        ({"prompt": ""}, "prompt has no text"),
        ({"messages": [USER, ASSISTANT]}, "ends with an assistant turn, which leaves nothing to answer"),
    ],
)
def test_a_prompt_that_cannot_be_answered_says_why(row, reason):
    with pytest.raises(RowError) as error:
        parse_prompt(row, "x:1")
    assert error.value.reason == reason
