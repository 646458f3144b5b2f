"""One self-contained HTML page from a template: nothing fetched, every text escaped, no script but its own, and
pictures as data URIs.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from anchorite.jpeg import encode_jpeg, shrunk
from anchorite.report import charts
from anchorite.report.run_data import clock, show

MAX_PAGE_BYTES = 2_950_000
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_MAX_FILE_BYTES = 20_000_000
_MAX_UNCHANGED_BYTES = 120_000
_MAX_SIDE_PX, _JPEG_QUALITY = 720, 82


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
    that was not escaped by mistake could neither run nor load anything. context: what the template shows. styles,
    scripts: files of templates/, joined in order, as `style` and `script`. data: JSON for the scripts, as `data`.
    connects_to_itself: whether the scripts may ask the server that the page came from for more.
    """
    folder = resources.files("anchorite.report") / "templates"
    style, script = ("\n".join((folder / name).read_text("utf-8") for name in names) for names in (styles, scripts))
    policy = ["default-src 'none'", "img-src data:", f"style-src 'sha256-{_digest(style)}'"]
    policy += [f"script-src 'sha256-{_digest(script)}'"] if script else []
    policy += ["connect-src 'self'"] if connects_to_itself else []
    page = (
        _environment()
        .get_template(template_name)
        .render(
            **context,
            style=Markup(style),
            script=Markup(script),
            data=Markup(script_json(data)),
            content_security_policy="; ".join([*policy, "base-uri 'none'", "form-action 'none'"]),
        )
    )
    # JSON and file names may carry lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> jinja2.Environment:
    """Kept with the templates that it has compiled, which takes longer than to fill them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anchorite.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["frame"] = charts  # for its measures
    environment.filters |= {one.__name__: one for one in (clock, charts.decimals, charts.format_number, show)}
    return environment


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: ASCII, and without any character that could end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def jpeg_uri(image: NDArray[np.uint8], longest_px: float, quality: int) -> str:
    """An RGB image (H, W, 3) as a JPEG data URI whose longer side has at most `longest_px` pixels."""
    return _data_uri("jpeg", encode_jpeg(shrunk(image, longest_px), quality))


def embed_pictures(paths: Sequence[Path], max_pictures: int, max_bytes: int) -> tuple[dict[str, str], list[str]]:
    """PNG and JPEG files as data URIs by file name, in the given order until number or bytes run out.

    Also returns the names of the files that are left out, each with the reason.
    """
    pictures: dict[str, str] = {}
    left_out: list[str] = []
    num_bytes = 0
    for path in paths:
        if len(pictures) == max_pictures:
            left_out.append(f"{path.name} (only {max_pictures} are shown)")
        elif not (uri := _picture_uri(path)):
            left_out.append(f"{path.name} (not a readable PNG or JPEG)")
        elif num_bytes + len(uri) > max_bytes:
            left_out.append(f"{path.name} (the page would grow too large)")
        else:
            pictures[path.name] = uri
            num_bytes += len(uri)
    return pictures, left_out


def _picture_uri(path: Path) -> str:
    """The file as a data URI, unchanged if it is small, else decoded and made smaller; empty where that fails."""
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_FILE_BYTES:
            return ""
        content = path.read_bytes()
        kind = next(kind for signature, kind in _SIGNATURES.items() if content.startswith(signature))
        if len(content) <= _MAX_UNCHANGED_BYTES:
            return _data_uri(kind, content)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except (OSError, StopIteration, cv2.error):
        return ""
    return "" if image is None else jpeg_uri(np.asarray(image, np.uint8), _MAX_SIDE_PX, _JPEG_QUALITY)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
