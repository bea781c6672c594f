"""Self-instruct: each filter is counted, the rows are what dsft takes, and nothing hangs on order or time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.judging.stub_server import Body, StubServer, digest
from zephyr_jax.data.sources import parse_conversation
from zephyr_jax.feedback_recipe import load_feedback_recipe
from zephyr_jax.judging.instructions import bare_task
from zephyr_jax.judging.protocol import Reply
from zephyr_jax.stages.aif import describe_feedback, run_feedback

pytest.importorskip("openai", reason="the extra [feedback] is not installed")
pytest.importorskip("datasketch", reason="the extra [feedback] is not installed")

WORDS = "amber birch cedar dune ember fjord grove heath inlet jetty knoll lagoon marsh oasis prairie ridge".split()


def _text(body: Body, num_words: int = 12) -> str:
    draw = random.Random(digest(body))
    return " ".join(draw.choice(WORDS) for _ in range(num_words)).capitalize() + "."


def _teacher(body: Body) -> str:
    """Writes tasks of random words, one in eight of each kind of bad one; refuses one in six answers."""
    last = body["messages"][-1]["content"]
    if "Write one question or task about" in last:
        return f'New task: "{_text(body)}"'
    if "Rewrite it so that" in last:
        bad = [
            "Too short.",
            "lower case " + _text(body),
            "As an AI language model, I write tasks.",
            "Same text in all.",
        ]
        return (bad + [_text(body)] * 4)[digest(body) % 8]
    if "what the person says next" in last:
        return f"Person: {_text(body, 5)}"
    return "I'm sorry, but I cannot help with that." if digest(body) % 6 == 0 else f"Answer: {_text(body, 20)}"


def _recipe(folder: Path, url: str, *overrides: str):
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: written
output_dir: {folder / "runs"}
models:
  teacher: {{base_url: {url}, model: big, retry_seconds: 0.01, concurrency: 8}}
teacher: teacher
instructions: {{num_drafts: 40, max_turns: 3}}
""")
    return load_feedback_recipe(path, overrides)


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs/written/aif/instructions.jsonl").read_text().splitlines()]


def test_each_filter_is_counted_and_the_rows_are_chats(tmp_path: Path) -> None:
    with StubServer(answer=_teacher) as server:
        counts = run_feedback(_recipe(tmp_path, server.url))["instructions"]
        tasks = [body["messages"][-1]["content"] for body in server.bodies]
    rows = _rows(tmp_path)
    left_out = counts["left_out"]
    for reason in ("too short", "casing", "refusal or 'as an AI'", "near-duplicate"):
        assert left_out[f"task: {reason}"] >= 1
    assert counts["tasks"] == 40 - sum(count for reason, count in left_out.items() if reason.startswith("task:"))
    assert counts["dialogues"] == counts["tasks"] - left_out["dialogue: answer refusal or 'as an AI'"] == len(rows)
    assert left_out["later turn: answer refusal or 'as an AI'"] >= 1
    assert sum("Rewrite it so that" in task for task in tasks) == 40 and "New task:" not in "".join(
        task for task in tasks if "Rewrite" in task
    )
    for row in rows:
        messages = parse_conversation(row, "x").messages
        assert all("Person:" not in message["content"] and "sorry" not in message["content"] for message in messages)
        assert row["prompt"] == messages[0]["content"] and len(row["prompt_id"]) == 64
    assert {2, 4} <= {len(row["messages"]) for row in rows} <= {2, 4, 6}


@pytest.mark.parametrize(
    ("said", "task"),
    [
        ('New task: "Name a river."', "Name a river."),
        ("**Rewritten Task:** Name a river.", "Name a river."),
        ("**Task 2**: Name a river.", "Name a river."),
        ("## Task:\nName a river.", "Name a river."),
        ("Sure! Here's a new task:\n\nName a river.", "Name a river."),
        ("Here is the rewritten question: Which river?", "Which river?"),
        ("Here is a message: 'Come.' Rewrite it politely.", "Here is a message: 'Come.' Rewrite it politely."),
        ("Here is what I did. Is it a task: yes or no?", "Here is what I did. Is it a task: yes or no?"),
        ("**Bold** words are which?", "**Bold** words are which?"),
        ("  ", None),
    ],
)
def test_a_task_is_taken_without_its_label(said: str, task: str | None) -> None:
    assert bare_task(Reply(said, "stop", 1, 1)) == task
    assert bare_task(Reply(said, "length", 1, 1)) is None


def test_an_answer_that_is_cut_off_ends_the_dialogue_before_it(tmp_path: Path) -> None:
    def finish_reason(body: Body) -> str:
        is_later_answer = body["messages"][0]["role"] == "user" and len(body["messages"]) > 1
        return "length" if is_later_answer else "stop"

    with StubServer(answer=_text, finish_reason=finish_reason) as server:
        counts = run_feedback(_recipe(tmp_path, server.url, "instructions.num_drafts=6"))["instructions"]
    assert {len(row["messages"]) for row in _rows(tmp_path)} == {2} and counts["dialogues"] == 6
    assert counts["left_out"]["later turn: answer cut off"] >= 1


def test_concurrency_and_time_change_nothing(tmp_path: Path) -> None:
    files = []
    for number, concurrency in enumerate((1, 16)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with StubServer(answer=_teacher, latency=0.002 * number) as server:
            run_feedback(_recipe(folder, server.url, f"models.teacher.concurrency={concurrency}"))
        files.append((folder / "runs/written/aif/instructions.jsonl").read_bytes())
    assert files[0] == files[1] and files[0]


def test_what_was_written_is_what_the_students_are_asked(tmp_path: Path) -> None:
    overrides = ["instructions.num_drafts=8", "completions={students: [teacher], per_prompt: 2}"]
    assert "completions" in describe_feedback(_recipe(tmp_path, "http://127.0.0.1:9/v1", *overrides))
    with StubServer(answer=_teacher) as server:
        summary = run_feedback(_recipe(tmp_path, server.url, *overrides))
    prompts = [row["prompt"] for row in _rows(tmp_path)]
    lines = (tmp_path / "runs/written/aif/completions.jsonl").read_text().splitlines()
    assert summary["completions"]["prompts"] == len(prompts)
    assert [json.loads(line)["instruction"] for line in lines] == prompts


def test_seeds_of_the_users_own_are_shown_to_the_teacher(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    rows = [{"topic": "harbours"}, *({"task": f"Describe harbour {number}."} for number in range(4))]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with StubServer(answer=_teacher) as server:
        run_feedback(_recipe(tmp_path, server.url, f"instructions.seeds={seeds}", "instructions.num_drafts=6"))
        asked = [body["messages"][-1]["content"] for body in server.bodies]
    written = [text for text in asked if "task about harbours that" in text]
    assert len(written) == 6 and all(text.count("Describe harbour") == 3 for text in written)


def test_the_estimate_is_of_all_drafts_as_dialogues_of_mean_length(tmp_path: Path) -> None:
    """40 drafts, written and refined: 80 calls; 40, 26 and 13 first, second and third answers, 39 questions between."""
    table = describe_feedback(_recipe(tmp_path, "http://127.0.0.1:9/v1"))
    line = next(line for line in table.splitlines() if line.startswith("instructions")).split()
    assert line[2] == str(80 + 40 + 26 + 13 + 39)
    assert line[4] == f"{80 * 60 + 79 * 300 + 39 * 60:,}"
