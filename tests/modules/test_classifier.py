import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.modules import Classifier
from lightning_tuning.modules.metrics import confusion_figure

CLASSES = 4


@pytest.fixture
def logits_and_ids():
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 3, (50,), generator=g)  # the last class is never a target
    return 2 * torch.randn(50, CLASSES, generator=g) + nn.functional.one_hot(ids, CLASSES), ids


def loader(*tensors, batch_size=16):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def trainer(**settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"logger": False, "accelerator": "cpu", "max_epochs": 1} | quiet | settings)


def identity(**arguments):
    """A classifier whose input are its logits, with one weight so that it can train."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x

    return Classifier(Scale(), **{"num_classes": CLASSES, "optimizer": "sgd", "lr": 1e-12} | arguments)


def calibration_error(probabilities, ids, bins=15):
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == ids
    error = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


def soft(ids, certainty=0.8):
    return (1 - certainty) / CLASSES + certainty * nn.functional.one_hot(ids, CLASSES).float()


def test_loss_of_ids_equals_loss_of_one_hot_probabilities_and_the_formula(logits_and_ids):
    logits, ids = logits_and_ids
    model = Classifier("mlp", num_classes=CLASSES)
    expected = -np.log(np.exp(logits.numpy())[range(50), ids] / np.exp(logits.numpy()).sum(1)).mean()
    assert model.compute_loss(logits, ids).item() == pytest.approx(expected, rel=1e-6)
    assert model.compute_loss(logits, ids.int()).item() == pytest.approx(expected, rel=1e-6)
    one_hot = nn.functional.one_hot(ids, CLASSES)
    assert model.compute_loss(logits, one_hot.float()).item() == pytest.approx(expected, rel=1e-6)
    low = model.compute_loss(logits.bfloat16(), one_hot.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(expected, rel=1e-2)
    assert model.compute_loss(logits.double(), one_hot.float()).dtype == torch.float64


def test_own_loss_is_used(logits_and_ids):
    logits, ids = logits_and_ids
    model = Classifier("mlp", num_classes=CLASSES, loss=nn.CrossEntropyLoss(label_smoothing=0.3))
    expected = nn.functional.cross_entropy(logits, soft(ids, 0.7))
    torch.testing.assert_close(model.compute_loss(logits, ids), expected)


@pytest.mark.parametrize("as_probabilities", [False, True])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_against_sklearn(logits_and_ids, stage, as_probabilities):
    logits, ids = logits_and_ids
    target = soft(ids) if as_probabilities else ids
    run, model = trainer(), identity()
    evaluate = run.validate if stage == "val" else run.test
    (values,) = evaluate(model, loader(logits, target), verbose=False)  # batches of 16, 16, 16 and 2
    predicted, probabilities = logits.argmax(1), logits.softmax(1)
    expected = {
        "loss": nn.functional.cross_entropy(logits, target).item(),
        "accuracy": accuracy_score(ids, predicted),
        "f1": f1_score(ids, predicted, average="macro"),
        "calibration_error": calibration_error(probabilities.numpy(), ids.numpy()),
    }
    assert values == pytest.approx({f"{stage}/{name}": value for name, value in expected.items()}, rel=1e-5)
    (again,) = evaluate(model, loader(logits[:7], target[:7]), verbose=False)
    assert again[f"{stage}/accuracy"] == pytest.approx(accuracy_score(ids[:7], predicted[:7]))


def test_confusion_matrix_and_its_picture(logits_and_ids, tmp_path):
    logits, ids = logits_and_ids
    model = identity()
    assert model.test_confusion is None
    trainer(logger=CSVLogger(tmp_path, name="", version="")).test(model, loader(logits, ids), verbose=False)
    expected = confusion_matrix(ids, logits.argmax(1), labels=range(CLASSES))
    assert model.test_confusion.tolist() == expected.tolist()
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")

    axes, _ = confusion_figure(model.test_confusion).axes
    shown = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
    assert shown == {(i, j): n for (i, j), n in np.ndenumerate(expected) if n}
    np.testing.assert_allclose(axes.images[0].get_array()[:3], expected[:3] / expected[:3].sum(1, keepdims=True))


def test_the_confusion_matrix_tells_the_names_of_the_classes(logits_and_ids, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: seen.append(figure))
    data = LightningDataModule.from_datasets(test_dataset=loader(*logits_and_ids).dataset, batch_size=16)
    data.class_names = ("four\n", "$o^$", "a long name of a class")
    trainer(logger=CSVLogger(tmp_path, name="", version="")).test(identity(), datamodule=data, verbose=False)
    axes, _ = seen[0].axes
    names = [r"four\n", r"\$o^\$", "a long ...a class", "3"]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    seen[0].canvas.draw()  # "$" begins no formula


def test_a_full_disk_costs_the_picture_and_not_the_test(logits_and_ids, tmp_path):
    (tmp_path / "confusion_matrix.png").mkdir()  # as good as a full disk: it cannot be written
    run = trainer(logger=CSVLogger(tmp_path, name="", version=""))
    with pytest.warns(UserWarning, match=r"confusion_matrix\.png was not written: Is a directory\."):
        (values,) = run.test(identity(), loader(*logits_and_ids), verbose=False)
    assert "test/accuracy" in values


def test_many_classes_are_drawn_without_counts():
    axes, _ = confusion_figure(torch.eye(31).long()).axes
    assert not axes.texts


@pytest.mark.parametrize("settings", [{}, {"fast_dev_run": True}])
def test_without_a_logger_nothing_is_written(logits_and_ids, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    trainer(**settings).test(identity(), loader(*logits_and_ids), verbose=False)
    assert not list(tmp_path.rglob("*"))


def test_a_nan_loss_is_shown():
    logits = torch.zeros(4, CLASSES)
    logits[0, 0] = float("nan")
    (values,) = trainer().validate(identity(), loader(logits, torch.zeros(4).long(), batch_size=2), verbose=False)
    assert math.isnan(values["val/loss"])


def test_training_logs_loss_and_accuracy(logits_and_ids):
    logits, ids = logits_and_ids[0][:48], logits_and_ids[1][:48]
    run = trainer(log_every_n_steps=1)
    run.fit(identity(), loader(logits, ids))
    values = {k: v.item() for k, v in run.callback_metrics.items()}
    assert values["train/loss_epoch"] == pytest.approx(nn.functional.cross_entropy(logits, ids).item(), rel=1e-5)
    assert values["train/accuracy_epoch"] == pytest.approx(accuracy_score(ids, logits.argmax(1)))
    assert values["train/loss"] == pytest.approx(nn.functional.cross_entropy(logits[32:], ids[32:]).item(), rel=1e-5)
    assert "train/loss" in run.progress_bar_metrics
    assert "train/mixed_accuracy_epoch" not in values


def test_training_on_probabilities_logs_mixed_accuracy(logits_and_ids):
    logits, ids = logits_and_ids[0][:48], logits_and_ids[1][:48]
    target = 0.5 * soft(ids) + 0.5 * soft(ids.flip(0))
    run = trainer()
    run.fit(identity(), loader(logits, target))
    expected = target.numpy()[range(48), logits.argmax(1)].mean()
    assert run.callback_metrics["train/mixed_accuracy_epoch"].item() == pytest.approx(expected, rel=1e-5)
    assert "train/accuracy_epoch" not in run.callback_metrics


def test_terms_go_through_log_term(logits_and_ids):
    seen = {}

    class Net(Classifier):
        def log_term(self, name, value, prog_bar=False):
            seen[name] = prog_bar

    Net(nn.Identity(), num_classes=CLASSES).training_step(logits_and_ids, 0)
    assert seen == {"loss": True, "accuracy": False}


def test_predictions_are_probabilities(logits_and_ids):
    logits, ids = logits_and_ids
    for data in (loader(logits, ids), DataLoader(logits, batch_size=16)):
        predicted = torch.cat(trainer().predict(identity(), data))
        torch.testing.assert_close(predicted, logits.softmax(1))


def test_batches_are_taken_apart_and_put_together():
    model, x, y = identity(), torch.zeros(2), torch.ones(2)
    assert model.unpack_batch([x, y, "name"]) == (x, y)
    assert model.pack_batch([x, y, "name"], 1, 2) == (1, 2, "name")
    batch = {"labeled": (x, y), "unlabeled": x}
    assert model.unpack_batch(batch) == (x, y)
    assert model.pack_batch(batch, 1, 2) == {"labeled": (1, 2), "unlabeled": x}
    assert batch["labeled"] == (x, y)


def test_the_labelled_part_alone_trains(logits_and_ids):
    logits, ids = logits_and_ids
    model = identity()
    loss = model.training_step({"labeled": (logits, ids), "unlabeled": {"weak": None}}, 0)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, ids))


def test_two_epochs_learn_without_a_warning(tmp_path):
    seed_everything(0)
    ids = torch.arange(64) % CLASSES
    images = torch.rand(64, 1, 16, 16) + ids[:, None, None, None]
    model = Classifier("cnn", num_classes=CLASSES, lr=0.01, weight_decay=0.01, schedule="cosine", warmup_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, about torch
        run = trainer(max_epochs=2, log_every_n_steps=2, logger=CSVLogger(tmp_path))
        run.fit(model, loader(images, ids), loader(images, ids))
    first, *_, last = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1", "val/calibration_error"} <= {
        *first.split(",")
    }
    assert run.callback_metrics["train/loss_epoch"] < math.log(CLASSES)
    assert "val/accuracy" in run.progress_bar_metrics
    assert last


def test_the_seed_decides_the_network_and_only_it_is_saved():
    models = []
    for _ in range(2):
        seed_everything(5)
        models.append(Classifier("wrn_16_2"))
    states = [model.state_dict() for model in models]
    assert all(name.startswith("network.") for name in states[0])
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert not models[0].hparams


def test_copies_and_pickles(logits_and_ids):
    model = Classifier("mlp", image_size=4, schedule="cosine")
    x = torch.randn(2, 1, 4, 4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 4]), r"labels from 0 to 4; model\.num_classes is 4.*--model\.num_classes=5"),
        (torch.tensor([-1, 2]), r"labels from -1 to 2.*Mend the labels"),
        (torch.zeros(2), r"torch\.float32 of shape \[2\]; it must be integer ids \[N\] or probabilities \[N, 4\]"),
        (torch.zeros(2, 3), r"of shape \[2, 3\]"),
        (torch.zeros(2, 1).long(), r"integer of shape \[2, 1\]"),
    ],
)
def test_bad_targets_are_named_before_the_first_step(target, message):
    x, good = torch.zeros(2, CLASSES), torch.tensor([0, 1])
    for train, val in ((target, None), (good, target)):
        model = identity(lr=1.0)
        with pytest.raises(InvalidValueError, match=message):
            trainer().fit(model, loader(x, train), None if val is None else loader(x, val))
        assert model.network.scale == 1
    with pytest.raises(InvalidValueError, match=message):
        trainer().test(identity(), loader(x, target))


class Data(LightningDataModule):
    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)

    def train_dataloader(self):
        raise AssertionError("the data were read before the check")


@pytest.mark.parametrize(
    ("network", "attributes", "message"),
    [
        ("mlp", {"num_classes": 10}, r"data has 10 classes, model\.num_classes is 4; write --model\.num_classes=10\."),
        (
            "cnn",
            {"num_classes": 4, "in_channels": 3},
            r"images have 3 channels, model\.in_channels is 1; write --model",
        ),
        ("mlp", {"image_size": 28}, r"images have 28 pixels a side, model\.image_size is 16; write --model"),
    ],
)
def test_data_that_do_not_fit_the_model(network, attributes, message):
    with pytest.raises(InvalidValueError, match=message):
        trainer().fit(Classifier(network, num_classes=CLASSES), datamodule=Data(**attributes))


@pytest.mark.parametrize("network", ["cnn", nn.Linear(6, CLASSES)])
def test_sizes_that_do_not_matter_are_not_compared(network):
    attributes = {"num_classes": CLASSES, "image_size": 28} | ({} if network == "cnn" else {"in_channels": 3})
    with pytest.raises(AssertionError, match="the data were read"):
        trainer().fit(Classifier(network, num_classes=CLASSES), datamodule=Data(**attributes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "restnet18"}, r"network is 'restnet18'; did you mean 'resnet18'\?"),
        ({"network": nn.Linear}, r"network is <class .*Linear.*>. It must be one of .* or an nn\.Module"),
        ({"loss": "cross_entrop"}, r"loss is 'cross_entrop'; did you mean 'cross_entropy'\?"),
        ({"num_classes": 1}, r"num_classes is 1; it must be a number in \[2, inf\)"),
        ({"network": nn.Identity(), "num_classes": 0}, r"num_classes is 0"),
    ],
)
def test_errors_say_what_to_write(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Classifier(**arguments)


def test_a_network_with_the_wrong_number_of_logits():
    model = Classifier(nn.Linear(3, 7), num_classes=5)
    with pytest.raises(InvalidValueError, match=r"shape \[2, 7\]; num_classes=5 needs \[N, 5\]"):
        model.training_step((torch.zeros(2, 3), torch.tensor([0, 1])), 0)


@pytest.mark.parametrize("batch", [torch.zeros(3), {"x": 1}, (torch.zeros(3),)])
def test_a_batch_that_is_no_pair(batch):
    with pytest.raises(InvalidValueError, match=r"it must be \(x, target, \.\.\.\) or \{'labeled': \(x"):
        identity().unpack_batch(batch)


def test_a_late_label_out_of_range_is_named():
    x, ids = torch.randn(48, 4), torch.zeros(48, dtype=torch.long)
    ids[40] = 12
    model = Classifier(network=nn.Linear(4, 3), num_classes=3)
    with pytest.raises(InvalidValueError, match=r"A batch has labels from 0 to 12; model\.num_classes is 3"):
        trainer(max_epochs=1).fit(model, loader(x, ids))


def test_a_broken_off_validation_leaves_nothing(logits_and_ids):
    logits, ids = logits_and_ids
    model, made = identity(), trainer()
    before = made.validate(model, loader(logits, ids), verbose=False)
    with pytest.raises(InvalidValueError):
        made.validate(model, loader(logits, torch.cat([ids[:-1], torch.tensor([99])])), verbose=False)
    assert trainer().validate(model, loader(logits, ids), verbose=False) == before
