"""`Recipe`: everything that a run depends on besides the data, composed of the rooms' own configs."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from anchorite.anchors import AnchorSet
from anchorite.choices import CompileName, ModelSize, PrecisionName, ScoresUse
from anchorite.data import AugmentConfig, StoreMode
from anchorite.errors import InputError
from anchorite.evaluate import ValidationConfig
from anchorite.files import StrPath
from anchorite.loss import LossConfig
from anchorite.model import MAX_IMAGE_SIZE, check_source, default_anchors
from anchorite.plain_yaml import read_yaml_text, yaml_value
from anchorite.reading import one_line, printable, shorten
from anchorite.recipe_names import (
    PAIR,
    RENAMED_FIELDS,
    SQUARE,
    built_in_recipes,
    current_name,
    other_names,
    sorted_out,
    taken_over,
    with_current_names,
)
from anchorite.train.optim import EMAConfig, OptimizerConfig

DEFAULT_RECIPE = "small-data"
MAX_SEED = 1_000_000_000
_MOST_PROBLEMS, _LONGEST_NAME = 20, 200  # in the message on one recipe


class AnchorConfig(BaseModel):
    """Where the anchors come from."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    # Lists, as YAML has them, are taken for tuples.
    rows: Annotated[tuple[Annotated[tuple[float, ...], Field(strict=False)], ...], Field(strict=False)] | None = Field(
        None, description="a table of your own, in pixels"
    )
    refit: bool = Field(True, description="fit to the data when the recall falls under the threshold")
    recall_threshold: float = Field(0.98, ge=0, le=1, description="best possible recall under which anchors are fitted")


class Recipe(BaseModel):
    """A training run, apart from its data. Gains and rates are as written; derived values are printed by the run."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str = Field("default", description="name of the recipe")
    model: ModelSize = Field("n", description="size of the network")
    weights: str | None = Field(None, description="weights to start from: a .safetensors file, or a foreign checkpoint")
    backbone: str | None = Field(None, description="of transformers: hf:NAME, or hf-config:NAME with random weights")
    image_size: int = Field(640, ge=32, le=MAX_IMAGE_SIZE, description="longer side of the network input in pixels")
    epochs: int = Field(100, ge=1, description="passes over the training images")
    batch: int | Literal["auto"] = Field(16, description="images per batch, on all ranks together; auto: what fits")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of weights and augmentation")
    val_share: float = Field(0.0, ge=0, lt=1, description="share of the training images that become a split val")
    background_ok: bool = Field(False, description="that most training images have no labels is intended")
    ignore_classes: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="classes whose boxes are ignored regions, neither objects nor background"
    )
    scores: ScoresUse = Field("ignore", description="scores beside boxes: ignore, or as-weights of the objects")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: PrecisionName = Field("auto", description="auto, fp32, bf16 or fp16")
    compile: CompileName = Field("auto", description="torch.compile for the step: auto (by device), on or off")
    deterministic: bool = Field(False, description="the same bits every time on a GPU, too; slower there")
    workers: int | None = Field(None, ge=0, description="loader processes; empty: chosen by the machine")
    worker_timeout_s: float = Field(
        120.0, gt=0, le=86_400, description="seconds for a batch, after which a loader process counts as hung"
    )
    rank_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="seconds that a rank may keep the others waiting before it counts as lost"
    )
    sync_batch_norm: bool = Field(False, description="batch normalisation over the batch of all ranks; CUDA only")
    store: Literal["auto", "device", "ram", "disk", "none"] = Field("auto", description="where decoded images are kept")
    multi_scale: float = Field(0.0, ge=0, le=0.5, description="batches of sizes 1 - x to 1 + x of image_size")
    patience: int = Field(0, ge=0, description="stop after so many epochs without a better mAP; 0 never")
    checkpoint_minutes: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="a checkpoint within an epoch after so long; 0: at its end alone"
    )
    class_bias_from_data: bool = Field(True, description="start class biases from the classes' frequencies")
    anchors: AnchorConfig = AnchorConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()
    validation: ValidationConfig = ValidationConfig()

    @field_validator("weights", "backbone")
    @classmethod
    def _none_if_empty(cls, source: str | None, info: ValidationInfo) -> str | None:
        return check_source(source) if source and info.field_name == "backbone" else source or None

    @field_validator("image_size", mode="before")
    @classmethod
    def _is_one_side(cls, image_size: Any) -> Any:
        if isinstance(image_size, list | tuple) or (isinstance(image_size, str) and PAIR.fullmatch(image_size)):
            raise ValueError(SQUARE)
        return image_size

    @field_validator("batch", mode="before")
    @classmethod
    def _is_a_number_or_auto(cls, batch: Any) -> Any:
        if batch != "auto" and not (isinstance(batch, int) and not isinstance(batch, bool)):
            raise ValueError("must be a whole number, or auto for what fits into memory")
        if batch != "auto" and batch < 1:
            raise ValueError("must be greater than or equal to 1")
        return batch

    @field_validator("image_size")
    @classmethod
    def _fits_the_strides(cls, image_size: int, info: ValidationInfo) -> int:
        """The coarsest map must cover the input exactly; refused here, before any image is read."""
        if "model" in info.data:  # else the model's own error is reported
            stride = default_anchors(info.data["model"]).strides[-1]
            if image_size % stride:
                below, above = image_size // stride * stride, -(-image_size // stride) * stride
                choice = f"{below} or {above}" if below else f"{above}"
                raise ValueError(
                    f"must be a multiple of {stride}, the coarsest stride of model {info.data['model']}; take {choice}"
                )
        return image_size

    @field_validator("anchors")
    @classmethod
    def _fit_the_levels(cls, anchors: AnchorConfig, info: ValidationInfo) -> AnchorConfig:
        """A table of anchors must be one for the model's levels; InputError is a ValueError, which pydantic reports."""
        if "model" in info.data and anchors.rows is not None:
            AnchorSet.from_rows(anchors.rows, default_anchors(info.data["model"]).strides)
        return anchors

    @property
    def batch_size(self) -> int:
        """`batch` as a number, which it is in every run: "auto" is replaced when one starts."""
        assert self.batch != "auto", "with_fitting_batch chooses it"
        return self.batch

    @property
    def image_store(self) -> StoreMode:
        """Where images are stored that the CPU reads: those of validation, and of training unless it is "device"."""
        return "auto" if self.store == "device" else self.store

    def anchor_table(self, strides: Sequence[int]) -> AnchorSet | None:
        """The recipe's own anchors, or None."""
        return None if self.anchors.rows is None else AnchorSet.from_rows(self.anchors.rows, strides)

    def to_yaml(self) -> str:
        """The whole recipe as YAML that `load_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(
    source: StrPath | None = None,
    overrides: Mapping[str, Any] | None = None,
    flags: Collection[str] = (),
    **fields: Any,
) -> Recipe:
    """The recipe of a built-in name or a YAML file, with overrides by dotted name ("loss.label_smoothing": 0.1).

    flags: the overrides that the user gave by a flag of their own name, not by --set; fields: more overrides, as in
    epochs=50. Raises InputError naming the file, line or flag, the value and, for an unknown key, the nearest known
    one.
    """
    if not isinstance(overrides, Mapping | None):
        raise InputError(
            f'load_recipe: overrides map a field to its value, as in {{"epochs": 50}}; got {shorten(overrides)}'
        )
    return read_recipe(source, {**(overrides or {}), **fields}, flags)[0]


def read_recipe(
    source: StrPath | None = None, overrides: Mapping[str, Any] | None = None, flags: Collection[str] = ()
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe as `load_recipe` returns it, and sentences on how it was read: one for each name of a file of the
    original family's hyperparameters, which is recognised by its names, and for each earlier name of a field.
    """
    if not isinstance(source, str | os.PathLike | None):
        raise InputError(
            f"recipe {shorten(source)}: give the name of a built-in recipe or the path of a file; fields are set by "
            'load_recipe(NAME, {"epochs": 50})'
        )
    source, overrides, built_in = os.fspath(source or DEFAULT_RECIPE), overrides or {}, built_in_recipes()
    if source in built_in:
        text, where = built_in[source], f"recipe {source}"
    elif Path(source).is_file():
        text, where = read_yaml_text(Path(source)), source
    else:
        known = f"built in are {', '.join(built_in)}{_suggest(source, list(built_in))}"
        raise InputError(f"--recipe {source}: neither a file nor a built-in recipe; {known}")
    content = yaml_value(text, where)
    if not isinstance(content, dict | None):
        raise InputError(f"{where}:1: a recipe is a mapping of names to values, not {type(content).__name__}")

    def in_file(name: str) -> str:
        return f"{where}{_line_of(text, name)}: {name}"

    values, old_names = with_current_names(_number_like(content or {}))
    sources, mixed = {current_name(name): in_file(name) for name in old_names}, ""
    notes = [f"{in_file(name)} is now called {current_name(name)}" for name in old_names]
    renamed = [name for name in overrides if current_name(name) != name]
    notes += [f"--set {name}: this field is now called {current_name(name)}" for name in renamed]
    theirs, ours = sorted_out(values, Recipe.model_fields)
    if theirs and ours:
        mixed = (
            f"\n{where}: names of another trainer's hyperparameters ({', '.join(theirs)}) beside fields of a recipe "
            f"({', '.join(ours)}): a file is read as one or the other; rename theirs, or give ours by flags or --set"
        )
    elif theirs:
        fields, told = taken_over(values, overrides)
        heading = (
            f"recipe {one_line(where)}: hyperparameters of another trainer, {len(values)} names; what they leave open "
            "has the defaults of docs/recipes.md. They are taken so:"
        )
        given, values, notes = values, {"name": printable(Path(where).stem, 100)}, [heading, *told, *notes]
        for name, field in fields.items():
            _set_by_dotted_name(values, field, given[name])
            sources[field] = in_file(name)
    elif source in built_in and overrides.get("weights"):
        values.pop("model", None)  # its default; a run then takes the size that the weights have
    return _changed(values, overrides, where, text, flags, sources, mixed), tuple(notes)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with some of its fields set anew, by dotted name; raises what `load_recipe` raises."""
    return _changed(recipe.model_dump(mode="json"), settings, f"recipe {recipe.name}")


def _changed(
    values: dict[str, Any],
    overrides: Mapping[str, Any],
    where: str,
    text: str = "",
    flags: Collection[str] = (),
    sources: Mapping[str, str] = MappingProxyType({}),
    hint: str = "",
) -> Recipe:
    """The recipe of nested values, which were read from `text`, and overrides by dotted name; InputError with a line on
    each problem.

    sources: where and under which other name the file sets a field, for messages; hint: added to the faults of a file.
    """
    named = dict(sources)
    for name, value in overrides.items():
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        _set_by_dotted_name(values, current_name(name), value)
        named[current_name(name)] = f"--{name.replace('_', '-')}" if name in flags else f"--set {name}"
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    lines = []
    for problem in problems[:_MOST_PROBLEMS]:
        name = printable(".".join(str(part) for part in problem["loc"] if isinstance(part, str)), _LONGEST_NAME)
        below = (source for field, source in named.items() if field.startswith(f"{name}."))
        source = named.get(name) or next(below, f"{where}{_line_of(text, name)}: {name}")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: no such recipe field{suggest_field(name)}")
            continue
        wanted = str(problem["msg"]).replace("Input should be", "must be")
        if problem["type"] == "value_error":
            wanted = str(problem["ctx"]["error"])
        elif problem["type"] == "model_type":
            fields = ", ".join(field for field in field_names() if field.startswith(f"{name}."))
            wanted = f"this is a group of settings; set them one by one: {fields}"
        lines.append(f"{source}: {wanted} (got {shorten(problem['input'])})")
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    raise InputError("\n".join(lines) + hint)


def parse_setting(setting: str) -> tuple[str, Any]:
    """Name and value of a `--set name=value`; the value is read as YAML."""
    name, sign, value = setting.partition("=")
    if not sign or not name.strip():
        raise InputError(f"--set {shorten(setting)}: write name=value, such as --set loss.label_smoothing=0.1")
    return name.strip(), _number_like(yaml_value(value, f"--set {name.strip()}"))


def _number_like(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if isinstance(value, list):
        return [_number_like(item) for item in value]
    if isinstance(value, dict):
        return {key: _number_like(item) for key, item in value.items()}
    return value


def _set_by_dotted_name(values: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {name}: {group} is a single value, not a group{suggest_field(name)}")
        values = inner
    values[last] = value


def by_dotted_name(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings, such as a recipe's `model_dump`, as one mapping by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= by_dotted_name(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def field_names() -> list[str]:
    """Dotted names of all fields."""
    return list(by_dotted_name(Recipe().model_dump()))


def suggest_field(name: str) -> str:
    """What may be meant by a name that is no field, as the end of a message: a field's own last part, the name that
    other trainers have for one, or the nearest spelling; empty when nothing is like it.
    """
    known, last = field_names(), name.rsplit(".", 1)[-1].lower().replace("-", "_")
    if name in RENAMED_FIELDS:
        return f"; it is now called {RENAMED_FIELDS[name]}, which is set as well"
    if other := other_names().get(last):
        without = f"; nothing here does what {last} does elsewhere: {other.note}"
        return f"; did you mean {other.field}?" if other.field else without
    same = [full for full in known if full.rsplit(".", 1)[-1] == last]
    return f"; did you mean {' or '.join(same)}?" if same else _suggest(name, known)


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _line_of(text: str, name: str) -> str:
    """ ":LINE" of the last part of a dotted name in a YAML text, or an empty string."""
    last = name.rsplit(".", 1)[-1]
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*{re.escape(last)}\s*:", line):
            return f":{number}"
    return ""
