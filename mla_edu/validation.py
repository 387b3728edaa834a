"""What every configuration class shares: checked numbers, and errors of one line."""

import difflib
import re
import reprlib
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def _even(width: int) -> int:
    if width % 2:
        raise ValueError("expected an even number, since rotation turns pairs of numbers")
    return width


def _countable(number: int) -> int:
    if number > MOST:  # no `le` of pydantic's, which would replace that of a field
        raise ValueError(f"expected less than or equal to {MOST}")
    return number


# What Python calls by names that a reader of YAML or JSON does not know.
KINDS = {"tuple_type": "expected a list", "model_type": "expected a mapping of names to values"}

MOST = 2**63 - 1  # what a tensor can count; a product of a few such numbers is still a float
FEW = 3  # unknown names that an error tells one by one
LONGEST = 400  # letters of a value or a name that an error repeats

# Strict: neither True nor "8" nor 8.0 is the integer 8.
PositiveInt = Annotated[int, Field(strict=True, gt=0), AfterValidator(_countable)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0), AfterValidator(_countable)]
EvenPositiveInt = Annotated[PositiveInt, AfterValidator(_even)]
EvenNonNegativeInt = Annotated[NonNegativeInt, AfterValidator(_even)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0)]
NonNegativeNumber = Annotated[Number, Field(ge=0)]
Flag = Annotated[bool, Field(strict=True)]


def shown(value: object) -> str:
    """``repr`` of a bad value in at most a line, however long or deep it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 3, 10, 10
    short.maxstring, short.maxother, short.maxlong = 200, 200, 60
    try:
        text = " ".join(short.repr(value).split("\n"))
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    except ValueError:  # Python writes no integer of more digits
        return "an integer of more than 4300 digits"


def readable(name: object) -> str:
    """A name of a file or a tensor in at most a line: ``shown`` where it is long, or has letters that screens obey."""
    text = str(name)
    return text if text.isprintable() and len(text) <= LONGEST else shown(text)


def kind_of(value: object) -> str:
    """What a reader of JSON or YAML calls a value."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), f"a {type(value).__name__}")


def check_flag(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is True or False: ``"no"`` would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}; expected True or False")


def check_integer(name: str, value: object, lowest: int = 1, highest: int | None = None) -> int:
    """``value`` where it is an integer from ``lowest`` to ``highest``; True and False are none.

    Raises:
        ValueError: it is not; names the argument, its value and the range.
    """
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= lowest
        and (highest is None or value <= highest)
    ):
        return value
    expected = "a positive integer" if lowest == 1 else f"an integer of at least {lowest:,}"
    if highest is not None:
        expected = f"an integer from {lowest:,} to {highest:,}"
    raise ValueError(f"{name} is {shown(value)}; expected {expected}")


def check_device(device: object) -> None:
    """Raise an error unless tensors can lie on ``device``; None is torch's default.

    Raises:
        TypeError: it is neither a ``torch.device`` nor its name or number.
        ValueError: there is no such device.
    """
    if device is None:
        return
    import torch

    if isinstance(device, bool) or not isinstance(device, torch.device | str | int):
        raise TypeError(f"device is {shown(device)}; expected a torch.device or its name, such as 'cpu' or 'cuda:0'")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(f"device is {shown(device)}; expected one that is there: {reason}") from None


class Checked(BaseModel):
    """Immutable, no unknown names; a bad value is one ``ValueError`` that names argument, value and expectation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # type checkers and editors see pydantic's own signature, every field by its name

        def __init__(self, **values: Any):
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ValueError(f"{type(self).__name__}: {describe(error, type(self))}") from None

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError:
                kind = type(self).__name__
                raise ValueError(f"{name} of a {kind} cannot be changed; expected a new {kind}") from None


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """A pydantic error in one line: each argument, the value it was given, and what was expected.

    Args:
        error: of pydantic.
        model: what was to be made; then an unknown name is told with the nearest one that there is.
    """
    lines, unknown = [], 0
    for fault in error.errors(include_url=False, include_context=False):
        unknown += fault["type"] == "extra_forbidden"
        if fault["type"] == "extra_forbidden" and unknown > FEW:
            continue
        message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        message = KINDS.get(fault["type"], message)
        if fault["type"] == "union_tag_invalid":
            told = re.search(r"Input tag (.*) found using '(.*)' .* expected tags: (.*)", message)
            message = f"{told[2]} is {told[1]}; expected one of {told[3]}" if told else message
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden" and model is not None:
            message = _nearest(fault["loc"], model)
        whole = fault["type"] == "missing" or isinstance(fault["input"], dict)
        message = "missing" if fault["type"] == "missing" else message
        given = name and (f"{name}: " if whole else f"{name} is {shown(fault['input'])}; ")
        lines.append(given + message)
    return "; ".join(lines + [f"{unknown - FEW} more names that are none"] * (unknown > FEW))


def _nearest(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What may have been meant by a name that is none."""
    *path, name = location
    for part in path:
        candidates = [model.model_fields[str(part)].annotation] if str(part) in model.model_fields else []
        inner = [kind for each in candidates for kind in (each, *get_args(each))]
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    known = sorted(model.model_fields)
    begun = [each for each in known if each.startswith(str(name))]
    near = begun or difflib.get_close_matches(str(name), known, n=1)
    return f"no such name; did you mean {near[0]}?" if near else f"no such name; expected one of {', '.join(known)}"
