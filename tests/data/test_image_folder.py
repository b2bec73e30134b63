"""Images in a folder for each class: layouts, classes, parts, groups, images without a label, statistics."""

import warnings

import numpy as np
import pytest
import torch

from lightning_tuning import FixMatchMixin, ImageFolderDataModule, compose
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.modules.classifier import Classifier

from .image_files import RGB, jpeg
from .pictures import Watcher, numbers_of, picture, trainer, write, write_folder


def folder(path, **kwargs):
    """Set up, with pictures as they are."""
    defaults = {"image_size": 8, "resize": "squash", "augment": "none", "batch_size": 2}
    data = ImageFolderDataModule(str(path), **{**defaults, **kwargs})
    data.setup()
    return data


def names(data, part):
    return [data.keys[index] for index in getattr(data, f"{part}_indices")]


def shown(data, loader):
    """The number of each picture and its label."""
    return [(n, int(label)) for x, y in loader for n, label in zip(numbers_of(data, x), y, strict=True)]


def test_a_folder_for_each_class(tmp_path):
    write_folder(tmp_path, {"dogs": range(20, 30), "cats": range(10), "emus": range(50, 60)})
    data = folder(tmp_path, val_size=3, test_size=6)
    assert data.class_names == ("cats", "dogs", "emus")
    assert (data.num_classes, data.task, data.in_channels) == (3, "multiclass", 3)
    assert data.keys[:2] == ["cats/000.png", "cats/001.png"]
    assert data.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert data.given_parts is None
    assert [len(names(data, part)) for part in ("train", "val", "test")] == [21, 3, 6]
    # Each picture comes with its own class, in every part.
    true_class = {**dict.fromkeys(range(10), 0), **dict.fromkeys(range(20, 30), 1), **dict.fromkeys(range(50, 60), 2)}
    seen = [
        pair for part in ("plain_train", "val", "test") for pair in shown(data, getattr(data, f"{part}_dataloader")())
    ]
    assert sorted(seen) == sorted(true_class.items())
    trained = shown(data, data.train_dataloader())
    assert len(trained) == 22  # 11 full batches
    assert {*trained} <= {*true_class.items()}
    x, y = next(iter(data.train_dataloader()))
    assert (x.dtype, x.shape, y.dtype) == (torch.float32, (2, 3, 8, 8), torch.int64)


def test_a_tenth_each_unless_told_otherwise(tmp_path):
    data = folder(write_folder(tmp_path, {"a": range(20), "b": range(20, 40)}))
    assert [len(names(data, part)) for part in ("train", "val", "test")] == [32, 4, 4]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "009"], ("009", "10", "9")),  # not all are integers as they are written
        (["b", "B", "a"], ("B", "a", "b")),
        (["ä ö", "z"], ("z", "ä ö")),
    ],
)
def test_the_order_of_the_classes(tmp_path, classes, expected):
    write_folder(tmp_path, {name: range(number, number + 3) for number, name in enumerate(classes)})
    data = folder(tmp_path, val_size=0, test_size=0)
    assert data.class_names == expected
    for key, label in zip(data.keys, data.labels, strict=True):
        assert key.split("/")[0] == expected[label]


def test_what_is_found_and_what_is_not(tmp_path):
    for place in ("a/x.png", "a/deep/er/y.PNG", "a/deep/z.tar.jpeg", "b/x.png"):
        write(tmp_path / place, picture(1))
    (tmp_path / "linked").mkdir()
    write(tmp_path / "elsewhere" / "l.png", picture(2))
    (tmp_path / "root" / "b").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "root" / "a")
    (tmp_path / "b" / "x.png").rename(tmp_path / "root" / "b" / "x.png")
    root = tmp_path / "root"
    (root / "b" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "round").symlink_to(root / "a")  # leads to itself
    for hidden in ("a/.x.png", "a/.cache/x.png", ".git/x.png", "b/.DS_Store", "b/Thumbs.db", "labels.csv", ".y.png"):
        write(root / hidden, picture(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = folder(root, val_size=0, test_size=0)
    assert data.keys == ["a/deep/er/y.PNG", "a/deep/z.tar.jpeg", "a/x.png", "b/link/l.png", "b/x.png"]


def test_other_files_are_told_of_once(tmp_path):
    write_folder(tmp_path, {"train/a": [1, 2], "train/b": [3, 4], "val/a": [5]})
    for stray in ("train/a/notes.txt", "train/b/clip.mp4", "8.png", "train/9.jpg"):
        write(tmp_path / stray, picture(9))
    (tmp_path / "readme.md").write_text("about")
    data = ImageFolderDataModule(str(tmp_path), image_size=8)
    with pytest.warns(UserWarning, match="are left out") as told:
        data.setup()
    assert [str(warning.message) for warning in told] == [
        f"2 files are left out, as their names do not end like those of images, such as {tmp_path}/train/a/notes.txt.",
        f"2 files are left out, as they are in no class folder, such as {tmp_path}/8.png.",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup()
    assert len(data.keys) == 5


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "validation", "TEST"),
        ("train", "valid", None),
        ("train", None, "testing"),
    ],
)
def test_given_parts(tmp_path, train, val, test):
    numbers = {"train": range(20), "val": range(20, 28), "test": range(30, 36)}
    for name, part in (("train", train), ("val", val), ("test", test)):
        if part is not None:
            for label, which in (("cats", 0), ("dogs", 1)):
                write_folder(tmp_path, {f"{part}/{label}": [n for n in numbers[name] if n % 2 == which]})
    data = folder(tmp_path)
    assert data.class_names == ("cats", "dogs")
    given = {name: part for name, part in (("train", train), ("val", val), ("test", test)) if part is not None}
    for name in ("val", "test"):
        if name in given:
            shows = shown(data, getattr(data, f"{name}_dataloader")())
            assert sorted(shows) == [(n, n % 2) for n in numbers[name]]
        else:  # a tenth of train
            assert len(names(data, name)) == 2
            assert all(key.startswith(f"{train}/") for key in names(data, name))
    drawn = 2 * (3 - len(given))
    assert len(names(data, "train")) == 20 - drawn
    assert all(key.startswith(f"{train}/") for key in names(data, "train"))


def test_fewer_of_a_given_part(tmp_path):
    write_folder(tmp_path, {f"{part}/{c}": range(10) for part in ("train", "test") for c in "ab"})
    data = folder(tmp_path, val_size=0, test_size=0.3)
    assert [len(names(data, part)) for part in ("train", "val", "test")] == [20, 0, 6]
    assert np.bincount(data.labels[data.test_indices]).tolist() == [3, 3]
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [],
            "{root} holds no folder. There must be one for each class, as in {root}/cats/1.jpg, or train and test with",
        ),
        (["1.png"], "{root} holds no folder."),
        (["a/1.png", "b/1.txt"], "The class folder {root}/b holds no image; their names end in bmp, gif, jfif, jpe"),
        (["train/a/1.png", "val/b/1.png", "val/a/1.png"], "{root}: training has no image of 'b', but val or test has."),
        (["train/a/1.png", "val/a/.keep"], "The class folder {root}/val/a holds no image"),
        (["train/1.png", "val/2.png"], "{root}: the folders of the parts hold no folders of classes."),
        (["train/a/1.png", "extra/a/1.png"], "{root} holds train and extra. Beside train there may be val, test and"),
        (["val/a/1.png", "test/a/1.png"], "{root} holds test and val, but no train. There must be one."),
        (
            ["train/a/1.png", "train/unlabeled/1.png"],
            "{root}/train/unlabeled would be a class. Images without a label belong in {root}/unlabeled.",
        ),
    ],
)
def test_folders_that_are_none(tmp_path, files, message):
    for name in files:
        write(tmp_path / name, picture(0))
    with pytest.raises(InvalidValueError) as raised:
        folder(tmp_path)
    assert str(raised.value).startswith(message.format(root=tmp_path))


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, {"a": [1]})
    for kwargs, message in (
        ({"path": "nowhere"}, f"There is no folder {tmp_path}/nowhere; data.path is 'nowhere'."),
        ({"path": "a/001.png"}, f"There is no folder {tmp_path}/a/001.png; data.path is 'a/001.png'."),
        ({"group": "("}, "group is '(', which is no regular expression: missing ), unterminated subpattern"),
        ({"group": "cat"}, "group is 'cat'; it needs a group in brackets, as in '(cat)_'."),
        ({"in_channels": 4}, "in_channels is 4; it must be 3 (colour) or 1 (grey)."),
        ({"resize": "cut"}, "resize is 'cut'. It must be one of 'crop', 'squash', 'pad'."),
        ({"on_bad_sample": "skipp"}, "on_bad_sample is 'skipp'; did you mean 'skip'?"),
        ({"mean": [0.5]}, "mean is [0.5]; it must have 3 numbers, one for each channel."),
        ({"mean": [0.5] * 3}, "mean is [0.5, 0.5, 0.5] and std is None; give both or none."),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "std is 0.0; it must be a number in (0, 1]."),
        ({"mean": [128.0] * 3, "std": [0.5] * 3}, "mean is 128.0; it must be a number in [0, 1]."),
    ):
        with pytest.raises(InvalidValueError) as raised:
            ImageFolderDataModule(**{"path": str(tmp_path), **kwargs})
        assert str(raised.value).startswith(message)


def test_groups_by_a_regular_expression(tmp_path):
    """A patient's images, sick and well, are in one part."""
    for patient in range(12):
        for image in range(4):
            write(tmp_path / ("sick" if image % 2 else "well") / f"patient{patient}_{image}.png", picture(patient))
    data = folder(tmp_path, group=r"patient(\d+)_", val_size=0.25, test_size=0.25)
    patients = [
        {n for n, _ in shown(data, getattr(data, f"{part}_dataloader")())} for part in ("plain_train", "val", "test")
    ]
    assert [len(part) for part in patients] == [6, 3, 3]
    assert set.union(*patients) == {*range(12)}
    for bad, example in ((r"patient(\d{2})_", "sick/patient0_1.png"), (r"patient(1)?", "sick/patient0_1.png")):
        with pytest.raises(InvalidValueError) as raised:
            folder(tmp_path, group=bad)
        assert str(raised.value).startswith(f"group is {bad!r}, which is not in {example!r} and ")


@pytest.mark.parametrize("parts", ["", "train/"])
def test_images_without_a_label(tmp_path, parts):
    write_folder(tmp_path, {f"{parts}a": range(10), f"{parts}b": range(10, 20), "unlabeled/x": range(100, 108)})
    write_folder(tmp_path, {"unlabelled": range(108, 112)})
    kwargs = {"val_size": 4, "test_size": 4, "batch_size": 3, "unlabeled_batch_size": 8, "weak_transforms": "none"}
    data = folder(tmp_path, **kwargs, unlabeled_views="weak weak_2")
    assert (data.num_classes, data.class_names) == (2, ("a", "b"))
    assert len(data.labeled_indices) == 12
    assert data.num_unlabeled == len(data.train_indices) == 24
    ids = {}
    for batch in data.train_dataloader():
        x, y = batch["labeled"]
        assert [int(n >= 10) for n in numbers_of(data, x)] == y.tolist()
        part = batch["unlabeled"]
        assert torch.equal(part["weak"], part["weak_2"])
        for number, index, target in zip(numbers_of(data, part["weak"]), part["index"], part["target"], strict=True):
            assert int(target) == (-1 if number >= 100 else int(number >= 10))
            assert ids.setdefault(int(index), number) == number
    assert sorted(ids) == list(range(24))  # one epoch goes through all of them
    assert sum(number >= 100 for number in ids.values()) == 12
    for loader in (data.val_dataloader(), data.test_dataloader(), data.plain_train_dataloader()):
        assert {label for _, label in shown(data, loader)} == {0, 1}


def test_fixmatch_learns_from_them_and_counts_only_what_is_known(tmp_path):
    """Of eight unlabelled images four have a known class; the precision is over these alone."""
    root = write_folder(tmp_path / "data", {"a": [0, 1], "b": [2, 3], "unlabeled": range(100, 104)})
    settings = {"val_size": 0, "test_size": 0, "batch_size": 4, "unlabeled_batch_size": 8, "num_workers": 0}
    data = ImageFolderDataModule(str(root), image_size=8, augment="none", **settings)
    model = compose(Classifier, FixMatchMixin)(
        network="mlp", num_classes=2, image_size=8, in_channels=3, fixmatch_threshold=0.0, lr=1e-9
    )
    with torch.no_grad():
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 0.0]))  # everything is an 'a'
    runs = trainer(tmp_path, max_epochs=1)
    runs.fit(model, data)
    assert runs.callback_metrics["train/fixmatch_share_epoch"].item() == 1
    assert runs.callback_metrics["train/fixmatch_precision_epoch"].item() == pytest.approx(0.5)  # 2 of 4, not of 8


def test_one_channel(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(jpeg(quality=100, subsampling=0))
    write(tmp_path / "b" / "1.png", RGB[..., 1])
    data = folder(
        tmp_path, in_channels=1, val_size=0, test_size=0, image_size=8, mean=[0.0], std=[1.0], resize="squash"
    )
    assert data.images[0].shape == (16, 24, 1)
    np.testing.assert_allclose(data.images[0][..., 0], RGB @ [0.299, 0.587, 0.114], atol=3)
    assert (data.images[1][..., 0] == RGB[..., 1]).all()
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_what_evaluation_makes_of_an_image(tmp_path, resize):
    """16 x 30 pixels: cropped without scaling, squashed, or halved and padded."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 30, 3)).astype(np.uint8)
    for name in ("a/1.png", "b/1.png"):
        write(tmp_path / name, pixels)
    size = {"crop": 14, "squash": 15, "pad": 15}[resize]
    data = folder(tmp_path, resize=resize, image_size=size, val_size=0, test_size=0, mean=[0.0] * 3, std=[1.0] * 3)
    x = (next(iter(data.plain_train_dataloader()))[0][0] * 255).round().permute(1, 2, 0).numpy()
    if resize == "crop":
        assert (x == pixels[1:15, 8:22]).all()
    elif resize == "pad":  # 8 x 15 in the middle, black above and below
        expected = pixels.reshape(8, 2, 15, 2, 3).mean((1, 3))
        top = next(row for row in range(15) if x[row].any())
        assert top in (3, 4)
        assert np.abs(x[top : top + 8] - expected).max() <= 0.51
        assert not x[:top].any()
        assert not x[top + 8 :].any()
    else:
        assert np.abs(x.mean((0, 1)) - pixels.mean((0, 1))).max() < 0.6


def test_it_trains_is_saved_and_comes_back(tmp_path):
    root = write_folder(tmp_path / "data", {"a": range(10), "b": range(10, 20)})
    data = ImageFolderDataModule(str(root), image_size=8, batch_size=4, group=r"(\d)\.", resize="pad", num_workers=0)
    runs = trainer(tmp_path, max_epochs=1)
    runs.fit(Watcher(), data)
    runs.save_checkpoint(tmp_path / "a.ckpt")
    again = ImageFolderDataModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    again.setup()
    assert (again.path, again.group, again.resize, again.image_size) == (str(root), r"(\d)\.", "pad", 8)
    assert again.train_indices.tolist() == data.train_indices.tolist()


@pytest.mark.parametrize(("augment", "seen"), [("resized_crop", True), ("weak", False)])
def test_a_resized_crop_is_of_the_whole_image(tmp_path, augment, seen):
    """What evaluation cuts off, left and right, is there in training."""
    pixels = np.full((16, 64, 3), 100, np.uint8)
    pixels[:, :12], pixels[:, -12:] = 200, 250
    for name in ("a/1.png", "b/1.png"):
        write(tmp_path / name, pixels)
    kwargs = {"image_size": 14, "resize": "crop", "mean": [0.0] * 3, "std": [1.0] * 3, "val_size": 0, "test_size": 0}
    data = folder(tmp_path, **kwargs, augment=augment, batch_size=60, steps_per_epoch=1)
    values = (next(iter(data.train_dataloader()))[0] * 255).round().unique().tolist()
    assert ({200, 250} <= {*values}) == seen


def test_one_file_that_is_left_out(tmp_path):
    write_folder(tmp_path, {"a": range(10), "b": range(10, 20)})
    (tmp_path / "a" / "notes.txt").write_text("about")
    write(tmp_path / "8.png", picture(8))
    with pytest.warns(UserWarning, match="is left out") as told:
        folder(tmp_path)
    assert [str(warning.message) for warning in told] == [
        f"{tmp_path}/a/notes.txt is left out, as its name does not end like that of an image.",
        f"{tmp_path}/8.png is left out, as it is in no class folder.",
    ]


@pytest.mark.parametrize("part", ["test", "Validation"])
def test_a_part_that_would_be_a_class(tmp_path, part):
    """Of train_images and test, as archives are packed, a network would learn which archive an image is from."""
    write_folder(tmp_path, {f"{part}/a": range(10), "train_images/a": range(10, 20)})
    with pytest.warns(UserWarning, match="is taken for a class") as told:
        data = folder(tmp_path)
    assert {*data.class_names} == {part, "train_images"}
    assert [str(warning.message) for warning in told] == [
        f"{tmp_path}/{part} is taken for a class, as there is no folder train beside it. If it is a part, call the "
        "folder for training train."
    ]
