"""A data.yaml as nodes that know their line, of which nothing is ever constructed.

Tags other than the plain scalars' are refused, so no object is made and no code is run; duplicate keys, aliases of
collections (the makings of an alias bomb) and deep nesting are refused too.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from anchorite.data.formats.text import decode_utf8, printable, read_limited, shorten
from anchorite.errors import InputError

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 16
_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(
    _STANDARD + kind for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "value", "merge")
)


def read_yaml_mapping(path: Path) -> dict[str, yaml.Node]:
    """The top level of a YAML file, which must be a mapping: key to node.

    Raises InputError naming file and line for anything that is not plain YAML.
    """
    text = decode_utf8(read_limited(path, _MAX_BYTES), path)
    try:
        _refuse_bombs(text, path)
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {printable(str(error.problem or error.context), 200)}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {shorten(str(error), 120)}") from error
    except InputError:
        raise
    except (ValueError, OverflowError) as error:  # "\\UFFFFFFFF", which is no character; a version of 5000 digits
        raise InputError(f"{path}: not readable as YAML: {shorten(str(error), 120)}") from error
    if not isinstance(document, yaml.MappingNode):
        raise InputError(
            f"{path}: not a mapping; a data.yaml has lines such as `train: images/train` and `names: [...]`"
        )
    _check_nodes(document, path)
    return {str(key.value): value for key, value in document.value}


def line_of(node: yaml.Node) -> int:
    """The line of a node, counted from 1."""
    return int(node.start_mark.line) + 1


def kind_of(node: yaml.Node) -> str:
    """What YAML reads a node as: "str", "int", "float", "bool", "null", "seq", "map", ..."""
    return str(node.tag).removeprefix(_STANDARD)


def _refuse_bombs(text: str, path: Path) -> None:
    depth = 0
    collections: set[str] = set()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise InputError(f"{path}:{line}: nested deeper than {_MAX_DEPTH} levels")
            if event.anchor:
                collections.add(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor in collections:
            raise InputError(
                f"{path}:{line}: the alias *{printable(event.anchor, 60)} repeats a collection; write it out"
            )


def _check_nodes(node: yaml.Node, path: Path) -> None:
    if node.tag not in _PLAIN_TAGS:
        raise InputError(f"{path}:{line_of(node)}: the tag {shorten(str(node.tag))} is not read; remove it")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_nodes(item, path)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            line = line_of(key)
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{path}:{line}: a key must be a plain word")
            if key.value in first_lines:
                raise InputError(
                    f"{path}:{line}: the key {shorten(key.value)} stands twice, first in line "
                    f"{first_lines[key.value]}; remove one"
                )
            first_lines[key.value] = line
            _check_nodes(key, path)
            _check_nodes(value, path)
