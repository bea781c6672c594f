"""The command `generate`: its lines, bad rows, going on after an interruption, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import pytest

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax import generate

SAMPLED = ("--temperature", "0.9", "--seed", "5", "--max-new-tokens", "6")
LONG = "long " * 9
ROWS = [
    {"prompt": "One?", "id": "a"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}], "id": "b"},
    {"prompt": "", "id": "c"},
    {"prompt": "Three?", "extra": {"kept": [1, None]}},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"prompt": "One?", "id": "again"},
    {"prompt": "x" * 300, "id": "too long"},
    {"prompt": "Last?"},
]
BAD = (2, 4, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model that reads 256 tokens."""
    return write_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=256)


@pytest.fixture
def prompts(tmp_path) -> Path:
    """ROWS, and a line that is no JSON at the end."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n")
    return file


def _run(model: Path, prompts: Path, out: Path, *options: str, batch_size: int = 2) -> int:
    arguments = ["--model", model, "--prompts", prompts, "--out", out, "--batch-size", batch_size, "--devices", 1]
    return generate.main([*map(str, arguments), *options])


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_row_has_its_line_with_its_own_fields_in_input_order(model, prompts, tmp_path, capsys):
    jax.clear_caches()
    assert _run(model, prompts, tmp_path / "out.jsonl", *SAMPLED) == 0
    lines = _lines(tmp_path / "out.jsonl")
    assert len(lines) == len(ROWS) + 1
    for number, (row, line) in enumerate(zip([*ROWS, {}], lines, strict=True)):
        assert {name: line[name] for name in row} == row
        answer = {name: value for name, value in line.items() if name not in row}
        if number in (*BAD, len(ROWS)):
            error = answer.pop("error")
            assert error and answer == {"response": None, "num_tokens": None, "finish_reason": None}
        else:
            assert isinstance(answer.pop("response"), str)
            assert answer.pop("num_tokens") <= 6 and answer.pop("finish_reason") in ("stop", "length") and not answer
    assert "more than the 256 that the model reads" in lines[6]["error"]
    assert lines[0]["response"] != lines[5]["response"], "the same question in two rows is sampled twice"
    output = capsys.readouterr()
    assert output.out == ""
    assert "float32 on 1 x cpu" in output.err
    summary = output.err.splitlines()[-1]
    assert "generate: 9 rows, 4 without an answer (row 3: prompt has no text)" in summary
    assert re.search(r" tokens/s.; \d+ programs made ready in [0-9.]+ s, 0 of them out of the", summary)


@pytest.mark.parametrize("num_bytes_lost", [1, 150, 10_000])
def test_an_interrupted_run_goes_on_to_the_same_file(model, prompts, tmp_path, capsys, num_bytes_lost):
    """The file loses its end, in the middle of a line or all of it; batch sizes may differ."""
    out = tmp_path / "out.jsonl"
    assert _run(model, prompts, out, *SAMPLED) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:-num_bytes_lost])
    num_kept = out.read_bytes().count(b"\n")
    capsys.readouterr()
    assert _run(model, prompts, out, *SAMPLED, batch_size=3) == 0
    assert out.read_bytes() == whole
    assert (f"{num_kept} of them kept from before" in capsys.readouterr().err) == (num_kept > 0)


def test_a_finished_file_is_left_as_it_is_and_no_weights_are_loaded(model, prompts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.jsonl"
    assert _run(model, prompts, out, *SAMPLED) == 0
    whole = out.read_bytes()
    monkeypatch.setattr("zephyr_jax.generation.loading.AnswerModel.load", lambda _: pytest.fail("loaded"))
    assert _run(model, prompts, out, *SAMPLED) == 0
    assert out.read_bytes() == whole and "9 of them kept from before" in capsys.readouterr().err


def test_lines_made_otherwise_are_not_mixed_with_new_ones(model, prompts, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert _run(model, prompts, out, *SAMPLED) == 0
    whole = out.read_bytes()
    assert _run(model, prompts, out, *SAMPLED, "--seed", "6") == 2
    assert "made with other settings" in (error := capsys.readouterr().err) and "seed: 5 -> 6" in error
    prompts.write_text(json.dumps({"prompt": "Another?"}) + "\n" + prompts.read_text())
    assert _run(model, prompts, out, *SAMPLED) == 2
    assert "out.jsonl:1: is not the answer to row 1" in capsys.readouterr().err
    assert out.read_bytes() == whole


def test_the_prompts_themselves_are_no_output_file(model, prompts, capsys):
    content = prompts.read_bytes()
    assert _run(model, prompts, prompts, *SAMPLED) == 2
    assert "choose another name" in capsys.readouterr().err and prompts.read_bytes() == content


def test_a_long_file_is_answered_in_chunks_that_start_in_order(model, prompts, tmp_path, monkeypatch):
    """Chunks of one batch of two rows give the file that one chunk gives."""
    assert _run(model, prompts, tmp_path / "one.jsonl", *SAMPLED) == 0
    monkeypatch.setattr(generate, "BATCHES_PER_CHUNK", 1)
    assert _run(model, prompts, tmp_path / "many.jsonl", *SAMPLED) == 0
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere"}, "nowhere: there is no such folder"),
        ({"prompts": "nothing.jsonl"}, "nothing.jsonl"),
        ({"out": "."}, "is a folder"),
    ],
)
def test_what_is_not_there_is_named_without_a_traceback(model, prompts, tmp_path, capsys, changes, message):
    files = {"model": model, "prompts": prompts, "out": tmp_path / "out.jsonl"} | changes
    assert _run(*(Path(files[name]) for name in ("model", "prompts", "out"))) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
