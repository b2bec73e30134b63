"""``lightning-tuning check-resume``: whether a configuration's run, stopped and resumed, equals one that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_tuning.cli.probe import world_size
from lightning_tuning.errors import InvalidValueError, check_choice, check_count
from lightning_tuning.resume import MOMENTS, ResumeReport, check_resume

COMMAND = "check-resume"
_OWN = ("logger", "default_root_dir", "profiler")
"""Settings of the Trainer that do not bear on what is learnt."""


@dataclass
class CheckConfig:
    """What ``check-resume`` tries.

    Args:
        batches: Training batches in each of the three epochs, at least 2. Default: 4, or enough for two and a half
            accumulation windows.
        moments: Where to stop: mid-epoch, last batch, validation end, epoch end, max_steps, SIGTERM. Default: all.
    """

    batches: int | None = None
    moments: list[str] | None = None

    def __post_init__(self) -> None:
        check_count("check.batches", self.batches, 2, optional=True)
        for moment in self.moments or ():
            check_choice("check.moments", moment, MOMENTS)


def check_configuration(
    check: CheckConfig,
    make: Callable[[], tuple[LightningModule, LightningDataModule | None, Mapping[str, Any]]],
) -> ResumeReport:
    """The report of a configuration. Several processes are forked where they need no GPU, else there is one.

    Args:
        check: The command's own arguments.
        make: Makes module, data and the Trainer's arguments anew.
    """
    made: dict[str, Any] = {}

    def module() -> LightningModule:
        made["module"], made["data"], made["trainer"] = make()
        return made["module"]

    def trainer() -> dict[str, Any]:
        settings = {name: value for name, value in made["trainer"].items() if name not in _OWN}
        if settings.pop("barebones", False):
            raise InvalidValueError("trainer.barebones is true: such a run saves nothing to resume from. Leave it out.")
        processes = world_size(settings) if settings.get("accelerator") == "cpu" else 1
        strategy = "ddp_fork" if processes > 1 else "auto"
        return {**settings, "devices": processes, "num_nodes": 1, "strategy": strategy}

    return check_resume(module, lambda: made["data"], trainer, check.moments or MOMENTS, check.batches)
