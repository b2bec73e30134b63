"""The loaders beside a textbook's ``Dataset`` and ``DataLoader``: ``python tests/benchmarks/data_throughput.py``.

The textbook's ``__getitem__`` applies an Albumentations ``Compose`` of the same transforms, ``Normalize`` and
``ToTensorV2`` to each sample and view; its ``DataLoader`` shuffles and collates. For two streams it has two loaders.
Ours are those of the datamodules with what the Trainer does after them: uint8 batches, normalised as a whole. Each has
one thread for each process. The two take turns, an epoch each. Printed for a batch are the CPU time of the process and
its workers, the ratio of the two within the rounds, the same for the time on the clock, which counts on a machine with
nothing else to do, and what must be done in any case: copying the images that the batch shows, or decoding them. Names
of cases may be given, such as ``jpeg``. Linux only.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import batch_augment
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from torch.utils.data import DataLoader, Dataset

from lightning_tuning.data import ArrayDataModule, ImageFolderDataModule, named_transforms
from lightning_tuning.data.loader import quiet_opencv

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
ROUNDS, WARMUP, WORKERS = 9, 1, (0, 2)
LABELED, UNLABELED, STEPS = 64, 448, 8
JPEG_BATCH, JPEG_STEPS = 64, 4
Epoch = Callable[[], None]


class Textbook(Dataset):
    """One sample at a time, in one or more views."""

    def __init__(self, read: Callable[[int], np.ndarray], labels: np.ndarray, lists: Sequence[list]) -> None:
        self.read = read
        self.labels = labels
        self.views = [A.Compose([*transforms, A.Normalize(MEAN, STD), ToTensorV2()]) for transforms in lists]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image = self.read(index)
        return *(view(image=image)["image"] for view in self.views), int(self.labels[index])


def textbook(datasets: Sequence[tuple[Dataset, int]], steps: int, workers: int) -> Epoch:
    """An epoch of one loader for each dataset, with its batch size."""
    loaders = [
        DataLoader(dataset, size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        for dataset, size in datasets
    ]

    def epoch() -> None:
        assert sum(1 for _ in zip(*loaders, strict=True)) == steps

    return epoch


def ours(datamodule: Any, steps: int) -> Epoch:
    """An epoch as the Trainer reads it."""
    datamodule.setup()
    datamodule.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    datamodule.trainer.state.status = TrainerStatus.RUNNING
    loader = datamodule.train_dataloader()

    def epoch() -> None:
        loader.sampler.set_epoch(loader.sampler.epoch + 1)
        assert sum(1 for batch in loader if datamodule.on_after_batch_transfer(batch, 0)) == steps

    return epoch


def cpu_time() -> float:
    """CPU seconds of this process and its workers so far."""
    clocks = [(~child.pid << 3) | 2 for child in multiprocessing.active_children() if child.pid is not None]
    return time.process_time() + sum(map(time.clock_gettime, clocks))


def seconds(epoch: Epoch) -> tuple[float, float]:
    """CPU time and time on the clock."""
    cpu, clock = cpu_time(), time.perf_counter()
    epoch()
    return cpu_time() - cpu, time.perf_counter() - clock


def compare(
    title: str, sides: tuple[Epoch, Epoch], ceilings: dict[str, Epoch], steps: int, target: float | None
) -> None:
    rounds = []
    for number in range(ROUNDS + WARMUP):
        order = (0, 1) if number % 2 else (1, 0)
        times = {side: seconds(sides[side]) for side in order}
        rounds.append((times[0], times[1], [seconds(ceiling)[0] for ceiling in ceilings.values()]))
    rounds = rounds[WARMUP:]
    (low, cpu, high), (_, clock, _) = (
        statistics.quantiles([slow[kind] / fast[kind] for slow, fast, _ in rounds], n=4) for kind in (0, 1)
    )
    slow, fast = (1e3 * statistics.median(r[side][0] for r in rounds) / steps for side in (0, 1))
    least = {name: 1e3 * statistics.median(r[2][place] for r in rounds) / steps for place, name in enumerate(ceilings)}
    print(
        f"{title:54} {slow:8.2f} ms {fast:8.2f} ms {cpu:6.2f} ({low:.2f} to {high:.2f}) {clock:6.2f}   "
        f"{'' if target is None else target:5}   "
        + ", ".join(f"{name} {value:.2f} ms (textbook / {slow / value:.1f})" for name, value in least.items()),
        flush=True,
    )


def arrays(folder: Path) -> Iterator[tuple]:
    rng = np.random.default_rng(0)
    count = STEPS * (LABELED + UNLABELED)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    np.savez(folder / "a.npz", x_train=images, y_train=labels)

    def module(**kwargs: Any) -> ArrayDataModule:
        settings = {"flip": True, "val_size": 0, "test_size": 0, "steps_per_epoch": STEPS, **kwargs}
        return ArrayDataModule(str(folder / "a.npz"), **settings)

    def ceiling(copies: int) -> dict[str, Epoch]:
        def copy() -> None:
            for order in np.split(rng.permutation(count), STEPS):
                for _ in range(copies):
                    np.stack([images[index] for index in order.tolist()])

        return {"copy": copy}

    weak, strong = (named_transforms(name, 32, 3, flip=True) for name in ("weak", "strong"))
    for workers in WORKERS:
        for name, transforms, target in [("weak", weak, 4.0), ("strong", strong, None)]:
            sides = (
                textbook([(Textbook(images.__getitem__, labels, [transforms]), LABELED + UNLABELED)], STEPS, workers),
                ours(module(augment=name, batch_size=LABELED + UNLABELED, num_workers=workers), STEPS),
            )
            yield f"32x32, {name}, {LABELED + UNLABELED}", workers, sides, ceiling(1), STEPS, target
        labeled = Textbook(images[: STEPS * LABELED].__getitem__, labels[: STEPS * LABELED], [weak])
        rest = Textbook(images[STEPS * LABELED :].__getitem__, labels[STEPS * LABELED :], [weak, strong])
        sides = (
            textbook([(labeled, LABELED), (rest, UNLABELED)], STEPS, workers),
            ours(module(batch_size=LABELED, unlabeled_batch_size=UNLABELED, num_workers=workers), STEPS),
        )
        yield f"32x32, {LABELED} weak + {UNLABELED} weak and strong", workers, sides, ceiling(2), STEPS, 1.5


def jpeg(folder: Path) -> Iterator[tuple]:
    paths = pictures(folder / "pictures", JPEG_BATCH * JPEG_STEPS)
    labels = np.array([int(Path(path).parent.name) for path in paths])
    rng = np.random.default_rng(1)

    def decode(path: str) -> np.ndarray:
        return cv2.cvtColor(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def decode_all() -> None:
        for index in rng.permutation(len(paths)).tolist():
            decode(paths[index])

    def copy() -> None:
        for _ in range(JPEG_STEPS):
            np.copy(shown)

    shown = np.zeros((JPEG_BATCH, 224, 224, 3), np.uint8)
    transforms = named_transforms("resized_crop", 224, 3, flip=True)
    for workers in WORKERS:
        datamodule = ImageFolderDataModule(
            str(folder / "pictures"),
            image_size=224,
            augment="resized_crop",
            flip=True,
            mean=MEAN,
            std=STD,
            val_size=0,
            test_size=0,
            batch_size=JPEG_BATCH,
            num_workers=workers,
        )
        dataset = Textbook(lambda index: decode(paths[index]), labels, [transforms])
        sides = textbook([(dataset, JPEG_BATCH)], JPEG_STEPS, workers), ours(datamodule, JPEG_STEPS)
        ceilings = {"decode": decode_all, "copy": copy}
        yield f"JPEG 256 to 224, {JPEG_BATCH}", workers, sides, ceilings, JPEG_STEPS, 1.15 if workers else 1.3


def pictures(folder: Path, count: int) -> list[str]:
    """Smooth pictures with some noise, 256x256, of two classes; JPEG files of about 30 KB."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = cv2.resize(rng.uniform(0, 255, (12, 12, 3)), (256, 256), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(str(path))
    size = statistics.mean(Path(path).stat().st_size for path in paths) / 1024
    print(f"({count} JPEG files of {size:.0f} KB on average)")
    return paths


CASES = {"arrays": arrays, "jpeg": jpeg}


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    quiet_opencv()
    print(
        f"{'A batch of':54} {'textbook':>11} {'ours':>11}   CPU ratio (quartiles)  clock  target   ceilings, 1 process"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in names or CASES:
            for title, workers, *rest in CASES[name](Path(folder)):
                compare(f"{title}, {workers} workers", *rest)
    if not names:
        print("Whole batches on the device beside one by one (batch_augment.py), target 3.5:")
        batch_augment.main()


if __name__ == "__main__":
    main(sys.argv[1:])
