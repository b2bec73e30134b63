"""Trainer settings by name: ``--config preset:ddp`` on the command line, ``Trainer(**preset("ddp"))`` in Python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_tuning.errors import InvalidValueError, TuningError, did_you_mean

__all__ = ["preset", "preset_names"]

_FOLDER = Path(__file__).parent
PREFIX = "preset:"


def preset_names() -> tuple[str, ...]:
    """The names of the presets, sorted.

    Example:
        >>> preset_names()
        ('cpu', 'ddp', 'ddp_bf16', 'ddp_fp16', 'debug', 'deterministic', 'fsdp', 'single_gpu')
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def preset(name: str, **overrides: Any) -> dict[str, Any]:
    """Trainer keyword arguments of a preset.

    Args:
        name: One of :func:`preset_names`.
        **overrides: Trainer keyword arguments that replace or join the preset's.

    Raises:
        InvalidValueError: There is no preset of this name.

    Example:
        >>> preset("ddp", devices=4)
        {'accelerator': 'auto', 'devices': 4, 'strategy': 'ddp'}
    """
    return {**yaml.safe_load(preset_path(name).read_text())["trainer"], **overrides}


def preset_path(name: str) -> Path:
    """The file of a preset. Raises :class:`InvalidValueError` if there is none of this name."""
    names = preset_names()
    if name not in names:
        hint = did_you_mean(f"{PREFIX}{name}", [f"{PREFIX}{other}" for other in names])
        raise InvalidValueError(f"There is no preset {name!r}{hint} Presets: {', '.join(names)}.")
    return _FOLDER / f"{name}.yaml"


def preset_description(name: str) -> str:
    """One line on a preset: the comment that its file starts with."""
    return preset_path(name).read_text().splitlines()[0].removeprefix("# ")


def preset_of(path: Path) -> str | None:
    """The preset that a configuration file is, or None."""
    return path.stem if path.parent == _FOLDER else None


def check_runnable(names: Iterable[str], accelerator: str, devices: str | int | list[int]) -> str | None:
    """Compare the presets in use with the devices of this machine.

    Args:
        names: The presets in use.
        accelerator: The Trainer's accelerator once all configurations are merged: a later one may have replaced the
            preset's.
        devices: The Trainer's devices, likewise.

    Returns:
        A note for the user if a preset does something else here than its name says.

    Raises:
        TuningError: A preset needs a device that this machine lacks.
    """
    for name in names:
        if accelerator == preset(name).get("accelerator") == "cuda" and not torch.cuda.is_available():
            raise TuningError(f"preset {name} needs a CUDA device, none found; use {PREFIX}cpu")
        is_ddp = (accelerator, devices) == ("auto", "auto") and preset(name).get("strategy") == "ddp"
        if is_ddp and not torch.accelerator.is_available():
            return f"preset {name} found no GPU and runs one process on the CPU; --trainer.devices=2 runs two"
    return None
