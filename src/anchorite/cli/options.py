"""Options that several commands share, as cyclopts reads them from dataclasses."""

from __future__ import annotations

import filecmp
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from anchorite.choices import CompileName, FormatName, ModelSize, PrecisionName, ScoresUse
from anchorite.errors import InputError, StorageError
from anchorite.keywords import config_of
from anchorite.recipe_names import PAIR, SQUARE

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.predict import Ensemble, PredictConfig
    from anchorite.train import Recipe

Config = TypeVar("Config")


def _whole(_type: Any, tokens: Sequence[Token]) -> int:
    """An int of exactly what was written; cyclopts would round what is not whole."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number; write one such as 10") from None


def _image_size(_type: Any, tokens: Sequence[Token]) -> int | tuple[int, int]:
    """The longer side, or the pair (height, width) of 192,320 or 192x320."""
    pair = PAIR.fullmatch(tokens[0].value)
    size: int | tuple[int, int] = (int(pair[1]), int(pair[2])) if pair else _whole(_type, tokens)
    if (min(size) if isinstance(size, tuple) else size) < 1:
        raise ValueError(f'"{tokens[0].value}" must be >= 1')
    return size


def _square_size(_type: Any, tokens: Sequence[Token]) -> int:
    """The longer side alone."""
    if PAIR.fullmatch(tokens[0].value):
        raise ValueError(f"{tokens[0].value!r}: {SQUARE}")
    return _whole(_type, tokens)


def _number_or_auto(_type: Any, tokens: Sequence[Token]) -> int | Literal["auto"]:
    return "auto" if tokens[0].value == "auto" else _whole(_type, tokens)


Whole = Annotated[int, Parameter(converter=_whole, n_tokens=1)]
PositiveInt = Annotated[int, Parameter(converter=_whole, n_tokens=1, validator=Number(gte=1))]
DEVICE = Parameter(help="auto, cpu, cuda or cuda:N.")
QUIET_HELP = "Print nothing on stdout but the final results; errors still go to stderr."
Data = Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")]
Weights = Annotated[Path, Parameter(help="Weights, or an export of them (.onnx, .xml).")]
Format = Annotated[FormatName | None, Parameter(help="Label format, where recognition guesses wrong.")]
AllowOutside = Annotated[bool, Parameter(help="Follow paths and links out of the dataset, for data you trust.")]

IgnoreClass = Annotated[list[str] | None, Parameter(help="Class whose boxes are ignored: no objects, no background.")]
Scores = Annotated[ScoresUse, Parameter(help="Scores beside boxes: none, or what each object counts in training.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ReadingOptions:
    """How a data set is read."""

    format: Format = None
    skip_bad: Annotated[bool, Parameter(help="Leave out images that cannot be read, or their labels.")] = False
    allow_outside: AllowOutside = False
    ignore_class: IgnoreClass = None
    scores: Scores = "ignore"

    def open(self, data: Path, *outs: Path | None) -> DatasetIndex:
        """The dataset, read as these options say; InputError where one of `outs`, which will be written, lies in it."""
        from anchorite.data import open_dataset
        from anchorite.data.index_cache import refuse_dataset_folder

        dataset = open_dataset(
            data,
            self.format,
            self.skip_bad,
            allow_outside=self.allow_outside,
            ignore_classes=self.ignore_class or (),
            scores=self.scores,
        )
        for out in filter(None, outs):
            refuse_dataset_folder(out, dataset.splits.values(), dataset.root)
        return dataset

    def open_for(self, weights: Path | None, data: Path, *outs: Path | None, quiet: bool = False) -> DatasetIndex:
        """`open`; where the dataset has no split val, with the one that the run of these weights made of its train, and
        a line on that on stderr unless `quiet`."""
        from anchorite.train import RunFolder

        dataset, made = self.open(data, *outs), None
        run = None if weights is None else RunFolder(weights.parent)
        if run is not None and run.run.is_file() and not dataset.split("val"):
            with suppress(StorageError):  # any file may be called so
                made = run.read_facts().get("val_split")
        if run is None or not made or dataset.split("train").is_shuffled:
            return dataset
        number, with_val = len(made["images"]), run.with_val(dataset)
        found = len(with_val.split("val"))
        said = f"val: the {number} images of train that {run.path} kept for it (--val {made['share']:g})"
        if found < number:
            said += f" are not all here, but {found}, and so not taken; name the data that it was trained on"
        if not quiet:
            print(said, file=sys.stderr)
        return with_val if found == number else dataset

    def open_again(self, facts: Mapping[str, Any], data: Path | None) -> DatasetIndex:
        """The dataset of a run or study, read with the options in its facts; data: its path where that has changed."""
        again = ReadingOptions(
            self.format or facts["format"],
            self.skip_bad or facts.get("skip_bad", False),
            self.allow_outside or facts.get("allow_outside", False),
            [*(self.ignore_class or ()), *facts.get("ignore_classes", ())],
            facts.get("scores", "ignore") if self.scores == "ignore" else self.scores,
        )
        return again.open(data or Path(facts["data"]))


@Parameter(name="*")
@dataclass(frozen=True)
class OutputOptions:
    """How much is printed, and in which form. Errors go to stderr in any case."""

    quiet: Annotated[bool, Parameter(help=QUIET_HELP)] = False
    json_lines: Annotated[bool, Parameter(help="Print JSON lines alone on stdout, for programs.")] = False

    def __post_init__(self) -> None:
        if self.quiet and self.json_lines:
            raise InputError(
                "--quiet and --json-lines: choose one; with --json-lines there is nothing on stdout to quiet"
            )


@Parameter(name="*")
@dataclass(frozen=True)
class RunningOptions:
    """How a detector is run over images."""

    image_size: Annotated[
        int | tuple[int, int] | None,
        Parameter(
            converter=_image_size,
            n_tokens=1,
            metavar="SIDE|HEIGHT,WIDTH",
            help="Longer side of the input, or both in pixels; default: as trained.",
        ),
    ] = None
    batch: Annotated[PositiveInt, Parameter(help="Images per batch.")] = 16
    device: Annotated[str, DEVICE] = "auto"
    precision: Annotated[PrecisionName, Parameter(help="Number format.")] = "auto"


@Parameter(name="*")
@dataclass(frozen=True)
class RecipeOptions:
    """A recipe, and those of its fields that are set most often; all others by --set."""

    recipe: Annotated[str | None, Parameter(help="Built-in recipe (see `anchorite recipes`) or YAML file.")] = None
    model: Annotated[ModelSize | None, Parameter(help="Size of the network.")] = None
    weights: Annotated[str | None, Parameter(help="Weights (or .pt of the original family) to start from.")] = None
    backbone: Annotated[str | None, Parameter(help="Of transformers: hf:FOLDER, or hf-config:FOLDER (random).")] = None
    allow_download: Annotated[bool, Parameter(help="Fetch the --backbone hf:NAME from huggingface.co.")] = False
    image_size: Annotated[
        int | None,
        Parameter(converter=_square_size, n_tokens=1, help="Longer side of the input in pixels, a multiple of 32."),
    ] = None
    epochs: Annotated[Whole | None, Parameter(help="Passes over the training images.")] = None
    batch: Annotated[
        int | Literal["auto"] | None,
        Parameter(converter=_number_or_auto, n_tokens=1, help="Images per batch; auto: as many as fit."),
    ] = None
    seed: Annotated[Whole | None, Parameter(help="Seed of weights and augmentation.")] = None
    val_share: Annotated[float | None, Parameter(alias="--val", help="Share of train that becomes the val split.")] = (
        None
    )
    background_ok: Annotated[bool | None, Parameter(help="Most training images may be without labels.")] = None
    device: Annotated[str | None, DEVICE] = None
    precision: Annotated[PrecisionName | None, Parameter(help="Number format of the convolutions.")] = None
    compile: Annotated[CompileName | None, Parameter(help="torch.compile for the step; auto: by device.")] = None
    workers: Annotated[Whole | None, Parameter(help="Loader processes; 0 for none.")] = None
    settings: Annotated[
        list[str] | None, Parameter("--set", help="Any recipe field, as in --set loss.label_smoothing=0.1.")
    ] = None

    def refuse_on_resume(self, what: str, **others: Path | None) -> None:
        """InputError naming the flags, of these and `others`, that cannot be given for a run or study to resume."""
        values = {**others, **asdict(self)}.items()
        given = [name.replace("_", "-") for name, value in values if value is not None and value is not False]
        if flags := [f"--{'set' if name == 'settings' else name}" for name in given]:
            raise InputError(
                f"{', '.join(flags)} with --resume: a {what} goes on as it was started; "
                f"leave {'it' if len(flags) == 1 else 'them'} out, or start a new {what} without --resume"
            )

    def read(self) -> tuple[Recipe, tuple[str, ...]]:
        """The recipe with all this set, and sentences on how a file of other trainers was read.

        InputError names the flag that does not fit.
        """
        from anchorite.model import download_backbone
        from anchorite.train import parse_setting, read_recipe

        own = ("recipe", "settings", "allow_download")
        given = {name: value for name, value in asdict(self).items() if name not in own and value is not None}
        values = dict(parse_setting(text) for text in self.settings or ())
        twice = [f"--{name.replace('_', '-')} and --set {name}" for name in given if name in values]
        if twice:
            raise InputError(f"{', '.join(twice)}: two values for the same field; leave one out")
        recipe, notes = read_recipe(self.recipe, given | values, flags=given.keys())
        if self.allow_download:
            if recipe.backbone is None:
                raise InputError("--allow-download is for --backbone hf:NAME, and no backbone was given; leave it out")
            download_backbone(recipe.backbone)
        return recipe, notes


@Parameter(name="*")
@dataclass(frozen=True)
class LimitOptions:
    """What counts as a detection."""

    confidence: Annotated[float, Parameter(help="Least score of a detection.")] = 0.25
    iou_threshold: Annotated[float, Parameter(alias="--iou-limit", help="IoU above which the weaker box goes.")] = 0.45
    max_detections: Annotated[Whole, Parameter(help="Most detections per image.")] = 300
    class_agnostic: Annotated[bool, Parameter(help="Boxes of all classes suppress each other.")] = False
    multi_label: Annotated[bool, Parameter(help="A place may answer for several classes.")] = False

    def config(self) -> PredictConfig:
        """The limits as the library takes them; InputError for values out of range."""
        from anchorite.predict import PredictConfig

        return from_flags(PredictConfig, **asdict(self))


def from_flags(kind: Callable[..., Config], **values: object) -> Config:
    """A config of the library, whose fields are called as flags are; InputError naming a flag that is out of range."""
    return config_of(kind, values, values, lambda name: f"--{name.replace('_', '-')}")


@Parameter(name="*")
@dataclass(frozen=True)
class ViewOptions:
    """The views of each image that the networks get."""

    tile: Annotated[PositiveInt | None, Parameter(help="Predict on windows of this side in pixels, too.")] = None
    tile_overlap: Annotated[float | None, Parameter(help="Least share that windows overlap by. Default: 0.2.")] = None
    tile_only: Annotated[bool, Parameter(help="Windows alone, not the image as a whole.")] = False
    augment: Annotated[bool, Parameter(help="Test-time augmentation: mirrored and scaled inputs.")] = False
    others: Annotated[list[Path] | None, Parameter("--with", help="Other weights of the same classes, to fuse.")] = None
    weights_of: Annotated[str | None, Parameter(help="Share of each of the weights, as in 2,1,1.")] = None

    def __post_init__(self) -> None:
        if self.tile is None and (self.tile_overlap is not None or self.tile_only):
            flag = "--tile-only" if self.tile_only else f"--tile-overlap {self.tile_overlap}"
            raise InputError(f"{flag}: without --tile SIDE there are no windows; add it, or leave this out")
        if self.weights_of is not None and not self.others:
            raise InputError(f"--weights-of {self.weights_of}: with one file of weights only; add --with FILE")
        self._shares()

    @property
    def is_asked_for(self) -> bool:
        """Whether there is more than one view of each image, or more than one network."""
        return self.tile is not None or self.augment or bool(self.others)

    def load(self, weights: Path, running: RunningOptions, precision: PrecisionName) -> Ensemble:
        """The weights, with the others if there are any, as one ensemble. precision: of those that torch runs.

        Raises InputError naming the file where they do not fit, and what loading a predictor raises.
        """
        from anchorite.export import is_export, load_predictor
        from anchorite.predict import Ensemble, Member, ViewConfig

        overlap = 0.2 if self.tile_overlap is None else self.tile_overlap
        views = {"tile": self.tile, "tile_overlap": overlap, "whole_image": not self.tile_only, "augment": self.augment}
        config = from_flags(ViewConfig, **views)
        paths = [weights, *(self.others or ())]
        for earlier, path in combinations(paths, 2):
            is_file = path.is_file() and earlier.is_file()  # what is missing is told when it is loaded
            if is_file and (path.samefile(earlier) or filecmp.cmp(path, earlier, shallow=False)):
                raise InputError(
                    f"--with {path}: the same weights as {earlier}, which would agree with themselves; "
                    "name others, or leave it out"
                )
        members = []
        for path, share in zip(paths, self._shares(), strict=True):
            predictor = load_predictor(path, running.device, running.precision if is_export(path) else precision)
            members.append(Member(predictor, share, str(path)))
        ensemble = Ensemble(members, config)
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
