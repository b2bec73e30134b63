"""Whether presets go together, and whether they can do on this machine what their names say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_tuning.errors import InvalidValueError, TuningError
from lightning_tuning.presets import PREFIX, preset_settings
from lightning_tuning.presets.launcher import launched


def check_together(names: Iterable[str]) -> None:
    """Raise :class:`InvalidValueError` if two presets set the same argument to different values.

    Example:
        >>> check_together(["ddp", "bf16", "deterministic"])
        >>> check_together(["bf16", "fp16"])
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: preset:bf16 and preset:fp16 contradict each other: \
precision is 'bf16-mixed' in the first and '16-mixed' in the second. Leave one out.
    """
    earlier: dict[str, dict[str, Any]] = {}
    for name in names:
        settings = preset_settings(name)
        for other, others in earlier.items():
            different = [key for key in others.keys() & settings.keys() if others[key] != settings[key]]
            if different:
                told = ", ".join(
                    f"{key} is {others[key]!r} in the first and {settings[key]!r} in the second"
                    for key in sorted(different)
                )
                raise InvalidValueError(
                    f"{PREFIX}{other} and {PREFIX}{name} contradict each other: {told}. Leave one out."
                )
        earlier[name] = settings


def check_runnable(names: Iterable[str], trainer: Mapping[str, Any]) -> None:
    """Compare the presets in use with this machine, and tell if one does less here than its name says.

    Args:
        names: The presets in use.
        trainer: The Trainer's arguments once all configurations are merged: a later one may have replaced a preset's.

    Raises:
        TuningError: A preset needs a device that this machine lacks, or other processes than were started.
    """
    device = _device(trainer.get("accelerator", "auto"))
    for name in names:
        own = preset_settings(name)
        _check_device(name, own, trainer, device)
        _check_precision(name, own, trainer, device)
        _check_processes(name, own, trainer, device)
        if own.get("strategy") == "ddp":
            _tell_of_one_process(name, trainer, device)


def _device(accelerator: Any) -> str:
    """The type of device that an accelerator argument stands for here."""
    if accelerator not in ("auto", "gpu"):
        return str(accelerator)
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(name: str, own: Mapping, trainer: Mapping, device: str) -> None:
    if own.get("accelerator") == "cuda" and device == "cuda" and not torch.cuda.is_available():
        raise TuningError(f"preset {name} needs a CUDA device, none found; use {PREFIX}cpu")
    if own.get("strategy") == trainer.get("strategy") == "fsdp" and device != "cuda":
        raise TuningError(
            f"preset {name} needs a CUDA device, and the accelerator is {trainer.get('accelerator')!r}: Lightning's "
            f"FSDP runs on no other; use {PREFIX}ddp"
        )


def _check_precision(name: str, own: Mapping, trainer: Mapping, device: str) -> None:
    precision = own.get("precision")
    if precision is None or precision != trainer.get("precision"):
        return
    if precision == "16-mixed" and device == "cpu":
        raise TuningError(f"preset {name} needs a GPU: on a CPU Lightning would take bf16 for it; use {PREFIX}bf16")
    has_gpu = device == "cuda" and torch.cuda.is_available()
    if precision == "bf16-mixed" and has_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TuningError(
            f"preset {name} needs a GPU with bf16 (compute capability 8.0 or more), and this is a "
            f"{torch.cuda.get_device_name()}; use {PREFIX}fp16"
        )


def _check_processes(name: str, own: Mapping, trainer: Mapping, device: str) -> None:
    if "devices" not in own:
        return
    started, nodes = launched(), trainer.get("num_nodes") or 1
    if started is None:
        if name == "multi_node" and nodes == 1:
            raise TuningError(
                f"preset {name} is for processes that torchrun or srun starts, none found; use {PREFIX}ddp"
            )
        return
    count = _count(trainer.get("devices", "auto"), device)
    if (count, nodes) != (started.devices, started.num_nodes):
        raise TuningError(
            f"preset {name} would run {_processes(count, nodes)}, but {started.by} has started "
            f"{_processes(started.devices, started.num_nodes)}; use {PREFIX}ddp with {PREFIX}multi_node"
        )


def _count(devices: Any, device: str) -> int:
    """How many processes a devices argument stands for on a node."""
    if isinstance(devices, str) and "," in devices:
        devices = [number for number in devices.split(",") if number.strip()]
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if devices in ("auto", "-1", -1):
        return torch.cuda.device_count() if device == "cuda" else 1
    return int(devices)


def _processes(count: int, nodes: int) -> str:
    where = "one node" if nodes == 1 else f"each of {nodes} nodes"
    return f"{count} process{'' if count == 1 else 'es'} on {where}"


def _tell_of_one_process(name: str, trainer: Mapping, device: str) -> None:
    started = launched()
    if started is not None:
        if (started.devices, started.num_nodes) == (1, 1):
            rank_zero_info(f"preset {name}: {started.by} has started one process, so one device is used")
    elif (trainer.get("accelerator"), trainer.get("devices"), device) == ("auto", "auto", "cpu"):
        rank_zero_info(f"preset {name} found no GPU and runs one process on the CPU; --trainer.devices=2 runs two")
