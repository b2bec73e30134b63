"""Which W&B run a training belongs to and what that run has of it already, so that a resumed training continues it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning.checkpoint_file import read_head
from lightning_tuning.errors import CheckpointError, InvalidValueError

from .journal import write_json

KEY = "wandb_run"
"""The record's place in a checkpoint."""
_BESIDE = {"epoch", "trainer/global_step"}
"""What stands in many rows of a step."""


@dataclass
class RunRecord:
    """A W&B run's identity, and the last step that was sent to it with the names of that step's values.

    It is kept in the run's folder, written anew with each logged row, and in every checkpoint. A killed training has
    often sent more than its last checkpoint knows of; the file says how much.

    Args:
        id: The run's.
        project: The run's.
        entity: The run's; None: the user's default.
        step: The last step; -1: none.
        names: The names of the values sent at that step.
        files: Where it is kept.
    """

    id: str
    project: str | None = None
    entity: str | None = None
    step: int = -1
    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(self, metrics: Mapping[str, Any], step: int) -> None:
        """Note a row that was sent, and write it down."""
        if step < self.step:
            return
        known = self.names if step == self.step else []
        self.step, self.names = step, sorted({*known, *map(str, metrics)})
        self.write()

    def write(self) -> None:
        for file in self.files:
            with suppress(OSError):  # a full disk does not end the training; a resume then sends some rows twice
                write_json(Path(file), self.state())

    def state(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**vars(self), "names": list(self.names), "files": list(self.files)}

    def new_values(self, metrics: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """Those of a row's values that were not sent before; empty if there is none.

        Example:
            >>> record = RunRecord("a", step=9, names=["epoch", "val/loss"])
            >>> record.new_values({"loss": 1.0}, 8), record.new_values({"loss": 1.0}, 10)
            ({}, {'loss': 1.0})
            >>> record.new_values({"val/loss": 1.0, "epoch": 0}, 9), record.new_values({"loss": 1.0, "epoch": 0}, 9)
            ({}, {'loss': 1.0, 'epoch': 0})
        """
        if step is None or step > self.step:
            return dict(metrics)
        sent = set(self.names) - _BESIDE if step == self.step else set(metrics)
        new = {name: value for name, value in metrics.items() if name not in sent}
        return new if new.keys() - _BESIDE else {}


def record_of_checkpoint(path: str | Path) -> RunRecord | None:
    """The record of the W&B run that a checkpoint's training logged to; None if it was written without one.

    A checkpoint may come from anywhere, so of the files that it names only those are read and later written that hold
    a record of the same run already.

    Raises:
        InvalidValueError: There is no such file.
        CheckpointError: The run's id is the path of another file.
    """
    if not Path(path).is_file():
        raise InvalidValueError(f"ckpt_path is {str(path)!r}, but there is no such file.")
    state = read_head(Path(path)).get(KEY)
    if state is None:
        return None
    if not _is_record(state):
        raise CheckpointError(f"{path} holds something else than the record of a W&B run. It was changed.")
    if Path(state["id"]).name != state["id"]:
        raise CheckpointError(f"{path} names {state['id']!r} as its W&B run, which is no id of a run. It was changed.")
    for file in state["files"]:
        later = _read(file, state["id"])
        if later is not None and later["step"] >= state["step"]:
            state = later
    return RunRecord(**{**state, "files": [file for file in state["files"] if _read(file, state["id"])]})


def _read(file: str, run: str) -> dict[str, Any] | None:
    """The record of a run that a file holds; None if it holds none."""
    try:
        content: Any = json.loads(Path(file).read_text()) if Path(file).is_file() else None
    except (OSError, ValueError):
        return None
    return content if _is_record(content) and content["id"] == run else None


def _is_record(content: Any) -> bool:
    """Whether it is what :meth:`RunRecord.state` gives."""
    return (
        isinstance(content, dict)
        and content.keys() == {part.name for part in fields(RunRecord)}
        and isinstance(content["id"], str)
        and all(isinstance(content[name], (str, type(None))) for name in ("project", "entity"))
        and isinstance(content["step"], int)
        and all(isinstance(content[name], list) for name in ("names", "files"))
        and all(isinstance(text, str) for text in (*content["names"], *content["files"]))
    )


class KeepRecord(Callback):
    """Saves the record of the Trainer's first W&B logger that has one in every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        records = (getattr(logger, "record", None) for logger in trainer.loggers)
        record = next((record for record in records if isinstance(record, RunRecord)), None)
        if record is not None:
            checkpoint[KEY] = record.state()
