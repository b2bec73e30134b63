"""What ends a command, as one line for the user and an exit code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from lightning_tuning.callbacks.save_on_signal import EXIT_CODE as SIGTERM_CODE
from lightning_tuning.callbacks.save_on_signal import SaveOnSignal
from lightning_tuning.errors import InvalidValueError, TuningError, did_you_mean
from lightning_tuning.runs.disk import is_full, room, system_error


def told(error: BaseException, debug: bool) -> int | None:
    """Print the message of what ended a command.

    Args:
        error: What was raised.
        debug: Whether the traceback is wanted in place of a message.

    Returns:
        The exit code; None for what is to be raised again, so that it leaves its traceback.
    """
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(str(error))
    if isinstance(error, SIGTERMException):
        return error.code if isinstance(error.code, int) else SIGTERM_CODE
    if isinstance(error, SystemExit):
        return _ended(error, debug)
    message = None if debug else _message(error)
    if message is None:
        return None
    print(f"lightning-tuning: {message}", file=sys.stderr)
    return error.exit_code if isinstance(error, TuningError) else 2


def stopped(end: SystemExit, trainer: Trainer, folder: Path) -> None:
    """Say how to go on with a training that a signal ended.

    Raises:
        KeyboardInterrupt: It was Ctrl-C; with the message for :func:`told`.
    """
    if isinstance(end.__context__, KeyboardInterrupt):
        last = folder / "checkpoints" / "last.ckpt"
        hint = f" Continue from the last epoch's end with --ckpt_path={last}" if last.exists() else ""
        raise KeyboardInterrupt(f"Interrupted after step {trainer.global_step}.{hint}") from None
    saved = next((c.saved for c in trainer.callbacks if isinstance(c, SaveOnSignal)), None)  # type: ignore[attr-defined]
    if saved and trainer.is_global_zero:
        step = trainer.global_step
        print(f"Stopped by SIGTERM after step {step}. Continue with --ckpt_path={saved}", file=sys.stderr)


def full_disk(error: BaseException, folder: Path) -> InvalidValueError | None:
    """The message of an error that means that a disk is full; None of any other.

    Args:
        error: What was raised.
        folder: The run's folder.
    """
    refused = system_error(error)
    if refused is None or not is_full(refused):
        return None
    named = refused.filename if isinstance(refused.filename, str) else None
    start = Path(named or folder).absolute()
    other = ", or write --run.dir=FOLDER on another disk" if start.is_relative_to(folder.absolute()) else ""
    what = named or f"a file of {folder}"
    return InvalidValueError(
        f"{refused.strerror}: {what} was not written, and {room(start)} are free there. Make room{other}."
    )


def _ended(end: SystemExit, debug: bool) -> int | None:
    if isinstance(end.__context__, KeyboardInterrupt):
        return _interrupted()
    if debug and end.__cause__ is not None:
        raise end.__cause__ from None
    return None if isinstance(end.code, str) else end.code or 0


def _interrupted(message: str = "") -> int:
    print(message or "Interrupted.", file=sys.stderr)
    return 130


def _message(error: BaseException) -> str | None:
    """One line on an error that the settings are the cause of; None for a bug."""
    message = str(error)
    if isinstance(error, TuningError):
        return message
    if isinstance(error, (MisconfigurationException, RuntimeError)) and (missing := _missing_metric(message)):
        return missing
    if isinstance(error, MisconfigurationException):
        if message.startswith("`train_dataloader` must be implemented"):
            return "There are no training data. Write --data=CLASS, e.g. --data=DigitsDataModule"
        return f"{message} Write --config=preset:cpu" if message == "No supported gpu backend found!" else message
    if isinstance(error, ValueError) and re.match(r"batch_size should be a positive integer", message):
        return f"{message}."  # torch's, of a loader
    if not isinstance(error, RuntimeError):
        return None
    if twice := re.match("Found more than one stateful callback of type `(.+?)`", message):
        return f"trainer.callbacks lists {twice[1]} twice, and a checkpoint cannot tell the two apart. Leave one out."
    if message.startswith("Error(s) in loading state_dict"):
        first = " ".join(message.splitlines()[1].split())
        return f"The checkpoint does not fit the model: {first} Give the model the arguments that it was trained with."
    return None


def _missing_metric(message: str) -> str | None:
    """Lightning's reports of a metric that nothing logs, with the nearest one that there is."""
    found = re.match(
        r"`?(\w+)(?:\(monitor=| stopping conditioned on metric | conditioned on metric )"
        r"['`]?(.+?)['`]?(?:\)`| which is not available\.).*?(?:metrics|following|are): (.*?)(?:\]|$)",
        message,
        re.DOTALL,
    )
    if not found:
        return None
    owner = "EarlyStopping" if found[1] == "Early" else found[1]
    names = re.findall(r"[`']([^`']+)[`']", found[3])
    hint = did_you_mean(found[2], names)
    return f"{owner} monitors {found[2]!r}, which was not logged{hint} There is: {', '.join(names)}."
