"""What only a GPU can show: that a step never waits for it, and can be captured whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from anchorite.benchmark import targets_for, training_step, whole_step
from anchorite.boxes import LabelCoverage
from anchorite.data import Batch
from anchorite.devices import Precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

UNKNOWN = LabelCoverage(
    torch.tensor([[0, 0.5, 0.5, 0.4, 0.4], [3, 0.1, 0.2, 0.1, 0.3]]),
    torch.ones(4, 4, dtype=torch.bool),
    torch.ones(4) / 2,
)


@pytest.fixture(params=[None, UNKNOWN], ids=["plain", "unknown"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[], object]]:
    """A whole step of size n on a batch that lies on the device, warmed up on a stream of its own."""
    device = torch.device("cuda")
    step = training_step("n", 4, 128, device, Precision("bf16", torch.bfloat16, False, "test"))
    images = torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, targets_for(4, 8, 4, torch.device("cpu")), torch.arange(4), request.param)
    do = whole_step(step, batch.with_fixed_capacity().to(device))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            do()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    yield do
    torch.cuda.set_sync_debug_mode("default")


def test_a_whole_step_never_waits_for_the_device(run: Callable[[], object]) -> None:
    torch.cuda.set_sync_debug_mode("error")
    run()  # raises at the first thing that waits


def test_a_whole_step_is_captured_in_a_graph(run: Callable[[], object]) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        terms = run()
    totals = []
    for _ in range(3):
        graph.replay()
        totals.append(float(terms.total))  # type: ignore[attr-defined]
    assert all(torch.tensor(totals).isfinite())
    assert len(set(totals)) == 3, "each replay moves the weights, and so the loss"
