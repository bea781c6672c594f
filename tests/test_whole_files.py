"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os

import pytest

from zephyr_jax.whole_files import open_whole, write_json


def test_json_is_written_whole_and_nothing_else_stays(tmp_path):
    write_json(tmp_path / "summary.json", {"name": "Zéphyr", "loss": 1.5})
    write_json(tmp_path / "summary.json", {"loss": 1.0})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"loss": 1.0}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "summary.json", {"loss": 1.0})
    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"loss": object()})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"loss": 1.0}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_whole_file_may_be_read_by_whom_any_other_file_may(tmp_path):
    """A store of reference log-probs is shared by the users of a cluster; a temporary file's own mode is 0600."""
    (tmp_path / "plain").touch()
    with open_whole(tmp_path / "whole", "wb") as file:
        file.write(b"1")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
