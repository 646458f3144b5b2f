"""The search space: recipe fields by dotted name, each with a range or a list of choices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from anchorite.errors import InputError
from anchorite.files import StrPath
from anchorite.plain_yaml import read_yaml_text, yaml_value
from anchorite.recipe_names import current_name

if TYPE_CHECKING:
    import optuna


class Range(BaseModel):
    """Numbers from low to high, both included; whole ones where both are. log: equal ratios are equally likely."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low must be under high, not {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"with log, low must be above 0, not {self.low:g}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are allowed."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (isinstance(value, int) or not self.is_whole)

    def ends(self) -> tuple[Any, ...]:
        """The extreme values, to validate them with a recipe."""
        return (self.low, self.high)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """A value for a trial, chosen by its sampler."""
        suggest: Any = trial.suggest_int if self.is_whole else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)


class Choice(BaseModel):
    """One of some values: numbers, names, yes and no."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    choices: list[bool | int | float | str] = Field(min_length=2)

    def holds(self, value: Any) -> bool:
        """Whether a value is among the choices."""
        return value in self.choices

    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return tuple(self.choices)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """A value for a trial, chosen by its sampler."""
        return trial.suggest_categorical(name, self.choices)


Space = dict[str, Range | Choice]
SPACE: TypeAdapter[Space] = TypeAdapter(
    dict[
        str,
        Annotated[
            Annotated[Range, Tag("range")] | Annotated[Choice, Tag("choices")],
            Discriminator(lambda given: "choices" if isinstance(given, dict) and "choices" in given else "range"),
        ],
    ]
)


def default_space() -> Space:
    """The default space: learning rate, weight decay, gains, label smoothing and strength of augmentation."""
    return {
        "optimizer.lr": Range(low=0.005, high=0.05, log=True),
        "optimizer.weight_decay": Range(low=0.0001, high=0.005, log=True),
        "loss.box_gain": Range(low=0.03, high=0.3, log=True),
        "loss.class_gain": Range(low=0.5, high=10.0, log=True),
        "loss.label_smoothing": Range(low=0.0, high=0.1),
        "augment.scale": Range(low=0.1, high=0.9),
        "augment.mosaic": Range(low=0.0, high=1.0),
        "augment.value": Range(low=0.0, high=0.6),
    }


def read_space(path: StrPath) -> Space:
    """A space from YAML: `name: {low: 0.01, high: 0.1, log: true}` or `name: {choices: [...]}`; InputError by name."""
    values = yaml_value(read_yaml_text(Path(path)), str(path))
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: a space is a mapping of recipe fields to {{low, high}} or {{choices}}")
    try:
        space = SPACE.validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name, _, *fields = map(str, problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {', '.join([name, *fields])}: {reason}") from None
    return {current_name(name): dimension for name, dimension in space.items()}
