"""Trainer settings by name: ``--config preset:ddp`` on the command line, ``Trainer(**preset("ddp"))`` in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lightning_tuning.errors import InvalidValueError, did_you_mean
from lightning_tuning.presets.launcher import launched

__all__ = ["preset", "preset_names"]

_FOLDER = Path(__file__).parent
PREFIX = "preset:"


def preset_names() -> tuple[str, ...]:
    """The names of the presets, sorted.

    Example:
        >>> preset_names()
        ('bf16', 'cpu', 'ddp', 'debug', 'deterministic', 'fast', 'fp16', 'fp32', 'fsdp', 'multi_node', 'single_gpu')
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def preset(*names: str, **overrides: Any) -> dict[str, Any]:
    """Trainer keyword arguments of one preset or of several.

    Args:
        *names: Of :func:`preset_names`, in any order.
        **overrides: Trainer keyword arguments that replace or join the presets'.

    Raises:
        InvalidValueError: There is no preset of a name, or two of them set an argument to different values.
        TuningError: A preset cannot run on this machine.

    Example:
        >>> preset("ddp", "bf16", devices=4)
        {'accelerator': 'auto', 'devices': 4, 'strategy': 'ddp', 'precision': 'bf16-mixed'}
    """
    from lightning_tuning.presets.checks import check_runnable, check_together

    check_together(names)
    settings = {key: value for name in names for key, value in preset_settings(name).items()} | overrides
    check_runnable(names, settings)
    return settings


def preset_settings(name: str) -> dict[str, Any]:
    """What a preset sets: its file, with the numbers of processes and nodes that a launcher has started.

    Without a launcher ``devices`` stays ``auto``, and ``num_nodes`` is left out.
    """
    settings = yaml.safe_load(preset_path(name).read_text())["trainer"]
    started = launched()
    if started:
        settings |= {key: value for key, value in started.counts.items() if settings.get(key) == "auto"}
    elif "num_nodes" in settings:
        del settings["num_nodes"]
    return settings


def preset_path(name: str) -> Path:
    """The file of a preset. Raises :class:`InvalidValueError` if there is none of this name."""
    names = preset_names()
    if name not in names:
        raise InvalidValueError(f"There is no preset {name!r}{_meant(name, names)} Presets: {', '.join(names)}.")
    return _FOLDER / f"{name}.yaml"


def _meant(name: str, names: tuple[str, ...]) -> str:
    parts = re.split("[^a-z0-9]", name)
    if len(parts) > 1 and all(part in names for part in parts):
        return f"; write {' '.join(f'--config {PREFIX}{part}' for part in parts)}."
    return did_you_mean(f"{PREFIX}{name}", [f"{PREFIX}{other}" for other in names])


def preset_description(name: str) -> str:
    """One line on a preset: the comment that its file starts with."""
    return preset_path(name).read_text().splitlines()[0].removeprefix("# ")


def preset_of(path: Path) -> str | None:
    """The preset that a configuration file is, or None."""
    return path.stem if path.parent == _FOLDER else None
