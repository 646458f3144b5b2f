from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from anchorite.errors import StorageError
from anchorite.metrics import (
    Confusion,
    confusion_matrix,
    detection_curves,
    save_confusion_matrix,
    save_f1_curve,
    save_pr_curve,
)
from anchorite.metrics.plots import readable_names
from tests.metrics.scenes import random_found, random_truth
from tests.metrics.test_coco import found_of, truth_of

AWKWARD = ["$x^2$ \\frac{", "_under <b>&amp;</b>", "多言語", "", "two\nlines\x00", "long " * 20, "100%", "a\\"]


def scene(num_classes, num_images=4):
    rng = np.random.default_rng(num_classes)
    truths = [random_truth(rng, 12, num_classes) for _ in range(num_images)]
    return truths, [random_found(rng, truth, 40, num_classes) for truth in truths]


def save_all(folder, truths, predictions, names):
    curves, confusion = detection_curves(truths, predictions, names), confusion_matrix(truths, predictions, names)
    save_pr_curve(folder / "pr.png", curves)
    save_f1_curve(folder / "f1.png", curves)
    save_confusion_matrix(folder / "confusion.png", confusion)


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("names", [["one"], AWKWARD, [f"class {k}" for k in range(31)]], ids=["1", "awkward", "31"])
def test_every_plot_is_a_png_with_something_in_it_and_leaves_matplotlib_as_it_was(tmp_path, names):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_all(tmp_path, *scene(len(names)), names)
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "f1.png", "pr.png"]
    for path in tmp_path.iterdir():
        image = pixels(path)
        assert min(image.shape[:2]) > 300
        assert (image[..., :3].std(axis=-1) > 0.05).any(), f"{path.name} has no colour"


def test_the_matrix_of_a_thousand_classes_is_no_larger_than_that_of_sixty(tmp_path):
    counts = np.zeros((1001, 1001), np.int64)
    counts[2, 900] = counts[1000, 7] = 3
    names = tuple(f"class {k}" for k in range(1000))
    save_confusion_matrix(tmp_path / "some.png", Confusion(counts, names, 0.25, 0.5))
    small = Confusion(np.zeros((61, 61), np.int64), names[:60], 0.25, 0.5)
    save_confusion_matrix(tmp_path / "sixty.png", small)
    some, sixty = (pixels(tmp_path / name) for name in ("some.png", "sixty.png"))
    assert some.shape == sixty.shape
    is_coloured = [(np.ptp(image[:, : image.shape[1] // 2, :3], axis=-1) > 0.3).any() for image in (some, sixty)]
    assert is_coloured == [True, False]  # those with errors are among the sixty


def test_nothing_to_draw_still_draws(tmp_path):
    save_all(tmp_path, [truth_of([])], [found_of([], [])], ["a", "b"])
    assert len(list(tmp_path.iterdir())) == 3


def test_curves_show_the_numbers(tmp_path):
    truth = truth_of([[0, 0, 50, 50]])
    for name, box in (("good", [0, 0, 50, 50]), ("bad", [300, 300, 350, 350])):
        save_pr_curve(tmp_path / f"{name}.png", detection_curves([truth], [found_of([box], [0.9])], ["a"]))
    assert not np.array_equal(pixels(tmp_path / "good.png"), pixels(tmp_path / "bad.png"))


def test_names_are_shown(tmp_path):
    truths, predictions = scene(2)
    for folder, names in (("one", ["_cat", "dog"]), ("two", ["_cow", "dog"])):
        (tmp_path / folder).mkdir()
        save_all(tmp_path / folder, truths, predictions, names)
    for path in (tmp_path / "one").iterdir():
        assert not np.array_equal(pixels(path), pixels(tmp_path / "two" / path.name)), path.name


def test_names_are_shown_letter_by_letter(tmp_path):
    from matplotlib import cbook

    shown = readable_names(AWKWARD)
    for name in shown:
        assert not cbook.is_math_text(name)
        assert "\n" not in name
        assert len(name) <= 28
    assert shown[0] == r"\$x^2\$ \frac{"
    assert shown[2] == "2: 多言語"
    assert shown[3] == "3: "
    assert len(set(readable_names([f"a rather long name of class {k}" for k in range(100)]))) == 100


def test_import_is_light():
    code = "import sys, anchorite.metrics; print({'matplotlib', 'torch', 'faster_coco_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_impossible_folder_is_a_storage_error(tmp_path):
    curves = detection_curves([truth_of([])], [found_of([], [])], ["a"])
    with pytest.raises(StorageError, match=r"pr\.png"):
        save_pr_curve(tmp_path / "absent" / "pr.png", curves)
