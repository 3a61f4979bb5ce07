"""What the fields of a recipe are made of."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Unit = Literal["steps", "epochs", "min", "never"]
_UNITS: dict[str, Unit] = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "min": "min",
    "minutes": "min",
}


def _check_plain(value: Any) -> Any:
    """Refuse what would not come back from a recipe file as it went in."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, list | tuple):
        return [_check_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _check_plain(item) for key, item in value.items()}
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise ValueError(f"a {kind} cannot be written to a recipe file: use a text or a number")  # noqa: TRY004 - pydantic's
    return value


def _check_expression(expression: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from None
    return expression


def _check_renaming(text: str) -> str:
    expression, equals, replacement = text.partition("=")
    if not equals or not expression:
        raise ValueError(f"{text!r}: write it as 'REGEX=REPLACEMENT'")
    try:
        re.compile(f"(?:{_check_expression(expression)})|").sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ValueError(f"{text!r}: the replacement does not fit the expression: {error}") from None
    return text


# Strict: true is not 1, and "5" is not 5.
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=True)]
UnitFloat = Annotated[float, Field(ge=0, le=1, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Expression = Annotated[str, AfterValidator(_check_expression)]
"""A regular expression."""
Renaming = Annotated[str, AfterValidator(_check_renaming)]
"""``REGEX=REPLACEMENT``, as :func:`re.sub` takes them; the expression holds no ``=``."""


PlainValue = Annotated[Any, AfterValidator(_check_plain)]
Options = dict[str, PlainValue]
"""Arguments for user code: text, finite numbers, booleans, and lists and tables of them."""


class Part(BaseModel):
    """A table of a recipe: frozen, and without room for keys nobody asked for."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


@dataclass(frozen=True)
class _Operational:
    """Marks a field that does not change what is learnt."""


OPERATIONAL = _Operational()
"""``Annotated[..., OPERATIONAL]``: may change when a run is resumed. All other fields are semantic."""


def is_operational(field: FieldInfo) -> bool:
    """Whether a field was declared with :data:`OPERATIONAL`."""
    return OPERATIONAL in field.metadata


@dataclass(frozen=True)
class Frequency:
    """How often something happens: ``"1000 steps"``, ``"0.5 epochs"``, ``"10 min"`` or ``"never"``."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: Any) -> Frequency:
        """Read the written form.

        Raises:
            ValueError: it is not of that form.
        """
        if isinstance(text, Frequency):
            return text
        if text == "never":
            return cls(0, "never")
        form = r"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z]+)\s*"
        match = re.fullmatch(form, text) if isinstance(text, str) else None
        unit = _UNITS.get(match[2]) if match else None
        if match is None or unit is None:
            raise ValueError("write it as '1000 steps', '1 epoch', '10 min' or 'never'")
        amount = float(match[1])
        if amount <= 0 or (unit == "steps" and amount != int(amount)):
            raise ValueError("must be a whole number of steps, or a positive number of epochs or minutes")
        return cls(amount, unit)

    def __str__(self) -> str:
        if self.unit == "never":
            return "never"
        unit = self.unit.removesuffix("s") if self.amount == 1 else self.unit
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {unit}"  # the shortest text that reads back as the same number

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )


def _read_steps(value: Any) -> Any:
    """A whole number counts steps."""
    return f"{value} steps" if type(value) is int else value


def _check_counted(span: Frequency) -> Frequency:
    if span.unit not in ("steps", "epochs"):
        raise ValueError(f"{str(span)!r} should be a number of steps, or of epochs as '2 epochs'")
    return span


Span = Annotated[Frequency, BeforeValidator(_read_steps), AfterValidator(_check_counted)]
"""A stretch of training: so many steps, or ``"2 epochs"``."""
