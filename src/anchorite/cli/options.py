"""Options that several commands share, as cyclopts reads them from dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from anchorite.choices import CompileName, FormatName, ModelSize, PrecisionName
from anchorite.errors import InputError

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.predict import PredictConfig
    from anchorite.train import Recipe


def _whole(_type: Any, tokens: Sequence[Token]) -> int:
    """An int of exactly what was written; cyclopts would round what is not whole."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number; write one such as 10") from None


Whole = Annotated[int, Parameter(converter=_whole, n_tokens=1)]
PositiveInt = Annotated[int, Parameter(converter=_whole, n_tokens=1, validator=Number(gte=1))]
DEVICE = Parameter(help="auto, cpu, cuda or cuda:N.")
QUIET_HELP = "Print nothing on stdout but the final results; errors still go to stderr."
Data = Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")]
Weights = Annotated[Path, Parameter(help="Weights, or an export of them (.onnx, .xml).")]
Format = Annotated[FormatName | None, Parameter(help="Label format, where recognition guesses wrong.")]
AllowOutside = Annotated[
    bool, Parameter(help="Follow paths and links that lead out of the dataset; for data you trust.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class ReadingOptions:
    """How a data set is read."""

    format: Format = None
    skip_bad: Annotated[bool, Parameter(help="Leave out malformed label rows and unreadable images.")] = False
    allow_outside: AllowOutside = False

    def open(self, data: Path) -> DatasetIndex:
        """The dataset, read as asked for."""
        from anchorite.data import open_dataset

        return open_dataset(data, self.format, self.skip_bad, allow_outside=self.allow_outside)

    def open_again(self, facts: Mapping[str, Any], data: Path | None) -> DatasetIndex:
        """The dataset of a run or study, read with its options; data: its path where that has changed."""
        again = ReadingOptions(
            self.format or facts["format"],
            self.skip_bad or facts.get("skip_bad", False),
            self.allow_outside or facts.get("allow_outside", False),
        )
        return again.open(data or Path(facts["data"]))


@Parameter(name="*")
@dataclass(frozen=True)
class OutputOptions:
    """How much is printed, and for whom. Errors go to stderr in any case."""

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
        PositiveInt | None,
        Parameter(help="Longer side of the input; default: the training size."),
    ] = None
    batch: Annotated[PositiveInt, Parameter(help="Images per batch.")] = 16
    device: Annotated[str, DEVICE] = "auto"
    precision: Annotated[PrecisionName, Parameter(help="Number format.")] = "auto"


@Parameter(name="*")
@dataclass(frozen=True)
class RecipeOptions:
    """The recipe fields that are set most often; all others by --set."""

    model: Annotated[ModelSize | None, Parameter(help="Size of the network.")] = None
    weights: Annotated[str | None, Parameter(help="Weights (or .pt of the original family) to start from.")] = None
    backbone: Annotated[str | None, Parameter(help="Of transformers: hf:FOLDER, or hf-config:FOLDER (random).")] = None
    allow_download: Annotated[bool, Parameter(help="Fetch the --backbone hf:NAME from huggingface.co.")] = False
    image_size: Annotated[Whole | None, Parameter(help="Longer side of the input in pixels, a multiple of 32.")] = None
    epochs: Annotated[Whole | None, Parameter(help="Passes over the training images.")] = None
    batch: Annotated[Whole | None, Parameter(help="Images per batch.")] = None
    seed: Annotated[Whole | None, Parameter(help="Seed of weights and augmentation.")] = None
    device: Annotated[str | None, DEVICE] = None
    precision: Annotated[PrecisionName | None, Parameter(help="Number format of the convolutions.")] = None
    compile: Annotated[CompileName | None, Parameter(help="torch.compile for the step; auto: by device.")] = None
    workers: Annotated[Whole | None, Parameter(help="Loader processes; 0 for none.")] = None
    settings: Annotated[
        list[str] | None,
        Parameter("--set", help="Any recipe field, as in --set loss.label_smoothing=0.1."),
    ] = None

    def flags_given(self) -> list[str]:
        """The flags that were given."""
        others = ["--set"] * bool(self.settings) + ["--allow-download"] * self.allow_download
        return others + [f"--{name.replace('_', '-')}" for name in self._fields_given()]

    def recipe(self, source: str | None) -> tuple[Recipe, tuple[str, ...]]:
        """A built-in recipe or that of a file with all this set, and sentences on how a file of others was read.

        InputError names the flag that does not fit.
        """
        from anchorite.model import download_backbone
        from anchorite.train import parse_setting, read_recipe

        given, values = self._fields_given(), dict(parse_setting(text) for text in self.settings or ())
        twice = [f"--{name.replace('_', '-')} and --set {name}" for name in given if name in values]
        if twice:
            raise InputError(f"{', '.join(twice)}: two values for the same field; leave one out")
        recipe, notes = read_recipe(source, given | values, flags=given.keys())
        if self.allow_download:
            if recipe.backbone is None:
                raise InputError("--allow-download is for --backbone hf:NAME, and no backbone was given; leave it out")
            download_backbone(recipe.backbone)
        return recipe, notes

    def _fields_given(self) -> dict[str, Any]:
        """The fields of the recipe that flags of their own set."""
        own = ("settings", "allow_download")
        return {name: value for name, value in asdict(self).items() if name not in own and value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class LimitOptions:
    """What counts as a detection."""

    confidence: Annotated[float, Parameter(help="Least score of a detection.")] = 0.25
    iou_threshold: Annotated[
        float,
        Parameter(("--iou-threshold", "--iou-limit"), help="IoU above which the weaker of two boxes goes."),
    ] = 0.45
    max_detections: Annotated[Whole, Parameter(help="Most detections per image.")] = 300
    class_agnostic: Annotated[bool, Parameter(help="Boxes of all classes suppress each other.")] = False
    multi_label: Annotated[bool, Parameter(help="A place may answer for several classes.")] = False

    def config(self) -> PredictConfig:
        """The limits as the library takes them; InputError for values out of range."""
        from pydantic import ValidationError

        from anchorite.predict import PredictConfig

        try:
            return PredictConfig(**asdict(self))
        except ValidationError as error:
            problem = error.errors()[0]
            flag = str(problem["loc"][0]).replace("_", "-")
            reason = problem["msg"].replace("Input should be", "must be")
            raise InputError(f"--{flag} {problem['input']}: {reason}") from None
