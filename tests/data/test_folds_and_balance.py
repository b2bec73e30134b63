"""Cross-validation and class balance as arguments of the datamodules."""

import numpy as np
import pytest

from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.data import ArrayDataModule, DigitsDataModule
from lightning_tuning.errors import InvalidValueError


@pytest.fixture
def uneven(tmp_path):
    """Makes a datamodule of 40, 8 and 4 training images of three classes, and 12 test images if wanted."""

    def make(test_images=12, **kwargs):
        labels = np.repeat([0, 1, 2], [40, 8, 4])
        arrays = {"x_train": np.zeros((52, 4, 4), np.uint8), "y_train": labels}
        if test_images:
            arrays |= {"x_test": np.zeros((test_images, 4, 4), np.uint8), "y_test": np.arange(test_images) % 3}
        np.savez(tmp_path / "a.npz", **arrays)
        datamodule = ArrayDataModule(str(tmp_path / "a.npz"), **kwargs)
        datamodule.setup()
        return datamodule

    return make


def test_over_the_folds_every_sample_but_the_test_part_is_held_out_once():
    plain = DigitsDataModule()
    plain.setup()
    held_out = []
    for number in range(1, 6):
        datamodule = DigitsDataModule(fold=f"{number}/5")
        datamodule.setup()
        assert datamodule.test_indices.tolist() == plain.test_indices.tolist()
        parts = [datamodule.train_indices, datamodule.val_indices, datamodule.test_indices]
        assert sorted(np.concatenate(parts)) == list(range(1797))
        assert np.ptp(np.bincount(datamodule.labels[datamodule.val_indices], minlength=10)) <= 4
        assert datamodule.labeled_indices.tolist() == datamodule.train_indices.tolist()
        held_out += datamodule.val_indices.tolist()
    assert sorted(held_out) == sorted(set(range(1797)) - set(plain.test_indices.tolist()))


@pytest.mark.parametrize("test_images", [0, 12])
def test_folds_of_arrays_leave_the_test_images_out(uneven, test_images):
    folds = [uneven(test_images, fold=f"{number}/4") for number in (1, 2, 3, 4)]
    test = set(folds[0].test_indices.tolist())
    assert test == set(range(52, 64)) if test_images else len(test) == 52 // 6
    held_out = [index for datamodule in folds for index in datamodule.val_indices.tolist()]
    assert sorted(held_out) == sorted(set(range(52 + test_images)) - test)
    assert all(set(datamodule.test_indices.tolist()) == test for datamodule in folds)
    assert all(2 in datamodule.labels[datamodule.val_indices] for datamodule in folds if test_images)


def test_balance_evens_the_classes_out(uneven):
    def drawn(**kwargs):
        datamodule = uneven(batch_size=13, steps_per_epoch=12, **kwargs)
        return np.bincount(np.concatenate([y.numpy() for _, y in datamodule.train_dataloader()])).tolist()

    assert drawn() == [120, 24, 12]
    assert drawn(balance=1.0) == [52, 52, 52]
    roots = np.sqrt([40, 8, 4])
    assert np.abs(np.array(drawn(balance=0.5)) - 156 * roots / roots.sum()).max() < 1


def test_balance_leaves_the_unlabelled_stream_alone(uneven):
    batches = [
        next(iter(uneven(batch_size=6, unlabeled_batch_size=52, balance=b).train_dataloader())) for b in (0, 1.0)
    ]
    assert [sorted(batch["unlabeled"]["index"].tolist()) for batch in batches] == [list(range(52))] * 2
    assert np.bincount(batches[1]["labeled"][1]).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": "6/5"}, "fold is '6/5'"),
        ({"fold": "2 of 5"}, "fold is '2 of 5'"),
        ({"balance": 1.5}, "balance"),
        ({"fold": "1/2000"}, "2000 folds for 1437 samples"),
        ({"fold": "1/5", "test_size": 1790}, "test_size is 1790; it must be at most 1787"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        DigitsDataModule(**arguments).setup()


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    arguments = ["--model=ImageClassifier", "--model.network=mlp", "--model.image_size=8", "--data=DigitsDataModule"]
    arguments += ["--data.image_size=8", "--data.fold=2/5", "--data.balance=1.0", f"--run.dir={tmp_path}"]
    assert main(["fit", *arguments, "--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]) == 0
