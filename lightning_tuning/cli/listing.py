"""The techniques, callbacks and presets there are, as ``lightning-tuning list`` prints them from ``listing.txt``.

``python -m lightning_tuning.cli.listing`` writes that file anew.
"""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Iterator

from lightning.pytorch import Callback

from lightning_tuning import callbacks
from lightning_tuning.cli.pages import LISTING
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
    for stage, techniques in itertools.groupby(TECHNIQUES, lambda technique: technique.stage):
        yield f" [{stage or 'any stage'}]"
        for technique in techniques:
            yield from _entry(technique)
            off = ", ".join(f"{name}={value}" for name, value in technique.off.items())
            keys = ", ".join(f"{name}={p.default}" for name, p in own_arguments(technique).items())
            yield from _lines(keys, 6, 6)
            yield from _lines(f"off: {off}", 6, 6)


def _callbacks() -> Iterator[str]:
    for name in callbacks.__all__:
        value = getattr(callbacks, name)
        if inspect.isclass(value) and issubclass(value, Callback):
            yield from _entry(value)


def _presets() -> Iterator[str]:
    width = max(map(len, preset_names()))
    for name in preset_names():
        yield from _lines(f"{name:<{width}}  {preset_description(name)}", 2, width + 4)


def _entry(cls: type) -> Iterator[str]:
    """A class and the first paragraph of its docstring."""
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    return _lines(f"{cls.__name__}: {' '.join(paragraph.split())}".replace("``", ""), 2, 4)


def _lines(text: str, first: int, indent: int) -> Iterator[str]:
    yield from textwrap.wrap(
        text, 120, initial_indent=" " * first, subsequent_indent=" " * indent, break_on_hyphens=False
    )


if __name__ == "__main__":
    LISTING.write_text(f"{listing()}\n", encoding="utf-8")
