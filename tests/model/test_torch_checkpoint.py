from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.anchors.codec import decode_level
from anchorite.errors import InputError, StorageError, UnsafeFileError
from anchorite.model import Detector, default_anchors, fold_batch_norm, import_checkpoint, load_weights, save_weights
from tests.model import torch_checkpoints
from tests.model.torch_checkpoints import (
    called,
    foreign_model,
    foreign_state,
    part,
    read_in_this_process,
    save_checkpoint,
    text,
    with_pickle,
)
from tests.shared import shared_path


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)


NAMES = ["cat", "dog", "lone \ud800 <b>"]
random_detector = cache(torch_checkpoints.random_detector)  # tests must not change them


@pytest.fixture(scope="module")
def reference() -> tuple[Detector, Any]:
    imported = import_checkpoint(shared_path("weights/foreign_n.pt"))
    return imported.detector, np.load(shared_path("weights/foreign_n_io.npz"), allow_pickle=False)


def decoded(detector: Detector, images: Tensor) -> Tensor:
    """(B, places, 5 + K): boxes in pixels, then probabilities."""
    anchors = detector.anchors.cells(images.dtype)
    levels = []
    for logits, cells, stride in zip(detector(images), anchors, detector.strides, strict=True):
        boxes, others = decode_level(logits, cells, stride)
        levels.append(torch.cat([boxes, others.sigmoid()], dim=-1))
    return torch.cat(levels, dim=1)


def relative_error(own: Tensor, expected: np.ndarray) -> float:
    assert own.shape == expected.shape
    return float((own.double() - torch.from_numpy(expected).double()).abs().max() / np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize("case", ["a", "b"])
@torch.no_grad()
def test_outputs_are_those_of_the_original(
    reference: tuple[Detector, Any], case: str, dtype: torch.dtype, tolerance: float
) -> None:
    detector, arrays = reference
    detector = detector.to(dtype)
    try:
        images = torch.from_numpy(arrays[f"{case}_x"]).to(dtype)
        prefix = f"{case}_f{torch.finfo(dtype).bits}"
        for level, logits in enumerate(detector(images)):
            assert relative_error(logits.permute(0, 1, 3, 4, 2), arrays[f"{prefix}_raw{level}"]) < tolerance
        assert relative_error(decoded(detector, images), arrays[f"{prefix}_decoded"]) < tolerance
        if dtype == torch.float32:
            folded = fold_batch_norm(detector)
            assert relative_error(decoded(folded, images), arrays[f"{prefix}_fused_decoded"]) < tolerance
    finally:
        detector.float()


def test_what_the_reference_file_says_comes_along() -> None:
    imported = import_checkpoint(shared_path("weights/foreign_n.pt"))
    info = imported.info
    assert (info.size, info.image_size, imported.part, imported.has_both) == ("n", 640, "model", False)
    assert (len(info.class_names), info.class_names[0], info.class_names[-1]) == (80, "person", "toothbrush")
    assert info.anchors == imported.detector.anchors == AnchorSet.coco_p5()
    assert imported.names_are_stored
    assert imported.image_size_is_stored
    assert imported.num_tensors == 349


@pytest.mark.parametrize("size", ["s", "n6"])
def test_each_tensor_arrives_bit_for_bit(size: str, tmp_path: Path) -> None:
    anchors = AnchorSet(tuple(tuple((w + 2.5, h) for w, h in row) for row in default_anchors(size).sizes_px),
                        default_anchors(size).strides)  # fmt: skip
    detector = random_detector(size, 3, anchors)
    imported = import_checkpoint(save_checkpoint(tmp_path / "x.pt", foreign_model(detector, NAMES)))
    own = imported.detector.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in detector.state_dict().items())
    assert all(own[name].dtype == tensor.dtype for name, tensor in detector.state_dict().items())
    assert not imported.detector.training
    assert all(parameter.requires_grad for parameter in imported.detector.parameters())
    in_half = tuple(
        tuple((float(np.float16(w / s)) * s, float(np.float16(h / s)) * s) for w, h in row)
        for row, s in zip(anchors.sizes_px, anchors.strides, strict=True)
    )
    assert imported.info.anchors.sizes_px == in_half
    assert imported.info.size == size
    assert imported.info.image_size == (1280 if size == "n6" else 640)
    assert not imported.image_size_is_stored
    save_weights(tmp_path / "own.safetensors", imported.detector, imported.info)
    loaded, info = load_weights(tmp_path / "own.safetensors")
    assert info == imported.info
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in own.items())


def test_the_average_is_preferred_where_there_is_one(tmp_path: Path) -> None:
    plain, average = (random_detector(seed=seed) for seed in (1, 2))
    path = save_checkpoint(tmp_path / "x.pt", foreign_model(plain, NAMES), ema=foreign_model(average, NAMES))
    imported = import_checkpoint(path)
    assert (imported.part, imported.has_both) == ("ema", True)
    name = "backbone.stem.convolution.weight"
    assert torch.equal(imported.detector.state_dict()[name], average.state_dict()[name])
    torch_save_only = save_checkpoint(tmp_path / "y.pt", foreign_model(plain, NAMES), ema=None)
    assert torch.equal(import_checkpoint(torch_save_only).detector.state_dict()[name], plain.state_dict()[name])


NUMBERED = {2: "c", 0: "a", 1: 7}
UNTOLD = ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("file", "names", "class_names", "options", "image_size"),
    [
        ("my best.v2", NAMES, NAMES, {"imgsz": 320}, 320),
        ("\u00fc\u8840", NUMBERED, ["a", "7", "c"], {"imgsz": [416, 416]}, 416),
        ("a:b", None, UNTOLD, argparse.Namespace(imgsz=300), 320),
        ("it's \\ odd", NAMES, NAMES, argparse.Namespace(img_size=[512]), 512),
        ("data", NAMES, NAMES, {"imgsz": -1}, None),
        ("x", NAMES, NAMES, {"imgsz": 10**9}, None),
        ("x", NAMES, NAMES, {"imgsz": "big"}, None),
        ("x", NAMES, NAMES, None, None),
    ],
)
def test_class_names_and_the_image_size_come_where_they_are_told_and_the_file_may_have_any_name(
    file: str, names: Any, class_names: list[str], options: Any, image_size: int | None, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / f"{file}.pt", foreign_model(random_detector(), names), opt=options)
    if file == "data":  # what the records within are called is the name that it had when it was written
        assert import_checkpoint(path).num_tensors == 349
    imported = import_checkpoint(path.rename(tmp_path / "other") if file in ("data", "a:b") else path)
    assert imported.num_tensors == 349
    assert list(imported.info.class_names) == class_names
    assert imported.names_are_stored == (names is not None)
    assert imported.info.image_size == (image_size or 640)
    assert imported.image_size_is_stored == (image_size is not None)


def test_a_channels_last_model_and_a_full_precision_one_are_the_same(tmp_path: Path) -> None:
    detector = random_detector()
    model = foreign_model(detector, NAMES).float()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    own = import_checkpoint(save_checkpoint(tmp_path / "x.pt", model)).detector.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in detector.state_dict().items())


def test_what_else_training_stores_is_passed_over(tmp_path: Path) -> None:
    model = foreign_model(random_detector(), NAMES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    others = {"best_fitness": np.float64(0.5), "optimizer": optimizer.state_dict(), "wandb_id": None}
    others |= {"opt": argparse.Namespace(save_dir=tmp_path, imgsz=64), "raw": b"bytes", "date": "today"}
    assert import_checkpoint(save_checkpoint(tmp_path / "x.pt", model, **others)).info.image_size == 64


def bn(model: Any) -> nn.BatchNorm2d:
    return model.model[3].bn


def focus(model: Any) -> None:
    model.model[0] = part("models.common", "Focus")


def no_activation(model: Any) -> None:
    model.model[0].act = nn.Identity()


def swapped(model: Any) -> None:
    model.model[11] = part("models.common", "Concat")


def relu(model: Any) -> None:
    model.model[0].act = nn.LeakyReLU(0.1)


def folded(model: Any) -> None:
    for layer in model.modules():
        if "bn" in layer._modules:
            layer.conv.bias = nn.Parameter(torch.zeros(layer.conv.out_channels).half())
            del layer.bn


def extra(model: Any) -> None:
    model.model[0].gate = nn.Conv2d(4, 4, 1)


def deeper(model: Any) -> None:
    del model.model[4].m[1]


def wider(model: Any) -> None:
    model.model[0].conv.weight = nn.Parameter(torch.zeros(24, 3, 6, 6).half())


def counter(model: Any) -> None:
    bn(model).num_batches_tracked = torch.tensor(1.5)


def no_numbers(model: Any) -> None:
    model.model[24].m[1].bias.data[4] = float("nan")


def set_to(path: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        *way, last = path.split(".")
        layer = model.model
        for name in way:
            layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
        setattr(layer, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (focus, "another architecture: model.0 is a Focus"),
        (relu, "another architecture: model.0.act is a LeakyReLU"),
        (no_activation, "another architecture: model.0.act is a Identity"),
        (swapped, "another architecture: model.11 has kind Concat instead of Upsample"),
        (folded, r"model.0.bn.weight is missing; .* more; BatchNorm is folded into its convolutions"),
        (extra, "not quite of size n with 3 classes: model.0.gate.weight is unknown; model.0.gate.bias is unknown"),
        (deeper, "not quite of size n .*model.4.m.1.cv1.conv.weight is missing"),
        (wider, r"another width: model.0.conv.weight has 24 channels, the sizes have 16 \(n\), 32 \(s\)"),
        (counter, "model.3.bn.num_batches_tracked is of type float32"),
        (no_numbers, "model.24.m.1.bias holds values that are infinite or no numbers"),
        (set_to("3.bn.eps", 1e-5), "another architecture: model.3.bn has eps 1e-05 instead of 0.001"),
        (set_to("3.conv.stride", (1, 2)), r"model.3.conv has stride \[1, 2\] instead of 2"),
        (set_to("3.conv.padding", (0, 0)), "model.3.conv has padding"),
        (set_to("3.conv.dilation", (2, 2)), "model.3.conv has dilation"),
        (set_to("3.conv.padding_mode", "reflect"), "model.3.conv has padding_mode reflect"),
        (set_to("4.m.0.add", False), "model.4.m.0 has add False instead of True"),
        (set_to("17.m.0.add", True), "model.17.m.0 has add True instead of False"),
        (set_to("9.m.kernel_size", 3), "model.9.m has kernel_size 3 instead of 5"),
        (set_to("11.mode", "bilinear"), "model.11 has mode bilinear instead of nearest"),
        (set_to("16.f", [-1, 6]), r"model.16 has sources \[-1, 6\] instead of \[-1, 4\]"),
        (set_to("24.f", [17, 20, 22]), "model.24 has sources"),
        (set_to("24.stride", torch.tensor([8.0, 16.0, 64.0])), r"predicts at strides \[8.0, 16.0, 64.0\]; size n does"),
        (set_to("24.stride", torch.ones(2)), r"predicts at strides \[1.0, 1.0\]; size n does"),
        (set_to("24.anchors", torch.ones(3, 6).half()), r"model.24.anchors has the shape \[3, 6\]"),
        (set_to("24.anchors", -torch.ones(3, 3, 2).half()), "positive"),
        (
            set_to("24.anchors", torch.ones(3, 5, 2).half()),
            "model.24.m.0.bias has 24 channels, which are not 5 and 1 to",
        ),
    ],
)
def test_another_architecture_is_refused_naming_what_differs(
    change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    model = foreign_model(random_detector(), NAMES)
    change(model)
    with pytest.raises(InputError, match=said) as caught:
        import_checkpoint(save_checkpoint(tmp_path / "x.pt", model))
    assert str(caught.value).startswith(f"{tmp_path / 'x.pt'}: ")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "has 1 class names, but its head predicts 3 classes"),
        ({1: "a", 2: "b", 3: "c"}, "not numbered from 0"),
        ("abc", "class names are no list of texts"),
        (["a", "b", ["c"]], "class names are no list of texts"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(names: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        import_checkpoint(save_checkpoint(tmp_path / "x.pt", foreign_model(random_detector(), names)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "not a dict with a model"),
        ({}, "no model in it, only nothing"),
        ({"state": 1, "model": None}, "no model in it, only state, model"),
        ({"model": {"a": torch.zeros(2)}}, "its model is a state dict: 1 tensors by name"),
        ({"model": nn.Linear(2, 2)}, "another architecture: the model is a Linear"),
        ({"model": nn.Sequential(nn.Conv2d(1, 1, 1))}, "no tensor model.24.anchors .* it has 0.weight, 0.bias"),
        ({"model": nn.Sequential()}, "no tensor model.24.anchors .* it has none"),
    ],
)
def test_other_things_that_torch_saves_are_refused(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=said):
        import_checkpoint(tmp_path / "x.pt")


def test_paths_that_hold_no_file_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, said in ((tmp_path / "none.pt", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(InputError, match=said):
            import_checkpoint(path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    (tmp_path / "x.pt").touch()
    with pytest.raises(StorageError, match="cannot be read: Permission denied"):
        import_checkpoint(tmp_path / "x.pt")


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
