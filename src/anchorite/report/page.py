"""One self-contained HTML page from a template: nothing fetched, every text escaped, no script but the named ones."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def render_page(
    template_name: str,
    context: dict[str, Any],
    *,
    styles: Sequence[str] = ("style.css",),
    scripts: Sequence[str] = (),
    data: Any = None,
    connects_to_itself: bool = False,
) -> str:
    """The HTML text of a template in templates/, with style sheets, scripts and a content security policy.

    The policy names style and script by their hashes and allows nothing else but embedded images, so that even a text
    that slipped through unescaped could neither run nor load anything. `context`: what the template shows. styles,
    scripts: files of templates/, joined in order, as `style` and `script`. data: JSON for the scripts, as `data`.
    connects_to_itself: the scripts may ask for more from where the page came from; for pages that a server shows.
    """
    style, script = _joined(styles), _joined(scripts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anchorite.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template_name).render(
        **context,
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_json(data)),
        content_security_policy=_policy(style, script, connects_to_itself),
    )
    # JSON and file names may carry lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: ASCII, and without any character that could end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _joined(names: Sequence[str]) -> str:
    folder = resources.files("anchorite.report") / "templates"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _policy(style: str, script: str, connects_to_itself: bool) -> str:
    allowed_script = f"script-src 'sha256-{_digest(script)}'; " if script else ""
    allowed_script += "connect-src 'self'; " if connects_to_itself else ""
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; {allowed_script}"
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
