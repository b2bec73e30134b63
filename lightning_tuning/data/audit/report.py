"""The report of an audit: a table of all samples, and a summary."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_tuning.data.audit.collect import PARTS, Audit, label_text
from lightning_tuning.data.audit.faults import NO_LABEL
from lightning_tuning.data.audit.findings import find, shown

COLUMNS = ("key", "part", "label", "status", "reason", "height", "width", "duplicates")
BAD = ("unreadable", "not_finite", "label", "mask")
"""The faults for which a sample counts as bad."""


def write_report(audit: Audit, folder: Path) -> None:
    """Write ``audit.csv``, a row a sample, and ``audit.md``, the summary and a table of the classes.

    Args:
        audit: What was found.
        folder: An empty folder.
    """
    with open(folder / "audit.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(audit, index) for index in range(len(audit.keys)))
    lines = ["# Audit", "", *(f"- {line}" for line in summary(audit)), "", *_class_table(audit)]
    (folder / "audit.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8", errors="backslashreplace")


def summary(audit: Audit) -> list[str]:
    """At most 25 lines: how many samples there are, what is wrong with them, worst first, and what they are like."""
    parts = [f"{name} {(audit.parts == part).sum()}" for part, name in enumerate(PARTS)]
    unused = int((audit.parts < 0).sum())
    head = f"{len(audit.keys)} samples: {', '.join([*parts, *([f'in no part {unused}'] if unused else [])])}."
    findings = [f"{severity}: {text}" for severity, text in find(audit)]
    return [head, *findings, *_about_labels(audit), *_about_sizes(audit)]


def conclusion(audit: Audit, folder: Path) -> str:
    """The last line of the audit."""
    count = len(audit.keys)
    bad, leaks = len(audit.with_fault(*BAD)), len(audit.with_fault("leak"))
    facts = [f"{bad} of {count} samples {'is' if bad == 1 else 'are'} bad"] if bad else []
    if leaks:
        of = "" if bad else f" of {count} samples"
        facts.append(f"{leaks}{of} {'is' if leaks == 1 else 'are'} in two parts")
    empty = next((f.text for f in find(audit) if f.severity == "error" and "usable" in f.text), "")
    if empty:
        facts.append(empty.partition(" in train: ")[0] + " in train")
    return f"audit: {', '.join(facts) or f'no error in {count} samples'}; see {folder / 'audit.csv'}"


def _row(audit: Audit, index: int) -> list[str | int]:
    height, width = audit.sizes[index].tolist()
    part = int(audit.parts[index])
    faults = audit.faults.get(index, ())
    return [
        audit.keys[index],
        PARTS[part] if part >= 0 else "",
        label_of(audit, index),
        audit.severity(index) or "ok",
        "; ".join(fault.reason for fault in faults),
        height or "",
        width or "",
        int(audit.copies[index]) or "",
    ]


def label_of(audit: Audit, index: int) -> str:
    """A sample's target in words."""
    label = audit.labels[index]
    if audit.task == "multiclass":
        known = 0 <= label < len(audit.class_names)
        return audit.class_names[label] if known else "" if label == NO_LABEL else str(label)
    if audit.task == "multilabel":
        return "; ".join(name for name, value in zip(audit.class_names, label.tolist(), strict=False) if value)
    return label_text(label) if audit.task == "regression" else ""


def _about_labels(audit: Audit) -> list[str]:
    """A line for each part: the rarest and the commonest class, or the range of the values."""
    lines = []
    counts = audit.counts()
    for part, name in enumerate(PARTS):
        members = audit.members(part)
        if not len(members):
            continue
        if counts is not None:
            order = np.argsort(counts[part], kind="stable")
            rarest, commonest = (_amount(audit, counts[part], int(k)) for k in (order[0], order[-1]))
            lines.append(f"{name}: {len(audit.class_names)} classes, from {rarest} to {commonest}.")
        elif audit.task == "regression":
            values = audit.labels[members].reshape(len(members), -1)
            ranges = zip(audit.class_names, values.min(axis=0), values.mean(axis=0), values.max(axis=0), strict=False)
            texts = [f"{shown(of)} {low:.4g} to {high:.4g}, mean {mean:.4g}" for of, low, mean, high in ranges]
            lines.append(f"{name}: {'; '.join(texts[:3])}{'; ...' if len(texts) > 3 else ''}.")
    return lines


def _amount(audit: Audit, counts: np.ndarray, number: int) -> str:
    of_pixels = f"{counts[number] / max(counts.sum(), 1):.2%} of the pixels"
    return f"{counts[number] if audit.pixels is None else of_pixels} ({shown(audit.class_names[number])})"


def _about_sizes(audit: Audit) -> list[str]:
    sizes = audit.sizes[audit.sizes[:, 0] > 0]
    if not len(sizes):
        return []
    (low, narrow), (high, wide) = sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()
    ratios = sizes[:, 1] / np.maximum(sizes[:, 0], 1)
    return [
        f"Images: height {low} to {high}, width {narrow} to {wide}, width to height {ratios.min():.2f} to "
        f"{ratios.max():.2f}."
    ]


def _class_table(audit: Audit) -> Sequence[str]:
    counts = audit.counts()
    if counts is None:
        return []
    what = "Usable samples" if audit.pixels is None else "Pixels"
    lines = [f"## {what} of each class", "", f"| class | {' | '.join(PARTS)} |", "|---|---|---|---|"]
    for name, row in zip(audit.class_names, counts.T.tolist(), strict=True):
        escaped = shown(name).replace("|", "\\|")
        lines.append(f"| {escaped} | {' | '.join(map(str, row))} |")
    return lines
