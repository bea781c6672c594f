"""How far a judge is to be trusted: its stored judgments beside a reference judge's (GPT-4, people) on the same items.

Two kinds of judgment: verdicts between two answers (AlpacaEval's annotations, FastChat's pairs, the Vicuna blog's
reviews) and gradings of one (FastChat's). An agreement means little alone: always choosing the better model of a
lopsided contest agrees often, and so does choosing the longer answer. Both are computed beside it, and a judge that is
not surely better than they are is called weak.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.data.comparison_statistics import Share, rank_correlation
from zephyr_jax.evaluation.alpaca_eval import Annotation, check_instructions, parse_annotation
from zephyr_jax.evaluation.fastchat_files import UNPARSED, Grading, parse_judgment
from zephyr_jax.evaluation.mt_bench import RATINGS
from zephyr_jax.evaluation.pairwise import outcome
from zephyr_jax.evaluation.statistics import Estimate, Sampling, bootstrap_interval, estimate_mean, is_few, share
from zephyr_jax.evaluation.stored_rows import field, read_rows
from zephyr_jax.records import InputError

Key = tuple[object, ...]
_DIFFERENCES = (RATINGS[0] - RATINGS[1], RATINGS[1] - RATINGS[0])
_MAX_RANKINGS = 1000  # of the interval of a rank correlation: each sorts all items
_REVIEW = "a review of the Vicuna blog, with question_id, model_1, model_2 and a score of two numbers"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One judgment between the answers of two models, which are `first` and `second` by their names' order.

    Attributes:
      value: 1 the first model's answer, -1 the second's, 0 a tie; None: not parsed.
      longer: 1 the first model's answer is longer, -1 the second's, 0 neither; None: not known.
    """

    value: int | None
    longer: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class VerdictAgreement:
    """A judge's verdicts beside a reference's.

    Attributes:
      num_common: items that both judged; those of one alone are not counted anywhere.
      num_unparsed: of these, judgments of the judge without a verdict; the rest is over what both decided or tied.
      agreed: both chose the same answer, of the items where neither tied.
      agreed_with_ties: both said the same, ties included.
      kappa: Cohen's, of the three verdicts: 0 is what chance gives, 1 is full; None where chance gives full agreement.
      same_model: what always choosing the reference's favourite model would agree, where neither tied.
      longer: what always choosing the longer answer would agree; None where lengths are not known.
      gains: how much more often the judge agrees than each of these two, on the same items.
    """

    num_common: int
    num_unparsed: int
    agreed: Share
    agreed_with_ties: Share
    kappa: float | None
    same_model: Share
    longer: Share | None
    gains: tuple[Estimate, ...]

    @property
    def weak(self) -> bool:
        """Whether it is not surely above both of the judges that look at nothing, item by item."""
        return not self.gains or any(gain.low is None or gain.low <= 0 for gain in self.gains)

    def sentence(self) -> str:
        """What may be said of it."""
        if not self.agreed.total:
            return f"a WEAK judge: it decides none of the {self.num_common} items that the reference decides"
        lazy = [f"always the better model {self.same_model.share:.1%}"]
        if self.longer:
            lazy.append(f"always the longer answer {self.longer.share:.1%}")
        verdict = "a WEAK judge: not surely above " if self.weak else "above "
        return (
            f"agrees on {self.agreed.share:.1%} ({self.agreed.low:.1%} to {self.agreed.high:.1%}) of "
            f"{self.agreed.total} decided items; {verdict}{' and '.join(lazy)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": "verdicts",
            "num_common": self.num_common,
            "num_unparsed": self.num_unparsed,
            "agreement": _share(self.agreed),
            "agreement_with_ties": _share(self.agreed_with_ties),
            "kappa": self.kappa,
            "always_the_same_model": _share(self.same_model),
            "always_the_longer": _share(self.longer) if self.longer else None,
            "gains": [gain.as_dict() for gain in self.gains],
            "weak": self.weak,
            "sentence": self.sentence(),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class GradingAgreement:
    """A judge's gradings beside a reference's.

    Attributes:
      num_common, num_unparsed: as in VerdictAgreement.
      exact, within_one: ratings equal, and at most 1 apart.
      difference: mean of the judge's rating - the reference's.
      rank_correlation: Spearman's; None where there are too few, or one judge says always the same.
      rank_interval: its interval, over questions; None with it, or with too few questions.
      error: mean absolute difference.
      constant_error: that of always giving the reference's median.
      gain: mean of what the judge is nearer than that constant, by item.
    """

    num_common: int
    num_unparsed: int
    exact: Share
    within_one: Share
    difference: Estimate
    rank_correlation: float | None
    rank_interval: tuple[float, float] | None
    error: float
    constant_error: float
    gain: Estimate

    @property
    def weak(self) -> bool:
        """Whether it is not surely nearer to the reference than one constant rating."""
        return self.gain.low is None or self.gain.low <= 0

    def sentence(self) -> str:
        """What may be said of it."""
        rho = ""
        if self.rank_correlation is not None and self.rank_interval is not None:
            low, high = self.rank_interval
            rho = f", rank correlation {self.rank_correlation:.2f} ({low:.2f} to {high:.2f})"
        verdict = "a WEAK judge: not surely nearer than" if self.weak else "nearer than"
        return (
            f"within one point on {self.within_one.share:.1%} ({self.within_one.low:.1%} to "
            f"{self.within_one.high:.1%}) of {self.within_one.total} gradings{rho}; {self.error:.2f} off on average, "
            f"{verdict} one constant rating ({self.constant_error:.2f} off)"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": "gradings",
            "num_common": self.num_common,
            "num_unparsed": self.num_unparsed,
            "exact": _share(self.exact),
            "within_one": _share(self.within_one),
            "rank_correlation": self.rank_correlation,
            "rank_correlation_interval": None if self.rank_interval is None else list(self.rank_interval),
            "difference": self.difference.as_dict(),
            "mean_absolute_error": self.error,
            "constant_mean_absolute_error": self.constant_error,
            "gain": self.gain.as_dict(),
            "weak": self.weak,
            "sentence": self.sentence(),
        }


def _share(share: Share) -> dict[str, Any]:
    """A share of nothing is null: JSON knows no NaN."""
    return {
        "share": share.share if share.total else None,
        "interval": [share.low, share.high],
        "count": share.count,
        "total": share.total,
    }


@dataclasses.dataclass
class Judgments:
    """What a judge's files hold, by item; None could not be parsed.

    Repeated gradings stand in a list; of an item with two verdicts the later one holds. `judges` are who gave them, as
    the rows say, and `annotations` those of the verdicts that are AlpacaEval's.
    """

    verdicts: dict[Key, Verdict] = dataclasses.field(default_factory=dict)
    gradings: dict[Key, list[float | None]] = dataclasses.field(default_factory=dict)
    judges: set[str] = dataclasses.field(default_factory=set)
    annotations: list[Annotation] = dataclasses.field(default_factory=list)


def read_judge(sources: Iterable[str]) -> Judgments:
    """Reads judgments of any kind that is known here.

    Raises:
      InputError: a file cannot be read, or a row is no judgment.
    """
    judgments = Judgments()
    for source in sources:
        add_judgments(judgments, read_rows(source))
    return judgments


def add_judgments(judgments: Judgments, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Adds rows of one file: (`file:line`, row). Raises InputError where a row is no judgment."""
    for place, (location, row) in enumerate(rows):
        if "preference" in row:
            annotation = parse_annotation(row, place, location)
            judgments.annotations.append(annotation)
            decided = None if annotation.preference is None else annotation.preference - 1.5
            lengths = (annotation.length_model, annotation.length_baseline)
            key = ("alpaca_eval", annotation.index)
            judgments.judges |= {annotation.annotator} if annotation.annotator else set()
            names = (annotation.model, annotation.baseline)
            _put(judgments.verdicts, key, names, decided, _difference(*lengths))
        elif isinstance(row.get("score"), list):
            _put_review(judgments.verdicts, row, location)
        else:
            judgment = parse_judgment(row, location)
            judgments.judges.add(judgment.judge)
            item: Key = ("question", judgment.question_id, judgment.turn)
            if isinstance(judgment, Grading):
                score = None if judgment.score == UNPARSED else judgment.score
                judgments.gradings.setdefault((*item, judgment.model), []).append(score)
            else:
                value = {"model_1": 1.0, "model_2": -1.0, "tie": 0.0, "error": None}[outcome(judgment)]
                _put(judgments.verdicts, item, (judgment.model_1, judgment.model_2), value, None)


def _put_review(verdicts: dict[Key, Verdict], row: Mapping[str, Any], location: str) -> None:
    score = row["score"]
    if len(score) != 2 or not all(isinstance(value, (int, float)) for value in score):
        raise InputError(f"{location}: 'score' is {score!r}; wanted {_REVIEW}")
    names = [field(row, key, str, location, wanted=_REVIEW) for key in ("model_1", "model_2")]
    answers = [row.get(key) for key in ("answer_1", "answer_2")]
    lengths = [len(answer) if isinstance(answer, str) else None for answer in answers]
    # A score of -1 stands for a review that could not be parsed.
    value = None if UNPARSED in score else score[0] - score[1]
    key = ("question", row.get("question_id"), 1)
    _put(verdicts, key, (names[0], names[1]), value, _difference(lengths[0], lengths[1]))


def _put(
    verdicts: dict[Key, Verdict], key: Key, names: tuple[str, str], value: float | None, longer: int | None
) -> None:
    """Puts a verdict under its item, seen from whichever model comes first by name."""
    sign = 1 if names[0] <= names[1] else -1
    oriented = [None if given is None else sign * _sign(given) for given in (value, longer)]
    verdicts[*key, *sorted(names)] = Verdict(oriented[0], oriented[1])


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _difference(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first - second


def agreement(
    judge: Judgments, reference: Judgments, *, sampling: Sampling
) -> tuple[VerdictAgreement | None, GradingAgreement | None]:
    """Verdicts and gradings of a judge beside a reference's; None for a kind without a common item that both parsed.

    Raises:
      InputError: an index stands for different instructions in the two.
    """
    check_instructions([*judge.annotations, *reference.annotations])
    return _of_verdicts(judge.verdicts, reference.verdicts, sampling), _of_gradings(
        judge.gradings, reference.gradings, sampling
    )


def _of_verdicts(
    judge: Mapping[Key, Verdict], reference: Mapping[Key, Verdict], sampling: Sampling
) -> VerdictAgreement | None:
    common = [key for key in judge if key in reference and reference[key].value is not None]
    pairs = [(key, judge[key].value, reference[key].value) for key in common if judge[key].value is not None]
    if not pairs:
        return None
    decided = [(key, said, truth) for key, said, truth in pairs if said and truth]
    favourite = _favourites((key, truth) for key, _, truth in decided)
    lengths = {key: _known(judge[key].longer, reference[key].longer) for key, _, _ in decided}
    by_favourite = {key: favourite[key[-2:]] == truth for key, _, truth in decided}
    by_length = {key: lengths[key] == truth for key, _, truth in decided if lengths[key]}
    agreed = {key: said == truth for key, said, truth in decided}

    def shared(hits: Mapping[Key, bool]) -> Share:
        # Verdicts on one instruction or question, of several models or turns, are not independent.
        return share(list(hits.values()), groups=[key[:2] for key in hits], sampling=sampling)

    def gain(lazy: Mapping[Key, bool]) -> Estimate:
        more = [float(agreed[key]) - float(hit) for key, hit in lazy.items()]
        return estimate_mean(more, groups=[key[:2] for key in lazy], within=(-1.0, 1.0), sampling=sampling)

    return VerdictAgreement(
        num_common=len(common),
        num_unparsed=len(common) - len(pairs),
        agreed=shared(agreed),
        agreed_with_ties=shared({key: said == truth for key, said, truth in pairs}),
        kappa=_kappa([(said, truth) for _, said, truth in pairs]),
        same_model=shared(by_favourite),
        longer=shared(by_length) if by_length else None,
        gains=tuple(gain(lazy) for lazy in (by_favourite, by_length) if lazy),
    )


def _known(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def _favourites(verdicts: Iterable[tuple[Key, int | None]]) -> dict[Key, int]:
    """(first, second model) -> the one that won more."""
    sums: Counter[Key] = Counter()
    for key, value in verdicts:
        sums[key[-2:]] += value or 0
    return {models: 1 if total >= 0 else -1 for models, total in sums.items()}


def _kappa(pairs: Sequence[tuple[int | None, int | None]]) -> float | None:
    """(p_agree - p_chance) / (1 - p_chance)   (J. Cohen 1960)"""
    said, truth = Counter(pair[0] for pair in pairs), Counter(pair[1] for pair in pairs)
    by_chance = sum(said[value] * truth[value] for value in said) / len(pairs) ** 2
    agreed = sum(first == second for first, second in pairs) / len(pairs)
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def _of_gradings(
    judge: Mapping[Key, list[float | None]], reference: Mapping[Key, list[float | None]], sampling: Sampling
) -> GradingAgreement | None:
    def parsed(ratings: Sequence[float | None]) -> list[float]:
        return [rating for rating in ratings if rating is not None]

    common = [key for key in judge if key in reference and parsed(reference[key])]
    usable = [key for key in common if parsed(judge[key])]
    if not usable:
        return None
    said_N = np.array([statistics.fmean(parsed(judge[key])) for key in usable])
    truth_N = np.array([statistics.fmean(parsed(reference[key])) for key in usable])
    error_N, constant_N = np.abs(said_N - truth_N), np.abs(np.median(truth_N) - truth_N)
    questions = [key[1] for key in usable]
    return GradingAgreement(
        num_common=len(common),
        num_unparsed=len(common) - len(usable),
        exact=share(list(error_N == 0), groups=questions, sampling=sampling),
        within_one=share(list(error_N <= 1), groups=questions, sampling=sampling),
        difference=estimate_mean(said_N - truth_N, groups=questions, within=_DIFFERENCES, sampling=sampling),
        rank_correlation=rank_correlation(said_N, truth_N),
        rank_interval=_rank_interval(said_N, truth_N, questions, sampling),
        error=float(error_N.mean()),
        constant_error=float(constant_N.mean()),
        gain=estimate_mean(constant_N - error_N, groups=questions, within=_DIFFERENCES, sampling=sampling),
    )


def _rank_interval(
    said_N: np.ndarray, truth_N: np.ndarray, questions: Sequence[object], sampling: Sampling
) -> tuple[float, float] | None:
    """The interval of Spearman's rho over questions drawn anew; a draw where one judge says always the same has 0."""
    places: dict[object, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question, []).append(place)
    if is_few(len(places), sampling.level) or rank_correlation(said_N, truth_N) is None:
        return None
    members = [np.array(places[question]) for question in sorted(places, key=str)]

    def drawn(index_G: np.ndarray) -> float:
        index = np.concatenate([members[group] for group in index_G])
        return rank_correlation(said_N[index], truth_N[index]) or 0.0

    fewer = dataclasses.replace(sampling, resamples=min(sampling.resamples, _MAX_RANKINGS))
    return bootstrap_interval(drawn, len(members), sampling=fewer)
