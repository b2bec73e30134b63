"""The option, class, module or file that a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger

from lightning_tuning.errors import did_you_mean
from lightning_tuning.presets import PREFIX, preset_names

PLACES: tuple[Any, ...] = (LightningModule, LightningDataModule, Callback, Logger)
"""What a class named in a configuration can stand for."""
_WANTED = dict(zip(("model", "data", "trainer.callbacks", "trainer.logger"), PLACES, strict=True))


def nearest_option(name: str, parser: ArgumentParser) -> str:
    """The sentence on an option that there is not, with the file that it stands in.

    Args:
        name: The option without its dashes, or a key of a configuration with its parents.
        parser: The parser of the subcommand.
    """
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--") and not flag.endswith(".help")]
    options = [flag.removeprefix("--").removesuffix("+") for flag in flags]
    group, _, last = name.rpartition(".")
    siblings = {leaf: option for option in options for parent, _, leaf in [option.rpartition(".")] if parent == group}
    # Of an option without a group the group may be what is missing.
    leaves = siblings if group else {option.rpartition(".")[2]: option for option in options} | siblings
    if close := difflib.get_close_matches(last, leaves, n=1, cutoff=0.6 if group else 0.8):
        hint = f"; did you mean {leaves[close[0]]!r}?"
    elif f"{name}:" == PREFIX:
        hint = f". A preset is written --config={PREFIX}NAME"
    elif group:
        hint = did_you_mean(name, options, 0.8)
    else:
        hint = f". An argument of the model is written --model.{name}, one of the Trainer --trainer.{name}"
    file = _file_of(name.split("."), getattr(parser, "configs_read", []))
    return f"{f'{file}: ' if file else ''}There is no option {name!r}{hint}"


def _file_of(keys: list[str], files: Iterable[Any]) -> str | None:
    """The last of the files that has this key."""
    for file in reversed([str(file) for file in files]):
        try:
            content: Any = yaml.safe_load(Path(file).read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue  # a preset or a text
        for key in keys:
            content = content.get(key, _file_of) if isinstance(content, dict) else _file_of
        if content is not _file_of:
            return file
    return None


def wrong_kind(name: str, key: str | None) -> str | None:
    """The sentence on a class that stands where one of another kind is needed; None if that is not so."""
    wanted = _WANTED.get(key or "")
    found = next((place for place in PLACES for cls in _subclasses(place) if cls.__name__ == name), None)
    if wanted is None or found in (None, wanted):
        return None
    return f"{name} is a {found.__name__}; here a {wanted.__name__} is needed."


def nearest_class(name: str, key: str | None = None) -> str:
    """How a sentence on an unknown class ends: case and underscores do not count, and a part of the name will do.

    Args:
        name: What came.
        key: Where it came; the class is one that fits there.

    Example:
        >>> nearest_class("tensorboard"), nearest_class("rich_progress_bar")
        ("; did you mean 'TensorBoardLogger'?", "; did you mean 'RichProgressBar'?")
    """
    places = (_WANTED[key],) if key in _WANTED else PLACES
    names = {cls.__name__.lower(): cls.__name__ for place in places for cls in _subclasses(place)}
    plain = name.replace("_", "").lower()
    close = difflib.get_close_matches(plain, names, n=1) or [known for known in names if known.startswith(plain)]
    return f"; did you mean {names[close[0]]!r}?" if close else "."


def nearest_module(name: str) -> str:
    """How a sentence on an unknown module ends."""
    return did_you_mean(name, [path.stem for path in Path().glob("*.py")])


def nearest_config(name: str) -> str:
    """How a sentence on a configuration that there is not ends: with a file beside or in it, or a preset."""
    if Path(name).is_dir():
        inside = sorted((path for path in Path(name).rglob("*.y*ml")), key=lambda path: len(path.parts))
        return f"; did you mean {str(inside[0])!r}?" if inside else ". Write the path of a file."
    if name in preset_names():
        return f"; did you mean {PREFIX + name!r}?"
    beside = (str(path) for path in Path(name).parent.glob("*.y*ml"))
    return did_you_mean(name, [*beside, *(PREFIX + preset for preset in preset_names())], 0.75)


def _subclasses(base: Any) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)
