"""Studies: what is searched and refused, that the best wins, and that an interrupted study loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchorite.data import DatasetIndex
from anchorite.errors import DivergedError, InputError
from anchorite.evaluate import ValidationResult
from anchorite.train import EpochDone, Listener, Recipe, RunFinished, load_recipe
from anchorite.tune import Choice, Range, Study, TrialDone, default_space, read_space
from tests.train.runs import OVERRIDES, scenes

pytestmark = pytest.mark.usefixtures("small_networks")

RATE = {"optimizer.lr": Range(low=0.001, high=0.1, log=True)}


class FakeRuns:
    """Runs whose mAP grows to a height that depends on the rate alone, best at 0.02, in place of training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipes: list[Recipe] = []
        self.resumed: list[Path] = []
        self.interrupt_in: int | None = None
        self.diverge_above = 1.0
        monkeypatch.setattr("anchorite.tune.study.train", self.train)
        monkeypatch.setattr("anchorite.tune.study.resume", self.resume)

    def train(self, recipe: Recipe, _dataset: DatasetIndex, folder: Path, listener: Listener) -> RunFinished:
        folder.mkdir()
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        (folder / "checkpoints").mkdir()
        self.recipes.append(recipe)
        if self.interrupt_in == len(self.recipes) - 1:
            raise KeyboardInterrupt
        return self._epochs(recipe, folder, listener)

    def resume(self, folder: Path, _dataset: DatasetIndex, listener: Listener) -> RunFinished:
        self.resumed.append(folder)
        return self._epochs(load_recipe(folder / "recipe.yaml"), folder, listener)

    def _epochs(self, recipe: Recipe, folder: Path, listener: Listener) -> RunFinished:
        rate = recipe.optimizer.lr
        if rate > self.diverge_above:
            raise DivergedError("training diverged")
        height = 1 / (1 + abs(rate - 0.02) * 50)
        for epoch in range(1, recipe.epochs + 1):
            listener(EpochDone(epoch, {}, result(height * epoch / recipe.epochs), True))
        return RunFinished(folder, "complete", recipe.epochs, height, 0.0)


def result(score: float) -> ValidationResult:
    class Metrics:
        map = score

    class Result:
        metrics = Metrics()

    return Result()  # type: ignore[return-value]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    return FakeRuns(monkeypatch)


def study(folder: Path, space: Any = None, **overrides: object) -> Study:
    recipe = load_recipe("demo", OVERRIDES | {"epochs": 9, "seed": 1} | overrides)
    return Study.create(folder, scenes(), recipe, space or RATE)


def test_the_first_trial_is_the_recipe_and_the_best_becomes_a_recipe(runs: FakeRuns, tmp_path: Path) -> None:
    done: list[TrialDone] = []
    best = study(tmp_path / "s", **{"optimizer.lr": 0.002}).search(scenes(), 15, done.append)
    assert runs.recipes[0].optimizer.lr == 0.002
    assert [one.number for one in done] == list(range(15))
    complete = [one for one in done if one.outcome == "complete"]
    winner = max(complete, key=lambda one: one.best_map)
    assert best.optimizer.lr == pytest.approx(winner.values["optimizer.lr"])
    assert winner.best_map > done[0].best_map
    assert [one.number for one in done if one.is_best][-1] == winner.number
    written = load_recipe(tmp_path / "s/best.yaml")
    assert written == best
    assert (tmp_path / "s/best.yaml").read_text().startswith("# The best of 15 trials by mAP on val")
    assert "cut short" in {one.outcome for one in done}
    assert not list((tmp_path / "s").rglob("checkpoints"))


def test_the_same_seed_searches_the_same(runs: FakeRuns, tmp_path: Path) -> None:
    for name in ("a", "b"):
        study(tmp_path / name).search(scenes(), 6, lambda done: None)
    rates = [recipe.optimizer.lr for recipe in runs.recipes]
    assert rates[:6] == rates[6:]
    assert len(set(rates)) == 6


def test_an_interrupted_trial_is_gone_on_with(runs: FakeRuns, tmp_path: Path) -> None:
    runs.interrupt_in = 3
    done: list[TrialDone] = []
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "s").search(scenes(), 6, done.append)
    assert len(done) == 3
    again = Study.open(tmp_path / "s")
    again.search(scenes(), 6, done.append)
    assert [one.number for one in done] == list(range(6))
    assert runs.resumed == [tmp_path / "s/trials/0003"]
    assert done[3].values == {"optimizer.lr": runs.recipes[3].optimizer.lr}
    again.search(scenes(), 6, done.append)  # there is nothing left to do
    assert len(done) == 6


def test_a_study_keeps_the_recipe_and_how_the_data_was_read(tmp_path: Path) -> None:
    made = study(tmp_path / "s", **{"optimizer.lr": 0.003})
    again = Study.open(tmp_path / "s")
    assert again.recipe == made.recipe
    assert again.space == made.space
    assert again.facts["data"] == str(scenes().root.resolve())
    assert (again.facts["format"], again.facts["skip_bad"]) == ("yolo", False)


def test_a_first_trial_that_is_interrupted_is_the_recipe_still(runs: FakeRuns, tmp_path: Path) -> None:
    runs.interrupt_in = 0
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "s", **{"optimizer.lr": 0.5}).search(scenes(), 2, lambda done: None)
    done: list[TrialDone] = []
    Study.open(tmp_path / "s").search(scenes(), 2, done.append)
    assert done[0].values == {"optimizer.lr": 0.5}  # outside the space, and run nevertheless
    assert done[1].values["optimizer.lr"] <= 0.1


def test_what_diverges_is_noted_and_the_search_goes_on(runs: FakeRuns, tmp_path: Path) -> None:
    runs.diverge_above = 0.03
    done: list[TrialDone] = []
    best = study(tmp_path / "s").search(scenes(), 8, done.append)
    assert "diverged" in {one.outcome for one in done}
    assert best.optimizer.lr <= 0.03


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"optimizer.speed": Range(low=1, high=2)}, "optimizer.speed: no such recipe field"),
        ({"optimizr.lr": Range(low=1, high=2)}, "did you mean optimizer.lr?"),
        ({"augment.mosaic": Range(low=0.5, high=1.5)}, "augment.mosaic: must be less than or equal to 1"),
        ({"optimizer.name": Choice(choices=["sgd", "adom"])}, "optimizer.name: "),
    ],
)
def test_a_space_that_no_recipe_allows_is_refused_before_anything_is_written(
    space: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="space: ") as caught:
        study(tmp_path / "s", space)
    assert said in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_the_default_space_fits_the_built_in_recipes(tmp_path: Path) -> None:
    for name in ("small-data", "demo", "from-scratch"):
        Study.create(tmp_path / name, scenes(), load_recipe(name), default_space())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer.lr: {low: 1, high: 0.5}", "low must be under high"),
        ("optimizer.lr: {low: 0, high: 0.5, log: true}", "with log, low must be above 0"),
        ("optimizer.lr: {low: 0.1}", "high: Field required"),
        ("optimizer.name: {choices: [sgd]}", "choices: List should have at least 2"),
        ("optimizer.lr: 3", "optimizer.lr"),
        ("- a", "a space is a mapping"),
    ],
)
def test_a_malformed_space_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"space\.yaml") as caught:
        read_space(path)
    assert said in str(caught.value)


def test_a_space_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("batch: {low: 4, high: 16}\naugment.mosaic: {choices: [0.0, 1.0]}\n")
    space = read_space(path)
    assert space == {"batch": Range(low=4, high=16), "augment.mosaic": Choice(choices=[0.0, 1.0])}
    assert space["batch"].is_whole  # type: ignore[union-attr]


def test_a_study_needs_val(tmp_path: Path, runs: FakeRuns) -> None:
    data = scenes()
    without = DatasetIndex(data.root, data.format, data.class_names, {"train": data.splits["train"]})
    with pytest.raises(InputError, match="split val"):
        study(tmp_path / "s").search(without, 2, lambda done: None)


def test_another_folder_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study"):
        Study.open(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(InputError, match=r"study\.json"):
        Study.open(tmp_path)
