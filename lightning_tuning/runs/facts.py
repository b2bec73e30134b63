"""What a run was made with: versions of the packages, presets, the commit of the working folder."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
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


def settings_to_log(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a command's configuration is a setting of the run and not the model's, which saves its own.

    Example:
        >>> settings_to_log({"seed_everything": 0, "model": {"lr": 1.0}, "trainer": {"logger": True, "devices": None}})
        {'seed_everything': 0, 'trainer': {}}
    """
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    chosen = {name: plain[name] for name in ("seed_everything", "data", "trainer") if plain.get(name) is not None}
    if "trainer" in chosen:
        given = {key: value for key, value in chosen["trainer"].items() if value is not None}
        chosen["trainer"] = {key: value for key, value in given.items() if key != "logger"}
    return chosen


class LogFacts(Callback):
    """Hands the facts to every logger, beside the hyper-parameters.

    Args:
        presets: As in :func:`run_facts`.
        settings: What is handed over besides, by name: the parts of a configuration that no module saves.
    """

    def __init__(self, presets: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> None:
        self.presets = list(presets)
        self.settings = dict(settings or {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.loggers:
            facts = {**run_facts(self.presets), **self.settings}
            if trainer.ckpt_path:
                facts["resumed_from"] = str(trainer.ckpt_path)
            for logger in trainer.loggers:
                logger.log_hyperparams(facts)
