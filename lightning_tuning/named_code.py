"""Arguments in a file that stand for code: by a file's word nothing is imported, and little else is used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_tuning.errors import CheckpointError

_MAY_BE_NAMED = (nn.Module, Optimizer, LRScheduler)


def refuse_code(source: object, arguments: Any, place: str, instead: str) -> None:
    """Raise if arguments that a checkpoint brings name code that it may not name.

    Args:
        source: The checkpoint, for the message.
        arguments: What it brings.
        place: What they are arguments of.
        instead: What the user can do, as an end of a sentence.

    Raises:
        CheckpointError: One of them does.
    """
    for where, name in names_of_code(arguments, place):
        if not may_be_named(name):
            raise CheckpointError(
                f"{source} sets {where} to {name!r}, which is neither a network, an optimizer nor a scheduler that is "
                f"imported already. A checkpoint may not say what is imported: {instead}."
            )


def names_of_code(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """The places in arguments that hold an import path or the path of a file of settings, and these paths.

    A text is looked at as jsonargparse does: it may be YAML, or name a file of YAML.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from names_of_code(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from names_of_code(item, f"{place}.{number}")
    elif isinstance(value, str):
        if place.endswith(".class_path") or _is_import_path(value) or _is_settings_file(value):
            yield place, value
        elif isinstance(loaded := _loaded(value), (str, dict, list)) and loaded != value:
            yield from names_of_code(loaded, place)


def may_be_named(path: str) -> bool:
    """Whether an import path in a checkpoint is that of a network, optimizer or scheduler which is imported already."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, _MAY_BE_NAMED)


def _is_import_path(text: str) -> bool:
    """Whether a text of several names with dots between them begins with a module that can be imported."""
    root, *names = text.split(".")
    if not names or not all(name.isidentifier() for name in (root, *names)):
        return False
    if root in sys.modules and sys.modules[root].__spec__ is None:  # such as __main__
        return True
    spec = sys.modules[root].__spec__ if root in sys.modules else find_spec(root)
    for name in names:  # a folder without __init__.py is no code itself, but what is in it may be
        if spec is None or spec.origin is not None:
            break
        spec = PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations)
    return spec is not None and spec.origin is not None


def _is_settings_file(text: str) -> bool:
    try:
        path = Path(text).expanduser()
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if b"\0" in file.read(2**16):  # in no YAML
                return False
        loaded = _loaded(path.read_text())
    except (OSError, ValueError, RuntimeError):  # no name of a file, no text, no home
        return False
    return isinstance(loaded, (dict, list)) or (isinstance(loaded, str) and _is_import_path(loaded))


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a date that is none is a ValueError
        return text
