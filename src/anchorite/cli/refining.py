"""Options for more than one view of each image: windows, mirrored and scaled inputs, several weights."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.cli.options import OutputOptions, PositiveInt, RunningOptions
from anchorite.errors import InputError

if TYPE_CHECKING:
    from anchorite.choices import PrecisionName
    from anchorite.predict import Ensemble, Predictor, ViewConfig


@Parameter(name="*")
@dataclass(frozen=True)
class ViewOptions:
    """The views of each image that the networks get."""

    tile: Annotated[PositiveInt | None, Parameter(help="Predict on windows of this side in pixels, too.")] = None
    tile_overlap: Annotated[float | None, Parameter(help="Least share that neighbours overlap by. Default: 0.2.")] = (
        None
    )
    tile_only: Annotated[bool, Parameter(help="Windows alone, not the image as a whole.")] = False
    augment: Annotated[bool, Parameter(help="Test-time augmentation: mirrored and scaled inputs.")] = False
    others: Annotated[list[Path] | None, Parameter("--with", help="Other weights of the same classes, to fuse.")] = None
    weights_of: Annotated[str | None, Parameter(help="Share of each of the weights, as in 2,1,1.")] = None

    @property
    def is_asked_for(self) -> bool:
        """Whether there is more than one view of each image, or more than one network."""
        return self.tile is not None or self.augment or bool(self.others)

    def check(self, weights: Path) -> None:
        """InputError for what can be seen to be wrong before anything is read but files that are named twice."""
        self.config()
        if self.tile is None and (self.tile_overlap is not None or self.tile_only):
            flag = "--tile-only" if self.tile_only else f"--tile-overlap {self.tile_overlap}"
            raise InputError(f"{flag}: without --tile SIDE there are no windows; add it, or leave this out")
        if self.weights_of is not None and not self.others:
            raise InputError(f"--weights-of {self.weights_of}: with one file of weights only; add --with FILE")
        self._shares()
        _refuse_twice([weights, *(self.others or ())])

    def config(self) -> ViewConfig:
        """What the library takes; InputError for values out of range."""
        from anchorite.predict import ViewConfig

        overlap = 0.2 if self.tile_overlap is None else self.tile_overlap
        if not 0 <= overlap < 1:
            raise InputError(f"--tile-overlap {overlap}: must be at least 0 and less than 1")
        return ViewConfig(tile=self.tile, tile_overlap=overlap, whole_image=not self.tile_only, augment=self.augment)

    def applied(
        self, predictor: Predictor, weights: Path, running: RunningOptions, output: OutputOptions
    ) -> Predictor | Ensemble:
        """The predictor of `weights`, or where more is asked for an ensemble with it, which is then told in a line.

        Raises InputError naming the flag or the file where they do not fit, and what loading a predictor raises.
        """
        if not self.is_asked_for:
            return predictor
        ensemble = self._ensemble([predictor, *self._loaded(running, running.precision)], weights, running)
        if not (output.quiet or output.json_lines):
            print(ensemble.description(running.image_size))
        return ensemble

    def measured(self, weights: Path, running: RunningOptions, precision: PrecisionName) -> Ensemble:
        """An ensemble, its first predictor loaded as well; those that torch runs in a precision that was settled."""
        from anchorite.export import is_export, load_predictor

        first = load_predictor(weights, running.device, running.precision if is_export(weights) else precision)
        return self._ensemble([first, *self._loaded(running, precision)], weights, running)

    def _loaded(self, running: RunningOptions, precision: PrecisionName) -> list[Predictor]:
        from anchorite.export import is_export, load_predictor

        return [
            load_predictor(other, running.device, running.precision if is_export(other) else precision)
            for other in self.others or ()
        ]

    def _ensemble(self, predictors: Sequence[Predictor], weights: Path, running: RunningOptions) -> Ensemble:
        from anchorite.predict import Ensemble, Member

        paths = [weights, *(self.others or ())]
        members = [
            Member(predictor, share, str(path))
            for predictor, share, path in zip(predictors, self._shares(), paths, strict=True)
        ]
        ensemble = Ensemble(members, self.config())
        ensemble.views_by_member(running.image_size)  # refuses a size that is too small for one of them
        return ensemble

    def _shares(self) -> list[float]:
        number = 1 + len(self.others or ())
        if self.weights_of is None:
            return [1.0] * number
        try:
            shares = [float(word) for word in self.weights_of.split(",")]
        except ValueError:
            shares = []
        if len(shares) != number or not all(0 < share < float("inf") for share in shares):
            raise InputError(
                f"--weights-of {self.weights_of}: give {number} numbers above 0, one for each file of weights in their "
                f"order, such as {','.join(['2', *['1'] * (number - 1)])}"
            )
        return shares


def _refuse_twice(paths: Sequence[Path]) -> None:
    """InputError where the same weights are given twice, by whatever names: they would agree with themselves alone."""
    for number, path in enumerate(paths):
        for earlier in paths[:number]:
            is_file = path.is_file() and earlier.is_file()  # what is missing is told when it is loaded
            if is_file and (path.samefile(earlier) or filecmp.cmp(path, earlier, shallow=False)):
                raise InputError(
                    f"--with {path}: the same weights as {earlier}, which would agree with themselves; "
                    "name others, or leave it out"
                )
