"""What a training run takes, by arithmetic: the constants and functions behind tools/scale.py.

Nothing is run or measured here. Each constant is counted from the network or the code, measured on a small machine,
published by a maker, or assumed; the comment above it says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Network:
    """Counts of a size for one image of 640 x 640 px and 80 classes, by `count`.

    per_class: parameters that another class adds; normalised: numbers that batch normalisations give out, norm_channels
    over norm_layers of them; flops: of the forward pass, a multiplication and an addition being two.
    """

    parameters: int
    per_class: int
    norm_layers: int
    norm_channels: int
    flops: int
    normalised: int
    levels: int


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "n": Network(1872157, 1353, 49, 4752, 4468121600, 11827200, 3),
        "s": Network(7235389, 2697, 49, 9504, 16433561600, 23654400, 3),
        "m": Network(21190557, 4041, 71, 18384, 48872448000, 45312000, 3),
        "l": Network(46563709, 5385, 93, 30016, 108993740800, 73523200, 3),
        "x": Network(86749405, 6729, 115, 44400, 205448192000, 108288000, 3),
        "n6": Network(3246940, 1932, 64, 7056, 4559052800, 11980800, 4),
        "s6": Network(12626620, 3852, 64, 14112, 16797286400, 23961600, 4),
        "m6": Network(35731932, 5772, 92, 27024, 49912012800, 46003200, 4),
        "l6": Network(76770172, 7692, 120, 43840, 111235072000, 74752000, 4),
        "x6": Network(140794780, 9612, 148, 64560, 209564672000, 110208000, 4),
    }
)

# Measured on one core of an Intel Xeon, 2026-11-25 (benchmarks/results/2026-11-25-cpu-2core-loader.json):
PAINT_S = 0.0329619 / 16  # a mosaic of 640 px from images in memory, jitter and all
DECODE_S = (0.118331 - 0.0657294) / 64 / (0.640 * 0.480)  # a megapixel of JPEG: what 64 tiles cost with it and without
SCORE_S = 0.045 / 72  # COCO's library, an image with up to 300 detections of 3 classes (docs/performance.md)
# A core's time for a box of COCO, when its data set is opened first and later (2026-11-27-index-coco.json):
LABEL_S = 182.908 / 10_000_000
REOPEN_S = 0.69 / 10_000_000
# Counted from the code:
BOX_BYTES, RECORD_BYTES = 61, 70  # label index in memory: a box; an image with a name of 30 letters (data/columns.py)
DETECTION_BYTES = 48  # box in float64, score in float64, class in int64 (evaluate/sharing.py)
MOST_DETECTIONS = 300
STATE_BYTES = 16  # a parameter on a GPU: weight, gradient, momentum and average, in float32
CHECKPOINT_BYTES = 12  # a parameter in a checkpoint of SGD: weight, momentum and average
TILES_OF_FILES, TILES_OF_SHARDS = 4, 2  # images decoded a sample: four tiles; at most so many of a batch's pool
COLLECTIVES = 4  # small sums a step on the device that wait for nothing else: counts, terms, finite twice
# Published by the makers (H200 SXM; DGX H200):
PEAK_FLOPS = 989e12  # bf16, dense
GPU_BYTES, GPU_BYTES_S = 141e9, 4.8e12
NVLINK_BYTES_S, NIC_BYTES_S = 450e9, 50e9  # one direction; one 400 Gb/s adapter, of which a node has eight
NODE_GPUS, NODE_CORES = 8, 112
# Assumed, none of it measured:
CONVOLUTION_SHARE = 0.4  # of the peak that convolutions reach
MAP_PASSES = 20  # times that each normalised number crosses the GPU's memory in a step, forward and backward
LINK_SHARE = 0.7  # of a link's rate that a sum over ranks reaches
HOP_S = 5e-6  # a message between two ranks
KERNELS, LAUNCH_S = 12, 5e-6  # kernels of a convolution and its normalisation, forward and backward; starting one
STORAGE_BYTES_S = 10e9  # what a node reads a second


@dataclass(frozen=True)
class Data:
    """A data set. megapixels, file_bytes: of an image, assumed unless given."""

    name: str
    images: int
    classes: int
    boxes: int
    val_images: int
    megapixels: float = 1.024 * 0.768
    file_bytes: float = 0.3e6


@dataclass(frozen=True)
class Plan:
    """How a run is laid out. batch: images a rank and step; workers: loader processes of a node; tiles: see above."""

    side: int = 640
    gpus: int = NODE_GPUS
    batch: int = 16
    workers: int = NODE_CORES - NODE_GPUS
    tiles: int = TILES_OF_SHARDS

    @property
    def nodes(self) -> int:
        """Machines of eight GPUs."""
        return math.ceil(self.gpus / NODE_GPUS)


OBJECTS365 = Data("Objects365-sized", 2_000_000, 365, 30_000_000, 80_000)
OPEN_IMAGES = Data("Open-Images-sized", 1_900_000, 600, 15_000_000, 41_620)


def parameters(size: str, classes: int) -> int:
    """Of a detector for so many classes."""
    return NETWORKS[size].parameters + (classes - 80) * NETWORKS[size].per_class


def area(side: int) -> float:
    """Of a square image, as a multiple of 640 x 640 px."""
    return (side / 640) ** 2


def gpu_seconds(size: str, side: int) -> float:
    """An image's forward and backward pass: convolutions, and beside them the passes over maps."""
    network = NETWORKS[size]
    convolutions = 3 * network.flops / (PEAK_FLOPS * CONVOLUTION_SHARE)
    return area(side) * (convolutions + 2 * MAP_PASSES * network.normalised / GPU_BYTES_S)


def gpu_bytes(size: str, classes: int, side: int, batch: int) -> float:
    """Memory of a GPU: the state, and three maps in bf16 for each normalised one, kept for the backward pass."""
    maps = 3 * 2 * NETWORKS[size].normalised * area(side) * batch
    return STATE_BYTES * parameters(size, classes) + maps


def gpu_step_seconds(size: str, side: int, batch: int) -> float:
    """A step of one GPU by itself, which is no faster than its kernels are started."""
    return max(batch * gpu_seconds(size, side), NETWORKS[size].norm_layers * KERNELS * LAUNCH_S)


def loader_rate(data: Data, plan: Plan) -> float:
    """Training images that a node's loader processes draw a second."""
    return plan.workers / (PAINT_S * area(plan.side) + plan.tiles * DECODE_S * data.megapixels)


def ring_bytes(payload: float, world: int) -> float:
    """What each rank sends, and receives, in a sum of so many bytes over all ranks by a ring."""
    return 2 * (world - 1) / world * payload


def small_payload(size: str) -> int:
    """Bytes of a step's small sums, of one batch a step: counts, terms, and whether all is finite and goes on."""
    levels = NETWORKS[size].levels
    return 8 * levels + 4 * (2 + levels) + 3 * 4


def norm_payload(size: str) -> int:
    """Bytes of a batch's statistics with `sync_batch_norm`, forward and backward."""
    network = NETWORKS[size]
    return 2 * 4 * (2 * network.norm_channels + network.norm_layers)


def latency(world: int) -> float:
    """Seconds that the smallest sum over ranks takes, up a tree and down again."""
    return 2 * math.ceil(math.log2(world)) * HOP_S if world > 1 else 0.0


@dataclass(frozen=True)
class Step:
    """Seconds of a step: what each part would take by itself. exposed: of the network, what no backward pass hides."""

    gpu: float
    network: float
    exposed: float
    loader: float
    storage: float

    @property
    def seconds(self) -> float:
        """Of the whole step; data are drawn beside it."""
        return max(self.gpu + self.exposed, self.loader, self.storage)

    @property
    def bottleneck(self) -> str:
        """Which part has to become faster first."""
        if self.seconds > self.gpu + self.exposed:
            return "loader" if self.loader >= self.storage else "storage"
        return "network" if self.exposed > self.gpu else "GPU"


def step(size: str, data: Data, plan: Plan) -> Step:
    """A step of a run: gradients travel while the rest of them is computed, in two thirds of the step."""
    gpu = gpu_step_seconds(size, plan.side, plan.batch)
    link = (NVLINK_BYTES_S if plan.nodes == 1 else NIC_BYTES_S) * LINK_SHARE
    network = ring_bytes(4 * parameters(size, data.classes), plan.gpus) / link + latency(plan.gpus)
    exposed = max(0.0, network - gpu * 2 / 3) + COLLECTIVES * latency(plan.gpus)
    of_node = plan.batch * min(plan.gpus, NODE_GPUS)
    loader = of_node / loader_rate(data, plan)
    return Step(gpu, network, exposed, loader, of_node * data.file_bytes / STORAGE_BYTES_S)


def epoch_seconds(size: str, data: Data, plan: Plan) -> float:
    """One pass over the training images, without validation."""
    return math.ceil(data.images / (plan.batch * plan.gpus)) * step(size, data, plan).seconds


def index_bytes(data: Data) -> int:
    """Labels in memory or in a mapped file."""
    return BOX_BYTES * data.boxes + RECORD_BYTES * data.images


def store_bytes(images: int, side: int) -> float:
    """Decoded images of 4 : 3, the longer side so many pixels."""
    return images * side * side * 0.75 * 3


def found_bytes(data: Data) -> int:
    """What a validation sends to the first rank, at most."""
    return MOST_DETECTIONS * DETECTION_BYTES * data.val_images


def validation_seconds(size: str, data: Data, plan: Plan) -> tuple[float, float, float]:
    """Decoding once, forward passes, and scoring on the first rank."""
    forward = NETWORKS[size].flops * area(plan.side) / (PEAK_FLOPS * CONVOLUTION_SHARE) * data.val_images / plan.gpus
    decode = DECODE_S * data.megapixels * data.val_images / (plan.workers * plan.nodes)
    return decode, forward, SCORE_S * data.val_images


def bottleneck(size: str, data: Data, plan: Plan) -> str:
    """What has to become faster first: a part of the step, or scoring, where that takes longer than the epoch."""
    scoring = validation_seconds(size, data, plan)[2]
    return "scoring" if scoring > epoch_seconds(size, data, plan) else step(size, data, plan).bottleneck


def count(size: str) -> Network:
    """The counts of a size, from the detector itself, which is built without memory."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from anchorite.model import Detector, default_anchors

    def built(classes: int) -> nn.Module:
        with torch.device("meta"):
            return Detector(size, classes, default_anchors(size))

    def weight(detector: nn.Module) -> int:
        return sum(one.numel() for one in detector.parameters())

    detector, given_out = built(80), [0]
    norms = [one for one in detector.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda _module, _inputs, output: given_out.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        detector(torch.empty(1, 3, 640, 640, device="meta"))
    channels = sum(norm.num_features for norm in norms)
    flops = counter.get_total_flops()
    per_class = weight(built(81)) - weight(detector)
    levels = len(default_anchors(size).strides)
    return Network(weight(detector), per_class, len(norms), channels, flops, sum(given_out), levels)
