"""What a checkpoint says of its W&B run, where somebody else wrote it."""

import json

import pytest
import torch

from lightning_tuning.errors import CheckpointError
from lightning_tuning.runs.wandb_record import KEY, RunRecord, record_of_checkpoint


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a run with this id and these files."""

    def saved(files, run="abc", step=3):
        record = RunRecord(run, "project", step=step, names=["loss"], files=[str(file) for file in files])
        torch.save({KEY: record.state()}, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return saved


def written(path, step=5, others=()):
    files = [str(file) for file in (path, *others)]
    path.write_text(json.dumps(RunRecord("abc", "project", step=step, names=["loss"], files=files).state()))
    return path


def test_the_newest_record_of_the_run_counts(saved, tmp_path):
    old, new = written(tmp_path / "old.json", step=2), written(tmp_path / "new.json", step=5)
    record = record_of_checkpoint(saved([old, new]))
    assert (record.step, record.files) == (5, [str(new)])  # that one names itself alone
    assert record_of_checkpoint(saved([old])).step == 3


def test_a_checkpoint_cannot_choose_what_is_overwritten(saved, tmp_path):
    contents = {
        "text": "export PATH=...",
        "json": json.dumps({"id": "abc", "step": 9}),
        "list": "[1]",
        "other run": json.dumps(RunRecord("xyz", step=9).state()),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    foreign = [tmp_path / name for name in contents]
    for files in ([*foreign, tmp_path / "own.json"], [tmp_path / "own.json"], [tmp_path / "not there", tmp_path]):
        own = written(tmp_path / "own.json", others=foreign)
        record = record_of_checkpoint(saved(files))
        assert record.files == ([str(own)] if own in files else [])
        record.add({"loss": 1.0}, 9)
        assert {name: (tmp_path / name).read_text() for name in contents} == contents
        assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("run", ["../../abc", "/tmp/abc", "a/b"])
def test_an_id_is_no_path(run, saved):
    with pytest.raises(CheckpointError, match=r"last\.ckpt names '.*' as its W&B run, which is no id of a run"):
        record_of_checkpoint(saved([], run))


@pytest.mark.parametrize(
    "changed",
    [{"id": 7}, {"entity": ["a"]}, {"step": "3"}, {"names": 5}, {"files": [3]}, {"more": 1}],
)
def test_a_record_of_another_shape(changed, saved):
    path = saved([])
    state = torch.load(path, weights_only=True)[KEY]
    torch.save({KEY: {**state, **changed}}, path)
    with pytest.raises(CheckpointError, match="holds something else than the record of a W&B run"):
        record_of_checkpoint(path)


def test_a_checkpoint_of_an_old_torch(saved, tmp_path):
    path = saved([])
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert record_of_checkpoint(path).id == "abc"
