"""A study: trials of recipe values, each a separate run, stored in SQLite so that it can be resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorite.data import DatasetIndex
from anchorite.data.host_loader import end_unguarded_worker
from anchorite.errors import DivergedError, InputError, import_extra
from anchorite.files import StrPath, make_folder, write_text_atomically
from anchorite.reading import read_json
from anchorite.recipe_names import current_name
from anchorite.train import (
    EpochDone,
    Event,
    Listener,
    Recipe,
    load_recipe,
    read_pretrained,
    resume,
    train,
    with_settings,
)
from anchorite.train.events import ignore
from anchorite.tune.space import SPACE, Space

if TYPE_CHECKING:
    import optuna

_FACTS, _RECIPE, _DATABASE = "study.json", "recipe.yaml", "study.db"
_MAX_FACTS_BYTES = 1_000_000
_STARTUP = 5  # random trials at the start, never stopped early


@dataclass(frozen=True)
class TrialDone:
    """A finished trial. outcome: "complete", "cut short" (worse than most at the same epoch) or "diverged"."""

    number: int
    outcome: str
    values: dict[str, Any]
    best_map: float
    epochs: int
    seconds: float
    is_best: bool


class Study:
    """Trials in a folder: recipe.yaml, study.json (data, space), study.db (optuna's storage), trials/NUMBER, best.yaml.

    Trial 0 is the unchanged recipe, the baseline.
    """

    def __init__(self, folder: StrPath, facts: dict[str, Any], recipe: Recipe, space: Space) -> None:
        self.folder, self.facts, self.recipe, self.space = Path(folder), facts, recipe, space

    @classmethod
    def create(cls, folder: StrPath, dataset: DatasetIndex, recipe: Recipe, space: Space) -> Study:
        """A new study. Raises InputError for a space that the recipe does not allow, before anything is written, and
        what `read_pretrained` raises for weights.
        """
        if recipe.val_share and {"seed", "val_share"} & {current_name(name) for name in space}:
            raise InputError("space: seed or val_share would give trials other images to validate on; leave them out")
        recipe, _ = read_pretrained(recipe)  # with the size of its weights, which trials then start from
        # The ends of every range, so that no trial fails on an invalid value.
        for name, value in ((name, value) for name, dimension in space.items() for value in dimension.ends()):
            try:
                with_settings(recipe, {name: value})
            except InputError as error:
                raise InputError(f"space: {name}: {str(error).removeprefix(f'--set {name}: ')}") from None
        facts = {
            **dataset.reading_facts(),
            "space": {name: dimension.model_dump(mode="json") for name, dimension in space.items()},
        }
        folder = Path(folder)
        make_folder(folder)
        write_text_atomically(folder / _RECIPE, recipe.to_yaml())
        write_text_atomically(folder / _FACTS, json.dumps(facts, indent=1) + "\n")
        return cls(folder, facts, recipe, space)

    @classmethod
    def open(cls, folder: StrPath) -> Study:
        """The study in a folder; InputError when there is none."""
        folder = Path(folder)
        if not (folder / _FACTS).is_file():
            raise InputError(f"{folder}: no study (there is no {_FACTS}); name the folder of one")
        facts = read_json(folder / _FACTS, _MAX_FACTS_BYTES)
        try:
            space = SPACE.validate_python(facts["space"])
            Path(facts["data"]), str(facts["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / _FACTS}: cannot be read as a study: {error}") from None
        return cls(folder, facts, load_recipe(folder / _RECIPE), space)

    def search(
        self, dataset: DatasetIndex, num_trials: int, tell: Callable[[TrialDone], None], listener: Listener = ignore
    ) -> Recipe:
        """Run trials until the study has `num_trials` finished ones; returns the best recipe, also written to
        best.yaml.

        An interrupted trial is resumed from its newest checkpoint. tell receives a line on each trial, listener each
        event within. Raises InputError without a split val or without optuna, and what training raises.
        """
        end_unguarded_worker()
        if not dataset.split("val") and not self.recipe.val_share:
            raise InputError(
                f"{dataset.root}: a study compares by mAP on the split val, and there is none; --val 0.2 takes a fifth "
                "of train for it, the same in all trials"
            )
        optuna = import_extra("optuna", "hpo")
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name="anchorite",
            storage=f"sqlite:///{(self.folder / _DATABASE).resolve()}",
            direction="maximize",
            load_if_exists=True,
            # Stop a trial below the median of earlier trials, after a third of the epochs.
            pruner=optuna.pruners.MedianPruner(_STARTUP, n_warmup_steps=max(1, self.recipe.epochs // 3)),
        )
        # A different random stream after each interruption, the same for the same history.
        study.sampler = optuna.samplers.TPESampler(seed=self.recipe.seed + len(study.trials), n_startup_trials=_STARTUP)
        for interrupted in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(interrupted.number, state=TrialState.FAIL)
            if set(interrupted.params) == set(self.space) or interrupted.user_attrs.get("is_known") is False:
                study.enqueue_trial(interrupted.params, user_attrs=interrupted.user_attrs)
        if not study.trials:
            base = self._searched(self.recipe)
            # A value outside what is searched cannot be given to the sampler; the trial is run anyway.
            known = all(dimension.holds(base[name]) for name, dimension in self.space.items())
            study.enqueue_trial(base if known else {}, user_attrs={"is_known": known})
        while len(over := study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < num_trials:
            done = self._run(study, study.ask(), dataset, listener, number=len(over))
            self._write_best(study, num_over=len(over) + 1)
            tell(done)
        return self._write_best(study, num_over=len(over))

    def _searched(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's values of the fields that are searched."""
        return {name: attrgetter(current_name(name))(recipe) for name in self.space}

    def _run(
        self, study: optuna.Study, trial: optuna.Trial, dataset: DatasetIndex, listener: Listener, number: int
    ) -> TrialDone:
        """Train with the trial's values, or go on where it was interrupted, and tell the study how it went."""
        from optuna import TrialPruned
        from optuna.trial import TrialState

        is_unknown = trial.user_attrs.get("is_known") is False
        chosen = {} if is_unknown else {name: one.suggest(trial, name) for name, one in self.space.items()}
        recipe = with_settings(self.recipe, chosen)
        folder = self.folder / "trials" / (trial.user_attrs.get("folder") or f"{trial.number:04d}")
        trial.set_user_attr("folder", folder.name)
        best, epochs, started = 0.0, 0, time.perf_counter()

        def hear(event: Event) -> None:
            nonlocal best, epochs
            listener(event)
            if isinstance(event, EpochDone) and event.validation is not None:
                score = event.validation.metrics.map
                best, epochs = max(best, score), event.epoch
                trial.report(best, event.epoch)
                if trial.should_prune():
                    raise TrialPruned

        outcome, state = "complete", TrialState.COMPLETE
        try:
            if (folder / "recipe.yaml").is_file():
                finished = resume(folder, dataset, hear)
            else:
                shutil.rmtree(folder, ignore_errors=True)  # killed before it contained anything
                folder.parent.mkdir(exist_ok=True)
                finished = train(recipe, dataset, folder, hear)
            best = finished.best_map if finished.best_epoch is not None else 0.0
        except TrialPruned:
            outcome, state = "cut short", TrialState.PRUNED
        except DivergedError:
            outcome, state = "diverged", TrialState.PRUNED
        trial.set_user_attr("outcome", outcome)
        study.tell(trial, best if outcome == "complete" else None, state=state)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # 22 MB each, never resumed
        is_best = outcome == "complete" and study.best_trial.number == trial.number
        seconds = time.perf_counter() - started
        return TrialDone(number, outcome, self._searched(recipe), best, epochs, seconds, is_best)

    def _write_best(self, study: optuna.Study, num_over: int) -> Recipe:
        """The recipe of the best complete trial, written to best.yaml with the baseline's score."""
        complete = [trial for trial in study.trials if trial.value is not None and trial.state.name == "COMPLETE"]
        if not complete:
            return self.recipe
        best, base = max(complete, key=lambda trial: trial.value or 0.0), complete[0]
        recipe = with_settings(self.recipe, best.params).model_copy(update={"name": "tuned"})
        text = (
            f"# The best of {num_over} trials by mAP on val: {best.value:.4f}, against {base.value:.4f} of the recipe "
            f"as it was (trial {base.number}).\n# Chosen on val, so val flatters it: measure it on test.\n"
        )
        write_text_atomically(self.folder / "best.yaml", text + recipe.to_yaml())
        return recipe
