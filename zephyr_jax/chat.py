"""Talks with a model in the terminal, or answers once on stdout. Parses, builds, calls: decoding is in generation/.

python -m zephyr_jax.chat --model builtin:smollm2-135m-instruct --prompt "What is the capital of France?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zephyr_jax.cli import run_command
from zephyr_jax.generation.options import (
    GenerationOptions,
    add_generation_arguments,
    add_model_argument,
    read_generation_options,
)
from zephyr_jax.records import InputError, Message

if TYPE_CHECKING:
    from zephyr_jax.generation.loading import AnswerModel

_EXAMPLE = """example:
  python -m zephyr_jax.chat --model runs/tiny/ddpo --prompt "Reverse the word cat."
Without --prompt it is a dialogue: a line is a turn, /reset starts anew, /exit or the end of the input ends it."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.chat",
        description="Talks with a model in the terminal, or answers once on stdout.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="answer this on stdout and end")
    parser.add_argument("--system", metavar="TEXT", help="system message before the first turn")
    add_generation_arguments(parser)
    return parser


class Dialogue:
    """The turns so far, and the model that answers them."""

    def __init__(self, model: AnswerModel, options: GenerationOptions, *, system: str | None) -> None:
        """A dialogue with no turns but the system's, if there is one."""
        self._model = model
        self._options = options
        self._opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._num_asked = 0
        self.messages = list(self._opening)

    def ask(self, text: str) -> str:
        """Adds a user's turn and the model's answer, which it returns; a refused turn is not added.

        Raises:
          InputError: the chat template refuses the dialogue, or it does not fit the model's context.
        """
        turns: list[Message] = [*self.messages, {"role": "user", "content": text}]
        ids = self._model.encode(turns, max_new_tokens=self._options.max_new_tokens)
        # Its number is its row, so that a question asked twice is sampled twice.
        batches = self._model.answer([ids], options=self._options, row_indexes=[self._num_asked], batch_size=1)
        answer = self._model.text(next(batches)[0])
        self._num_asked += 1
        self.messages = [*turns, {"role": "assistant", "content": answer}]
        return answer

    def reset(self) -> None:
        """Forgets every turn but the system's."""
        self.messages = list(self._opening)


def _run(arguments: argparse.Namespace) -> None:
    options = read_generation_options(arguments)
    for name in ("prompt", "system"):
        text = getattr(arguments, name)
        if text is not None and not text.strip():
            raise InputError(f"--{name}: got an empty text; wanted some, or leave the option out")
    from zephyr_jax.generation.loading import open_answer_model

    model = open_answer_model(
        arguments.model,
        chat_template=arguments.chat_template,
        bos=arguments.bos,
        dtype=arguments.dtype,
        num_devices=arguments.devices,
    )
    print(f"chat: loading {arguments.model}, {model.settings_text()}", file=sys.stderr)
    dialogue = Dialogue(model.load(), options, system=arguments.system)
    if arguments.prompt is not None:
        print(dialogue.ask(arguments.prompt))
    else:
        _converse(dialogue)


def _converse(dialogue: Dialogue) -> None:
    """Reads turns from stdin until it ends; answers go to stdout, all else to stderr."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("chat: /reset starts anew, /exit ends", file=sys.stderr)
    while True:
        try:
            text = input("you> " if is_terminal else "").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/reset":
            dialogue.reset()
            print("chat: started anew", file=sys.stderr)
        elif text:
            try:
                print(dialogue.ask(text), flush=True)
            except InputError as error:
                print(f"chat: {error} (or /reset)", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
