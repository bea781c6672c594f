"""Options of the commands: defaults as the interface has them, and one message per mistake."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys

import pytest

from zephyr_jax.generation.options import GenerationOptions, add_generation_arguments, read_generation_options
from zephyr_jax.records import InputError


def _read(*argv: str) -> GenerationOptions:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=8)
    add_generation_arguments(parser)
    return read_generation_options(parser.parse_args(argv))


def test_the_defaults_are_greedy_and_256_tokens():
    assert _read() == GenerationOptions(max_new_tokens=256, temperature=0, top_p=1, seed=0)


def test_every_option_arrives():
    given = _read("--max-new-tokens", "3", "--temperature", "0.7", "--top-p", "0.9", "--seed", "11")
    assert given == GenerationOptions(max_new_tokens=3, temperature=0.7, top_p=0.9, seed=11)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("--max-new-tokens", "0"),
        ("--batch-size", "-1"),
        ("--devices", "0"),
        ("--temperature", "-0.1"),
        ("--temperature", "1e-09"),
        ("--temperature", str(math.nan)),
        ("--temperature", str(math.inf)),
        ("--top-p", "0"),
        ("--top-p", "1.01"),
        ("--top-p", str(math.nan)),
        ("--seed", "-1"),
        ("--seed", str(2**32)),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_wanted(name, value):
    with pytest.raises(InputError, match=rf"^{name}: got .*{value[:4]}.*, wanted "):
        _read(name, value)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_mistakes_show_before_jax_is_imported(command):
    program = (
        f"import sys; from zephyr_jax import {command}\n"
        "arguments = ['--model', 'm', '--top-p', '2', *sys.argv[1:]]\n"
        f"status = {command}.main(arguments)\n"
        "sys.exit(3 if 'jax' in sys.modules else status)"
    )
    files = ["--prompts", "p.jsonl", "--out", "o.jsonl"] if command == "generate" else []
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: --top-p: got 2.0, wanted more than 0 and at most 1 (1 samples from all tokens)\n"
