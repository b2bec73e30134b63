"""A picture of what the augmentations do, to look at before training."""

from __future__ import annotations

from pathlib import Path

from lightning_tuning.data.hashing import hashes
from lightning_tuning.data.image_datamodule import ImageDataModule
from lightning_tuning.errors import check_count


def save_views(datamodule: ImageDataModule, path: str | Path, n: int = 8) -> None:
    """Write a PNG with one labelled training image in each column: the original and below it every view.

    Args:
        datamodule: Whose views to draw, after ``setup``.
        path: File to write.
        n: Number of columns, at least 1; no more are drawn than there are labelled images.
    """
    from matplotlib.figure import Figure  # here, so that training does not wait for its import

    check_count("n", n, 1)
    indices = datamodule.labeled_indices[:n]
    seeds = hashes(len(indices), datamodule.effective_seed, "contact sheet")
    rows = len(datamodule.pipelines)
    figure = Figure(figsize=(len(indices), 0.4 + rows), layout="constrained")
    axes = figure.subplots(rows, len(indices), squeeze=False)
    samples = [datamodule.images[index] for index in indices]
    for row, name in enumerate(datamodule.pipelines):
        axes[row, 0].set_ylabel("original" if name == "none" else name)
        batch = datamodule.view(name).unnormalized(samples, seeds)
        images, masks = batch if isinstance(batch, tuple) else (batch, [None] * len(samples))
        for axis, image, mask in zip(axes[row], images, masks, strict=True):
            pixels = image.permute(1, 2, 0).numpy()
            axis.imshow(pixels, cmap="gray" if datamodule.in_channels == 1 else None, vmin=0, vmax=255)
            if mask is not None:
                axis.imshow(mask, cmap="tab20", alpha=0.5, vmin=0, vmax=20, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    if datamodule.task == "multiclass":
        for axis, index in zip(axes[0], indices, strict=True):
            axis.set_title(datamodule.class_names[datamodule.labels[index]])
    figure.savefig(path, dpi=110)
