"""The one reader of YAML: as nodes that know their line, or as the plain values that they stand for.

Tags other than the plain scalars' are refused, so no object is made and no code is run; duplicate keys, aliases of
collections (the makings of an alias bomb), deep nesting and large files are refused too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from anchorite.errors import InputError
from anchorite.reading import decode_utf8, printable, read_limited, shorten

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 16
_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(
    _STANDARD + kind for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "value", "merge")
)


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file of at most 1 MB; InputError naming the file, and the line of what is no UTF-8."""
    return decode_utf8(read_limited(path, _MAX_BYTES), path)


def read_yaml_mapping(path: Path) -> dict[str, yaml.Node]:
    """The top level of a YAML file, which must be a mapping: key to node.

    Raises InputError naming file and line for anything that is not plain YAML.
    """
    document = _document(read_yaml_text(path), str(path))
    if not isinstance(document, yaml.MappingNode):
        raise InputError(
            f"{path}: not a mapping; a data.yaml has lines such as `train: images/train` and `names: [...]`"
        )
    return {str(key.value): value for key, value in document.value}


def yaml_value(text: str, where: str) -> Any:
    """What a YAML text stands for: plain values, the keys of mappings always texts; None for an empty text.

    where: what it is called in messages, before the line. Raises InputError for anything that is not plain YAML.
    """
    document = _document(text, where)
    return None if document is None else _value(document, where)


def line_of(node: yaml.Node) -> int:
    """The line of a node, counted from 1."""
    return int(node.start_mark.line) + 1


def kind_of(node: yaml.Node) -> str:
    """What YAML reads a node as: "str", "int", "float", "bool", "null", "seq", "map", ..."""
    return str(node.tag).removeprefix(_STANDARD)


class _PlainComposer(yaml.SafeLoader):
    """Composes the nodes of a text, and refuses what is no plain YAML where it stands."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where = where
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, checked, as PyYAML's composer calls for it."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                raise self._fault(
                    event, f"the alias *{printable(str(event.anchor), 60)} repeats a collection; write it out"
                )
            return super().compose_node(parent, index)
        self.depth += isinstance(event, yaml.CollectionStartEvent)
        if self.depth > _MAX_DEPTH:
            raise self._fault(event, f"nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        assert node is not None
        self.depth -= isinstance(event, yaml.CollectionStartEvent)
        if node.tag not in _PLAIN_TAGS:
            raise self._fault(node, f"the tag {shorten(str(node.tag))} is not read; remove it")
        first_lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise self._fault(key, "a key must be a plain word")
            if key.value in first_lines:
                twice = f"the key {shorten(key.value)} stands twice, first in line {first_lines[key.value]}; remove one"
                raise self._fault(key, twice)
            first_lines[key.value] = line_of(key)
        return node

    def _fault(self, place: Any, message: str) -> InputError:
        return InputError(f"{self.where}:{place.start_mark.line + 1}: {message}")


def _document(text: str, where: str) -> yaml.Node | None:
    try:
        return _PlainComposer(text, where).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise InputError(f"{place}: not valid YAML: {printable(str(error.problem or error.context), 200)}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {shorten(str(error), 120)}") from error
    except InputError:
        raise
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF", which is no character; a version of 5000 digits
        raise InputError(f"{where}: not readable as YAML: {shorten(str(error), 120)}") from error


def _value(node: yaml.Node, where: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _value(value, where) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, where) for item in node.value]
    fault = InputError(f"{where}:{line_of(node)}: {shorten(node.value)} is no {kind_of(node)}")
    if kind_of(node) in ("seq", "map"):
        raise fault
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:  # !!bool maybe, 2001-99-9
        raise fault from error
