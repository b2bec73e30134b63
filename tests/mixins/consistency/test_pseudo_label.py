import numpy as np
import pytest
import torch

from lightning_tuning import EMATeacherMixin, ImageClassifier, PseudoLabelMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import NUM_CLASSES, Tiny, batches, deep, fit, linear
from tests.numerics import array, cross_entropy, one_hot, softmax

from .pseudo import confident, data, run


class Net(PseudoLabelMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, PseudoLabelMixin, Tiny):
    pass


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_every_step_of_a_run(threshold):
    """Of the weak view alone; the weight rises over the first 4 steps."""
    torch.manual_seed(0)
    net = Net(
        confident(), pseudo_label_weight=0.8, pseudo_label_threshold=threshold, pseudo_label_ramp="linear 4 steps"
    )
    steps = run(net)
    expected = []
    for k, step in enumerate(steps):
        highest = step.q.max(1)
        unlabeled = -(np.log(highest) * (highest >= threshold)).sum() / len(highest)
        expected.append(step.labeled_loss + 0.8 * min(k / 4, 1) * unlabeled)
        assert threshold == 0 or 0 < (highest >= threshold).mean() < 1
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-9)


def test_gradient_of_a_linear_classifier_by_hand():
    """(p - onehot) x^T / B of the one pass that gave the label."""
    net, batch = Net(linear(), pseudo_label_weight=0.8, pseudo_label_ramp=None).double(), data(1)[0]
    net.training_step(batch, 0).backward()
    (x, ids), u = batch["labeled"], batch["unlabeled"]["weak"]
    p, q = softmax(array(net(x))), softmax(array(net(u)))
    of_labeled = (p - np.eye(NUM_CLASSES)[ids.numpy()]) / len(x)
    of_unlabeled = (q - np.eye(NUM_CLASSES)[q.argmax(1)]) / len(u)
    expected = of_labeled.T @ array(x) + 0.8 * of_unlabeled.T @ array(u)
    np.testing.assert_allclose(array(net.network.weight.grad), expected, atol=1e-12)


def test_one_pass_gives_label_and_gradient():
    """With dropout a second pass would answer otherwise."""
    net, batch = Net(deep()).double(), data(1)[0]
    outputs = []
    net.network.register_forward_hook(lambda module, args, output: outputs.append(output))
    loss = net.training_step(batch, 0)
    assert [len(output) for output in outputs] == [4, 12]
    labeled, q = cross_entropy(array(outputs[0]), one_hot(batch["labeled"][1].numpy(), 3)), softmax(array(outputs[1]))
    assert loss.item() == pytest.approx(labeled - 3.0 * np.log(q.max(1)).mean(), rel=1e-9)


def test_joint_statistics_are_one_pass():
    net, batch = Net(deep(), pseudo_label_statistics="joint").double(), data(1)[0]
    sizes = []
    net.network.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    net.training_step(batch, 0)
    assert sizes == [16]


def test_labelled_inputs_will_do():
    x, ids = batches(1, dtype=torch.float64)[0]
    net = Net(confident(), pseudo_label_weight=0.8).double()
    p = softmax(array(net(x)))
    expected = cross_entropy(array(net(x)), one_hot(ids.numpy(), 3)) - 0.8 * np.log(p.max(1)).mean()
    assert net.training_step((x, ids), 0).item() == pytest.approx(expected, rel=1e-9)
    assert ImageClassifier(network="mlp", image_size=4, pseudo_label_weight=1.0).pseudo_label_weight == 1.0


def test_a_single_unlabelled_view_will_do():
    batch = data(1)[0]
    net = Net(confident()).double()
    expected = net.training_step(batch, 0)
    assert torch.equal(net.training_step({**batch, "unlabeled": batch["unlabeled"]["weak"]}, 0), expected)


def test_a_teacher_gives_the_labels():
    net, batch = TaughtNet(confident(), pseudo_label_weight=0.8).double(), data(1)[0]
    net.configure_model()
    with torch.no_grad():
        for p in net.ema_teacher.network.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(4)))
    (x, ids), u = batch["labeled"], batch["unlabeled"]["weak"]
    labels = array(net.ema_teacher.network(u)).argmax(1)
    mine = softmax(array(net.network(u)))
    assert (labels != mine.argmax(1)).any()
    labeled = cross_entropy(array(net.network(x)), one_hot(ids.numpy(), 3))
    expected = labeled - 0.8 * np.log(mine[np.arange(len(u)), labels]).mean()
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_terms(every):
    """Where the true class is not known, -1, a pseudo label counts neither as right nor as wrong."""
    torch.manual_seed(0)
    net = Net(confident(), pseudo_label_threshold=0.7).double()
    batch = data(1)[0]
    q = softmax(array(net(batch["unlabeled"]["weak"])))
    counts = q.max(1) >= 0.7
    true = batch["unlabeled"]["target"].numpy().copy()
    known = np.arange(len(true)) % every == 0
    batch["unlabeled"]["target"] = torch.from_numpy(np.where(known, true, -1))
    right = q.argmax(1) == true
    assert 0 < right[counts & known].sum() < (counts & known).sum() or every > 1
    metrics = fit(net, [batch], precision="64-true").callback_metrics
    assert metrics["train/pseudo_label_share_epoch"].item() == pytest.approx(counts.mean())
    assert metrics["train/pseudo_label_precision_epoch"].item() == pytest.approx(right[counts & known].mean())
    assert metrics["train/pseudo_label_epoch"].item() == pytest.approx(-(np.log(q.max(1)) * counts).mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [("pseudo_label_weight", -1.0, "[0, inf)"), ("pseudo_label_threshold", 2.0, "[0, 1]")],
)
def test_a_value_out_of_range(name, value, interval):
    with pytest.raises(InvalidValueError) as caught:
        Net(**{name: value})
    assert str(caught.value) == f"{name} is {value}; it must be a number in {interval}."
