"""What all commands share: exit statuses, one clear message for a user's mistake, and the console script's list."""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from pathlib import Path

import pytest

from zephyr_jax import cli
from zephyr_jax.cli import run_command
from zephyr_jax.records import InputError


def _run(command, argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="thing")
    parser.add_argument("--dry-run", action="store_true")
    cli.add_recipe_arguments(parser)
    return cli.run_command(parser, command, argv)


def test_a_command_that_returns_is_done() -> None:
    assert _run(lambda arguments: None, ["--config", "x"]) == 0


def test_an_input_error_is_one_message_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(arguments: argparse.Namespace) -> None:
        raise InputError("mesh: got 3, wanted 4")

    assert _run(fails, ["--config", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: mesh: got 3, wanted 4\n" and captured.out == ""


def test_debug_shows_the_traceback_of_an_input_error(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(arguments: argparse.Namespace) -> None:
        raise InputError("mesh: got 3, wanted 4")

    assert _run(fails, ["--config", "x", "--debug"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and text.endswith("error: mesh: got 3, wanted 4\n")


def test_any_other_error_is_a_failure_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(arguments: argparse.Namespace) -> None:
        raise ValueError("our own fault")

    assert _run(fails, ["--config", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_has_the_shell_status_of_one() -> None:
    def interrupted(arguments: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert _run(interrupted, ["--config", "x"]) == 130


@pytest.mark.parametrize("argv", [[], ["--config"], ["--config", "x", "--nonsense"]])
def test_wrong_arguments_are_the_users_mistake(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(lambda arguments: None, argv) == 2
    assert "usage: thing" in capsys.readouterr().err


def test_an_output_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("old\n")
    with pytest.raises(ZeroDivisionError), cli.open_output(file) as stream:
        stream.write("new\n")
        raise ZeroDivisionError
    assert file.read_text() == "old\n" and list(tmp_path.iterdir()) == [file]
    with cli.open_output(file) as stream:
        stream.write("new\n")
        assert file.read_text() == "old\n"
    assert file.read_text() == "new\n" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("place", [".", "no/such/folder.jsonl"])
def test_an_output_that_cannot_be_written_is_the_users_mistake(place: str) -> None:
    with pytest.raises(InputError, match=f"--out {place}: cannot be written"), cli.open_output(Path(place)):
        pass


def test_help_is_done_and_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(lambda arguments: None, ["--help"]) == 0
    assert "--debug" in capsys.readouterr().out


def test_overrides_may_stand_before_and_after_flags() -> None:
    seen: list[argparse.Namespace] = []
    assert _run(seen.append, ["a=1", "--config", "x", "b.c=2", "--dry-run", "d=-3"]) == 0
    assert seen[0].overrides == ["a=1", "b.c=2", "d=-3"] and seen[0].config == "x" and seen[0].dry_run


def test_the_console_script_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS) and len(text.splitlines()) < 24


def test_no_command_at_all_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: zephyr" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'; did you mean 'train'?\n"
    assert cli.main(["qqq"]) == 2
    assert "there are: train, plan, score" in capsys.readouterr().err


def test_the_console_script_hands_the_rest_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    command = types.ModuleType("zephyr_jax.train")
    command.main = lambda argv: seen.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zephyr_jax.train", command)
    assert cli.main(["train", "--config", "x"]) == 7
    assert seen == [["--config", "x"]]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help_with_an_example_on_one_screen(name: str, repository: Path) -> None:
    arguments = [sys.executable, "-m", f"zephyr_jax.{name}", "--help"]
    done = subprocess.run(arguments, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 40 and f"zephyr_jax.{name} " in done.stdout.replace(
        f"zephyr {name}", f"zephyr_jax.{name}"
    )


def test_a_recipe_error_comes_out_of_the_command_line_as_status_2(repository: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodel: {weights: a, wieghts: b}\n", encoding="utf-8")
    arguments = [sys.executable, "-m", "zephyr_jax", "train", "--config", str(recipe)]
    done = subprocess.run(arguments, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "did you mean 'model.weights'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_of_one_process_is_refused_in_a_job_of_several(monkeypatch, capsys):
    """Sixteen of `score` would each do all of it, into the same file."""
    for name, value in {"NUM_PROCESSES": "16", "PROCESS_ID": "3", "COORDINATOR_ADDRESS": "node1:1"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    ran = []
    assert run_command(argparse.ArgumentParser(), ran.append, []) == 2 and not ran
    assert "error: got process 3 of 16 (JAX_* variables), wanted one alone" in capsys.readouterr().err
    assert run_command(argparse.ArgumentParser(), ran.append, [], in_several_processes=True) == 0 and ran
