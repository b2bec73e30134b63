"""Losses of several classes a sample and of values, against numpy in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import MultiLabelClassifier, Regressor
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.modules.losses import multilabel_loss, regression_loss
from tests.numerics import array

CLASSES = 3
WEIGHTS = [0.5, 2.0, 3.0]
FOCAL = [("focal", {}), ("focal", {"focal_gamma": 0.5, "focal_alpha": 0.25})]
MULTI = [("bce", {}), *FOCAL]
multi = pytest.mark.parametrize(("name", "settings"), MULTI, ids=["bce", "focal", "alpha"])
weighted = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
shapes = pytest.mark.parametrize("shape", [(7, CLASSES), (2, CLASSES, 3, 5)], ids=["samples", "dense"])
VALUES = [("mse", 1.0), ("mae", 1.0), ("huber", 1.0), ("huber", 0.25)]
values = pytest.mark.parametrize(("name", "delta"), VALUES)


def multilabel_reference(logits, y, weights=None, focal_gamma=0.0, focal_alpha=None):
    p = 1 / (1 + np.exp(-logits))
    positive, negative = (1, 1) if focal_alpha is None else (focal_alpha, 1 - focal_alpha)
    each = -positive * y * (1 - p) ** focal_gamma * np.log(p)
    each = each - negative * (1 - y) * p**focal_gamma * np.log(1 - p)
    factors = np.ones(CLASSES) if weights is None else np.array(weights)
    return (each * factors.reshape(1, -1, *[1] * (logits.ndim - 2))).mean()


@multi
@weighted
@shapes
def test_multilabel_against_numpy(name, settings, weights, shape):
    logits = 2 * torch.randn(shape, dtype=torch.float64)
    loss = multilabel_loss(name, CLASSES, weights, **settings)
    expect = {"focal_gamma": 2.0, **settings} if name == "focal" else {}
    hard, soft = torch.rand(shape) > 0.6, torch.rand(shape, dtype=torch.float64)
    for target in (hard, hard.long(), hard.float(), soft):
        value = loss(logits, target)
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(multilabel_reference(array(logits), array(target), weights, **expect))
    assert torch.autograd.gradcheck(lambda z: loss(z, soft), logits.requires_grad_())


def test_focal_without_gamma_is_bce():
    logits, target = torch.randn(2, 9, CLASSES, dtype=torch.float64)
    target = target.sigmoid()
    focal = multilabel_loss("focal", CLASSES, WEIGHTS, focal_gamma=0.0)(logits, target)
    torch.testing.assert_close(focal, multilabel_loss("bce", CLASSES, WEIGHTS)(logits, target), rtol=1e-14, atol=0)
    halved = multilabel_loss("focal", CLASSES, WEIGHTS, focal_gamma=0.0, focal_alpha=0.5)(logits, target)
    torch.testing.assert_close(2 * halved, focal)


@multi
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_multilabel_extreme_logits_and_half_precision(name, settings, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1.0]], dtype=dtype).requires_grad_()
    for target in (torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 0.5)):
        value = multilabel_loss(name, CLASSES, WEIGHTS, **settings)(logits, target)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def value_reference(name, error, delta):
    absolute = np.abs(error)
    if name == "huber":
        return np.where(absolute <= delta, error**2 / 2, delta * (absolute - delta / 2)).mean()
    return (error**2 if name == "mse" else absolute).mean()


@values
@pytest.mark.parametrize("shape", [(9, 1), (6, 3)])
def test_regression_against_numpy(name, delta, shape):
    predicted, target = 2 * torch.randn(2, *shape, dtype=torch.float64)
    loss = regression_loss(name, delta)
    expected = value_reference(name, array(predicted) - array(target), delta)
    assert loss(predicted, target).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), predicted.detach().requires_grad_())
    low = predicted.detach().bfloat16()
    value = loss(low, target)  # float64 targets, as of numpy, do not make it float64
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(value_reference(name, array(low) - array(target), delta), rel=1e-5)


@values
def test_regression_extreme_values(name, delta):
    for dtype in (torch.float32, torch.float16):
        predicted = torch.tensor([[1e4], [-1e4], [0.0]], dtype=dtype).requires_grad_()
        value = regression_loss(name, delta)(predicted, torch.zeros(3, 1))
        assert value.item() == pytest.approx(value_reference(name, np.array([1e4, -1e4, 0.0]), delta), rel=1e-3)
        assert torch.autograd.grad(value, predicted)[0].isfinite().all()


@pytest.mark.parametrize("loss", [regression_loss("mse"), multilabel_loss("bce", 1)])
def test_shapes_are_never_broadcast(loss):
    with pytest.raises(InvalidValueError, match=r"shape \[4, 1\], the target has \[4\]; they must be equal"):
        loss(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize(
    ("host", "arguments", "message"),
    [
        (MultiLabelClassifier, {"loss": "cross_entropy"}, r"a loss of multiclass targets; for multilabel ones it must"),
        (MultiLabelClassifier, {"loss": "mse"}, r"a loss of multiclass and regression targets; for multilabel ones"),
        (
            MultiLabelClassifier,
            {"loss": "focl"},
            r"loss is 'focl'; did you mean 'focal'\? It must be one of 'bce', 'fo",
        ),
        (MultiLabelClassifier, {"class_weights": [1.0]}, r"class_weights has length 1 and num_classes is 10"),
        (MultiLabelClassifier, {"focal_alpha": 1.5}, r"focal_alpha is 1.5; it must be a number in \[0, 1\]"),
        (MultiLabelClassifier, {"focal_gamma": -0.5}, r"focal_gamma is -0.5"),
        (MultiLabelClassifier, {"num_classes": 1}, r"num_classes is 1; it must be a number in \[2, inf\)"),
        (Regressor, {"loss": "bce"}, r"a loss of multiclass and multilabel targets; for regression ones it must be on"),
        (Regressor, {"loss": "rmse"}, r"loss is 'rmse'; did you mean 'mse'\? It must be one of 'mse', 'mae', 'huber'"),
        (Regressor, {"huber_delta": 0.0}, r"huber_delta is 0.0; it must be a number in \(0, inf\)"),
        (Regressor, {"num_outputs": 0}, r"num_outputs is 0; it must be a number in \[1, inf\)"),
    ],
)
def test_errors(host, arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        host(**arguments)


def test_settings_reach_the_losses():
    logits, target = torch.randn(5, CLASSES), (torch.rand(5, CLASSES) > 0.5).float()
    model = MultiLabelClassifier(
        network="mlp", num_classes=CLASSES, loss="focal", focal_gamma=3.0, focal_alpha=0.3, class_weights=WEIGHTS
    )
    expected = multilabel_reference(array(logits), array(target), WEIGHTS, 3.0, 0.3)
    assert model.compute_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
    assert Regressor(loss="huber", huber_delta=0.1).compute_loss(torch.ones(2, 1), torch.zeros(2)).item() == (
        pytest.approx(0.1 * (1 - 0.05))
    )
    own = Regressor(loss=nn.SmoothL1Loss(beta=2.0))
    assert own.compute_loss(torch.ones(2, 1), torch.zeros(2)).item() == pytest.approx(0.25)
