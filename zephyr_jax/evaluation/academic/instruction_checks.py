"""The checks of IFEval's 25 kinds of instructions (arXiv:2311.07911), each from what the instruction asks.

A check takes an answer and the instruction's own values, and says whether the answer follows. Where the published
checks are looser or stricter than the instruction's words, the published behaviour holds: a language that cannot be
told counts as followed. One differs: a `letter` that is none (# and ! in two published prompts) is counted as it
stands, where the published check counts a random letter.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from zephyr_jax.evaluation.academic.text_units import count_capital_words, count_sentences, count_words

Check = Callable[[str, Mapping[str, Any]], bool]

_DIVIDER, _TWO_ANSWERS = "***", "******"
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _holds(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _has_keywords(answer: str, values: Mapping[str, Any]) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in values["keywords"])


def _has_keyword_so_often(answer: str, values: Mapping[str, Any]) -> bool:
    count = len(re.findall(re.escape(values["keyword"].strip()), answer, re.IGNORECASE))
    return _holds(count, values["relation"], values["frequency"])


def _has_no_forbidden_word(answer: str, values: Mapping[str, Any]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in values["forbidden_words"])


def _has_letter_so_often(answer: str, values: Mapping[str, Any]) -> bool:
    count = answer.lower().count(values["letter"].strip().lower())
    return _holds(count, values["let_relation"], values["let_frequency"])


def _has_sentences(answer: str, values: Mapping[str, Any]) -> bool:
    return _holds(count_sentences(answer), values["relation"], values["num_sentences"])


def _has_words(answer: str, values: Mapping[str, Any]) -> bool:
    return _holds(count_words(answer), values["relation"], values["num_words"])


def _has_paragraphs(answer: str, values: Mapping[str, Any]) -> bool:
    """Paragraphs between dividers; an empty one is none at the ends and a fault in the middle."""
    paragraphs = [bool(part.strip()) for part in answer.split(_DIVIDER)]
    return all(paragraphs[1:-1]) and sum(paragraphs) == values["num_paragraphs"]


def _paragraph_begins_with(answer: str, values: Mapping[str, Any]) -> bool:
    """So many paragraphs between empty lines, and the nth of them begins with the word."""
    paragraphs = answer.split("\n\n")
    count, place = sum(bool(part.strip()) for part in paragraphs), values["nth_paragraph"]
    if place > count or not paragraphs[place - 1].strip():
        return False
    word = paragraphs[place - 1].split()[0].lstrip("'").lstrip('"').lower()
    return count == values["num_paragraphs"] and re.split(r"""[.,?!'"]""", word)[0] == values["first_word"].lower()


def _has_placeholders(answer: str, values: Mapping[str, Any]) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= values["num_placeholders"]


def _has_postscript(answer: str, values: Mapping[str, Any]) -> bool:
    marker = values["postscript_marker"].strip()
    # With or without spaces between the letters.
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(spaced.get(marker, re.escape(marker.lower())), answer.lower()))


def _has_bullets(answer: str, values: Mapping[str, Any]) -> bool:
    """Lines that begin with * (not ** nor alone) or -."""
    stars = re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", answer, re.MULTILINE)) == values["num_bullets"]


def _is_an_option(answer: str, values: Mapping[str, Any]) -> bool:
    return any(option in answer for option in _OPTIONS)


def _has_highlights(answer: str, values: Mapping[str, Any]) -> bool:
    """*This* or **this**, on one line; what stands in two pairs of stars is found by both."""
    single = [text.strip("*").strip() for text in re.findall(r"\*[^\n*]*\*", answer)]
    double = [text[2:-2].strip() for text in re.findall(r"\*\*[^\n*]*\*\*", answer)]
    return sum(map(bool, single + double)) >= values["num_highlights"]


def _has_sections(answer: str, values: Mapping[str, Any]) -> bool:
    marks = re.findall(rf"{re.escape(values['section_spliter'].strip())}\s?\d+", answer)
    return len(marks) >= values["num_sections"]


def _is_json(answer: str, values: Mapping[str, Any]) -> bool:
    inside = re.sub(r"^```(json|Json|JSON)?", "", answer.strip())
    try:
        json.loads(inside.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _has_title(answer: str, values: Mapping[str, Any]) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer))


def _is_two_answers(answer: str, values: Mapping[str, Any]) -> bool:
    """Two different texts with six asterisks between them; an empty one is none at the ends and a fault in between."""
    parts = [part.strip() for part in answer.split(_TWO_ANSWERS)]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def _repeats_prompt(answer: str, values: Mapping[str, Any]) -> bool:
    return answer.strip().lower().startswith(values["prompt_to_repeat"].strip().lower())


def _ends_with(answer: str, values: Mapping[str, Any]) -> bool:
    return answer.strip().strip('"').lower().endswith(values["end_phrase"].strip().lower())


def _has_capital_words(answer: str, values: Mapping[str, Any]) -> bool:
    return _holds(count_capital_words(answer), values["capital_relation"], values["capital_frequency"])


def _has_no_comma(answer: str, values: Mapping[str, Any]) -> bool:
    return "," not in answer


def _is_quoted(answer: str, values: Mapping[str, Any]) -> bool:
    answer = answer.strip()
    return len(answer) > 1 and answer[0] == answer[-1] == '"'


def _is_in_language(answer: str, values: Mapping[str, Any]) -> bool:
    return language_of(answer) in (None, values["language"])


def _is_english_in_capitals(answer: str, values: Mapping[str, Any]) -> bool:
    return answer.isupper() and language_of(answer) in (None, "en")


def _is_english_in_small_letters(answer: str, values: Mapping[str, Any]) -> bool:
    return answer.islower() and language_of(answer) in (None, "en")


# Instruction -> its check, and the values that it needs.
CHECKS: Mapping[str, tuple[Check, tuple[str, ...]]] = {
    "keywords:existence": (_has_keywords, ("keywords",)),
    "keywords:frequency": (_has_keyword_so_often, ("keyword", "relation", "frequency")),
    "keywords:forbidden_words": (_has_no_forbidden_word, ("forbidden_words",)),
    "keywords:letter_frequency": (_has_letter_so_often, ("letter", "let_relation", "let_frequency")),
    "language:response_language": (_is_in_language, ("language",)),
    "length_constraints:number_sentences": (_has_sentences, ("relation", "num_sentences")),
    "length_constraints:number_paragraphs": (_has_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (_has_words, ("relation", "num_words")),
    "length_constraints:nth_paragraph_first_word": (
        _paragraph_begins_with,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (_has_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_has_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (_has_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": (_is_an_option, ()),
    "detectable_format:number_highlighted_sections": (_has_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": (_has_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (_is_json, ()),
    "detectable_format:title": (_has_title, ()),
    "combination:two_responses": (_is_two_answers, ()),
    "combination:repeat_prompt": (_repeats_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": (_ends_with, ("end_phrase",)),
    "startend:quotation": (_is_quoted, ()),
    "change_case:capital_word_frequency": (_has_capital_words, ("capital_relation", "capital_frequency")),
    "change_case:english_capital": (_is_english_in_capitals, ()),
    "change_case:english_lowercase": (_is_english_in_small_letters, ()),
    "punctuation:no_comma": (_has_no_comma, ()),
}
NEED_LANGUAGE = {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}


def can_tell_languages() -> bool:
    """Whether langdetect is installed (extra [ifeval])."""
    return importlib.util.find_spec("langdetect") is not None


def language_of(text: str) -> str | None:
    """ISO 639-1 code of a text's language; None where it cannot be told."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it draws at random, and the same answer is to have the same score
    try:
        return detect(text)
    except LangDetectException:
        return None
