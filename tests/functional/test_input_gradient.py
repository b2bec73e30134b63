import numpy as np
import pytest
import torch

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import gradient_penalty, input_gradients, interpolate, jacobian_penalty
from lightning_tuning.functional import input_gradient as module
from tests.numerics import array


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture
def basis(monkeypatch):
    """The unit vectors are those of the basis, one after the other."""
    count = iter(range(1000))
    monkeypatch.setattr(
        module, "unit_vectors", lambda like: torch.eye(like.shape[1]).to(like)[next(count)].expand_as(like)
    )


def mlp(x, w1, w2):
    return torch.tanh(x @ w1.T) @ w2.T


def jacobians(x, w1, w2):
    """``[N, C, D]``, by the chain rule."""
    slope = 1 - np.tanh(x @ w1.T) ** 2
    return np.einsum("ch,nh,hd->ncd", w2, slope, w1)


def test_all_directions_of_a_linear_network_give_its_norm_exactly(basis):
    w, x = normal(3, 5), normal(4, 5, seed=1).requires_grad_()
    assert jacobian_penalty(x @ w.T, [x], 3).item() == pytest.approx((array(w) ** 2).sum() / 2, rel=1e-14)


def test_all_directions_of_a_deep_network(basis):
    x, w1, w2 = normal(4, 5).requires_grad_(), normal(6, 5, seed=1), normal(3, 6, seed=2)
    expected = (jacobians(*map(array, (x, w1, w2))) ** 2).sum() / 4 / 2
    assert jacobian_penalty(mlp(x, w1, w2), [x], 3).item() == pytest.approx(expected, rel=1e-13)


def test_of_dense_outputs_every_element_is_one(basis):
    """A 1x1 convolution: each of the 4 positions has the same Jacobian."""
    w, x = normal(3, 2), normal(5, 2, 2, 2, seed=1).requires_grad_()
    logits = torch.einsum("cd,ndhw->nchw", w, x)
    assert jacobian_penalty(logits, [x], 12).item() == pytest.approx(4 * (array(w) ** 2).sum() / 2, rel=1e-14)


def test_random_directions_have_the_right_mean():
    torch.manual_seed(0)
    w, x = normal(4, 5), normal(2000, 5, seed=1).requires_grad_()
    expected = (array(w) ** 2).sum() / 2
    estimates = np.array([jacobian_penalty(x @ w.T, [x], 2).item() for _ in range(10)])
    error = estimates.std(ddof=1) / np.sqrt(10)
    assert error < 0.01 * expected
    assert abs(estimates.mean() - expected) < 4 * error


def test_directions_are_uniform_on_the_sphere():
    torch.manual_seed(0)
    v = array(module.unit_vectors(torch.zeros(100_000, 4, dtype=torch.float64)))
    np.testing.assert_allclose((v**2).sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(v.T @ v / len(v), np.eye(4) / 4, atol=4e-3)
    # The fourth moment 3 / (C (C + 2)) tells the sphere from a normalised cube.
    assert (v**4).mean() == pytest.approx(3 / 24, rel=0.02)
    assert module.unit_vectors(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32


def test_each_sample_has_its_own_direction():
    v = module.unit_vectors(torch.zeros(2, 8))
    assert not torch.allclose(v[0], v[1])


def test_gradcheck_of_the_penalty(monkeypatch):
    """Its gradient with respect to weights and inputs is a second derivative of the network."""
    v = normal(4, 3, seed=5)
    monkeypatch.setattr(module, "unit_vectors", lambda like: v)
    tensors = [
        normal(4, 5).requires_grad_(),
        normal(6, 5, seed=1).requires_grad_(),
        normal(3, 6, seed=2).requires_grad_(),
    ]

    def penalty(x, w1, w2):
        return jacobian_penalty(mlp(x, w1, w2), [x])

    assert torch.autograd.gradcheck(penalty, tensors)
    assert torch.autograd.gradgradcheck(penalty, tensors)


@pytest.mark.parametrize("form", ["r1", "wgan_gp"])
def test_gradcheck_of_the_gradient_penalty(form):
    tensors = [
        normal(4, 5).requires_grad_(),
        normal(6, 5, seed=1).requires_grad_(),
        normal(3, 6, seed=2).requires_grad_(),
    ]

    def penalty(x, w1, w2):
        return gradient_penalty(input_gradients(mlp(x, w1, w2), [x]), form)

    assert torch.autograd.gradcheck(penalty, tensors)
    assert torch.autograd.gradgradcheck(penalty, tensors)


def test_gradient_penalties_against_numpy():
    gradients = [normal(4, 2, 3), normal(4, 5, seed=1)]
    joined = np.concatenate([array(g).reshape(4, -1) for g in gradients], axis=1)
    norms = np.sqrt((joined**2).sum(1))
    assert gradient_penalty(gradients, "r1").item() == pytest.approx((norms**2).mean() / 2, rel=1e-14)
    assert gradient_penalty(gradients, "wgan_gp").item() == pytest.approx(((norms - 1) ** 2).mean(), rel=1e-14)


@pytest.mark.parametrize(("form", "value"), [("r1", 0.0), ("wgan_gp", 1.0)])
def test_where_the_gradient_is_0_the_penalty_has_one_too(form, value):
    gradient = torch.zeros(3, 4, requires_grad=True)
    penalty = gradient_penalty([gradient], form)
    penalty.backward()
    assert penalty.item() == value
    assert torch.equal(gradient.grad, torch.zeros(3, 4))


def test_input_gradients_of_several_inputs():
    a, b, unused = (normal(4, 3, seed=seed).requires_grad_() for seed in range(3))
    direction = normal(4, 3, seed=7)
    found = input_gradients(a * b.square(), [a, b, unused], direction)
    expected = [direction * b.detach() ** 2, direction * 2 * a.detach() * b.detach(), torch.zeros(4, 3).double()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-13, atol=0)
    assert found[0].requires_grad


@pytest.mark.parametrize("output", [normal(4, 3), normal(4, 3).requires_grad_() * 2])
def test_an_output_that_was_not_computed_from_the_inputs(output):
    with pytest.raises(InvalidValueError, match="does not depend on the inputs"):
        input_gradients(output, [normal(4, 3).requires_grad_()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scaling_keeps_small_gradients_of_a_half_precision_graph(dtype):
    x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    weight = torch.full((3, 1), 2.0**-14, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        output = (x @ weight).half() * torch.tensor(2.0**-13, dtype=torch.float16)  # 2^-27 is below fp16's range
        lost = input_gradients(output, [x])[0]
        kept = input_gradients(output, [x], scale=torch.tensor(2.0**15))[0]
    assert lost.abs().max() == 0
    assert kept.dtype == torch.float32
    assert torch.equal(kept.detach(), torch.full((2, 3), 2.0**-27))


def test_interpolate():
    torch.manual_seed(0)
    real, fake = normal(50, 3, 2), normal(50, 3, 2, seed=1)
    share = array((interpolate(real, fake) - fake) / (real - fake)).reshape(50, -1)
    np.testing.assert_allclose(share, share[:, :1].repeat(6, 1), atol=1e-9)
    assert 0 <= share.min() < 0.1
    assert 0.9 < share.max() < 1
    assert share[:, 0].std() == pytest.approx(np.sqrt(1 / 12), rel=0.25)


def test_interpolate_refuses_other_shapes():
    with pytest.raises(InvalidValueError, match=r"\[4, 3\] and \[4, 1\]"):
        interpolate(normal(4, 3), normal(4, 1))
