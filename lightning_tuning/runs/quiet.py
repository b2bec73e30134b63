"""Silence for messages that tell the user of the command line nothing to act on; everything else stays."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOTES = re.compile(r"(💡 )?Tip: For seamless|TPU available|HPU available|\s*Detected KeyboardInterrupt")
_WARNINGS = (
    # Advice on speed that is wrong for data in memory.
    r".*does not have many workers which may be a bottleneck",
    # True of every short epoch; the values are logged all the same.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Lightning and its dependencies speaking to each other.
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    # A dimension of size 1 has no stride of its own to differ in: nothing is copied.
    r"(?s)Grad strides do not match bucket view strides.*grad\.sizes\(\) = \[\d+, 1, ",
    # Of transforms' default values in a saved configuration; Albumentations and YAML know lists alike.
    r"\s*Dump\s+of\s+a\s+value\s+that\s+does\s+not\s+round-trip:\s+a\s+tuple\s+is\s+serialized\s+as\s+list",
    # An evaluation has no use for the checkpoint callbacks that every training run gets.
    r"Be aware that when using `ckpt_path`.*callbacks: \[(\"RunCheckpoint\{[^}]*\}\"(, )?)+\]\.$",
    r"Starting from v1\.9\.0, `tensorboardX` has been removed",
)
# Whichever of Lightning's packages was imported last speaks for all of them.
_LOGGERS = tuple(
    f"{package}.utilities.rank_zero"
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the adverts and the warnings listed in this file, by their text, while the context is open."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_wanted)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not _NOTES.match(record.getMessage())
