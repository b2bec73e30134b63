"""Every kind of bad image as a file in a class folder, through a Trainer, in the main process and in workers."""

import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_tuning import ImageFolderDataModule, ImageTableDataModule
from lightning_tuning.data import BadSampleError
from lightning_tuning.errors import InvalidValueError

from .image_files import GOOD, GREY, RGB, exif, jpeg, png, three
from .pictures import Watcher, numbers_of, picture, trainer, write_folder
from .test_bad_images import AGAIN, bomb, changed, in_scan

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])
GIVEN = {"mean": [0.0] * 3, "std": [1.0] * 3}
PNG = png(RGB, 2)
BAD = {  # name: (name of the file, bytes or None for a link to nowhere, reason, remedy)
    "truncated": ("t.jpg", in_scan(jpeg()), "it is truncated", AGAIN),
    "corrupt": (
        "c.png",
        changed(PNG, len(PNG) // 2),
        "its PNG data are corrupt or of a kind that is not read",
        AGAIN,
    ),
    "empty": ("e.jpg", b"", "it is empty", AGAIN),
    "HTML": (
        "h.jpg",
        b"<html><title>404</title></html>",
        "it is no image but text that begins with '<html><title>404</title></html>'",
        AGAIN,
    ),
    "missing": ("m.jpg", None, "it does not exist", "Correct the path, or put the file there."),
    "bomb": (
        "b.png",
        bomb(),
        "it has 16384 x 16384 pixels, more than max_pixels = 64000000",
        "Shrink it, or raise max_pixels if the file can be trusted.",
    ),
}


def put(folder, name):
    path, data = folder / BAD[name][0], BAD[name][1]
    if data is None:
        path.symlink_to(folder / "nowhere.jpg")
    else:
        path.write_bytes(data)
    return path


def data_of(root, num_workers, **kwargs):
    defaults = {"image_size": 8, "resize": "squash", "augment": "none", "batch_size": 10, "val_size": 0, "test_size": 0}
    return ImageFolderDataModule(str(root), num_workers=num_workers, **{**GIVEN, **defaults, **kwargs})


def fit(data, folder, note=None, max_epochs=1):
    """What was seen in training and in evaluation, batch by batch."""
    model = Watcher(note or (lambda batch: [*zip(numbers_of(data, batch[0]), batch[1].tolist(), strict=True)]))
    trainer(folder, max_epochs=max_epochs, num_sanity_val_steps=0).fit(model, data)
    return [seen for *_, seen in model.seen], [seen for *_, seen in model.evaluated]


@WORKERS
@pytest.mark.parametrize("name", BAD)
def test_raise(tmp_path, name, num_workers):
    root = write_folder(tmp_path / "data", {"a": range(3), "b": range(3, 6)})
    path = put(root / "b", name)
    with pytest.raises(BadSampleError) as raised:
        fit(data_of(root, num_workers), tmp_path)
    assert str(raised.value) == f"{path}: {BAD[name][2]}. {BAD[name][3]}"
    assert raised.value.exit_code == 2


@WORKERS
@pytest.mark.parametrize("name", ["truncated", "missing"])
def test_raise_in_evaluation(tmp_path, name, num_workers):
    root = write_folder(tmp_path / "data", {f"{part}/{c}": range(3) for part in ("train", "val") for c in "ab"})
    path = put(root / "val" / "b", name)
    with pytest.raises(BadSampleError) as raised:
        fit(data_of(root, num_workers, val_size=None), tmp_path)
    assert str(raised.value) == f"{path}: {BAD[name][2]}. {BAD[name][3]}"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skip(tmp_path, num_workers):
    """All of them in one folder, 1 % exactly: named once, though they are drawn in two epochs."""
    root = write_folder(tmp_path / "data", {"a": range(100), "b": range(100, 200)})
    for number in range(394):  # the same pictures under other names
        (root / "ab"[number % 2] / f"copy{number}.png").hardlink_to(
            root / "ab"[number % 2] / f"{number % 2 * 100:03d}.png"
        )
    paths = [put(root / "b", name) for name in BAD]
    data = data_of(root, num_workers, on_bad_sample="skip", batch_size=100)
    with pytest.warns(UserWarning, match="6 of 600 samples are bad") as told:
        seen, _ = fit(data, tmp_path, max_epochs=2)
    assert [len(batch) for batch in seen] == [100] * 12
    assert all(label == int(number >= 100) for batch in seen for number, label in batch)
    assert data.bad_samples.count == 6
    (report,) = [str(warning.message) for warning in told if "samples are bad" in str(warning.message)]
    lines = report.splitlines()
    assert lines[0] == "6 of 600 samples are bad."
    indices = [data.keys.index(path.relative_to(root).as_posix()) for path in paths]
    reasons = [reason for _, _, reason, _ in BAD.values()]
    expected = sorted(zip(indices, paths, reasons, strict=True))
    assert lines[1:] == [f"{index}: {path}: {reason}." for index, path, reason in expected]


READ = {  # name: (name of the file, bytes, pixels, largest difference)
    "EXIF": ("e.png", png(RGB, 2, before=[(b"eXIf", exif(6))]), RGB[::-1].swapaxes(0, 1), 0),
    "EXIF in JPEG": ("e.jpg", jpeg(orientation=8, quality=100, subsampling=0), RGB[:, ::-1].swapaxes(0, 1), 3),
    "RGBA": ("r.png", *GOOD["PNG, alpha"]),
    "palette": ("p.png", *GOOD["PNG, palette"]),
    "CMYK": ("c.jpg", *GOOD["JPEG, CMYK by Adobe"]),
    "16 bits": ("s.png", *GOOD["PNG, 16 bits, RGB"]),
    "one channel": ("o.png", png(GREY, 0), three(GREY), 0),
}


@WORKERS
def test_what_can_be_read_is_right(tmp_path, num_workers):
    """Each is the only one of its class; the middle of 16 pixels is cropped without scaling."""
    for name, (file, data, *_) in READ.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / file).write_bytes(data)
    data = data_of(tmp_path / "data", num_workers, image_size=14, resize="crop", batch_size=len(READ))
    ((x, y),), _ = fit(data, tmp_path, lambda batch: batch)
    assert sorted(y.tolist()) == [*range(len(READ))]
    for image, label in zip((x * 255).permute(0, 2, 3, 1).numpy(), y.tolist(), strict=True):
        *_, pixels, difference = READ[data.class_names[label]]
        top, left = ((side - 14) // 2 for side in pixels.shape[:2])
        expected = pixels[top : top + 14, left : left + 14].astype(float)
        assert np.abs(image - expected).max() <= difference + 0.01, data.class_names[label]


def test_substitutes_are_the_same_in_every_run(tmp_path):
    """The next image that is good takes the place, with its own label, whatever the number of workers."""
    root = write_folder(tmp_path / "data", {"a": range(100), "b": range(100, 200)})
    settings = {"seed": 4, "mean": None, "std": None}
    whole, _ = fit(data_of(root, 0, **settings), tmp_path, max_epochs=2)
    normalize = data_of(root, 0, **settings)
    normalize.setup()
    given = {"mean": list(normalize.normalize.mean), "std": list(normalize.normalize.std)}
    # One in the middle of a class would leave its label as it was; the last of a class, and of all, do not.
    for bad, substitutes in (({17, 18}, {17: 19, 18: 19}), ({99}, {99: 100}), ({199, 0}, {199: 1, 0: 1})):
        kept = {number: (root / "ab"[number // 100] / f"{number:03d}.png") for number in bad}
        contents = {path: path.read_bytes() for path in kept.values()}
        for path in kept.values():
            path.write_bytes(b"")
        expected = [[substitutes.get(number, number) for number, _ in batch] for batch in whole]
        assert expected != [[number for number, _ in batch] for batch in whole]
        for num_workers in (0, 1, 2):
            data = data_of(root, num_workers, on_bad_sample="skip", seed=4, **given)
            with pytest.warns(UserWarning, match=r"of 200 samples (is|are) bad"):
                seen, _ = fit(data, tmp_path, max_epochs=2)
            assert [[number for number, _ in batch] for batch in seen] == expected
            assert all(label == number // 100 for batch in seen for number, label in batch)
        for path, content in contents.items():
            path.write_bytes(content)


def test_an_unlabelled_substitute_brings_its_own_id(tmp_path):
    root = write_folder(tmp_path, {"a": range(100), "b": range(100, 200)})
    (root / "a" / "099.png").write_bytes(b"")
    kwargs = {"num_labels": 10, "unlabeled_batch_size": 20, "weak_transforms": "none", "on_bad_sample": "skip"}
    data = data_of(root, 0, **kwargs, batch_size=5)
    data.setup()
    seen = []
    for batch in data.train_dataloader():
        part = batch["unlabeled"]
        numbers = numbers_of(data, part["weak"])
        assert part["index"].tolist() == numbers  # sample, number and id are one here
        assert part["target"].tolist() == [number // 100 for number in numbers]
        seen += numbers
    assert sorted(seen) == sorted([*range(99), 100, *range(100, 200)])


@WORKERS
def test_evaluation_goes_without(tmp_path, num_workers):
    folders = {
        f"{part}/{name}": numbers
        for part in ("train", "val")
        for name, numbers in (("a", range(100)), ("b", range(100, 200)))
    }
    root = write_folder(tmp_path / "data", folders)
    for number in (3, 4, 150):
        (root / "val" / "ab"[number // 100] / f"{number:03d}.png").write_bytes(b"")
    data = data_of(root, num_workers, on_bad_sample="skip", val_size=None, eval_batch_size=50)
    with pytest.warns(UserWarning, match="3 of 400 samples are bad"):
        seen, evaluated = fit(data, tmp_path)
    numbers = [number for batch in evaluated for number, _ in batch]
    assert numbers == [number for number in range(200) if number not in (3, 4, 150)]
    assert all(label == number // 100 for batch in evaluated for number, label in batch)
    assert [len(batch) for batch in evaluated] == [48, 50, 50, 49]
    assert sum(map(len, seen)) == 200


def test_metrics_count_what_was_measured(tmp_path):
    """Accuracy of a model that takes everything for an 'a': 4 of the 7 that can be read, not of 8."""
    from lightning_tuning import ImageClassifier

    folders = {"train/a": range(100), "train/b": range(100, 200), "test/a": range(4), "test/b": range(100, 104)}
    root = write_folder(tmp_path / "data", folders)
    (root / "test" / "b" / "102.png").write_bytes(b"")
    data = data_of(root, 0, on_bad_sample="skip", test_size=None, eval_batch_size=3)
    model = ImageClassifier(network="mlp", num_classes=2, image_size=8, in_channels=3)
    with torch.no_grad():
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 0.0]))
    with pytest.warns(UserWarning, match="1 of 208 samples is bad"):
        (metrics,) = trainer(tmp_path).test(model, data, verbose=False)
    assert metrics["test/accuracy"] == pytest.approx(4 / 7)


@WORKERS
def test_above_one_percent_it_stops(tmp_path, num_workers):
    root = write_folder(tmp_path / "data", {"a": range(50), "b": range(50, 100)})
    (root / "a" / "007.png").write_bytes(b"")
    data = data_of(root, num_workers, on_bad_sample="skip")
    with pytest.warns(UserWarning, match=r"1 of 100 samples is bad\."):
        fit(data, tmp_path)
    (root / "b" / "060.png").write_bytes(PNG[:60])
    with pytest.raises(InvalidValueError) as raised:
        fit(data_of(root, num_workers, on_bad_sample="skip"), tmp_path)
    assert str(raised.value) == (
        f"2 of 100 samples are bad, more than the 1.00% that may be skipped: {root}/a/007.png: it is empty; "
        f"{root}/b/060.png: it is truncated. Mend or remove the files."
    )


@WORKERS
def test_a_batch_without_a_good_sample(tmp_path, num_workers):
    root = write_folder(tmp_path / "data", {"train/a": range(100), "train/b": range(100, 200), "val/a": range(4)})
    (root / "val" / "a" / "002.png").write_bytes(b"")
    data = data_of(root, num_workers, on_bad_sample="skip", val_size=None, eval_batch_size=1)
    with pytest.raises(InvalidValueError) as raised:
        fit(data, tmp_path)
    assert str(raised.value) == (
        "The only sample of a batch is bad, and an empty batch cannot be evaluated. Mend or remove them, or raise "
        "eval_batch_size."
    )


def test_nothing_good_to_draw_from(tmp_path):
    root = write_folder(tmp_path / "data", {"a": range(100), "b": range(100, 200)})
    data = data_of(root, 0, on_bad_sample="skip", num_labels=2, batch_size=2)
    data.setup()
    for index in data.labeled_indices:
        (root / data.keys[index]).write_bytes(b"")
    with pytest.raises(InvalidValueError) as raised:
        fit(data_of(root, 0, on_bad_sample="skip", num_labels=2, batch_size=2), tmp_path)
    assert str(raised.value) == "All 2 samples to draw from are bad. Mend or remove them."


def test_a_mended_sample_is_no_bad_one_in_the_next_run(tmp_path):
    root = write_folder(tmp_path / "data", {"a": range(50), "b": range(50, 100)})
    (root / "a" / "007.png").write_bytes(b"")
    data = data_of(root, 0, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="1 of 100 samples is bad"):
        fit(data, tmp_path)
    (root / "a" / "007.png").write_bytes(png(picture(7), 2))
    seen, _ = fit(data, tmp_path)
    assert data.bad_samples.count == 0
    assert sorted(number for batch in seen for number, _ in batch) == [*range(100)]


@WORKERS
def test_masks(tmp_path, num_workers):
    """A class id out of range, and a mask of fractions, through a Trainer."""
    for n in range(200):
        (tmp_path / f"i{n}.png").write_bytes(png(picture(n), 2))
        (tmp_path / f"m{n}.png").write_bytes(png(np.full((8, 8), 7 if n == 5 else n % 2), 0))
    (tmp_path / "m9.png").write_bytes(np.full(64, np.nan, np.float32).tobytes())
    rows = [f"i{n}.png,m{n}.png" for n in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["image,mask", *rows]))
    kwargs = {"image_size": 8, "resize": "squash", "augment": "none", "val_size": 0, "test_size": 0, **GIVEN}
    kwargs |= {"mask": "mask", "classes": ["x", "y"], "batch_size": 20, "num_workers": num_workers}
    with pytest.raises(BadSampleError, match=r"m(5|9)\.png: it (holds the class ids 7, but|is no image)"):
        fit(ImageTableDataModule(str(tmp_path / "t.csv"), **kwargs), tmp_path, lambda batch: None)
    data = ImageTableDataModule(str(tmp_path / "t.csv"), **kwargs, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="2 of 200 samples are bad"):
        seen, _ = fit(
            data, tmp_path, lambda batch: [*zip(numbers_of(data, batch[0]), batch[1][:, 0, 0].tolist(), strict=True)]
        )
    numbers = sorted(number for batch in seen for number, _ in batch)
    assert numbers == sorted([*({*range(200)} - {5, 9}), 6, 10])
    assert all(label == number % 2 for batch in seen for number, label in batch)


def test_each_rank_tells_of_its_own(tmp_path, monkeypatch):
    """Only this rank has read them, and rank 0 knows nothing of them."""
    root = write_folder(tmp_path / "data", {"a": range(100), "b": range(100, 200)})
    data = data_of(root, 0, on_bad_sample="skip")
    data.setup()
    (root / data.keys[7]).write_bytes(b"")
    data.bad_samples.check(7, BadSampleError("a/007.png", "it is empty"))
    monkeypatch.setattr("lightning_utilities.core.rank_zero.rank_zero_only.rank", 1)
    data.trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=None)
    with pytest.warns(UserWarning, match=r"^Rank 1: 1 of 200 samples is bad\.\n7: .*a/007.png: it is empty\.$"):
        data.teardown("fit")
