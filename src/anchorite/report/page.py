"""One self-contained HTML page from a template: no script, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def render_page(template_name: str, context: dict[str, Any]) -> str:
    """The HTML text of a template in templates/ with the shared style sheet and a content security policy.

    The policy names the style sheet by its hash and allows nothing else but embedded images, so that even a text that
    slipped through unescaped could neither run nor load anything. `context`: what the template shows.
    """
    style = (resources.files("anchorite.report") / "templates" / "style.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anchorite.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template_name).render(
        **context, style=Markup(style), content_security_policy=_policy(style)
    )
    # JSON and file names may carry lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
