"""What can be wrong with a sample."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        severity: ``error`` if training or measuring with such samples is wrong, ``warning`` if it may be meant.
        one: What is said of one sample that has it.
        many: What is said of several.
        remedy: What to do, as sentences.
    """

    severity: Severity
    one: str
    many: str
    remedy: str


class Fault(NamedTuple):
    """What is wrong with one sample.

    Attributes:
        kind: Its key in ``KINDS``.
        reason: What is wrong with just this sample.
    """

    kind: str
    reason: str


KINDS = {
    "unreadable": Kind(
        "error",
        "cannot be used",
        "cannot be used",
        "Mend or remove them: audit.csv says what is wrong with each and what helps.",
    ),
    "not_finite": Kind(
        "error",
        "holds NaN or infinite numbers",
        "hold NaN or infinite numbers",
        "Fill them in, or remove the samples: one of them makes all weights NaN.",
    ),
    "label": Kind("error", "has a label out of range", "have a label out of range", "Mend the labels."),
    "mask": Kind(
        "error",
        "has a mask that does not fit",
        "have a mask that does not fit",
        "Give each pixel a class id below num_classes, or the one that is ignored.",
    ),
    "leak": Kind(
        "error",
        "is in two parts",
        "are in two parts",
        "What is measured was trained on: keep one copy, or give all copies the same group.",
    ),
    "contradiction": Kind(
        "warning",
        "is equal to another, but not its label",
        "are equal to others, but not their labels",
        "Look which label is right.",
    ),
    "copy": Kind(
        "warning",
        "is equal to another of its part",
        "are equal to others of their part",
        "Each counts as often as it is there: keep one, unless that is meant.",
    ),
    "one_colour": Kind(
        "warning",
        "is an image of one colour",
        "are images of one colour",
        "Look whether they show what their label says.",
    ),
    "empty": Kind("warning", "is an empty text", "are empty texts", "Remove them, or fill them in."),
    "narrow": Kind(
        "warning",
        "is an image more than four times as long as wide",
        "are images more than four times as long as wide",
        "Look at what a square of them shows.",
    ),
}
"""Worst first."""
NARROW = 4
"""The ratio of an image's sides above which it is ``narrow``."""
NO_LABEL = -1
"""The class id of a training sample that has none."""
