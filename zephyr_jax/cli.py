"""The console script `zephyr <command> ...`, and what commands share: overrides, `--debug`, exit statuses, `--out`.

Not here: the commands themselves, which are modules of their own (`python -m zephyr_jax.train` is `zephyr train`).
Nothing heavy is imported until a command's name is known.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from zephyr_jax import __version__
from zephyr_jax.launchers import find_place
from zephyr_jax.records import InputError, Unfinished
from zephyr_jax.whole_files import open_whole

COMMANDS = {
    "train": "run a recipe: dSFT, reference log-probs, dDPO",
    "plan": "compile the train step for GPUs that are not here: memory, traffic, bounds",
    "score": "log-probs of chosen and rejected answers under a model",
    "generate": "answers to a file of prompts",
    "chat": "talk with a model in the terminal, or ask it once",
    "binarise": "preference pairs of AI feedback in UltraFeedback's layout",
    "data_report": "preferences as one HTML page: lengths, scores, length bias, who wins, examples",
    "decontaminate": "rows of training files that overlap with evaluation sets, and the others",
    "feedback": "AI feedback: models answer, a teacher scores, pairs come out",
    "evaluate": "AlpacaEval, MT-Bench, academic tasks: scores with intervals",
    "judge_agreement": "how far a judge agrees with one that is trusted more",
    "report": "a run as one HTML page: curves, figures, its evaluation",
    "export": "a checkpoint as a Hugging Face folder",
    "bench": "step time, tokens/s, MFU and memory of a recipe on the devices at hand",
}

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser `--config FILE` and the overrides that every command with a recipe takes."""
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe (YAML), such as configs/tiny.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="changes to the recipe, such as ddpo.beta=0.2"
    )


@contextlib.contextmanager
def open_output(file: Path, *, option: str = "--out") -> Iterator[IO[Any]]:
    """A text file to write that is there whole or not at all: `open_whole` for a file that the user named.

    Args:
      file: the file; one that is there is replaced.
      option: what the user gave it by, for the message.

    Raises:
      InputError: it cannot be written; at once, before any work is done for it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if file.is_dir():
                raise IsADirectoryError("it is a folder")
            stream = stack.enter_context(open_whole(file))
        except OSError as error:
            raise InputError(f"{option} {file}: cannot be written ({error}); give the name of a file") from error
        yield stream


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    *,
    in_several_processes: bool = False,
) -> int:
    """Parses and runs one command, turning what goes wrong into an exit status.

    Args:
      parser: the command's parser; `--debug` is added here.
      command: does the work; returns nothing.
      argv: arguments after the command's name; None: those of the process.
      in_several_processes: whether it can be one process of a job; else it is refused there, where each would do all of
        it and they would write over each other.

    Returns:
      0 done; 1 the work failed (traceback on stderr) or stopped short (why, on stderr); 2 the input is wrong (its
      message alone on stderr, with `--debug` the traceback too); 130 interrupted.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    try:
        # Intermixed, since overrides may stand before and after flags.
        arguments = parser.parse_intermixed_args(argv)
    except SystemExit as stop:  # argparse has printed its own message or the help
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    try:
        place = None if in_several_processes else find_place(os.environ)
        if place is not None:
            raise InputError(
                f"got process {place.index} of {place.count} ({place.launcher}), wanted one alone: of all commands "
                "only train and bench run in several; start this one once"
            )
        command(arguments)
    except InputError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Unfinished as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `zephyr <command> ...`.

    Args:
      argv: arguments after `zephyr`; None: those of the process.

    Returns:
      The command's exit status; 2 for a command that there is not.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"zephyr {__version__}")
        return EXIT_DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COMMANDS)}"
        print(f"error: unknown command '{name}'; {hint}", file=sys.stderr)
        return EXIT_BAD_INPUT
    status: int = importlib.import_module(f"zephyr_jax.{name}").main(rest)
    return status


def _usage() -> str:
    lines = [f"  {name:<17}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: zephyr COMMAND ...   (or: python -m zephyr_jax.COMMAND ...)",
            "",
            *lines,
            "",
            "zephyr COMMAND --help says more; an example:",
            "  zephyr train --config configs/tiny.yaml ddpo.beta=0.2",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
