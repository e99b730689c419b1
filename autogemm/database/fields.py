"""Typed getters over plain data; what they raise knows the path to the value at fault."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from autogemm.strategies.base import ParamValue

Fields = Mapping[str, object]
T = TypeVar("T")
D = TypeVar("D")


class _Mark:
    def __init__(self, words: str) -> None:
        self.words = words


MISSING: Final = _Mark("nothing")
TWICE: Final = _Mark("the key twice")
"""Stands for the values of a key that a mapping holds twice: no getter accepts it."""


class Invalid(Exception):
    """A value that is not what it should be, and the steps that lead to it."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def under(self, *path: str | int) -> Invalid:
        """The same complaint, seen from further out."""
        return Invalid(self.message, *path, *self.path)

    def __str__(self) -> str:
        """``entries[17].choices.highest: expected …``."""
        where = "".join(f"[{s}]" if isinstance(s, int) else f".{_step(s)}" for s in self.path)
        return f"{where.removeprefix('.')}: {self.message}" if where else self.message


def unexpected(expected: str, value: object, *path: str | int) -> Invalid:
    """The complaint that ``value`` is not what was expected."""
    return Invalid(f"expected {expected}, found {found(value)}", *path)


def found(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, _Mark):
        return value.words
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def mapping(value: object, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Fields:
    """``value`` as a mapping that has no other keys than these and all the required ones."""
    legal = (*required, *optional)
    if not isinstance(value, Mapping):
        raise unexpected(f"a mapping with {', '.join(legal)}", value)
    for key in required:
        if key not in value:
            raise unexpected("a value", MISSING, key)
    if not value.keys() <= set(legal):
        key = next(key for key in value if key not in legal)
        raise Invalid(f"unknown key; expected {', '.join(legal)}", key)
    return value


def nested(fields: Fields, key: str, read: Callable[[object], T]) -> T:
    """``read(fields[key])``, its complaints prefixed by the key."""
    try:
        return read(fields.get(key, MISSING))
    except Invalid as error:
        raise error.under(key) from None


def optional(fields: Fields, key: str, read: Callable[[object], T], default: D) -> T | D:
    """``nested(fields, key, read)``, or the default where the key is left out."""
    return nested(fields, key, read) if key in fields else default


def those_given(fields: Fields, readers: Mapping[str, Callable[[object], Any]]) -> dict[str, Any]:
    """What those of the fields spell that have a reader, complaints prefixed by the key."""
    read = {}
    for key, value in fields.items():
        if key in readers:
            try:
                read[key] = readers[key](value)
            except Invalid as error:
                raise error.under(key) from None
    return read


def each(value: object, read: Callable[[object], T]) -> list[T]:
    """``read`` of every item of a list, its complaints prefixed by the position."""
    if not isinstance(value, list):
        raise unexpected("a list", value)
    items: list[T] = []
    for item in value:
        try:
            items.append(read(item))
        except Invalid as error:
            raise error.under(len(items)) from None
    return items


def each_value(value: object, read: Callable[[object], T]) -> dict[str, T]:
    """``read`` of every value of a mapping, its complaints prefixed by the key."""
    if not isinstance(value, Mapping):
        raise unexpected("a mapping", value)
    return {key: nested(value, key, read) for key in value}


# ------------------------------------------------------------------------------- scalars


def integer(minimum: int) -> Callable[[object], int]:
    """A reader of integers from ``minimum`` on."""

    def read(value: object) -> int:
        if type(value) is int and value >= minimum:
            return value
        raise unexpected(f"an integer of at least {minimum}", value)

    return read


def positive(value: object) -> float:
    """A finite number above 0."""
    if isinstance(value, (int, float)) and 0 < value < math.inf and type(value) is not bool:
        return float(value)
    raise unexpected("a positive number", value)


def not_negative(value: object) -> float:
    """A finite number of at least 0."""
    if isinstance(value, (int, float)) and 0 <= value < math.inf and type(value) is not bool:
        return float(value)
    raise unexpected("a number of at least 0", value)


def parameter(value: object) -> ParamValue:
    """A strategy's parameter: true, false, text or a finite number."""
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, str) and value:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise unexpected("a number, text, true or false", value)


def text(value: object) -> str:
    """Text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise unexpected("text", value)


def date(value: object) -> str:
    """A day, YYYY-MM-DD."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        try:
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            pass
    raise unexpected("a date as YYYY-MM-DD", value)


def one_of(words: Iterable[str]) -> Callable[[object], str]:
    """A reader of one out of several words."""
    legal = tuple(words)

    def read(value: object) -> str:
        if isinstance(value, str) and value in legal:
            return value
        raise unexpected(f"one of {', '.join(legal)}", value)

    return read


def _step(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,60}", key) else found(key)
