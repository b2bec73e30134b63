"""What a callback that watches a run tells the user."""

from __future__ import annotations

import contextlib

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ._pictures import run_folder


def diagnose(trainer: Trainer, message: str) -> None:
    """Warn with one sentence, and add it to ``diagnosis.txt`` in the run's folder. Every rank has to call it.

    The sentence gets the optimizer step and the epoch, so that it says when.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return
    text = f"Step {trainer.global_step}, epoch {trainer.current_epoch}: {message}"
    rank_zero_warn(text)
    with contextlib.suppress(OSError):  # on a full disk the warning has to do
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "diagnosis.txt", "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
