"""The recipes that come with the package, as text; reading them needs nothing that is slow to import."""

from __future__ import annotations

from importlib import resources


def built_in_recipes() -> dict[str, str]:
    """Names and YAML texts of the recipes that come with the package."""
    folder = resources.files("anchorite.train") / "recipes"
    texts = {
        entry.name: entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }
    return {name.removesuffix(".yaml"): texts[name] for name in sorted(texts)}
