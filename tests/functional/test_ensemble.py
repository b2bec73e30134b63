"""Against numpy and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_tuning.functional import ensemble_logits, prediction_quality, prediction_sums


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def outputs(members=3, rows=40, classes=5, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(members, rows, classes, generator=generator, dtype=torch.float64)


def test_probabilities_are_averaged_not_logits():
    z = outputs()
    made = ensemble_logits(z)
    np.testing.assert_allclose(made.exp(), softmax(z.numpy()).mean(0), rtol=1e-12)
    assert (made.softmax(1) - z.mean(0).softmax(1)).abs().max() > 0.05


def test_of_several_labels_the_sigmoids_are_averaged():
    z = outputs()
    probabilities = (1 / (1 + np.exp(-z.numpy()))).mean(0)
    np.testing.assert_allclose(ensemble_logits(z, "multilabel").sigmoid(), probabilities, rtol=1e-12)
    far = ensemble_logits(torch.tensor([[[80.0]], [[90.0]]]), "multilabel")
    assert far.item() == pytest.approx(80 + np.log(2) - np.log1p(np.exp(-10)), rel=1e-6)


def test_values_are_averaged():
    z = outputs()
    np.testing.assert_allclose(ensemble_logits(z, "regression"), z.numpy().mean(0), rtol=1e-12)


def test_pixels_and_half_precision():
    z = torch.randn(2, 3, 4, 6, 6).half()
    made = ensemble_logits(z)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made.exp(), softmax(z.float().numpy(), 2).mean(0), rtol=1e-4)


def test_one_member_is_itself():
    z = outputs(1)
    np.testing.assert_allclose(ensemble_logits(z).softmax(1), z[0].softmax(1), rtol=1e-12)


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_the_qualities_over_uneven_batches(as_probabilities):
    z, ids = outputs(1, rows=300)[0], torch.arange(300) % 5
    z[torch.arange(300), ids] += 1.5
    target = torch.nn.functional.one_hot(ids, 5).double() if as_probabilities else ids
    sums = prediction_sums(z[:7], target[:7]) + prediction_sums(z[7:], target[7:])
    got = prediction_quality(sums)
    p, rows = softmax(z.numpy()), np.arange(300)
    assert got["accuracy"] == pytest.approx((p.argmax(1) == ids.numpy()).mean())
    assert got["nll"] == pytest.approx(-np.log(p[rows, ids]).mean())
    assert got["brier"] == pytest.approx(((p - np.eye(5)[ids]) ** 2).sum(1).mean())
    expected = multiclass_calibration_error(torch.tensor(p), ids, 5, n_bins=15, norm="l1")
    assert got["calibration_error"] == pytest.approx(expected.item(), abs=1e-6)


def test_a_prediction_without_doubt_is_in_the_last_bin():
    z = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    got = prediction_quality(prediction_sums(z, torch.tensor([0, 1])))
    assert got["calibration_error"] == pytest.approx(0.5)
    assert got["nll"] == pytest.approx(500.0)
