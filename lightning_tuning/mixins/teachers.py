"""Networks that are named in arguments and checkpoints: where a class is found again, and how a teacher is loaded."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning.checkpoint_file import checked, load_checked
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import get_rng_state, set_rng_state

_CLASS_KEY = "lightning_tuning_class"


def note_class(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint what :func:`load_teacher` finds the module's class by."""
    if path := class_path_of(module):
        checkpoint[_CLASS_KEY] = path


def class_path_of(module: nn.Module) -> str | None:
    """The import path of the class of ``module``; None for a class that cannot be imported, such as a local one.

    Of a ready host with techniques it is the host's.
    """
    cls = type(module)
    names = [cls.__name__] if "<locals>" in cls.__qualname__ else cls.__qualname__.split(".")
    found: Any = sys.modules.get(cls.__module__)
    for name in names:
        found = getattr(found, name, None)
    return ".".join([cls.__module__, *names]) if isinstance(found, type) and found in cls.__mro__ else None


def imported(argument: str, path: str) -> Any:
    """The class or function at an import path such as ``package.module.Name``.

    Args:
        argument: What names it, for the message.
        path: The import path.

    Raises:
        InvalidValueError: There is no such thing, or its module fails to load.

    Example:
        >>> imported("frozen_teacher_class", "torch.nn.Linear").__name__
        'Linear'
        >>> imported("frozen_teacher_class", "torch.nn.Liner")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: frozen_teacher_class is 'torch.nn.Liner', which cannot be imported: \
module 'torch.nn' has no attribute 'Liner'. Write the path of a class or function, as in package.module.Name.
    """
    parts = path.split(".") if isinstance(path, str) else []
    try:
        for length in range(len(parts) - 1, 0, -1):
            name = ".".join(parts[:length])
            try:
                found: Any = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if length > 1 and name.startswith(str(error.name)):
                    continue  # Outer in package.module.Outer.Name is no module
                raise
            for part in parts[length:]:
                found = getattr(found, part)
            return found
        reason = "it names no module"
    except Exception as error:  # a module may raise anything while it loads
        reason = str(error) or type(error).__name__
    raise InvalidValueError(
        f"{argument} is {path!r}, which cannot be imported: {reason.rstrip('.')}. Write the path of a class or "
        "function, as in package.module.Name."
    )


def load_teacher(checkpoint: str | None, class_path: str | None, otherwise: type[LightningModule]) -> nn.Module:
    """A network in evaluation mode and without gradients; the random generators stay as they are.

    Args:
        checkpoint: A Lightning checkpoint, or a file with a state dict. None: ``class_path`` alone makes the network.
        class_path: The import path of what makes it. None: the class that the checkpoint names.
        otherwise: The class where the checkpoint names none.

    Raises:
        InvalidValueError: One of the two is no network, or they do not fit together.
    """
    rng = get_rng_state(torch.device("cpu"))
    try:
        if checkpoint is not None:
            teacher = _loaded(checkpoint, class_path, otherwise)
        else:
            teacher = _made(imported("frozen_teacher_class", class_path or ""), class_path or "")
    finally:
        set_rng_state(rng)
    return teacher.requires_grad_(False).eval()


def fingerprint(module: nn.Module) -> str:
    """A digest of all weights and buffers of ``module``, their names, shapes and types."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _made(make: Callable[[], Any], name: str) -> nn.Module:
    try:
        made = make()
    except Exception as error:
        raise InvalidValueError(
            f"frozen_teacher_class={name!r} cannot be called without arguments: {_brief(error)} Name a function that "
            "makes the network, or a LightningModule's class together with frozen_teacher_checkpoint."
        ) from error
    if not isinstance(made, nn.Module):
        raise InvalidValueError(
            f"frozen_teacher_class={name!r} returned a {type(made).__name__}; it must return an nn.Module."
        )
    return made


def _loaded(path: str, class_path: str | None, otherwise: type[LightningModule]) -> nn.Module:
    content = _read(path)
    cls: Any = _class_of(path, content, class_path, otherwise)
    name = class_path or cls.__name__
    whole = isinstance(cls, type) and issubclass(cls, LightningModule) and "state_dict" in content
    network = None if whole else _made(cls, name)
    try:
        if network is None:
            return load_checked(cls.load_from_checkpoint, path, map_location="cpu")
        network.load_state_dict(content.get("state_dict", content))
    except Exception as error:
        raise InvalidValueError(
            f"frozen_teacher_checkpoint={path!r} cannot be loaded as {name}: {_brief(error)} Name the class that it "
            "was saved from in frozen_teacher_class."
        ) from error
    return network


def _class_of(path: str, content: dict[str, Any], class_path: str | None, otherwise: type[LightningModule]) -> Any:
    if class_path is not None:
        return imported("frozen_teacher_class", class_path)
    named = content.get(_CLASS_KEY)
    if named is None:
        return otherwise
    own = named.startswith("lightning_tuning.")
    found = imported(f"The class of frozen_teacher_checkpoint={path!r}", named) if own else _known(named)
    if found is None:
        raise InvalidValueError(
            f"frozen_teacher_checkpoint={path!r} was saved from {named!r}, which is not imported, and a checkpoint may "
            f"not say what is. Write frozen_teacher_class={named!r}, if that is your class."
        )
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise InvalidValueError(
            f"frozen_teacher_checkpoint={path!r} names {named!r}, which is no LightningModule. Name its class in "
            "frozen_teacher_class."
        )
    return found


def _read(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InvalidValueError(f"frozen_teacher_checkpoint is {path!r}, but there is no such file.")
    try:
        with checked(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidValueError(
            f"frozen_teacher_checkpoint={path!r} cannot be read without executing code: {_brief(error)} Save it with "
            "trainer.save_checkpoint or torch.save(module.state_dict(), path)."
        ) from error
    if not isinstance(content, dict):
        raise InvalidValueError(
            f"frozen_teacher_checkpoint={path!r} holds a {type(content).__name__}; it must be a Lightning checkpoint "
            "or a state dict."
        )
    return content


def _brief(error: Exception) -> str:
    """What an error says, in at most three lines made one, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:3])
    text = text if len(text) <= 300 else f"{text[:300]}..."
    return text if text.endswith(".") else f"{text}."


def _known(path: str) -> Any:
    """What a path stands for in the modules that are imported already, or None."""
    names = path.split(".")
    for count in range(len(names) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(names[:count]))
        if found is not None:
            for name in names[count:]:
                found = getattr(found, name, None)
            return found
    return None
