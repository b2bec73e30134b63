"""Images with a line of text each, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tuning.functional import PixelScale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 17
"""Characters of a class's name that fit above an image, beside its probability."""
GOOD, BAD, PLAIN = "#1a7f37", "#c62828", "black"


@dataclass(frozen=True)
class Tile:
    """An image ``[C, H, W]``, as the network gets it, with its text."""

    image: Tensor
    text: str = ""
    color: str = PLAIN
    framed: bool = False


def are_images(x: object) -> bool:
    """Whether inputs can be drawn: floating, ``[N, C, H, W]``."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()


def are_ids(target: object) -> bool:
    """Whether targets are class ids ``[N]``."""
    return isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()


def class_name(trainer: Trainer, index: int) -> str:
    """What the datamodule calls a class, else its id, as a short line that matplotlib draws as it stands; "" for an
    unknown one (below 0)."""
    if index < 0:
        return ""
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    name = str(names[index]) if names is not None and index < len(names) else str(index)
    name = name if name.isprintable() else repr(name)[1:-1]
    half = (_LONGEST_NAME - 3) // 2
    name = name if len(name) <= _LONGEST_NAME else f"{name[:half]}...{name[-half:]}"
    return name.replace("$", r"\$")


def image_grid(
    trainer: Trainer, module: LightningModule, tiles: Sequence[Tile], title: str, columns: int = 8
) -> Figure:
    """Draw tiles row by row.

    Pixels are those before the module's or the datamodule's ``normalize``, where that tells a mean and a std; else each
    image is stretched from its smallest to its largest value.

    Args:
        trainer: The Trainer of the run.
        module: Its module.
        tiles: At least one.
        title: Text above them.
        columns: How many stand in a row.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    figure = Figure(figsize=(1.35 * columns, 0.5 + 1.6 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    scale = _scale(trainer, module)
    for axis, tile in zip(axes, tiles, strict=False):
        pixels = _pixels(tile.image.detach().float().cpu(), scale)
        axis.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(tile.text, fontsize=8, color=tile.color)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=tile.framed, color=tile.color, linewidth=3)
    for axis in axes[len(tiles) :]:
        axis.set_visible(False)
    return figure


def _scale(trainer: Trainer, module: LightningModule) -> PixelScale | None:
    owners = (module, getattr(trainer, "datamodule", None))
    scales = [PixelScale.of(getattr(owner, "normalize", None)) for owner in owners]
    return scales[0] or scales[1]


def _pixels(image: Tensor, scale: PixelScale | None) -> Any:
    """``[H, W, 3]`` for three channels, else ``[H, W]``: the channel, or the mean of a number that is no colour's."""
    if scale is not None and scale.fits(image[None]):
        image = scale.pixels(image[None])[0]
    else:
        low, high = image.amin(), image.amax()
        image = (image - low) / (high - low).clamp(min=1e-12)
    image = image.nan_to_num().clamp(0, 1)
    return (image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)).numpy()
