"""Checkpoints: everything that a run needs to go on bit for bit, as safetensors and JSON, without pickle.

A checkpoint is `epoch-0007.safetensors` with its manifest `epoch-0007.json`. The manifest is written last and holds
the SHA-256 of the tensors: a checkpoint without a manifest, or with another hash, does not count.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from anchorite.errors import StorageError
from anchorite.files import write_atomically, write_text_atomically
from anchorite.train.step import Trainee

FORMAT_VERSION = 1
_KEEP = 2


@dataclass(frozen=True)
class Progress:
    """How far a run is: epochs and optimizer steps done, and what early stopping knows."""

    epoch: int = 0
    optimizer_steps: int = 0
    best_map: float = -1.0
    best_epoch: int | None = None


def save_checkpoint(folder: Path, trainee: Trainee, progress: Progress) -> None:
    """Write the checkpoint of progress.epoch, durable on return; older ones but the previous are removed after."""
    stem = f"epoch-{progress.epoch:04d}"
    path = folder / f"{stem}.safetensors"
    tensors = _gather(trainee)
    write_atomically(path, lambda temporary: _write(temporary, tensors))
    manifest = {
        "format_version": FORMAT_VERSION,
        "sha256": _sha256(path),
        "progress": asdict(progress),
        "average_updates": trainee.average.updates,
        "scaler": trainee.scaler.state_dict(),
    }
    write_text_atomically(path.with_suffix(".json"), json.dumps(manifest, indent=1) + "\n")
    for old in _manifests(folder)[:-_KEEP]:
        # The manifest goes first, so that a crash in between leaves tensors that do not count, not the reverse.
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_latest(folder: Path, trainee: Trainee) -> tuple[Progress, list[str]]:
    """Restore the newest checkpoint that is whole; its progress, and a line on each newer one that is damaged.

    Raises StorageError when there is none that can be used; nothing is deleted.
    """
    damaged: list[str] = []
    for manifest_path in reversed(_manifests(folder)):
        try:
            manifest, tensors = _read(manifest_path)
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{manifest_path.with_suffix('.safetensors')}: damaged, passed over: {error}")
            continue
        _restore(trainee, tensors, manifest)
        return Progress(**manifest["progress"]), damaged
    found = "\n".join(damaged) or "there is none"
    raise StorageError(f"{folder}: no checkpoint to resume from: {found}")


def has_checkpoint(folder: Path) -> bool:
    """Whether any checkpoint was ever finished in the folder."""
    return bool(_manifests(folder))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # its way of reporting a full disk
        raise OSError(str(error)) from error


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.json"))


def _read(manifest_path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    if manifest["format_version"] != FORMAT_VERSION:
        version = manifest["format_version"]
        raise ValueError(f"format version {version}; this anchorite reads version {FORMAT_VERSION}")
    # Read once: what is hashed is what is used, and nothing stays mapped to a file that may be replaced.
    content = manifest_path.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise ValueError("its SHA-256 is not that of the manifest")
    return manifest, load(content)


def _gather(trainee: Trainee) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, state in (
        ("model", trainee.detector.state_dict()),
        ("average", trainee.average.model.state_dict()),
        ("criterion", trainee.criterion.state_dict()),
    ):
        tensors |= {f"{part}.{name}": tensor for name, tensor in state.items()}
    for number, state in trainee.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items() if tensor is not None}
    # Strides (channels_last) are not part of the file format, so every tensor is stored in plain order.
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def _restore(trainee: Trainee, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    trainee.detector.load_state_dict(_part(tensors, "model"))
    trainee.average.model.load_state_dict(_part(tensors, "average"))
    trainee.average.updates = manifest["average_updates"]
    trainee.criterion.load_state_dict(_part(tensors, "criterion"))
    if manifest["scaler"]:
        trainee.scaler.load_state_dict(manifest["scaler"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer").items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    groups = trainee.optimizer.state_dict()["param_groups"]
    trainee.optimizer.load_state_dict({"state": state, "param_groups": groups})
    _match_memory_formats(trainee.optimizer)


def _match_memory_formats(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimizer's tensors out like their parameters, as they were: another order would round otherwise."""
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    start = part + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
