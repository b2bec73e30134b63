import os
import sys

import pytest
import torch

from lightning_tuning.errors import CheckpointError, InvalidValueError
from lightning_tuning.runs import RunConfig
from lightning_tuning.runs.find_checkpoint import find_checkpoint, model_of_checkpoint
from tests.helpers_checkpoints import flip, truncate

FULL = {"state_dict": {"w": torch.zeros(9)}, "optimizer_states": []}


@pytest.fixture
def run(tmp_path):
    return RunConfig(name="digits", dir=str(tmp_path))


@pytest.fixture
def save(tmp_path):
    """Save a checkpoint of a run; the larger ``time`` is the newer."""

    def save(name, time, content=FULL):
        path = tmp_path / "digits" / name.replace("/", "/checkpoints/")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        os.utime(path, (1e9 + time, 1e9 + time))
        return path

    return save


def damage(path, how=truncate):
    status = path.stat()
    how(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_newest_of_all_runs(run, save):
    save("a/last.ckpt", 0)
    newest = save("b/last.ckpt", 2)
    old = save("c/last.ckpt", 1)
    save("c/best.ckpt", 9)
    assert find_checkpoint("last", run) == newest
    assert find_checkpoint(str(old), run) == old
    assert find_checkpoint(None, run) is None
    assert find_checkpoint("hpc", run) is None
    assert find_checkpoint("registry:model", run) is None
    with pytest.raises(InvalidValueError, match=r"there is no registry_of_mine/a\.ckpt\."):
        find_checkpoint("registry_of_mine/a.ckpt", run)
    assert find_checkpoint("s3://bucket/a.ckpt", run) == "s3://bucket/a.ckpt"
    assert find_checkpoint(f"file://{old}", run) == old


def test_none_at_all(run, tmp_path, save):
    for name in ("last", "best"):
        with pytest.raises(InvalidValueError, match=rf"ckpt_path is '{name}', but there is no .*{name}\.ckpt\."):
            find_checkpoint(name, run)
    with pytest.raises(InvalidValueError, match=r"ckpt_path is 'a\.ckpt', but there is no a\.ckpt\."):
        find_checkpoint("a.ckpt", run)


@pytest.mark.parametrize("how", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_last_one(how, run, save):
    """The newest other one of the run, though an earlier run's last is newer still; never one of weights alone."""
    last = save("b/last.ckpt", 9)
    damage(last, how)
    save("b/old.ckpt", 3)
    expected = save("b/best.ckpt", 5)
    save("b/soup.ckpt", 8, {"state_dict": {}})
    save("a/last.ckpt", 6)
    with pytest.warns(UserWarning, match="is no whole checkpoint") as caught:
        assert find_checkpoint("last", run) == expected
    (warning,) = caught
    assert str(warning.message).startswith(f"{last} is no whole checkpoint: it")
    assert str(warning.message).endswith(f". Going on from {expected}.")


def test_the_run_before_if_this_one_has_none(run, save):
    damaged = [save("b/last.ckpt", 9), save("b/best.ckpt", 8)]
    for path in damaged:
        damage(path)
    expected = save("a/last.ckpt", 1)
    with pytest.warns(UserWarning, match="is no whole checkpoint: it is cut off") as caught:
        assert find_checkpoint("last", run) == expected
    assert [str(w.message).split()[0] for w in caught] == list(map(str, damaged))


def test_nothing_whole(run, save):
    for name in ("b/last.ckpt", "a/last.ckpt", "a/best.ckpt"):
        damage(save(name, 0))
    with pytest.raises(CheckpointError, match="no checkpoint is whole") as caught:
        find_checkpoint("last", run)
    assert str(caught.value).count("it is cut off") == 3
    assert str(caught.value).endswith("Nothing was started.")


@pytest.mark.parametrize("given", ["best", "path"])
def test_a_damaged_one_that_was_asked_for_is_not_replaced(given, run, save):
    path, whole = save("a/best.ckpt", 2), save("a/last.ckpt", 1)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("best" if given == "best" else str(path), run)
    assert str(caught.value) == f"{path} is no whole checkpoint: it is cut off. A whole one is {whole}."


def test_runs_whose_checkpoints_have_other_names(run, save):
    """A ModelCheckpoint of the user's need not write ``last.ckpt``."""
    assert find_checkpoint("auto", run) is None
    save("a/last.ckpt", 1)
    save("b/soup.ckpt", 9, {"state_dict": {}})
    save("b/step=3.ckpt", 3)
    newest = save("b/step=6.ckpt", 6)
    for given in ("last", "auto"):
        assert find_checkpoint(given, run) == newest


def test_a_last_one_of_weights_alone_is_passed_over(run, save):
    save("a/last.ckpt", 1, {"state_dict": {}})
    assert find_checkpoint("auto", run) is None
    with pytest.raises(InvalidValueError, match=r"but there is no .*last\.ckpt\."):
        find_checkpoint("last", run)
    full = save("a/full.ckpt", 0)
    assert find_checkpoint("last", run) == full


@pytest.mark.filterwarnings("ignore:.* is no whole checkpoint")
def test_links_to_nothing_and_folders_without_an_end(run, save):
    last = save("a/last.ckpt", 2)
    damage(last)
    (last.parent / "gone.ckpt").symlink_to("nowhere.ckpt")
    (last.parent / "begun.ckpt").mkdir()
    expected = save("a/old.ckpt", 1)
    assert find_checkpoint("last", run) == expected
    sharded = last.parent / "begun.ckpt"
    torch.save({}, sharded / "meta.pt")
    assert find_checkpoint("last", run) == sharded


def test_linked_folders(run, save, tmp_path):
    last = save("a/last.ckpt", 2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "digits" / "a").rename(tmp_path / "elsewhere" / "a")
    (tmp_path / "digits" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    target = last.parent / "epoch=3.ckpt"
    last.rename(target)
    last.symlink_to(target.name)
    assert find_checkpoint("auto", run) == last


HPARAMS = {"_class_path": "my.Net", "_instantiator": "x", "lr": 0.5}


def bring(hparams, class_path="my.Net"):
    return model_of_checkpoint("a.ckpt", {"hyper_parameters": hparams}, class_path)


def test_model_of_checkpoint(told):
    assert bring(HPARAMS) == {"class_path": "my.Net", "init_args": {"lr": 0.5}}
    assert bring({"lr": 0.5}) is None
    assert model_of_checkpoint("a.ckpt", {}, "my.Net") is None
    assert told.text == ""
    assert bring(HPARAMS, "my.Other") is None
    assert "was made by my.Net, and the configuration says my.Other: the checkpoint's arguments are not" in told.text


@pytest.mark.parametrize(
    ("argument", "place"),
    [
        ({"class_path": "subprocess.Popen", "init_args": {"args": "x"}}, "model.network.class_path"),
        ({"class_path": "not_imported_yet.Net"}, "model.network.class_path"),
        ([{"deep": {"class_path": "os.system"}}], "model.network.0.deep.class_path"),
        ("os.system", "model.network"),
        ("antigravity.webbrowser", "model.network"),
        ("{class_path: antigravity.Net}", "model.network.class_path"),
    ],
)
def test_a_checkpoint_does_not_say_what_is_imported(argument, place):
    with pytest.raises(CheckpointError, match=rf"a\.ckpt sets {place} to '.*', which is neither a network, an opt"):
        bring({**HPARAMS, "network": argument})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "argument",
    [
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "bias": None}},
        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        {"class_path": "torch.optim.lr_scheduler.StepLR"},
        "torch.optim.AdamW",
        "layer1.0.conv",
        "layer1.conv",
        "0.5dur",
        "val/accuracy",
        "C:\\data.csv",
        [1, 2.0, None, True, "a"],
    ],
)
def test_ordinary_arguments_are_brought(argument):
    assert bring({**HPARAMS, "network": argument})["init_args"] == {"lr": 0.5, "network": argument}
