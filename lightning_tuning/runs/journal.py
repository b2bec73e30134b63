"""The journal of a run: every logged value as one line of JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn


class JournalLogger(Logger):
    """Writes ``metrics.jsonl`` and ``hparams.json`` into one folder.

    Each log call appends one line, ``{"step": ..., "epoch": ..., "train/loss": ...}``, and hands it to the system at
    once, so a killed run keeps its journal. The JSON is strict: numbers that are not finite become the strings "NaN",
    "Infinity" and "-Infinity". :func:`read_journal` turns them back. Only the first process writes.

    Where the system refuses to write, as on a full disk, one warning says so and the training goes on. The lines are
    kept and written with the next one for which there is room.

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
        self._file: BinaryIO | None = None
        self._unwritten: list[str] = []
        self._warned = False

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
        first = {"step": step, **({"epoch": metrics["epoch"]} if "epoch" in metrics else {})}
        self._unwritten.append(json.dumps(_strict({**first, **metrics}), allow_nan=False) + "\n")
        try:
            self._write()
        except OSError as error:
            self._warn(self.path, error)

    def _write(self) -> None:
        """Append what is not written yet: all of it, or nothing."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        start, rest = os.fstat(self._file.fileno()).st_size, "".join(self._unwritten).encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(start)
            raise
        self._unwritten.clear()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add hyper-parameters to ``hparams.json``; a later value of the same name replaces the earlier one."""
        params = vars(params) if isinstance(params, Namespace) else params
        path = self.folder / "hparams.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        try:
            write_json(path, {**known, **{k: v for k, v in params.items() if not k.startswith("_")}})
        except OSError as error:
            self._warn(path, error)

    def _warn(self, path: Path, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{path} was not written: {error.strerror}. Training goes on; the journal's values are kept in memory "
                "until there is room."
            )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._unwritten:
            with contextlib.suppress(OSError):
                self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_unwritten": []}


def read_journal(path: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal as dictionaries, in order; a line that a kill cut off at the end is left out."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                record = json.loads(line)
                yield {k: float(v) if v in ("NaN", "Infinity", "-Infinity") else v for k, v in record.items()}


def whole_journal(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's journal, behind those of the runs that it was resumed from up to its first step.

    Args:
        folder: The run's folder. Its ``hparams.json`` tells the checkpoint that it went on from (``resumed_from``),
            which lies in the folder ``checkpoints`` of the run before.
    """
    folder = Path(folder).absolute()
    own = list(read_journal(folder / "metrics.jsonl")) if (folder / "metrics.jsonl").is_file() else []
    facts = folder / "hparams.json"
    checkpoint = json.loads(facts.read_text()).get("resumed_from") if facts.is_file() else None
    before = Path(checkpoint).absolute().parent.parent if checkpoint else folder
    if not (before / "metrics.jsonl").is_file() or before == folder:
        return own
    begins = min((line["step"] for line in own if line["step"] is not None), default=math.inf)
    return [line for line in whole_journal(before) if (line["step"] or 0) < begins] + own


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(_strict(content), indent=2, allow_nan=False, default=str) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _strict(value: Any) -> Any:
    """``value`` with numbers that JSON does not know as strings."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
