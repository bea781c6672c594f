"""The questions of the embedded default's data set: families of small facts, their phrasings, right and wrong answers.

Every fact has one right answer and one wrong one. The wrong one is a mistake that a learner makes (`mouses`, `Wensday`,
the largest city taken for the capital), has the same form, and is the right answer to no other question: a mistake that
is right elsewhere can be unlearned only together with its place, which a model this small does not manage. Who is asked
what, and how often the teacher errs, is in `tasks.py`.
"""

from __future__ import annotations

import dataclasses

# Every question can be put with or without each of these in front. A byte model from random weights learns to find the
# subject of a question only where it sees it in many places; without them it learns whole prompts by heart.
OPENERS = ("", "Hello. ", "Tell me: ", "Question: ")

# word, its opposite, a word that is near in meaning but no opposite
_OPPOSITES = """
hot cold warm; big small huge; fast slow quick; happy sad glad; rich poor wealthy; wet dry damp; old new aged;
strong weak tough; early late prompt
"""
# verb, its past tense, the regular form that a learner makes up
_PAST_TENSES = """
go went goed; eat ate eated; run ran runned; take took taked; give gave gived; know knew knowed; find found finded;
buy bought buyed; swim swam swimmed
"""
# noun, its plural, the regular form that a learner makes up
_PLURALS = """
mouse mice mouses; child children childs; foot feet foots; tooth teeth tooths; man men mans; ox oxen oxes;
leaf leaves leafs; wolf wolves wolfs; city cities citys
"""
# adjective, its comparative, a wrong or misspelt form of it
_COMPARATIVES = """
good better gooder; bad worse badder; far farther farer; many more manyer; little less littler; easy easier easyer;
lazy lazier lazyer; thin thinner thiner; red redder reder
"""
# number, its ordinal, a regular or misspelt form of it
_ORDINALS = """
one first oneth; two second twoth; three third threeth; four fourth forth; five fifth fiveth; eight eighth eightth;
nine ninth nineth; twelve twelfth twelveth; twenty twentieth twentyth
"""
# country, its capital, another large city
_CAPITALS = """
Australia Canberra Sydney; Turkey Ankara Istanbul; Brazil Brasilia Rio; China Beijing Shanghai; India Delhi Mumbai;
Italy Rome Milan; Spain Madrid Barcelona; Morocco Rabat Casablanca; Germany Berlin Munich
"""
# In the order of the week: name, and a misspelling.
_WEEKDAYS = """
Monday Munday; Tuesday Teusday; Wednesday Wensday; Thursday Thirsday; Friday Fryday; Saturday Saterday; Sunday Sonday
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
      phrasings: the question with `{}` where the subject goes, to stand after any of `OPENERS`.
      facts: what is asked about.
    """

    name: str
    phrasings: tuple[str, ...]
    facts: tuple[Fact, ...]


def all_families() -> tuple[Family, ...]:
    """All families, in a fixed order."""
    return (
        _family("day after", "Which day comes after {}?|What day follows {}?|Name the day after {}.|"
                "Give the day after {}.|What is the day after {}?|Which day is next after {}?", _successors(_WEEKDAYS)),
        _family("sum", "What is {}?|Add up {}.|How much is {}?|Please work out {}.|Find the sum {}.|"
                "What do you get from {}?", _sums()),
        _family("opposite", "What is the opposite of {}?|Give the opposite of {}.|Name the opposite of {}.|"
                "Which word is opposed to {}?|Say the reverse of {}.|What is the contrary of {}?", _table(_OPPOSITES)),
        _family("past tense", "What is the past tense of {}?|Give the past tense of {}.|Name the past form of {}.|"
                "Which word is the past of {}?|Put into the past: {}.|What is the past of {}?", _table(_PAST_TENSES)),
        _family("plural", "What is the plural of {}?|Give the plural of {}.|Name the plural of {}.|"
                "Which word is the plural of {}?|Put into the plural: {}.|Make a plural of {}.", _table(_PLURALS)),
        _family("comparative", "What is the comparative of {}?|Give the comparative of {}.|Name the comparative of {}.|"
                "Which word says more than {}?|Put into the comparative: {}.|Make a comparative of {}.",
                _table(_COMPARATIVES)),
        _family("ordinal", "What is the ordinal of {}?|Give the ordinal of {}.|Name the ordinal of {}.|"
                "Which place has number {}?|Turn into an ordinal: {}.|Make an ordinal of {}.", _table(_ORDINALS)),
        _family("capital", "What is the capital of {}?|Give the capital of {}.|Name the capital of {}.|"
                "Which city is the capital of {}?|Which city governs {}?|Where is the government of {}?",
                _table(_CAPITALS)),
    )  # fmt: skip


def _family(name: str, phrasings: str, facts: tuple[Fact, ...]) -> Family:
    return Family(name, tuple(phrasings.split("|")), facts)


def _table(text: str) -> tuple[Fact, ...]:
    return tuple(Fact(*entry.split()) for entry in text.split(";"))


def _successors(text: str) -> tuple[Fact, ...]:
    """What follows each name in a circle of names; the mistake is the misspelling of what follows."""
    names = [entry.split() for entry in text.split(";")]
    return tuple(Fact(name, *names[(i + 1) % len(names)]) for i, (name, _) in enumerate(names))


def _sums() -> tuple[Fact, ...]:
    """Sums of two small numbers; the mistake is to write one number after the other."""
    return tuple(Fact(f"{a} + {b}", str(a + b), f"{a}{b}") for a in range(3, 6) for b in range(3, 6))
