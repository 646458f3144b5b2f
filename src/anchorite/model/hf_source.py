"""Where a backbone of the transformers library comes from: a folder, or what was downloaded when asked to.

A folder holds config.json, model.safetensors and, mostly, preprocessor_config.json. These three are read, as data;
nothing in the folder is run, and a pickle is refused. Only `download_backbone` ever asks the network for anything.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from anchorite.errors import InputError, StorageError, UnsafeFileError
from anchorite.model.backbone_config import BackboneConfig, config_from_foreign
from anchorite.model.hf_backbone import IMAGENET_MEAN, IMAGENET_STD, transformers
from anchorite.reading import printable, read_json, shorten

_CONFIG, _WEIGHTS, _PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_FILES = f"{_CONFIG}, {_WEIGHTS} and {_PREPROCESSOR}"
_MAX_CONFIG_BYTES = 2_000_000
_PREFIXES = ("hf:", "hf-config:")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class HFBackboneSource:
    """A backbone to begin with. mean, std: of red, green and blue, for images in 0..1; said: a sentence on all of it.

    tensors: as they are named in its file, where; None for random ones, or for those of a checkpoint to come; sha256:
    of that file, in hexadecimal digits, else empty.
    """

    config: BackboneConfig
    said: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    tensors: Mapping[str, Tensor] | None = None
    where: str = ""
    sha256: str = ""


def check_source(source: str) -> str:
    """The source of a backbone as it was given; InputError when it is written in no way that is known."""
    if not any(source.startswith(prefix) and len(source) > len(prefix) for prefix in _PREFIXES):
        raise InputError(
            f"{shorten(source)}: write hf:FOLDER for a backbone with its weights, or hf-config:FOLDER for one with "
            "random weights"
        )
    return source


def read_backbone(source: str) -> HFBackboneSource:
    """The backbone of "hf:NAME", or of "hf-config:NAME" with random weights; the network is never asked.

    NAME is a folder, or the name of a model that was downloaded before. Raises InputError when there is none or it is
    none that can be used here, UnsafeFileError when its weights are a pickle alone.
    """
    transformers()
    prefix, _, name = check_source(source).partition(":")
    has_weights = prefix == "hf"
    folder = _folder_of(source, name, has_weights)
    config = config_from_foreign(read_json(folder / _CONFIG, _MAX_CONFIG_BYTES), folder / _CONFIG)
    mean, std = _normalisation(folder / _PREPROCESSOR)
    what = f"backbone {config.model_type} of {printable(str(folder))}"
    if not has_weights:
        return HFBackboneSource(config, f"{what}, random weights", mean, std)
    file = _weights_file(folder, source)
    tensors, digest = _read_tensors(file)
    return HFBackboneSource(config, f"{what} (SHA-256 {digest[:12]}...)", mean, std, tensors, str(file), digest)


def download_backbone(source: str) -> None:
    """Fetch what `read_backbone` needs of a model of huggingface.co into the cache of its client library.

    Nothing is fetched for a folder. Raises InputError when the hub has no such model, or none with safetensors;
    StorageError when it cannot be reached.
    """
    transformers()
    prefix, _, name = check_source(source).partition(":")
    if Path(name).exists():
        return
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"--backbone {shorten(source)}: no folder, and no name that a hub could have")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the client is imported
    hub = import_module("huggingface_hub")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells of each of its attempts
    wanted = {_CONFIG: True, _PREPROCESSOR: False} | ({_WEIGHTS: True} if prefix == "hf" else {})
    for file, is_needed in wanted.items():
        try:
            hub.hf_hub_download(name, file)
        except hub.errors.EntryNotFoundError as error:
            if is_needed and not isinstance(error, hub.errors.LocalEntryNotFoundError):
                raise InputError(
                    f"--backbone {source}: the model has no {file}; a pickle is not taken, take another model"
                ) from error
            if is_needed:
                raise _unreachable(source, file, error) from error
        except hub.errors.RepositoryNotFoundError as error:
            raise InputError(f"--backbone {source}: huggingface.co has no such model, or it is not public") from error
        except Exception as error:  # of whichever library carries the bytes
            raise _unreachable(source, file, error) from error


def _unreachable(source: str, file: str, error: Exception) -> StorageError:
    return StorageError(
        f"--backbone {source}: {file} cannot be downloaded: {printable(str(error), 300)}; "
        f"try again, or give a folder with {_FILES}"
    )


def _folder_of(source: str, name: str, has_weights: bool) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"backbone {source}: {name} is a file; give the folder that it lies in")
    if _HUB_NAME.fullmatch(name):
        cached = _cached_folder(name, _WEIGHTS if has_weights else _CONFIG)
        if cached is not None:
            return cached
    raise InputError(
        f"backbone {shorten(source, 200)}: no such folder (looked from {Path.cwd()}), and no model that was downloaded "
        f"before; nothing is downloaded unasked. Give a folder with {_FILES}, or add --allow-download to fetch these "
        "from huggingface.co"
    )


def _cached_folder(name: str, file: str) -> Path | None:
    """Where the hub's client keeps a model with this file; the network is not asked."""
    try:
        found = import_module("huggingface_hub").try_to_load_from_cache(name, file)
    except ValueError:  # not a name that a hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def _weights_file(folder: Path, source: str) -> Path:
    file = folder / _WEIGHTS
    if file.is_file():
        return file
    other = f"hf-config:{source.partition(':')[2]} starts with random weights"
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UnsafeFileError(
            f"{folder}: no {_WEIGHTS} but {printable(pickles[0], 100)}, a pickle, which could run code when read, so "
            f"it stays unread; give a folder with {_WEIGHTS}; {other}"
        )
    raise InputError(f"{folder}: no {_WEIGHTS}, in one piece; give a folder that has it; {other}")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors, floating point ones as float32, and the SHA-256 of the file."""
    try:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
            # Cloned, because these tensors map the file: whoever cuts it off later would take the process with it.
            tensors = {name: one.float() if one.is_floating_point() else one for name, one in tensors.items()}
            tensors = {name: one.clone() for name, one in tensors.items()}
    except SafetensorError as error:
        raise InputError(
            f"{path}: cut off or no safetensors file ({printable(str(error), 200)}); copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    for name, one in tensors.items():
        if one.is_floating_point() and not bool(one.isfinite().all()):
            raise InputError(f"{path}: {printable(name, 100)} holds values that are infinite or no numbers")
    return tensors, digest


def _normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations of a preprocessor_config.json; those of ImageNet where it says none."""
    values = read_json(path, _MAX_CONFIG_BYTES) if path.is_file() else {}
    if values.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean = _three(path, "image_mean", values.get("image_mean", IMAGENET_MEAN), least=-10.0)
    return mean, _three(path, "image_std", values.get("image_std", IMAGENET_STD), least=1e-3)


def _three(path: Path, name: str, value: Any, least: float) -> tuple[float, ...]:
    is_good = isinstance(value, list | tuple) and len(value) == 3
    is_good = is_good and all(type(one) in (int, float) and least <= one <= 10 for one in value)
    if not is_good:
        raise InputError(
            f"{path}: {name} must be three numbers from {least:g} to 10, for images in 0..1, not {shorten(value)}"
        )
    return tuple(float(one) for one in value)
