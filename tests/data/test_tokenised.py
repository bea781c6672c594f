"""Tokenised rows that are found are those that were made, report and messages included; the key is the content's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from zephyr_jax.data import tokenised, tokenised_store
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.data.tokenised import Keeping, load_conversations, load_pairs
from zephyr_jax.recipe import Source
from zephyr_jax.records import InputError

BYTES = load_chat_tokenizer("builtin:bytes")
OPTIONS = {"name": "dsft train", "seed": 0, "max_bad_rows": 0.5, "max_length": 60, "loss_on": "assistant"}
PAIR_OPTIONS = {"name": "ddpo train", "seed": 0, "max_bad_rows": 0.5, "max_length": 70, "max_prompt_length": 40}


def _chat(row):
    turns = [{"role": "user", "content": f"{row}?"}, {"role": "assistant", "content": "a" * (1 + 7 * row)}]
    return {"messages": turns * (1 + row % 2)}


def _pair(row):
    return {"prompt": "q" * (1 + 9 * row), "chosen": "good", "rejected": "bad" * (1 + row)}


def _file(folder: Path, make=_chat, name="rows.jsonl", num_rows=12) -> str:
    """Good rows, with three bad ones among them."""
    lines = [json.dumps(make(row)) for row in range(num_rows)]
    lines[4:4] = ["not JSON", "[]", '{"messages": []}']
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def _load(folder: Path, *sources, tokenizer=BYTES, wants_records=False, writes=True, **changes):
    listed = [source if isinstance(source, Source) else Source(source=source) for source in sources]
    keeping = Keeping(folder / "tokenised", writes=writes)
    options = OPTIONS | changes
    return load_conversations(listed, tokenizer, keeping=keeping, wants_records=wants_records, **options)


def _load_pairs(folder: Path, source, **changes):
    options = PAIR_OPTIONS | {"row_length": None} | changes
    keeping = Keeping(folder / "tokenised")
    return load_pairs([Source(source=source)], BYTES, keeping=keeping, wants_records=False, **options)


def _keys(folder: Path) -> set[str]:
    return {path.name for path in (folder / "tokenised").glob("*")}


def _assert_same(made, found):
    for name in ("ids", "is_target", "offsets", "rows"):
        if hasattr(made.encoded, name):
            np.testing.assert_array_equal(getattr(made.encoded, name), getattr(found.encoded, name))
            assert getattr(made.encoded, name).dtype == getattr(found.encoded, name).dtype
            assert not getattr(found.encoded, name).flags.writeable
    assert made.encoded.dropped == found.encoded.dropped and made.encoded.fingerprint() == found.encoded.fingerprint()
    assert made.report == found.report
    assert json.dumps(made.report.as_dict()) == json.dumps(found.report.as_dict())  # the order of reasons too


def _without_own_line(err: str) -> list[str]:
    """What was said of the rows: not the bars, nor the line that says where they came from."""
    return [line for line in err.splitlines() if ".jsonl:" in line]


def test_dialogues_found_are_those_made_and_so_is_all_that_is_said(tmp_path, capsys):
    source = _file(tmp_path)
    made = _load(tmp_path, source)
    first = capsys.readouterr().err
    assert made.report.cut and made.report.dropped and len(made.report.bad_rows) == 3 and made.records is None
    found = _load(tmp_path, source)
    second = capsys.readouterr().err
    _assert_same(made, found)
    assert _without_own_line(first) == _without_own_line(second) and len(_without_own_line(first)) == 3
    key = next(iter(_keys(tmp_path)))
    assert "dsft train: 12 rows in" in first and f"tokenised in 1 process; kept in {tmp_path}/tokenised/{key}" in first
    assert f"found tokenised in {tmp_path}/tokenised/{key}" in second and "rows/s" in second
    assert "reading rows" in first and "reading rows" not in second  # a warm start reads no row


def test_pairs_found_are_those_made(tmp_path, capsys):
    source = _file(tmp_path, _pair)
    made = _load_pairs(tmp_path, source)
    assert made.report.cut and made.report.dropped and len(made.report.bad_rows) == 3
    _assert_same(made, _load_pairs(tmp_path, source))
    assert "found tokenised" in capsys.readouterr().err
    assert _load_pairs(tmp_path, source).encoded.lengths.shape == (len(made.encoded), 3)


def test_rows_are_read_where_they_are_wanted_and_the_report_is_the_same(tmp_path):
    source = _file(tmp_path)
    made = _load(tmp_path, source, wants_records=True)
    found = _load(tmp_path, source, wants_records=True)
    _assert_same(made, found)
    assert made.records == found.records and len(found.records) == 12


def test_built_in_rows_are_known_by_what_they_are(tmp_path, capsys):
    source = Source(source="builtin:tasks-chat:train", limit=20)
    made = _load(tmp_path, source, max_length=400)
    found = _load(tmp_path, source, max_length=400)
    _assert_same(made, found)
    assert "20 rows in" in capsys.readouterr().err and len(_keys(tmp_path)) == 1
    _load(tmp_path, Source(source="builtin:tasks-chat:train", limit=21), max_length=400)
    assert len(_keys(tmp_path)) == 2


def test_the_key_knows_content_and_not_paths_or_unrelated_options(tmp_path):
    made = _load(tmp_path, _file(tmp_path))
    keys = _keys(tmp_path)
    moved = _file(tmp_path / "elsewhere", name="other.jsonl")
    found = _load(tmp_path, moved, name="other", max_bad_rows=0.9, seed=7)
    assert _keys(tmp_path) == keys
    assert [bad.location for bad in found.report.bad_rows] == [f"{moved}:{line}" for line in (5, 6, 7)]
    assert found.encoded.fingerprint() == made.encoded.fingerprint()
    manifest = json.loads((tmp_path / "tokenised" / keys.pop() / "manifest.json").read_text())
    assert str(tmp_path) not in json.dumps(manifest["fields"])


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 61},
        {"loss_on": "all"},
        {"tokenizer": load_chat_tokenizer("builtin:bytes", bos="never")},
        {"tokenizer": load_chat_tokenizer("builtin:bytes", empty_system_turn=True)},
        {"limit": 5},
        {"fraction": 0.5},
        {"num_rows": 13},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_whatever_the_rows_depend_on(change, tmp_path):
    _load(tmp_path, _file(tmp_path))
    file = _file(tmp_path, num_rows=change.pop("num_rows", 12))
    picked = {name: change.pop(name) for name in ("limit", "fraction") if name in change}
    _load(tmp_path, Source(source=file, **picked), **change)
    assert len(_keys(tmp_path)) == 2


def test_rows_of_a_format_are_these_to_the_last_bit(tmp_path):
    """Cut turns and prompts, dropped and bad rows among them. If it fails and is meant to: raise tokenised._FORMAT too.

    Otherwise a user's next run would find the rows that the old code has made, and say nothing.
    """
    chats = _load(tmp_path, _file(tmp_path / "chats"))
    pairs = _load_pairs(tmp_path, _file(tmp_path / "pairs", make=_pair))
    found = [
        repr((made.encoded.fingerprint(), sorted(made.encoded.dropped.items()), made.report.cut))
        for made in (chats, pairs)
    ]
    digest = hashlib.sha256("".join(found).encode()).hexdigest()
    assert (tokenised._FORMAT, digest[:16]) == (1, "f1407b85fe54b38d")


def test_the_key_of_a_fraction_changes_with_the_seed(tmp_path):
    source = Source(source=_file(tmp_path), fraction=0.5)
    for seed in (1, 2, 1):
        _load(tmp_path, source, seed=seed)
    assert len(_keys(tmp_path)) == 2


def test_the_key_of_pairs_changes_with_their_lengths(tmp_path):
    source = _file(tmp_path, _pair)
    for change in ({}, {"max_length": 71}, {"max_prompt_length": 41}, {"row_length": 100}, {"row_length": 101}):
        _load_pairs(tmp_path, source, **change)
    assert len(_keys(tmp_path)) == 5


def test_the_key_changes_with_the_format_and_the_libraries(tmp_path, monkeypatch):
    source = _file(tmp_path)
    _load(tmp_path, source)
    monkeypatch.setattr(tokenised.importlib.metadata, "version", lambda name: "0.0.1")
    _load(tmp_path, source)
    monkeypatch.setattr(tokenised, "_FORMAT", 10**6)
    _load(tmp_path, source)
    assert len(_keys(tmp_path)) == 3


def test_kept_rows_do_not_hide_that_too_many_are_bad(tmp_path):
    """Three of 15 rows are bad: 20 %."""
    source = _file(tmp_path)
    _load(tmp_path, source, max_bad_rows=0.2)
    with pytest.raises(InputError, match=r"3 of 15 rows .* cannot be used \(20.0%\), more than max_bad_rows"):
        _load(tmp_path, source, max_bad_rows=0.19)


def test_a_dry_run_finds_rows_and_keeps_none(tmp_path, capsys):
    source = _file(tmp_path)
    _load(tmp_path, source, writes=False)
    assert not (tmp_path / "tokenised").exists() and "kept" not in capsys.readouterr().err
    _load(tmp_path, source)
    _load(tmp_path, source, writes=False)
    assert "found tokenised" in capsys.readouterr().err


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    """Near the end: of the manifest, in a hash."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, _truncate, _flip_a_bit], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", ["rows.arrow", "left_out.json", "manifest.json"])
def test_damage_is_noticed_said_and_mended(name, harm, tmp_path, capsys):
    source = _file(tmp_path)
    made = _load(tmp_path, source)
    harm(tmp_path / "tokenised" / next(iter(_keys(tmp_path))) / name)
    capsys.readouterr()
    _assert_same(made, _load(tmp_path, source))
    err = capsys.readouterr().err
    assert "are damaged" in err and "made anew" in err and "kept in" in err
    _assert_same(made, _load(tmp_path, source))
    assert "found tokenised" in capsys.readouterr().err and len(_keys(tmp_path)) == 1


def test_a_killed_run_leaves_nothing_that_another_would_read(tmp_path, capsys):
    source = _file(tmp_path)
    program = f"""
        import os, signal
        from zephyr_jax.data import tokenised, tokenised_store
        from zephyr_jax.data.chat import load_chat_tokenizer
        from zephyr_jax.recipe import Source
        tokenised_store._sha256 = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # after rows.arrow is written
        tokenised.load_conversations(
            [Source(source={source!r})], load_chat_tokenizer("builtin:bytes"), wants_records=False,
            keeping=tokenised.Keeping(__import__("pathlib").Path({str(tmp_path / "tokenised")!r})), **{OPTIONS!r},
        )
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "tokenised").iterdir()
    assert ".partial-" in left.name and (left / "rows.arrow").exists()
    _load(tmp_path, source)
    assert "kept in" in capsys.readouterr().err and left.exists()  # it might be another's who is at work
    os.utime(left, (0, 0))
    _load(tmp_path, source, max_length=50)
    assert not left.exists() and len(_keys(tmp_path)) == 2


def test_two_at_once_are_both_fine(tmp_path, monkeypatch):
    """Both have written their folder before either renames it; the second finds the first's there."""
    source, both_wrote = _file(tmp_path), threading.Barrier(2)
    rename = os.rename

    def rename_together(old, new):
        both_wrote.wait(timeout=60)
        rename(old, new)

    monkeypatch.setattr(tokenised_store.os, "rename", rename_together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(_load(tmp_path, source))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    _assert_same(*results)
    _assert_same(results[0], _load(tmp_path, source))
    assert len(_keys(tmp_path)) == 1


def test_found_rows_outlive_their_folder(tmp_path):
    source = _file(tmp_path)
    made = _load(tmp_path, source)
    found = _load(tmp_path, source)
    shutil.rmtree(tmp_path / "tokenised")
    _assert_same(made, found)


def test_a_disk_that_cannot_be_written_is_said_and_costs_nothing_else(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenised_store, "_write_arrow", full)
    assert len(_load(tmp_path, _file(tmp_path)).encoded) > 0
    err = capsys.readouterr().err
    assert "not kept" in err and "No space left on device" in err and not _keys(tmp_path)


def test_a_template_that_asks_for_the_date_is_not_kept(tmp_path, capsys):
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    _load(tmp_path, _file(tmp_path), tokenizer=load_chat_tokenizer("builtin:bytes", chat_template=str(template)))
    assert "not kept, since the chat template asks for the date" in capsys.readouterr().err and not _keys(tmp_path)


def test_a_file_that_is_missing_is_said_as_before(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        _load(tmp_path, str(tmp_path / "nowhere.jsonl"))
