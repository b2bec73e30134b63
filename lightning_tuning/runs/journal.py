"""The journal of a run: every logged value as one line of JSON."""

from __future__ import annotations

import json
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class JournalLogger(Logger):
    """Writes ``metrics.jsonl`` and ``hparams.json`` into one folder.

    Each log call appends one line, ``{"step": ..., "epoch": ..., "train/loss": ...}``, and hands it to the system at
    once, so a killed run keeps its journal. The JSON is strict: numbers that are not finite become the strings "NaN",
    "Infinity" and "-Infinity". :func:`read_journal` turns them back. Only the first process writes.

    Args:
        folder: The run's folder. It is made when something is written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> logger = JournalLogger(folder)
        >>> logger.log_metrics({"train/loss": float("nan"), "epoch": 0}, step=9)
        >>> open(logger.path).read()
        '{"step": 9, "epoch": 0, "train/loss": "NaN"}\\n'
        >>> list(read_journal(logger.path))
        [{'step': 9, 'epoch': 0, 'train/loss': nan}]
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._file: TextIO | None = None

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self.folder / "metrics.jsonl"

    @property
    def save_dir(self) -> str:
        """The run's folder: Lightning puts checkpoints, profiles and the configuration there."""
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    # Empty, so that checkpoints land in <folder>/checkpoints: Lightning joins save_dir, name and version.
    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", buffering=1, encoding="utf-8")
        first = {"step": step, **({"epoch": metrics["epoch"]} if "epoch" in metrics else {})}
        self._file.write(json.dumps(_strict({**first, **metrics}), allow_nan=False) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add hyper-parameters to ``hparams.json``; a later value of the same name replaces the earlier one."""
        params = vars(params) if isinstance(params, Namespace) else params
        path = self.folder / "hparams.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, {**known, **{k: v for k, v in params.items() if not k.startswith("_")}})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def read_journal(path: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal as dictionaries, in order; a line that a kill cut off at the end is left out."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                record = json.loads(line)
                yield {k: float(v) if v in ("NaN", "Infinity", "-Infinity") else v for k, v in record.items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_strict(content), indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def _strict(value: Any) -> Any:
    """``value`` with numbers that JSON does not know as strings."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
