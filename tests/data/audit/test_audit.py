import csv
import io
import re

import numpy as np
import pytest

from lightning_tuning.data import BadSampleError, DigitsDataModule, TableDataModule, TextDataModule
from lightning_tuning.data.audit import audit_samples, conclusion, find, set_up, summary, write_report
from tests.data.audit.fakes import Given, Samples, noise, photographs


def audited(datamodule):
    set_up(datamodule)
    return audit_samples(datamodule)


def kinds(audit):
    return {index: {fault.kind for fault in faults} for index, faults in audit.faults.items()}


def texts(audit, severity):
    return [finding.text for finding in find(audit) if finding.severity == severity]


@pytest.fixture
def table(tmp_path):
    def read(audit):
        write_report(audit, tmp_path)
        with open(tmp_path / "audit.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))

    return read


def test_everything_that_can_be_wrong_is_found_and_each_sample_is_read_once():
    datamodule, expected = photographs()
    audit = audited(datamodule)
    assert kinds(audit) == expected
    assert datamodule.samples.asked == list(range(24))


def test_what_an_error_of_a_reader_says(table):
    datamodule, _ = photographs()
    rows = table(audited(datamodule))
    assert rows[1]["reason"] == "it is truncated. Copy it again."
    assert rows[2]["reason"] == "reading it raised ZeroDivisionError: a bug"


def test_ctrl_c_is_no_bad_sample():
    samples = Samples([noise(0), noise(1)], {1: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        audited(Given(samples, [0, 1], "tt"))


def test_the_table(table):
    datamodule, _ = photographs()
    rows = table(audited(datamodule))
    assert [row["key"] for row in rows] == [f"{i}.png" for i in range(24)]
    assert [row["part"] for row in rows] == ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    assert [row["label"] for row in rows[7:11]] == ["dog", "cat", "2", "cat"]
    assert [row["status"] for row in rows[:9]] == ["ok", *["error"] * 3, *["warning"] * 3, "ok", "warning"]
    assert (rows[8]["height"], rows[8]["width"], rows[1]["height"]) == ("10", "50", "")
    assert {i: row["duplicates"] for i, row in enumerate(rows) if row["duplicates"]} == {
        3: "1",
        17: "1",
        4: "2",
        5: "2",
    }
    assert list(rows[0]) == ["key", "part", "label", "status", "reason", "height", "width", "duplicates"]


def test_the_summary_is_short_and_worst_first(tmp_path):
    datamodule, _ = photographs()
    audit = audited(datamodule)
    lines = summary(audit)
    assert len(lines) <= 25
    assert lines[0] == "24 samples: train 16, val 4, test 4."
    kinds = [line.partition(": ")[0] for line in lines[1:8]]
    assert kinds == ["error"] * 3 + ["warning"] * 4
    assert lines[1].startswith("error: 3 samples cannot be used: 1.png: it is truncated; 2.png: reading it raised")
    assert lines[3].startswith("error: 2 samples are in two parts: 3.png (train) = 17.png (val). What is measured")
    assert lines[-1] == "Images: height 9 to 43, width 9 to 50, width to height 0.70 to 5.00."
    assert conclusion(audit, tmp_path) == (
        f"audit: 4 of 24 samples are bad, 2 are in two parts; see {tmp_path / 'audit.csv'}"
    )


def test_counts_leave_out_what_cannot_be_used():
    datamodule, _ = photographs()
    audit = audited(datamodule)
    unusable = {1, 2, 20, 9}
    expected = [
        [sum(i not in unusable and datamodule.labels[i] == k for i in range(*part)) for k in range(2)]
        for part in ((0, 16), (16, 20), (20, 24))
    ]
    assert audit.counts().tolist() == expected


def test_a_class_without_a_usable_sample(tmp_path):
    bad = {2: BadSampleError("2.png", "it is empty", "Copy it again."), 3: OSError("gone")}
    samples = Samples([noise(i) for i in range(6)], bad)
    audit = audited(Given(samples, [0, 0, 1, 1, 1, 0], "ttttvs"))
    assert texts(audit, "error")[1].startswith("1 class has no usable samples in train: dog. It cannot be learnt")
    assert [text.partition(". ")[0] for text in texts(audit, "warning")] == [
        "1 class has no usable samples in val: cat",
        "1 class has no usable samples in test: dog",
    ]
    assert conclusion(audit, tmp_path).startswith(
        "audit: 2 of 6 samples are bad, 1 class has no usable samples in train; "
    )


def test_parts_without_samples_have_no_empty_classes(tmp_path):
    audit = audited(Given([noise(0), noise(1)], [0, 1], "tt"))
    assert find(audit) == []
    assert conclusion(audit, tmp_path) == f"audit: no error in 2 samples; see {tmp_path / 'audit.csv'}"


def test_only_copies(tmp_path):
    audit = audited(Given([noise(0), noise(1), noise(0)], [0, 1, 0], "ttv"))
    assert conclusion(audit, tmp_path).startswith("audit: 2 of 3 samples are in two parts; see ")


@pytest.mark.parametrize(("labels", "wrong"), [([0, 1, -1, 1], set()), ([0, 1, -2, 2], {2, 3}), ([0, 1, 1, -1], {3})])
def test_class_ids(labels, wrong):
    """-1 is no label, which is for training samples alone."""
    audit = audited(Given([noise(i) for i in range(4)], labels, "tttv"))
    assert {index for index, found in kinds(audit).items() if "label" in found} == wrong


def test_a_sample_without_a_label_counts_for_no_class(table):
    audit = audited(Given([noise(i) for i in range(4)], [0, 1, -1, 0], "tttv"))
    assert audit.counts()[0].tolist() == [1, 1]
    assert table(audit)[2]["label"] == ""


def test_several_labels(table):
    labels = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0.5, 0, 0], [1, 0, 1]], np.float32)
    names = ("red", "round", "old")
    audit = audited(Given([noise(i) for i in range(5)], labels, "ttttv", "multilabel", names))
    assert kinds(audit) == {3: {"label"}}
    assert audit.counts().tolist() == [[2, 0, 2], [1, 0, 1], [0, 0, 0]]
    assert any("in train: round. It cannot be learnt" in text for text in texts(audit, "error"))
    assert [row["label"] for row in table(audit)[:3]] == ["red", "red; old", "old"]


def test_values(table):
    values = np.array([[1.5, 0], [-2, 0], [np.nan, 0], [4, 7]], np.float32)
    vectors = [np.full(3, i, np.float32) for i in (0, 1, 2, 0)]
    audit = audited(Given(vectors, values, "tttv", "regression", ("price", "age")))
    assert kinds(audit) == {
        0: {"leak"},
        2: {"label"},
        3: {"leak"},
    }  # other values of equal samples are no contradiction
    assert audit.counts() is None
    assert "train: price -2 to 1.5, mean -0.25; age 0 to 0, mean 0." in summary(audit)
    rows = table(audit)
    assert [row["label"] for row in rows] == ["1.5 0", "-2 0", "nan 0", "4 7"]
    assert rows[2]["reason"] == "its label is nan 0; it must be finite"


def test_vectors_that_are_not_finite():
    vectors = [np.array([0, i], np.float32) for i in (1, np.nan, 2, np.inf)]
    assert kinds(audited(Given(vectors, [0, 1, 1, 0], "tttv"))) == {1: {"not_finite"}, 3: {"not_finite"}}


def test_masks():
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, (8, 8)) for _ in range(6)]
    masks[1][0, :3] = 255
    masks[2][0, 0] = 9
    images = [noise(i) for i in (0, 1, 2, 0, 4, 5)]
    names = ("sky", "sea", "ship")
    audit = audited(Given([*zip(images, masks, strict=True)], np.zeros(6, int), "ttttvs", "segmentation", names))
    assert kinds(audit) == {0: {"copy", "contradiction"}, 2: {"mask"}, 3: {"copy", "contradiction"}}
    expected = [[sum(int((masks[i] == k).sum()) for i in part) for k in range(3)] for part in (range(4), [4], [5])]
    assert audit.counts().tolist() == expected
    assert texts(audit, "error")[1].startswith("1 class has no usable pixels in train: ship. ")
    sky = sum(int((masks[i] == 0).sum()) for i in range(4))
    share = sky / sum(map(sum, expected[:1]))
    assert any(line.startswith("train: 3 classes, from 0.00% of the pixels (ship)") for line in summary(audit))
    if expected[0][0] > expected[0][1]:
        assert any(f"{share:.2%} of the pixels (sky)." in line for line in summary(audit))


def test_the_class_id_that_masks_ignore_is_the_datamodules():
    mask = np.zeros((8, 8), np.int64)
    mask[0] = 7
    datamodule = Given([(noise(0), mask)], [0], "t", "segmentation")
    assert kinds(audited(datamodule)) == {0: {"mask"}}
    datamodule.ignore_index = 7
    assert kinds(audited(datamodule)) == {}


def test_equal_texts_and_empty_ones(tmp_path):
    rows = [f"The sea, day {i}.\t{i % 2}" for i in range(20)] + ["The sea, day 3.\t0"]
    path = tmp_path / "texts.tsv"
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    audit = audited(TextDataModule(str(path), val_size=0, test_size=0))
    assert kinds(audit) == {3: {"copy", "contradiction"}, 20: {"copy", "contradiction"}}
    assert kinds(audited(Given(["a", "b", " "], [0, 1, 1], "ttv"))) == {2: {"empty"}}


def test_tables_and_arrays_of_this_package(tmp_path):
    path = tmp_path / "numbers.csv"
    lines = [f"{i},{i * i},{'ab'[i % 2]}" for i in range(30)] + ["4,16,a"]
    path.write_text("x,y,kind\n" + "\n".join(lines) + "\n")
    datamodule = TableDataModule(str(path), target="kind", val_size=0, test_size=0)
    assert kinds(audited(datamodule)) == {4: {"copy"}, 30: {"copy"}}
    digits = DigitsDataModule()
    digits.setup()
    audit = audit_samples(digits)
    assert audit.faults == {}
    assert (audit.counts().sum(), audit.sizes.min(), audit.sizes.max()) == (1797, 16, 16)


def test_set_up_reads_no_sample():
    datamodule, _ = photographs()
    with pytest.raises(BadSampleError):
        datamodule.setup()
    datamodule.given.asked.clear()
    set_up(datamodule)
    assert datamodule.samples.asked == []


def test_odd_names_stay_in_their_line(table, tmp_path):
    datamodule = Given(Samples([noise(0)], {0: OSError("a\nb")}), [0], "t", names=("a|b\n", "dog"))
    set_up(datamodule)
    datamodule.keys = ["caf\udce9\n" + 90 * "x"]
    audit = audit_samples(datamodule)
    assert table(audit)[0]["key"] == datamodule.keys[0]
    lines = summary(audit)
    assert all(line.isprintable() and "\n" not in line for line in lines)
    assert "caf\\udce9\\nx" in lines[1]
    assert len(lines[1]) < 300
    assert "| a\\|b\\n | 0 | 0 | 0 |" in (tmp_path / "audit.md").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(monkeypatch, terminal):
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("lightning_tuning.data.audit.collect._SECONDS_BEFORE_BAR", 0)
    datamodule, _ = photographs()
    set_up(datamodule)
    audit_samples(datamodule)
    assert screen.getvalue() == ""
    audit_samples(datamodule, progress=True)
    assert bool(re.search(r"audit: +\d+%.* \d+/24", screen.getvalue())) == terminal
