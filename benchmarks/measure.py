"""What the benchmarks share: settings, comparisons with a target and a floor, rates of the machine, peak memory, data.

Legend: B images, L levels, C_l channels, H_l, W_l cells.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from anchorite.benchmark import Figure, Sample, interleaved, shown
from anchorite.data import DatasetIndex, Record, open_dataset
from anchorite.data.scenes import write_scenes
from anchorite.errors import InputError
from anchorite.model import Detector

_WORD: Mapping[bool | None, str] = MappingProxyType({None: "", True: "met", False: "missed"})
BUSY_CORES = 0.3  # of other programs, from which on a run is no longer called quiet
_MATMUL_SIDE, _RATE_ROUNDS = 2048, 12
Result = TypeVar("Result")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what the kernel takes for "forget the high-water mark", man 5 proc
_COUNTS, _SIDE_PX = (96, 16, 32), 640
_QUICK_COUNTS, _QUICK_SIDE_PX = (8, 2, 4), 64
Predictors = Sequence[nn.Conv2d]


@dataclass(frozen=True)
class Settings:
    """rounds: None for each benchmark's own number. data: a dataset, or None for drawn scenes. quick: small sizes and
    few rounds, which prove that everything runs and nothing about speed. out: a folder for pictures, or None for none.
    plain_memory: leave the C library's allocator as it is. Otherwise freed memory is kept, as every training process of
    ours does it, for ours and the yardsticks alike.
    """

    device: torch.device
    rounds: int | None = None
    data: Path | None = None
    quick: bool = False
    out: Path | None = None
    plain_memory: bool = False

    def rounds_or(self, usual: int) -> int:
        """The number asked for, else 2 when quick, else the usual one."""
        return self.rounds or (2 if self.quick else usual)


@dataclass(frozen=True)
class Target:
    """What a ratio should be: at least or at most a value."""

    bound: Literal["at least", "at most"]
    value: float

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.value if self.bound == "at least" else ratio <= self.value


@dataclass(frozen=True)
class Floor:
    """The least that ours could cost on this machine, in the unit of ours, and in words what it counts."""

    value: float
    what: str


@dataclass(frozen=True)
class Comparison:
    """Ours against a yardstick of the same run.

    ratio_of: "faster" is yardstick / ours in seconds (more is better), "cost" is ours / yardstick (less is better).
    spread: quartiles of that ratio round by round.
    """

    name: str
    ours: Figure
    yardstick: Figure
    ratio_of: Literal["faster", "cost"]
    spread: tuple[float, float] | None = None
    target: Target | None = None
    floor: Floor | None = None

    @property
    def ratio(self) -> float:
        above, below = (self.yardstick, self.ours) if self.ratio_of == "faster" else (self.ours, self.yardstick)
        return above.value / below.value if below.value else math.inf

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.target.is_met(self.ratio)


def faster(ours: str, yardstick: str, samples: dict[str, Sample], name: str, at_least: float | None) -> Comparison:
    """How many times less time ours takes; the figures carry the samples' names."""
    spread = round_ratios(samples[yardstick], samples[ours])
    target = None if at_least is None else Target("at least", at_least)
    return Comparison(
        name, Figure.of(ours, samples[ours]), Figure.of(yardstick, samples[yardstick]), "faster", spread, target
    )


def cost(ours: str, yardstick: str, samples: dict[str, Sample], name: str, at_most: float | None) -> Comparison:
    """How many times the yardstick's time ours takes."""
    spread = round_ratios(samples[ours], samples[yardstick])
    target = None if at_most is None else Target("at most", at_most)
    return Comparison(
        name, Figure.of(ours, samples[ours]), Figure.of(yardstick, samples[yardstick]), "cost", spread, target
    )


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found; facts: sizes it ran with and rates it measured."""

    name: str
    comparisons: tuple[Comparison, ...]
    figures: tuple[Figure, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Outcomes with everything needed to repeat and to judge them."""

    command: str
    machine: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: dictionaries, lists, numbers and text; what is not finite becomes None."""
        outcomes = [
            {
                **asdict(outcome),
                "comparisons": [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in outcome.comparisons],
            }
            for outcome in self.outcomes
        ]
        report = {"command": self.command, "warnings": self.warnings, "machine": self.machine, "outcomes": outcomes}
        return dict(_plain(report))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def to_lines(outcome: Outcome) -> list[str]:
    """An outcome for people: two or three lines a comparison, one a figure."""
    lines = []
    for one in outcome.comparisons:
        lines.append(f"{outcome.name}: {one.name}")
        lines.append(
            f"    {one.ours.name} {shown(one.ours.value, one.ours.unit)}, {one.yardstick.name} "
            f"{shown(one.yardstick.value, one.yardstick.unit)}: {shown_ratio(one)}{_verdict(one)}"
        )
        if one.floor is not None:
            lines.append(f"    floor {shown(one.floor.value, one.ours.unit)}: {one.floor.what}")
    for figure in outcome.figures:
        note = f" ({figure.note})" if figure.note else ""
        lines.append(f"{outcome.name}: {figure.name}: {shown(figure.value, figure.unit)}{note}")
    return lines


def shown_ratio(one: Comparison) -> str:
    """The ratio in words, with the quartiles of its rounds."""
    spread = "" if one.spread is None else f" ({one.spread[0]:.3g} to {one.spread[1]:.3g})"
    return f"{one.ratio:.3g}{spread} times {'faster' if one.ratio_of == 'faster' else 'the cost'}"


def _verdict(one: Comparison) -> str:
    return "" if one.target is None else f"; target {one.target.bound} {one.target.value:g}: {_WORD[one.met]}"


class BusyMeter:
    """How many cores other programs used since it was made; NaN where the system does not tell."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Clock, seconds used by all programs, seconds used by this one and its ended children."""
        own = os.times()
        return time.perf_counter(), _busy_seconds(), own.user + own.system + own.children_user + own.children_system

    def cores(self) -> float:
        clock, everything, own = (after - before for after, before in zip(self._now(), self._start, strict=True))
        return max(0.0, (everything - own) / max(clock, 1e-9)) if everything == everything else float("nan")


def busy_warning(cores: float) -> str | None:
    """What to say when others used the processor during a run, or None."""
    if not cores > BUSY_CORES:
        return None
    return f"other programs used {cores:.1f} cores during the run: figures are less firm, ratios hold better"


def memory_rate(num_bytes: int, device: torch.device, rounds: int = _RATE_ROUNDS) -> float:
    """Bytes a second, reads and writes counted, of the faster of a copy and an addition, in the best round.

    num_bytes: how much moves in all. Best, not median: a floor has to hold on the machine's best moment, and for the
    same number of bytes as the work it is a floor of, since caches serve small amounts faster.
    """
    source, target = (torch.ones(max(1, num_bytes // 8), device=device) for _ in range(2))
    left, right, total = (torch.ones(max(1, num_bytes // 12), device=device) for _ in range(3))
    functions: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "add": lambda: torch.add(left, right, out=total),
    }
    taken = interleaved(functions, rounds, device=device)
    moved = {"copy": 8 * source.numel(), "add": 12 * total.numel()}
    return max(moved[name] / min(sample.seconds) for name, sample in taken.items())


def matmul_rate(
    dtype: torch.dtype, device: torch.device, side: int = _MATMUL_SIDE, rounds: int = _RATE_ROUNDS
) -> float:
    """Floating point operations a second of a square matrix product in the best round."""
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    taken = interleaved({"matmul": lambda: left @ right}, rounds, device=device)
    return 2 * side**3 / min(taken["matmul"].seconds)


def _busy_seconds() -> float:
    """Seconds of all cores spent working since the system started."""
    try:
        values = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return float("nan")
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, *_ = values
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def peak_extra_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Most bytes in use at once while `function` runs, less those in use before; None where nothing can tell.

    CUDA: what torch allocates. CPU: the process's resident memory, by the kernel's own high-water mark, so that
    scratch memory of libraries counts as well; Linux alone has it. The function runs once before, unmeasured, for
    caches that are filled only once.
    """
    device = torch.device(device)
    function()
    gc.collect()
    if device.type == "cuda":
        return _cuda_peak(function, device)
    if not can_measure_cpu():
        return None
    return _resident_peak(function)


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module returns when a new process calls it, whose memory nothing has been done to yet.

    It is forked, where the system can, from a server process that has done nothing but import.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["benchmarks.step", "benchmarks.loss"])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        return process.submit(function, *arguments).result()


def can_measure_cpu() -> bool:
    """Whether the kernel tells a process its peak, and lets it be reset."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return _status_bytes("VmHWM") is not None


def _cuda_peak(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak(function: Callable[[], object]) -> int:
    _give_back_freed_pages()
    _CLEAR.write_text(_RESET_PEAK)
    before = _status_bytes("VmRSS")
    result = function()
    peak = _status_bytes("VmHWM")
    del result
    assert before is not None
    assert peak is not None
    return max(0, peak - before)


def _give_back_freed_pages() -> None:
    """Pages that the C library keeps for later would hide as many new ones; musl and others keep none."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _status_bytes(name: str) -> int | None:
    """A value of the process's status, which is in kB."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def round_ratios(above: Sample, below: Sample) -> tuple[float, float]:
    """Quartiles of the ratios above / below, round by round: how firm the ratio of the medians is."""
    pairs = zip(above.seconds, below.seconds, strict=True)
    return Sample(tuple(one / other for one, other in pairs)).quartiles


@contextmanager
def dataset_for(settings: Settings) -> Iterator[DatasetIndex]:
    """The dataset of the settings; without one, JPEGs of drawn scenes, 640 px a side, which are removed at the end."""
    if settings.data is not None:
        yield open_dataset(settings.data)
        return
    counts, side_px = (_QUICK_COUNTS, _QUICK_SIDE_PX) if settings.quick else (_COUNTS, _SIDE_PX)
    with TemporaryDirectory(prefix="anchorite-benchmark-") as folder:
        yield open_dataset(write_scenes(Path(folder) / "scenes", *counts, seed=0, size_px=side_px))


def split_of(dataset: DatasetIndex, *names: str) -> Sequence[Record]:
    """The records of the first of these splits that has images; InputError when none has."""
    for name in names:
        if dataset.splits.get(name):
            return dataset.splits[name]
    raise InputError(f"{dataset.root}: no images in the splits {', '.join(names)}, which this benchmark needs")


def described(dataset: DatasetIndex, settings: Settings) -> str:
    """The dataset in words."""
    counts = ", ".join(f"{len(records)} {name}" for name, records in dataset.splits.items() if records)
    return f"{'drawn scenes' if settings.data is None else settings.data.name}: {counts}"


def predictors_of(detector: Detector) -> list[nn.Conv2d]:
    """The head's convolutions, fine to coarse."""
    return [module for module in detector.head.predictors.values() if isinstance(module, nn.Conv2d)]


def features_for(
    detector: Detector, batch: int, image_size: int, dtype: torch.dtype, device: torch.device, seed: int = 1
) -> list[Tensor]:
    """Random leaf maps (B, C_l, H_l, W_l) that want a gradient, as the neck leaves them: channels_last, spread 1."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for predictor, stride in zip(predictors_of(detector), detector.strides, strict=True):
        side = image_size // stride
        values = torch.randn(batch, predictor.in_channels, side, side, generator=generator)
        values = values.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        maps.append(values.requires_grad_())
    return maps


@torch.no_grad()
def find_objects(detector: Detector, images: Tensor, per_image: int, confidence: float) -> None:
    """Make a detector of random weights find things: as many places of `images` as asked for reach the confidence.

    images: (B, 3, H, W) in 0..1. Normalisation takes its statistics from the images, one class of each anchor becomes
    likely, and the objectness is shifted until, over all images, `per_image` places an image score `confidence`. It
    stays in evaluation mode.
    """
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    detector.train()
    detector(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    detector.eval()
    for predictor in predictors_of(detector):
        assert predictor.bias is not None
        by_anchor = predictor.bias.view(detector.head.num_anchors, -1)
        by_anchor[:, 5:] = -8.0
        for anchor in range(len(by_anchor)):
            by_anchor[anchor, 5 + anchor % detector.num_classes] = 4.0
    needed = []
    for level in detector(images):
        best = level[:, :, 5:].amax(dim=2).sigmoid()
        enough = torch.logit((confidence / best).clamp(max=1 - 1e-6))
        needed.append((enough - level[:, :, 4]).flatten())
    shift = torch.cat(needed).kthvalue(per_image * len(images)).values + 1e-4  # a hair, for rounding
    for predictor in predictors_of(detector):
        assert predictor.bias is not None
        predictor.bias.view(detector.head.num_anchors, -1)[:, 4] += shift
