"""`anchorite recipes`."""

from __future__ import annotations

import difflib
from typing import Annotated

from cyclopts import Parameter


def recipes(
    name: Annotated[str | None, Parameter(help="Recipe to print whole; without it, all are listed.")] = None,
) -> None:
    """List the built-in recipes, or print one as YAML to start your own from."""
    from anchorite.errors import InputError
    from anchorite.train import built_in_recipes

    texts = built_in_recipes()
    if name is None:
        for known, text in texts.items():
            head = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
            print(f"{known}\n" + "\n".join(f"    {line}" for line in head))
    elif name in texts:
        print(texts[name], end="")
    else:
        close = difflib.get_close_matches(name, texts, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"recipes {name}: no such recipe; there are {', '.join(texts)}{meant}")
