"""Augmenting a batch at once beside augmenting sample by sample: ``python tests/benchmarks/batch_augment.py``.

Both start from a uint8 array ``[N, 32, 32, 3]`` and end with a normalised float32 batch of 256 images, on the CPU and
with one thread. One side is the textbook's ``Dataset`` with an Albumentations ``Compose`` in a ``DataLoader``. The
other draws the samples' seeds, takes the images out of the array and applies ``DeviceAugment`` and ``fused_normalize``.
Printed are the process CPU times of a batch and their ratios within rounds in which the two take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_tuning.data import DeviceAugment
from lightning_tuning.data.hashing import hashes
from lightning_tuning.data.loader import quiet_opencv
from lightning_tuning.functional import fused_normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, ROUNDS, WARMUP = 256, 15, 2
IMAGES = np.random.default_rng(0).integers(0, 256, (8 * BATCH, 32, 32, 3), dtype=np.uint8)


class Textbook(Dataset):
    """One image at a time."""

    def __init__(self, transforms: list) -> None:
        self.transform = A.Compose([*transforms, A.Normalize(MEAN, STD), ToTensorV2()])

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(image=IMAGES[index])["image"]


def per_sample(erase: bool) -> Callable[[], Tensor]:
    transforms = [A.HorizontalFlip(p=0.5), A.Pad(4), A.RandomCrop(32, 32), *([A.Erasing(p=0.25)] if erase else [])]

    def batches():
        while True:
            yield from DataLoader(Textbook(transforms), BATCH, shuffle=True)

    return batches().__next__


def at_once(erase: bool) -> Callable[[], Tensor]:
    augment = DeviceAugment({"flip": 0.5, "crop": 4, **({"erase": 0.25} if erase else {})})
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    rng = np.random.default_rng(0)

    def batch() -> Tensor:
        seeds = torch.from_numpy(hashes(BATCH, 0, "augmentation", int(rng.integers(1000))).view(np.int64))
        x = torch.from_numpy(IMAGES[rng.choice(len(IMAGES), BATCH, replace=False)]).permute(0, 3, 1, 2).contiguous()
        return fused_normalize(augment(x, seeds), mean, std)

    return batch


def seconds(function: Callable[[], Tensor]) -> float:
    start = time.process_time()
    batch = function()
    end = time.process_time()
    assert batch.shape == (BATCH, 3, 32, 32)
    assert batch.dtype == torch.float32
    return end - start


def main() -> None:
    torch.set_num_threads(1)
    quiet_opencv()
    for erase in (False, True):
        sides = per_sample(erase), at_once(erase)
        rounds = [[seconds(side) for side in sides] for _ in range(ROUNDS + WARMUP)][WARMUP:]
        low, median, high = statistics.quantiles([slow / fast for slow, fast in rounds], n=4)
        times = [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]
        print(
            f"flip, crop{', erase' if erase else ''}, normalise: one by one {times[0]:.2f} ms, at once {times[1]:.2f} "
            f"ms, {median:.1f} times (quartiles {low:.1f} to {high:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
