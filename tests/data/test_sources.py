"""Sources of every kind give the same rows; what is wrong with one is said in a sentence that names it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from zephyr_jax.data import sources
from zephyr_jax.data.library_rows import split_place
from zephyr_jax.recipe import Source
from zephyr_jax.records import BadRow, InputError


def chat_row(number):
    turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Änswer {number}."}]
    return {"prompt": f"Question {number}?", "prompt_id": str(number), "messages": turns}


def pair_row(number, score=5.0):
    turns = chat_row(number)["messages"]
    rejected = [turns[0], {"role": "assistant", "content": "No."}]
    return {"chosen": turns, "rejected": rejected, "score_chosen": score, "score_rejected": None}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(*places, seed=0, max_bad_rows=0.0, pairs=False, **options):
    reader = sources.read_pairs if pairs else sources.read_conversations
    listed = [Source(source=place, **options) if isinstance(place, str) else place for place in places]
    return reader(listed, seed=seed, max_bad_rows=max_bad_rows)


def numbers(conversations):
    return [int(conversation.prompt_id) for conversation in conversations]


@pytest.fixture
def six(tmp_path):
    return write_lines(tmp_path / "six.jsonl", map(chat_row, range(6)))


# Kinds of source


def test_every_kind_of_file_gives_the_same_conversations(tmp_path, six):
    rows = [chat_row(number) for number in range(6)]
    (tmp_path / "six.json").write_text(json.dumps(rows))
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "six.parquet")
    expected = [(c.messages, c.prompt_id) for c in read(six)[0]]
    assert expected[1][0][1] == {"role": "assistant", "content": "Änswer 1."}
    for name in ("six.json", "six.parquet"):
        conversations, report = read(str(tmp_path / name))
        assert [(c.messages, c.prompt_id) for c in conversations] == expected and report.num_rows == 6
        assert conversations[2].location == f"{tmp_path / name}:3"


def test_an_odd_line_break_inside_a_string_does_not_end_a_line(tmp_path):
    row = chat_row(1)
    row["messages"][0]["content"] = "one\u2028two\u0085three\u2029four"
    conversations, report = read(write_lines(tmp_path / "odd.jsonl", [row, chat_row(2)]))
    assert report.num_rows == 2 and conversations[0].messages[0]["content"] == "one\u2028two\u0085three\u2029four"


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf\n" + json.dumps(chat_row(0)).encode() + b"\r\n \n" + json.dumps(chat_row(1)).encode()
    )
    conversations, report = read(str(path))
    assert [c.location for c in conversations] == [f"{path}:2", f"{path}:4"] and report.num_rows == 2


def test_parquet_is_read_across_its_batches(tmp_path):
    place = str(tmp_path / "many.parquet")
    pa.parquet.write_table(pa.Table.from_pylist([chat_row(number) for number in range(700)]), place, row_group_size=90)
    assert numbers(read(place)[0]) == list(range(700))
    few = numbers(read(place, fraction=0.01, seed=3)[0])
    assert len(few) == 7 and few == sorted(few)


def test_hugging_face_folders_are_read_with_their_splits(tmp_path, six):
    datasets = pytest.importorskip("datasets", reason="the package datasets reads hf: sources")
    rows = datasets.Dataset.from_list([chat_row(number) for number in range(6)])
    datasets.DatasetDict(train=rows, test=rows.select([5])).save_to_disk(str(tmp_path / "saved"))
    rows.save_to_disk(str(tmp_path / "one"))
    conversations, _ = read(f"hf:{tmp_path / 'saved'}:train")
    assert [c.messages for c in conversations] == [c.messages for c in read(six)[0]]
    assert conversations[4].location == f"hf:{tmp_path / 'saved'}:train:5"
    assert numbers(read(f"hf:{tmp_path / 'saved'}:test+train[2:3]")[0]) == [5, 2]
    assert numbers(read(f"hf:{tmp_path / 'one'}:train", limit=2)[0]) == [0, 1]
    with pytest.raises(InputError, match=r"hf:.*saved:dev.*Unknown split .dev.*train.*test"):
        read(f"hf:{tmp_path / 'saved'}:dev")


def tfds_folder(folder, rows, features):
    """Writes a small ArrayRecord data set, as a user with tfds would, and gives the folder of its version."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="the package tensorflow-datasets reads tfds: sources")
    kinds = {"text": tfds.features.Text(), "score": tfds.features.Scalar(dtype=np.float32)}
    kinds["messages"] = tfds.features.Sequence({"role": kinds["text"], "content": kinds["text"]})

    class SmallRows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # looking for this file's package would need the package importlib_resources

        def _info(self):
            described = tfds.features.FeaturesDict({name: kinds[kind] for name, kind in features.items()})
            return tfds.core.DatasetInfo(builder=self, features=described, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": enumerate(rows), "eval": enumerate(rows[:1])}

        def _generate_examples(self):
            yield from ()

    builder = SmallRows(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_tfds_messages_come_back_from_lists_of_bytes_without_tensorflow(tmp_path, six):
    features = {"prompt": "text", "prompt_id": "text", "messages": "messages"}
    folder = tfds_folder(tmp_path, [chat_row(number) for number in range(6)], features)
    conversations, _ = read(f"tfds:{folder}:train")
    assert [(c.messages, c.prompt_id) for c in conversations] == [(c.messages, c.prompt_id) for c in read(six)[0]]
    assert numbers(read(f"tfds:{folder}:train[:50%]")[0]) == [0, 1, 2]
    assert "tensorflow" not in sys.modules
    with pytest.raises(InputError, match=r"tfds:.*:dev.*Unknown split 'dev'.*train.*eval"):
        read(f"tfds:{folder}:dev")
    with pytest.raises(
        InputError, match=r"no dataset_info.json in .*wanted the folder of one version; below it are .*1\.0\.0"
    ):
        read(f"tfds:{tmp_path}:train")


def test_a_tfds_data_set_of_another_format_says_how_to_make_it_readable(tmp_path):
    """What tfds raises for TFRecord files, which it reads through TensorFlow alone, is a mistake of the user's data."""
    features = {"prompt": "text", "prompt_id": "text", "messages": "messages"}
    folder = tfds_folder(tmp_path, [chat_row(0)], features)
    info = Path(folder) / "dataset_info.json"
    info.write_text(info.read_text(encoding="utf-8").replace("array_record", "tfrecord"), encoding="utf-8")
    with pytest.raises(InputError, match=r"tfds:.*is not stored as ArrayRecord.*file_format='array_record'"):
        read(f"tfds:{folder}:train")


def test_a_tfds_score_that_is_no_number_is_null(tmp_path):
    features = {"chosen": "messages", "rejected": "messages", "score_chosen": "score", "score_rejected": "score"}
    rows = [{**pair_row(number), "score_rejected": float("nan")} for number in range(2)]
    pairs, _ = read(f"tfds:{tfds_folder(tmp_path, rows, features)}:train", pairs=True)
    assert [(pair.score_chosen, pair.score_rejected) for pair in pairs] == [(5.0, None)] * 2


def test_builtin_tasks_are_sources():
    assert len(read("builtin:tasks-chat:eval")[0]) == len(read("builtin:tasks-preferences:eval", pairs=True)[0]) == 280


def test_the_split_stands_after_the_last_colon_outside_brackets():
    assert split_place("hf:a/b:train[10:20]+test[:5%]") == ("a/b", "train[10:20]+test[:5%]")
    assert split_place("tfds:movies/small:1.0.0:train[:10]") == ("movies/small:1.0.0", "train[:10]")


# Fraction, limit, mixture


def test_a_fraction_is_a_seeded_subset_in_order():
    def some(**changed):
        return sources.choose_rows(
            **{"num_rows": 1000, "fraction": 0.3, "limit": None, "seed": 1, "position": 0} | changed
        )

    assert len(some()) == 300 and some() == sorted(set(some())) and some() == some()
    assert some() != some(seed=2) and some() != some(position=1)
    assert some(limit=5) == some()[:5]
    assert len(some(fraction=0.0005)) == 0 and some(fraction=1.0) == range(1000)


def test_a_fraction_takes_the_rows_it_took_when_this_was_written():
    assert sources.choose_rows(12, fraction=0.5, limit=None, seed=42, position=1) == CHOSEN


def test_sources_follow_one_another_each_with_its_share(six):
    listed = [Source(source=six, limit=2), Source(source=six, fraction=0.5), Source(source=six, fraction=0.5)]
    conversations, report = read(*listed, seed=7)
    rows = numbers(conversations)
    assert rows[:2] == [0, 1] and report.num_rows == len(rows) == 8
    assert rows[2:5] == sorted(rows[2:5]) and rows[5:] == sorted(rows[5:])


def test_lines_that_are_not_taken_are_not_parsed(six):
    with open(six, "a") as file:
        file.write("not JSON\n")
    assert numbers(read(six, limit=6)[0]) == list(range(6))


# Bad rows


def test_bad_rows_are_reported_counted_and_skipped(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps(chat_row(0)).encode(), b'{"messages": [}', b"[1]", b'{"messages": "\xff"}', b"{}"]
    path.write_bytes(b"\n".join([*lines, json.dumps({"messages": [chat_row(0)["messages"][0]]}).encode()]))
    conversations, report = read(str(path), max_bad_rows=0.9)
    reasons = ["invalid JSON: Expecting value", "not a JSON object", "invalid UTF-8", "no column messages"]
    reasons += ["messages ends with a user turn"]
    assert [bad.reason for bad in report.bad_rows] == reasons
    assert capsys.readouterr().err.splitlines() == [f"{path}:{n}: {reason}" for n, reason in enumerate(reasons, 2)]
    assert len(conversations) == 1 and report.num_rows == 6
    assert report.as_dict()["unreadable"] == dict.fromkeys(reasons, 1)


def test_only_the_first_ten_bad_rows_are_shown(tmp_path, capsys):
    place = write_lines(tmp_path / "bad.jsonl", [{}] * 13 + [chat_row(0)])
    read(place, max_bad_rows=0.95)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 11 and shown[-1] == "... and 3 more rows that cannot be used"


def test_too_many_bad_rows_are_an_error_that_names_the_key(tmp_path):
    place = write_lines(tmp_path / "bad.jsonl", [chat_row(0), {}, chat_row(1), chat_row(2)])
    assert len(read(place, max_bad_rows=0.25)[0]) == 3
    with pytest.raises(InputError) as error:
        read(place, max_bad_rows=0.2)
    assert str(error.value) == (
        f"data: 1 of 4 rows read from {place} cannot be used (25.0%), more than max_bad_rows allows (20.0%): "
        f"{place}:2: no column messages. Mend the rows, or raise max_bad_rows"
    )


def test_a_hopeless_file_is_not_read_to_its_end(tmp_path):
    place = write_lines(tmp_path / "wrong.jsonl", [{"text": "Hi"}] * 1000)
    with pytest.raises(InputError, match=r"data: 101 of 101 rows read"):
        read(place, max_bad_rows=0.1)


def test_no_usable_row_is_an_error(tmp_path):
    place = write_lines(tmp_path / "bad.jsonl", [{}])
    with pytest.raises(InputError, match="no usable row in .*bad.jsonl: 1 rows read, 1 unusable"):
        read(place, max_bad_rows=1.0)


def test_raw_rows_come_in_order_with_the_bad_ones_among_them(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text('{"prompt": "a", "extra": 1}\n\nnonsense\n{"prompt": "b"}\n')
    assert list(sources.iterate_rows(str(path))) == [
        (f"{path}:1", {"prompt": "a", "extra": 1}),
        (f"{path}:3", BadRow(f"{path}:3", "invalid JSON: Expecting value")),
        (f"{path}:4", {"prompt": "b"}),
    ]


@pytest.mark.parametrize(("name", "pairs"), [("chat_eval", False), ("preferences_eval", True)])
def test_real_rows_are_all_usable(zephyr_data, name, pairs):
    records, report = read(str(zephyr_data / f"{name}.jsonl"), pairs=pairs)
    assert len(records) == report.num_rows > 100 and not report.bad_rows


# Sources that cannot be opened


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("rows.csv", r"got a path ending in .csv, wanted .jsonl, .json, .parquet; other sources are hf:ORG/NAME:SPLIT"),
        ("HuggingFaceH4/ultrachat_200k", r"got a path without an ending, wanted .jsonl.* hf:ORG/NAME:SPLIT"),
        ("missing.jsonl", r"no such file; a path is taken from the current folder"),
        ("folder.jsonl", r"got a folder, wanted a file"),
        ("empty.jsonl", r"the file has no rows"),
        ("empty.json", r"the file has no rows"),
        ("object.json", r"holds an object, wanted a list of objects"),
        ("lines.json", r"is not JSON: .*an object per line is .jsonl"),
        ("latin.json", r"is not UTF-8 text"),
        ("text.parquet", r"is not a readable Parquet file: "),
        ("cut.parquet", r"is not a readable Parquet file: "),
        ("hf:ORG/NAME", r"no split; wanted hf:PLACE:SPLIT, such as hf:ORG/NAME:train"),
        ("hf::train", r"no split; wanted hf:PLACE:SPLIT"),
        ("hf:./nowhere/at/all:train", r"no such folder: ./nowhere/at/all"),
        ("builtin:tasks-chat:test", r"no split 'test'; there are train, eval"),
        ("builtin:tasks:train", r"no such built-in data; there are builtin:tasks-chat:SPLIT, builtin:tasks-pref"),
    ],
)
def test_a_source_that_cannot_be_opened_says_why(tmp_path, monkeypatch, place, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "object.json").write_text('{"rows": []}')
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "latin.json").write_bytes(b'["\xe4"]')
    (tmp_path / "text.parquet").write_text("a,b\n1,2\n")
    pa.parquet.write_table(pa.table({"a": list(range(1000))}), "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=said) as error:
        read(place)
    assert repr(place) in str(error.value)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the package datasets reads hf: sources")

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"source 'hf:org/name:train': the hub cannot be reached: Couldn't reach"):
        read("hf:org/name:train")


def test_an_unknown_tfds_name_is_named():
    pytest.importorskip("tensorflow_datasets", reason="the package tensorflow-datasets reads tfds: sources")
    with pytest.raises(
        InputError, match=r"source 'tfds:no_such_rows:train': tfds cannot load it: .*no_such_rows not found"
    ) as e:
        read("tfds:no_such_rows:train")
    assert len(str(e.value)) < 500  # the library's text lists every data set it knows


@pytest.mark.parametrize(
    ("place", "package"), [("hf:org/name:train", "datasets"), ("tfds:name:train", "tensorflow-datasets")]
)
def test_a_missing_package_says_how_to_install_it(monkeypatch, place, package):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(InputError, match=rf"{place}.*needs another Python package: No module.*pip install {package}"):
        read(place)


def test_a_package_missing_inside_a_library_is_named_too(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets", reason="the package tensorflow-datasets reads tfds: sources")

    def data_source(*_, **__):
        raise ModuleNotFoundError("No module named 'importlib_resources'", name="importlib_resources")

    monkeypatch.setattr(tfds, "data_source", data_source)
    with pytest.raises(InputError, match=r"tfds:name:train.*pip install importlib_resources"):
        read("tfds:name:train")


def test_no_source_at_all_is_an_error():
    with pytest.raises(InputError, match="empty list of sources"):
        read()


def test_importing_the_reader_brings_in_neither_jax_nor_the_data_libraries():
    code = "import sys, zephyr_jax.data.sources; print({'jax', 'datasets', 'tensorflow_datasets'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


CHOSEN = [0, 3, 4, 5, 9, 10]
