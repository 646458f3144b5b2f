"""What the site needs beyond Sphinx: docstrings that are plain prose, settings that describe themselves, links.

Connected to Sphinx's events by `setup`.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

_CODE = re.compile(r"(`[^`]*`)")
_MARKUP = re.compile(r"([*|\\]|_(?!\w)|(?<=\w):(?=\w))")
_LONG_NAMES = re.compile(r"\b(?:jaxtyping|torch|numpy\.typing|numpy|collections\.abc)\.(?=[A-Za-z])")
_PAGE = re.compile(r"\b(docs/([\w-]+)\.md)\b")
_SPAN = re.compile(r'(?<=<span class="pre">)[^<]+(?=</span></code>)')
_PUBLIC = re.compile(r"anchorite\.\w+\.\w+")
_BREAK = re.compile(r"(?<=\w)([._/(])(?=\w)")
_NAMED_TUPLE_FIELD = re.compile(r"Alias for field number \d+")


def as_prose(lines: list[str]) -> list[str]:
    """The same lines with everything outside of backticks that reST would take for markup made plain."""
    parts = _CODE.split("\n".join(lines))
    text = "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in parts)
    return _PAGE.sub(r":doc:`\1 </\2>`", text).split("\n")


def _is_config(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def write_docstring(_app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Plain prose, and of a config's class a list of its fields with defaults."""
    lines[:] = as_prose(lines)
    if _is_config(thing):
        for name, field in thing.model_fields.items():
            default = type(field.default).__name__ if isinstance(field.default, BaseModel) else repr(field.default)
            described = f": {field.description}" if field.description else ""
            lines.append(f"- `{name}` = `{default}`" + as_prose([described])[0])
        lines.append("")


def write_signature(
    _app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Short signatures: a config's fields are listed below it, and a tensor's type is called by its short name."""
    if _is_config(thing):
        return "(**fields)", None
    if getattr(thing, "_is_protocol", False):
        return "", None
    return _shortened(signature), _shortened(returns)


def _shortened(text: str | None) -> str | None:
    return None if text is None else _LONG_NAMES.sub("", text).replace("' ", "'").replace("Tensor, ''", "Tensor, '()'")


def skip_member(_app: Sphinx, _what: str, name: str, member: Any, skip: bool, _options: Any) -> bool | None:
    """Leave out what pydantic and NamedTuple put there themselves."""
    if name.startswith("model_") or _NAMED_TUPLE_FIELD.fullmatch(str(getattr(member, "__doc__", ""))):
        return True
    return None


def link_type(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Element) -> nodes.Element | None:
    """A type of a signature under the name that the reference knows it by; without a link where it has no entry."""
    if node.get("refdomain") != "py" or node.get("reftype") not in ("class", "obj"):
        return None
    wanted = str(node["reftarget"]).rpartition(".")[2]
    objects = env.domaindata["py"]["objects"].items()
    entries = [(name, entry) for name, entry in objects if name.endswith(f".{wanted}") and _PUBLIC.fullmatch(name)]
    if len(entries) != 1:
        return content
    name, entry = entries[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def keep_inside(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Links to the one page that lies beside this folder lead to its place on the site."""
    source[0] = source[0].replace("](../SECURITY.md)", "](reporting.md)")


def keep_inside_included(_app: Sphinx, _path: Any, _page: str, source: list[str]) -> None:
    """The same for that page's own links, which start outside of this folder."""
    source[0] = source[0].replace("](docs/", "](")


def let_names_break(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Dotted names of code may break behind a dot or underscore, so that tables keep their columns."""
    if "body" in context:
        context["body"] = _SPAN.sub(lambda found: _BREAK.sub(r"\1<wbr>", found[0]), context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", write_docstring)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("html-page-context", let_names_break)
    app.connect("missing-reference", link_type)
    app.connect("source-read", keep_inside)
    app.connect("include-read", keep_inside_included)
    return {"parallel_read_safe": True}
