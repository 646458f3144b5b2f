"""Processor time a training image costs, from shards and from files: python benchmarks/shards_loader.py DATA SHARDS.

DATA is a dataset of files, SHARDS the same as `anchorite convert --to shards` writes it. Batches are drawn in a thread
of this process, epochs of the three ways in turn, and the least processor time of each is kept: it does not depend on
what else the machine does, as the time on the wall would.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from anchorite.data import (
    AugmentConfig,
    EpochBatches,
    HostPainter,
    ImageStore,
    Loader,
    LoaderConfig,
    SampleConfig,
    StreamBatches,
    StreamSamples,
    TrainSamples,
    open_dataset,
)

BATCH, ROUNDS = 16, 3


def main() -> None:
    """Print, and write to --out, milliseconds of processor time an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    files, shards = (open_dataset(path).splits["train"] for path in (given.data, given.shards))
    config, options = SampleConfig(AugmentConfig(), given.image_size, seed=0), LoaderConfig(batch_size=BATCH)
    streamed = StreamSamples(shards, config)  # type: ignore[arg-type]
    loaders = {"shards": Loader(HostPainter(StreamBatches(streamed, options)))}
    for name, mode in (("files, decoded each time", "none"), ("files, decoded images in memory", "ram")):
        store = ImageStore(files, given.image_size, mode)  # type: ignore[arg-type]
        store.build()
        loaders[name] = Loader(HostPainter(EpochBatches(TrainSamples(store, config), options)))
    least = dict.fromkeys(loaders, float("inf"))
    for epoch in range(ROUNDS):
        for name, loader in loaders.items():
            least[name] = min(least[name], _milliseconds(loader, epoch))
    figures = {"images": len(files), "image_size": given.image_size, "batch": BATCH, "ms_an_image": least}
    print(json.dumps(figures))
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


def _milliseconds(loader: Loader, epoch: int) -> float:
    """Of processor time an image, over an epoch."""
    loader.set_epoch(epoch)
    started = time.process_time()
    images = sum(len(batch.indices) for batch in loader)
    return round((time.process_time() - started) * 1000 / images, 2)


if __name__ == "__main__":
    main()
