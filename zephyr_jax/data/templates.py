"""Chat templates: how a dialogue becomes one text, and where in that text the answers stand.

What it is: Zephyr's own template (rendered natively and as the jinja text that goes into saved folders), a
tokenizer's template, or a jinja file, rendered in a sandbox with what Hugging Face templates expect to find.
What it is not: tokenisation (chat.py).
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.records import InputError, Message

_ROLES = ("system", "user", "assistant")

# `<|system|>` and the others are plain text, not tokens of Mistral's vocabulary; only the EOS is one. It is the
# tokenizer's own: `</s>` with Mistral's, `<|im_end|>` with SmolLM2's.
_ZEPHYR_TURNS = (
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# The original recipe put an empty system turn where a dialogue had none.
_ZEPHYR_EMPTY_SYSTEM_TURN = (
    "{% if not messages or messages[0]['role'] != 'system' %}{{ '<|system|>\\n' + eos_token + '\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A jinja chat template.

    Attributes:
      name: what to call it in messages.
      text: its jinja text.
      special_tokens: what it may name: eos_token, bos_token, ...
    """

    name: str
    text: str
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The dialogue as text, up to the header of the next answer if `add_generation_prompt`.

        Raises:
          InputError: the template refuses the dialogue.
        """
        import jinja2

        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            return _compile(self.text).render(
                messages=plain, add_generation_prompt=add_generation_prompt, **self.special_tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"chat template {self.name}: it cannot render a dialogue with the roles [{roles}]: {error}; "
                "change the rows or take another chat_template (zephyr, or a jinja file)"
            ) from error

    def answer_spans(self, messages: Sequence[Message], text: str, *, strict: bool = True) -> list[tuple[int, int]]:
        """Where in `text` what follows each generation prompt begins, and where that turn ends.

        A worked example with Zephyr's template, `|` at the two characters named:
          <|user|> Q</s> <|assistant|> |A</s> |<|user|> Q2</s> <|assistant|> |A2</s> |

        Args:
          messages: the dialogue.
          text: its rendering, with or without a generation prompt.
          strict: False leaves out an earlier answer that the template writes differently once the dialogue goes on
            (templates that drop the reasoning of earlier turns); True makes it an error.

        Returns:
          (start, end) characters per assistant message; the end is after the EOS and whatever the template adds.

        Raises:
          InputError: the text before an answer, or a finished turn, is not a prefix of the whole (strict).
        """
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            through = self.render(messages[: index + 1], add_generation_prompt=False)
            if text.startswith(before) and text.startswith(through) and len(before) <= len(through):
                spans.append((len(before), len(through)))
            elif strict:
                raise InputError(self._rewritten(before if not text.startswith(before) else through, text, index))
        return spans

    def _rewritten(self, part: str, whole: str, index: int) -> str:
        same = next(
            (i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole))
        )
        return (
            f"chat template {self.name}: up to message {index + 1} it renders {part[same : same + 40]!r} "
            f"where the whole dialogue has {whole[same : same + 40]!r} (character {same}), so that no generation "
            "prompt of it leads to this dialogue; use a template that keeps the earlier text "
            "(chat_template: zephyr, or a file)"
        )


class ZephyrTemplate(ChatTemplate):
    """Zephyr's template, rendered without jinja: one pass over the messages, whatever their number."""

    empty_system_turn: bool

    def __init__(self, special_tokens: Mapping[str, str], *, empty_system_turn: bool = False):
        text = (_ZEPHYR_EMPTY_SYSTEM_TURN if empty_system_turn else "") + _ZEPHYR_TURNS
        super().__init__("zephyr", text, special_tokens)
        object.__setattr__(self, "empty_system_turn", empty_system_turn)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """See ChatTemplate.render."""
        return "".join([*self._turns(messages), "<|assistant|>\n" if add_generation_prompt else ""])

    def answer_spans(self, messages: Sequence[Message], text: str, *, strict: bool = True) -> list[tuple[int, int]]:
        """See ChatTemplate.answer_spans; this template never rewrites a turn."""
        turns = self._turns(messages)
        spans, end = [], sum(map(len, turns[: len(turns) - len(messages)]))
        for message, turn in zip(messages, turns[len(turns) - len(messages) :], strict=True):
            start, end = end, end + len(turn)
            if message["role"] == "assistant":
                spans.append((start + len("<|assistant|>\n"), end))
        return spans

    def _turns(self, messages: Sequence[Message]) -> list[str]:
        eos = self.special_tokens["eos_token"]
        turns = []
        if self.empty_system_turn and (not messages or messages[0]["role"] != "system"):
            turns.append(f"<|system|>\n{eos}\n")
        for message in messages:
            if message["role"] not in _ROLES:
                raise InputError(f"chat template zephyr: unknown role {message['role']!r}; wanted one of {_ROLES}")
            turns.append(f"<|{message['role']}|>\n{message['content']}{eos}\n")
        return turns


def load_template(
    choice: str,
    special_tokens: Mapping[str, str],
    *,
    tokenizer_name: str,
    tokenizer_template: str | None,
    empty_system_turn: bool = False,
) -> ChatTemplate:
    """Opens the template a recipe names.

    Args:
      choice: `zephyr`, `tokenizer`, or the path of a jinja file.
      special_tokens: the tokenizer's, under the names templates use; must hold eos_token.
      tokenizer_name: for messages.
      tokenizer_template: the tokenizer's own template, or None.
      empty_system_turn: Zephyr's template only.

    Returns:
      The template.

    Raises:
      InputError: there is none, or it is no jinja text.
    """
    if choice == "zephyr":
        return ZephyrTemplate(special_tokens, empty_system_turn=empty_system_turn)
    if empty_system_turn:
        raise InputError(
            f"empty_system_turn: only the zephyr template has it, got chat_template={choice}; set it to false"
        )
    if choice == "tokenizer":
        if not tokenizer_template:
            raise InputError(
                f"chat_template: tokenizer {tokenizer_name} has no chat template of its own; "
                "wanted chat_template=zephyr or the path of a jinja file"
            )
        name, text = f"of tokenizer {tokenizer_name}", tokenizer_template
    else:
        path = Path(choice)
        if not path.is_file():
            raise InputError(
                f"chat_template: got {choice!r}, which is no file here; "
                "wanted zephyr, tokenizer, or the path of a jinja file"
            )
        try:
            name, text = str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"chat_template: {path} is not UTF-8 text ({error})") from error
    import jinja2

    try:
        _compile(text)
    except jinja2.TemplateError as error:
        raise InputError(f"chat template {name}: not a jinja template: {error}") from error
    return ChatTemplate(name, text, special_tokens)


@functools.lru_cache(maxsize=16)
def _compile(text: str) -> Any:
    """Compiles a template in a sandbox: templates of other people's models are code of other people."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class GenerationBlock(jinja2.ext.Extension):
        """`{% generation %}` marks answers for other trainers; our masks need no marks, so only its body counts."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})  # jinja's own filter escapes HTML

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(text)
