"""Parts of a network that training leaves as they are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import nn

from anchorite.errors import InputError
from anchorite.model import Detector, default_anchors
from anchorite.reading import shorten
from anchorite.train.optimizer import OptimizerConfig, parts_by_depth


def freeze(detector: Detector, names: Sequence[str]) -> None:
    """Take gradients from the parts of these names, and hold them in evaluation mode from now on.

    Names are those of modules, with all that is in them: "backbone", "backbone.stage2", "neck.lateral.p5". Raises
    InputError, with the names that there are, for any other, and where nothing would be left to train.
    """
    refuse_unknown(detector, names)
    for name in names:
        detector.get_submodule(name).requires_grad_(False)
    detector.frozen = tuple(names)
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        raise InputError(
            f"optimizer.freeze {list(names)}: nothing is left to train; leave out one of "
            f"{', '.join(name for name, _ in detector.named_children())}"
        )


def refuse_early(size: str, names: Sequence[str]) -> None:
    """`refuse_unknown` before there is a detector, for all names but those within a backbone, which may be borrowed."""
    if not names:
        return  # even on the meta device a network takes a second, most of it torch's imports
    with torch.device("meta"):
        refuse_unknown(Detector(size, 1, default_anchors(size)), [one for one in names if "backbone." not in one])


def refuse_unknown(detector: nn.Module, names: Sequence[str]) -> None:
    """InputError, with the names that there are, where one is of no part of the detector."""
    known = {name for name, _ in detector.named_modules() if name}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise InputError(
                f"optimizer.freeze: the network has no part {shorten(name)}{meant or '.'} It has "
                f"{', '.join(_parts(detector))}, and parts of these"
            )


def _parts(detector: nn.Module) -> list[str]:
    """The names of children and of their children."""
    return [
        name
        for outer, child in detector.named_children()
        for name in (outer, *(f"{outer}.{inner}" for inner, _ in child.named_children()))
    ]


def describe(detector: nn.Module, config: OptimizerConfig, has_weights: bool) -> list[str]:
    """A sentence on what is frozen, and one on rates that differ by depth; none where neither is so.

    has_weights: the network started from weights, else from random values, but for the body of a borrowed backbone.
    """
    sentences = []
    if config.freeze:
        sizes = [(parameter.requires_grad, parameter.numel()) for parameter in detector.parameters()]
        still = sum(size for moves, size in sizes if not moves)
        sentences.append(
            f"frozen: {', '.join(config.freeze)}; {still} of {sum(size for _, size in sizes)} parameters keep their "
            "values, and normalisation there its statistics"
        )
        random = [name for name in config.freeze if not has_weights and not name.startswith("backbone.body")]
        if random:
            sentences.append(f"warning: {', '.join(random)} will keep random values: nothing was learned there before")
    if config.layer_decay != 1:
        shown = ", ".join(f"{name} {factor:.4g}" for name, _, factor in reversed(parts_by_depth(detector, config)))
        sentences.append(f"rates by depth: {shown} times the rate")
    return sentences
