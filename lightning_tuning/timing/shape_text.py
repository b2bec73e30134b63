"""Shapes of schedules as users write them: ``"cosine"``, ``"step(30ep, gamma=0.2)"``, ``"polynomial(power=3)"``."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields
from typing import Any

from lightning_tuning.errors import InvalidValueError, check_choice, did_you_mean

from .shapes import SHAPES, MultiStep, Shape

_FORM = re.compile(r"(\w+)\s*(?:\(([^()]*)\))?")


def parse_shape(text: str, argument: str = "shape") -> Shape:
    """The shape that a text describes: its name and, in brackets, its settings; the first may go without its name.

    Args:
        text: Such as ``cosine`` or ``step(30ep, gamma=0.2)``.
        argument: What it is called in messages.

    Raises:
        InvalidValueError: It describes none.

    Example:
        >>> parse_shape("multi_step(30ep, 60ep, gamma=0.2)")
        MultiStep(at=('30ep', '60ep'), gamma=0.2)
        >>> parse_shape("cosine(ends=1%)")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: shape is 'cosine(ends=1%)', but cosine has no setting 'ends'; did \
you mean 'end'? It has: end.
    """
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None and isinstance(text, str) and text.count("(") != text.count(")"):
        raise InvalidValueError(f"{argument} is {text!r}, whose brackets do not match; write it as 'cosine(end=1%)'.")
    name = found[1] if found else text
    check_choice(argument, name, SHAPES, "one with its settings as in 'cosine(end=1%)'")
    shape = SHAPES[name]
    names = [field.name for field in fields(shape)]
    items = [item.strip() for item in ((found[2] if found else None) or "").split(",") if item.strip()]
    bare = [item for item in items if "=" not in item]
    settings: dict[str, Any] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if equals and (key not in names or key == "at"):
            has = f"It has: {', '.join(names)}." if names else "It has none."
            raise InvalidValueError(
                f"{argument} is {text!r}, but {shape.name} has no setting {key!r}{did_you_mean(key, names)} {has}"
            )
        if equals and key in settings:
            raise InvalidValueError(f"{argument} is {text!r}, which has {key} twice; write it once.")
        if equals:
            settings[key] = _number_or_text(value)
    if shape is MultiStep:
        return MultiStep(at=tuple(bare), **settings)
    if bare and (len(bare) > 1 or not names or names[0] in settings):
        raise InvalidValueError(
            f"{argument} is {text!r}; write the settings of {shape.name} by name: {', '.join(names) or 'it has none'}."
        )
    return shape(**{**dict(zip(names, map(_number_or_text, bare), strict=False)), **settings})


def _number_or_text(text: str) -> str | float:
    if text.isdecimal():
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text
