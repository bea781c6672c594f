"""How far each judge is trusted: its measured agreement with a trusted judge, to stand beside every score it gives.

Measured here from stored judgments, or earlier by `judge_agreement`, whose file is read again. Not here: what agreement
is (agreement.py), and having a model judge what a trusted judge has judged (rejudging.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from zephyr_jax.evaluation.agreement import Judgments, agreement, read_judge
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.evaluation_recipe import AgreementOptions
from zephyr_jax.records import InputError

Kind = Literal["verdicts", "gradings"]
# The figure of each kind that stands for it, and how it reads.
_FIGURES: Mapping[str, tuple[str, str]] = {"verdicts": ("agreement", ""), "gradings": ("within_one", "within 1 on ")}


@dataclasses.dataclass(frozen=True)
class AgreementResult:
    """A judge's agreement with a reference.

    Attributes:
      judge, reference: their files; of a judge that was asked, the model.
      judge_names, reference_names: whose judgments those are, as the rows say.
      agreements: for each kind of judgment, what VerdictAgreement or GradingAgreement say as JSON; none where no item
        has a judgment by both that could be read.
      judge_model: of a judge that was asked, the model: its name at the servers, its folder, builtin:NAME.
      asked: how it was asked.
      position: of a judge that was asked in both orders, its position bias, as JSON.
    """

    judge: tuple[str, ...]
    reference: tuple[str, ...]
    judge_names: tuple[str, ...]
    reference_names: tuple[str, ...]
    agreements: tuple[Mapping[str, Any], ...]
    judge_model: str | None = None
    asked: str | None = None
    position: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `read_measured` reads it."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def sentence(self) -> str:
        """Who agrees with whom, and how far."""
        parts = [] if self.agreements else ["no item has a judgment by both that could be read"]
        for kind in self.agreements:
            unparsed = ""
            if kind["num_unparsed"]:
                unparsed = f"; {kind['num_unparsed']} of {kind['num_common']} common items unparsed"
            parts.append(f"{kind['sentence']}{unparsed}")
        judge, reference = (", ".join(Path(name).name for name in names) for names in (self.judge, self.reference))
        how = f" ({self.asked})" if self.asked else ""
        return f"{judge}{how} beside {reference}: {'. '.join(parts)}."


def agreement_of(
    judge: Judgments, reference: Judgments, names: tuple[Sequence[str], Sequence[str]], *, sampling: Sampling
) -> AgreementResult:
    """A judge beside a reference.

    Args:
      judge, reference: what they said.
      names: of their files, or of the model that was asked.
      sampling: how intervals are drawn.

    Raises:
      InputError: an index stands for different instructions in the two.
    """
    found = [kind for kind in agreement(judge, reference, sampling=sampling) if kind is not None]
    return AgreementResult(
        judge=tuple(names[0]),
        reference=tuple(names[1]),
        judge_names=tuple(sorted(judge.judges)),
        reference_names=tuple(sorted(reference.judges)),
        agreements=tuple(kind.as_dict() for kind in found),
    )


def agreement_results(
    options: AgreementOptions, *, own: Sequence[Judgments] = (), sampling: Sampling
) -> list[AgreementResult]:
    """What one block `agreement` of a recipe asks for.

    Args:
      options: the block.
      own: what the recipe's own judges said, each judge's apart.
      sampling: how intervals are drawn.

    Returns:
      One; where the block names no judge's files, one for each of the recipe's judges.

    Raises:
      InputError: a file cannot be used, or no item is judged by both of two files.
    """
    if options.measured is not None:
        return [read_measured(options.measured)]
    assert options.reference is not None
    files, reference = options.reference, read_judge(options.reference)
    if options.judge is None:
        return [agreement_of(judge, reference, (sorted(judge.judges), files), sampling=sampling) for judge in own]
    result = agreement_of(read_judge(options.judge), reference, (options.judge, files), sampling=sampling)
    if not result.agreements:
        raise InputError(
            f"agreement of {', '.join(options.judge)} with {', '.join(files)}: no item with a parsed judgment by both; "
            "wanted judgments of the same kind on the same instructions (or questions and turns) and of the same models"
        )
    return [result]


def read_measured(file: str) -> AgreementResult:
    """What `judge_agreement` wrote.

    Raises:
      InputError: the file cannot be read, or is something else.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        fields: dict[str, Any] = {field.name: content[field.name] for field in dataclasses.fields(AgreementResult)}
        tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        result = AgreementResult(**(fields | tuples))
        for kind in result.agreements:
            share = kind[_FIGURES[kind["kind"]][0]]
            _ = (share["share"], share["interval"], share["total"], kind["weak"], kind["sentence"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"agreement.measured {file}: cannot be read ({error!r}); wanted what judge_agreement --out wrote"
        ) from error
    return result


@dataclasses.dataclass(frozen=True)
class Trust:
    """How far one judge's scores of one kind are to be trusted.

    Attributes:
      judge: its name.
      found: its agreement with the reference; None: not measured, or it is a reference itself.
      reference: whom it was set beside.
      asked: how the judge was asked then, which may not be how it was asked for the score.
      is_reference: others were set beside it.
    """

    judge: str
    found: Mapping[str, Any] | None
    reference: str = ""
    asked: str | None = None
    is_reference: bool = False

    @property
    def _figure(self) -> tuple[str, Mapping[str, Any]]:
        assert self.found is not None
        name, words = _FIGURES[self.found["kind"]]
        return words, self.found[name]

    def cell(self) -> str:
        """For a table: `62.5 % of 40, WEAK`."""
        if self.is_reference:
            return "the reference"
        if self.found is None:
            return "not measured"
        words, share = self._figure
        if not share["total"]:
            return "decides nothing, WEAK"
        weak = ", WEAK" if self.found["weak"] else ""
        return f"{words}{100 * share['share']:.1f} % of {share['total']}{weak}"

    def tile(self) -> str:
        """For the title of a score's tile; empty where nothing need be said."""
        if self.is_reference:
            return ""
        if self.found is None:
            return " (agreement not measured)"
        return f" ({'a WEAK judge' if self.found['weak'] else 'agreement'}: {self.cell().removesuffix(', WEAK')})"

    def sentence(self) -> str:
        """What may be said of it; empty for a reference."""
        if self.is_reference:
            return ""
        if self.found is None:
            return f"Agreement of {self.judge} with a trusted judge: not measured."
        asked = f" ({self.asked})" if self.asked else ""
        return f"Agreement of {self.judge}{asked} with {self.reference}: {self.found['sentence']}."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        if self.is_reference or self.found is None:
            return {"status": "reference" if self.is_reference else "not measured"}
        _, share = self._figure
        found = {name: self.found[name] for name in ("kind", "weak")}
        return {"status": "measured", "reference": self.reference, "asked": self.asked, **found, **share}


class Trusts:
    """All that is known of the judges of one evaluation."""

    def __init__(self, results: Sequence[AgreementResult], models: Mapping[str, str]):
        """Args:
        results: what was measured.
        models: judges that are models of the recipe: name -> model.
        """
        self._results, self._models = results, models

    def of(self, judge: str | None, kind: Kind) -> Trust:
        """How far a judge's scores of a kind are to be trusted.

        A figure of the other kind stands in where there is none of this one. Of a judge that is a model of the recipe,
        what was measured of the same model counts, whatever its name was.
        """
        name = judge or "the judge"
        about = [(result, found) for result in self._results for found in result.agreements if self._is(result, judge)]
        about.sort(key=lambda entry: entry[1]["kind"] != kind)
        if about:
            result, found = about[0]
            reference = ", ".join(result.reference_names) or Path(result.reference[0]).name
            return Trust(name, found, reference, result.asked)
        # A model that is asked may be called gpt-4 as FastChat's browser wants it, and be no GPT-4.
        stored = judge not in self._models
        return Trust(name, None, is_reference=stored and any(judge in found.reference_names for found in self._results))

    def _is(self, result: AgreementResult, judge: str | None) -> bool:
        model = self._models.get(judge or "")
        if model is not None and result.judge_model is not None:
            return model == result.judge_model
        return judge in result.judge_names
