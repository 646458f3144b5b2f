"""Count the package's files and functions that one epoch of training on eight drawn images touches.

usage: python -m benchmarks.epoch_trace    prints "FILES files, FUNCTIONS functions", and the files with --files
Opening the dataset, training, validation, checkpoint and weights are counted; writing the images and imports are not.
"""

import sys
import tempfile
import threading
from pathlib import Path

import anchorite
from anchorite.data import open_dataset
from anchorite.data.scenes import write_scenes
from anchorite.train import load_recipe, train

ROOT = str(Path(anchorite.__file__).parent)


def main() -> None:
    """Train twice, the second time with a profile function, and print what it saw."""
    seen: set[tuple[str, str, int]] = set()

    def note(frame, event, argument):  # a profile function
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and code.co_name != "<module>":
            seen.add((code.co_filename, code.co_qualname, code.co_firstlineno))

    with tempfile.TemporaryDirectory() as folder:
        data = write_scenes(Path(folder) / "data", 8, 2, 2, seed=0, size_px=64)
        recipe = load_recipe("small-data", {"image_size": 64, "epochs": 1, "batch": 4, "workers": 0})
        for warm in (True, False):  # the first run imports whatever is imported late
            threading.setprofile(None if warm else note)
            sys.setprofile(None if warm else note)
            train(recipe, open_dataset(data), Path(folder) / f"run{warm}")
    sys.setprofile(None)
    files = sorted({name for name, _, _ in seen})
    print(f"{len(files)} files, {len(seen)} functions")
    if "--files" in sys.argv:
        print("\n".join(str(Path(name).relative_to(ROOT)) for name in files))


if __name__ == "__main__":
    main()
