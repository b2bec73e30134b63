"""Texts from a table: vocabulary of the training part, views, a run with FixMatch, mistakes."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_tuning import SemiSupervisedClassifier
from lightning_tuning.data import TextDataModule, TextPipeline, Vocabulary, named_text_transforms
from lightning_tuning.errors import InvalidValueError

SIZES = {"val_size": 12, "test_size": 12, "batch_size": 8}
SUBJECTS = {"sea": ["ship", "wave", "sail", "harbour"], "wood": ["tree", "leaf", "bark", "squirrel"]}


@pytest.fixture
def make(tmp_path):
    """Makes a datamodule of 60 short texts about the sea or the wood, of 15 authors."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        label = ["sea", "wood"][number % 2]
        words = rng.choice([*SUBJECTS[label], "the", "a", "old", "saw", "and"], size=7)
        rows.append({"text": " ".join(words) + f" n{number}.", "label": label, "author": f"author {number // 4}"})

    def made(rows=rows, **kwargs):
        path = tmp_path / "a.tsv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
        datamodule = TextDataModule(str(path), **{**SIZES, **kwargs})
        datamodule.setup()
        return datamodule

    made.rows = rows
    return made


def test_the_vocabulary_is_made_of_the_training_part(make):
    datamodule = make()
    assert {int(word) for word in datamodule.vocab.words if word.isdigit()} == {*datamodule.train_indices.tolist()}
    x, y = next(iter(datamodule.test_dataloader()))
    expected = Vocabulary.fit([make.rows[i]["text"] for i in datamodule.train_indices]).encode_batch(
        [make.rows[i]["text"] for i in datamodule.test_indices]
    )
    np.testing.assert_array_equal(x["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(x["attention_mask"], expected["attention_mask"])
    assert x["attention_mask"].dtype == torch.bool
    assert (x["input_ids"] == 1).any(1).all()  # each text's own number is unknown
    assert y.tolist() == (datamodule.test_indices % 2).tolist()
    assert datamodule.class_names == ("sea", "wood")


def test_each_view_is_the_text_with_the_random_numbers_of_its_own_salt(make, tmp_path):
    (tmp_path / "s.json").write_text('{"old": ["aged", "ancient"], "saw": ["spied"]}')
    datamodule = make(
        unlabeled_batch_size=16, unlabeled_views="weak strong weak_2", synonyms=str(tmp_path / "s.json"), augment="weak"
    )
    loader = datamodule.train_dataloader()
    labeled, keys = next(iter(loader.sampler))
    batch = next(iter(loader))
    for name, salt in {"weak": 1, "strong": 2, "weak_2": 3}.items():
        table = {"old": ["aged", "ancient"], "saw": ["spied"]}
        pipeline = TextPipeline(named_text_transforms(name.split("_")[0], table), salt)
        texts = [pipeline(make.rows[i]["text"], s) for i, s in zip(keys.indices, keys.seeds.tolist(), strict=True)]
        np.testing.assert_array_equal(
            batch["unlabeled"][name]["input_ids"], datamodule.vocab.encode_batch(texts)["input_ids"]
        )
    pipeline = TextPipeline(named_text_transforms("weak", table), 1)
    texts = [pipeline(make.rows[i]["text"], s) for i, s in zip(labeled.indices, labeled.seeds.tolist(), strict=True)]
    assert texts != [make.rows[i]["text"] for i in labeled.indices]
    np.testing.assert_array_equal(batch["labeled"][0]["input_ids"], datamodule.vocab.encode_batch(texts)["input_ids"])


def test_arguments_reach_the_vocabulary(make, tmp_path):
    full = make()
    assert len(make(vocabulary_size=6).vocab) == 6
    assert len(make(min_count=2).vocab) < len(full.vocab) - 30
    assert make(max_length=3).test_dataloader().dataset[np.arange(4)][0]["input_ids"].shape == (4, 3)
    full.vocab.save(tmp_path / "v.json")
    loaded = make(split_seed=5, vocabulary=str(tmp_path / "v.json"))
    assert loaded.vocab.words == full.vocab.words


def test_authors_stay_together(make):
    datamodule = make(group="author")
    parts = [set(part // 4) for part in (datamodule.train_indices, datamodule.val_indices, datamodule.test_indices)]
    assert all(parts)
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


class Bag(nn.Module):
    """The mean of the tokens' embeddings, and a linear layer."""

    def __init__(self, size):
        super().__init__()
        self.embedding = nn.Embedding(size, 8, padding_idx=0)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        mask = x["attention_mask"][..., None]
        return self.head((self.embedding(x["input_ids"]) * mask).sum(1) / mask.sum(1))


def test_it_trains_with_fixmatch(make):
    datamodule = make(num_labels=20, unlabeled_batch_size=16, steps_per_epoch=60)
    torch.manual_seed(0)
    model = SemiSupervisedClassifier(
        Bag(len(datamodule.vocab)), num_classes=2, fixmatch_weight=1.0, optimizer="adam", lr=0.03
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule)
    assert trainer.test(model, datamodule, verbose=False)[0]["test/accuracy"] >= 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "texts"}, "has no column 'texts'; did you mean 'text'"),
        ({"target": "text"}, "they must be different columns"),
        ({"augment": "strng"}, "augment is 'strng'; did you mean 'strong'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"vocabulary": "none.json"}, "none.json"),
        ({"synonyms": "none.tsv"}, "none.tsv"),
        ({"unlabeled_views": "weak week"}, "unlabeled_views is 'weak week'"),
        ({"task": "regression"}, "row 1: 'label' is 'sea'; it must be a finite number"),
    ],
)
def test_mistakes(make, arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        make(**arguments)


def test_rows_without_a_class_are_unlabelled_samples(make):
    rows = [{**row, "label": row["label"] if number % 5 else ""} for number, row in enumerate(make.rows)]
    data = make(rows, unlabeled_batch_size=8)
    assert data.class_names == ("sea", "wood")
    assert (len(data.labeled_indices), data.num_unlabeled) == (24, 36)
    assert set(range(0, 60, 5)) <= {*data.train_indices.tolist()} - {*data.labeled_indices.tolist()}
    assert {"n0", "0"} & {*data.vocab.words}  # their words are in the vocabulary
    with pytest.raises(InvalidValueError, match="'label' is empty; each row needs one"):
        make(rows)
