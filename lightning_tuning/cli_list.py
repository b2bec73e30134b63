"""``lightning-tuning list``: the techniques, callbacks and presets there are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from lightning.pytorch import Callback

from lightning_tuning import callbacks
from lightning_tuning.mixins import TECHNIQUES
from lightning_tuning.mixins.composition import own_arguments
from lightning_tuning.presets import PREFIX, preset_description, preset_names


def listing() -> str:
    """All techniques with their keys, callbacks and presets, as text."""
    sections = {
        "Techniques (keys of model.init_args; at their off-values a technique does nothing)": _techniques(),
        "Callbacks (class_path in trainer.callbacks)": _callbacks(),
        f"Presets (--config {PREFIX}NAME)": _presets(),
    }
    return "\n\n".join("\n".join([f"{title}:", *lines]) for title, lines in sections.items())


def _techniques() -> Iterator[str]:
    for technique in TECHNIQUES:
        yield f"  {technique.__name__} [{technique.stage or 'any stage'}]: {_first_line(technique)}"
        off = ", ".join(f"{name}={value}" for name, value in technique.off.items())
        keys = ", ".join(f"{name}={p.default}" for name, p in own_arguments(technique).items())
        yield f"      {keys}; off: {off}"


def _callbacks() -> Iterator[str]:
    for name in callbacks.__all__:
        value = getattr(callbacks, name)
        if inspect.isclass(value) and issubclass(value, Callback):
            yield f"  {name}: {_first_line(value)}"


def _presets() -> Iterator[str]:
    width = max(map(len, preset_names()))
    return (f"  {name:<{width}}  {preset_description(name)}" for name in preset_names())


def _first_line(cls: type) -> str:
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    return " ".join(paragraph.split())
