"""Which checkpoint a run goes on from, and what it brings: the newest whole one, never a damaged one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_tuning.checkpoint_file import checked, damage, is_checkpoint, local_path, read_head
from lightning_tuning.errors import CheckpointError, InvalidValueError, did_you_mean
from lightning_tuning.named_code import refuse_code

from .config import RunConfig

_LAST = ("checkpoints/last.ckpt", "last.ckpt", "*/checkpoints/last.ckpt", "*/*/checkpoints/last.ckpt", "*.ckpt")


def find_checkpoint(given: str | Path | None, run: RunConfig) -> Path | str | None:
    """The file or address that ``--ckpt_path`` names; None if Lightning has to find it.

    Args:
        given: A path, an address, ``last`` for the newest whole checkpoint of this experiment's runs (a run's
            ``last.ckpt`` if it is whole), ``auto`` for the same if there is one, or ``best`` for the newest
            ``best.ckpt``.
        run: The run's settings.

    Raises:
        InvalidValueError: There is no such checkpoint.
        CheckpointError: It is damaged, and for ``last`` so are all others.
    """
    if given is None or given == "hpc" or str(given).lower().partition(":")[0] == "registry":
        return None
    if given in ("last", "auto"):
        path = newest_whole(run)
        if path is None and given == "last":
            raise InvalidValueError(f"ckpt_path is 'last', but there is no {_pattern('last', run)}.")
        return path
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
    if path.is_dir() and not is_checkpoint(path):
        raise InvalidValueError(f"ckpt_path is {str(given)!r}, {_what_a_folder_is(path)}")
    if reason := damage(path):
        others = [other for other in _others(path) if damage(other) is None]
        hint = f" A whole one is {others[0]}." if others else ""
        raise CheckpointError(f"{path} is no whole checkpoint: {reason}.{hint}")
    return path


def _what_a_folder_is(path: Path) -> str:
    """How the sentence on a folder ends that is no checkpoint: with the newest one that is in it."""
    what = "the folder of a run" if (path / _LAST[0]).is_file() else "a folder that is no checkpoint"
    found = (max(path.glob(pattern), key=_time, default=None) for pattern in _LAST)
    if (meant := next(filter(None, found), None)) is not None:
        return f"{what}; did you mean {str(meant)!r}?"
    return f"{what}. Write the path of a file, or last, best or auto, which look among the runs of this name."


def newest_whole(run: RunConfig) -> Path | None:
    """The newest checkpoint of this experiment that a training can go on from; None if there is none.

    That of the newest run: its ``last.ckpt``, or the newest other one that has more than weights. If all of it is
    damaged, those of earlier runs. A warning names each that is passed over.

    Raises:
        CheckpointError: No checkpoint is whole.
    """
    damaged: dict[Path, str] = {}
    for paths in _of_runs(run):
        for path in paths:
            if reason := damage(path):
                damaged[path] = reason
            elif has_training_state(path):
                for other, why in damaged.items():
                    rank_zero_warn(f"{other} is no whole checkpoint: {why}. Going on from {path}.")
                return path
    if damaged:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in damaged.items())
        raise CheckpointError(f"ckpt_path is 'last', but no checkpoint is whole. {reasons}. Nothing was started.")
    return None


def has_training_state(path: Path) -> bool:
    """Whether a checkpoint has more than weights. Of a folder, a sharded one, that is taken for granted."""
    if path.is_dir():
        return True
    with checked(path):
        content = read_head(path)
    return isinstance(content, dict) and "optimizer_states" in content


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
    refuse_code(source, arguments, "model", "write this argument yourself, or train anew")
    return {"class_path": class_path, "init_args": arguments}


def _pattern(name: str, run: RunConfig) -> Path:
    return Path(run.dir, run.name or "") / f"*/checkpoints/{name}.ckpt"


def _named(name: str, run: RunConfig) -> Iterator[Path]:
    return Path(run.dir, run.name or "").glob(f"*/checkpoints/{name}.ckpt")


def _of_runs(run: RunConfig) -> list[list[Path]]:
    """The checkpoints of each run, the newest run first, and of a run first the last one, then the newest."""
    found = []
    for folder in Path(run.dir, run.name or "").glob("*/checkpoints"):
        last = folder / "last.ckpt"
        paths = [*([last] if last.exists() else []), *_others(last)]
        if paths:
            found.append(paths)
    return sorted(found, key=lambda paths: _time(paths[0]), reverse=True)


def _others(path: Path) -> list[Path]:
    """The other checkpoints of a run, the newest first; not links to nothing."""
    others = (other for other in path.parent.glob("*.ckpt") if other != path and other.exists())
    return sorted(others, key=_time, reverse=True)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed by a run that is under way
        return 0.0
