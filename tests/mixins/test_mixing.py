"""What the mixing techniques share: which of them a batch gets, and what they do to hosts, terms and errors."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning import (
    CutMixMixin,
    CutoutMixin,
    ExactResume,
    FixMatchMixin,
    ImageClassifier,
    ManifoldMixupMixin,
    MixupMixin,
    RDropMixin,
    SAMMixin,
)
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, assert_same, batches, convolution, fit, linear, streams

SHAPE = (2, 5, 5)
MIXINGS = (MixupMixin, CutMixMixin, ManifoldMixupMixin, CutoutMixin)
ON = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "manifold_mixup_alpha": 1.0, "cutout_size": 2}


class Net(MixupMixin, CutMixMixin, ManifoldMixupMixin, CutoutMixin, Tiny):
    pass


class Turned(CutoutMixin, ManifoldMixupMixin, CutMixMixin, MixupMixin, Tiny):
    pass


class MixupNet(MixupMixin, Tiny):
    pass


class Stacked(SAMMixin, FixMatchMixin, MixupMixin, CutMixMixin, ManifoldMixupMixin, CutoutMixin, RDropMixin, Tiny):
    pass


def made(cls=Net, **settings):
    torch.manual_seed(0)
    return cls(convolution(), **{**ON, **settings})


@pytest.fixture
def chosen(monkeypatch):
    """The stem of the technique that each batch got, without mixing it."""
    seen = []
    for technique in MIXINGS:
        step = lambda self, run, x, target, stem=technique.stem: seen.append(stem)  # noqa: E731
        monkeypatch.setattr(technique, "_mixing_step", step)
    monkeypatch.setattr(Tiny, "training_step", lambda self, batch, batch_idx: seen.append("none"))
    return seen


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, dict.fromkeys(("mixup", "cutmix", "manifold_mixup", "cutout"), 1 / 4)),
        (
            {"mixup_probability": 0.1, "cutmix_probability": 0.2, "manifold_mixup_alpha": 0, "cutout_probability": 0.4},
            {"mixup": 0.1, "cutmix": 0.2, "cutout": 0.4, "none": 0.3},
        ),
        (
            {"mixup_probability": 0.5, "cutmix_probability": 1.0, "manifold_mixup_alpha": 0, "cutout_size": 0},
            {"mixup": 1 / 3, "cutmix": 2 / 3},
        ),
        (
            {"mixup_probability": 0.25, "cutmix_alpha": 0, "manifold_mixup_alpha": 0, "cutout_size": 0},
            {"mixup": 0.25, "none": 0.75},
        ),
    ],
    ids=["as many", "less than one", "more than one", "alone"],
)
def test_the_probabilities_are_the_chances(chosen, settings, shares):
    net, batch = made(**settings), batches(1, shape=SHAPE)[0]
    torch.manual_seed(1)
    for step in range(3000):
        net.training_step(batch, step)
    assert set(chosen) == set(shares)
    expected = 3000 * np.array(list(shares.values()))
    counts = np.array([chosen.count(stem) for stem in shares])
    freedom = len(shares) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_one_that_always_mixes_draws_no_number_for_it(chosen):
    net = MixupNet(mixup_alpha=1.0)
    state = torch.get_rng_state()
    net.training_step(batches(1)[0], 0)
    assert chosen == ["mixup"]
    assert torch.equal(torch.get_rng_state(), state)


def test_their_order_in_the_class_does_not_matter():
    nets = [made(cls, mixup_probability=0.3, cutout_probability=0.3) for cls in (Net, Turned)]
    for net in nets:
        torch.manual_seed(1)
        fit(net, batches(20, shape=SHAPE))
    assert_same(nets[0].state_dict(), nets[1].state_dict())


def test_from_its_last_epoch_on_the_others_share_the_batches(chosen, monkeypatch):
    net, batch = made(mixup_off_epoch=1, cutout_off_epoch=2, cutmix_probability=0.3, manifold_mixup_alpha=0), None
    batch = batches(1, shape=SHAPE)[0]
    shares = []
    for epoch in range(4):
        monkeypatch.setattr(Net, "current_epoch", epoch)
        chosen.clear()
        for step in range(1000):
            net.training_step(batch, step)
        shares.append({stem: chosen.count(stem) / 1000 for stem in set(chosen)})
    assert shares[0].keys() == {"mixup", "cutmix", "cutout"}
    assert shares[0]["mixup"] == pytest.approx(1 / 2.3, abs=0.08)
    assert shares[1].keys() == {"cutmix", "cutout"}
    assert shares[1]["cutout"] == pytest.approx(1 / 1.3, abs=0.07)
    for last in shares[2:]:
        assert last.keys() == {"cutmix", "none"}
        assert last["cutmix"] == pytest.approx(0.3, abs=0.07)


def test_the_epochs_are_counted_from_0():
    net = MixupNet(mixup_alpha=1.0, mixup_off_epoch=2)
    fit(net, batches(2), max_epochs=4)
    assert [target.is_floating_point() for target in net.targets] == [True] * 4 + [False] * 4


def test_all_of_them_with_sam_rdrop_and_fixmatch():
    net = made(Stacked, sam_rho=0.05, rdrop_weight=0.5, fixmatch_threshold=0.0)
    before = {name: p.clone() for name, p in net.named_parameters()}
    trainer = fit(net, streams(30, shape=SHAPE))
    terms = {f"train/{t.stem}_epoch" for t in MIXINGS}
    assert terms <= trainer.callback_metrics.keys()
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())
    # SAM's second pass sees the batch of the first.
    for (x, target), (x_again, target_again) in zip(net.batches[::2], net.batches[1::2], strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(target, target_again)
    assert len({target.is_floating_point() for target in net.targets}) == 2


@pytest.mark.parametrize("pair", [(a, b) for i, a in enumerate(MIXINGS) for b in MIXINGS[i + 1 :]])
def test_a_resumed_run_draws_as_the_straight_one(pair, tmp_path):
    cls = type("Pair", (*pair, Tiny), {})
    settings = {f"{t.stem}_probability": 0.4 for t in pair}
    settings |= {name: ON[name] for t in pair for name in t.off} | {f"{pair[0].stem}_off_epoch": 2}
    data = batches(4, shape=SHAPE)

    def run(net, epochs, ckpt_path=None):
        return fit(net, data, ckpt_path, max_epochs=epochs, callbacks=[ExactResume(seed=5)])

    torch.manual_seed(0)
    straight = cls(convolution(), **settings)
    first = copy.deepcopy(straight)
    run(straight, 3)
    run(first, 1).save_checkpoint(tmp_path / "a.ckpt")
    resumed = cls(convolution(), **settings)
    torch.manual_seed(77)
    run(resumed, 3, tmp_path / "a.ckpt")
    assert_same(straight.state_dict(), resumed.state_dict())
    assert len(resumed.targets) == 8
    assert_same(straight.targets[4:], resumed.targets)


def test_the_epoch_means_of_mixed_and_unmixed_batches_are_their_own(monkeypatch):
    model = ImageClassifier(network="mlp", in_channels=2, image_size=5, num_classes=3, mixup_alpha=1.0)
    model.mixup_probability = 0.5
    recorded = {}
    log_term = type(model).log_term

    def record(self, name, value, prog_bar=False):
        log_term(self, name, value, prog_bar)
        recorded.setdefault(name, []).append(value.item())

    monkeypatch.setattr(type(model), "log_term", record)
    torch.manual_seed(3)
    metrics = fit(model, batches(16, shape=SHAPE)).callback_metrics
    assert len(recorded["loss"]) == 16
    assert len(recorded["mixup"]) == len(recorded["mixed_accuracy"]) in range(4, 13)
    assert len(recorded["accuracy"]) == 16 - len(recorded["mixup"])
    for name, values in recorded.items():
        assert metrics[f"train/{name}_epoch"].item() == pytest.approx(np.mean(values), rel=1e-6)


def test_cutout_leaves_the_training_accuracy_one_of_true_labels():
    model = ImageClassifier(network="mlp", in_channels=2, image_size=5, num_classes=3, cutout_size=3)
    metrics = fit(model, batches(4, shape=SHAPE)).callback_metrics
    assert "train/accuracy_epoch" in metrics
    assert "train/mixed_accuracy_epoch" not in metrics


@pytest.mark.parametrize("single", [0, 1])
def test_one_sample_has_no_partner(single):
    net = made(cutout_size=0)
    data = batches(3, shape=SHAPE)
    data[single] = tuple(values[:1] for values in data[single])
    net.network[1] = torch.nn.Identity()  # batch norm refuses one sample too
    if single:
        fit(net, data)
        assert net.batches[1][0] is data[1][0]
        assert [target.is_floating_point() for target in net.targets] == [True, False, True]
        return
    with pytest.raises(NoEffectError) as caught:
        fit(net, data)
    assert str(caught.value) == (
        "CutMixMixin, ManifoldMixupMixin, MixupMixin: the first batch has one sample, and so no partner to mix it "
        "with. Set the batch size to 2 or more, or switch off: cutmix_alpha=0.0, manifold_mixup_alpha=0.0, "
        "mixup_alpha=0.0."
    )


def test_a_first_batch_that_happens_not_to_be_mixed_lets_a_later_single_sample_pass():
    net, data = MixupNet(mixup_alpha=1.0, mixup_probability=0.5), batches(40)
    data = [data[0], *(tuple(values[:1] for values in batch) for batch in data[1:])]
    seed = next(s for s in range(99) if torch.rand(1, generator=torch.manual_seed(s), dtype=torch.float64) > 0.5)
    torch.manual_seed(seed)
    fit(net, data)
    assert not any(target.is_floating_point() for target in net.targets)


@pytest.mark.parametrize("technique", MIXINGS, ids=lambda t: t.stem)
class TestEach:
    def made(self, technique, **settings):
        name = next(iter(technique.off))
        return type("Net", (technique, Tiny), {})(convolution(), **{name: ON[name], **settings})

    @pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan")])
    def test_a_probability_out_of_range(self, technique, value):
        with pytest.raises(InvalidValueError) as caught:
            self.made(technique, **{f"{technique.stem}_probability": value})
        assert str(caught.value) == f"{technique.stem}_probability is {value}; it must be a number in (0, 1]."

    @pytest.mark.parametrize("value", [0, -1, 2.5])
    def test_a_last_epoch_that_is_none(self, technique, value):
        with pytest.raises(InvalidValueError) as caught:
            self.made(technique, **{f"{technique.stem}_off_epoch": value})
        assert str(caught.value) == f"{technique.stem}_off_epoch is {value}; it must be an integer of at least 1."

    def test_it_is_off_in_evaluation_and_logs_only_what_it_mixed(self, technique):
        net = self.made(technique, **{f"{technique.stem}_probability": 0.5})
        logged = []
        net.__dict__["log_term"] = lambda name, value, prog_bar=False: logged.append(name)
        data = batches(40, shape=SHAPE)
        for step, batch in enumerate(data):
            net.training_step(batch, step)
        untouched = sum(seen is batch for seen, batch in zip(net.batches, data, strict=True))
        assert 8 <= len(logged) == 40 - untouched <= 32
        assert set(logged) == {technique.stem}

    def test_inputs_of_another_form(self, technique):
        with pytest.raises(InvalidValueError) as caught:
            self.made(technique).training_step(([torch.zeros(2, 5, 5)], torch.zeros(1).long()), 0)
        assert str(caught.value) == (
            f"{technique.__name__} takes inputs that are a tensor or a dict of tensors, but got a list. Return one of "
            "them from unpack_batch(batch) -> (x, target)."
        )

    def test_targets_of_another_form(self, technique):
        net, x = self.made(technique), torch.randn(8, *SHAPE)
        if technique is CutoutMixin:
            net.__class__.compute_loss = lambda self, logits, target: F.cross_entropy(logits, target["class"])
            assert net.training_step((x, {"class": torch.zeros(8).long()}), 0) > 0
            return
        with pytest.raises(InvalidValueError) as caught:
            net.training_step((x, {"class": torch.zeros(8).long()}), 0)
        assert str(caught.value) == (
            f"{technique.__name__} mixes a target that is one tensor, but this batch's is a dict. Define "
            "unpack_batch(batch) -> (x, target) and pack_batch(batch, x, target) -> batch in Tiny."
        )


class Failing(Tiny):
    error: Exception

    def training_step(self, batch, batch_idx):
        raise self.error


@pytest.mark.parametrize(
    ("technique", "target", "error", "noted"),
    [
        (MixupMixin, torch.zeros(8).long(), RuntimeError("shapes differ"), True),
        (ManifoldMixupMixin, torch.zeros(8).long(), RuntimeError("shapes differ"), True),
        (CutMixMixin, torch.zeros(8).long(), RuntimeError("shapes differ"), True),
        (CutMixMixin, torch.zeros(8, 5, 5).long(), RuntimeError("shapes differ"), False),
        (CutoutMixin, torch.zeros(8).long(), RuntimeError("shapes differ"), False),
        (MixupMixin, torch.zeros(8), RuntimeError("shapes differ"), False),
        (MixupMixin, torch.zeros(8).long(), InvalidValueError("our own"), False),
        (MixupMixin, torch.zeros(8).long(), MisconfigurationException("our own"), False),
    ],
)
def test_an_error_of_the_host_gets_a_note_where_ids_became_probabilities(technique, target, error, noted):
    name = next(iter(technique.off))
    net = type("Net", (technique, Failing), {})(convolution(), **{name: ON[name]})
    net.error = error
    with pytest.raises(type(error)) as caught:
        net.training_step((torch.randn(8, *SHAPE), target), 0)
    notes = getattr(caught.value, "__notes__", [])
    note = (
        f"{technique.__name__} made the target of this batch class probabilities [N, C]. Cross entropy takes them; an "
        "accuracy has to use target.argmax(1) where target.ndim == 2."
    )
    assert notes == ([note] if noted and hasattr(error, "add_note") else [])


def test_a_base_that_techniques_share_does_not_count_as_the_host():
    from lightning.pytorch import LightningModule

    from lightning_tuning.errors import CompositionError

    class Empty(LightningModule):
        pass

    with pytest.raises(CompositionError, match=r"MixupMixin needs Empty\.training_step"):
        type("Net", (MixupMixin, Empty), {})


def test_a_training_step_of_the_class_body_that_hides_the_shared_one_is_refused():
    from lightning_tuning.errors import CompositionError

    with pytest.raises(CompositionError, match=r"Net\.training_step does not call super\(\), so MixupMixin would do"):
        type("Net", (MixupMixin, Tiny), {"training_step": lambda self, batch, batch_idx: None})


def test_linear_networks_can_be_mixed_by_all_that_take_vectors():
    class Vectors(MixupMixin, ManifoldMixupMixin, Tiny):
        pass

    net = Vectors(linear(), mixup_alpha=1.0, manifold_mixup_alpha=1.0)
    fit(net, batches(8))
    assert all(target.is_floating_point() for target in net.targets)
