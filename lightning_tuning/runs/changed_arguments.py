"""Arguments that a resumed run is given anew and that the checkpoint's optimizer would take back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_tuning.errors import InvalidValueError


def changed_arguments(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The numbers that differ between two sets of arguments, by name: the old one and the new one.

    Example:
        >>> changed_arguments({"lr": 0.1, "opt": {"momentum": 0.9}}, {"lr": 0.1, "opt": {"momentum": 0.5}, "more": 1})
        {'opt.momentum': (0.9, 0.5)}
    """
    before = dict(_numbers(old, ""))
    return {name: (before[name], value) for name, value in _numbers(new, "") if before.get(name, value) != value}


class ChangedArguments(Callback):
    """Lets the model's arguments win over the optimizer's state in the checkpoint.

    Loading the state of an optimizer brings the learning rate, the weight decay and so on that it had. Where one of
    them is an argument that this run was given another value of, the new value is set again. Under a scheduler, whose
    own state has the old learning rate, that is refused.

    Args:
        changed: From :func:`changed_arguments`.
    """

    def __init__(self, changed: Mapping[str, tuple[Any, Any]]) -> None:
        self.changed = changed
        self._configured: list[list[dict[str, Any]]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizers are as they were configured; their state is restored after this hook.
        self._configured = [
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, configured in zip(trainer.optimizers, self._configured, strict=True):
            scheduled = any(config.scheduler.optimizer is optimizer for config in trainer.lr_scheduler_configs)
            for group, fresh in zip(optimizer.param_groups, configured, strict=True):
                for name, (old, new) in self.changed.items():
                    for key in [key for key in fresh if fresh[key] == new and group.get(key) == old]:
                        if scheduled and key in ("lr", "initial_lr"):
                            raise InvalidValueError(
                                f"model.{name} is {new}, but the checkpoint's schedule is under way with {old}. Leave "
                                "the argument out to go on, or start a new run."
                            )
                        group[key] = new
                        rank_zero_info(f"model.{name}: {new} from here on, in place of the checkpoint's {old}.")


def check_seed(given: int | bool | None, state: Mapping[str, Any] | None) -> None:
    """Refuse a seed that the checkpoint's would silently replace.

    Args:
        given: ``seed_everything``, if the user wrote it.
        state: What ``ExactResume`` has in the checkpoint.

    Raises:
        InvalidValueError: The two differ.
    """
    if state is not None and given is not None and given is not True and given != state["seed"]:
        raise InvalidValueError(
            f"seed_everything is {given}, but the run goes on with the checkpoint's seed {state['seed']}. Write "
            f"--seed_everything={state['seed']} or leave it out."
        )


def _numbers(arguments: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{place}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{place}{name}", value
