"""What labels that do not know are worth: python -m benchmarks.unknown_labels WORK --cards CARDS --bccd BCCD.

Three experiments, each run for every seed; `--only lost` runs one of them, `--only lost/ignore` one of its variants:

    lost    a third of the training boxes taken away at random: known (nothing is), background, ignore (as regions)
    merged  bccd and cards as one data set with partial labels, against each alone; and halves of cards that are
            labelled for three of its six classes each: naive (one data set), partial (merged)
    pseudo  a quarter of the labelled images: the teacher, quarter; from its weights again, on them alone; student,
            on its pseudo-labels beside them; hard, the same with every detection from 0.5 on as a label of weight 1
            and all else as background

WORK/data holds the data sets, WORK/out the runs, both made where they are missing; a run that was stopped goes on, one
that is finished is not repeated. WORK/results.jsonl gets a line for each run: AP on the test split, of best.safetensors
and of last.safetensors. A variant sees as many images as any other of its experiment. `--prepare` makes the data sets
alone, `--scores` prints instead what the scores of finished teachers are worth on the images without labels.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from anchorite import load
from anchorite.data import open_dataset
from anchorite.report.suspects_evidence import iou_of
from benchmarks.runs import add_result, anchorite, metrics_on_test, read_results, rounded, train_or_resume

NAMES = ("nine", "ten", "jack", "queen", "king", "ace")
KEY = ("experiment", "variant", "seed", "image_size", "epochs")
LIMITS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GRID = 64  # cells a side, to measure areas with
AGAIN_EPOCHS = 3.56  # times those of a student, which sees about so many times the images of the quarter
STUDENT_FLAGS = {"student": (), "hard": ("--confident", "0.5", "--doubtful", "0.5", "--keep-empty")}


@dataclass(frozen=True)
class Variant:
    """A run for a seed: its data, the data whose test split it is measured on, and for how many times the epochs of a
    run on all training images. prepare: makes the data; weights: that it starts from, else random ones."""

    experiment: str
    name: str
    seed: int
    data: Path
    test: Path
    prepare: Callable[[], None]
    times_epochs: float = 1
    weights: Path | None = None

    @property
    def run(self) -> str:
        """The name of its run."""
        return f"{self.name}_{self.seed}"


@dataclass(frozen=True)
class Work:
    """The folder of the experiments, and the data sets that all begins with: cards as YOLO, bccd as VOC."""

    folder: Path
    cards: Path
    bccd: Path

    def variants(self, seed: int) -> Iterator[Variant]:
        """All runs of a seed, a teacher before its students."""

        def variant(experiment: str, name: str, folder: str, fill: Callable[[Path], None], file: str = "") -> Variant:
            where = self.folder / "data" / folder
            test = where / file if file == "merged.yaml" and name == "merged" else self.folder / "data" / "cards_known"
            return Variant(experiment, name, seed, where / file, test, lambda: make(where, fill))

        yield variant("lost", "known", "cards_known", self.copy_cards)
        yield variant("lost", "background", f"cards_background_{seed}", lambda out: self.lose_boxes(out, seed, False))
        yield variant("lost", "ignore", f"cards_ignore_{seed}", lambda out: self.lose_boxes(out, seed, True))
        yield Variant("merged", "bccd", seed, self.bccd, self.bccd, lambda: None)
        yield variant("merged", "merged", "merged", self.merge, "merged.yaml")
        yield variant("merged", "naive", f"cards_naive_{seed}", lambda out: self.halve(out, seed))
        yield variant(
            "merged", "partial", f"cards_partial_{seed}", lambda out: self.halve(out, seed, True), "merged.yaml"
        )
        quarter = variant("pseudo", "quarter", f"cards_quarter_{seed}", lambda out: self.quarter(out, seed))
        teacher = self.folder / "out" / quarter.run / "best.safetensors"
        yield replace(quarter, times_epochs=4)
        yield replace(quarter, name="again", times_epochs=AGAIN_EPOCHS, weights=teacher)
        for name in STUDENT_FLAGS:
            data, known = (self.folder / "data" / one for one in (f"{name}_{seed}.yaml", "cards_known"))
            yield Variant("pseudo", name, seed, data, known, partial(self.label, data, name, seed), weights=teacher)

    def copy_cards(self, out: Path) -> None:
        """The images and the YOLO labels of cards."""
        shutil.copytree(self.cards, out, ignore=shutil.ignore_patterns("voc", "annotations", "SHA256SUMS"))
        make_writable(out)

    def lose_boxes(self, out: Path, seed: int, ignored: bool) -> None:
        """Cards without a third of its training boxes; or with these as regions that are ignored."""
        gone, _ = chosen(self.cards, seed)
        self.copy_cards(out)
        for path in sorted((out / "labels" / "train").glob("*.txt")):
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            as_region = [f"{len(NAMES)} {line.partition(' ')[2]}" for line in lines]
            kept = [
                line if (path.name, number) not in gone else as_region[number]
                for number, line in enumerate(lines)
                if ignored or (path.name, number) not in gone
            ]
            path.write_text("".join(f"{line}\n" for line in kept))
        if ignored:
            config = yaml.safe_load((out / "data.yaml").read_text())
            names = [*NAMES, "ignore"]
            write_yaml(out / "data.yaml", {**config, "nc": len(names), "names": names, "ignore_classes": ["ignore"]})

    def quarter(self, out: Path, seed: int) -> None:
        """A quarter of the training images of cards with their labels; the others, without, in unlabelled."""
        _, keep = chosen(self.cards, seed)
        self.copy_cards(out)
        (out / "unlabelled").mkdir()
        for path in sorted((out / "images" / "train").iterdir()):
            if path.stem not in keep:
                path.rename(out / "unlabelled" / path.name)
                (out / "labels" / "train" / f"{path.stem}.txt").unlink(missing_ok=True)

    def merge(self, out: Path) -> None:
        """Bccd and cards, each with its own classes, as one data set."""
        self.copy_cards(out / "cards")
        shutil.copytree(self.bccd, out / "bccd")
        make_writable(out)
        write_yaml(out / "merged.yaml", {"sources": [{"data": "bccd"}, {"data": "cards"}]})

    def halve(self, out: Path, seed: int, merged: bool = False) -> None:
        """Half of the training images of cards with the first three classes labelled, half with the others.

        As one data set, or as two that say so, and a third with the complete labels of val and test.
        """
        images = sorted((self.cards / "images" / "train").iterdir())
        first = {path.stem for path in random.Random(f"halves {seed}").sample(images, len(images) // 2)}
        self.copy_cards(out / "complete" if merged else out)
        whole = out / "complete" if merged else out
        for path in sorted((whole / "labels" / "train").glob("*.txt")):
            is_first = path.stem in first
            labelled = [line for line in path.read_text().splitlines() if (int(line.split()[0]) < 3) == is_first]
            path.write_text("".join(f"{line}\n" for line in labelled))
        if not merged:
            return
        for half, is_first in (("low", True), ("high", False)):
            for path in images:
                if (path.stem in first) == is_first:
                    for kind, name in (("images", path.name), ("labels", f"{path.stem}.txt")):
                        (out / half / kind / "train").mkdir(parents=True, exist_ok=True)
                        (whole / kind / "train" / name).rename(out / half / kind / "train" / name)
            write_yaml(out / half / "data.yaml", {"train": "images/train", "names": list(NAMES)})
        write_yaml(whole / "data.yaml", {"val": "images/val", "test": "images/test", "names": list(NAMES)})
        covers = {"low": NAMES[:3], "high": NAMES[3:]}.items()
        halves = [{"data": name, "covers": list(names), "background_weight": 0.25} for name, names in covers]
        write_yaml(out / "merged.yaml", {"names": list(NAMES), "sources": [*halves, {"data": "complete"}]})

    def label(self, out: Path, name: str, seed: int) -> None:
        """The quarter and, by its teacher, the rest of cards: a YAML of both."""
        quarter, pseudo = out.with_name(f"cards_quarter_{seed}"), out.with_name(f"{name}_{seed}")
        teacher = self.folder / "out" / f"quarter_{seed}" / "best.safetensors"
        second = {"data": pseudo.name} if name == "hard" else {"data": pseudo.name, "background_weight": 0.5}
        if not pseudo.exists():
            print(anchorite("pseudo", teacher, quarter / "unlabelled", pseudo, *STUDENT_FLAGS[name]), end="")
        if name == "hard":
            forget_weights(pseudo)
        write_yaml(out, {"sources": [{"data": quarter.name}, second]})


def chosen(cards: Path, seed: int) -> tuple[set[tuple[str, int]], set[str]]:
    """A third of the training boxes of cards, as (label file, line), and the stems of a quarter of its images."""
    rng = random.Random(seed)
    files = sorted((cards / "labels" / "train").glob("*.txt"))
    rows = [
        (path.name, number)
        for path in files
        for number, line in enumerate(path.read_text().splitlines())
        if line.strip()
    ]
    gone = set(rng.sample(rows, round(len(rows) / 3)))
    images = sorted((cards / "images" / "train").iterdir())
    return gone, {path.stem for path in rng.sample(images, round(len(images) / 4))}


def make(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder and fill it, whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    fill(part)
    part.rename(folder)


def make_writable(folder: Path) -> None:
    """What was copied from a place that can only be read."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_yaml(path: Path, content: object) -> None:
    """A YAML file with its keys in order."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def forget_weights(pseudo: Path) -> None:
    """Let every label of a data set in YOLO's format count as a whole one."""
    for path in (pseudo / "labels").rglob("*.txt"):
        path.write_text("".join(f"{' '.join(line.split()[:5])}\n" for line in path.read_text().splitlines()))
    config = yaml.safe_load((pseudo / "data.yaml").read_text())
    write_yaml(pseudo / "data.yaml", {key: value for key, value in config.items() if key != "scores"})


def result_of(work: Work, variant: Variant, image_size: int, epochs: int) -> dict[str, object]:
    """Train a variant, or go on with that, and measure it."""
    if not variant.data.exists():
        variant.prepare()
    run, started = work.folder / "out" / variant.run, time.perf_counter()
    num_epochs = round(epochs * variant.times_epochs)
    flags: tuple[object, ...] = ("--image-size", image_size, "--epochs", num_epochs, "--seed", variant.seed)
    flags += () if variant.weights is None else ("--weights", variant.weights)
    train_or_resume(run, variant.data, flags)
    result: dict[str, object] = {"experiment": variant.experiment, "variant": variant.name, "seed": variant.seed}
    result |= {"image_size": image_size, "epochs": num_epochs}
    for which in ("best", "last"):
        metrics = metrics_on_test(run / f"{which}.safetensors", variant.test, image_size)
        result[which] = rounded(metrics)
        result[f"{which}_by_class"] = {
            one["name"]: round(one["ap"], 4) for one in metrics["classes"] if one["num_truths"]
        }
    return {**result, "seconds": round(time.perf_counter() - started)}


def score_lines(weights: Path, unlabelled: Path, cards: Path, image_size: int) -> Iterator[str]:
    """What a teacher's scores are worth on the images without labels, whose truth is known: a line for each limit.

    Of detections from a limit on: precision and recall (a detection of the class, IoU .5 or more, each truth once); at
    which share of the truths one lies, of whichever class; how many of those below the next higher limit alone, the
    band, lie at a truth where no better one does; and the mean share of an image that all cover.
    """
    predictor = load(weights)
    truths = {record.path.name: record for record in open_dataset(cards).split("train")}
    rows: list[tuple[float, bool]] = []  # score of each detection, and whether it is right
    found: list[tuple[float, float]] = []  # of each truth the score at which it is found, and anything at its place
    covered = np.zeros(len(LIMITS))
    images = predictor.predict(sorted(unlabelled.iterdir()), image_size, confidence=0.01)
    for image in images:
        record, scores = truths[Path(image.source).name], image.scores.numpy()
        overlaps = iou_of(image.boxes_xyxy.numpy().astype(np.float64), record.boxes_xyxy)
        is_right, best = np.zeros(len(scores), bool), np.zeros(len(record.class_ids))
        for number, (overlap, class_id) in enumerate(zip(overlaps, image.class_ids.tolist(), strict=True)):
            place = int(np.where((record.class_ids == class_id) & (best == 0), overlap, -1).argmax())
            if record.class_ids[place] == class_id and best[place] == 0 and overlap[place] >= 0.5:
                is_right[number], best[place] = True, scores[number]
        near = np.where(overlaps >= 0.5, scores[:, None], 0).max(axis=0, initial=0)
        rows += list(zip(scores.tolist(), is_right.tolist(), strict=True))
        found += list(zip(best.tolist(), near.tolist(), strict=True))
        corners = (image.boxes_xyxy.numpy() / np.tile(image.image_size[::-1], 2) * GRID).round().astype(int)
        for number, limit in enumerate(LIMITS):
            canvas = np.zeros((GRID, GRID), bool)
            for left, top, right, bottom in corners[scores >= limit]:
                canvas[top:bottom, left:right] = True
            covered[number] += canvas.mean() / len(images)
    (scores, is_right), (best, near) = (np.array(part, dtype=float).T for part in (rows, found))
    from_limit, at_one = ((part >= np.array([*LIMITS, 2])[:, None]).sum(axis=1) for part in (scores, near))
    for number, limit in enumerate(LIMITS):
        chosen, in_band = scores >= limit, from_limit[number] - from_limit[number + 1]
        shares = {
            "precision": is_right[chosen].sum() / max(chosen.sum(), 1),
            "recall": (best >= limit).mean(),
            "of band at a truth": (at_one[number] - at_one[number + 1]) / max(in_band, 1),
            "truths at one": at_one[number] / len(near),
            "area": covered[number],
        }
        rounded = {name: round(float(share), 3) for name, share in shares.items()}
        yield json.dumps({"limit": limit, "detections": int(from_limit[number]), **rounded})


def main() -> None:
    """Prepare, train, measure: a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--cards", type=Path, required=True)
    parser.add_argument("--bccd", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=[], help="EXPERIMENT or EXPERIMENT/VARIANT")
    parser.add_argument("--prepare", action="store_true", help="make the data sets that need no run, and end")
    parser.add_argument("--scores", action="store_true", help="print what the teachers' scores are worth, and end")
    options = parser.parse_args()
    work = Work(options.work, options.cards, options.bccd)
    (work.folder / "data").mkdir(parents=True, exist_ok=True)
    done = {tuple(one[name] for name in KEY) for one in read_results(work.folder)}
    for seed in options.seeds:
        if options.scores:
            teacher, rest = work.folder / "out" / f"quarter_{seed}", work.folder / "data" / f"cards_quarter_{seed}"
            print(f"seed {seed}")
            weights = teacher / "best.safetensors"
            print("\n".join(score_lines(weights, rest / "unlabelled", work.cards, options.image_size)))
            continue
        for variant in work.variants(seed):
            wanted = {variant.experiment, f"{variant.experiment}/{variant.name}"}
            if options.only and wanted.isdisjoint(options.only):
                continue
            if options.prepare:
                if variant.name not in STUDENT_FLAGS and not variant.data.exists():
                    variant.prepare()
                continue
            epochs = round(options.epochs * variant.times_epochs)
            if (variant.experiment, variant.name, seed, options.image_size, epochs) in done:
                continue
            add_result(work.folder, result_of(work, variant, options.image_size, options.epochs))


if __name__ == "__main__":
    main()
