"""Finding out before a training whether its checkpoints could be loaded."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_tuning.errors import InvalidValueError


def check_loadable(trainer: Trainer) -> None:
    """Refuse hyper-parameters and states that would make every checkpoint of this training one that cannot be loaded.

    Those of the module, the datamodule and the callbacks are saved to memory and loaded as data alone
    (``weights_only=True``).

    Raises:
        InvalidValueError: One of them is no data.
    """
    if not trainer.checkpoint_callbacks:
        return
    module, datamodule = trainer.lightning_module, getattr(trainer, "datamodule", None)
    problems = []
    for owner in (module, datamodule):
        bad = {name: why for name, value in getattr(owner, "hparams", {}).items() if (why := no_data(value))}
        if bad:
            found = ", ".join(f"{name} ({why})" for name, why in bad.items())
            problems.append(
                f"Hyper-parameters of {type(owner).__name__}: {found}. Write "
                f"self.save_hyperparameters(ignore={list(bad)}) in its __init__, or pass a text or a number instead."
            )
    owners = [*trainer.callbacks, *([] if datamodule is None else [datamodule])]  # type: ignore[attr-defined]
    for owner in owners:
        try:
            state = owner.state_dict()
        except Exception:  # some have a state only when the training has begun
            continue
        if why := no_data(state):
            problems.append(
                f"The state of {type(owner).__name__}: {why}. Let its state_dict return texts, numbers and tensors, in "
                "lists and dicts."
            )
    if problems:
        raise InvalidValueError(
            "No checkpoint of this training could be loaded, for only data are loaded and no code. "
            + " ".join(problems)
        )


def no_data(value: Any) -> str | None:
    """What in a value cannot be loaded with ``weights_only=True``; None if all can.

    Example:
        >>> no_data({"lr": 0.1, "sizes": [3, torch.zeros(2)]})
        >>> from decimal import Decimal
        >>> no_data([Decimal(1)])
        'decimal.Decimal'
    """
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception as error:  # __reduce__ and __getstate__ may raise anything
        return f"a {type(value).__name__} that cannot be pickled: {error}"
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        return named[1] if named else f"a {type(value).__name__}"
    return None
