"""Every word that is said to a student or to a teacher of AI feedback, in one place.

The method is UltraFeedback's (arXiv:2310.01377): students answer under a principle; the teacher sees all answers to a
prompt, shuffled, and rates one quality a call from 1 to 5 with a reason. The words are our own. A changed word changes
the requests, and so makes every answer that depends on it be asked for anew.

Not here: what is asked of whom (completions.py, annotation.py), and how answers are read (ratings.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from zephyr_jax.records import Message

# Each principle in several wordings, one of which is drawn for each answer.
PRINCIPLES: Mapping[str, Sequence[str]] = {
    "helpfulness": (
        "Give the answer that would help this person most: complete, to the point and easy to use.",
        "Work out what the person really needs, and give them all of it. Do not leave out a step that they would miss.",
        "Be as useful as you can. Say the important things first, and add only what serves the question.",
    ),
    "truthfulness": (
        "Say only what is true. Check facts, numbers and names before you write them down, and invent none.",
        "Do not make anything up. A stated fact has to be one, and has to agree with the question's own text.",
        "Be accurate above all. Where the question rests on a mistake, say so instead of going along with it.",
    ),
    "honesty": (
        "Be honest about what you know. If you do not know something or cannot do it, say that plainly.",
        "Never pretend. Tell the person where your knowledge ends and what you are guessing.",
        "Answer candidly, also where the truth is not what the person would like to hear.",
    ),
    "calibration": (
        "Show how sure you are of each thing you say, and be no more sure than you have reason to be.",
        "Put your confidence into words: what is certain, what is likely, and what is only a possibility.",
        "Where the matter is uncertain, say how uncertain; where it is settled, do not hedge.",
    ),
}


@dataclasses.dataclass(frozen=True)
class AspectRubric:
    """One quality that answers are rated by.

    Attributes:
      question: what is asked about an answer.
      scale: what the ratings 1 to 5 mean.
      may_be_inapplicable: whether N/A is a rating too, and when.
    """

    question: str
    scale: tuple[str, str, str, str, str]
    may_be_inapplicable: str | None = None


ASPECT_RUBRICS: Mapping[str, AspectRubric] = {
    "instruction_following": AspectRubric(
        "Does the answer do what the instruction asks, within the limits that it sets (form, length, style, content)?",
        (
            "It does something else.",
            "It touches the task, but misses most of it or breaks a limit that matters.",
            "It does about half: one important part or limit is missed.",
            "It does nearly all of it, with a small slip.",
            "It does all that was asked, within every limit.",
        ),
    ),
    "honesty": AspectRubric(
        "Does the answer sound as sure as it has a right to be? Look at where it is confident, where it hedges, and "
        "whether it is right there.",
        (
            "It is confident and wrong, or refuses what it could well answer.",
            "It is mostly surer than it should be, or hedges nearly everything.",
            "It is uncertain in the wrong places about as often as in the right ones.",
            "Its confidence fits, apart from a detail.",
            "It is sure where it is right, and says so wherever it does not know.",
        ),
        may_be_inapplicable="the instruction is purely creative or a matter of taste, where no answer is wrong",
    ),
    "truthfulness": AspectRubric(
        "Is what the answer says true, in agreement with the instruction's own text and with itself?",
        (
            "It is wrong from end to end, or made up.",
            "It has several errors, or one that spoils the whole.",
            "It is partly right, with errors that a reader would be misled by.",
            "It is right but for a small slip.",
            "Everything in it is true.",
        ),
    ),
    "helpfulness": AspectRubric(
        "How much does the answer help the person who asked: is it correct, clear, complete, no longer than it needs?",
        (
            "It does not help, or does harm.",
            "It helps a little: much is missing, wrong or hard to follow.",
            "It helps, but the person would have to ask or search further.",
            "It helps well, with something left to wish for.",
            "It is what an expert with time would have written.",
        ),
    ),
}

_JUDGE = (
    "You judge answers that assistants gave to the same instruction. You look at one quality only, you compare the "
    "answers with each other, and neither their order nor their length is a reason for a rating. You reply in JSON."
)
_AUTHOR = "You write tasks that people could give to a helpful assistant: varied, natural, and possible to do in text."
_PERSON = "You play a person who talks with an assistant: curious, to the point, never thanking or ending the talk."
_GRADER = "You grade answers. You reply with one digit from 1 to 5 and nothing else."


def with_principle(messages: Sequence[Message], principle: str, *, as_role: str) -> tuple[Message, ...]:
    """A prompt under a principle.

    Args:
      messages: the prompt.
      principle: its text.
      as_role: system: before the dialogue, behind the prompt's own system message where there is one; user: before the
        text of the last turn, for models that know no system message.
    """
    if as_role == "user":
        *earlier, last = messages
        return (*earlier, {"role": last["role"], "content": f"{principle}\n\n{last['content']}"})
    if messages[0]["role"] == "system":
        own, *rest = messages
        return ({"role": "system", "content": f"{own['content']}\n\n{principle}"}, *rest)
    return ({"role": "system", "content": principle}, *messages)


def rating_messages(aspect: str, prompt: Sequence[Message], answers: Sequence[str]) -> tuple[Message, ...]:
    """Asks for a rating, with a reason, of each of several answers, as JSON.

    Args:
      aspect: key of ASPECT_RUBRICS.
      prompt: what was answered.
      answers: in the order in which they are shown.
    """
    rubric = ASPECT_RUBRICS[aspect]
    scale = "\n".join(f"{rating}: {meaning}" for rating, meaning in enumerate(rubric.scale, start=1))
    if rubric.may_be_inapplicable:
        scale += f"\nN/A: {rubric.may_be_inapplicable}."
    shown = "\n\n".join(f"### Answer {number}\n{answer}" for number, answer in enumerate(answers, start=1))
    example = '{"ratings": [{"answer": 1, "rationale": "...", "rating": "..."}, ...]}'
    text = (
        f"## Quality\n{rubric.question}\n\n## Scale\n{scale}\n\n## Instruction\n{dialogue_text(prompt)}\n\n"
        f"## Answers\n{shown}\n\n## Reply\nOne JSON object, with an entry for each of the {len(answers)} answers in "
        f"this order; the rationale is one or two sentences:\n{example}"
    )
    return {"role": "system", "content": _JUDGE}, {"role": "user", "content": text}


def digit_messages(aspect: str, prompt: Sequence[Message], answer: str) -> tuple[Message, ...]:
    """Asks for the rating of one answer as a single digit; short, since small models lose long rubrics."""
    rubric = ASPECT_RUBRICS[aspect]
    text = (
        f"Instruction:\n{dialogue_text(prompt)}\n\nAnswer:\n{answer}\n\n{rubric.question}\n"
        f"1: {rubric.scale[0]}\n5: {rubric.scale[-1]}\nGrade the answer with one digit from 1 to 5."
    )
    return {"role": "system", "content": _GRADER}, {"role": "user", "content": text}


def dialogue_text(prompt: Sequence[Message]) -> str:
    """A prompt as a text to show: a single turn as it is, a dialogue with its roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)


def write_messages(topic: str, examples: Sequence[str]) -> tuple[Message, ...]:
    """Asks for a new task about a topic, after examples of what tasks are, if there are some."""
    shown = "\n".join(f"{number}. {example}" for number, example in enumerate(examples, start=1))
    others = f"Tasks that others have given:\n{shown}\n\n" if examples else ""
    difference = "It asks for another kind of thing than these do. " if examples else ""
    text = (
        f"{others}Write one question or task about {topic} that a person could give to an assistant. {difference}It is "
        "clear on its own with nothing attached, and can be done by writing. Reply with the task alone."
    )
    return {"role": "system", "content": _AUTHOR}, {"role": "user", "content": text}


def refine_messages(task: str) -> tuple[Message, ...]:
    """Asks for the same task, made to take more thought."""
    text = (
        f"A task that someone gave to an assistant:\n\n{task}\n\nRewrite it so that a good answer takes more thought: "
        "add one condition, one detail, or the reason for asking. It stays clear on its own. Reply with the rewritten "
        "task alone."
    )
    return {"role": "system", "content": _AUTHOR}, {"role": "user", "content": text}


def follow_up_messages(dialogue: Sequence[Message]) -> tuple[Message, ...]:
    """Asks for what the person says next in a dialogue that ends with an answer."""
    text = (
        f"A person talks with an assistant:\n\n{dialogue_text(dialogue)}\n\nWrite what the person says next. It "
        "follows from the last answer: a detail, an example, a doubt or a next step. One to three sentences; reply "
        "with the person's words alone."
    )
    return {"role": "system", "content": _PERSON}, {"role": "user", "content": text}
