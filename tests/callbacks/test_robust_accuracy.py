import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import EMATeacherMixin, RobustAccuracy
from lightning_tuning.data.normalize import Normalize
from lightning_tuning.errors import InvalidValueError


class Host(pl.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    compute_loss = staticmethod(F.cross_entropy)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def two_classes(features=4):
    torch.manual_seed(0)
    return nn.Linear(features, 2)


def data(size=50, features=4, batch_size=8, **kwargs):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, features, generator=generator)
    y = torch.randint(2, (size,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, generator=torch.Generator(), **kwargs)


def trainer(*callbacks, **kwargs):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        **{"accelerator": "cpu", "enable_model_summary": False, **quiet, **kwargs}, callbacks=[*callbacks]
    )


def closed_form(network, loader, epsilon, norm, batches=None):
    """Of two classes: the margin of a sample that is robust is above what the ball can take from it."""
    w = (network.weight[1] - network.weight[0]).detach().double().numpy()
    b = (network.bias[1] - network.bias[0]).item()
    x, y = (torch.cat(part).numpy() for part in zip(*list(loader)[:batches], strict=True))
    margin = (x @ w + b) * np.where(y == 1, 1, -1)
    length = np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)
    return (margin > 0).mean(), (margin > epsilon * length).mean()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_linear_models_accuracies(norm, stage, inference_mode):
    net, loader = Host(two_classes()), data()
    made = trainer(RobustAccuracy(0.6, steps=20, norm=norm), inference_mode=inference_mode)
    (made.validate if stage == "val" else made.test)(net, loader, verbose=False)
    clean, robust = closed_form(net.network, loader, 0.6, norm)
    assert 0.1 < robust < clean - 0.1
    assert made.callback_metrics[f"{stage}/clean_accuracy"].item() == pytest.approx(clean, abs=1e-6)
    assert made.callback_metrics[f"{stage}/robust_accuracy"].item() == pytest.approx(robust, abs=1e-6)


def test_limited_batches_and_several_loaders():
    net, loaders = Host(two_classes()), [data(20), data(33)]
    made = trainer(RobustAccuracy(0.2, max_batches=2))
    made.test(net, loaders, verbose=False)
    for i, loader in enumerate(loaders):
        clean, robust = closed_form(net.network, loader, 0.2, "linf", 2)
        assert made.callback_metrics[f"test/clean_accuracy/dataloader_idx_{i}"].item() == pytest.approx(clean)
        assert made.callback_metrics[f"test/robust_accuracy/dataloader_idx_{i}"].item() == pytest.approx(robust)


class Bumpy(nn.Module):
    """Class 1 is where a cosine of high frequency is positive: where an attack ends depends on where it starts."""

    def forward(self, x):
        value = (6 * x).cos().sum(1) + 2
        return torch.stack([-value, value], dim=1)


def robust_share(restarts, **kwargs):
    made = trainer(RobustAccuracy(0.5, steps=2, step_size=0.05, restarts=restarts, **kwargs))
    made.test(Host(Bumpy()), data(200, batch_size=50), verbose=False)
    return made.callback_metrics["test/robust_accuracy"].item()


def test_a_sample_has_to_withstand_every_restart():
    one, many = robust_share(1), robust_share(6)
    assert many < one - 0.02
    assert robust_share(6) == many  # the random starts are keyed
    assert robust_share(1, seed=1) != one


def test_what_is_broken_is_not_attacked_again():
    sizes = []

    class Spy(Host):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    net, loader = Spy(two_classes()), data(50, batch_size=50)
    trainer(RobustAccuracy(0.2, steps=3, restarts=2)).test(net, loader, verbose=False)
    clean, robust = closed_form(net.network, loader, 0.2, "linf")
    right, standing = round(50 * clean), round(50 * robust)
    assert sizes[:5] == [50, right, right, right, right]  # as it is, three gradients, the answer
    assert sizes[5] < right
    assert sizes[5:] == [sizes[5]] * 4
    assert standing <= sizes[5]


def test_nothing_left_to_attack():
    class Wrong(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    made = trainer(RobustAccuracy(0.2))
    batch = torch.randn(4, 3), torch.ones(4).long()
    made.test(Host(Wrong()), DataLoader([batch], batch_size=None), verbose=False)
    assert made.callback_metrics["test/robust_accuracy"].item() == 0


def test_pixels_and_their_range():
    """Dark pixels cannot get darker: in the unit of normalised inputs, without the range, the attack would succeed."""

    class Dark(nn.Module):
        def forward(self, x):  # class 1 below a normalised value of -1
            value = x.flatten(1).sum(1)
            return torch.stack([value + 1, -value - 1], dim=1)

    x = torch.tensor([0.0, 0.2, 0.9]).view(3, 1, 1, 1)  # pixels; class 1 below 0.3
    mean, std = 0.5, 0.2
    net = Host(Dark())
    loader = DataLoader([((x - mean) / std, torch.tensor([1, 1, 0]))], batch_size=None)
    for epsilon, expected in [(0.05, 1.0), (0.15, 2 / 3), (0.25, 2 / 3), (0.31, 1 / 3), (0.61, 0)]:
        net.normalize = Normalize([mean], [std])
        made = trainer(RobustAccuracy(epsilon, steps=5))
        made.test(net, loader, verbose=False)
        assert made.callback_metrics["test/robust_accuracy"].item() == pytest.approx(expected), epsilon


def test_a_ball_that_holds_every_image_is_told():
    net = Host(two_classes())
    net.normalize = Normalize([0.0], [1.0])
    with pytest.warns(UserWarning, match=r"RobustAccuracy: epsilon is 8, in pixels of \[0, 1\]: each image"):
        trainer(RobustAccuracy(8, steps=1)).test(net, data(), verbose=False)


def test_a_datamodules_normalisation():
    class DataModule(pl.LightningDataModule):
        normalize = Normalize([0.0], [0.01])

        def test_dataloader(self):
            return data()

    net = Host(two_classes())
    made = trainer(RobustAccuracy(0.5 * 0.01 / 5))
    made.test(net, DataModule(), verbose=False)
    # Pixels outside of [0, 1] may stay there, so that a part of the ball is out of reach.
    clean, robust = closed_form(net.network, data(), 0.1, "linf")
    assert clean > made.callback_metrics["test/robust_accuracy"].item() >= robust


def test_a_sure_network_is_attacked_all_the_same():
    """Scaled by 1000 the cross entropy's gradient is exactly 0 in float32."""
    network = two_classes()
    with torch.no_grad():
        network.weight.mul_(1000)
        network.bias.mul_(1000)
    made = trainer(RobustAccuracy(0.2))
    made.test(Host(network), data(), verbose=False)
    assert made.callback_metrics["test/robust_accuracy"].item() == pytest.approx(
        closed_form(network, data(), 0.2, "linf")[1]
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    made = trainer(RobustAccuracy(0.2), precision=precision)
    net = Host(two_classes())
    made.test(net, data(), verbose=False)
    expected = closed_form(net.network.double(), data(), 0.2, "linf")[1]
    assert made.callback_metrics["test/robust_accuracy"].item() == pytest.approx(expected, abs=0.05)


def fitted(*callbacks, epochs=2):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    network[1].bias.requires_grad_(False)
    net = Host(network)
    made = trainer(*callbacks, max_epochs=epochs, val_check_interval=3, accumulate_grad_batches=2)
    torch.manual_seed(1)
    made.fit(net, data(), data(24))
    return net, made, torch.rand(2)


def test_training_is_bitwise_what_it_is_without():
    """Random numbers, batch norm, accumulated gradients (a validation within a window), flags."""
    (with_it, made, drawn), (without, _, drawn_without) = fitted(RobustAccuracy(0.1, steps=2)), fitted()
    assert "val/robust_accuracy" in made.callback_metrics
    assert torch.equal(drawn, drawn_without)
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_it.state_dict()[name]), name
    assert [p.requires_grad for p in with_it.parameters()] == [p.requires_grad for p in without.parameters()]


def test_gradients_and_modes_stay():
    class Host2(Host):
        def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
            for p in self.parameters():
                p.grad = torch.ones_like(p)
            self.modes = [m.training for m in self.modules()]

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):  # after the callbacks
            assert all(torch.equal(p.grad, torch.ones_like(p)) for p in self.parameters())
            assert [m.training for m in self.modules()] == self.modes
            seen.append(batch_idx)

    seen = []
    net = Host2(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)))
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    trainer(RobustAccuracy(0.1)).validate(net, data(16), verbose=False)
    assert seen == [0, 1]
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())


def test_every_nth_epoch_and_one_step_in_the_sanity_check(monkeypatch):
    measured = []
    attack = RobustAccuracy._attack

    def counted(self, module, x, target, scale, steps):
        measured.append((module.trainer.current_epoch, steps) if not module.trainer.sanity_checking else steps)
        return attack(self, module, x, target, scale, steps)

    monkeypatch.setattr(RobustAccuracy, "_attack", counted)
    made = trainer(RobustAccuracy(1e-6, steps=3, restarts=2, every_n_epochs=2), max_epochs=5)
    made.fit(Host(two_classes()), data(), data(8))
    assert measured == [1, *[(1, 3)] * 2, *[(3, 3)] * 2]
    made.validate(Host(two_classes()), data(8), verbose=False)
    assert len(measured) == 7


def test_a_monitor_is_known_after_the_sanity_check():
    seen = []

    class Look(pl.Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            seen.extend(trainer.callback_metrics)

    trainer(RobustAccuracy(0.1, every_n_epochs=5), Look(), max_epochs=1).fit(Host(two_classes()), data(), data(8))
    assert {"val/robust_accuracy", "val/clean_accuracy"} <= {*seen}


def test_it_can_be_monitored(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/robust_accuracy", mode="max")
    made = trainer(RobustAccuracy(0.1, steps=2), checkpoint, max_epochs=2, enable_checkpointing=True)
    made.fit(Host(two_classes()), data(), data(24))
    assert checkpoint.best_model_score is not None


def test_the_teacher_answers():
    class Net(EMATeacherMixin, Host):
        pass

    net = Net(two_classes(), ema_teacher_decay=0.9)
    net.configure_model()
    nn.init.zeros_(net.network.weight)
    made = trainer(RobustAccuracy(0.2))
    made.test(net, data(), verbose=False)
    clean, robust = closed_form(net.ema_teacher.network, data(), 0.2, "linf")
    assert made.callback_metrics["test/clean_accuracy"].item() == pytest.approx(clean)
    assert made.callback_metrics["test/robust_accuracy"].item() == pytest.approx(robust)


class InTurns(torch.utils.data.Sampler):
    def __len__(self):
        return 50 if not torch.distributed.is_initialized() else 25 + 7 * (1 - 2 * torch.distributed.get_rank())

    def __iter__(self):
        if not torch.distributed.is_initialized():
            return iter(range(50))
        return iter(range(32) if torch.distributed.get_rank() == 0 else range(32, 50))


class Keep(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_test_end(self, trainer, pl_module):
        torch.save(dict(trainer.callback_metrics), self.folder / f"{trainer.global_rank}.pt")


def test_ranks_of_unequal_parts_are_one_process(tmp_path):
    net, loader = Host(two_classes()), data(sampler=InTurns())
    made = trainer(RobustAccuracy(0.2), Keep(tmp_path), strategy="ddp_fork", devices=2, use_distributed_sampler=False)
    made.test(net, loader, verbose=False)
    clean, robust = closed_form(net.network, data(), 0.2, "linf")
    for rank in (0, 1):
        metrics = torch.load(tmp_path / f"{rank}.pt")
        assert metrics["test/clean_accuracy"].item() == pytest.approx(clean, abs=1e-6)
        assert metrics["test/robust_accuracy"].item() == pytest.approx(robust, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, r"^epsilon is 0; it must be a number in \(0, inf\)\."),
        ({"steps": 0}, r"^steps is 0"),
        ({"restarts": 0}, r"^restarts is 0"),
        ({"step_size": 0}, r"^step_size is 0"),
        ({"norm": "linff"}, r"did you mean 'linf'\?"),
        ({"max_batches": 0}, r"^max_batches is 0"),
        ({"every_n_epochs": 0}, r"^every_n_epochs is 0"),
        ({"seed": -1}, r"^seed is -1"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        RobustAccuracy(**arguments)


class Cut(nn.Module):
    def forward(self, x):
        return torch.stack([x.detach().sum(1)] * 2, dim=1)


@pytest.mark.parametrize(
    ("network", "batch", "message"),
    [
        (nn.Linear(4, 2), torch.zeros(3, 4), r"takes batches \(x, y\) of floating inputs"),
        (nn.Linear(4, 2), (torch.zeros(3, 4).long(), torch.zeros(3).long()), r"takes batches \(x, y\) of floating"),
        (nn.Linear(4, 2), (torch.zeros(3, 4), torch.zeros(3)), r"class ids \[N\]\. Define unpack_batch"),
        (nn.Linear(4, 1), (torch.zeros(3, 4), torch.zeros(3).long()), r"two or more classes, but Host gives \[3, 1\]"),
        (Cut(), (torch.zeros(3, 4), torch.zeros(3).long()), r"Host.forward cuts it off"),
    ],
)
def test_batches_that_cannot_be_attacked(network, batch, message):
    with pytest.raises(InvalidValueError, match=message):
        trainer(RobustAccuracy()).test(Host(network), DataLoader([batch], batch_size=None), verbose=False)


def test_another_number_of_channels():
    net = Host(two_classes())
    net.normalize = Normalize([0.5] * 3, [0.5] * 3)
    with pytest.raises(InvalidValueError, match=r"normalize has 3 channels, but the inputs are \[8, 4\]"):
        trainer(RobustAccuracy()).test(net, data(), verbose=False)
