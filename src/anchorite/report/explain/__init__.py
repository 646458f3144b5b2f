"""One page that shows what the loss sees in some images: which places answer for which box, and what each costs."""

from __future__ import annotations

from anchorite.report.explain.choice import Chosen, choose_images, find_images
from anchorite.report.explain.explanation import Explained, explain
from anchorite.report.explain.setting import Setting, choose_setting

__all__ = ["Chosen", "Explained", "Setting", "choose_images", "choose_setting", "explain", "find_images"]
