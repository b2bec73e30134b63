"""What is wrong with the samples as a whole, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_tuning.data.audit.collect import PARTS, Audit
from lightning_tuning.data.audit.faults import KINDS, Kind, Severity

_NAMED = 3
_LONGEST = 60


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        severity: ``error`` or ``warning``.
        text: What, where, and what to do.
    """

    severity: Severity
    text: str


def find(audit: Audit) -> list[Finding]:
    """All findings, errors first."""
    found = [_of_kind(audit, name, kind) for name, kind in KINDS.items()]
    findings = [finding for finding in found if finding is not None] + _empty_classes(audit)
    return sorted(findings, key=lambda finding: finding.severity != "error")


def shown(text: str) -> str:
    """A name in one line that every terminal can print, its middle left out if it is long.

    Example:
        >>> shown("a\\nb" + 80 * "x")
        'a\\\\nbxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'
    """
    text = text if text.isprintable() else repr(text)[1:-1]
    half = (_LONGEST - 3) // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[-half:]}"


def _first(texts: Sequence[str], separator: str = ", ") -> str:
    """The first of several texts, and how many more there are."""
    more = len(texts) - _NAMED
    return separator.join(texts[:_NAMED]) + (f"{separator.strip(', ')} and {more} more" if more > 0 else "")


def _of_kind(audit: Audit, name: str, kind: Kind) -> Finding | None:
    indices = audit.with_fault(name)
    if not indices:
        return None
    count = f"1 sample {kind.one}" if len(indices) == 1 else f"{len(indices)} samples {kind.many}"
    if name == "leak":
        examples = _first(_copies(audit, indices))
    elif KINDS[name].severity == "error":
        examples = _first([f"{shown(audit.keys[i])}: {shown(_reason(audit, i, name))}" for i in indices], "; ")
    else:
        examples = _first([shown(audit.keys[i]) for i in indices])
    return Finding(kind.severity, f"{count}: {examples}. {kind.remedy}")


def _reason(audit: Audit, index: int, name: str) -> str:
    """The first sentence of why."""
    return next(fault.reason for fault in audit.faults[index] if fault.kind == name).partition(". ")[0]


def _copies(audit: Audit, indices: list[int]) -> list[str]:
    """For each content one sample of each part that it is in: ``train/a.png = val/b.png``."""
    places: dict[int, dict[int, str]] = {}
    for index in indices:
        part = int(audit.parts[index])
        places.setdefault(int(audit.copies[index]), {}).setdefault(part, f"{shown(audit.keys[index])} ({PARTS[part]})")
    return [" = ".join(names for _, names in sorted(found.items())) for found in places.values()]


def _empty_classes(audit: Audit) -> list[Finding]:
    counts = audit.counts()
    if counts is None:
        return []
    what = "samples" if audit.pixels is None else "pixels"
    findings = []
    for part, name in enumerate(PARTS):
        empty = [shown(audit.class_names[k]) for k in (counts[part] == 0).nonzero()[0].tolist()]
        if not empty or not (audit.parts == part).any():
            continue
        have = f"1 class has no usable {what}" if len(empty) == 1 else f"{len(empty)} classes have no usable {what}"
        if name == "train":
            remedy = "It cannot be learnt: add some, or make the other parts smaller."
        else:
            remedy = f"Nothing is measured there: make {name} larger, or add some."
        findings.append(
            Finding("error" if name == "train" else "warning", f"{have} in {name}: {_first(empty)}. {remedy}")
        )
    return findings
