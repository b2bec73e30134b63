"""Which checkpoint a run goes on from, and what it brings: the newest whole one, never a damaged one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_tuning.checkpoint_file import damage, local_path, read_checkpoint
from lightning_tuning.errors import CheckpointError, InvalidValueError, did_you_mean

from .config import RunConfig

_MAY_BE_NAMED = (nn.Module, Optimizer, LRScheduler)


def find_checkpoint(given: str | Path | None, run: RunConfig) -> Path | str | None:
    """The file or address that ``--ckpt_path`` names; None if Lightning has to find it.

    Args:
        given: A path, an address, ``last`` for the newest whole checkpoint of this experiment's runs (a run's
            ``last.ckpt`` if it is whole), or ``best`` for the newest ``best.ckpt``.
        run: The run's settings.

    Raises:
        InvalidValueError: There is no such checkpoint.
        CheckpointError: It is damaged, and for ``last`` so are all others.
    """
    if given is None or given == "hpc" or str(given).startswith("registry"):
        return None
    if given == "last":
        return newest_whole(run)
    if given == "best":
        path, wanted = max(_named("best", run), key=_time, default=None), str(_pattern("best", run))
    elif "://" in str(given):
        path, wanted = local_path(given), str(given)
        if path is None:
            return str(given)
    else:
        path, wanted = Path(given), str(given)
    if path is None or not path.exists():
        meant = "." if given == "best" else did_you_mean(given, ("last", "best", "auto"))
        raise InvalidValueError(f"ckpt_path is {str(given)!r}, but there is no {wanted}{meant}")
    if (last := path / "checkpoints" / "last.ckpt").is_file():
        raise InvalidValueError(f"ckpt_path is {str(given)!r}, the folder of a run; did you mean {str(last)!r}?")
    if reason := damage(path):
        others = [other for other in _others(path) if damage(other) is None]
        hint = f" A whole one is {others[0]}." if others else ""
        raise CheckpointError(f"{path} is no whole checkpoint: {reason}.{hint}")
    return path


def newest_whole(run: RunConfig) -> Path:
    """The newest checkpoint of this experiment that a run can go on from.

    The ``last.ckpt`` of the newest run that has one; if it is damaged the newest other checkpoint of that run, then
    those of earlier runs. A warning names each that is passed over.

    Raises:
        InvalidValueError: There is no ``last.ckpt``.
        CheckpointError: No checkpoint is whole.
    """
    damaged: dict[Path, str] = {}
    for last in sorted(_named("last", run), key=_time, reverse=True):
        for path in (last, *_others(last)):
            if reason := damage(path):
                damaged[path] = reason
            elif path == last or "optimizer_states" in read_checkpoint(path):
                for other, why in damaged.items():
                    rank_zero_warn(f"{other} is no whole checkpoint: {why}. Going on from {path}.")
                return path
    if damaged:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in damaged.items())
        raise CheckpointError(f"ckpt_path is 'last', but no checkpoint is whole. {reasons}. Nothing was started.")
    raise InvalidValueError(f"ckpt_path is 'last', but there is no {_pattern('last', run)}.")


def model_of_checkpoint(
    source: Path | str, content: Mapping[str, Any], class_path: str | None
) -> dict[str, Any] | None:
    """The class and arguments of the model that a checkpoint was made from, if it was made by a command line.

    Args:
        source: The checkpoint's path, for messages.
        content: The checkpoint.
        class_path: The class of the configuration. The arguments of another class are not brought.

    Raises:
        CheckpointError: Its arguments name what may not be imported for it.
    """
    hparams = content.get("hyper_parameters", {})
    if "_class_path" not in hparams:
        return None
    if hparams["_class_path"] != class_path:
        rank_zero_info(
            f"{source} was made by {hparams['_class_path']}, and the configuration says {class_path}: the checkpoint's "
            "arguments are not used."
        )
        return None
    arguments = {key: value for key, value in hparams.items() if key not in ("_class_path", "_instantiator")}
    for place, name in names_of_code(arguments, "model"):
        if not may_be_named(name):
            raise CheckpointError(
                f"{source} sets {place} to {name!r}, which is neither a network, an optimizer nor a scheduler that is "
                "imported already. A checkpoint may not say what is imported: write this argument yourself, or train "
                "anew."
            )
    return {"class_path": class_path, "init_args": arguments}


def names_of_code(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """The places in arguments that hold an import path, and the paths."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from names_of_code(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from names_of_code(item, f"{place}.{number}")
    elif isinstance(value, str) and (place.endswith(".class_path") or _is_import_path(value)):
        yield place, value


def _is_import_path(text: str) -> bool:
    """Whether a text of several names with dots between them begins with a module that can be imported."""
    root, *names = text.split(".")
    if not names or not all(name.isidentifier() for name in (root, *names)):
        return False
    spec = sys.modules[root].__spec__ if root in sys.modules else find_spec(root)
    return spec is not None and spec.origin is not None


def may_be_named(path: str) -> bool:
    """Whether an import path in a checkpoint is that of a network, optimizer or scheduler which is imported already."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, _MAY_BE_NAMED)


def _pattern(name: str, run: RunConfig) -> Path:
    return Path(run.dir, run.name or "") / f"*/checkpoints/{name}.ckpt"


def _named(name: str, run: RunConfig) -> Iterator[Path]:
    return Path(run.dir, run.name or "").glob(f"*/checkpoints/{name}.ckpt")


def _others(path: Path) -> list[Path]:
    """The other checkpoints of a run, the newest first."""
    return sorted((other for other in path.parent.glob("*.ckpt") if other != path), key=_time, reverse=True)


def _time(path: Path) -> float:
    return path.stat().st_mtime
