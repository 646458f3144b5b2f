"""Reading files that strangers may have written: up to a limit, as text, JSON, XML or CSV; and showing them safely."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from anchorite.errors import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError  # which takes a fifth of a second to import

_MAX_XML_DEPTH = 32
_MAX_CSV_LINE, _MAX_CSV_HEADER = 4_000_000, 65_536
_XML_BLOCK_BYTES = 1 << 20


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`; InputError naming the path and the reason otherwise."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or device would block for ever
            raise InputError(f"{path}: not a regular file")
        if status.st_size > max_bytes:
            raise InputError(
                f"{path}: {status.st_size / 1e6:.1f} MB, more than the {max_bytes / 1e6:.0f} MB such a file may have"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: the file does not exist") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_regular(path: Path, buffering: int = -1) -> BinaryIO:
    """A file opened for reading bytes; InputError, which does not name it, for a pipe or device, else OSError."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe waits for its other end

    file = open(path, "rb", buffering, opener=without_waiting)  # noqa: SIM115 - Path.open takes no opener
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError("not a regular file; remove it")
    return file


def _open_named(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def decode_utf8(data: bytes, path: Path) -> str:
    """UTF-8 text, with or without a byte order mark; InputError naming the line of the first bad byte otherwise."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x})") from error


def read_json(path: Path, max_bytes: int = sys.maxsize) -> dict[str, Any]:
    """The JSON object in a file; InputError as file:line:column where it is none."""
    content = parse_json(read_limited(path, max_bytes), path)
    if not isinstance(content, dict):
        raise InputError(f"{path}:1:1: a JSON object {{...}} is wanted, not {type(content).__name__}")
    return content


def parse_json(data: bytes, path: Path) -> Any:
    """What is in a JSON file with this content; InputError as file:line:column where it is no JSON."""
    text = decode_utf8(data, path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise InputError(f"{path}: not readable as JSON: {shorten(str(error))}") from error


def read_csv_header(path: Path) -> tuple[str, list[str]]:
    """What stands between the cells of a CSV file, and the cells of its first line; none where it cannot be read."""
    try:
        with open_regular(path) as file:
            line = file.readline(_MAX_CSV_HEADER).decode("utf-8-sig")
        delimiter = max(",;\t", key=line.count)
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except (InputError, OSError, ValueError, csv.Error):
        return ",", []
    return delimiter, [cell.strip().removeprefix("#").strip() for cell in cells]


def read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file and their lines, without blank ones; a row is one line.

    Raises InputError as file:line for a line that is not UTF-8, that is too long, or on which a quote stays open: it
    would swallow the rows behind it.
    """
    line, number = 0, 1

    def lines(file: BinaryIO) -> Iterator[str]:
        nonlocal line
        while data := file.readline(_MAX_CSV_LINE):
            line += 1
            if len(data) == _MAX_CSV_LINE:
                raise InputError(f"{path}:{line}: a line of more than {_MAX_CSV_LINE / 1e6:.0f} MB")
            try:
                yield data.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x})") from error

    try:
        with _open_named(path) as file:
            for row in csv.reader(lines(file), delimiter=delimiter, strict=True):
                if line > number:
                    raise InputError(f"{path}:{number}: a quote is not closed on its line")
                if any(cell.strip() for cell in row):
                    yield line, row
                number = line + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: not readable as CSV: {shorten(str(error))}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_xml(path: Path, max_bytes: int = 16_000_000, max_elements: int = 500_000) -> ElementTree.Element:
    """The root element of an XML file; each element has its line as the attribute "line", beside its own.

    Raises InputError naming file and line for malformed XML, a DOCTYPE (and with it every entity), deep nesting
    and more elements than the file may have.
    """
    root, *children = _parse_xml(path, [read_limited(path, max_bytes)], max_elements, is_of_each=False)
    root.extend(children)
    return root


def iterate_xml(path: Path, max_elements: int = 500_000) -> Generator[ElementTree.Element, None, None]:
    """The root element of an XML file of any size, still empty, then its children, one by one, each whole.

    Of these only the one that is being read is held in memory. max_elements: of each of them. Raises what `read_xml`
    raises, when it comes to it.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    with file:
        yield from _parse_xml(path, iter(lambda: file.read(_XML_BLOCK_BYTES), b""), max_elements, is_of_each=True)


def _parse_xml(
    path: Path, blocks: Iterable[bytes], max_elements: int, is_of_each: bool
) -> Iterator[ElementTree.Element]:
    """As `iterate_xml`, from the blocks of the file; is_of_each: whether max_elements is of each child, or in all."""
    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()
    root: ElementTree.Element | None = None
    ready: list[ElementTree.Element] = []
    num_elements = depth = 0

    def refuse(reason: str) -> NoReturn:
        raise InputError(f"{path}:{parser.CurrentLineNumber}: {reason}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal num_elements, depth, root
        num_elements, depth = num_elements + 1, depth + 1
        if depth > _MAX_XML_DEPTH:
            refuse(f"nested deeper than {_MAX_XML_DEPTH} levels")
        if num_elements > max_elements:
            refuse(f"more than {max_elements} elements")
        element = builder.start(tag, {**attributes, "line": str(parser.CurrentLineNumber)})
        if root is None:
            root = element
            ready.append(root)

    def end(tag: str) -> None:
        nonlocal num_elements, depth
        depth -= 1
        element = builder.end(tag)
        if depth == 1 and root is not None:
            ready.append(element)
            del root[:]
            num_elements *= not is_of_each

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = lambda *_: refuse("a DOCTYPE is not read; remove it")
    try:
        for block in chain(blocks, [None]):
            parser.Parse(block or b"", block is None)
            yield from ready
            ready.clear()
    except expat.ExpatError as error:
        raise InputError(f"{path}:{error.lineno}: not valid XML: {expat.ErrorString(error.code)}") from error
    except InputError:
        raise
    except (ValueError, LookupError) as error:  # an encoding that expat lacks
        raise InputError(f"{path}: not readable as XML: {shorten(str(error))}") from error


def printable(words: str, max_length: int = 1000) -> str:
    """Words of a message, what is not printable escaped, and cut to a length: file names may come from strangers."""
    if not words.isprintable():
        words = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words[: max_length + 1])
    return words if len(words) <= max_length else words[: max_length - 3] + "..."


def shorten(value: object, max_length: int = 60) -> str:
    """A value as shown in a message: printable ASCII, and cut to a length."""
    return printable(ascii(value), max_length)


def one_line(text: str) -> str:
    """A text that stays one line whatever the names in it hold; bytes that are no text stay as they are."""
    return "".join(char if char.isprintable() or 0xDC80 <= ord(char) <= 0xDCFF else "?" for char in text)


def filled(room: str, template: str, facts: dict[str, Any], one_line_each: bool = False) -> str:
    """The text of a room's templates/TEMPLATE.txt.j2; one_line_each: every value that it shows stays one line."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(f"anchorite.{room}"),
        undefined=jinja2.StrictUndefined,
        finalize=(lambda value: one_line(str(value))) if one_line_each else None,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["one_line"] = one_line
    return environment.get_template(f"{template}.txt.j2").render(facts)


def validation_faults(error: ValidationError, most: int = 5) -> str:
    """Which fields are wrong, why, and what they hold, of at most so many; safe to show whatever they hold."""
    problems = error.errors(include_url=False)
    faults = [
        f"{'.'.join(printable(str(part), 60) for part in problem['loc']) or 'all of it'}: "
        f"{printable(problem['msg'], 200)} (got {shorten(problem['input'])})"
        for problem in problems[:most]
    ]
    return "; ".join(faults) + (f" and {len(problems) - most} more" if len(problems) > most else "")
