"""The recipe's texts are those of scikit-learn's docstrings, and its configuration trains on them."""

from __future__ import annotations

import csv

import pytest
import torch
import yaml
from conftest import ROOT

from lightning_tuning import TextDataModule

RECIPE = ROOT / "recipes" / "text_topics"
VARIANTS = yaml.safe_load((RECIPE / "variants.yaml").read_text())
DOCSTRING = """Fit it.

This finds the :class:`~sklearn.svm.SVC` that
is best for ``X``. Use it with care where there are few samples.

.. versionadded:: 0.20
   It was not there before that version.

Parameters
----------
tol : float, default=0.1
    Stop when the loss changes by less than it. See also :ref:`the guide <user_guide>` for more than that.
n_jobs : int

Examples
--------
This is an example which is not told.
"""


@pytest.fixture(scope="module")
def folder(built):
    return built("text_topics")


def test_sentences_have_neither_markup_nor_code(folder):
    from recipes.text_topics.build import sentences

    assert list(sentences(DOCSTRING)) == [
        "This finds the sklearn.svm.SVC that is best for X.",
        "Use it with care where there are few samples.",
        "Stop when the loss changes by less than it.",
        "See also the guide for more than that.",
    ]


def test_texts_are_up_to_four_sentences_that_follow_each_other(folder):
    from recipes.text_topics.build import texts

    ten = " ".join(f"This is sentence number {number} of ten." for number in range(10))
    assert [text.split()[4::7] for text in texts(ten)] == [list("0123"), list("4567"), list("89")]


def test_each_text_has_one_topic_which_is_the_package_of_its_file(folder):
    with (folder / "data" / "text_topics" / "texts.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    assert len({row["text"] for row in rows}) == len(rows) > 1000
    assert all(row["topic"] == row["file"].split("/")[0] for row in rows)
    assert len({row["topic"] for row in rows}) == 6
    assert all(len(row["text"].split()) >= 6 for row in rows)


def test_texts_of_a_file_stay_together(folder):
    given = yaml.safe_load((RECIPE / "config.yaml").read_text())["data"]["init_args"]
    data = TextDataModule(**{**given, "path": str(folder / given["path"])}, seed=0)
    data.setup()

    parts = [{data.groups[i] for i in part} for part in (data.train_indices, data.val_indices, data.test_indices)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert len(data.vocab) <= given["vocabulary_size"]
    assert torch.bincount(torch.from_numpy(data.labels[data.labeled_indices])).tolist() == [20] * 6


def test_padding_changes_nothing(folder):
    from recipes.text_topics.topics import TopicNet

    model = TopicNet(vocabulary_size=10, width=4).eval()
    ids, mask = torch.tensor([[3, 5, 7]]), torch.ones(1, 3, dtype=torch.bool)
    padded = {
        "input_ids": torch.tensor([[3, 5, 7, 0, 0]]),
        "attention_mask": torch.tensor([[True, True, True, False, False]]),
    }

    logits = model({"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(model(padded), logits)
    mean = model.network.embedding.weight[[3, 5, 7]].double().mean(0)
    hidden = (model.network.hidden.weight.double() @ mean + model.network.hidden.bias).relu()
    expected = model.network.head.weight.double() @ hidden + model.network.head.bias
    torch.testing.assert_close(logits[0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def loss(folder, fit):
    """The test loss of a small run with some settings."""
    small = ["--model.width=4", "--data.batch_size=8", "--data.max_length=16"]
    return lambda *settings: fit(folder, "text_topics", *small, *settings)[0]["test/loss"]


@pytest.fixture(scope="module")
def bare(loss):
    return loss()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "UDA" else pytest.mark.slow) for name in VARIANTS]
)
def test_each_variant_changes_the_run(loss, bare, name):
    settings = [f"--{key}={'null' if value is None else value}" for key, value in VARIANTS[name].items()]
    assert loss(*settings) != bare
