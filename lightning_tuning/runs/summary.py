"""What a run ended with: a table for the terminal and ``summary.json`` for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tuning.checkpoint_file import local_path


def checkpoint_to_test(trainer: Trainer) -> str | None:
    """What a callback made at the end of the fit (a soup), else the best checkpoint that a monitored metric chose, else
    the last one written; None if there is none, or where the module itself has its best weights again. A full disk may
    have kept one from being written."""
    made = [getattr(callback, "made_checkpoint", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    if any(made):
        return str(next(path for path in made if path))
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    callbacks.sort(key=lambda callback: callback.monitor is None)
    if any(getattr(c, "restored", False) for c in trainer.early_stopping_callbacks):
        callbacks = [c for c in callbacks if c.monitor is not None]
    paths = (path for c in callbacks for path in (c.best_model_path, c.last_model_path) if path)
    return next((path for path in paths if _exists(path)), None)


def _exists(path: str) -> bool:
    """Whether there is such a checkpoint; of a remote one that is taken for granted."""
    local = local_path(path)
    return local is None or local.exists()


def summarize(trainer: Trainer, metrics: Mapping[str, float], folder: Path, seconds: float) -> dict[str, Any]:
    """The facts of a finished run.

    Args:
        trainer: The Trainer that ran.
        metrics: Metrics of the final test, or of the evaluation that was asked for.
        folder: The run's folder.
        seconds: Wall time.
    """
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    best = next((c for c in callbacks if c.best_model_score is not None), None)
    reasons = [getattr(c, "stopping_reason_message", None) for c in trainer.early_stopping_callbacks]
    files = {"last_checkpoint": folder / "checkpoints" / "last.ckpt", "curves": folder / "curves.png"}
    return {
        "metrics": dict(metrics),
        "monitor": best and best.monitor,
        "best_value": float(best.best_model_score) if best and best.best_model_score is not None else None,
        "best_checkpoint": best.best_model_path if best and _exists(best.best_model_path) else None,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "stopped": next((reason for reason in reasons if reason), None),
        "wall_time_seconds": round(seconds, 3),
        "folder": str(folder),
        **{name: str(path) if path.exists() else None for name, path in files.items()},
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as two columns of text.

    Example:
        >>> print(format_summary({"metrics": {"test/accuracy": 0.97222}, "steps": 40, "epochs": 2, "folder": "runs/a"}))
        test/accuracy  0.9722
        steps          40 (2 epochs)
        folder         runs/a
    """
    rows = [(name, f"{value:.4g}") for name, value in summary["metrics"].items()]
    if summary.get("monitor"):
        rows.append((f"best {summary['monitor']}", f"{summary['best_value']:.4g}"))
    if summary.get("steps"):
        rows.append(("steps", f"{summary['steps']} ({summary['epochs']} epochs)"))
    if summary.get("stopped"):
        rows.append(("stopped", summary["stopped"]))
    if summary.get("wall_time_seconds") is not None:
        rows.append(("wall time", f"{summary['wall_time_seconds']:.1f} s"))
    places = ("folder", "best_checkpoint", "last_checkpoint", "curves", "predictions")
    rows += [(key.replace("_", " "), summary[key]) for key in places if summary.get(key)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
