"""The command `decontaminate`: what it reports, what it leaves, and what it says to a mistake."""

from __future__ import annotations

import datetime
import decimal
import json
import re
from pathlib import Path

import pytest

from zephyr_jax import decontaminate

QUESTION = "Which day of the week comes after Monday and before Wednesday, if any does?"


def chat(question: str, number: int = 0) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"Answer {number}."}]
    return {"prompt": question, "prompt_id": str(number), "messages": turns, "note": "kept"}


def write(file: Path, rows: list) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows = [chat("Hello there?", 0), chat(QUESTION, 1), chat(f"Tell me: {QUESTION}", 2), {"text": "?"}, chat("Bye.", 4)]
    names = {name: str(tmp_path / f"{name}.jsonl") for name in ("report", "clean")}
    names["data"] = write(tmp_path / "train.jsonl", rows)
    names["bench"] = write(tmp_path / "bench.jsonl", [{"turns": ["Unseen?", QUESTION]}, {"turns": ["Nor this one?"]}])
    return names


def run(files: dict[str, str], *more: str) -> int:
    arguments = ["--data", files["data"], "--against", files["bench"]]
    return decontaminate.main([*arguments, "--report", files["report"], "--clean", files["clean"], *more])


def test_overlaps_are_reported_with_both_texts_and_the_other_rows_stay_as_they_are(files, capsys) -> None:
    assert run(files) == 0
    hits = [json.loads(line) for line in Path(files["report"]).read_text(encoding="utf-8").splitlines()]
    assert [(hit["kind"], hit["prompt_id"], hit["place"]) for hit in hits] == [
        ("exact", "1", "prompt"),
        ("n-gram", "2", "prompt"),
    ]
    assert hits[1]["text"] == f"Tell me: {QUESTION}" and hits[1]["evaluation_text"] == QUESTION
    assert hits[1]["location"] == f"{files['data']}:3" and hits[1]["evaluation_location"] == f"{files['bench']}:1"
    left = [json.loads(line) for line in Path(files["clean"]).read_text(encoding="utf-8").splitlines()]
    assert left == [chat("Hello there?", 0), chat("Bye.", 4)]
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "rows": 5,
        "unreadable": {"no prompt and no answer in its columns": 1},
        "overlapping_rows": 2,
        "clean_rows": 2,
        "ngram_words": 13,
        "evaluation_sets": {
            files["bench"]: {
                "items": 2,
                "items_found": 1,
                "rows": 2,
                "overlaps": {"exact": 1, "contained": 0, "n-gram": 1},
            }
        },
    }
    assert f"{files['data']}:4: no prompt and no answer" in captured.err and "2 of 5 rows overlap" in captured.err


def test_the_clean_file_is_clean(files, capsys) -> None:
    assert run(files) == 0 and run(files | {"data": files["clean"], "clean": files["data"]}) == 0
    assert '"overlapping_rows": 0' in capsys.readouterr().out.splitlines()[1]


def test_a_share_leaves_out_ngrams_that_cover_less(files, tmp_path, capsys) -> None:
    files["bench"] = write(tmp_path / "long.jsonl", [{"question": f"{QUESTION} {'And so on. ' * 9}"}])
    assert run(files) == 0 and run(files, "--min-share", "0.5") == 0
    assert [json.loads(line)["overlapping_rows"] for line in capsys.readouterr().out.splitlines()] == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ngram", "5"], "--ngram: got 5, wanted 8 or more"),
        (["--min-share", "2"], "--min-share: got 2.0"),
        (["--columns", "ask"], r"bench.jsonl:1: no text in ask; its columns are turns: name some with --columns"),
        (["--against", "none.jsonl"], "no such file"),
    ],
)
def test_a_mistake_is_one_message(files, arguments, message, capsys) -> None:
    assert run(files, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert not Path(files["clean"]).exists()


def test_half_a_surrogate_pair_is_left_as_it_is(files, tmp_path) -> None:
    """JSON can spell it and UTF-8 cannot: it comes out as JSON's escape again."""
    rows = [chat("Half \ud83d of one."), chat(f"{QUESTION} \ud83d", 1)]
    files["data"] = write(tmp_path / "half.jsonl", rows)
    assert run(files) == 0
    assert json.loads(Path(files["clean"]).read_text(encoding="utf-8")) == rows[0]
    assert json.loads(Path(files["report"]).read_text(encoding="utf-8"))["text"] == rows[1]["prompt"]


def test_columns_that_json_does_not_know_are_written_as_text(files, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(
        {"prompt": ["Hello?"], "when": [datetime.datetime(2024, 1, 2)], "cost": [decimal.Decimal("1.50")]}
    )
    parquet.write_table(table, tmp_path / "train.parquet")
    files["data"] = str(tmp_path / "train.parquet")
    assert run(files) == 0
    assert json.loads(Path(files["clean"]).read_text()) == {
        "prompt": "Hello?",
        "when": "2024-01-02 00:00:00",
        "cost": "1.50",
    }


def test_long_work_shows_how_far_it_is(files, capsys) -> None:
    assert run(files) == 0
    assert "reading rows: 100%" in capsys.readouterr().err


def test_one_file_cannot_be_both_outputs(files, capsys) -> None:
    assert run(files, "--clean", files["report"]) == 2
    assert "give them different names" in capsys.readouterr().err


def test_rows_of_an_unknown_kind_are_an_error(files, tmp_path, capsys) -> None:
    files["data"] = write(tmp_path / "odd.jsonl", [{"conversations": []}])
    assert run(files) == 2
    assert "none of 1 rows can be used: no prompt and no answer" in capsys.readouterr().err


def test_alpaca_evals_prompts_are_found_in_real_preferences_and_not_in_real_chats(zephyr_data, capsys) -> None:
    """All 1955 rows that were made of AlpacaEval, and no others; the chats have none of any set."""
    folder = zephyr_data / "academic"
    sets = [str(zephyr_data / "alpaca_eval" / "alpaca_eval.jsonl"), str(zephyr_data / "mt_bench" / "question.jsonl")]
    sets += [str(folder / name) for name in ("truthfulqa_mc.jsonl", "ifeval_input_data.jsonl", "gsm8k_test.jsonl")]
    preferences = zephyr_data / "preferences_train.jsonl"
    made_of = sum("alpaca_eval" in json.loads(line)["source"] for line in preferences.open(encoding="utf-8"))
    for data, expected in ((preferences, made_of), (zephyr_data / "chat_train.jsonl", 0)):
        assert decontaminate.main(["--data", str(data), "--against", *sets]) == 0
        assert json.loads(capsys.readouterr().out)["overlapping_rows"] == expected
    assert made_of == 1955
