"""Batches from files do not depend on how many processes read them, nor on how these were started."""

import hashlib

import numpy as np
import pytest

from lightning_tuning import (
    ArrayDataModule,
    ImageFolderDataModule,
    ImageTableDataModule,
    TableDataModule,
    TextDataModule,
)
from lightning_tuning.data import KeyedLoader

from .image_files import png
from .pictures import SIZE, digest, tensors

SAMPLES, EPOCHS = 24, 2


def noise(number):
    """A picture unlike any other: uint8 [8, 8, 3]."""
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    (root / "arrays").mkdir()
    for number in range(SAMPLES):
        folder = root / "folder" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.png").write_bytes(png(noise(number), 2))
        (root / f"m{number:02d}.png").write_bytes(png(noise(100 + number)[..., 0] % 3, 0))
    np.save(root / "arrays" / "x_train.npy", np.stack([noise(number) for number in range(SAMPLES)]))
    np.save(root / "arrays" / "y_train.npy", np.arange(SAMPLES) % 2)
    masks = [f"folder/{'ab'[n % 2]}/{n:02d}.png,m{n:02d}.png" for n in range(SAMPLES)]
    (root / "masks.csv").write_text("\n".join(["image,mask", *masks]))
    draws = np.random.default_rng(0)
    texts = [f"{' '.join(draws.permutation(WORDS))}.,{n % 2}" for n in range(SAMPLES)]
    (root / "texts.csv").write_text("\n".join(["text,label", *texts]))
    vectors = [f"{n % 7},{n * n % 11},{n % 2}" for n in range(SAMPLES)]
    (root / "vectors.csv").write_text("\n".join(["x,z,label", *vectors]))
    return root


IMAGES = {"augment": "strong", "image_size": 8, "flip": True}
STREAMS = {"unlabeled_batch_size": 8}
MAKERS = {
    "folder": lambda root, **kw: ImageFolderDataModule(
        str(root / "folder"), **IMAGES, resize="squash", **STREAMS, **kw
    ),
    "masks": lambda root, **kw: ImageTableDataModule(
        str(root / "masks.csv"), mask="mask", classes=["x", "y", "z"], **IMAGES, **kw
    ),
    "arrays": lambda root, **kw: ArrayDataModule(str(root / "arrays"), **IMAGES, **STREAMS, **kw),
    "text": lambda root, **kw: TextDataModule(str(root / "texts.csv"), augment="strong", **STREAMS, **kw),
    "vectors": lambda root, **kw: TableDataModule(
        str(root / "vectors.csv"), target="label", noise=0.1, **STREAMS, **kw
    ),
}


def made(name, root, **kwargs):
    data = MAKERS[name](root, **{"batch_size": 4, "val_size": 0, "test_size": 0, **kwargs})
    data.setup()
    return data


def epochs_of(loader, epochs=range(EPOCHS)):
    """Hashes of the batches of each epoch, read as the Trainer does."""
    seen = []
    for epoch in epochs:
        batches = iter(loader)
        loader.sampler.set_epoch(epoch)
        seen.append([digest(batch) for batch in batches])
    return seen


@pytest.fixture(scope="module")
def expected(files):
    """What one process reads."""
    return {name: epochs_of(made(name, files).train_dataloader()) for name in MAKERS}


WAYS = [
    pytest.param(
        name,
        workers,
        start,
        persistent,
        id=f"{name}-{workers}-{start}-{'persistent' if persistent else 'anew'}",
        marks=() if start == "fork" and (name == "folder" or (workers, persistent) == (2, True)) else pytest.mark.slow,
    )
    for name in MAKERS
    for workers in (1, 2, 4)
    for start in ("fork", "spawn")
    for persistent in (True, False)
    # A spawned process imports all anew, which takes seconds: every way for two of the sources, one for the others.
    if start == "fork" or name in ("masks", "text") or (workers, persistent) == (2, True)
]


@pytest.mark.parametrize(("name", "workers", "start", "persistent"), WAYS)
def test_any_way_to_read_gives_the_same_batches(files, expected, name, workers, start, persistent):
    alone = made(name, files).train_dataloader()
    loader = KeyedLoader(
        alone.dataset, alone.sampler, workers, multiprocessing_context=start, persistent_workers=persistent
    )
    assert epochs_of(loader) == expected[name]
    once = {hashed for epoch in expected[name] for hashed in epoch}
    assert len(once) == sum(map(len, expected[name])) > 5


def test_spawned_workers_read_files(files, expected):
    """The one of the slow rows above that is always run."""
    alone = made("masks", files).train_dataloader()
    loader = KeyedLoader(alone.dataset, alone.sampler, 1, multiprocessing_context="spawn")
    assert epochs_of(loader) == expected["masks"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_datamodules_own_workers(files, expected, name):
    loader = made(name, files, num_workers=2).train_dataloader()
    assert (loader.num_workers, loader.persistent_workers) == (2, True)
    assert epochs_of(loader) == expected[name]
    evaluation = [[digest(b) for b in made(name, files, num_workers=n, test_size=7).test_dataloader()] for n in (0, 2)]
    assert evaluation[0] == evaluation[1]


@pytest.mark.parametrize("name", ["folder", "masks", "arrays"])
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_distinct_augmentations_are_samples_times_epochs(files, name, num_workers):
    """Of all labelled samples in four epochs no two views are equal; the pictures have no two equal rows."""
    data = made(name, files, num_workers=num_workers, steps_per_epoch=SAMPLES // 4)
    loader = data.train_dataloader()
    views, indices = set(), 0
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            x = batch["labeled"][0] if isinstance(batch, dict) else batch[0]
            for image in x.numpy():
                views.add(hashlib.sha1(image.tobytes()).hexdigest())
                indices += 1
    assert indices == 4 * SAMPLES
    assert len(views) == 4 * SAMPLES


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_within_an_epoch_gives_the_same_rest(files, expected, name, num_workers):
    first, second = (made(name, files, num_workers=num_workers).train_dataloader() for _ in range(2))
    first.sampler.set_epoch(1)
    batches = iter(first)
    done = [digest(next(batches)) for _ in range(2)]
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(1)
    rest = [digest(batch) for batch in second]
    assert done + rest == expected[name][1]
    assert len(rest) == len(expected[name][1]) - 2 >= 1


def test_nothing_hashed_is_empty(files):
    for name in MAKERS:
        batch = next(iter(made(name, files).train_dataloader()))
        assert all(tensor.numel() for tensor in tensors(batch))
