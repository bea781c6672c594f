"""The questions of the embedded default's data set: families of small facts, their phrasings, right and wrong answers.

Every fact has one right answer and one wrong one, and the wrong one is a mistake that a learner makes (the day before
instead of the day after, `mouses`, a sum that is one short), in the same form and of about the same length. This module
holds tables and the programs that fill them; who is asked what, and how often the teacher errs, is in `tasks.py`.
"""

from __future__ import annotations

import dataclasses

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
# Every question can be put with or without each of these in front. A byte model from random weights learns to find the
# subject of a question only where it sees it in many places; from four phrasings alone it learns prompts by heart.
_OPENERS = ("", "Hello. ", "Tell me: ", "Question: ")

# word, its opposite, a word that is near in meaning but no opposite
_OPPOSITES = """
hot cold warm; big small huge; fast slow quick; happy sad glad; rich poor wealthy; wet dry damp; hard soft firm;
old new aged; loud quiet noisy; early late prompt; strong weak tough; dark light dim
"""
# verb, its past tense, the regular form that a learner makes up
_PAST_TENSES = """
go went goed; eat ate eated; run ran runned; take took taked; come came comed; give gave gived; know knew knowed;
find found finded; think thought thinked; buy bought buyed; write wrote writed; swim swam swimmed
"""
# noun, its plural, the regular form that a learner makes up
_PLURALS = """
mouse mice mouses; child children childs; foot feet foots; tooth teeth tooths; goose geese gooses; man men mans;
ox oxen oxes; leaf leaves leafs; wolf wolves wolfs; sheep sheep sheeps; person people persones; city cities citys
"""
# animal, its young, the young of an animal it is often taken for
_YOUNG = """
dog puppy kitten; cat kitten puppy; cow calf foal; horse foal calf; sheep lamb kid; goat kid lamb;
duck duckling gosling; goose gosling duckling; pig piglet cub; bear cub piglet; swan cygnet tadpole; frog tadpole cygnet
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One thing to know: what the question is about, its right answer, and the mistake made about it."""

    subject: str
    right: str
    wrong: str


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """Facts that are asked for in the same words.

    Attributes:
      name: for figures per family.
      phrasings: the question with `{}` where the subject goes; every fact can be asked in each of them.
      facts: what is asked about.
    """

    name: str
    phrasings: tuple[str, ...]
    facts: tuple[Fact, ...]


def all_families() -> tuple[Family, ...]:
    """All families, in a fixed order."""
    return (
        _family("day after", "Which day comes after {}?|What day follows {}?|Name the day after {}.|"
                "Today is {}. Which day is tomorrow?", _neighbours(_WEEKDAYS, step=1)),
        _family("day before", "Which day comes before {}?|What day precedes {}?|Name the day before {}.|"
                "Today is {}. Which day was yesterday?", _neighbours(_WEEKDAYS, step=-1)),
        _family("month after", "Which month comes after {}?|What month follows {}?|Name the month after {}.|"
                "It is {}. Which month is next?", _neighbours(_MONTHS, step=1)),
        _family("month before", "Which month comes before {}?|What month precedes {}?|Name the month before {}.|"
                "It is {}. Which month was last?", _neighbours(_MONTHS, step=-1)),
        _family("sum", "What is {}?|Add up {}.|How much is {}?|Please work out {}.", _sums()),
        _family("opposite", "What is the opposite of {}?|Give the opposite of {}.|Which word is opposed to {}?|"
                "Say the reverse of {}.", _table(_OPPOSITES)),
        _family("past tense", "What is the past tense of {}?|Give the past tense of {}.|Put {} into the past.|"
                "How do you say {} in the past?", _table(_PAST_TENSES)),
        _family("plural", "What is the plural of {}?|Give the plural of {}.|One {}, two what?|"
                "What do you call more than one {}?", _table(_PLURALS)),
        _family("young", "What is a young {} called?|What is the young of a {}?|Name the baby of a {}.|"
                "What do you call a little {}?", _table(_YOUNG)),
    )  # fmt: skip


def _family(name: str, phrasings: str, facts: tuple[Fact, ...]) -> Family:
    return Family(name, tuple(opener + core for core in phrasings.split("|") for opener in _OPENERS), facts)


def _table(text: str) -> tuple[Fact, ...]:
    return tuple(Fact(*entry.split()) for entry in text.split(";"))


def _neighbours(names: tuple[str, ...], *, step: int) -> tuple[Fact, ...]:
    """The next (step 1) or the previous (step -1) of names in a circle; the mistake goes the other way."""
    count = len(names)
    return tuple(Fact(n, names[(i + step) % count], names[(i - step) % count]) for i, n in enumerate(names))


def _sums() -> tuple[Fact, ...]:
    """Sums of two small numbers; the mistake is to count the first number as the first step: one too few."""
    return tuple(Fact(f"{a} + {b}", str(a + b), str(a + b - 1)) for a in range(2, 6) for b in range(2, 6))
