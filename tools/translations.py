"""Are the Chinese pages and notebooks in step with the English ones?

`python tools/translations.py` lists what differs: headings, code, pictures, links, tables, code words and numbers of
each section, and sections whose English text changed since their translation was last looked at, as the hashes in
docs/translations.json tell. `--update` records the English text of today, once the translation says the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = "docs/translations.json"
PAIRS = tuple(
    (english, english.replace(".", ".zh-CN.", 1))
    for english in ("README.md", "docs/objective.md", "notebooks/the-objective.ipynb")
)

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*$")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_LINK = re.compile(r"(!?)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_CODE_WORDS = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass
class Section:
    """A heading (level 0: what stands before the first one) and what stands under it, up to the next heading."""

    level: int
    title: str
    prose: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Title and prose, code blocks left out."""
        return "\n".join([self.title, *self.prose])

    def digest(self) -> str:
        """A short hash of the text, whatever its line breaks."""
        return hashlib.sha256(" ".join(self.text.split()).encode()).hexdigest()[:12]

    def links(self, *, pictures: bool) -> list[str]:
        """Where links (or pictures) lead, sorted; every language of a page counts as the page."""
        found = _LINK.findall(_CODE_WORDS.sub("", self.text))
        targets = (target.replace(".zh-CN.", ".") for mark, target in found if bool(mark) == pictures)
        # Fragments are made of headings, which are translated.
        return sorted(re.sub("#.*", "#", target) for target in targets)

    def code_words(self) -> list[str]:
        """Inline code, sorted."""
        return sorted(" ".join(words.split()) for _, words in _CODE_WORDS.findall(self.text))

    def numbers(self) -> list[str]:
        """The numbers of the text outside of code and links, each once."""
        plain = _LINK.sub("", _CODE_WORDS.sub("", self.text))
        return sorted(set(_NUMBER.findall(plain)))

    def tables(self) -> list[str]:
        """The number of columns of every row of every table."""
        return [f"{len(line.split('|')) - 2} columns" for line in self.prose if line.lstrip().startswith("|")]


def sections(path: Path) -> list[Section]:
    """The sections of a Markdown page or of a notebook, whose code cells count as code blocks."""
    found = [Section(0, "")]
    if path.suffix != ".ipynb":
        _read_markdown(path.read_text(encoding="utf-8"), found)
        return found
    for cell in _cells(path):
        if cell["cell_type"] == "code":
            found[-1].code.append(_source(cell))
        else:
            _read_markdown(_source(cell), found)
    return found


def _read_markdown(text: str, found: list[Section]) -> None:
    """Append the sections of a text; what stands before its first heading belongs to the last one there is."""
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if fence:
            found[-1].code[-1] += line + "\n"
            if mark and mark[1].startswith(fence):
                fence = ""
        elif mark:
            fence = mark[1]
            found[-1].code.append(line + "\n")
        elif heading := _HEADING.match(line):
            found.append(Section(len(heading[1]), heading[2]))
        else:
            found[-1].prose.append(line)


def _cells(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def differences(english: Path, chinese: Path) -> list[str]:
    """What is out of step between a page and its translation, each with the heading or cell that it concerns."""
    ours, theirs = sections(english), sections(chinese)
    messages = []
    for number, (one, other) in enumerate(zip_longest(ours, theirs)):
        if one is None or other is None or one.level != other.level:
            return [f"{chinese.name}: heading {number} is {_heading(other)}, in {english.name} it is {_heading(one)}"]
        where = f"{chinese.name}, section {other.title!r} ({one.title!r} in {english.name})"
        messages += [f"{where}: {message}" for message in _section_differences(one, other)]
    messages += _untranslated_links(chinese, theirs)
    if english.suffix == ".ipynb":
        messages += _cell_differences(english, chinese)
    return messages


def _heading(section: Section | None) -> str:
    return "missing" if section is None else f"'{'#' * section.level} {section.title}'"


def _section_differences(one: Section, other: Section) -> Iterator[str]:
    for number, (ours, theirs) in enumerate(zip_longest(one.code, other.code), start=1):
        if ours is None or theirs is None:
            yield f"code block {number} is {'missing' if theirs is None else 'not in the English text'}"
        elif ours != theirs:
            yield f"code block {number} differs {_first_difference(ours, theirs)}"
    for what, ours_of, theirs_of in (
        ("pictures", one.links(pictures=True), other.links(pictures=True)),
        ("links", one.links(pictures=False), other.links(pictures=False)),
        ("code words", one.code_words(), other.code_words()),
        ("numbers", one.numbers(), other.numbers()),
        ("rows of tables", one.tables(), other.tables()),
    ):
        if ours_of != theirs_of:
            lacking, extra = Counter(ours_of) - Counter(theirs_of), Counter(theirs_of) - Counter(ours_of)
            yield f"{what} differ: missing {_listed(lacking)}, not in the English text {_listed(extra)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(repr(item) for item in counts.elements()) or "none"


def _first_difference(ours: str, theirs: str) -> str:
    pairs = zip_longest(ours.splitlines(), theirs.splitlines())
    for number, (one, other) in enumerate(pairs, start=1):
        if one != other:
            return f"at its line {number}: {other!r} instead of {one!r}"
    return "in its line ends"


def _untranslated_links(chinese: Path, found: Iterable[Section]) -> Iterator[str]:
    """Links that leave the language though there is a translation; the one to the page's own original may."""
    for section in found:
        for _, target in _LINK.findall(_CODE_WORDS.sub("", section.text)):
            page = chinese.parent / target.partition("#")[0]
            translation = page.with_suffix(f".zh-CN{page.suffix}")
            own = translation.name == chinese.name
            if "://" not in target and not own and page.is_file() and translation.is_file():
                yield f"{chinese.name}, section {section.title!r}: {target} has a translation, {translation.name}"


def _cell_differences(english: Path, chinese: Path) -> Iterator[str]:
    for number, (one, other) in enumerate(zip_longest(_cells(english), _cells(chinese)), start=1):
        if one is None or other is None:
            yield f"{chinese.name}: cell {number} is {'missing' if other is None else 'not in the English notebook'}"
            return
        where = f"{chinese.name}, cell {number} ({one['id']})"
        if (one["cell_type"], one["id"]) != (other["cell_type"], other["id"]):
            yield f"{where}: is a {other['cell_type']} cell {other['id']!r}, in English a {one['cell_type']} cell"
            return
        if one["cell_type"] == "code" and _source(one) != _source(other):
            yield f"{where}: the code differs {_first_difference(_source(one), _source(other))}"
        if one.get("outputs") != other.get("outputs"):
            yield f"{where}: the stored output differs; run tools/notebooks.py"


def digests(english: Path) -> dict[str, str]:
    """The hash of every section by its title; the second of one title is called 'title (2)'."""
    result: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for section in sections(english):
        seen[section.title] += 1
        name = section.title if seen[section.title] == 1 else f"{section.title} ({seen[section.title]})"
        result[name] = section.digest()
    return result


def _recorded(root: Path) -> dict[str, dict[str, str]]:
    path = root / RECORD
    record: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def stale(root: Path) -> list[str]:
    """Sections whose English text is not the one that the record says was translated."""
    record, messages = _recorded(root), []
    for english, chinese in PAIRS:
        now, then = digests(root / english), record.get(english, {})
        changed = [title for title in {**then, **now} if now.get(title) != then.get(title)]
        messages += [
            f"{english}, section {title!r}: changed since it was translated; bring {chinese} up to it, "
            "then run `python tools/translations.py --update`"
            for title in changed
        ]
    return messages


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Print what is out of step, or record today's English text; 0 all is well, 1 it is not, 2 wrong usage."""
    if arguments not in ([], ["--update"]):
        print("usage: python tools/translations.py [--update]")
        return 2
    found = {pair: differences(root / pair[0], root / pair[1]) for pair in PAIRS}
    messages = [message for of_pair in found.values() for message in of_pair]
    if arguments:
        # A page out of step was not brought up to the English text, whatever its translator thinks.
        in_step = {english: digests(root / english) for (english, _), of_pair in found.items() if not of_pair}
        record = json.dumps(_recorded(root) | in_step, indent=2, ensure_ascii=False)
        (root / RECORD).write_text(record + "\n", encoding="utf-8")
    else:
        messages += stale(root)
    print(*messages, sep="\n", end="\n" if messages else "")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
