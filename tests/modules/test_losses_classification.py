"""Losses of one class a sample, against numpy in float64."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import ImageClassifier, MixupMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.modules import Classifier
from lightning_tuning.modules.losses import classification_loss
from tests.numerics import array, one_hot, softmax

CLASSES = 4
WEIGHTS = [0.5, 2.0, 0.0, 3.0]  # exact in float32
NAMES = ["cross_entropy", "bce", "mse", "mae", "focal"]
every_loss = pytest.mark.parametrize("name", NAMES)
weighted = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
shapes = pytest.mark.parametrize("shape", [(7,), (2, 3, 5)], ids=["samples", "dense"])


def build(name, weights=None, **settings):
    return classification_loss(name, CLASSES, weights, **settings)


def reference(name, logits, y, weights=None, gamma=2.0):
    """The loss of each position, written out with a loop over the classes."""
    p = softmax(logits)
    sigmoid = 1 / (1 + np.exp(-logits))
    total = 0
    for c in range(CLASSES):
        part = {
            "cross_entropy": -y[:, c] * np.log(p[:, c]),
            "bce": -(y[:, c] * np.log(sigmoid[:, c]) + (1 - y[:, c]) * np.log(1 - sigmoid[:, c])) / CLASSES,
            "mse": (p[:, c] - y[:, c]) ** 2,
            "mae": np.abs(p[:, c] - y[:, c]),
            "focal": -y[:, c] * (1 - p[:, c]) ** gamma * np.log(p[:, c]),
        }[name]
        total = total + (1.0 if weights is None else weights[c]) * part
    return total


def draw(shape):
    logits = 2 * torch.randn(shape[0], CLASSES, *shape[1:], dtype=torch.float64)
    return logits, torch.randint(CLASSES, shape)


@every_loss
@weighted
@shapes
def test_ids_and_probabilities_against_numpy(name, weights, shape):
    logits, ids = draw(shape)
    loss = build(name, weights)
    hot = one_hot(ids.numpy(), CLASSES)
    expected = reference(name, array(logits), hot, weights).mean()
    for target in (ids, ids.int(), ids.to(torch.uint8), torch.from_numpy(hot), torch.from_numpy(hot).float()):
        value = loss(logits, target)
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(expected, abs=1e-12)
    soft = torch.randn_like(logits).softmax(1)
    expected = reference(name, array(logits), array(soft), weights).mean()
    assert loss(logits, soft).item() == pytest.approx(expected, abs=1e-12)


@every_loss
@weighted
@shapes
def test_gradients(name, weights, shape):
    logits, ids = draw(shape)
    loss = build(name, weights, focal_gamma=0.5)
    assert torch.autograd.gradcheck(lambda z: loss(z, ids), logits.requires_grad_())
    soft = torch.randn_like(logits).softmax(1).detach()
    assert torch.autograd.gradcheck(lambda z: loss(z, soft), logits)


@pytest.mark.parametrize("target", ["ids", "probabilities"])
def test_cross_entropy_without_weights_is_torchs_bitwise(target):
    logits, ids = torch.randn(9, CLASSES), torch.randint(CLASSES, (9,))
    target = ids if target == "ids" else F.one_hot(ids, CLASSES).float()
    assert torch.equal(build("cross_entropy")(logits, target), F.cross_entropy(logits, target))


def test_weights_divide_as_torch_does_with_probabilities():
    logits, ids = draw((9,))
    hot, weights = F.one_hot(ids, CLASSES).double(), torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = F.cross_entropy(logits, hot, weight=weights)
    torch.testing.assert_close(build("cross_entropy", WEIGHTS)(logits, ids), expected)
    assert not torch.isclose(F.cross_entropy(logits, ids, weight=weights), expected, rtol=0.05)


@every_loss
def test_weights_of_one_change_nothing_and_halves_of_a_batch_equal_it(name):
    logits, ids = draw((8,))
    torch.testing.assert_close(build(name, [1.0] * CLASSES)(logits, ids), build(name)(logits, ids))
    loss = build(name, WEIGHTS)
    halves = (loss(logits[:4], ids[:4]) + loss(logits[4:], ids[4:])) / 2
    torch.testing.assert_close(halves, loss(logits, ids))


@every_loss
@weighted
def test_ignored_positions_count_neither_in_the_sum_nor_in_the_mean(name, weights):
    logits, ids = draw((2, 3, 5))
    ids[0, 1], ids[1, :, 3] = -100, -100
    counts = ids.numpy() != -100
    logits.requires_grad_()
    value = build(name, weights)(logits, ids)
    each = reference(name, array(logits), one_hot(np.where(counts, ids.numpy(), 0), CLASSES), weights)
    assert value.item() == pytest.approx(each[counts].mean(), abs=1e-12)
    gradient = torch.autograd.grad(value, logits)[0].abs().sum(1)
    assert gradient[ids == -100].max() == 0
    assert gradient[ids != -100].max() > 0


@every_loss
def test_other_ids_out_of_range_are_refused(name):
    error = IndexError if name == "cross_entropy" else InvalidValueError  # torch's own
    for wrong in (-1, CLASSES):
        with pytest.raises(error):
            build(name)(torch.zeros(2, CLASSES), torch.tensor([0, wrong]))


def test_ids_in_bytes_reach_beyond_what_minus_100_would_wrap_to():
    loss = classification_loss("mse", 200)
    ids = torch.tensor([156, 199])
    logits = torch.randn(2, 200)
    assert torch.equal(loss(logits, ids.to(torch.uint8)), loss(logits, ids))
    assert loss(logits, ids) > 0


def test_focal_without_gamma_is_cross_entropy():
    logits, ids = draw((7,))
    for target in (ids, torch.randn_like(logits).softmax(1)):
        for weights in (None, WEIGHTS):
            focal = build("focal", weights, focal_gamma=0.0)(logits, target)
            torch.testing.assert_close(focal, build("cross_entropy", weights)(logits, target), rtol=1e-14, atol=0)


def test_gamma_reaches_the_loss():
    logits, ids = draw((7,))
    expected = reference("focal", array(logits), one_hot(ids.numpy(), CLASSES), gamma=3.5).mean()
    model = Classifier("mlp", num_classes=CLASSES, loss="focal", focal_gamma=3.5)
    assert model.compute_loss(logits, ids).item() == pytest.approx(expected, abs=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits = (3 * torch.randn(6, CLASSES)).to(dtype)
    ids = torch.randint(CLASSES, (6,))
    loss = build(name, WEIGHTS)
    value = loss(logits, ids)
    assert value.dtype == torch.float32
    expected = reference(name, array(logits), one_hot(ids.numpy(), CLASSES), WEIGHTS).mean()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(loss(logits, F.one_hot(ids, CLASSES).to(dtype)), value)


@every_loss
@weighted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_logits(name, weights, dtype):
    logits = torch.tensor([[1e4, -1e4, 0, 0], [-1e4, 1e4, 1e4, 0], [1e4] * 4], dtype=dtype).requires_grad_()
    for target in (torch.tensor([0, 0, 3]), torch.tensor([1, 1, 0]), torch.full((3, CLASSES), 0.25)):
        value = build(name, weights, focal_gamma=0.5)(logits, target)
        assert value.isfinite()
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_the_brier_score_is_a_sum_over_the_classes():
    """Brier's own range: 0 for a sure right answer, 2 for a sure wrong one."""
    logits = torch.tensor([[1e4, 0, 0, 0]])
    assert build("mse")(logits, torch.tensor([0])) == 0
    assert build("mse")(logits, torch.tensor([1])) == 2


@every_loss
@weighted
def test_mixup_that_mixes_nothing_has_the_loss_of_the_ids(name, weights, monkeypatch):
    monkeypatch.setattr("lightning_tuning.mixins.regularization.mixup.sample_beta", lambda alpha: 1.0)
    x, ids = torch.randn(8, 1, 4, 4), torch.randint(CLASSES, (8,))
    arguments = {"network": "mlp", "image_size": 4, "num_classes": CLASSES, "loss": name, "class_weights": weights}
    model = ImageClassifier(**arguments, mixup_alpha=1.0)
    assert isinstance(model, MixupMixin)
    assert model.training_step((x, ids), 0).item() == pytest.approx(model.compute_loss(model(x), ids).item(), rel=1e-6)


def test_weights_are_a_setting_and_no_state():
    loss = build("focal", WEIGHTS, focal_gamma=1.5)
    assert not loss.state_dict()
    logits, ids = draw((5,))
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(logits, ids), loss(logits, ids))
    model = ImageClassifier(network="mlp", num_classes=CLASSES, class_weights=WEIGHTS, loss="focal")
    assert (model.hparams["class_weights"], model.hparams["focal_gamma"]) == (WEIGHTS, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"loss": "hubr"},
            r"loss is 'hubr'. It must be one of 'cross_entropy', 'bce', 'mse', 'mae', 'focal', or an nn",
        ),
        ({"loss": "huber"}, r"loss is 'huber', a loss of regression targets; for multiclass ones it must be one of"),
        ({"class_weights": [1.0, 2.0]}, r"class_weights has length 2 and num_classes is 4; write one weight for each"),
        ({"class_weights": [1.0, 2.0, 1.0, -1.0]}, r"class_weights is \[1.0, 2.0, 1.0, -1.0\]; .*at least 0"),
        ({"class_weights": [1.0, 2.0, 1.0, float("nan")]}, r"must be finite"),
        ({"class_weights": [0.0] * 4}, r"not all 0"),
        ({"class_weights": [1.0] * 4, "loss": nn.CrossEntropyLoss()}, r"for a loss given by name, and loss is a Cross"),
        ({"focal_gamma": -1.0}, r"focal_gamma is -1.0; it must be a number in \[0, inf\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Classifier("mlp", num_classes=CLASSES, **arguments)
