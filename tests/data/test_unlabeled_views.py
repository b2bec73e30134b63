"""Which views an unlabelled batch has, and the ids and hidden labels of its images."""

from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerState

from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.data import ArrayDataModule, DigitsDataModule, SeededPipeline, Stream, named_transforms
from lightning_tuning.data.sampler import KeyedSampler
from lightning_tuning.errors import InvalidValueError

FOUR = "weak strong weak_2 strong_2"
SMALL = {"num_labels": 20, "batch_size": 4, "unlabeled_batch_size": 24, "steps_per_epoch": 5}


def first(datamodule):
    return next(iter(datamodule.train_dataloader()))["unlabeled"]


def same_images(a, b):
    """The share of the images that are equal in both views."""
    return (a == b).flatten(1).all(1).double().mean().item()


@pytest.fixture
def marked(tmp_path):
    """Makes a datamodule of 60 training images whose every pixel is the image's number, its class number % 5."""

    def make(**kwargs):
        images = np.arange(80, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8)
        labels = np.arange(80) % 5
        np.savez(tmp_path / "a.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
        settings = {"batch_size": 5, "unlabeled_batch_size": 20, "weak_transforms": [], "val_size": 10}
        datamodule = ArrayDataModule(str(tmp_path / "a.npz"), **{**settings, **kwargs})
        datamodule.setup()
        return datamodule

    return make


def numbers(datamodule, x):
    """The images' numbers, from their pixels."""
    pixels = x[:, 0, 0, 0].double() * datamodule.normalize.std[0] + datamodule.normalize.mean[0]
    return (255 * pixels).round().long()


def test_a_batch_has_the_views_that_are_named_in_their_order(digits):
    for text in (FOUR, "weak", "strong_8 weak", "  strong   weak_3 "):
        batch = first(digits(**SMALL, unlabeled_views=text))
        assert list(batch) == [*text.split(), "index", "target"]
        assert all(batch[name].shape == (24, 1, 16, 16) for name in text.split())
    assert "unlabeled_views" in digits(unlabeled_views="weak").hparams


def test_the_first_views_do_not_depend_on_the_others(digits):
    two, four = first(digits(**SMALL)), first(digits(**SMALL, unlabeled_views=FOUR))
    for name in ("weak", "strong", "index", "target"):
        assert torch.equal(two[name], four[name])


def test_each_view_is_the_image_with_the_random_numbers_of_its_own_salt(digits):
    """Written out: the position's seed, the view's place in weak, strong, weak_2, ... as salt."""
    datamodule = digits(**SMALL, unlabeled_views="weak strong weak_2 strong_2 weak_8 strong_8", seed=3)
    streams = [Stream("labeled", datamodule.labeled_indices, 4), Stream("unlabeled", datamodule.unlabeled_indices, 24)]
    _, keys = next(iter(KeyedSampler(streams, 5, seed=3)))
    batch = first(datamodule)
    for name, salt in {"weak": 1, "strong": 2, "weak_2": 3, "strong_2": 4, "weak_8": 15, "strong_8": 16}.items():
        pipeline = SeededPipeline(named_transforms(name.split("_")[0], 16), salt)
        pairs = zip(keys.indices, keys.seeds, strict=True)
        expected = datamodule.normalize([pipeline(datamodule.images[index], seed) for index, seed in pairs])
        assert torch.equal(batch[name], expected)


def test_views_of_one_kind_are_different_views_of_the_same_images(digits):
    shift = [A.Pad(padding=4), A.RandomCrop(16, 16)]
    names = [f"weak{end}" for end in ("", *(f"_{number}" for number in range(2, 9)))]
    sizes = {**SMALL, "unlabeled_batch_size": 64}
    batch = first(digits(**sizes, weak_transforms=shift, unlabeled_views=" ".join(names)))
    for number, name in enumerate(names):
        for other in names[:number]:
            assert same_images(batch[name], batch[other]) < 0.2  # 81 shifts
    plain = first(digits(**SMALL, weak_transforms=[], unlabeled_views="weak weak_2"))
    assert torch.equal(plain["weak"], plain["weak_2"])


def test_custom_transforms_are_those_of_every_view_of_the_kind(digits):
    swap = {"weak_transforms": [], "strong_transforms": [A.InvertImg(p=1.0)]}
    batch = first(digits(**SMALL, unlabeled_views=FOUR, **swap))
    assert torch.equal(batch["strong"], batch["strong_2"])
    assert torch.equal(batch["weak"], batch["weak_2"])
    assert same_images(batch["weak"], batch["strong_2"]) == 0


def test_an_id_is_the_place_among_the_unlabelled_images(marked):
    datamodule = marked()
    assert datamodule.num_unlabeled == 50
    assert not np.array_equal(datamodule.unlabeled_indices, np.arange(50))  # or the test would not see the difference
    seen = []
    for batch in datamodule.train_dataloader():
        unlabeled = batch["unlabeled"]
        assert unlabeled["index"].dtype == unlabeled["target"].dtype == torch.int64
        shown = numbers(datamodule, unlabeled["weak"])
        assert datamodule.unlabeled_indices[unlabeled["index"]].tolist() == shown.tolist()
        assert unlabeled["target"].tolist() == (shown % 5).tolist()
        seen += unlabeled["index"].tolist()
    assert sorted(seen[:50]) == list(range(50))


def test_an_image_keeps_its_id_over_epochs_runs_and_labels_kept(marked):
    """Not with another split: there the same image is another one's neighbour."""

    def ids(**kwargs):
        datamodule, found = marked(**kwargs), {}
        loader = datamodule.train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                pairs = zip(numbers(datamodule, batch["unlabeled"]["weak"]), batch["unlabeled"]["index"], strict=True)
                for number, index in pairs:
                    assert found.setdefault(int(number), int(index)) == index
        return found

    expected = ids(seed=1)
    assert len(expected) == 50
    assert ids(seed=2, num_labels=10, unlabeled_batch_size=7) == expected
    assert ids(seed=1, split_seed=1) != expected


def test_digits_have_ids_and_targets(digits):
    datamodule = digits(**SMALL, image_size=8, weak_transforms=[])
    assert datamodule.num_unlabeled == 1257
    batch = first(datamodule)
    images = torch.from_numpy(datamodule.unlabeled_indices)[batch["index"]]
    assert torch.equal(batch["weak"], datamodule.normalize(datamodule.images[index] for index in images))
    assert batch["target"].tolist() == datamodule.labels[images].tolist()


@pytest.mark.parametrize("kwargs", [{}, {"num_labels": 40}])
def test_supervised_batches_stay_pairs(digits, kwargs):
    datamodule = digits(**kwargs, unlabeled_views=FOUR)
    assert len(next(iter(datamodule.train_dataloader()))) == 2
    assert datamodule.num_unlabeled == 1257


def test_ranks_see_together_what_one_process_sees(digits):
    """With the views, ids and labels of an image side by side."""
    alone = digits(**{**SMALL, "unlabeled_batch_size": 48, "batch_size": 8}, unlabeled_views=FOUR)
    ranks = [digits(**SMALL, unlabeled_views=FOUR) for _ in range(2)]
    for rank, datamodule in enumerate(ranks):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        datamodule.trainer = SimpleNamespace(
            world_size=2, global_rank=rank, overfit_batches=0, strategy=strategy, state=TrainerState()
        )
    for whole, *parts in zip(*(d.train_dataloader() for d in (alone, *ranks)), strict=True):
        for name in (*FOUR.split(), "index", "target"):
            interleaved = torch.stack([part["unlabeled"][name] for part in parts], 1).flatten(0, 1)
            assert torch.equal(interleaved, whole["unlabeled"][name])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_and_a_resume_within_an_epoch_change_nothing(digits, digest, num_workers):
    def loader(workers):
        made = digits(**SMALL, unlabeled_views=FOUR, num_workers=workers).train_dataloader()
        made.sampler.set_epoch(1)
        return made

    expected = [digest(batch) for batch in loader(0)]
    assert len(set(expected)) == 5
    broken_off = loader(num_workers)
    batches = iter(broken_off)
    begun = [digest(next(batches)) for _ in range(2)]
    resumed = loader(num_workers)
    resumed.load_state_dict(broken_off.state_dict())
    assert begun + [digest(batch) for batch in resumed] == expected


ALLOWED = (
    "It must be different names with spaces between, out of 'weak', 'strong', 'weak_2', 'strong_2', ... up to "
    "'weak_8', 'strong_8'; write 'weak strong' for one of each."
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", f"unlabeled_views is ''. {ALLOWED}"),
        ("weak weak", f"unlabeled_views is 'weak weak'. {ALLOWED}"),
        ("weak week_2", f"unlabeled_views is 'weak week_2'. It has 'week_2'; did you mean 'weak_2'? {ALLOWED}"),
        ("weak_1", f"unlabeled_views is 'weak_1'. It has 'weak_1'; did you mean 'weak_8'? {ALLOWED}"),
        ("weak_9", f"unlabeled_views is 'weak_9'. It has 'weak_9'; did you mean 'weak_8'? {ALLOWED}"),
        ("a,b", f"unlabeled_views is 'a,b'. It has 'a,b'. {ALLOWED}"),
        ("none", f"unlabeled_views is 'none'. It has 'none'. {ALLOWED}"),
        (["weak"], f"unlabeled_views is ['weak']. {ALLOWED}"),
    ],
)
def test_other_views_are_refused_at_once(given, message):
    with pytest.raises(InvalidValueError) as caught:
        DigitsDataModule(unlabeled_views=given)
    assert str(caught.value) == message


def test_the_command_line_knows_the_argument(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--data=DigitsDataModule", "--data.unlabeled_views=weak weak_2", "--print_config"]) == 0
    assert "unlabeled_views: weak weak_2" in capsys.readouterr().out
