import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import class_probabilities, smooth_labels
from tests.numerics import array, cross_entropy, one_hot


@pytest.mark.parametrize("shape", [(7,), (2, 4, 3)])
def test_class_probabilities(shape):
    ids = torch.randint(5, shape)
    made = class_probabilities(ids, 5)
    assert made.shape == (shape[0], 5, *shape[1:])
    np.testing.assert_array_equal(array(made), one_hot(ids.numpy(), 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_ids_of_any_integer_type(dtype):
    np.testing.assert_array_equal(array(class_probabilities(torch.tensor([2, 0], dtype=dtype), 3)), np.eye(3)[[2, 0]])


def test_probabilities_pass_unchanged():
    given = torch.rand(4, 3)
    assert class_probabilities(given, 3) is given


@pytest.mark.parametrize(("ids", "low", "high"), [([0, 3], 0, 3), ([-1, 2], -1, 2)])
def test_ids_out_of_range(ids, low, high):
    message = (
        rf"The labels run from {low} to {high}, but num_classes=3 allows 0 to 2. "
        "Set num_classes to the number of classes in the data, or mend the labels."
    )
    with pytest.raises(InvalidValueError) as caught:
        class_probabilities(torch.tensor(ids), 3)
    assert str(caught.value) == message


def test_an_empty_batch():
    assert class_probabilities(torch.zeros(0, dtype=torch.long), 3).shape == (0, 3)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4, 2)])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0])
def test_smooth_labels(shape, epsilon):
    given = torch.rand(shape, dtype=torch.float64)
    given /= given.sum(1, keepdim=True)
    made = smooth_labels(given, epsilon)
    np.testing.assert_allclose(array(made), (1 - epsilon) * array(given) + epsilon / shape[1], atol=1e-15)
    np.testing.assert_allclose(array(made.sum(1)), 1.0)


def test_the_true_class_gets_its_share_of_the_smoothing_too():
    """(1 - eps) + eps / C for the class itself: not the variant that spreads eps over the C - 1 others."""
    np.testing.assert_allclose(array(smooth_labels(torch.eye(4)[:1], 0.2)), [[0.85, 0.05, 0.05, 0.05]], rtol=1e-6)


def test_epsilon_zero_is_the_identity():
    given = torch.rand(4, 3)
    assert torch.equal(smooth_labels(given, 0.0), given)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_its_cross_entropy_is_torchs(shape):
    ids = torch.randint(5, shape)
    logits = torch.randn(shape[0], 5, *shape[1:], dtype=torch.float64)
    soft = smooth_labels(class_probabilities(ids, 5).double(), 0.1)
    loss = F.cross_entropy(logits, soft).item()
    assert loss == pytest.approx(F.cross_entropy(logits, ids, label_smoothing=0.1).item(), abs=1e-12)
    assert loss == pytest.approx(cross_entropy(array(logits), array(soft)), abs=1e-12)


@pytest.mark.parametrize("epsilon", [-0.1, 1.5, float("nan"), "0.1"])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(InvalidValueError) as caught:
        smooth_labels(torch.eye(2), epsilon)
    assert str(caught.value) == f"epsilon is {epsilon!r}; it must be a number in [0, 1]."
