"""A YAML 1.2 text as nodes that know their line, and plain values as a YAML text. The only door to the YAML library.

Not here: what the keys mean. The text is read event by event, since only so are the line of a key, a repeated key and
the very text of a scalar known; `5e-7` is a number, `no` a word, and there are no merge keys.
"""

from __future__ import annotations

import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

# The core schema of YAML 1.2.2, section 10.3.2.
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclasses.dataclass(frozen=True)
class Node:
    """A piece of YAML and where it stands.

    Attributes:
      content: a scalar's text, a list of nodes, or a dict of key -> node.
      where: `file:line` of the value's key, or the override that gave it.
      plain: a scalar without quotes, which may be a number, a bool or null.
    """

    content: str | list[Node] | dict[str, Node]
    where: str
    plain: bool = False

    def is_null(self) -> bool:
        """Whether it is a null: written out, `~`, or nothing at all."""
        return self.plain and isinstance(self.content, str) and _NULL.fullmatch(self.content) is not None


class YamlProblem(Exception):
    """The text cannot be read; the message is a full sentence with its place."""


def parse_yaml(text: str, name: str, *, where: str | None = None) -> Node:
    """Parses one YAML document into nodes.

    Args:
      text: the document.
      name: the file's name, for `file:line`.
      where: given: the place of every node, instead of `file:line` (for an override).

    Returns:
      The top node; an empty document is a null.

    Raises:
      YamlProblem: not YAML, a repeated key, a tag, or a second document.
    """
    yaml = YAML(typ="safe", pure=True)

    def place(event: Any) -> str:
        return where or f"{name}:{event.start_mark.line + 1}"

    anchors: dict[str, Node] = {}

    def build(event: Any, stream: Iterator[Any], at: str) -> Node:
        if isinstance(event, events.AliasEvent):
            if event.anchor not in anchors:
                raise YamlProblem(f"{place(event)}: alias '*{event.anchor}' has no '&{event.anchor}' before it")
            return dataclasses.replace(anchors[event.anchor], where=at)
        tag = str(event.tag) if event.tag is not None else None
        if tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise YamlProblem(
                f"{place(event)}: got the tag {tag}, wanted a plain value; the key's type is known without it"
            )
        node: Node
        if isinstance(event, events.ScalarEvent):
            node = Node(event.value, at, plain=event.style is None and tag is None)
        elif isinstance(event, events.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(item := next(stream), events.SequenceEndEvent):
                items.append(build(item, stream, place(item)))
            node = Node(items, at)
        else:
            block: dict[str, Node] = {}
            while not isinstance(key := next(stream), events.MappingEndEvent):
                if not isinstance(key, events.ScalarEvent):
                    raise YamlProblem(f"{place(key)}: got a list or block as a key, wanted a word")
                if key.value in block:
                    first = block[key.value].where
                    raise YamlProblem(
                        f"{place(key)}: repeated key '{key.value}', first given at {first}; keep one of them"
                    )
                block[key.value] = build(next(stream), stream, place(key))
            node = Node(block, at)
        if event.anchor is not None:
            anchors[event.anchor] = node
        return node

    try:
        stream = iter(list(yaml.parse(io.StringIO(text))))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = where or (f"{name}:{mark.line + 1}" if mark else name)
        raise YamlProblem(
            f"{at}: not valid YAML: {error.problem or error.context}{_quoting_hint(str(error.problem))}"
        ) from error
    except YAMLError as error:
        raise YamlProblem(f"{where or name}: not valid YAML: {str(error).splitlines()[0]}") from error
    top = Node("", where or f"{name}:1", plain=True)
    num_documents = 0
    for event in stream:
        if isinstance(event, events.DocumentStartEvent):
            num_documents += 1
            if num_documents > 1:
                raise YamlProblem(f"{place(event)}: a second document starts here, wanted one in the file")
            body = next(stream)
            top = build(body, stream, place(body))
    return top


def _quoting_hint(problem: str) -> str:
    if "expected ','" not in problem:  # what the parser says of `[${NAME}/file]` and of `[hf:a/b:train[:10]]`
        return ""
    return "; inside [ ] or { }, a text with brackets, braces or colons of its own is quoted"


def scalar_value(node: Node) -> Any:
    """A scalar node as None, bool, int, float or str, by the core schema."""
    text = typing.cast(str, node.content)
    if not node.plain:
        return text
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Dicts, lists and scalars as YAML in block style, in their own order."""
    yaml = YAML()
    yaml.width = 10**6  # a folded line could break a path in two
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()
