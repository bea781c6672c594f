"""The names that a user gives to weights, right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model.tiny_folders import UNTIED, make_tensors, write_folder
from zephyr_jax.model.sources import open_weights
from zephyr_jax.records import InputError


def test_a_hugging_face_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", UNTIED, make_tensors(UNTIED))
    source = open_weights(str(folder))
    assert (source.folder, source.tokenizer, source.shape) == (folder, str(folder), UNTIED)


def test_a_stage_folder_means_its_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run" / "dsft" / "model", UNTIED, make_tensors(UNTIED))
    source = open_weights(str(tmp_path / "run" / "dsft"))
    assert (source.folder, source.tokenizer) == (folder, str(folder))


def test_a_run_names_its_stages(tmp_path: Path) -> None:
    for stage in ("ddpo", "dsft"):
        write_folder(tmp_path / "run" / stage / "model", UNTIED, make_tensors(UNTIED))
    with pytest.raises(InputError, match=r"is a run; pass one of its stages: .*run/ddpo, .*run/dsft$"):
        open_weights(str(tmp_path / "run"))


def test_a_stage_that_did_not_end_says_so(tmp_path: Path) -> None:
    (tmp_path / "dsft" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="checkpoints but no model/.*zephyr_jax.export"):
        open_weights(str(tmp_path / "dsft"))


def test_what_is_not_there_or_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder; wanted .*builtin:smollm2-135m-instruct"):
        open_weights(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no config.json"):
        open_weights(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a file; pass the folder"):
        open_weights(str(tmp_path / "model.safetensors"))


def test_an_unknown_embedded_model_names_the_known_one() -> None:
    with pytest.raises(InputError, match="no embedded model 'builtin:smollm2'; there is builtin:smollm2-135m-instruct"):
        open_weights("builtin:smollm2")


def test_a_hub_name_is_fetched_without_pytorch_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, UNTIED, make_tensors(UNTIED))
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert open_weights("hf:someone/some-model").shape == UNTIED
    assert asked["name"] == "someone/some-model"
    assert "model*.safetensors" in asked["allow_patterns"] and not any("bin" in one for one in asked["allow_patterns"])


def test_a_hub_that_cannot_be_reached_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **_: Any) -> str:
        raise ConnectionError("no route to host\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"hf:a/b: .*ConnectionError: no route to host\).*pass its folder"):
        open_weights("hf:a/b")


@pytest.mark.parametrize("spec", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b:train"])
def test_a_hub_name_has_two_parts(spec: str) -> None:
    with pytest.raises(InputError, match="wanted hf:ORG/NAME"):
        open_weights(spec)
