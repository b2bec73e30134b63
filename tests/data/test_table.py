"""Vectors from a table: targets of every task, standardisation by the training part, groups, noise, mistakes."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lightning_tuning import Regressor
from lightning_tuning.data import DigitsDataModule, TableDataModule
from lightning_tuning.data.targets import read_targets
from lightning_tuning.errors import InvalidValueError

SIZES = {"val_size": 20, "test_size": 20, "batch_size": 8}


@pytest.fixture
def rows():
    """100 rows: three features of odd scales, one that is constant, all kinds of targets, 25 patients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3)) * [1, 1000, 1e-3] + [5, -2000, 0]
    return [
        {
            "a": repr(a),
            "b": repr(b),
            "c": repr(c),
            "same": "7",
            "species": ["cat", "dog", "eel"][number % 3],
            "red": str(number % 2),
            "big": str(int(number % 5 == 0)),
            "price": repr(3 * a + 10),
            "patient": f"p{number // 4}",
        }
        for number, (a, b, c) in enumerate(x.tolist())
    ]


@pytest.fixture
def make(rows, tmp_path):
    def made(rows=rows, **kwargs):
        path = tmp_path / "a.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        settings = {"target": "species", "features": ["a", "b", "c", "same"], **SIZES, **kwargs}
        datamodule = TableDataModule(str(path), **settings)
        datamodule.setup()
        return datamodule

    return made


def test_features_are_standardised_by_the_training_part_alone(make, rows):
    datamodule = make()
    raw = np.array([[float(row[name]) for name in ("a", "b", "c", "same")] for row in rows])
    train = raw[datamodule.train_indices]
    scale = np.array([*train[:, :3].std(axis=0), 1.0])
    expected = (raw - train.mean(axis=0)) / scale
    x, y = (torch.cat(part) for part in zip(*datamodule.test_dataloader(), strict=True))
    np.testing.assert_allclose(x, expected[datamodule.test_indices], rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert (x[:, 3] == 0).all()
    assert datamodule.class_names == ("cat", "dog", "eel")
    assert y.tolist() == (datamodule.test_indices % 3).tolist()
    np.testing.assert_allclose(make(standardize=False).samples, raw, rtol=1e-6)


def test_without_features_all_other_columns_are_taken(make):
    datamodule = make(target="price", task="regression", features=["b", "a"])
    assert (datamodule.feature_names, datamodule.num_features) == (("b", "a"), 2)
    with pytest.raises(InvalidValueError, match=r"a\.csv, row 1: 'species' is 'cat'; it must be a finite number"):
        make(target="price", task="regression", features=None)


def test_multilabel(make):
    datamodule = make(target=["red", "big"], task="multilabel")
    for x, y in datamodule.train_dataloader():
        assert y.shape == (8, 2)
        assert y.dtype == torch.float32
        assert x.shape == (8, 4)
    shares = [datamodule.labels[part].mean(axis=0) for part in (datamodule.train_indices, datamodule.val_indices)]
    np.testing.assert_allclose(shares, [[0.5, 0.2]] * 2, atol=0.03)


def test_values_and_what_leads_back(make, rows):
    price = np.array([float(row["price"]) for row in rows])
    plain = make(target="price", task="regression")
    np.testing.assert_allclose(plain.targets[:, 0], price, rtol=1e-6)
    scaled = make(target="price", task="regression", standardize_target=True)
    np.testing.assert_allclose(scaled.labels[scaled.train_indices].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.targets * scaled.target_std + scaled.target_mean, price[:, None], rtol=1e-5)
    trainer = Trainer(max_epochs=30, logger=False, accelerator="cpu", enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    model = Regressor(network="mlp", in_channels=4, num_outputs=1, optimizer="adam", lr=0.01)
    trainer.fit(model, scaled)
    assert trainer.test(model, scaled, verbose=False)[0]["test/r2"] > 0.9


def test_groups_stay_together(make, rows):
    patient = np.array([row["patient"] for row in rows])
    for datamodule in (make(group="patient"), make(group="patient", fold="2/5")):
        parts = [
            set(patient[part]) for part in (datamodule.train_indices, datamodule.val_indices, datamodule.test_indices)
        ]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert all(parts)
        assert "patient" not in datamodule.feature_names


def test_noise_is_a_function_of_the_seed_and_for_training_alone(make):
    quiet, noisy, again = make(seed=3), make(seed=3, noise=0.5), make(seed=3, noise=0.5, num_workers=0)
    batches = [next(iter(datamodule.train_dataloader())) for datamodule in (quiet, noisy, again)]
    assert torch.equal(batches[1][0], batches[2][0])
    assert 0.3 < (batches[1][0] - batches[0][0]).std() < 0.7
    assert torch.equal(next(iter(noisy.test_dataloader()))[0], next(iter(quiet.test_dataloader()))[0])
    unlabeled = next(iter(make(noise=0.5, num_labels=6, unlabeled_batch_size=40).train_dataloader()))["unlabeled"]
    assert 0.4 < (unlabeled["strong"] - unlabeled["weak"]).std() < 0.6
    assert set(unlabeled) == {"weak", "strong", "index", "target"}


def test_labels_of_values_can_be_scarce(make):
    assert len(make(target="price", task="regression", num_labels=7).labeled_indices) == 7


def test_class_ids_are_in_the_order_of_numbers_if_they_are_numbers():
    ids, names = read_targets({"y": ["10", "9", "10", "-1"]}, "multiclass", "a.csv")
    assert (ids.tolist(), names) == ([2, 1, 2, 0], ("-1", "9", "10"))
    ids, names = read_targets({"y": ["10", "9", "010"]}, "multiclass", "a.csv")
    assert (ids.tolist(), names) == ([1, 2, 0], ("010", "10", "9"))


def changed(rows, name, value):
    return [{**row, name: value if number == 4 else row[name]} for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({}, ("a", ""), "row 5: 'a' is empty; it must be a finite number. 1 of 100"),
        ({}, ("a", "nan"), "row 5: 'a' is 'nan'"),
        ({}, ("a", "1e39"), "row 5: 'a' is '1e39'"),
        ({}, ("species", " "), "'species' is empty; each row needs one"),
        ({"target": ["red", "big"], "task": "multilabel"}, ("red", "2"), "row 5: 'red' is 2; with task='multilabel'"),
        ({"target": ["red", "big"]}, None, "target names 2 columns, but with task='multiclass' it must be one"),
        ({"features": ["a", "specis"]}, None, "has no column 'specis'"),
        ({"features": ["a", "species"]}, None, "features is"),
        ({"features": []}, None, "features is"),
        ({"target": "kind"}, None, "has no column 'kind'"),
        ({"task": "multi"}, None, "task is 'multi'"),
        ({"noise": -1}, None, "noise"),
        ({"standardize_target": True}, None, "standardize_target is for task='regression'"),
        ({"balance": 1.0, "target": "price", "task": "regression"}, None, "the targets are no classes"),
        ({"val_size": 90}, None, "together they must be at most 97"),
        ({"target": "price", "task": "regression", "val_size": 90}, None, "at most 99: .* at least one"),
        ({"target": "price", "task": "regression", "num_labels": 70}, None, "from 1 to 60"),
    ],
)
def test_mistakes(make, rows, arguments, field, message):
    with pytest.raises(InvalidValueError, match=message):
        make(changed(rows, *field) if field else rows, **arguments).train_dataloader()


def test_weights_decide_how_often_a_row_is_drawn(make, rows):
    for number, row in enumerate(rows):
        row["heed"] = str([0, 1, 3][number % 3])
    data = make(weight="heed", features=["a"], target=["price"], task="regression", steps_per_epoch=100, seed=1)
    kind = np.arange(100) % 3
    weights = np.array([0.0, 1.0, 3.0])[kind[data.labeled_indices]]
    (keys,) = zip(*data.train_dataloader().sampler, strict=True)
    drawn = np.bincount(np.concatenate([step.indices for step in keys]), minlength=100)[data.labeled_indices]
    expected = 800 * weights / weights.sum()
    assert (np.abs(drawn - expected) < 1).all()


@pytest.mark.parametrize(
    ("field", "settings", "message"),
    [
        ("-1", {}, "row 1: 'heed' is -1; a weight must be at least 0."),
        ("much", {}, "row 1: 'heed' is 'much'; it must be a finite number."),
        ("1", {"balance": 0.5}, "balance is 0.5, but the samples have weights. Leave one of them out."),
    ],
)
def test_weights_that_are_none(make, rows, field, settings, message):
    for row in rows:
        row["heed"] = field
    with pytest.raises(InvalidValueError) as caught:
        make(weight="heed", **settings).train_dataloader()
    assert message in str(caught.value)


def test_the_parts_are_a_tenth_by_themselves(make):
    data = make(val_size=None, test_size=None)
    assert [len(part) for part in (data.train_indices, data.val_indices, data.test_indices)] == [80, 10, 10]
    assert (DigitsDataModule().val_size, TableDataModule("a.csv", "a").val_size) == (180, None)


def test_rows_without_a_class_are_unlabelled_samples(make, rows):
    """They help to standardise, too, but are never held out."""
    for row in rows[::4]:
        row["species"] = " "
    data = make(unlabeled_batch_size=8)
    assert data.class_names == ("cat", "dog", "eel")
    assert (len(data.labeled_indices), data.num_unlabeled) == (35, 60)
    assert set(range(0, 100, 4)) <= {*data.train_indices.tolist()} - {*data.labeled_indices.tolist()}
    assert data.labels.tolist() == [-1 if n % 4 == 0 else n % 3 for n in range(100)]
    part = next(iter(data.train_dataloader()))["unlabeled"]
    assert part["target"].tolist() == data.labels[data.train_indices[part["index"]]].tolist()
    with pytest.raises(InvalidValueError, match=r"a\.csv.* 'species' is empty; each row needs one"):
        make()
    with pytest.raises(InvalidValueError, match=r"a\.csv: 'species' is empty in all rows; some must have a label"):
        make([{**row, "species": ""} for row in rows], unlabeled_batch_size=8)
    with pytest.raises(InvalidValueError, match="'price' is empty"):
        make([{**row, "price": ""} for row in rows], target="price", task="regression", unlabeled_batch_size=8)
