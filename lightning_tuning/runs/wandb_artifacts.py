"""What a W&B run keeps as artifacts: checkpoints and reports."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

_REPORTS = (".json", ".jsonl", ".yaml", ".txt", ".md", ".html", ".csv", ".png", ".npz")


def without_false_best(callback: ModelCheckpoint) -> ModelCheckpoint:
    """The callback as ``WandbLogger`` should see it: the best file only where a metric chose one.

    Without a monitor ``ModelCheckpoint`` calls its newest file the best one, and W&B's alias ``best`` would move from
    the best checkpoint to ``last.ckpt``.
    """
    if callback.monitor is not None:
        return callback
    seen = copy(callback)
    seen.best_k_models = {callback.best_model_path: callback.current_score}  # type: ignore[dict-item]
    seen.best_model_path = ""
    return seen


def reports(run: str, folder: str | Path) -> Any:
    """The files of reports that lie directly in a folder as an artifact ``reports-<run>``."""
    import wandb

    artifact = wandb.Artifact(f"reports-{run}", type="reports")
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.suffix in _REPORTS:
            artifact.add_file(str(path), name=path.name)
    return artifact
