"""Regression: learning, metrics, shapes, and the techniques on top."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import MixupMixin, Regressor, SAMMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import sample_beta
from lightning_tuning.mixins import TECHNIQUES
from lightning_tuning.mixins.composition import techniques_of
from tests.contract.nets import assert_equal_state, trainer
from tests.host_data import diabetes, parts
from tests.numerics import array


def small(n=24, features=3, outputs=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    return x, torch.randn(n, generator=g) if outputs is None else torch.randn(n, outputs, generator=g)


def loader(x, y, batch_size=8):
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def test_it_learns_more_than_the_mean(tmp_path):
    train, test = parts(*diabetes(), train=342)
    torch.manual_seed(0)
    model = Regressor(in_channels=10, dropout=0.3, weight_decay=0.1, loss="huber", schedule="cosine")
    made = trainer(tmp_path, max_epochs=10)
    made.fit(model, train, test)
    (values,) = made.test(model, test, verbose=False)
    x, y = test.dataset.tensors
    with torch.no_grad():
        error = array(model.eval()(x))[:, 0] - array(y)
    assert values["test/rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert values["test/mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert values["test/r2"] == pytest.approx(1 - (error**2).mean() / array(y).var(), rel=1e-4)
    assert values["test/r2"] > 0.35  # the mean of the training part has 0 at most
    assert made.callback_metrics["test/loss"] < 0.4


def test_what_it_logs(tmp_path):
    x, y = small()
    made = trainer(tmp_path, max_epochs=1)
    made.fit(Regressor(in_channels=3), loader(x, y), loader(x, y))
    assert {"train/loss_epoch", "val/loss", "val/rmse", "val/mae", "val/r2"} <= made.callback_metrics.keys()
    assert made.callback_metrics["val/loss"].item() == pytest.approx(made.callback_metrics["val/rmse"].item() ** 2)
    assert "val/rmse" in made.progress_bar_metrics


@pytest.mark.parametrize("outputs", [1, 2])
def test_columns_or_none(outputs, tmp_path):
    """A target [N] is one column; its loss is that of the pairs, not of all combinations."""
    x, y = small(outputs=outputs)
    model = Regressor(in_channels=3, num_outputs=outputs)
    expected = ((array(model(x)) - array(y)) ** 2).mean()
    batches = [(x, y), (x, y.double())] + ([(x, y[:, 0])] if outputs == 1 else [])
    for batch in batches:
        assert model.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)
        (values,) = trainer(tmp_path).test(model, loader(*batch), verbose=False)
        assert values["test/rmse"] ** 2 == pytest.approx(expected, rel=1e-5)


def test_predictions_are_the_values(tmp_path):
    x, y = small()
    model = Regressor(in_channels=3)
    for data in (loader(x, y), DataLoader(x, batch_size=8)):
        predicted = torch.cat(trainer(tmp_path).predict(model, data))
        assert predicted.shape == (24, 1)
        torch.testing.assert_close(predicted, model(x))


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet18", "wrn_16_2"])
def test_named_networks_on_images(network):
    model = Regressor(network, num_outputs=2, in_channels=3, image_size=8)
    assert model(torch.randn(4, 3, 8, 8)).shape == (4, 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            torch.zeros(8).long(),
            r"torch.int64 of shape \[8\]; it must be floats \[N, 1\] or \[N\]. For class ids there is",
        ),
        (torch.zeros(8, 2), r"of shape \[8, 2\]; it must be floats \[N, 1\] or \[N\]. Write --model.num_outputs=2, or"),
        (torch.zeros(8, 1, 1), r"of shape \[8, 1, 1\]; it must be floats \[N, 1\] or \[N\]\.$"),
        (torch.full((8,), float("nan")), r"targets that are NaN or infinite"),
    ],
)
def test_bad_targets_are_named_before_the_first_step(target, message, tmp_path):
    x = torch.randn(8, 3)
    for train, val in ((target, None), (torch.zeros(8), target)):
        model = Regressor(in_channels=3, optimizer="sgd", lr=1.0)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InvalidValueError, match=message):
            trainer(tmp_path).fit(model, loader(x, train), None if val is None else loader(x, val))
        assert_equal_state(before, model.state_dict())


def test_one_column_for_two_outputs(tmp_path):
    with pytest.raises(InvalidValueError, match=r"of shape \[8\]; it must be floats \[N, 2\]\.$"):
        trainer(tmp_path).fit(Regressor(in_channels=3, num_outputs=2), loader(torch.zeros(8, 3), torch.zeros(8)))


@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        (
            "mlp",
            torch.zeros(4, 7),
            r"input has shape \[4, 7\]; network=mlp with in_channels=3 and image_size=4 takes 48 numbers a sample. For "
            r"vectors \[N, 7\] write in_channels=7, image_size=1\.$",
        ),
        ("mlp", torch.zeros(4, 1, 4, 4), r"shape \[4, 1, 4, 4\]; .* takes 48 numbers a sample\.$"),
        ("mlp", torch.zeros(4), r"shape \[4\]"),
        ("mlp", torch.zeros(4, 48).double(), r"input is torch.float64, the network's weights are torch.float32; conve"),
        ("cnn", torch.zeros(4, 7), r"shape \[4, 7\]; network=cnn takes images \[N, 3, H, W\] .*vectors there is netwo"),
        ("cnn", torch.zeros(4, 3, 8, 8).byte(), r"input is torch.uint8"),
        ("resnet18", torch.zeros(4, 1, 8, 8), r"shape \[4, 1, 8, 8\]; network=resnet18 takes images \[N, 3, H, W\]"),
        ("wrn_16_2", {"x": 1}, r"The batch's input is a dict; network=wrn_16_2 takes a tensor of images"),
    ],
)
def test_inputs_that_do_not_fit(network, x, message):
    with pytest.raises(InvalidValueError, match=message):
        Regressor(network, in_channels=3, image_size=4)(x)


def test_other_errors_of_a_network_stay_as_they_are():
    model = Regressor("cnn")
    model.network = nn.Linear(3, 1)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Regressor(nn.Linear(3, 1))(torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="Output size is too small"):
        Regressor("cnn")(torch.zeros(2, 1, 2, 2))


def test_a_network_with_the_wrong_number_of_outputs():
    for network in (nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))):
        with pytest.raises(
            InvalidValueError, match=r"num_outputs=1 needs \[N, 1\]. Change the network's last layer or"
        ):
            Regressor(network).training_step((torch.zeros(4, 3), torch.zeros(4)), 0)


def test_only_the_techniques_of_the_task_are_offered():
    assert Regressor.techniques == tuple(t for t in TECHNIQUES if "regression" in t.tasks and t.stage != "split")
    assert {SAMMixin, MixupMixin} <= {*Regressor.techniques}
    assert not hasattr(Regressor(sam_rho=0.1), "num_classes")
    with pytest.raises(TypeError, match=r"does not offer LabelSmoothingMixin"):
        Regressor(label_smoothing_epsilon=0.1)


@pytest.mark.parametrize("columns", [False, True])
def test_mixup_mixes_the_values_and_asks_for_no_classes(columns, tmp_path):
    x, y = small(8)
    y = y[:, None] if columns else y
    model = Regressor(in_channels=3, mixup_alpha=0.7)
    state = torch.get_rng_state()
    share, partner = sample_beta(0.7), torch.randperm(8)
    torch.set_rng_state(state)
    loss = model.training_step((x, y), 0).item()
    mixed_x, mixed_y = (share * v + (1 - share) * v[partner] for v in (x, y.reshape(8, 1)))
    assert loss == pytest.approx(((array(model(mixed_x)) - array(mixed_y)) ** 2).mean(), rel=1e-5)
    trainer(tmp_path).fit(model, loader(x, y, 4))


def test_copies_and_pickles_and_hyperparameters():
    model = Regressor(in_channels=3, sam_rho=0.1, loss="huber", huber_delta=0.5)
    x = torch.randn(2, 3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.loss.delta == 0.5
    assert techniques_of(type(model)) == [SAMMixin]
    assert {"num_outputs": 1, "huber_delta": 0.5, "sam_rho": 0.1, "loss": "huber"}.items() <= model.hparams.items()
    with pytest.raises(TypeError, match=r"has no argument 'num_output'; did you mean 'num_outputs'"):
        Regressor(num_output=2)
