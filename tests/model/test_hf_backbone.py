"""Detectors on backbones of transformers: what they compute, what their files hold, and what is refused. No network."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anchorite.errors import InputError, StorageError, UnsafeFileError
from anchorite.model import (
    Detector,
    WeightsInfo,
    default_anchors,
    download_backbone,
    fold_batch_norm,
    load_weights,
    read_backbone,
    save_weights,
    to_channels_last,
)
from anchorite.model.detector import is_folded
from anchorite.model.hf_backbone import HFBackbone, HFBackboneSource, config_of_library, parse_backbone_config
from anchorite.predict import TorchRuntime
from tests.faults.watch import watched
from tests.model.hf import FAMILIES, NAMES, SETTINGS, WIDTHS, anchors, detector, folder, images
from tests.small import short_networks

transformers = pytest.importorskip("transformers")


def info(family: str, size: str = "n") -> WeightsInfo:
    return WeightsInfo(size, NAMES, anchors(size), 64, detector(family, size).backbone_config)


def with_settings(place: Path, **changed: Any) -> str:
    """A folder with a config.json alone, and the source that names it."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps({**SETTINGS["resnet"], **changed}), encoding="utf-8")
    return f"hf-config:{place}"


def built(**changed: Any) -> Detector:
    settings = {**SETTINGS[changed.get("model_type", "resnet")], **changed}
    return Detector("n", 3, anchors("n"), config_of_library(settings, "config.json"))


@pytest.mark.parametrize(
    ("family", "size"), [*((family, "n") for family in FAMILIES), ("resnet", "n6"), ("swin", "n6")]
)
def test_maps_have_the_strides_and_widths_of_the_size(family: str, size: str) -> None:
    height, width = 128, 192
    with torch.no_grad():
        maps = detector(family, size).features(images(2, 3, height, width))
    strides = (8, 16, 32, 64)[: len(WIDTHS[size])]
    expected = [(2, c, height // s, width // s) for c, s in zip(WIDTHS[size], strides, strict=True)]
    assert [tuple(one.shape) for one in maps] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family: str) -> None:
    made = Detector("n6", 3, anchors("n6"), config_of_library(SETTINGS[family], family))
    to_channels_last(made)
    torch.stack([one.square().mean() for one in made(images(2, 3, 128, 64))]).sum().backward()
    without = [name for name, one in made.named_parameters() if one.grad is None or not bool(one.grad.any())]
    # Before a softmax or a normalisation, a constant added to all is nothing.
    assert [name for name in without if not name.endswith(("key.bias", "k_proj.bias"))] == []
    assert all(one.grad is not None for one in made.parameters())


def test_nothing_in_training_is_random() -> None:
    for family in ("convnext", "swin", "swinv2"):
        random = {**SETTINGS[family], "drop_path_rate": 0.5, "hidden_dropout_prob": 0.5}
        made = Detector("n", 3, anchors("n"), config_of_library(random, family)).train()
        x = images(1, 3, 64, 64)
        with torch.no_grad():
            first, second = made.backbone(x), made.backbone(x)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


class Seen(nn.Module):
    """Keeps what it was shown."""

    def forward(self, x: torch.Tensor) -> Any:
        self.shown = x
        raise StopIteration


def test_images_are_normalised_with_the_means_and_deviations_of_the_backbone() -> None:
    x = images(2, 3, 64, 64)
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.25, 0.75), (0.5, 0.25, 0.125))):
        made = built()
        backbone = made.backbone
        assert isinstance(backbone, HFBackbone)
        if mean[0] == 0.5:
            start = read_backbone(f"hf-config:{folder('resnet')}")
            assert (start.mean, start.std) == (mean, std)
            backbone.start_from(start)
        backbone.body = Seen()
        with pytest.raises(StopIteration):
            made.features(x)
        exact = (x.double() - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
        torch.testing.assert_close(backbone.body.shown.double(), exact, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_the_library_with_the_weights_of_the_folder(family: str) -> None:
    start = read_backbone(f"hf:{folder(family)}")
    made = Detector("n", 3, anchors("n"), start.config)
    backbone = made.backbone
    assert isinstance(backbone, HFBackbone)
    assert start.tensors is not None
    backbone.start_from(start)
    stages = ["stage2", "stage3", "stage4"]
    theirs = type(backbone.body).from_pretrained(
        str(folder(family)), out_features=stages, local_files_only=True, attn_implementation="eager"
    )
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.eval()(x).feature_maps
        found = backbone.eval().body(x).feature_maps
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    # Not that both are random: one tensor, by its name in the file.
    stored = load_file(folder(family) / "model.safetensors")
    name = next(name for name, one in stored.items() if one.ndim == 4)
    assert any(one.shape == stored[name].shape and torch.equal(one, stored[name]) for one in backbone.body.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_file_gives_the_detector_back_without_folder_or_hub(family: str, tmp_path: Path) -> None:
    path, original = tmp_path / "w.safetensors", detector(family)
    save_weights(path, original, info(family))
    with watched() as deeds:
        loaded, loaded_info = load_weights(path)
    assert deeds.network == []
    assert deeds.spawned == []
    assert loaded_info == info(family)
    assert not loaded.training
    ours, theirs = original.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(one.is_meta for one in (*loaded.parameters(), *loaded.buffers()))
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(original(x), loaded(x), strict=True))


def header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["anchorite"])


def test_only_files_with_a_backbone_of_transformers_are_of_version_3(tmp_path: Path) -> None:
    plain = Detector("n", 3, anchors("n"))
    save_weights(tmp_path / "plain.safetensors", plain, WeightsInfo("n", NAMES, anchors("n"), 64))
    earlier = ["format_version", "size", "class_names", "anchors", "strides", "image_size"]
    assert list(header(tmp_path / "plain.safetensors")) == earlier
    assert header(tmp_path / "plain.safetensors")["format_version"] == 1
    save_weights(tmp_path / "theirs.safetensors", detector("swin"), info("swin"))
    stated = header(tmp_path / "theirs.safetensors")
    assert stated["format_version"] == 3
    assert parse_backbone_config(stated["backbone"], "header") == detector("swin").backbone_config


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_nothing_and_leaves_foreign_normalisation(family: str) -> None:
    original = detector(family)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    folded = fold_batch_norm(original)
    assert is_folded(folded)
    assert not is_folded(original)
    num_norms = [
        sum(isinstance(one, nn.BatchNorm2d) for one in model.backbone.modules()) for model in (original, folded)
    ]
    assert num_norms[1] == (num_norms[0] - 3 if family == "resnet" else 0)  # one of each projection
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(folded(x), original(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_lower_precision_comes_near(family: str) -> None:
    original, x = detector(family), images(1, 3, 64, 64)
    with torch.no_grad():
        exact = original(x)
        info = WeightsInfo("n", ("a", "b", "c"), original.anchors, 64)
        as_in_validation = TorchRuntime(original, info, "cpu", None, torch.bfloat16).detector
        with torch.autocast("cpu", torch.bfloat16):
            answers = [original(x.bfloat16()), as_in_validation(x)]
        answers.append(fold_batch_norm(original).to(torch.bfloat16)(x.bfloat16()))
    scale = torch.cat([one.flatten() for one in exact]).std()
    for answer in answers:
        off = torch.cat([(a.float() - b).flatten() for a, b in zip(answer, exact, strict=True)]).std()
        assert off < 0.1 * scale


@pytest.mark.slow
def test_features_compile_as_one_graph() -> None:
    with short_networks():
        made = Detector("n", 3, anchors("n"), detector("convnext").backbone_config).eval()
    x = images(2, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(made.features, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(compiled(x), made.features(x), strict=True))


@pytest.mark.slow
def test_an_export_answers_as_the_detector() -> None:
    from anchorite.export import ExportRequest, build, drawn_batches, export_info

    with short_networks():
        made = Detector("n", 3, anchors("n"), detector("convnext").backbone_config).eval()
    request = ExportRequest("onnx", fixed_batch=1)
    exported = build(made, info("convnext"), request, drawn_batches(export_info(info("convnext"), request)))
    assert exported.parity.num_cells > 0  # build refuses what differs


def test_windows_are_exported_for_one_size_alone() -> None:
    from anchorite.export import ExportRequest, export_info

    with pytest.raises(InputError, match=r"backbone swin is another program for each size.*add --static 1"):
        export_info(info("swin"), ExportRequest("onnx"))
    assert export_info(info("swin"), ExportRequest("onnx", fixed_batch=2)).fixed_shape == (2, 64, 64)


def test_a_hub_name_is_refused_unless_asked_and_the_network_is_not(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("hf:microsoft/resnet-50", "hf-config:resnet-50", "hf:../x", "hf:a/b/c"):
        with watched() as deeds, pytest.raises(InputError, match=r"no such folder.*--allow-download"):
            read_backbone(source)
        assert deeds.network == []
        assert deeds.spawned == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; give the folder"):
        read_backbone("hf:file")
    for source in ("", "hf:", "resnet", "timm:resnet50"):
        with pytest.raises(InputError, match="write hf:FOLDER"):
            read_backbone(source)


@pytest.mark.parametrize(("source", "wanted"), [
    ("hf:a/model", ["config.json", "preprocessor_config.json", "model.safetensors"]),
    ("hf-config:a/model", ["config.json", "preprocessor_config.json"]),
])  # fmt: skip
def test_a_download_fetches_data_alone(source: str, wanted: list[str], monkeypatch: Any, tmp_path: Path) -> None:
    import huggingface_hub as hub

    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, list[str]]] = []
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()

    def fetched(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    with pytest.raises(InputError, match=r"the model has no config\.json; a pickle is not taken"):
        download_backbone(source)
    for file in wanted:
        (snapshot / file).touch()
    download_backbone(source)
    assert [(name, sorted(files)) for name, files in asked] == [("a/model", sorted(wanted))] * 2
    download_backbone(f"hf:{folder('resnet')}")
    assert len(asked) == 2

    def offline(name: str, **_: Any) -> None:
        raise hub.errors.LocalEntryNotFoundError("no route\x1b[2J")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(StorageError, match=r"cannot be downloaded: no route\\x1b"):
        download_backbone(source)


def test_pickles_and_missing_weights_are_refused_unread(tmp_path: Path) -> None:
    source = with_settings(tmp_path / "m").replace("hf-config", "hf")
    with pytest.raises(InputError, match=r"no model\.safetensors, in one piece.*hf-config:.*random weights"):
        read_backbone(source)
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with watched() as deeds, pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin, a pickle.*is not read"):
        read_backbone(source)
    assert not any(path.endswith(".bin") for path in deeds.opened)


def source_of(tensors: dict[str, torch.Tensor]) -> HFBackboneSource:
    return HFBackboneSource(config_of_library(SETTINGS["resnet"], "x"), "", tensors=tensors, where="file")


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    stored = load_file(folder("resnet") / "model.safetensors")
    made = built()
    assert isinstance(made.backbone, HFBackbone)
    before = [one.clone() for one in made.parameters()]
    less = {name: one for name, one in stored.items() if "stages.3" not in name}
    with pytest.raises(InputError, match=r"file: \d+ of \d+ tensors of its backbone are missing: encoder\.stages\.3"):
        made.backbone.start_from(source_of(less))
    odd = {name: one[:3] if "stages.2" in name and one.ndim == 4 else one for name, one in stored.items()}
    with pytest.raises(InputError, match="file: these tensors do not fit"):
        made.backbone.start_from(source_of(odd))
    assert all(torch.equal(*pair) for pair in zip(before, made.parameters(), strict=True))
    place = tmp_path / "m"
    source = with_settings(place).replace("hf-config", "hf")
    save_file({**stored, "x": torch.tensor([torch.nan])}, place / "model.safetensors")
    with pytest.raises(InputError, match="x holds values that are infinite"):
        read_backbone(source)
    (place / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="cut off or no safetensors file"):
        read_backbone(source)


def test_without_the_library_there_is_one_message(tmp_path: Path, monkeypatch: Any) -> None:
    save_weights(tmp_path / "w.safetensors", detector("resnet"), info("resnet"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call in (lambda: read_backbone("hf:x"), lambda: load_weights(tmp_path / "w.safetensors")):
        with pytest.raises(InputError, match=r"pip install 'anchorite\[backbones\]'"):
            call()
    assert Detector("n", 3, anchors("n")).backbone_config is None


@pytest.mark.slow
def test_nothing_imports_the_library_that_has_no_use_for_it() -> None:
    code = """
import sys
import anchorite.cli, anchorite.export, anchorite.train.run, anchorite.train.pretrained
from anchorite.model import Detector, default_anchors, fold_batch_norm
fold_batch_norm(Detector("n", 1, default_anchors("n")))
print({"transformers", "huggingface_hub"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "set()"


def test_stages_that_are_not_there_or_lead_nowhere_are_named() -> None:
    three = {"hidden_sizes": [8, 16, 24], "depths": [1, 1, 1]}
    with pytest.raises(
        InputError, match=r"no stage of stride 32; .*stem of 4, stage1 of 4, stage2 of 8, stage3 of 16\."
    ):
        built(**three)
    five = {"hidden_sizes": [8, 16, 24, 32, 40], "depths": [1, 1, 1, 1, 1]}
    with pytest.raises(InputError, match=r"stages follow on stride 32.*stage5 of 64\. Take a size with a 6"):
        built(**five)
    whole = Detector("n6", 3, default_anchors("n6"), config_of_library({**SETTINGS["resnet"], **five}, "x"))
    assert [one.shape[-1] for one in whole.eval().features(images(1, 3, 128, 128))] == [16, 8, 4, 2]
    assert whole.backbone.coarser is None
    with pytest.raises(InputError, match=r"no stage of stride 8 or 16 or 32"):
        built(model_type="convnext", patch_size=3)


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "timm_backbone"}, "model_type 'timm_backbone' cannot be a backbone here; take one of resnet"),
    ({"model_type": None}, "cannot be a backbone here"),
    ({"model_type": "\x1b[2J" * 1000}, "cannot be a backbone here"),
    ({"num_channels": 4}, "num_channels 4"),
    ({"hidden_sizes": [10**9, 16, 24, 32]}, "hidden_sizes"),
    ({"hidden_sizes": [10**4000, 16, 24, 32]}, "hidden_sizes"),
    ({"hidden_sizes": [8] * 100_000}, "hidden_sizes"),
    ({"hidden_sizes": "8" * 100_000}, "hidden_sizes"),
    ({"hidden_sizes": [8, 16]}, "different lengths"),
    ({"depths": [1, 1, 10**6, 1]}, "depths"),
    ({"depths": [-1, 1, 1, 1]}, "depths"),
    ({"depths": None}, "depths"),
    ({"hidden_act": "__import__('os')"}, "hidden_act"),
    ({"layer_type": "other"}, "layer_type"),
    ({"hidden_sizes": [8192] * 4, "depths": [10] * 4}, "GB of weights"),
    ({"model_type": "swin", "embed_dim": 8192, "num_heads": [1, 1, 1, 1]}, "GB of weights"),
    ({"model_type": "swin", "embed_dim": 8, "num_heads": [1] * 4, "window_size": 32, "depths": [40] * 4}, "GB beside"),
    ({"model_type": "swin", "embed_dim": 9, "num_heads": [2] * 4}, "does not run"),
    ({"hidden_sizes": [1, 1, 1, 1], "layer_type": "bottleneck"}, "cannot be built|does not run"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("changed", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_settings_of_a_stranger_are_refused_before_anything_is_allocated(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        Detector("n", 3, anchors("n"), read_backbone(with_settings(tmp_path / "m", **changed)).config)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    told = str(caught.value).replace(str(tmp_path), "")
    assert len(told) < 1500
    assert told.isprintable()


@pytest.mark.parametrize("changed", [{"hidden_sizes": [2048] * 4}, {"model_type": "gpt2"}, {"auto_map": {"a": "b"}}])
def test_a_weight_file_of_a_stranger_is_refused_before_anything_is_allocated(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, detector("resnet"), info("resnet"))
    fields = header(path)
    fields["backbone"].update(changed)
    save_file(load_file(path), path, {"anchorite": json.dumps(fields)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"w\.safetensors: .*(tensors do not fit its detector|backbone)"):
        load_weights(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_version_goes_with_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, detector("resnet"), info("resnet"))
    fields, tensors = header(path), load_file(path)
    earlier = {**fields, "format_version": 2, "borrowed": fields["backbone"]}
    del earlier["backbone"]
    save_file(tensors, path, {"anchorite": json.dumps(earlier)})
    assert load_weights(path)[1] == info("resnet")
    for changed in ({"format_version": 1}, {"backbone": None}):
        save_file(tensors, path, {"anchorite": json.dumps({**fields, **changed})})
        with pytest.raises(InputError, match=r"format version . goes with"):
            load_weights(path)


def test_what_could_fetch_or_run_something_never_reaches_the_library(tmp_path: Path) -> None:
    hostile = {
        "auto_map": {"AutoBackbone": "evil.Evil", "AutoConfig": "evil.Config"},
        "trust_remote_code": True,
        "_attn_implementation": "evil/kernels",
        "attn_implementation": "evil/kernels",
        "quantization_config": {"quant_method": "bitsandbytes"},
        "_name_or_path": "evil/model",
        "use_timm_backbone": True,
        "backbone": "evil/timm",
        "transformers_version": "99",
    }
    place = tmp_path / "m"
    source = with_settings(place, **hostile)
    (place / "evil.py").write_text("raise SystemExit(77)", encoding="utf-8")
    (place / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base"}', encoding="utf-8")
    with watched() as deeds:
        start = read_backbone(source)
        made = Detector("n", 3, anchors("n"), start.config)
        made.features(images(1, 3, 64, 64))
    assert start.config == detector("resnet").backbone_config
    assert (deeds.network, deeds.spawned, deeds.unpickled) == ([], [], set())
    assert {Path(path).name for path in deeds.below(place)} == {"config.json"}
    body = made.backbone.body
    assert not set(hostile) & {
        name for name in vars(body.config) if not name.startswith("_") and name != "transformers_version"
    }
