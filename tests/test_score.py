"""`score`: sums equal to an independent forward's, one line per input row in order, and errors that name the input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.model.numpy_forward import forward_by_hand
from tests.model.tiny_folders import expected_leaf, make_tensors, write_folder
from tests.stages.small_runs import SHAPE, pair_rows, write_rows
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.model import tensor_names
from zephyr_jax.recipe import ModelShape
from zephyr_jax.score import main

MODEL = ModelShape(**SHAPE)
NUMBERS = ("logp_chosen", "logp_rejected", "num_chosen_tokens", "num_rejected_tokens")


def _tensors():
    return {name: 0.18 * array for name, array in make_tensors(MODEL).items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with random weights, and the bytes tokenizer with Zephyr's template."""
    folder = write_folder(tmp_path_factory.mktemp("score") / "model", MODEL, _tensors())
    load_chat_tokenizer("builtin:bytes").save(folder)
    return folder


def _rows():
    """Good rows 0, 3 and 6, two of them with one id; between them one of each way to be unusable."""
    rows = pair_rows(7)
    system = {"role": "system", "content": "Be brief."}
    for side in ("chosen", "rejected"):
        rows[3][side] = [system, *rows[3][side]]
    rows[6]["prompt_id"] = rows[0]["prompt_id"]
    rows[1] = '{"prompt": "torn'
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[4]["chosen"][-1]["content"] = "a" * 200
    del rows[5]["rejected"]
    return rows


@pytest.fixture(scope="module")
def scored(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    data, out = write_rows(folder / "pairs.jsonl", _rows()), folder / "out.jsonl"
    lengths = ["--max-length", "100", "--max-prompt-length", "60"]
    assert main(["--model", str(model), "--data", data, "--out", str(out), *lengths]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["out.jsonl", "pairs.jsonl"]
    return _read(out)


def _read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_line_per_row_in_order_with_the_contracts_fields(scored):
    assert [line["row"] for line in scored] == list(range(7))
    assert [line["prompt_id"] for line in scored] == ["p0", None, "p2", "p3", "p4", "p5", "p0"]
    for line in scored:
        assert {"row", "prompt_id", *NUMBERS} == set(line) - {"error"}


def test_unusable_rows_have_nulls_and_say_why(scored):
    errors = {line["row"]: line["error"] for line in scored if "error" in line}
    assert set(errors) == {1, 2, 4, 5}
    assert all(scored[row][name] is None for row in errors for name in NUMBERS)
    assert errors[4] == "prompt and response longer than max_length"
    assert len(set(errors.values())) == 4 and all(errors.values())


def test_sums_equal_those_of_a_plain_forward(scored):
    """Prompt and answer as one unpadded text in float64, log softmax by hand, summed over the answer's tokens."""
    params = tensor_names.tree_of(
        (row.path, expected_leaf(row.path, MODEL, _tensors())) for row in tensor_names.rows_of(MODEL)
    )
    tokenizer = load_chat_tokenizer("builtin:bytes")
    rows = _rows()
    for number in (0, 3, 6):
        *prompt, chosen = rows[number]["chosen"]
        pair = tokenizer.encode_pair(prompt, chosen["content"], rows[number]["rejected"][-1]["content"])
        for side in ("chosen", "rejected"):
            response = getattr(pair, side)
            ids = np.concatenate([pair.prompt, response])
            logits = forward_by_hand(params, ids, MODEL)
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            wanted = sum(log_probs[t - 1, ids[t]] for t in range(len(pair.prompt), len(ids)))
            assert scored[number][f"logp_{side}"] == pytest.approx(wanted, rel=1e-5)
            assert scored[number][f"num_{side}_tokens"] == len(response)


def test_answers_count_their_end_of_text_and_newline(scored):
    """`It is one.` is 10 bytes, `It is six, I think.` is 19; then `</s>` and a newline."""
    assert (scored[0]["num_chosen_tokens"], scored[0]["num_rejected_tokens"]) == (12, 21)


def test_a_prompt_is_cut_only_where_it_must_be_and_then_scores_otherwise(model, tmp_path):
    """The prompt has 36 ids and the longer answer 21: 57 fit whole whatever the prompt's bound, 56 do not.

    <s>, <|user|> newline (9), What is 1? (10), </s> newline (2), <|assistant|> newline (14): 36.
    """
    data, out = write_rows(tmp_path / "pairs.jsonl", pair_rows(1)), tmp_path / "out.jsonl"

    def score(*options):
        assert main(["--model", str(model), "--data", data, "--out", str(out), *options]) == 0
        (line,) = _read(out)
        return line

    whole = score()
    # Rows of another length: sums may round otherwise in the last digit.
    again = score("--max-length", "57", "--max-prompt-length", "20")
    for name in ("logp_chosen", "logp_rejected"):
        assert again.pop(name) == pytest.approx(whole[name], rel=1e-6)
    assert again == {name: whole[name] for name in again}
    cut = score("--max-length", "56", "--max-prompt-length", "20")
    assert cut["logp_chosen"] != pytest.approx(whole["logp_chosen"], rel=1e-4)
    assert cut["num_chosen_tokens"] == whole["num_chosen_tokens"]


def test_a_source_without_a_usable_row_gives_its_lines_all_the_same(model, tmp_path):
    data, out = write_rows(tmp_path / "pairs.jsonl", ["{", "[]"]), tmp_path / "out.jsonl"
    assert main(["--model", str(model), "--data", data, "--out", str(out)]) == 0
    assert ["error" in line for line in _read(out)] == [True, True]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"--model": "{tmp}/nowhere"}, "nowhere: there is no such folder"),
        ({"--data": "{tmp}/nowhere.jsonl"}, "nowhere.jsonl"),
        ({"--data": "{tmp}/empty.jsonl"}, "empty.jsonl"),
        ({"--out": "{tmp}/nowhere/out.jsonl"}, "cannot be written"),
        ({"--max-prompt-length": "1024"}, "--max-prompt-length: got 1024, wanted 1 or more and less than"),
        ({"--max-prompt-length": "0"}, "--max-prompt-length: got 0"),
        ({"--chat-template": "{tmp}/no.jinja"}, "no.jinja"),
    ],
    ids=["model", "data", "no rows", "out", "prompt length", "no prompt", "template"],
)
def test_wrong_inputs_are_one_line_and_status_2(changes, wanted, model, tmp_path, capsys):
    write_rows(tmp_path / "empty.jsonl", [])
    given = {"--model": str(model), "--data": write_rows(tmp_path / "pairs.jsonl", pair_rows(1))}
    given |= {"--out": str(tmp_path / "out.jsonl")}
    given |= {name: value.format(tmp=tmp_path) for name, value in changes.items()}
    assert main([text for pair in given.items() for text in pair]) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and wanted in errors[0] and shown.err.endswith(errors[0] + "\n")
    assert "Traceback" not in shown.err and shown.out == ""
    assert not (tmp_path / "out.jsonl").exists()


def test_scoring_switches_the_compilation_cache_on(model, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("zephyr_jax.compilation.keep_compiled_programs", lambda: calls.append(1))
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(1))
    assert main(["--model", str(model), "--data", data, "--out", str(tmp_path / "out.jsonl")]) == 0
    assert calls
