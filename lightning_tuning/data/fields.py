"""Values of any type as the text that targets and groups are read from."""

from __future__ import annotations

from lightning_tuning.errors import InvalidValueError


def as_field(value: object, what: str) -> str:
    """A number or text as text; True and False as 1 and 0.

    Args:
        value: What was read.
        what: What messages call it.

    Raises:
        InvalidValueError: The value is something else, blank, or NaN.

    Example:
        >>> [as_field(value, "label") for value in (3, 0.5, "cat", True)]
        ['3', '0.5', 'cat', '1']
        >>> as_field(None, "pets.tar/7.json: 'label'")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: pets.tar/7.json: 'label' is None; it must be a number or text.
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float, str)) and value == value and str(value).strip():  # NaN is not equal to itself
        return str(value)
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise InvalidValueError(f"{what} is {shown}; it must be a number or text.")
