"""Reads a YAML 1.2 file into typed options and words every mistake with its file, line and key.

Works for any frozen pydantic model, so that every command's file is read the same way. Not here: which options there
are (recipe.py), and YAML itself (yaml_nodes.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic_core import PydanticCustomError

from zephyr_jax.records import InputError
from zephyr_jax.yaml_nodes import Node, YamlProblem, parse_yaml, scalar_value

OptionsT = TypeVar("OptionsT", bound=pydantic.BaseModel)
Key = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_HINTS = {
    "ZEPHYR_DATA": " to the folder that holds the data sets (chat_train.jsonl, preferences_train.jsonl, ...)"
}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of recipe: what it is called, the command that runs it, an example, and keys that no other kind has."""

    name: str
    command: str
    example: str
    keys: tuple[str, ...]


_KINDS = (
    _Kind("a training recipe", "train", "configs/tiny.yaml", ("stages", "model", "dsft", "ddpo")),
    _Kind(
        "a recipe of AI feedback",
        "feedback",
        "configs/feedback/smollm2.yaml",
        ("teacher", "prompts", "instructions", "completions", "annotation", "binarisation"),
    ),
    _Kind(
        "a recipe of an evaluation",
        "evaluate",
        "configs/evaluation/published.yaml",
        ("statistics", "alpaca_eval", "mt_bench", "agreement", "academic"),
    ),
)


def raise_problems(problems: Sequence[tuple[str, str]]) -> None:
    """For a block's validator: reports keys that do not go together, all at once.

    Args:
      problems: (key within the block, or "" for the block itself; sentence); nothing is raised when empty.

    Raises:
      PydanticCustomError: with the problems, which `read_options` takes apart again.
    """
    if problems:
        message = "; ".join(f"{key}: {sentence}" for key, sentence in problems)
        raise PydanticCustomError("conflict", "{message}", {"message": message, "problems": list(problems)})


def read_options(options_type: type[OptionsT], path: str | Path, *, overrides: Sequence[str] = ()) -> OptionsT:
    """Reads a YAML file, applies overrides and validates.

    Args:
      options_type: the pydantic model of the whole file.
      path: a UTF-8 YAML 1.2 file with one block at its top.
      overrides: `a.b.c=value` texts, applied in order.

    Returns:
      The options.

    Raises:
      InputError: the file cannot be read, or what it says is wrong; every mistake has a line of the message.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 ({error.reason} at byte {error.start})"
        raise InputError(
            f"{path}: cannot read the recipe: {reason}; wanted a YAML file, such as configs/tiny.yaml"
        ) from error
    try:
        root = parse_yaml(text, str(path))
        if not isinstance(root.content, dict):
            raise YamlProblem(
                f"{path}: got {_describe(root)} at the top, wanted keys and values (name: ..., model: ...)"
            )
        _check_kind(root.content, str(path), options_type)
        for override in overrides:
            root = _apply_override(root, override, options_type)
        reader = _Reader(str(path), root)
        values = reader.to_values(root, options_type, ())
    except YamlProblem as problem:
        raise InputError(str(problem)) from None
    try:
        options = options_type.model_validate(values)
    except pydantic.ValidationError as error:
        details = error.errors()
        faulty_lists = {detail["loc"][:-1] for detail in details}
        sentences = [
            sentence
            for detail in details
            # pydantic does not count a list's faulty items: it is as long as was wanted.
            if not (detail["type"] == "too_short" and detail["loc"] in faulty_lists)
            for sentence in reader.explain(detail, options_type)
        ]
        raise InputError(_one_message(sorted(reader.problems + sentences, key=reader.line_of))) from error
    if reader.problems:
        raise InputError(_one_message(reader.problems))
    return options


def _check_kind(keys: Mapping[str, Node], path: str, options_type: type[pydantic.BaseModel]) -> None:
    """Says so where a file is another command's recipe, instead of finding fault with every key of it."""
    own = [kind for kind in _KINDS if set(kind.keys) <= options_type.model_fields.keys()]
    if not own or any(key in keys for key in own[0].keys):
        return
    for kind in _KINDS:
        telling = [key for key in kind.keys if key in keys]
        if telling:
            raise YamlProblem(
                f"{path}: this is {kind.name} (it has {', '.join(telling)}), wanted {own[0].name}, such as "
                f"{own[0].example}; what runs this file is python -m zephyr_jax.{kind.command} --config {path}"
            )


def _apply_override(root: Node, override: str, options_type: type[pydantic.BaseModel]) -> Node:
    """The tree with one `a.b.c=value` put in place."""
    where = f"override '{override}'"
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise YamlProblem(f"{where}: wanted key.path=value, such as ddpo.beta=0.2")
    annotation: Any = options_type
    for name in names:
        annotation = _annotation_of(annotation, name)
    value = _override_value(text, where, annotation)

    def replaced(node: Node, depth: int, block_type: Any) -> Node:
        block = dict(typing.cast(dict[str, Node], node.content))
        name = names[depth]
        if depth == len(names) - 1:
            block[name] = value
            return dataclasses.replace(node, content=block)
        path, inner_type = ".".join(names[: depth + 1]), _annotation_of(block_type, name)
        child = block.get(name)
        if child is None and inner_type is not None and _default_is_none(block_type, name):
            raise YamlProblem(
                f"{where}: '{path}' is not in the file, so its keys cannot be set one by one; {_way_out(path)}"
            )
        if child is None:
            child = Node({}, where)
        if child.is_null():
            raise YamlProblem(f"{where}: '{path}' is null at {child.where}, so it has no keys to set; {_way_out(path)}")
        if not isinstance(child.content, dict):
            raise YamlProblem(
                f"{where}: '{path}' is {_describe(child)} at {child.where} and is replaced as a whole: {path}=..."
            )
        block[name] = replaced(child, depth + 1, inner_type)
        return dataclasses.replace(node, content=block)

    return replaced(root, 0, options_type)


def _way_out(path: str) -> str:
    return f"write the block in the file, or give it whole: '{path}={{...}}'"


def _override_value(text: str, where: str, annotation: Any) -> Node:
    """An override's value: YAML, but for a text field the text as it is (in quotes of its own: what they hold)."""
    if not _is_text(annotation):
        return parse_yaml(text, "", where=where)
    try:
        node = parse_yaml(text, "", where=where)
    except YamlProblem:
        return Node(text, where)
    if isinstance(node.content, str) and (not node.plain or node.is_null()):
        return node
    return Node(text, where)


def _annotation_of(block_type: Any, name: str) -> Any:
    """The type of a key of a block type, or None where there is no such block or key."""
    block_type = _core(block_type)
    if typing.get_origin(block_type) is dict:  # a map of blocks under names of the user's own
        return typing.get_args(block_type)[1]
    if not (isinstance(block_type, type) and issubclass(block_type, pydantic.BaseModel)):
        return None
    field = block_type.model_fields.get(name)
    return field.annotation if field else None


def _default_is_none(block_type: Any, name: str) -> bool:
    if typing.get_origin(_core(block_type)) is dict:
        return True
    field = _core(block_type).model_fields[name]
    return field.is_required() or field.default is None


def _core(annotation: Any) -> Any:
    """A type without Annotated and without `| None`."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
            continue
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            others = [member for member in typing.get_args(annotation) if member is not type(None)]
            if len(others) == 1:
                annotation = others[0]
                continue
        return annotation


def _is_text(annotation: Any) -> bool:
    """Whether a field holds a text, so that a scalar's own text is its value."""
    annotation = _core(annotation)
    return annotation is str or typing.get_origin(annotation) is Literal


class _Reader:
    """Turns nodes into values for pydantic, remembering where each key stands."""

    def __init__(self, file: str, root: Node):
        self.file = file
        self.problems: list[str] = []
        self._where: dict[Key, str] = {(): root.where.rsplit(":", 1)[0]}

    def to_values(self, node: Node, annotation: Any, key: Key) -> Any:
        """A node as dicts, lists and scalars; text fields get the scalar's text with variables replaced."""
        if key:
            self._where[key] = node.where
        annotation = _core(annotation)
        if isinstance(node.content, dict):
            return {
                name: self.to_values(child, _annotation_of(annotation, name), (*key, name))
                for name, child in node.content.items()
            }
        if isinstance(node.content, list):
            item_type = (typing.get_args(annotation) or (None,))[0] if typing.get_origin(annotation) is tuple else None
            return [self.to_values(item, item_type, (*key, index)) for index, item in enumerate(node.content)]
        shorthand = getattr(annotation, "shorthand_key", None)
        if node.is_null():
            return None
        if shorthand:
            return {shorthand: self._with_variables(node.content, key)}
        if _is_text(annotation):
            return self._with_variables(node.content, key)
        value = scalar_value(node)
        return self._with_variables(value, key) if isinstance(value, str) else value

    def explain(self, detail: Any, options_type: type[pydantic.BaseModel]) -> list[str]:
        """One pydantic error as sentences with place, key, got and wanted."""
        key: Key = tuple(detail["loc"])
        kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
        if kind == "conflict":
            return [self._sentence((*key, name) if name else key, text) for name, text in context["problems"]]
        if kind == "missing":
            return [f"{self._place(key)}: missing required key '{_dotted(key)}'"]
        if kind == "extra_forbidden":
            return [f"{self._place(key)}: unknown key '{_dotted(key)}'; {_suggest(key, options_type)}"]
        if kind == "value_error":
            return [self._sentence(key, str(context["error"]))]
        return [self._sentence(key, f"got {_show(got)}, wanted {_wanted(kind, context, detail['msg'])}")]

    def line_of(self, sentence: str) -> int:
        """The line that a sentence opens with; -1 for none (a key that is missing), a large number for an override."""
        opening = re.match(re.escape(self.file) + r":(?:(\d+):)?", sentence)
        return int(opening.group(1) or -1) if opening else 10**9

    def _sentence(self, key: Key, text: str) -> str:
        return ": ".join(filter(None, (self._place(key), _dotted(key), text)))

    def _place(self, key: Key) -> str:
        while key not in self._where:
            key = key[:-1]
        return self._where[key]

    def _with_variables(self, text: str, key: Key) -> str:
        def value_of(match: re.Match[str]) -> str:
            name = match.group(1)
            value = os.environ.get(name, "")
            if not value:
                hint = _VARIABLE_HINTS.get(name, "")
                self.problems.append(
                    self._sentence(key, f"the environment variable {name} is not set; set it{hint}: export {name}=...")
                )
            return value or match.group(0)

        return _VARIABLE.sub(value_of, text)


def _one_message(sentences: Sequence[str]) -> str:
    first, *others = dict.fromkeys(sentences)
    return "\n".join([first, *(f"also {sentence}" for sentence in others)])


def _dotted(key: Key) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _describe(node: Node) -> str:
    if isinstance(node.content, dict):
        return "a block"
    if isinstance(node.content, list):
        return "a list"
    return "nothing" if node.is_null() else _show(scalar_value(node))


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, Mapping):
        return "a block"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    return str(value)


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list, as [one, two]",
    "too_short": "at least {min_length} in it",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}


def _wanted(kind: str, context: Mapping[str, Any], fallback: str) -> str:
    return _WANTED[kind].format(**context) if kind in _WANTED else fallback


def _suggest(key: Key, options_type: type[pydantic.BaseModel]) -> str:
    """The known key that was probably meant, or all keys of the block."""
    block_type: Any = options_type
    for part in key[:-1]:
        block_type = _core(block_type)
        block_type = typing.get_args(block_type)[0] if isinstance(part, int) else _annotation_of(block_type, part)
    known = list(_core(block_type).model_fields)
    name, parent = str(key[-1]), key[:-1]
    near = [(*parent, match) for match in difflib.get_close_matches(name, known, n=2)]
    meant = near or [path for path in _all_keys(options_type) if path[-1] == name][:3]
    if meant:
        return f"did you mean {' or '.join(repr(_dotted(path)) for path in meant)}?"
    return f"{_dotted(parent) or 'a recipe'} knows: {', '.join(known)}"


def _all_keys(block_type: Any, parent: Key = ()) -> Iterator[Key]:
    for name, field in block_type.model_fields.items():
        yield (*parent, name)
        inner = _core(field.annotation)
        if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
            yield from _all_keys(inner, (*parent, name))


def differences(old: pydantic.BaseModel | Mapping[str, Any], new: pydantic.BaseModel | Mapping[str, Any]) -> list[str]:
    """What changed, a line per dotted key: `ddpo.beta: 0.1 -> 0.2`; lists are compared as a whole."""
    before, after = _flatten(old), _flatten(new)
    changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    return [
        f"{_dotted(key)}: {_brief(before.get(key, _ABSENT))} -> {_brief(after.get(key, _ABSENT))}" for key in changed
    ]


def non_defaults(options: pydantic.BaseModel, parent: Key = ()) -> list[tuple[str, str, str]]:
    """(dotted key, value, default) of every key that is not at its default; a key that has none is always there."""
    found = []
    for name, field in type(options).model_fields.items():
        value, key = getattr(options, name), (*parent, name)
        if isinstance(value, pydantic.BaseModel):
            found += non_defaults(value, key)
        elif field.is_required():
            found.append((_dotted(key), _plain(value), ""))
        elif value != (default := field.get_default(call_default_factory=True)):
            found.append((_dotted(key), _plain(value), _plain(default)))
    return found


def _plain(value: Any) -> str:
    """A value as a recipe writes it, sources by what is not at its default."""
    if isinstance(value, pydantic.BaseModel):
        shorthand = getattr(type(value), "shorthand_key", None)
        given = value.model_dump(mode="json", exclude_defaults=True)
        return _plain(given if list(given) != [shorthand] else next(iter(given.values())))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_plain(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    return _brief(value)


_ABSENT = "(absent)"


def _brief(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return _show(value)
    return f"[{', '.join(map(_brief, value))}]" if isinstance(value, list) else str(value)


def _flatten(options: pydantic.BaseModel | Mapping[str, Any], parent: Key = ()) -> dict[Key, Any]:
    tree = options.model_dump(mode="json") if isinstance(options, pydantic.BaseModel) else options
    flat: dict[Key, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, (*parent, name)))
        else:
            flat[(*parent, name)] = value
    return flat
