"""The store of reference log-probs: what it is keyed by, when it is read, and what an interruption costs."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.model.tiny_folders import make_tensors, write_folder
from tests.stages.small_runs import SHAPE, make_recipe, on_one_device, pair_rows, write_rows
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError
from zephyr_jax.stages import reference
from zephyr_jax.stages.ddpo import add_reference, check_start, ddpo_options, load_ddpo_data, ordered_batches, run_ddpo
from zephyr_jax.stages.reference import FIELDS, ReferenceStore, reference_fields, reference_log_probs, store_key
from zephyr_jax.stages.start import StartModel, base_model, model_settings

NUM_PAIRS = 11


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with pairs and their store, made once; and the log-probs."""
    folder = tmp_path_factory.mktemp("reference")
    write_rows(folder / "pairs.jsonl", pair_rows(NUM_PAIRS))
    return folder, _log_probs(make_recipe(folder))


def _log_probs(recipe, *, split="train"):
    """What `run_ddpo` asks for, on one device."""
    run = on_one_device(recipe)
    data = load_ddpo_data(run)
    pairs = data.train if split == "train" else data.eval
    with jax.set_mesh(run.mesh):
        return reference_log_probs(
            run,
            options=ddpo_options(run),
            start=base_model(run),
            pairs=pairs,
            batches=ordered_batches(run, pairs),
            settings=model_settings(recipe),
            split=split,
        )


def _fields(recipe) -> dict[str, str]:
    """What the key is made of; nothing is computed."""
    run = on_one_device(recipe)
    return reference_fields(
        run,
        ddpo_options(run),
        pairs=load_ddpo_data(run).train,
        start=base_model(run),
        settings=model_settings(recipe),
    )


def _stores(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs" / "reference").iterdir())


@pytest.fixture
def no_model(monkeypatch):
    """Loading any weights is a failure."""

    def refuse(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(StartModel, "load_params", refuse)


def _same(left, right) -> bool:
    return all(np.array_equal(left[field], right[field]) for field in FIELDS)


def test_a_store_holds_a_sum_and_a_count_for_every_answer(computed):
    """`It is one.` are 10 bytes, then `</s>` and a newline; a model of 259 equal guesses gives -12 ln 259 = -66.7."""
    _, arrays = computed
    assert {field: (array.dtype, array.shape) for field, array in arrays.items()} == {
        field: (np.dtype(np.float32), (NUM_PAIRS,)) for field in FIELDS
    }
    assert arrays["num_chosen_tokens"][0] == 12
    assert arrays["chosen"][0] == pytest.approx(-12 * np.log(259), rel=0.02)


def test_the_second_run_reads_the_store_and_loads_no_model(computed, no_model, capsys):
    folder, arrays = computed
    assert _same(_log_probs(make_recipe(folder)), arrays)
    assert f"{NUM_PAIRS} pairs read from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.5},
        {"loss": "ipo"},
        {"learning_rate": 0.1, "schedule": "constant", "epochs": 3},
        {"batch_size": 2, "micro_batch_size": 1},
        {"shuffle": False},
    ],
    ids=lambda options: ",".join(options),
)
def test_options_of_training_are_not_in_the_key(options, computed, no_model):
    """A scan over beta runs one reference pass; another name for the run does not matter either."""
    folder, arrays = computed
    assert _same(_log_probs(make_recipe(folder, ddpo=options, name="another")), arrays)


def _key_cases(folder: Path):
    """What changes -> the recipe, all with the same rows but for the last."""
    rows = pair_rows(NUM_PAIRS)
    rows[3]["chosen"][-1]["content"] += "!"
    other_rows = {"train": [write_rows(folder / "other.jsonl", rows)]}
    model = {"weights": None, "shape": SHAPE, "compute_dtype": "float32", "remat": "none"}
    windowless = model | {"shape": SHAPE | {"sliding_window": None}}
    return {
        ("max_length",): make_recipe(folder, ddpo={"max_length": 65}),
        ("max_prompt_length",): make_recipe(folder, ddpo={"max_prompt_length": 39}),
        ("layout",): make_recipe(folder, ddpo={"row_length": 129}),
        ("dtype",): make_recipe(folder, model=model | {"compute_dtype": "bfloat16"}),
        ("attention",): make_recipe(folder, model=model | {"attention": "blockwise"}),
        ("weights",): make_recipe(folder, seed=1),
        ("weights", "shape"): make_recipe(folder, model=windowless),
        ("rows",): make_recipe(folder, ddpo={"data": other_rows}),
        ("rows", "bos"): make_recipe(folder, bos="never"),
    }


def test_everything_that_moves_a_log_prob_is_in_the_key_and_nothing_else_changes_with_it(computed):
    folder, _ = computed
    before = _fields(make_recipe(folder))
    keys = {store_key(before)}
    for changed, recipe in _key_cases(folder).items():
        after = _fields(recipe)
        assert {name for name in after if after[name] != before.get(name)} == set(changed)
        keys.add(store_key(after))
    assert len(keys) == 1 + len(_key_cases(folder))


def test_a_change_computes_anew_and_says_what_changed(computed, capsys):
    folder, arrays = computed
    before = _stores(folder)
    shorter = _log_probs(make_recipe(folder, ddpo={"max_length": 63}))
    said = capsys.readouterr().err
    assert "computed anew" in said and before[0] in said and "differs in max_length: 64 -> 63" in said
    assert len(_stores(folder)) == len(before) + 1
    assert _same(shorter, arrays)  # no pair is that long
    assert "read from" not in said


def _hf_model(folder: Path, *, seed=0, **changes) -> dict:
    shape = ModelShape(**(SHAPE | changes))
    tensors = {name: 0.05 * array for name, array in make_tensors(shape, seed=seed).items()}
    return {"weights": str(write_folder(folder, shape, tensors)), "compute_dtype": "float32"}


def test_weights_are_known_by_content_not_by_place(tmp_path):
    """The same tensors elsewhere keep the key; other tensors, or another window beside the same, do not."""
    write_rows(tmp_path / "pairs.jsonl", pair_rows(3))

    def fields(name, **changes):
        return _fields(make_recipe(tmp_path, model=_hf_model(tmp_path / name, **changes)))

    first = fields("first")
    assert fields("copy") == first
    assert {name for name, value in fields("other", seed=1).items() if value != first[name]} == {"weights"}
    for changes in ({"sliding_window": 8}, {"rope_theta": 5e5}):
        assert {name for name, value in fields("config", **changes).items() if value != first[name]} == {"shape"}


def test_an_interrupted_pass_goes_on_without_doing_finished_pairs_again(tmp_path, computed, monkeypatch, capsys):
    """Batches of 4, 4 and 3 pairs. Every batch is kept at once; the pass ends after the second, and then does one."""
    write_rows(tmp_path / "pairs.jsonl", pair_rows(NUM_PAIRS))
    monkeypatch.setattr(reference, "PART_SECONDS", 0.0)
    recipe, score_all_pairs, batches_done = make_recipe(tmp_path), reference.score_all_pairs, []

    def counting(*arguments, **options):
        for rows, values in score_all_pairs(*arguments, **options):
            batches_done.append(rows.tolist())
            yield rows, values
            if len(batches_done) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(reference, "score_all_pairs", counting)
    with pytest.raises(KeyboardInterrupt):
        _log_probs(recipe)
    arrays = _log_probs(recipe)
    assert batches_done == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert "going on after 8 of 11 pairs" in capsys.readouterr().err
    assert _same(arrays, computed[1])
    (store,) = (tmp_path / "runs" / "reference").iterdir()
    assert sorted(path.name for path in store.iterdir()) == ["log_probs.npz", "manifest.json"]
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["complete"] and manifest["num_pairs"] == NUM_PAIRS
    assert manifest["key"] == store.name == store_key(manifest["fields"])


def test_layouts_give_the_same_log_probs(computed):
    """A shared prompt in packed rows and two padded rows a pair: sums of about -70 nats agree to rounding."""
    folder, arrays = computed
    padded = _log_probs(make_recipe(folder, ddpo={"layout": "padded"}))
    for field in FIELDS:
        np.testing.assert_allclose(padded[field], arrays[field], rtol=2e-6)


def _path_of(store: str) -> dict:
    return {"reference": {"path": store}}


def test_a_given_store_is_read_where_its_key_is_the_recipes(computed, no_model):
    folder, arrays = computed
    (store,) = [path for path in (folder / "runs" / "reference").iterdir() if path.name == _key(folder)]
    recipe = make_recipe(folder, output_dir=str(folder / "elsewhere"), **_path_of(str(store)))
    assert _same(_log_probs(recipe), arrays)


def _key(folder: Path) -> str:
    return store_key(_fields(make_recipe(folder)))


def test_a_given_store_of_other_content_is_refused_with_the_fields(computed, no_model):
    folder, _ = computed
    store = folder / "runs" / "reference" / _key(folder)
    with pytest.raises(InputError) as refusal:
        _log_probs(make_recipe(folder, seed=1, ddpo={"max_length": 60}, **_path_of(str(store))))
    message = str(refusal.value)
    assert message.startswith(f"reference.path {store}: the store was made from other content: max_length: 64 -> 60; ")
    assert "weights: " in message and "leave reference.path null to compute it" in message


def test_a_given_path_with_nothing_there_is_where_the_store_is_made(tmp_path):
    """Train pairs there, evaluation pairs in a folder inside."""
    write_rows(tmp_path / "pairs.jsonl", pair_rows(3))
    data = {"train": [str(tmp_path / "pairs.jsonl")], "eval": [str(tmp_path / "pairs.jsonl")]}
    recipe = make_recipe(tmp_path, ddpo={"data": data}, **_path_of(str(tmp_path / "mine")))
    assert _same(_log_probs(recipe), _log_probs(recipe, split="eval"))
    for folder in (tmp_path / "mine", tmp_path / "mine" / "eval"):
        assert (folder / "log_probs.npz").exists()


def _finished_store(folder: Path, num_pairs: int = 3) -> ReferenceStore:
    store = ReferenceStore(folder / "store", {"rows": "abc"}, "train")
    arrays, done = store.begin(num_pairs)
    assert not done.any()
    store.complete({field: array + 1 for field, array in arrays.items()})
    return store


def test_a_damaged_store_is_an_error_with_the_way_out(tmp_path):
    store = _finished_store(tmp_path)
    path = store.folder / "log_probs.npz"
    whole = path.read_bytes()
    for broken in (b"", b"not a zip file", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read .* to compute it anew"):
            store.read(3)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        store.read(3)
    path.write_bytes(whole)
    assert store.read(3) is not None
    with pytest.raises(InputError, match="does not hold 4 pairs"):
        store.read(4)
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest.json: cannot be read"):
        store.read(3)


def test_an_unfinished_or_absent_store_is_not_read(tmp_path):
    store = ReferenceStore(tmp_path / "store", {"rows": "abc"}, "train")
    assert store.read(3) is None
    store.begin(3)
    assert store.read(3) is None


def test_reference_log_probs_are_looked_up_by_pair_and_filler_gets_zero():
    batch = {"pair_rows": np.array([[2, 0], [1, -1]], np.int32)}
    looked_up = add_reference({"chosen": np.array([1.0, 2, 3]), "rejected": np.array([-1.0, -2, -3])}, batch)
    assert looked_up["reference_chosen"].tolist() == [[3, 1], [2, 0]]
    assert looked_up["reference_rejected"].tolist() == [[-3, -1], [-2, 0]]
    assert looked_up["reference_chosen"].dtype == np.float32


def test_training_on_a_store_that_was_tampered_with_is_stopped_at_the_first_step(tmp_path):
    """One of 8 log-probs off by 1 nat: the margin of its pair is beta, and no step is learnt from it."""
    write_rows(tmp_path / "pairs.jsonl", pair_rows(4))
    recipe = make_recipe(tmp_path, ddpo={"max_steps": 2})
    _log_probs(recipe)
    (store,) = (tmp_path / "runs" / "reference").iterdir()
    with np.load(store / "log_probs.npz") as stored:
        arrays = dict(stored)
    arrays["rejected"][2] += 1
    np.savez(store / "log_probs.npz", **arrays)
    run = on_one_device(recipe)
    with (
        jax.set_mesh(run.mesh),
        pytest.raises(RuntimeError, match=r"\|margin\| / beta 1.00e\+00; a policy that starts"),
    ):
        run_ddpo(run, load_ddpo_data(run), on_evaluation=lambda *_: None)
    assert not (run.folder / "ddpo" / "summary.json").exists()


def _first_step(loss: float, margin: float) -> dict[str, float]:
    return {"loss": loss, "rewards/max_abs_margin": margin}


@pytest.mark.parametrize(("loss", "at_zero"), [("sigmoid", np.log(2)), ("hinge", 1.0), ("ipo", 1 / (4 * 0.2**2))])
def test_the_start_is_checked_against_the_loss_at_zero_margin(loss, at_zero, tmp_path, capsys):
    """beta 0.2, float32: |margin| / beta up to 1e-3, so a margin of 0.000199 passes and one of 0.000201 does not."""
    options = make_recipe(tmp_path, ddpo={"loss": loss, "beta": 0.2}).ddpo
    check_start(options, "float32", _first_step(at_zero, 0.000199))
    assert "checked that the policy starts at its reference" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="delete the store"):
        check_start(options, "float32", _first_step(at_zero, 0.000201))
    with pytest.raises(RuntimeError, match="a policy that starts at its reference has"):
        check_start(options, "float32", _first_step(at_zero * 1.02, 0.0))
