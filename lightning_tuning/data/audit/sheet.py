"""A picture of the images to look at: equal ones side by side, odd ones, and some of each class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from lightning_tuning.data.audit.collect import PARTS, Audit
from lightning_tuning.data.audit.copies import members_of
from lightning_tuning.data.audit.findings import shown
from lightning_tuning.data.audit.look import is_pair
from lightning_tuning.data.audit.report import label_of

_COLUMNS = 8
_MOST_ROWS_OF_CLASSES = 10
_THUMBNAIL = 112
_CAPTION = 22
_BACKGROUND = 235
_SIDE, _GAP, _HEADING, _ROW = 1.25, 0.15, 0.25, 2.0
"""Of a cell, between cells, above a row, of a row: in inches."""


class Row(NamedTuple):
    """A row of the picture.

    Attributes:
        title: What its images have in common.
        indices: The images, at most ``_COLUMNS``.
    """

    title: str
    indices: list[int]


def save_sheet(audit: Audit, samples: Any, path: Path) -> bool:
    """Draw the images, each with its part, its name and its label or size. Masks are laid over them.

    Args:
        audit: What was found.
        samples: ``samples[index]`` reads one; those that are shown are read again.
        path: The PNG to write.

    Returns:
        Whether there are images: nothing is written for vectors and texts.
    """
    from matplotlib.figure import Figure  # here, so that nothing else waits for its import

    rows = choose_rows(audit)
    if not rows:
        return False
    width, height = _COLUMNS * (_SIDE + _GAP) + _GAP, len(rows) * _ROW + _GAP
    figure = Figure(figsize=(width, height))
    for line, row in enumerate(rows):
        bottom = height - (line + 1) * _ROW
        figure.text(
            _GAP / width, (bottom + _ROW - _HEADING) / height, row.title, fontsize=9, weight="bold", parse_math=False
        )
        for column, index in enumerate(row.indices):
            left = _GAP + column * (_SIDE + _GAP)
            axis = figure.add_axes((left / width, bottom / height, _SIDE / width, _SIDE / height))
            axis.imshow(_thumbnail(samples[index], len(audit.class_names)), vmin=0, vmax=255, cmap="gray")
            axis.set_title(_caption(audit, index), fontsize=6, pad=3, parse_math=False)
            axis.axis("off")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=110)
    return True


def choose_rows(audit: Audit) -> list[Row]:
    """Which images to show. Of those that cannot be read, none."""
    images = np.flatnonzero(audit.sizes[:, 0] > 0)
    if not len(images):
        return []
    rows = [
        *_pairs(audit, "leak", "equal, in two parts"),
        *_pairs(audit, "contradiction", "equal, with other labels"),
        *_pairs(audit, "copy", "equal, in one part"),
        *_few("mask does not fit", audit.with_fault("mask")),
        *_few("of one colour", audit.with_fault("one_colour")),
        *_few("narrow", audit.with_fault("narrow")),
    ]
    areas = audit.sizes[images].prod(axis=1, dtype=np.int64)
    if areas.min() < areas.max():
        order = images[np.argsort(areas, kind="stable")].tolist()
        half = _COLUMNS // 2
        rows.append(Row("smallest and largest", [*order[:half], *order[half:][-half:]]))
    return [*rows, *_some_of_each(audit, images)]


def _few(title: str, indices: Sequence[int]) -> Iterator[Row]:
    if indices:
        yield Row(title, [*indices[:_COLUMNS]])


def _pairs(audit: Audit, kind: str, title: str) -> Iterator[Row]:
    """Two of each group of equal images: of two parts, or with two labels."""
    having = set(audit.with_fault(kind))
    of: Callable[[int], Any] = (lambda i: int(audit.parts[i])) if kind == "leak" else (lambda i: label_of(audit, i))
    chosen: list[int] = []
    for members in members_of(audit.copies):
        found = [index for index in members.tolist() if index in having and audit.sizes[index, 0] > 0]
        if found and len(chosen) < _COLUMNS:
            chosen += [found[0], next((i for i in found if of(i) != of(found[0])), found[-1])]
    if chosen:
        yield Row(title, chosen)


def _some_of_each(audit: Audit, images: np.ndarray) -> Iterator[Row]:
    """Training images of each class: a row for each of a few classes, else one image for each."""
    usable = np.intersect1d(images, audit.members(0))
    classes = range(len(audit.class_names))
    if audit.task == "multiclass":
        members = [usable[audit.labels[usable] == k] for k in classes]
    elif audit.task == "multilabel":
        members = [usable[audit.labels[usable, k] > 0] for k in classes]
    elif audit.task == "regression":
        order = usable[np.argsort(audit.labels[usable].reshape(len(usable), -1)[:, 0], kind="stable")]
        places = np.linspace(0, len(order) - 1, min(_COLUMNS, len(order))).round().astype(int)
        yield from _few("from the lowest to the highest value", order[places].tolist())
        return
    else:
        yield from _few("images and masks", usable.tolist())
        return
    if len(classes) <= _MOST_ROWS_OF_CLASSES:
        for k in classes:
            yield from _few(f"class {shown(audit.class_names[k])}", members[k].tolist())
        return
    firsts = [int(some[0]) for some in members if len(some)][: _COLUMNS * _MOST_ROWS_OF_CLASSES // 2]
    for start in range(0, len(firsts), _COLUMNS):
        yield Row("one of each class" if not start else "", firsts[start : start + _COLUMNS])


def _caption(audit: Audit, index: int) -> str:
    """The end of the name in at most two lines, part and size, and the label."""
    part, (height, width) = int(audit.parts[index]), audit.sizes[index].tolist()
    key, label = shown(audit.keys[index]), shown(label_of(audit, index))
    end = key if len(key) <= 2 * _CAPTION else f"...{key[3 - 2 * _CAPTION :]}"
    lines = [end[:_CAPTION], end[_CAPTION:], f"{PARTS[part] if part >= 0 else 'in no part'}, {width} x {height}"]
    return "\n".join(line for line in [*lines, label[:_CAPTION]] if line)


def _thumbnail(sample: Any, num_classes: int) -> np.ndarray:
    """A light square with the image in its middle, coloured where a mask says so: uint8 ``[S, S]`` or ``[S, S, 3]``."""
    image, mask = sample if is_pair(sample) else (sample, None)
    size = [max(round(side * _THUMBNAIL / max(image.shape[:2])), 1) for side in image.shape[1::-1]]
    image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    if image.shape[2] != 3:
        image = image[..., :1]
    if mask is not None:
        mask = cv2.resize(mask.astype(np.float64), size, interpolation=cv2.INTER_NEAREST)[..., None]
        colours = _colours(num_classes)[np.clip(mask[..., 0], 0, num_classes - 1).astype(np.int64)]
        image = np.where(mask < num_classes, image // 2 + colours // 2, image)
    square = np.full((_THUMBNAIL, _THUMBNAIL, image.shape[2]), _BACKGROUND, np.uint8)
    top, left = ((_THUMBNAIL - side) // 2 for side in image.shape[:2])
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return square if image.shape[2] == 3 else square[..., 0]


def _colours(count: int) -> np.ndarray:
    """Hues that are evenly apart: uint8 ``[count, 3]``."""
    hues = np.stack([np.arange(count) * 180 // count, np.full(count, 220), np.full(count, 255)], axis=1)
    return cv2.cvtColor(hues.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]
