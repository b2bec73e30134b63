"""What a run was made with: versions of the packages, presets, the commit of the working folder."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_PACKAGES = ("lightning", "torch", "albumentations", "wandb")


def run_facts(presets: Sequence[str] = ()) -> dict[str, Any]:
    """The facts that repeating a run needs besides its settings.

    Args:
        presets: Names of the presets that its configuration was made with.

    Returns:
        ``versions`` by package, ``presets`` if there are any, and ``git_commit`` if the working folder is in a
        repository.

    Example:
        >>> facts = run_facts(["cpu"])
        >>> sorted(facts["versions"])[:2], facts["presets"]
        (['albumentations', 'lightning'], ['cpu'])
    """
    import lightning_tuning

    versions = {"python": platform.python_version(), "lightning_tuning": lightning_tuning.__version__}
    commit = _commit()
    return {
        "versions": {**versions, **{name: metadata.version(name) for name in _PACKAGES}},
        **({"presets": list(presets)} if presets else {}),
        **({"git_commit": commit} if commit else {}),
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):  # no git, or one that waits for something
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class LogFacts(Callback):
    """Hands the facts to every logger, beside the hyper-parameters.

    Args:
        presets: As in :func:`run_facts`.
    """

    def __init__(self, presets: Sequence[str] = ()) -> None:
        self.presets = list(presets)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.loggers:
            facts = run_facts(self.presets)
            for logger in trainer.loggers:
                logger.log_hyperparams(facts)
