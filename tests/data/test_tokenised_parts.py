"""Rows tokenised by several processes are those of one, to the byte, and each process reads only its part of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_tokenised import BYTES, OPTIONS, PAIR_OPTIONS, _chat, _file, _load, _load_pairs, _pair
from tests.small_jobs import in_threads
from zephyr_jax.data import sources, tokenised
from zephyr_jax.data.tokenised import Keeping, load_conversations, load_pairs
from zephyr_jax.recipe import Source
from zephyr_jax.records import InputError


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Fifteen rows are four parts, and no process of the three is without one."""
    monkeypatch.setattr(sources, "ROWS_PER_PART", 4)


def _together(folder: Path, *listed: Source, count: int = 3, load=load_conversations, **changes):
    options = OPTIONS | {"max_length": 60} if load is load_conversations else PAIR_OPTIONS | {"row_length": None}

    def work(job):
        return load(
            list(listed),
            BYTES,
            keeping=Keeping(folder / "tokenised"),
            peers=job,
            **options | {"wants_records": False} | changes,
        )

    results = in_threads(count, work, on_end=lambda *_: None)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, InputError):
            raise result
    return results


def _kept(folder: Path) -> dict[str, bytes]:
    """Every file of every key but the manifests, which name the sources by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "tokenised").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def _assert_same(one, other):
    np.testing.assert_array_equal(one.encoded.ids, other.encoded.ids)
    assert one.encoded.fingerprint() == other.encoded.fingerprint()
    assert one.encoded.dropped == other.encoded.dropped and list(one.encoded.rows) == list(other.encoded.rows)
    assert json.dumps(one.report.as_dict()) == json.dumps(other.report.as_dict())
    assert one.report.bad_rows == other.report.bad_rows


@pytest.mark.parametrize("count", [2, 3, 6])
def test_dialogues_of_several_processes_are_those_of_one(count, tmp_path):
    """Bad rows, cut and dropped ones among them; six processes for four parts: two have nothing to do."""
    source = Source(source=_file(tmp_path))
    alone = _load(tmp_path / "alone", source)
    for made in _together(tmp_path / "together", source, count=count):
        _assert_same(made, alone)
    assert _kept(tmp_path / "together") == _kept(tmp_path / "alone")
    for found in _together(tmp_path / "together", source, count=2):  # by another number of processes
        _assert_same(found, alone)
    assert alone.report.cut and alone.report.dropped and len(alone.report.bad_rows) == 3


def test_pairs_of_several_processes_are_those_of_one(tmp_path):
    path = _file(tmp_path, _pair)
    alone = _load_pairs(tmp_path / "alone", path)
    for made in _together(tmp_path / "together", Source(source=path), load=load_pairs):
        _assert_same(made, alone)
    assert _kept(tmp_path / "together") == _kept(tmp_path / "alone")


def test_rows_of_several_sources_thinned_out_are_those_of_one_process(tmp_path):
    listed = (
        Source(source=_file(tmp_path, name="a.jsonl"), fraction=0.7),
        Source(source=_file(tmp_path, name="b.jsonl", num_rows=9), limit=7),
    )
    alone = _load(tmp_path / "alone", *listed)
    for made in _together(tmp_path / "together", *listed):
        _assert_same(made, alone)


def test_rows_that_are_no_file_have_the_same_key_and_each_process_reads_its_part(tmp_path, monkeypatch):
    """20 built-in rows in 5 parts: 4, 8 and 8 rows for the three processes, none twice."""
    source, read = Source(source="builtin:tasks-chat:train", limit=20), []
    parse = sources.parse_conversation

    def counted(row, location):
        read.append(location)
        return parse(row, location)

    alone = _load(tmp_path / "alone", source, max_length=400)
    monkeypatch.setattr(sources, "parse_conversation", counted)
    for made in _together(tmp_path / "together", source, max_length=400):
        _assert_same(made, alone)
    assert len(read) == len(set(read)) == 20
    assert _kept(tmp_path / "together") == _kept(tmp_path / "alone")


def test_rows_of_a_file_are_read_once_by_all_together_and_not_at_all_when_found(tmp_path, monkeypatch):
    source, read = Source(source=_file(tmp_path)), []
    parse = sources.parse_conversation

    def counted(row, location):
        read.append(location)
        return parse(row, location)

    monkeypatch.setattr(sources, "parse_conversation", counted)
    _together(tmp_path, source)
    assert len(read) == len(set(read)) == 13  # of fifteen rows, two are no objects
    _together(tmp_path, source)
    assert len(read) == 13


def test_records_that_are_wanted_are_all_of_them_in_every_process(tmp_path):
    source = Source(source=_file(tmp_path))
    alone = _load(tmp_path / "alone", source, wants_records=True)
    for made in _together(tmp_path / "together", source, wants_records=True):
        _assert_same(made, alone)
        assert made.records == alone.records
    assert _kept(tmp_path / "together") == _kept(tmp_path / "alone")


def test_bad_rows_count_over_all_processes_and_are_shown_once(tmp_path, capsys):
    """3 of 15 are bad, all in the second process's part: 20 % of all are within 25 %, as for one process."""
    source = Source(source=_file(tmp_path))
    for made in _together(tmp_path / "together", source, count=2, max_bad_rows=0.25):
        assert len(made.report.bad_rows) == 3
    capsys.readouterr()
    errors = _together(tmp_path / "other", source, count=2, max_bad_rows=0.1)
    assert all("3 of 15 rows read from" in str(error) for error in errors)


def test_a_damaged_store_is_made_anew_by_all(tmp_path):
    source = Source(source=_file(tmp_path))
    alone = _load(tmp_path, source)
    (rows,) = (tmp_path / "tokenised").rglob("rows.arrow")
    rows.write_bytes(b"torn")
    for made in _together(tmp_path, source):
        _assert_same(made, alone)
    assert {path.name for path in (tmp_path / "tokenised").iterdir()} == {rows.parent.name}


def test_processes_that_have_other_files_under_the_same_name_are_told_so(tmp_path, monkeypatch):
    source = Source(source=_file(tmp_path))
    content, contents = tokenised._file_content, iter("abc")
    monkeypatch.setattr(tokenised, "_file_content", lambda *given: content(*given) + [next(contents)])
    for error in _together(tmp_path, source):
        assert isinstance(error, InputError)
        assert "dsft train: the hashes of the files: differs between the processes of this job" in str(error)


def test_a_template_that_asks_for_the_date_is_tokenised_by_each_process_for_itself(tmp_path, monkeypatch):
    source = Source(source=_file(tmp_path))
    alone = _load(tmp_path / "alone", source)
    monkeypatch.setattr(BYTES, "template_text", "{{ strftime_now('%d') }}")
    for made in _together(tmp_path / "together", source):
        _assert_same(made, alone)
    assert not (tmp_path / "together" / "tokenised").exists()


def test_nothing_that_is_left_over_stays(tmp_path):
    _together(tmp_path, Source(source=_file(tmp_path, _chat)))
    assert len(list((tmp_path / "tokenised").iterdir())) == 1
