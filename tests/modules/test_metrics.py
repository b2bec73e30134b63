import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, mean_squared_error, r2_score

from lightning_tuning.modules.metrics import MultiLabelMetrics, RegressionMetrics


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_regression_against_sklearn(outputs, offset):
    g = torch.Generator().manual_seed(1)
    target = offset + torch.randn(500, outputs, generator=g) * torch.arange(1, outputs + 1)
    predicted = target + 0.4 * torch.randn(500, outputs, generator=g)
    metrics = RegressionMetrics(outputs)
    for p, y in zip(predicted.split(64), target.split(64), strict=True):
        metrics.update(p, y)
    y, p = target.double().numpy(), predicted.double().numpy()
    expected = {
        "rmse": np.sqrt(mean_squared_error(y, p)),
        "mae": mean_absolute_error(y, p),
        "r2": r2_score(y, p),
    }
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(expected, rel=2e-4)


def test_two_ranks_give_the_metrics_of_all_samples():
    target, predicted = torch.randn(2, 30, 2) + 5
    parts = [RegressionMetrics(2) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 7), slice(7, 30)), strict=True):
        part.update(predicted[rows], target[rows])
    states = [iter([getattr(part, name) for name in parts[0]._defaults]) for part in parts]
    synced = RegressionMetrics(2)
    synced.update(predicted[:7], target[:7])
    synced.dist_sync_fn = lambda value, group=None: [next(states[0]), next(states[1])]
    synced.distributed_available_fn = lambda: True
    expected = {
        "rmse": np.sqrt(mean_squared_error(target, predicted)),
        "mae": mean_absolute_error(target, predicted),
        "r2": r2_score(target, predicted),
    }
    assert {name: value.item() for name, value in synced.compute().items()} == pytest.approx(expected, rel=1e-4)


def test_targets_that_are_all_equal_have_no_r2():
    metrics = RegressionMetrics()
    metrics.update(torch.zeros(4, 1), torch.ones(4, 1))
    values = metrics.compute()
    assert values["r2"].isnan()
    assert (values["rmse"], values["mae"]) == (1, 1)
    metrics.reset()
    metrics.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]]))
    assert metrics.compute()["r2"] == 1


@pytest.mark.parametrize("soft", [False, True])
def test_multilabel_against_sklearn(soft):
    g = torch.Generator().manual_seed(2)
    target = (torch.rand(90, 4, generator=g) < torch.tensor([0.1, 0.3, 0.5, 0.8])).float()
    logits = 2 * target - 1 + 1.5 * torch.randn(90, 4, generator=g)
    metrics = MultiLabelMetrics(4)
    for z, y in zip(logits.split(32), (0.2 + 0.6 * target if soft else target.long()).split(32), strict=True):
        metrics.update(z, y)
    y, p = target.numpy(), logits.sigmoid().numpy()
    expected = {
        "accuracy": ((p > 0.5) == y).mean(),
        "f1": f1_score(y, p > 0.5, average="macro"),
        "map": average_precision_score(y, p, average="macro"),
    }
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_a_class_without_a_positive_counts_as_nothing_found():
    metrics = MultiLabelMetrics(2)
    metrics.update(torch.tensor([[2.0, -2.0], [-2.0, -1.0]]), torch.tensor([[1, 0], [0, 0]]))
    assert {name: value.item() for name, value in metrics.compute().items()} == {"accuracy": 1, "f1": 0.5, "map": 0.5}
