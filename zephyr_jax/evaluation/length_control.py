"""The length-controlled win rate of AlpacaEval 2 (arXiv:2404.04475), by alpaca_eval's own model and fit.

    logit P(model preferred on i) = a tanh((len_baseline,i - len_model,i) / s) + b difficulty_i + c

s is the standard deviation of the length differences. The fit is a logistic regression without intercept and with an L1
penalty, whose strength is the best of ten by the log loss in five folds. The length-controlled win rate is the mean of
P over all instructions at a length difference of 0. In `length_controlled_v1` the annotations of two gamed baselines
(the baseline asked to be brief, and to be verbose) are fitted too, with weight 0.1 each: they hold `a` back.

The difficulties, and the rows of the gamed baselines, are data of the AlpacaEval project (its files
instruction_difficulty.csv and df_gamed.csv), which the user gives. Needs scikit-learn (the extra [evaluate]).

Source: alpaca_eval's metrics/glm_winrate.py.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from zephyr_jax.evaluation.alpaca_eval import Annotation
from zephyr_jax.evaluation.statistics import Sampling, bootstrap_interval
from zephyr_jax.records import InputError

GlmName = Literal["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"]
GAMED_WEIGHT = 0.2 / 2  # two gamed baselines share it
STRENGTHS = np.logspace(-4, 4, 10)  # scikit-learn's C: the inverse of the penalty
NUM_FOLDS = 5
MIN_JUDGMENTS = 2 * NUM_FOLDS  # parsed
MAX_REFITS = 200  # of the interval: each is a fit
_SEED = 123  # alpaca_eval's; it decides the order of coordinates in the fit


@dataclasses.dataclass(frozen=True, slots=True)
class LengthData:
    """What the user's file says.

    Attributes:
      difficulty: by the instruction's index; empty where there is no file.
      gamed_XM: [X, 3] features of the gamed baselines' annotations: tanh of the length difference, difficulty, and 0;
        1 for a row that the file says is of a baseline that was not gamed.
      gamed_X: [X] their preferences, 0 to 1.
    """

    difficulty: Mapping[int, float]
    gamed_XM: np.ndarray
    gamed_X: np.ndarray


def read_length_data(path: str | None, glm: GlmName) -> LengthData:
    """Reads instruction_difficulty.csv or df_gamed.csv of AlpacaEval.

    Args:
      path: the file; None only for `length_controlled_minimal`, which needs none.
      glm: what it is for.

    Raises:
      InputError: it cannot be read, or has not the columns that `glm` needs.
    """
    if path is None:
        return LengthData({}, np.zeros((0, 3)), np.zeros(0))
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"length_control.file {path}: cannot be read ({error}); wanted a CSV file") from error
    gamed = glm == "length_controlled_v1"
    needed = [
        "instruction_difficulty",
        *(["preference", "std_delta_len", "index", "not_gamed_baseline"] if gamed else []),
    ]
    columns = list(rows[0]) if rows else []
    missing = [column for column in needed if column not in columns]
    if missing:
        raise InputError(
            f"length_control.file {path}: has no column {', '.join(missing)} (it has "
            f"{', '.join(columns) or 'no rows'}); wanted AlpacaEval's "
            f"{'df_gamed.csv' if gamed else 'instruction_difficulty.csv or df_gamed.csv'}"
        )
    key = "index" if "index" in columns else columns[0]
    try:
        difficulty: dict[int, float] = {}
        for row in rows:
            difficulty.setdefault(int(float(row[key])), float(row["instruction_difficulty"]))
        used = [row for row in rows if gamed and row["preference"]]
        features = [
            [
                np.tanh(float(row["std_delta_len"])),
                float(row["instruction_difficulty"]),
                float(row["not_gamed_baseline"].strip().lower() in ("true", "1", "1.0")),
            ]
            for row in used
        ]
        preferences = [float(row["preference"]) for row in used]
    except ValueError as error:
        raise InputError(f"length_control.file {path}: {error}; wanted numbers in {', '.join(needed)}") from error
    outside = [value for value in preferences if not 0 <= value <= 1]
    if outside:
        raise InputError(
            f"length_control.file {path}: a preference is {outside[0]:g}; wanted 0 to 1, as df_gamed.csv has"
        )
    return LengthData(difficulty, np.array(features).reshape(-1, 3), np.array(preferences))


@dataclasses.dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
      glm: which model.
      win_rate: 0 to 1.
      standard_error: of the predictions over the instructions, as AlpacaEval publishes it; not of the fit, and 0 where
        all instructions are alike (minimal).
      low, high: interval by refits to instructions drawn anew, at the chosen strength: the fit's too.
      coefficients: name -> weight.
      strength: C of the fit.
      num_items: judgments that were fitted (the gamed baselines' not counted).
    """

    glm: str
    win_rate: float
    standard_error: float
    low: float
    high: float
    coefficients: dict[str, float]
    strength: float
    num_items: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON, under alpaca_eval's names; rates in per cent."""
        return {
            "length_controlled_winrate": 100 * self.win_rate,
            "lc_standard_error": 100 * self.standard_error,
            "lc_interval": [100 * self.low, 100 * self.high],
            "lc_glm": self.glm,
            "lc_coefficients": self.coefficients,
            "lc_strength": self.strength,
            "lc_num_items": self.num_items,
        }


def length_controlled_win_rate(
    annotations: Sequence[Annotation], data: LengthData, *, glm: GlmName, sampling: Sampling
) -> LengthControlled:
    """The win rate of one contest, had the outputs been of the same length.

    Args:
      annotations: of one model, baseline and judge.
      data: difficulties and gamed baselines; see `read_length_data`.
      glm: `length_controlled_v1`, or without the gamed baselines (noreg), or without difficulties too (minimal).
      sampling: how the interval is drawn, with at most MAX_REFITS refits.

    Raises:
      InputError: a length or a difficulty is missing, there are too few judgments, or scikit-learn is not installed.
    """
    features_NM = _features(annotations, data, with_difficulty=glm != "length_controlled_minimal")
    parsed = np.array([a.preference is not None for a in annotations])
    target_N = np.array([0.5 if a.preference is None else a.preference - 1 for a in annotations])
    if parsed.sum() < MIN_JUDGMENTS:
        raise InputError(
            f"{annotations[0].location}: {annotations[0].model} has {parsed.sum()} parsed judgments; wanted at least "
            f"{MIN_JUDGMENTS} for a length-controlled win rate"
        )
    # Empty but for v1. These rows come first, as in alpaca_eval: the folds are cut by the order of rows.
    gamed_XM = data.gamed_XM.reshape(-1, features_NM.shape[1])
    train_XM = np.concatenate([gamed_XM, features_NM[parsed]])
    target_X = np.concatenate([data.gamed_X, target_N[parsed]])
    # The last feature says whose row it is.
    weight_X = np.where(train_XM[:, -1] == 1, 1.0, GAMED_WEIGHT)
    strength = _best_strength(train_XM, target_X, weight_X)
    coefficients_M = _fit(train_XM, target_X, weight_X, strength)
    equal_NM = features_NM.copy()
    equal_NM[:, 0] = 0.0
    predicted_N = _logistic(equal_NM @ coefficients_M)
    fitted = np.flatnonzero(parsed)

    def refitted(index_N: np.ndarray) -> float:
        rows = np.concatenate([np.arange(len(gamed_XM)), len(gamed_XM) + index_N])
        weights_M = _fit(train_XM[rows], target_X[rows], weight_X[rows], strength)
        return float(_logistic(equal_NM[fitted[index_N]] @ weights_M).mean())

    refits = dataclasses.replace(sampling, resamples=min(sampling.resamples, MAX_REFITS))
    low, high = bootstrap_interval(refitted, len(fitted), sampling=refits)
    names = ["length", *(["difficulty"] if features_NM.shape[1] == 3 else []), "model"]
    return LengthControlled(
        glm=glm,
        win_rate=float(predicted_N.mean()),
        standard_error=float(predicted_N.std(ddof=1) / np.sqrt(len(predicted_N))),
        low=low,
        high=high,
        coefficients=dict(zip(names, map(float, coefficients_M), strict=True)),
        strength=float(strength),
        num_items=len(fitted),
    )


def _features(annotations: Sequence[Annotation], data: LengthData, *, with_difficulty: bool) -> np.ndarray:
    """[N, M]: tanh of the standardised length difference, the difficulty where asked for, 1 for the model itself."""
    differences = []
    for annotation in annotations:
        if annotation.length_model is None or annotation.length_baseline is None:
            raise InputError(
                f"{annotation.location}: has neither output_1 and output_2 nor len_1 and len_2; wanted them, since a "
                "length-controlled win rate needs the outputs' lengths"
            )
        differences.append(annotation.length_baseline - annotation.length_model)
    spread = np.std(differences, ddof=1) if len(differences) > 1 else 0.0
    if not spread > 0:
        raise InputError(
            f"{annotations[0].location}: all outputs differ in length by the same; there is no length to control for, "
            "so leave out length_control"
        )
    columns = [np.tanh(np.array(differences) / spread)]
    if with_difficulty:
        unknown = [a for a in annotations if a.index not in data.difficulty]
        if unknown:
            raise InputError(
                f"{unknown[0].location}: instruction {unknown[0].index} has no difficulty in length_control.file; "
                "wanted one for each instruction (glm length_controlled_minimal needs none)"
            )
        columns.append(np.array([data.difficulty[a.index] for a in annotations]))
    return np.column_stack([*columns, np.ones(len(annotations))])


def _fit(features_XM: np.ndarray, target_X: np.ndarray, weight_X: np.ndarray, strength: float) -> np.ndarray:
    """[M] coefficients. A target p is fitted as a 1 with weight p and a 0 with weight 1 - p."""
    model = require_scikit_learn()(
        C=strength, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=_SEED, tol=1e-4, max_iter=100
    )
    labels = np.repeat([1, 0], len(target_X))
    weights = np.concatenate([target_X, 1 - target_X]) * np.concatenate([weight_X, weight_X])
    model.fit(np.concatenate([features_XM, features_XM]), labels, sample_weight=weights)
    coefficients: np.ndarray = model.coef_[0]
    return coefficients


def _best_strength(features_XM: np.ndarray, target_X: np.ndarray, weight_X: np.ndarray) -> float:
    """The strength of the least mean log loss on folds that were not fitted."""
    fold_X = _folds(len(target_X))
    losses = np.zeros(len(STRENGTHS))
    for fold in range(NUM_FOLDS):
        kept, held = fold_X != fold, fold_X == fold
        for place, strength in enumerate(STRENGTHS):
            coefficients_M = _fit(features_XM[kept], target_X[kept], weight_X[kept], strength)
            predicted = np.clip(_logistic(features_XM[held] @ coefficients_M), 1e-15, 1 - 1e-15)
            loss = target_X[held] * np.log(predicted) + (1 - target_X[held]) * np.log(1 - predicted)
            losses[place] -= (loss * weight_X[held]).mean() / NUM_FOLDS
    return float(STRENGTHS[losses.argmin()])


def _folds(num_items: int) -> np.ndarray:
    """[X] the fold of each item, by scikit-learn's rule for groups of equal size: one after another, from the end."""
    return (num_items - 1 - np.arange(num_items)) % NUM_FOLDS


def _logistic(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))


def require_scikit_learn() -> Any:
    """Its logistic regression. Raises InputError where it is not installed."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise InputError(
            "alpaca_eval.length_control needs scikit-learn, which is not installed; the way out: "
            "pip install 'zephyr-jax[evaluate]' (in a checkout: pip install -e '.[evaluate]'), or leave the block out"
        ) from error
    return LogisticRegression
