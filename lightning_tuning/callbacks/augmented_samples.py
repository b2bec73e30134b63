"""AugmentedSamples: the first training images as the network gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tuning.errors import check_count

from ._image_grid import Tile, are_ids, are_images, class_name, image_grid
from ._pictures import save_picture


class AugmentedSamples(Callback):
    """Draws images of the first training batch, one row for each view, as ``augmented_samples.png`` in the run's folder
    and as an image at Weights & Biases and TensorBoard: what the network gets, after all augmentation of the data, also
    that on the device, and before mixup and the like.

    Batches are ``(x, y)``, or ``{"labeled": (x, y), "unlabeled": ...}``, whose views get a row each. What is no image
    ``[N, C, H, W]`` is left out. ``lightning_tuning.data.save_views`` draws the same before a run, with the originals.

    Args:
        n: How many images of the batch stand in a row, at least 1.

    Raises:
        InvalidValueError: ``n`` is not allowed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AugmentedSamples()], logger=False, accelerator="cpu")
    """

    def __init__(self, n: int = 8) -> None:
        super().__init__()
        check_count("n", n, 1)
        self.n = n
        self._drawn = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._drawn:
            return
        self._drawn = True
        tiles, views = [], _views(batch)
        columns = min([self.n, *(len(x) for x, _ in views.values())])
        for name, (x, target) in views.items():
            row = x[:columns]
            known = are_ids(target)
            texts = [class_name(trainer, int(k)) if known else "" for k in (target[:columns] if known else row)]
            tiles += [
                Tile(image, ": ".join(filter(None, (name if not i else "", text))))
                for i, (image, text) in enumerate(zip(row, texts, strict=False))
            ]
        if tiles:
            figure = image_grid(trainer, pl_module, tiles, "training images, as the network gets them", columns)
            save_picture(trainer, figure, "augmented_samples")


def _views(batch: Any) -> dict[str, tuple[Tensor, Any]]:
    """The images of a batch with their classes, by the name of their row."""
    parts = batch if isinstance(batch, Mapping) else {"": batch}
    views: dict[str, tuple[Any, Any]] = {}
    for part, value in parts.items():
        if part == "unlabeled" and isinstance(value, Mapping):
            views |= {name: (x, value.get("target")) for name, x in value.items()}
        elif part == "unlabeled" and isinstance(value, (tuple, list)):
            views |= dict(zip(("weak", "strong"), ((x, None) for x in value), strict=False))
        else:
            items = value if isinstance(value, (tuple, list)) else (value,)
            views[part] = (items[0], items[1] if len(items) > 1 else None)
    return {name: pair for name, pair in views.items() if are_images(pair[0])}
