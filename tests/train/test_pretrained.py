"""Runs that start from weights: what is kept to the bit, what is new, what is refused, and going on without them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError, UnsafeFileError
from anchorite.model import Detector, WeightsInfo, default_anchors, save_weights
from anchorite.train import Recipe, RunFolder, RunStarted, StepDone, load_recipe, read_pretrained, resume, train
from anchorite.train.pretrained import load_matching
from anchorite.train.setup import Prepared, choose_anchors, prepare
from tests.faults.test_resume import InterruptAt, assert_equal
from tests.model.torch_checkpoints import foreign_model, random_detector, read_in_this_process, save_checkpoint
from tests.shared import shared_path
from tests.small import small_networks
from tests.train.runs import Recorder, scenes, small_recipe
from tests.train.test_loop import Stop


@pytest.fixture(autouse=True)
def _small_networks(request: pytest.FixtureRequest) -> Iterator[None]:
    """But where the checkpoint is one of a network as it is."""
    with nullcontext() if "specification" in request.node.name else small_networks():
        yield


OURS = ("disc", "ring", "square", "triangle", "cross")
THEIRS = ("person", "cross", "ring")  # two of ours, in another order
OTHER_ANCHORS = AnchorSet.from_rows(
    [[9, 12, 17, 31, 30, 20], [33, 60, 60, 40, 50, 99], [99, 99, 150, 190, 300, 300]], (8, 16, 32)
)


def weights(
    folder: Path, size: str = "n", names: Sequence[str] = THEIRS, anchors: AnchorSet | None = None
) -> tuple[str, Detector]:
    """The path of weights with random values in every tensor, and their detector."""
    detector = random_detector(size, len(names), anchors or default_anchors(size), seed=7)
    for name, tensor in detector.named_buffers():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(11)
    path = folder / f"start-{size}.safetensors"
    save_weights(path, detector, WeightsInfo(size, tuple(names), detector.anchors, 64))
    return str(path), detector


def prepared_from(recipe: Recipe) -> Prepared:
    recipe, start = read_pretrained(recipe)
    return prepare(recipe, scenes(), start=start)


def rows(tensor: torch.Tensor, num_anchors: int = 3) -> torch.Tensor:
    return tensor.unflatten(0, (num_anchors, -1))


def head_names(detector: Detector) -> list[str]:
    return [name for name in detector.state_dict() if name.startswith("head.")]


def test_what_fits_is_kept_to_the_bit_and_the_rest_is_as_without_weights(tmp_path: Path) -> None:
    assert scenes().class_names == OURS
    path, old = weights(tmp_path)
    prepared = prepared_from(small_recipe(weights=path))
    new, theirs = prepared.train_state.detector.state_dict(), old.state_dict()
    fresh = prepare(small_recipe(), scenes()).train_state.detector.state_dict()
    heads = head_names(old)
    assert len(heads) == 6
    assert [name for name in new if name not in heads and not torch.equal(new[name], theirs[name])] == []
    for name in heads:
        ours, before, started = rows(new[name]), rows(theirs[name]), rows(fresh[name])
        assert torch.equal(ours[:, :5], before[:, :5])
        assert torch.equal(ours[:, 5 + OURS.index("ring")], before[:, 5 + THEIRS.index("ring")])
        assert torch.equal(ours[:, 5 + OURS.index("cross")], before[:, 5 + THEIRS.index("cross")])
        # The others begin at the classes' frequencies, as those of a run from random weights do.
        assert torch.equal(ours[:, 5:9:2], started[:, 5:9:2])
        assert torch.equal(ours[:, 8], started[:, 8])
        assert not torch.equal(ours[:, :5], started[:, :5])
    average = prepared.train_state.ema.model.state_dict()
    assert all(torch.equal(average[name], tensor) for name, tensor in new.items())
    assert prepared.kept in prepared.decisions
    assert prepared.kept == (
        f"weights {path} (size n, 3 classes): {len(new) - 6} of {len(new)} tensors kept; head: rows of box and "
        "objectness kept, and of 2 of 5 classes by name (ring, cross), those of the others are new"
    )


def test_weights_of_the_same_classes_are_kept_whole(tmp_path: Path) -> None:
    path, old = weights(tmp_path, names=OURS)
    prepared = prepared_from(small_recipe(weights=path))
    new = prepared.train_state.detector.state_dict()
    assert all(torch.equal(new[name], tensor) for name, tensor in old.state_dict().items())
    assert (
        f"{len(new)} of {len(new)} tensors kept; head: rows of box and objectness kept, and of all 5" in prepared.kept
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "kept"),
    [
        (("a", "b"), ("b", "a"), [(0, 1), (1, 0)]),
        (("a", "b"), ("c", "d", "e"), []),
        (("a", "b"), (), []),
        # Of two classes of one name nobody knows which is meant.
        (("a", "b"), ("a", "a", "b"), [(1, 2)]),
        (("a", "a", "b"), ("a", "b", "c"), [(2, 1)]),
        # The row of a single class is never trained, for the loss has no class term then.
        (("a",), ("a", "b"), []),
        (("a", "b"), ("a",), []),
        (("a",), ("a",), [(0, 0)]),
    ],
)
def test_rows_of_classes_are_kept_by_name(
    ours: tuple[str, ...], theirs: tuple[str, ...], kept: list[tuple[int, int]], tmp_path: Path
) -> None:
    start = read_pretrained(small_recipe(weights=weights(tmp_path, names=theirs or ("x", "y"))[0]))[1]
    assert start is not None
    detector = Detector("n", len(ours), default_anchors("n"))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    sentence = load_matching(detector, start, ours)
    old = start.detector.state_dict()
    for name in head_names(detector):
        new = rows(detector.state_dict()[name])
        expected = dict(kept)
        for number in range(len(ours)):
            source = (
                rows(old[name])[:, 5 + expected[number]] if number in expected else rows(before[name])[:, 5 + number]
            )
            assert torch.equal(new[:, 5 + number], source), (name, number)
    assert ("all" in sentence.partition("head:")[2]) == (len(kept) == len(ours))


def test_another_number_of_anchors_makes_the_head_new(tmp_path: Path) -> None:
    path, old = weights(tmp_path, names=OURS)
    table = [[10, 13, 33, 23], [30, 61, 59, 119], [116, 90, 373, 326]]
    prepared = prepared_from(small_recipe(weights=path, anchors__rows=table))
    fresh = prepare(small_recipe(anchors__rows=table), scenes()).train_state.detector.state_dict()
    new = prepared.train_state.detector.state_dict()
    for name, tensor in new.items():
        assert torch.equal(tensor, fresh[name] if name.startswith("head.") else old.state_dict()[name])
    assert "head: new, for 2 anchors a level, where that of the weights has 3" in prepared.kept
    assert "anchors: as given in the recipe" in prepared.decisions


def test_the_anchors_of_the_weights_stay_unless_too_few_boxes_match_them(tmp_path: Path) -> None:
    path, _ = weights(tmp_path, anchors=OTHER_ANCHORS)
    prepared = prepared_from(small_recipe(weights=path))
    assert prepared.train_state.detector.anchors == OTHER_ANCHORS
    assert any(text.startswith("anchors: of the weights; best possible recall 1.0") for text in prepared.decisions)
    huge = AnchorSet.from_rows([[400, 400], [500, 500], [600, 600]], (8, 16, 32))
    recipe, start = read_pretrained(small_recipe(weights=weights(tmp_path, anchors=huge)[0]))
    chosen, sentence = choose_anchors(recipe, scenes().splits["train"], start)
    assert sentence.startswith("anchors: fitted to the data; best possible recall 0.0000 -> ")
    assert chosen.num_anchors == 1
    recipe = small_recipe(weights=recipe.weights, anchors__refit=False)
    assert choose_anchors(recipe, scenes().splits["train"], start)[0] == huge
    assert "learned for other anchors than the run's" in prepared_from(small_recipe(weights=recipe.weights)).kept


def test_the_size_is_that_of_the_weights_unless_another_was_asked_for(tmp_path: Path) -> None:
    path, _ = weights(tmp_path, "s")
    # The default of a built-in recipe and of the field are replaced; what somebody wrote is not.
    for recipe in (load_recipe("small-data", {"weights": path}), Recipe(weights=path)):
        assert recipe.model == "n"
        assert read_pretrained(recipe)[0] == recipe.model_copy(update={"model": "s"})
    own = tmp_path / "own.yaml"
    own.write_text("model: m\n")
    for recipe, size in ((load_recipe(own, {"weights": path}), "m"), (Recipe(weights=path, model="n6"), "n6")):
        with pytest.raises(InputError) as caught:
            read_pretrained(recipe)
        assert str(caught.value).startswith(f"weights {path} are of size s, and the model is to be of size {size}")
        assert "Leave the model out, or say s, or start from weights of size" in str(caught.value)
    asked = load_recipe("small-data", {"weights": path, "model": "n"})
    with pytest.raises(InputError, match="of size n"):
        read_pretrained(asked)
    assert read_pretrained(load_recipe("small-data", {"weights": path, "model": "s"}))[0].model == "s"
    six, _ = weights(tmp_path, "n6")
    with pytest.raises(InputError, match="image_size: must be a multiple of 64, the coarsest stride of model n6"):
        read_pretrained(load_recipe("small-data", {"weights": six, "image_size": 96}))


def test_a_backbone_that_does_not_fit_is_refused_naming_both_sizes(tmp_path: Path) -> None:
    start = read_pretrained(small_recipe(weights=weights(tmp_path)[0]))[1]
    assert start is not None
    with torch.device("meta"):
        other = Detector("s", 3, default_anchors("s"))
    with pytest.raises(InputError, match=r"\d+ of \d+ tensors of the backbone fit; .* of size n and .* of size s; "):
        load_matching(other, start, THEIRS)


def test_files_that_are_no_weights_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for suffix in (".onnx", ".xml", ".pt2", ".ONNX"):
        with pytest.raises(
            InputError, match=r"an export, which holds no weights that can be trained on; give the .safe"
        ):
            train(small_recipe(weights=str(tmp_path / f"best{suffix}")), scenes(), tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot be read: No such file.*nothing is ever downloaded"):
        train(small_recipe(weights="nowhere.safetensors"), scenes(), tmp_path / "run")
    with pytest.raises(InputError, match="a folder, no weight file"):
        train(small_recipe(weights=str(tmp_path)), scenes(), tmp_path / "run")
    pwned = tmp_path / "pwned"

    class Hostile:
        def __reduce__(self) -> object:
            return (Path.touch, (pwned,))

    torch.save({"model": Hostile()}, tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pt", "plain.pt"):
        with pytest.raises((UnsafeFileError, InputError)):
            train(small_recipe(weights=str(tmp_path / name)), scenes(), tmp_path / "run")
    assert not pwned.exists()
    path, detector = weights(tmp_path)
    detector.backbone.stem.norm.running_var[3] = torch.nan
    save_weights(Path(path), detector, WeightsInfo("n", THEIRS, detector.anchors, 64))
    with pytest.raises(
        InputError, match=r"backbone.stem.norm.running_var holds values that are infinite or no numbers"
    ):
        read_pretrained(small_recipe(weights=path))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_foreign_checkpoint_is_imported_and_its_names_count_only_where_it_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in_this_process(monkeypatch)
    old = random_detector("n", 3)
    for names, said in ((list(THEIRS), "and of 2 of 5 classes by name (ring, cross)"), (None, "for none has its name")):
        path = save_checkpoint(tmp_path / "theirs.pt", foreign_model(old, names))
        prepared = prepared_from(small_recipe(weights=str(path)))
        new = prepared.train_state.detector.state_dict()
        kept = [name for name in new if not name.startswith("head.")]
        assert all(torch.equal(new[name], old.state_dict()[name]) for name in kept)
        assert "3 classes, imported from its model, nothing of it was run)" in prepared.kept
        assert said in prepared.kept
        start = read_pretrained(small_recipe(weights=str(path)))[1]
        assert start is not None
        assert start.class_names == (THEIRS if names else ())


def test_the_foreign_checkpoint_of_the_specification_trains(tmp_path: Path) -> None:
    path = shared_path("weights/foreign_n.pt")
    recorder = Recorder()
    train(small_recipe(weights=str(path), epochs=1, batch=8), scenes(), tmp_path / "run", recorder)
    assert all(event.box > 0 for event in recorder.of(StepDone))
    assert "294 of 300 tensors kept" in json.loads((tmp_path / "run" / "run.json").read_text())["start"]["kept"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_run_goes_on_bit_for_bit_when_the_weights_are_gone(tmp_path: Path, name: str) -> None:
    path, _ = weights(tmp_path, anchors=OTHER_ANCHORS)
    content = Path(path).read_bytes()
    recipe = small_recipe(
        epochs=2,
        weights=path,
        optimizer__name=name,
        optimizer__lr=0.001,
        optimizer__freeze=["backbone.stem", "backbone.stage2"],
        optimizer__layer_decay=0.8,
    )
    train(recipe, scenes(), tmp_path / "straight")
    noted = json.loads((tmp_path / "straight" / "run.json").read_text())["start"]
    assert (noted["weights"], noted["sha256"]) == (path, hashlib.sha256(content).hexdigest())
    assert load_recipe(tmp_path / "straight" / "recipe.yaml") == recipe
    with pytest.raises(KeyboardInterrupt):
        train(recipe, scenes(), tmp_path / "broken", InterruptAt(2, 1))
    Path(path).unlink()
    recorder = Recorder()
    resume(tmp_path / "broken", scenes(), recorder)
    assert_equal(tmp_path / "straight", tmp_path / "broken", 2)
    said = recorder.of(RunStarted)[0].decisions
    assert f"started from {noted['kept']}" in said
    assert any(text.startswith("frozen: backbone.stem, backbone.stage2; ") for text in said)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again_with_the_same_file(tmp_path: Path) -> None:
    path, detector = weights(tmp_path)

    def stop(event: object) -> None:
        if isinstance(event, StepDone):
            raise Stop

    recipe = small_recipe(epochs=1, weights=path)
    train(recipe, scenes(), tmp_path / "straight")
    with pytest.raises(Stop):
        train(recipe, scenes(), tmp_path / "broken", stop)
    content = Path(path).read_bytes()
    Path(path).unlink()
    with pytest.raises(InputError, match=r"stopped before its first checkpoint.*It cannot be read; put it back"):
        resume(tmp_path / "broken", scenes())
    save_weights(Path(path), detector, WeightsInfo("n", OURS[:3], detector.anchors, 64))
    with pytest.raises(InputError, match=r"stopped before its first checkpoint.*this is another; put it back"):
        resume(tmp_path / "broken", scenes())
    Path(path).unlink()
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(content)
    own = RunFolder(tmp_path / "broken").recipe
    own.write_text(own.read_text().replace(path, str(moved)))
    resume(tmp_path / "broken", scenes(), allow=["recipe"])
    assert_equal(tmp_path / "straight", tmp_path / "broken", 1)


def test_a_run_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    train(small_recipe(epochs=1), scenes(), run.path)
    facts = json.loads(run.run.read_text())
    assert facts.pop("start") is None
    assert facts.pop("notes") == []
    del facts["recipe"]["weights"], facts["recipe"]["optimizer"]["freeze"], facts["recipe"]["optimizer"]["layer_decay"]
    run.run.write_text(json.dumps(facts))
    old = [
        line
        for line in run.recipe.read_text().splitlines()
        if not line.strip().startswith(("weights", "freeze", "lay"))
    ]
    run.recipe.write_text("\n".join(old))
    resume(run.path, scenes())
    run.recipe.write_text("\n".join([*old, "weights: other.safetensors"]))
    with pytest.raises(InputError, match=r"recipe.yaml: weights was None, now it is other.safetensors"):
        resume(run.path, scenes())
