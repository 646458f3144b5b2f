"""Checkpoints: everything that a run needs to be resumed bit for bit, as safetensors and JSON, without pickle.

A checkpoint after epoch 7 is `epoch-0007.safetensors` with its manifest `epoch-0007.json`; one within epoch 8 is
`epoch-0007-batch-00012`. The manifest is written last and holds the SHA-256 of the tensors and of itself: a checkpoint
without a manifest, or of which any bit has changed, does not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import StorageError
from anchorite.files import write_atomically, write_text_atomically
from anchorite.train.optim import start_momentum
from anchorite.train.step import TrainState

FORMAT_VERSION = 2
_KEEP = 2
_NAME = re.compile(r"epoch-([0-9]+)(?:-batch-([0-9]+))?\.json")


@dataclass(frozen=True)
class PartialEpoch:
    """The progress within the current epoch.

    batches, images: done of it; loss_sums: of box, objectness and class loss over the `finite_batches`; skipped:
    steps skipped because a value was non-finite; seconds: of the epoch, waited: of them for data.
    """

    batches: int = 0
    images: int = 0
    loss_sums: Sequence[float] = (0.0, 0.0, 0.0)
    finite_batches: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Epochs and optimizer steps done, the state of early stopping, and the current epoch.

    optimizer_steps: of all the epochs, skipped ones included; skipped_in_a_row: the last ones of them.
    """

    epoch: int = 0
    optimizer_steps: int = 0
    best_map: float = -1.0
    best_epoch: int | None = None
    skipped_in_a_row: int = 0
    partial: PartialEpoch = PartialEpoch()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Progress as `dataclasses.asdict` and JSON left it; ValueError when fields are missing or unknown."""
        partial = values["partial"]
        if {*values} != {one.name for one in fields(cls)} or {*partial} != {one.name for one in fields(PartialEpoch)}:
            raise ValueError("its progress has other fields than this release writes")
        return cls(**{**values, "partial": PartialEpoch(**partial)})

    def in_batches_of(self, size: int, num_samples: int, accumulation: int) -> Progress:
        """The same point of a run whose batches have become another size, in batches of `size` images of an epoch of
        num_samples, so many accumulated for an optimizer step. What is no whole batch of that size is done again.
        """
        partial, num_batches = self.partial, -(-num_samples // size)
        if partial.batches != -(-partial.images // size):  # not of that size already
            batches = num_batches if partial.images >= num_samples else partial.images // size
            partial = replace(partial, batches=batches, images=min(num_samples, batches * size))
        steps_per_epoch = -(-num_batches // accumulation)
        of_epoch = steps_per_epoch if partial.batches == num_batches else partial.batches // accumulation
        return replace(self, partial=partial, optimizer_steps=self.epoch * steps_per_epoch + of_epoch)

    @property
    def stem(self) -> str:
        """The name of a checkpoint's files at this point."""
        within = f"-batch-{self.partial.batches:05d}" if self.partial.batches else ""
        return f"epoch-{self.epoch:04d}{within}"

    def describe(self, num_batches: int | None = None) -> str:
        """Where this is, in words."""
        if not self.partial.batches:
            return f"epoch {self.epoch}"
        of = "" if num_batches is None else f" of {num_batches}"
        return f"batch {self.partial.batches}{of} of epoch {self.epoch + 1}"


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint in the folder. progress: how far it is; fault: why it is invalid, None if it is valid."""

    path: Path
    progress: Progress | None
    fault: str | None


def save_checkpoint(folder: Path, train_state: TrainState, progress: Progress) -> Path:
    """Write the checkpoint of `progress`, durable on return; older ones but the previous are removed after."""
    path = folder / f"{progress.stem}.safetensors"
    tensors = _gather(train_state)

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # its way of reporting a full disk
            raise OSError(str(error)) from error

    write_atomically(path, write, sum(tensor.nbytes for tensor in tensors.values()))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    body = {
        "format_version": FORMAT_VERSION,
        "tensors_sha256": digest,
        "progress": asdict(progress),
        "ema_updates": train_state.ema.updates,
        "scaler": train_state.scaler.state_dict(),
        "environment": environment(train_state),
    }
    write_text_atomically(path.with_suffix(".json"), _signed(body))
    for old in _manifests(folder)[:-_KEEP]:
        # The manifest goes first, so that a crash in between leaves tensors that do not count, not the reverse.
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def load_latest(folder: Path, train_state: TrainState, world: World = SINGLE_PROCESS) -> tuple[Progress, list[str]]:
    """Restore the newest valid checkpoint; its progress, and sentences for the user.

    The sentences name each newer one that is damaged, and a machine that differs from the checkpoint's. Rank 0 reads
    and broadcasts to the others. Raises StorageError if none is valid; nothing is deleted.
    """
    messages: list[str] = []
    manifest: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if world.is_main:
        for found, *content in _read_all(folder):
            if found.fault is None:
                manifest, tensors = content
                break
            messages.append(f"{found.path}: damaged, passed over: {found.fault}")
        else:
            every = "\n".join(messages) or "there is none"
            remedy = "nothing was deleted or started; start a new run with --out"
            raise StorageError(f"{folder}: no checkpoint to resume from: {every}\n{remedy}")
    manifest, messages = world.broadcast([manifest, messages])
    _restore(train_state, world.broadcast_tensors(tensors), manifest)
    then, now = manifest["environment"], environment(train_state)
    changed = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
    if changed:
        messages.append(f"not bit for bit the result of an uninterrupted run:  {'; '.join(changed)}")
    return Progress.from_json(manifest["progress"]), messages


def found_checkpoints(folder: Path) -> Iterator[FoundCheckpoint]:
    """Every checkpoint of the folder, newest first, read and verified."""
    return (found for found, _, _ in _read_all(folder))


def has_checkpoint(folder: Path) -> bool:
    """Whether any checkpoint was ever finished in the folder."""
    return bool(_manifests(folder))


def leftovers(folder: Path) -> list[Path]:
    """Leftovers of a crash: temporary files, and tensors whose manifest was never written."""
    stray = [*folder.glob(".*.tmp")]
    return stray + [path for path in folder.glob("epoch-*.safetensors") if not path.with_suffix(".json").is_file()]


def environment(train_state: TrainState) -> dict[str, str]:
    """What the bits of a run depend on beside recipe and data."""
    device = next(train_state.detector.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = str(torch.get_num_threads()) if device.type == "cpu" else "any"
    return {"torch": torch.__version__, "device": name, "threads": threads}


def _manifests(folder: Path) -> list[Path]:
    """From the oldest point of the run to the newest."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("epoch-*.json"))
    points = {(int(match[1]), int(match[2] or 0)): path for match, path in named if match}
    return [points[point] for point in sorted(points)]


def _signed(body: dict[str, Any]) -> str:
    """The text of a manifest: its body, and the SHA-256 of that."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({"body": body, "sha256": digest}, indent=1) + "\n"


def _read_all(folder: Path) -> Iterator[tuple[FoundCheckpoint, dict[str, Any], dict[str, Tensor]]]:
    """Each checkpoint, newest first, with its manifest and tensors; not to be used where it has a fault."""
    for manifest_path in reversed(_manifests(folder)):
        path, progress, fault = manifest_path.with_suffix(".safetensors"), None, None
        manifest: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        try:
            text = manifest_path.read_bytes()
            signed = json.loads(text)
            manifest = signed.get("body", signed)  # the first format had none
            version = manifest.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version}; this anchorite reads version {FORMAT_VERSION}")
            # Compared as text, so that any changed bit is detected, even in a space.
            if _signed(manifest).encode() != text:
                raise ValueError(f"the SHA-256 of its manifest {manifest_path.name} is not the one in it")
            # Read once: what is hashed is what is used, and nothing stays mapped to a file that may be replaced.
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != manifest["tensors_sha256"]:
                raise ValueError("its SHA-256 is not that of the manifest")
            # Earlier releases called the EMA average.
            tensors = {re.sub(r"^average\.", "ema.", name): tensor for name, tensor in load(content).items()}
            if "average_updates" in manifest:
                manifest["ema_updates"] = manifest.pop("average_updates")
            progress = Progress.from_json(manifest["progress"])
        except json.JSONDecodeError as error:
            fault = f"its manifest {manifest_path.name} is no JSON: {error}"
        except (OSError, ValueError) as error:
            fault = str(error)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            fault = f"its manifest {manifest_path.name} is damaged: {error!r}"
        yield FoundCheckpoint(path, progress, fault), manifest, tensors


def _gather(train_state: TrainState) -> dict[str, Tensor]:
    states: dict[str, dict[str, Any]] = {
        "model": train_state.detector.state_dict(),
        "ema": train_state.ema.model.state_dict(),
        "criterion": train_state.criterion.state_dict(),
    }
    for number, state in train_state.optimizer.state_dict()["state"].items():
        states[f"optimizer.{number}"] = state
    # Between the batches of one optimizer step: the accumulated gradients.
    states["gradient"] = {name: parameter.grad for name, parameter in train_state.detector.named_parameters()}
    # Strides (channels_last) are not part of the file format, so every tensor is stored in plain order.
    return {
        f"{part}.{name}": tensor.detach().contiguous().cpu()
        for part, state in states.items()
        for name, tensor in state.items()
        if tensor is not None
    }


def _restore(train_state: TrainState, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition(".")
        parts[part][name] = tensor
    train_state.detector.load_state_dict(parts["model"])
    train_state.ema.model.load_state_dict(parts["ema"])
    train_state.ema.updates = manifest["ema_updates"]
    train_state.criterion.load_state_dict(parts["criterion"])
    if manifest["scaler"]:
        train_state.scaler.load_state_dict(manifest["scaler"])
    states: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for full_name, tensor in parts["optimizer"].items():
        number, _, name = full_name.partition(".")
        states[int(number)][name] = tensor
    optimizer = train_state.optimizer
    optimizer.load_state_dict({"state": dict(states), "param_groups": optimizer.state_dict()["param_groups"]})
    # The optimizer's tensors get the memory layout of their parameters: another order would round differently.
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
    start_momentum(optimizer)  # of a checkpoint from before the first step
    for name, parameter in train_state.detector.named_parameters():
        gathered = parts["gradient"].get(name)
        parameter.grad = None if gathered is None else torch.empty_like(parameter).copy_(gathered)
