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


def _document(text: str, where: str) -> yaml.Node | None:
    try:
        _refuse_bombs(text, where)
        document = yaml.compose(text, Loader=yaml.SafeLoader)
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
    if document is not None:
        _check_nodes(document, where)
    return document


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


def _refuse_bombs(text: str, where: str) -> None:
    depth = 0
    collections: set[str] = set()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise InputError(f"{where}:{line}: nested deeper than {_MAX_DEPTH} levels")
            if event.anchor:
                collections.add(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor in collections:
            raise InputError(
                f"{where}:{line}: the alias *{printable(event.anchor, 60)} repeats a collection; write it out"
            )


def _check_nodes(node: yaml.Node, where: str) -> None:
    if node.tag not in _PLAIN_TAGS:
        raise InputError(f"{where}:{line_of(node)}: the tag {shorten(str(node.tag))} is not read; remove it")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_nodes(item, where)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            line = line_of(key)
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{where}:{line}: a key must be a plain word")
            if key.value in first_lines:
                raise InputError(
                    f"{where}:{line}: the key {shorten(key.value)} stands twice, first in line "
                    f"{first_lines[key.value]}; remove one"
                )
            first_lines[key.value] = line
            _check_nodes(key, where)
            _check_nodes(value, where)
