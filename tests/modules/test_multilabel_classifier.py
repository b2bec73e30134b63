"""Several classes a sample: learning, metrics, shapes, and the techniques on top."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import ImageClassifier, MultiLabelClassifier
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import sample_beta
from lightning_tuning.mixins import TECHNIQUES
from tests.contract.nets import trainer
from tests.host_data import digit_bits, parts
from tests.numerics import array

CLASSES = 3


def small(n=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g), (torch.rand(n, CLASSES, generator=g) > 0.5).long()


def loader(x, y, batch_size=8):
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def linear(**arguments):
    return MultiLabelClassifier(nn.Linear(4, CLASSES), num_classes=CLASSES, **arguments)


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_it_learns_the_bits_of_digits(loss, tmp_path):
    train, test = parts(*digit_bits(), train=1297)
    torch.manual_seed(0)
    model = MultiLabelClassifier("mlp", num_classes=CLASSES, image_size=8, lr=3e-3, loss=loss)
    made = trainer(tmp_path, max_epochs=5)
    made.fit(model, train)
    (values,) = made.test(model, test, verbose=False)
    x, y = test.dataset.tensors
    with torch.no_grad():
        p = model.eval()(x).sigmoid()
    assert values["test/accuracy"] == pytest.approx(((p > 0.5) == y).float().mean().item(), rel=1e-5)
    assert values["test/f1"] == pytest.approx(f1_score(y, p > 0.5, average="macro"), rel=1e-5)
    assert values["test/map"] == pytest.approx(average_precision_score(y, p, average="macro"), rel=1e-5)
    assert values["test/f1"] > 0.95
    predicted = torch.cat(trainer(tmp_path).predict(model, test))
    torch.testing.assert_close(predicted, p)


def test_any_type_of_multi_hot_is_the_same():
    x, y = small()
    model = linear()
    p = 1 / (1 + torch.exp(-model(x).double())).detach().numpy()
    expected = -(array(y) * np.log(p) + (1 - array(y)) * np.log(1 - p)).mean()
    for target in (y, y.bool(), y.to(torch.uint8), y.float(), y.double()):
        assert model.training_step((x, target), 0).item() == pytest.approx(expected, rel=1e-5)
        assert model.unpack_batch((x, target))[1].is_floating_point()


def test_what_it_logs(tmp_path):
    x, y = small()
    made = trainer(tmp_path, max_epochs=1)
    model = linear(optimizer="sgd", lr=1e-12)
    made.fit(model, loader(x, y), loader(x, y))
    values = made.callback_metrics
    assert {"train/loss_epoch", "val/loss", "val/accuracy", "val/f1", "val/map"} <= values.keys()
    right = ((model(x) > 0) == y).float().mean().item()
    assert values["train/accuracy_epoch"].item() == pytest.approx(right)
    assert values["val/accuracy"].item() == pytest.approx(right)
    assert "val/f1" in made.progress_bar_metrics


def test_the_training_accuracy_of_a_mixture_is_what_it_gives_to_the_predicted_side():
    outputs, target = torch.tensor([[2.0, -1.0], [-3.0, 0.5]]), torch.tensor([[0.75, 0.75], [0.1, 0.0]])
    (value,) = linear().training_terms(outputs, target).values()
    assert value.item() == pytest.approx((0.75 + 0.25 + 0.9 + 0.0) / 4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            torch.zeros(8).long(),
            r"torch.int64 of shape \[8\]; it must be multi-hot \[N, 3\].* there is ImageClassifier",
        ),
        (torch.zeros(8, 2).long(), r"of shape \[8, 2\]; it must be multi-hot \[N, 3\]"),
        (torch.zeros(8), r"torch.float32 of shape \[8\]; .* else 0\.$"),
        (torch.full((8, 3), 2), r"targets from 2 to 2; it must be multi-hot"),
        (torch.eye(8, 3) - 1, r"targets from -1 to 0"),
        (torch.full((8, 3), float("nan")), r"targets from nan to nan"),
    ],
)
def test_bad_targets_are_named_before_the_first_step(target, message, tmp_path):
    x, good = torch.randn(8, 4), torch.zeros(8, 3)
    for train, val in ((target, None), (good, target)):
        model = linear(optimizer="sgd", lr=1.0)
        before = model.network.weight.clone()
        with pytest.raises(InvalidValueError, match=message):
            trainer(tmp_path).fit(model, loader(x, train), None if val is None else loader(x, val))
        assert torch.equal(model.network.weight, before)


def test_a_multi_hot_target_in_the_classifier_of_one_class(tmp_path):
    x, y = small()
    with pytest.raises(InvalidValueError, match=r"integer of shape \[8, 3\]; it must be integer ids \[N\]"):
        trainer(tmp_path).fit(ImageClassifier(nn.Linear(4, 3), num_classes=3), loader(x, y))


def test_only_the_techniques_of_the_task_are_offered():
    expected = tuple(t for t in TECHNIQUES if "multilabel" in t.tasks and t.stage != "split")
    assert MultiLabelClassifier.techniques == expected
    with pytest.raises(TypeError, match=r"does not offer RDropMixin"):
        linear(rdrop_weight=1.0)


def test_mixup_mixes_the_multi_hot_targets():
    x, y = small(8)
    model = linear(mixup_alpha=0.7)
    state = torch.get_rng_state()
    share, partner = sample_beta(0.7), torch.randperm(8)
    torch.set_rng_state(state)
    loss = model.training_step((x, y), 0)
    mixed_x, mixed_y = (share * v + (1 - share) * v[partner] for v in (x, y.float()))
    torch.testing.assert_close(loss, nn.functional.binary_cross_entropy_with_logits(model(mixed_x), mixed_y))
