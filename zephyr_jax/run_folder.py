"""The folder of a run while it is taken: OUTPUT_DIR/NAME with recipe.yaml in it, under a name that no other recipe has.

Not here: what else lies in it. No JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.records import InputError
from zephyr_jax.whole_files import open_whole


def free_name(output_dir: str, name: str) -> str:
    """The name, or where there is such a folder the first free one of name-2, name-3, ..."""
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(each for each in names if not (Path(output_dir) / each).exists())


def check_same_recipe(folder: Path, differences: Sequence[str], *, kept: str = "") -> None:
    """Refuses a name that was run with another recipe.

    Args:
      folder: the run's, as the name has it.
      differences: a line for each key that differs; empty: it is the same recipe.
      kept: what is to be said of work that another name would find done.

    Raises:
      InputError: there are differences; the message has them.
    """
    if differences:
        raise InputError(
            f"{folder}: this name was run with another recipe; what differs:\n  "
            + "\n  ".join(differences)
            + "\ntake another name (name=...), add --new-run for a fresh one, or delete the folder"
            + kept
        )


def write_recipe(folder: Path, text: str, *, output_dir: str) -> None:
    """Makes the folder, with recipe.yaml in it.

    Raises:
      InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_whole(folder / "recipe.yaml") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"output_dir {output_dir}: cannot be written ({error}); give another one") from error
