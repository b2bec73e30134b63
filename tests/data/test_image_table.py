"""Images that a table names: targets of all kinds, parts, groups, paths, rows without a label."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_tuning import ImageTableDataModule, TableDataModule, TextDataModule
from lightning_tuning.data import BadSampleError
from lightning_tuning.errors import InvalidValueError

from .pictures import Watcher, numbers_of, picture, trainer, write


@pytest.fixture
def table(tmp_path):
    """Writes a table of rows, and an image for each number in the first column; gives the datamodule's maker."""

    def make(rows, columns="image,label", name="t.csv", images=True):
        for row in rows:
            if images:
                write(tmp_path / f"{row[0]}.png", picture(int(row[0].rpartition("/")[2])))
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
            writer.writerow(columns.split(","))
            writer.writerows([f"{row[0]}.png", *row[1:]] for row in rows)

        def data(setup=True, **kwargs):
            defaults = {"image_size": 8, "resize": "squash", "augment": "none", "batch_size": 2}
            made = ImageTableDataModule(str(tmp_path / name), **{**defaults, **kwargs})
            if setup:
                made.setup()
            return made

        return data

    return make


def shown(data, loader):
    """Number of each picture and its target."""
    return [(n, target.tolist()) for x, y in loader for n, target in zip(numbers_of(data, x), y, strict=True)]


def everything(data):
    loaders = (data.plain_train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return sorted(pair for loader in loaders for pair in shown(data, loader))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_classes(table, name):
    data = table([(f"in/{n:02d}", ["dog", "cat", "emu"][n % 3]) for n in range(30)], name=name)(
        val_size=3, test_size=0.2
    )
    assert data.class_names == ("cat", "dog", "emu")
    assert (data.num_classes, data.task) == (3, "multiclass")
    assert data.keys[:2] == ["in/00.png", "in/01.png"]
    assert [len(part) for part in (data.train_indices, data.val_indices, data.test_indices)] == [21, 3, 6]
    assert everything(data) == [(n, [1, 0, 2][n % 3]) for n in range(30)]


def test_classes_in_a_given_order(table):
    data = table([(f"{n}", ["dog", "cat"][n % 2]) for n in range(10)])
    given = data(classes=["emu", "dog", "cat"], val_size=0, test_size=0)
    assert (given.class_names, given.num_classes) == (("emu", "dog", "cat"), 3)
    assert everything(given) == [(n, [1, 2][n % 2]) for n in range(10)]
    with pytest.raises(InvalidValueError) as raised:
        data(classes=["Dog", "cat"])
    assert str(raised.value).endswith(
        "t.csv, row 1: 'label' is 'dog'; did you mean 'Dog'? It must be one of classes: 'Dog', 'cat'."
    )


def test_several_labels(table):
    rows = [(f"{n}", n % 2, int(n % 3 == 0), n // 6 % 2) for n in range(24)]
    data = table(rows, "image,red,round,ripe")(
        task="multilabel", target=["red", "ripe", "round"], val_size=4, test_size=4
    )
    assert data.class_names == ("red", "ripe", "round")
    assert data.targets.dtype == torch.float32
    assert everything(data) == [(n, [n % 2, n // 6 % 2, float(n % 3 == 0)]) for n in range(24)]


def test_values(table):
    rows = [(f"{n}", n / 4, f"{-n}e-1") for n in range(20)]
    data = table(rows, "image,x,y")(task="regression", target=["y", "x"], val_size=4, test_size=0)
    assert (data.class_names, data.num_classes) == (("y", "x"), 2)
    got = everything(data)
    assert [n for n, _ in got] == [*range(20)]
    np.testing.assert_allclose([value for _, value in got], [[-n / 10, n / 4] for n in range(20)], rtol=1e-6)
    with pytest.raises(InvalidValueError, match=r"balance is 0\.5, but the targets are no classes\. Write balance=0\."):
        table(rows, "image,x,y")(task="regression", target="x", balance=0.5).train_dataloader()


def test_given_parts(table):
    rows = [(f"{n}", n % 2, ["train", "train", "val", "test"][n // 2 % 4]) for n in range(40)]
    data = table(rows, "image,label,part")(part="part")
    for part, which in (("val", 2), ("test", 3)):
        seen = sorted(shown(data, getattr(data, f"{part}_dataloader")()))
        assert seen == [(n, n % 2) for n in range(40) if n // 2 % 4 == which]
    assert sorted(n for n, _ in shown(data, data.plain_train_dataloader())) == [n for n in range(40) if n // 2 % 4 < 2]
    with pytest.raises(InvalidValueError) as raised:
        table([("1", 0, "train"), ("2", 0, "Test")], "image,label,part")(part="part")
    assert str(raised.value).endswith("t.csv, row 2: 'part' is 'Test'; it must be one of train, val, test.")
    with pytest.raises(InvalidValueError) as raised:
        table([("1", "a", "train"), ("2", "b", "val"), ("3", "c", "test")], "image,label,part")(part="part")
    assert str(raised.value).endswith("t.csv: training has no row of 'b', 'c', but val or test has.")


def test_groups(table):
    rows = [(f"{n}", n % 2, f"p{n // 5}") for n in range(60)]
    data = table(rows, "image,label,who")(group="who", val_size=0.25, test_size=0.25)
    of_each = [
        {n // 5 for n, _ in shown(data, loader)}
        for loader in (data.plain_train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert [len(part) for part in of_each] == [6, 3, 3]
    assert set.union(*of_each) == {*range(12)}
    rows = [(f"{n}", n % 2, f"p{n // 5}", "test" if n > 21 else "train") for n in range(60)]
    with pytest.raises(InvalidValueError, match="The group 'p4' is in train and in test, as the data give the parts"):
        table(rows, "image,label,who,part")(group="who", part="part")


def test_rows_without_a_label(table):
    labels = ["cat", "dog", " ", ""]
    rows = [(f"{n}", labels[n % 4]) for n in range(40)]
    kwargs = {"val_size": 4, "test_size": 0, "batch_size": 4, "unlabeled_batch_size": 6, "weak_transforms": "none"}
    data = table(rows)(**kwargs)
    assert data.class_names == ("cat", "dog")
    assert len(data.labeled_indices) == 16
    assert len(data.val_indices) == 4
    assert data.num_unlabeled == 36
    targets = {}
    for batch in data.train_dataloader():
        x, y = batch["labeled"]
        assert [n % 4 for n in numbers_of(data, x)] == y.tolist()
        part = batch["unlabeled"]
        for n, index, target in zip(numbers_of(data, part["weak"]), part["index"], part["target"], strict=True):
            assert int(data.train_indices[index]) == n
            targets[n] = int(target)
    assert targets == {n: n % 4 if n % 4 < 2 else -1 for n in data.train_indices.tolist()}
    classes = table(rows)(**kwargs, classes=["dog", "emu", "cat"])
    assert classes.labels.tolist() == [[2, 0, -1, -1][n % 4] for n in range(40)]
    with pytest.raises(InvalidValueError, match="label"):
        table(rows)()  # without unlabelled batches they are faults
    with pytest.raises(InvalidValueError, match=r"t\.csv: 'label' is empty in all rows; some must have a label\."):
        table([(f"{n}", "") for n in range(5)])(unlabeled_batch_size=2)
    rows = [(f"{n}", labels[n % 4], "train" if n < 30 else "test") for n in range(40)]
    with pytest.raises(InvalidValueError) as raised:
        table(rows, "image,label,part")(unlabeled_batch_size=2, part="part")
    assert str(raised.value).endswith(
        "t.csv, row 31: 'label' is empty, but 'part' is 'test'. Only rows of train may go without a label."
    )


def test_paths_stay_in_the_root(table, tmp_path):
    write(tmp_path / "secret.png", picture(1))
    inside = tmp_path / "root"
    write(inside / "a" / "2.png", picture(2))
    for path in ("../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png", "../root_2/1.png"):
        (inside / "t.csv").write_text(f"image,label\na/2.png,x\n{path},y\n")
        with pytest.raises(InvalidValueError) as raised:
            ImageTableDataModule(str(inside / "t.csv")).setup()
        assert str(raised.value) == (
            f"{inside}/t.csv, row 2: 'image' is {path!r}, which is outside of {inside}. Paths must stay in that "
            "folder; write root=... if it is another one."
        )
    # The root may be another one, and paths may be whole ones within it; keys are always below it.
    write(inside / "3.png", picture(3))
    (inside / "t.csv").write_text(f"image,label\na/2.png,x\n{inside}/3.png,y\na/../../secret.png,y\n")
    (tmp_path / "t.csv").write_text(f"image,label\nroot/a/2.png,x\n{inside}/3.png,y\nroot/../secret.png,y\n")
    for path, kwargs in ((tmp_path / "t.csv", {}), (tmp_path / "t.csv", {"root": str(tmp_path)})):
        data = ImageTableDataModule(str(path), image_size=8, val_size=0, test_size=0, **kwargs)
        data.setup()
        assert data.keys == ["root/a/2.png", "root/3.png", "secret.png"]
        assert [data.images[index][0, 0, 0] for index in range(3)] == [2, 3, 1]


@pytest.mark.parametrize("twin", ["1.png", "./1.png", "x/../1.png", "{root}/1.png"])
def test_an_image_has_one_row(table, tmp_path, twin):
    table([("0", "a"), ("1", "b")])
    with open(tmp_path / "t.csv", "a") as file:
        file.write(f"{twin.format(root=tmp_path)},a\n")
    with pytest.raises(InvalidValueError) as raised:
        ImageTableDataModule(str(tmp_path / "t.csv")).setup()
    assert (
        str(raised.value)
        == f"{tmp_path}/t.csv: rows 2 and 3 are of the same image, '1.png'. Each image may have one row."
    )


def test_missing_files(table, tmp_path):
    data = table([(f"{n}", n % 2) for n in range(200)])
    (tmp_path / "7.png").unlink()
    with pytest.raises(BadSampleError) as raised:
        data()
    assert str(raised.value) == (
        f"{tmp_path}/7.png: it does not exist, as 1 of the 200 files that {tmp_path}/t.csv names. Correct the "
        "paths or root, or write on_bad_sample='skip' to go without up to 1 %."
    )
    (tmp_path / "9.png").unlink()
    with pytest.raises(BadSampleError, match="it does not exist, as 2 of the 200 files that"):
        data()
    skipping = data(on_bad_sample="skip", val_size=0, test_size=0, batch_size=50)
    numbers = [n for n, _ in shown(skipping, skipping.train_dataloader())]
    assert len(numbers) == 200
    assert sorted({*range(200)} - {*numbers}) == [7, 9]
    assert (numbers.count(8), numbers.count(10)) == (2, 2)  # the next in place of the missing one
    assert skipping.bad_samples.count == 2
    assert [path for _, path, _ in skipping.bad_samples.rows()] == [str(tmp_path / "7.png"), str(tmp_path / "9.png")]
    assert len(shown(skipping, skipping.plain_train_dataloader())) == 198


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "multilable"}, "task is 'multilable'; did you mean 'multilabel'?"),
        ({"mask": "mask"}, "mask is 'mask', so classes is needed: the names of the classes, by class id."),
        (
            {"mask": "m", "classes": ["a"], "unlabeled_batch_size": 2},
            "unlabeled_batch_size is for labels, not for masks",
        ),
        ({"classes": ["a", "b", "a"]}, "classes is ['a', 'b', 'a']; each name may stand there once."),
        ({"classes": ["a"], "task": "regression"}, "classes is for task='multiclass' and for masks, but task is 'regr"),
        (
            {"mask": "m", "classes": [str(n) for n in range(256)]},
            "classes has 256 names; with mask at most 255, as a pixel of 255 has no class.",
        ),
        ({"drawn_on": "showed"}, "drawn_on is 'showed'; did you mean 'shown'?"),
    ],
)
def test_arguments(kwargs, message):
    with pytest.raises(InvalidValueError) as raised:
        ImageTableDataModule("t.csv", **kwargs)
    assert str(raised.value).startswith(message)


def test_columns_that_are_not_there(table):
    rows = [(f"{n}", n % 2) for n in range(4)]
    for kwargs, column in (({"image": "file"}, "file"), ({"target": "class"}, "class"), ({"group": "who"}, "who")):
        with pytest.raises(InvalidValueError, match=f"'{column}'"):
            table(rows)(**kwargs)
    with pytest.raises(InvalidValueError, match=r"target names 2 columns, but with task='multiclass' it must be one"):
        table(rows)(target=["label", "image"])


def test_it_trains_is_saved_and_comes_back(table, tmp_path):
    data = table([(f"{n}", n % 2, n // 2) for n in range(20)], "image,label,who")(
        setup=False, group="who", num_workers=0
    )
    runs = trainer(tmp_path, max_epochs=1)
    runs.fit(Watcher(), data)
    runs.save_checkpoint(tmp_path / "a.ckpt")
    again = ImageTableDataModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    again.setup()
    assert (again.group, again.resize, again.target) == ("who", "squash", ["label"])
    assert again.test_indices.tolist() == data.test_indices.tolist()


def test_paths_that_windows_wrote(table):
    data = table([(f"in/{n:02d}", "ab"[n % 2]) for n in range(4)])
    path = Path(data(setup=False).path)
    path.write_text(path.read_text().replace("in/", "in\\"))
    with pytest.raises(
        BadSampleError, match=r"in.00\.png: it does not exist, .* Write / in place of \\ in the paths\.$"
    ):
        data()


@pytest.mark.parametrize("made", [ImageTableDataModule, TableDataModule, TextDataModule])
def test_the_delimiter_that_the_message_names(table, made):
    """A comma is a decimal sign in half of the world, and spreadsheets there write semicolons."""
    path = table([(f"{n:02d}", "ab"[n % 2], n / 10) for n in range(30)], "image,label,text")(setup=False).path
    ending = ".png" if made is ImageTableDataModule else ""
    Path(path).write_text(Path(path).read_text().replace(",", ";").replace(".png", ending))
    settings = {"val_size": 4, "test_size": 4, "target": "label"}
    with pytest.raises(InvalidValueError, match=r"Are its fields separated by ';'. Then write delimiter=';'"):
        made(path, **settings).setup()
    data = made(path, delimiter=";", **settings)
    data.setup()
    assert data.class_names == ("a", "b")
    assert len(data.train_indices) == 22


def test_weights_decide_how_often_an_image_is_drawn(table):
    rows = [(f"{n:02d}", "ab"[n % 2], n % 4) for n in range(40)]
    made = table(rows, "image,label,heed")
    data = made(weight="heed", val_size=0, test_size=0, steps_per_epoch=120, seed=1)
    drawn = np.bincount([n for n, _ in shown(data, data.train_dataloader())], minlength=40)
    np.testing.assert_array_equal(drawn, np.arange(40) % 4 * 4)  # 240 draws, weights that add up to 60
    with pytest.raises(InvalidValueError, match="row 1: 'label' is 'a'; it must be a finite number"):
        made(weight="label")
