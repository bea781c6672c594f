"""The README tells the truth about the tree and the commands."""

from __future__ import annotations

import re
from pathlib import Path

from zephyr_jax.cli import COMMANDS


def _tree_names(readme: str, folder: str) -> set[str]:
    """Paths in the README's drawing below `folder/`, from the indentation of its lines."""
    drawing = readme.split("## The tree", 1)[1].split("```", 2)[1]
    paths, parents = set(), []
    for line in drawing.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents = [*parents[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            paths.add("/".join(parents))
    return {path for path in paths if path.startswith(folder + "/")}


def test_every_file_has_its_line_in_the_tree(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    modules = {str(p.relative_to(repository)) for p in (repository / "zephyr_jax").rglob("*.py")}
    modules = {path for path in modules if not path.endswith("__init__.py")}
    recipes = {str(p.relative_to(repository)) for p in (repository / "configs").rglob("*.yaml")}
    assert _tree_names(readme, "zephyr_jax") == modules
    assert _tree_names(readme, "configs") == recipes


def test_every_command_is_in_the_table(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+) (?:--|RUN_DIR)", readme, flags=re.MULTILINE)) == set(COMMANDS)


def test_the_two_commands_are_targets_of_the_makefile(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for target in ("tiny", "test"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
