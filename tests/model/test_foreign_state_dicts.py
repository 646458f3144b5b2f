"""State dicts, wrapped and fused models of the original family: told what they are, or read as what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anchorite.errors import InputError, UnsafeFileError
from anchorite.model import import_checkpoint
from tests.model.foreign_files import (
    called,
    foreign_model,
    foreign_state,
    random_detector,
    save_checkpoint,
    text,
    with_pickle,
)

NAMES = ["cat", "dog", "cow"]
WHOLE = r"Give the \.pt file that training wrote \(best\.pt, last\.pt\), which holds the whole model$"


def state(prefix: str = "", fused: bool = False) -> dict[str, torch.Tensor]:
    tensors = {prefix + name: tensor for name, tensor in foreign_state(random_detector()).items()}
    if fused:
        tensors = {name.replace(".bn.bias", ".conv.bias"): tensor for name, tensor in tensors.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if ".bn." not in name}
    return tensors


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (state(), r"x\.pt: it is a state dict: 349 tensors by name, without class names and the layers' settings\. "),
        (nn.ModuleDict({"a": nn.Linear(2, 2)}).state_dict(), r"named as the original family does, but a\.weight"),
        (state("module."), r"settings; its names begin with module\., as after training on several devices\. "),
        (state("module.", fused=True), r"several devices; BatchNorm is folded into its convolutions\. "),
        ({"epoch": 3, "model": state()}, r"x\.pt: its model is a state dict: 349 tensors"),
        ({"model": None, "ema": state(fused=True)}, r"its ema is a state dict: .*; BatchNorm is folded"),
    ],
    ids=range(6),
)
def test_a_state_dict_is_called_so_with_what_to_give_instead(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=said + (".*" + WHOLE)) as caught:
        import_checkpoint(tmp_path / "x.pt")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def wrapped(model: nn.Module) -> nn.Module:
    """As torch.save has a model in DistributedDataParallel, without the process group that pickling leaves out."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    wrapper.__dict__.update(require_backward_grad_sync=True, dim=0, device_ids=None)
    return wrapper


@pytest.mark.parametrize("wrap", [wrapped, nn.DataParallel, lambda model: nn.DataParallel(wrapped(model))])
def test_a_wrapped_model_is_read_as_the_one_within(wrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn.parallel.DistributedDataParallel, "__getstate__")  # it wants a process group
    detector = random_detector()
    model = wrap(foreign_model(detector, NAMES))
    imported = import_checkpoint(save_checkpoint(tmp_path / "x.pt", model, ema=wrap(foreign_model(detector, NAMES))))
    assert imported.info.class_names == tuple(NAMES)
    assert imported.part == "ema"
    own = imported.detector.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in detector.state_dict().items())


def test_a_wrapper_of_more_than_a_model_is_refused(tmp_path: Path) -> None:
    model = nn.DataParallel(foreign_model(random_detector(), NAMES))
    model.other = nn.Linear(2, 2)
    with pytest.raises(InputError, match="is of another architecture"):
        import_checkpoint(save_checkpoint(tmp_path / "x.pt", model))
    empty = nn.DataParallel(nn.Linear(2, 2))
    with pytest.raises(InputError, match="is of another architecture"):
        import_checkpoint(save_checkpoint(tmp_path / "y.pt", empty))


def test_a_model_that_was_fused_is_told_from_a_hostile_one(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pt", called("__builtin__", "getattr", b"(" + text("a") + text("b") + b"t"))
    with pytest.raises(UnsafeFileError, match="nothing of it was run; a model that was fused before it was saved asks"):
        import_checkpoint(path)
