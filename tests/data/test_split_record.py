"""What a run remembers of its split, and what it refuses because of that."""

import csv
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_tuning.data import DigitsDataModule, ImageFolderDataModule, load_split
from lightning_tuning.data.split_manifest import Split, save_split
from lightning_tuning.data.split_record import record_split
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs.journal import JournalLogger

from .pictures import Watcher, picture, trainer, write, write_folder


@pytest.fixture
def animals(tmp_path):
    """Ten cats and ten dogs."""
    return write_folder(tmp_path / "animals", {"cats": range(10), "dogs": range(10, 20)})


def folder_data(path, **kwargs):
    defaults = {"image_size": 8, "val_size": 4, "test_size": 4, "batch_size": 4, "augment": "none", "num_workers": 0}
    return ImageFolderDataModule(str(path), **{**defaults, **kwargs})


def fit(data, folder, ckpt_path=None, max_epochs=1, logger=False, **kwargs):
    runs = trainer(folder, logger=logger, max_epochs=max_epochs, **kwargs)
    runs.fit(Watcher(), data, ckpt_path=ckpt_path)
    return runs


def test_it_stands_beside_the_metrics(animals, tmp_path):
    data = folder_data(animals, num_labels=6)
    runs = fit(data, tmp_path, logger=CSVLogger(tmp_path, "runs"))
    with open(tmp_path / "runs" / "version_0" / "split.csv") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == ["key", "part", "label"]
    expected = {}
    for index, key in enumerate(data.keys):
        part = next(name for name in ("train", "val", "test") if index in getattr(data, f"{name}_indices"))
        expected[key] = [key, part, "yes" if part != "train" or index in data.labeled_indices else "no"]
    assert rows[1:] == [expected[key] for key in sorted(expected)]
    assert sorted(expected) == [
        *(f"cats/{n:03d}.png" for n in range(10)),
        *(f"dogs/{n:03d}.png" for n in range(10, 20)),
    ]
    assert sum(row[2] == "no" for row in rows[1:]) == 6
    assert runs.log_dir == str(tmp_path / "runs" / "version_0")


def test_a_second_split_in_one_folder_gets_a_number(animals, tmp_path):
    """As under a logger whose runs share a folder."""
    folder = tmp_path / "run"
    (folder / "split-3.csv").parent.mkdir()
    (folder / "split-3.csv").write_text("somebody's own table\n")
    runs = [folder_data(animals, split_seed=seed) for seed in (0, 1, 0, 2, 1)]
    for data in runs:
        fit(data, tmp_path, logger=JournalLogger(folder))
    assert sorted(path.name for path in folder.glob("split*")) == [
        "split-2.csv",
        "split-3.csv",
        "split-4.csv",
        "split.csv",
    ]
    for name, data in zip(("split.csv", "split-2.csv", "split-4.csv"), (runs[0], runs[1], runs[3]), strict=True):
        split = load_split(folder / name, data.keys)
        assert split.val.tolist() == data.val_indices.tolist()
    assert (folder / "split-3.csv").read_text() == "somebody's own table\n"


@pytest.mark.parametrize("kwargs", [{}, {"logger": "csv", "fast_dev_run": True}])
def test_without_a_logger_nothing_is_written(animals, tmp_path, monkeypatch, kwargs):
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.rglob("*")}
    logger = CSVLogger(tmp_path / "runs") if "logger" in kwargs else False
    fit(folder_data(animals), tmp_path, **{**kwargs, "logger": logger})
    assert {*tmp_path.rglob("*")} == before


def test_evaluation_writes_nothing(animals, tmp_path):
    runs = trainer(tmp_path, logger=CSVLogger(tmp_path, "runs"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the weights are those that the model was made with
        runs.test(Watcher(), folder_data(animals), verbose=False)
    assert not [*tmp_path.rglob("split*")]


def test_names_that_come_twice_are_told_of(tmp_path):
    class Runs:
        loggers, fast_dev_run, log_dir, is_global_zero = ["one"], False, str(tmp_path), True

    split = Split(np.array([0]), np.array([1]), np.array([], int), np.array([0]))
    with pytest.raises(InvalidValueError, match=r"The data has 1 key \('a'\) more than once"):
        record_split(Runs(), ["a", "a"], split)
    assert not [*tmp_path.iterdir()]


def test_it_gives_the_same_parts_and_labels_back(animals, tmp_path):
    data = folder_data(animals, num_labels=4, seed=7, split_seed=3)
    fit(data, tmp_path, logger=CSVLogger(tmp_path, "runs"))
    path = tmp_path / "runs" / "version_0" / "split.csv"
    again = folder_data(animals, seed=99, split_seed=5, val_size=0.5, test_size=0, split_file=str(path))
    again.setup()
    for name in ("train", "val", "test", "labeled", "unlabeled"):
        assert getattr(again, f"{name}_indices").tolist() == getattr(data, f"{name}_indices").tolist()
    assert len(again.labeled_indices) == 4
    more = folder_data(animals, num_labels=6, seed=7, split_file=str(path))
    more.setup()
    assert more.train_indices.tolist() == data.train_indices.tolist()
    assert {*data.labeled_indices.tolist()} < {*more.labeled_indices.tolist()}
    assert len(more.labeled_indices) == 6


def test_a_split_of_other_data_is_refused(animals, tmp_path):
    fit(folder_data(animals), tmp_path, logger=CSVLogger(tmp_path, "runs"))
    path = tmp_path / "runs" / "version_0" / "split.csv"
    (animals / "cats" / "003.png").unlink()
    write(animals / "dogs" / "070.png", picture(70))
    with pytest.raises(InvalidValueError) as raised:
        folder_data(animals, split_file=str(path)).setup()
    assert str(raised.value) == (
        f"{path} is the split of other data: 1 sample ('cats/003.png') missing in the data; 1 sample ('dogs/070.png') "
        "new in the data. Bring back the data it was made of, or write a new split elsewhere."
    )
    with pytest.raises(InvalidValueError, match=r"fold is '1/5', but split_file already says the parts"):
        folder_data(animals, split_file=str(path), fold="1/5")


@pytest.fixture
def checkpoint(animals, tmp_path):
    runs = fit(
        folder_data(animals), tmp_path, logger=False, callbacks=[ModelCheckpoint(tmp_path / "kept", filename="one")]
    )
    assert runs.global_step == 3
    return tmp_path / "kept" / "one.ckpt"


@pytest.fixture
def edited(tmp_path):
    """Edits the split of cats, dogs and two images without a class; the datamodule of it."""
    animals = write_folder(tmp_path / "animals", {"cats": range(4), "dogs": range(4, 8), "unlabeled": [8, 9]})
    data = folder_data(animals, val_size=2, test_size=2)
    data.setup()
    path = tmp_path / "split.csv"
    save_split(path, data.keys, data._parts)

    def edit(old, new, **kwargs):
        path.write_text(re.sub(old, new, path.read_text()))
        return folder_data(animals, split_file=str(path), **kwargs)

    return edit


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "(unlabeled/008.png),train,no",
            r"\1,val,yes",
            r"1 sample \('unlabeled/008.png'\) without a label in val or test, where nothing can be measured by it. "
            "Write train or unused for it.",
        ),
        ("train,yes", "train,no", "no sample of train keeps its label. Write yes for some, or give num_labels."),
        (
            "(cats|dogs)(.*),train,yes",
            r"\1\2,val,yes",
            "no sample of train has a label. Write train for some that have",
        ),
    ],
)
def test_parts_that_were_edited(edited, old, new, message):
    with pytest.raises(InvalidValueError, match=rf"split.csv: {message}"):
        edited(old, new).setup()


def test_a_group_that_was_edited_into_two_parts(edited):
    data = edited("no such text", "", group="(cats|dogs|unlabeled)")
    with pytest.raises(InvalidValueError, match=r"the group '(cats|dogs)' is in (train|val) and in (val|test)"):
        data.setup()
    edited("cats(.*),.*,.*", r"cats\1,train,yes")
    alone = edited("dogs(.*),.*,.*", r"dogs\1,val,yes", group="(cats|dogs|unlabeled)")
    alone.setup()
    assert [len(part) for part in (alone.train_indices, alone.val_indices, alone.labeled_indices)] == [6, 4, 4]


def test_labels_are_chosen_where_the_file_keeps_none(edited):
    data = edited("train,yes", "train,no", num_labels=2)
    data.setup()
    assert len(data.labeled_indices) == 2


PARTS = "val_size, test_size, split_seed, fold, num_labels or split_file"


@pytest.mark.parametrize(
    "kwargs", [{"val_size": 5}, {"test_size": 0.3}, {"split_seed": 1}, {"fold": "1/5"}, {"num_labels": 5}], ids=str
)
def test_a_resume_with_other_parts_or_labels_is_refused(animals, tmp_path, checkpoint, kwargs):
    with pytest.raises(InvalidValueError) as raised:
        fit(folder_data(animals, **kwargs), tmp_path, checkpoint, max_epochs=2)
    assert str(raised.value) == (
        "The checkpoint's run had other parts or labels, so samples that it was trained on could now be measured: "
        f"{PARTS} changed. Undo the change, or begin a new run."
    )


def test_a_resume_with_other_files_is_refused(animals, tmp_path, checkpoint):
    write(animals / "cats" / "070.png", picture(70))
    with pytest.raises(InvalidValueError) as raised:
        fit(folder_data(animals), tmp_path, checkpoint, max_epochs=2)
    assert str(raised.value) == (
        "The checkpoint's run had other samples, so samples that it was trained on could now be measured: the files "
        "changed. Undo the change, or begin a new run."
    )


def test_a_resume_with_the_same_parts_goes_on(animals, tmp_path, checkpoint):
    kwargs = {"batch_size": 2, "augment": "strong", "image_size": 16, "on_bad_sample": "skip"}
    assert fit(folder_data(animals, **kwargs), tmp_path, checkpoint, max_epochs=2).current_epoch == 2
    moved = animals.rename(tmp_path / "elsewhere")  # the names below the folder count
    assert fit(folder_data(moved), tmp_path, checkpoint, max_epochs=2).global_step == 6


def evaluated(method, data, folder, checkpoint):
    """The warnings about the parts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = trainer(folder)
        getattr(runs, method)(Watcher(), data, ckpt_path=checkpoint, verbose=False)
    return [str(warning.message) for warning in caught if "parts" in str(warning.message)]


@pytest.mark.parametrize("method", ["validate", "test"])
def test_evaluation_with_other_parts_warns(animals, tmp_path, checkpoint, method):
    told = evaluated(method, folder_data(animals, split_seed=1), tmp_path, checkpoint)
    assert told == [
        f"The checkpoint's run had other parts of the same samples ({PARTS} differ): what is measured now may be what "
        "it was trained on. Write --data.split_file=<its folder>/split.csv for its own parts."
    ]
    assert evaluated(method, folder_data(animals), tmp_path, checkpoint) == []


def test_evaluation_on_other_samples_is_nobodys_business(animals, tmp_path, checkpoint):
    other = write_folder(tmp_path / "other", {"cats": range(50, 60), "dogs": range(60, 70)})
    assert evaluated("test", folder_data(other), tmp_path, checkpoint) == []


def test_a_checkpoint_of_before_there_were_digests(animals, tmp_path, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    assert {*state["ImageFolderDataModule"]} == {"seed", "samples", "parts"}
    state["ImageFolderDataModule"] = {"seed": 0}
    torch.save(state, tmp_path / "old.ckpt")
    assert fit(folder_data(animals, val_size=5), tmp_path, tmp_path / "old.ckpt", max_epochs=2).current_epoch == 2


TWO_RANKS = """
import sys
from lightning.pytorch.loggers import CSVLogger
from lightning_tuning.data import DigitsDataModule
from tests.data.pictures import Watcher, trainer

for seed in (0, 1):
    data = DigitsDataModule(image_size=8, steps_per_epoch=2, split_seed=seed, num_workers=0)
    logger = CSVLogger(sys.argv[1], "runs", version=0)
    runs = trainer(sys.argv[1], logger=logger, max_epochs=1, strategy="ddp_fork", devices=2)
    runs.fit(Watcher(), data)
"""


@pytest.mark.slow
def test_two_ranks_write_one_file(tmp_path):
    run = [sys.executable, "-c", TWO_RANKS, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "version_0"
    assert sorted(path.name for path in folder.glob("*split*")) == ["split-2.csv", "split.csv"]
    for seed, name in enumerate(("split.csv", "split-2.csv")):
        data = DigitsDataModule(image_size=8, split_seed=seed)
        data.setup()
        split = load_split(folder / name, data.keys)
        assert split.val.tolist() == data.val_indices.tolist()


def test_the_command_line_puts_it_into_the_runs_folder(animals, tmp_path, monkeypatch):
    from lightning_tuning.cli.tuning_cli import main

    monkeypatch.chdir(tmp_path)
    arguments = f"""fit --model=ImageClassifier --model.network=mlp --model.num_classes=2 --model.image_size=8
        --model.in_channels=3 --data=ImageFolderDataModule --data.path={animals} --data.image_size=8 --data.val_size=4
        --data.test_size=4 --data.batch_size=4 --data.num_workers=0 --trainer.max_epochs=1 --trainer.accelerator=cpu
        --run.name=one"""
    assert main(arguments.split()) == 0
    (path,) = tmp_path.rglob("split*.csv")
    assert (path.parent / "metrics.jsonl").exists()
    data = folder_data(animals)
    data.setup()
    assert load_split(path, data.keys).val.tolist() == data.val_indices.tolist()
