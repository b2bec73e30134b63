import json
import math
import pickle
import resource
from argparse import Namespace

import pytest

from lightning_tuning.runs import JournalLogger, read_journal
from lightning_tuning.runs.journal import rank_zero_only, write_json


def test_one_line_a_call(tmp_path):
    logger = JournalLogger(tmp_path / "run")
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=4)
    # On the disk before anything is closed.
    assert logger.path.read_text() == '{"step": 4, "epoch": 0, "train/loss": 0.5}\n'
    logger.log_metrics({"lr-SGD": 0.1}, step=5)
    logger.finalize("success")
    logger.log_metrics({"test/loss": 0.25}, step=5)
    assert list(read_journal(logger.path)) == [
        {"step": 4, "epoch": 0, "train/loss": 0.5},
        {"step": 5, "lr-SGD": 0.1},
        {"step": 5, "test/loss": 0.25},
    ]


def test_numbers_that_json_does_not_know(tmp_path):
    logger = JournalLogger(tmp_path)
    logger.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e300}, step=0)

    def refuse(constant):
        raise AssertionError(constant)

    strict = json.loads(logger.path.read_text(), parse_constant=refuse)
    assert strict == {"step": 0, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1e300}
    (record,) = read_journal(logger.path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"], record["d"]) == (math.inf, -math.inf, 1e300)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert list(read_journal(tmp_path / "metrics.jsonl")) == [{"step": 1, "a": 2.0}]


def test_hyperparameters_add_up(tmp_path):
    logger = JournalLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "_instantiator": "x", "limit": math.inf})
    logger.log_hyperparams(Namespace(lr=0.2, kind=tuple))
    content = json.loads((tmp_path / "hparams.json").read_text())
    assert content == {"lr": 0.2, "limit": "Infinity", "kind": "<class 'tuple'>"}


def test_writing_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    class Unprintable:
        def __str__(self):
            raise OSError

    with pytest.raises(OSError):
        write_json(path, {"a": Unprintable()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def limit():
    """Lets files grow to so many bytes alone, as a full disk does; None lets them grow again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


def test_a_full_disk_keeps_the_values_until_there_is_room(tmp_path, limit, recwarn):
    logger = JournalLogger(tmp_path)
    logger.log_metrics({"a": 0.0}, step=0)
    size = logger.path.stat().st_size
    limit(size + 5)  # room for a part of the next line
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_hyperparams({"text": "x" * size})
    logger.log_metrics({"a": 2.0}, step=2)
    assert logger.path.stat().st_size == size
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    logger.finalize("failed")
    assert logger.path.stat().st_size == size
    limit(None)
    assert pickle.loads(pickle.dumps(logger))._unwritten == []  # one of the two writes them
    logger.finalize("success")
    logger.log_metrics({"a": 3.0}, step=3)
    assert [record["a"] for record in read_journal(logger.path)] == [0.0, 1.0, 2.0, 3.0]
    (warning,) = [str(w.message) for w in recwarn]
    assert warning == (
        f"{logger.path} was not written: File too large. Training goes on; the journal's values are kept in memory "
        "until there is room."
    )


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = JournalLogger(tmp_path / "run")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_hyperparams({"a": 1.0})
    assert not (tmp_path / "run").exists()


def test_pickle_with_an_open_file(tmp_path):
    logger = JournalLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    pickle.loads(pickle.dumps(logger)).log_metrics({"a": 2.0}, step=1)
    assert [record["a"] for record in read_journal(logger.path)] == [1.0, 2.0]


def test_lightning_finds_its_places(tmp_path):
    logger = JournalLogger(tmp_path)
    assert logger.save_dir == logger.log_dir == str(tmp_path)
    assert logger.name == logger.version == ""
