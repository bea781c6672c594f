"""The length-controlled win rate finds a planted answer, and moves the way that the lengths were unfair."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from zephyr_jax.evaluation import length_control
from zephyr_jax.evaluation.alpaca_eval import Annotation, read_annotations, win_rate
from zephyr_jax.evaluation.length_control import LengthData, length_controlled_win_rate, read_length_data
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.records import InputError

FEW = Sampling(resamples=40)
HEAD = "index,instruction_difficulty,preference,std_delta_len,not_gamed_baseline\n"


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn", reason="the length-controlled win rate needs scikit-learn (extra [evaluate])")


def an_annotation(index: int, preference: float | None, length_baseline: int | None, length_model: int | None):
    return Annotation(index, None, "base", "ours", "judge", preference, length_baseline, length_model, f"file:{index}")


def planted(length: float, difficulty: float, model: float, *, num_items: int = 2000, seed: int = 0):
    """Annotations whose preferences are the probabilities of known coefficients; and the answer at equal lengths."""
    rng = np.random.default_rng(seed)
    difficulty_N = rng.normal(0, 1, num_items)
    base_N, ours_N = rng.integers(200, 1800, num_items), rng.integers(800, 3000, num_items)
    delta_N = base_N - ours_N
    logit_N = length * np.tanh(delta_N / delta_N.std(ddof=1)) + difficulty * difficulty_N + model
    preference_N = 1 + 1 / (1 + np.exp(-logit_N))
    annotations = [
        an_annotation(i, *row) for i, row in enumerate(zip(preference_N, base_N.tolist(), ours_N.tolist(), strict=True))
    ]
    truth = float((1 / (1 + np.exp(-(difficulty * difficulty_N + model)))).mean())
    return annotations, dict(enumerate(difficulty_N.tolist())), truth


def without_gamed(difficulty: dict[int, float]) -> LengthData:
    return LengthData(difficulty, np.zeros((0, 3)), np.zeros(0))


@pytest.mark.usefixtures("sklearn")
def test_a_planted_answer_is_found() -> None:
    """The judge likes length (a = -1.5): of the plain win rate most is length, and the fit takes it off."""
    annotations, difficulty, truth = planted(-1.5, 0.8, -1.0)
    found = length_controlled_win_rate(
        annotations, without_gamed(difficulty), glm="length_controlled_noreg", sampling=FEW
    )
    plain = win_rate(annotations, sampling=FEW).estimate.mean
    assert found.win_rate == pytest.approx(truth, abs=2e-3) and plain > truth + 0.1
    assert found.coefficients == pytest.approx({"length": -1.5, "difficulty": 0.8, "model": -1.0}, abs=0.02)
    assert found.low <= found.win_rate <= found.high and found.num_items == 2000


@pytest.mark.usefixtures("sklearn")
def test_where_length_does_not_matter_nothing_changes() -> None:
    annotations, _, truth = planted(0.0, 0.0, 0.7)
    found = length_controlled_win_rate(annotations, without_gamed({}), glm="length_controlled_minimal", sampling=FEW)
    assert found.win_rate == pytest.approx(truth, abs=1e-3) and "difficulty" not in found.coefficients
    assert found.win_rate == pytest.approx(win_rate(annotations, sampling=FEW).estimate.mean, abs=1e-3)


@pytest.mark.usefixtures("sklearn")
def test_an_unparsed_judgment_is_not_fitted_but_predicted() -> None:
    annotations, difficulty, truth = planted(-1.0, 0.5, -0.5, num_items=400)
    holes = [an_annotation(a.index, None, a.length_baseline, a.length_model) for a in annotations[::10]]
    rest = [a for a in annotations if a.index % 10]
    found = length_controlled_win_rate(
        [*rest, *holes], without_gamed(difficulty), glm="length_controlled_noreg", sampling=FEW
    )
    assert found.num_items == 360 and found.win_rate == pytest.approx(truth, abs=5e-3)


@pytest.mark.usefixtures("sklearn")
def test_gamed_baselines_hold_the_length_coefficient_back(tmp_path: Path) -> None:
    """Their rows say that length does not matter (1/2 at any length): the fit moves towards 0, and stays negative."""
    annotations, difficulty, _ = planted(-1.5, 0.8, -1.0, num_items=400)
    file = tmp_path / "df_gamed.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
        )
        for index, value in difficulty.items():
            writer.writerow([0.5, index, (-1) ** index, value, False, "concise"])
    fitted = {}
    for glm in ("length_controlled_v1", "length_controlled_noreg"):
        data = read_length_data(str(file), glm)
        assert data.difficulty == difficulty and len(data.gamed_X) == (400 if glm == "length_controlled_v1" else 0)
        fitted[glm] = length_controlled_win_rate(annotations, data, glm=glm, sampling=FEW).coefficients["length"]
    assert fitted["length_controlled_noreg"] < fitted["length_controlled_v1"] < 0


def test_folds_are_those_of_scikit_learn(sklearn) -> None:
    from sklearn.model_selection import GroupKFold

    groups = np.concatenate([np.arange(23), np.arange(23)])
    folds = np.zeros(23, int)
    for fold, (_, held) in enumerate(GroupKFold(5).split(groups, groups=groups)):
        folds[groups[held]] = fold
    assert folds.tolist() == length_control._folds(23).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,difficulty\n0,1\n", r"has no column instruction_difficulty, .*\(it has index, difficulty\)"),
        ("", "it has no rows"),
        (f"{HEAD}0,x,0,0,False\n", "could not convert"),
        (f"{HEAD}0,1,2,0,False\n", "a preference is 2; wanted 0 to 1"),
        ("index,instruction_difficulty,preference,std_delta_len\n0,1,2,0\n", "has no column not_gamed_baseline"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "data.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_length_data(str(file), "length_controlled_v1")


def test_what_is_missing_is_named() -> None:
    annotations, difficulty, _ = planted(-1, 1, 0, num_items=20)
    difficulty.pop(3)
    cases = [
        (annotations, "noreg", "instruction 3 has no difficulty"),
        ([an_annotation(0, 2.0, None, None)], "minimal", "neither output_1 and output_2 nor len_1 and len_2"),
        ([an_annotation(i, 2.0, 5, 5) for i in range(20)], "minimal", "all outputs differ in length by the same"),
        (annotations[:9], "minimal", "has 9 parsed judgments; wanted at least 10"),
    ]
    for rows, glm, message in cases:
        with pytest.raises(InputError, match=message):
            length_controlled_win_rate(rows, without_gamed(difficulty), glm=f"length_controlled_{glm}", sampling=FEW)


@pytest.mark.usefixtures("sklearn")
def test_real_judgments_favour_length_and_the_published_direction_is_found(zephyr_data: Path) -> None:
    """Published with difficulties and gamed baselines: 10.34 becomes 16.25, with a length coefficient of -1.53.

    Without those data the model is a coarser one, so that the coefficient is about the same and the rate is not.
    """
    name = "annotations_OpenHermes-2.5-Mistral-7B_weighted_alpaca_eval_gpt4_turbo.jsonl"
    annotations = read_annotations([str(zephyr_data / "alpaca_eval" / name)])
    found = length_controlled_win_rate(annotations, without_gamed({}), glm="length_controlled_minimal", sampling=FEW)
    assert found.coefficients["length"] == pytest.approx(-1.53, abs=0.1)
    assert 100 * found.low > 10.34 and 16 < 100 * found.win_rate < 26
