"""XML as a small tree that knows its lines, read so that no document type, entity or depth can do harm."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from anchorite.errors import InputError
from anchorite.reading import read_limited, shorten

_MAX_BYTES = 16_000_000
_MAX_DEPTH = 32
_MAX_ELEMENTS = 500_000


@dataclass(slots=True)
class XmlElement:
    """An element: its tag, the line it begins in, the text directly in it and the elements in it."""

    tag: str
    line: int
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, tag: str) -> XmlElement | None:
        """The first child of that tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def text_of(self, tag: str) -> str | None:
        """The text of the first child of that tag without surrounding space, or None when there is no such child."""
        child = self.child(tag)
        return None if child is None else child.text.strip()


def read_xml(path: Path) -> XmlElement:
    """The root element of an XML file.

    Raises InputError naming file and line for malformed XML, a DOCTYPE (and with it every entity), deep nesting
    and more elements than any annotation needs.
    """
    data = read_limited(path, _MAX_BYTES)
    parser = expat.ParserCreate()
    top = XmlElement("", 0)
    open_elements: list[tuple[XmlElement, list[str]]] = [(top, [])]
    num_elements = 0

    def start(tag: str, _: dict[str, str]) -> None:
        nonlocal num_elements
        num_elements += 1
        if len(open_elements) > _MAX_DEPTH:
            raise InputError(f"{path}:{parser.CurrentLineNumber}: nested deeper than {_MAX_DEPTH} levels")
        if num_elements > _MAX_ELEMENTS:
            raise InputError(f"{path}:{parser.CurrentLineNumber}: more than {_MAX_ELEMENTS} elements")
        element = XmlElement(tag, parser.CurrentLineNumber)
        open_elements[-1][0].children.append(element)
        open_elements.append((element, []))

    def end(_: str) -> None:
        element, texts = open_elements.pop()
        element.text = "".join(texts)  # once: a text may come in a million pieces

    def characters(text: str) -> None:
        open_elements[-1][1].append(text)

    def refuse_doctype(*_: object) -> None:
        raise InputError(f"{path}:{parser.CurrentLineNumber}: a DOCTYPE is not read; remove it")

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"{path}:{error.lineno}: not valid XML: {expat.ErrorString(error.code)}") from error
    except (ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as XML: {shorten(str(error))}") from error  # an encoding expat lacks
    return top.children[0]
