import json
import pickle
import unicodedata

import numpy as np
import pytest

from lightning_tuning.data import Vocabulary
from lightning_tuning.data.words import split_words, token_pattern, word_pattern
from lightning_tuning.errors import InvalidValueError

WORDS = ["a", "cat", "dog", "."]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The QUICK brown fox", ["the", "quick", "brown", "fox"]),
        ("don't he’s 'quoted'", ["don't", "he’s", "'", "quoted", "'"]),
        ("well-known and/or", ["well", "-", "known", "and", "/", "or"]),
        ("3.14, 1,000.50. 2nd 5,", ["3.14", ",", "1,000.50", ".", "2", "nd", "5", ","]),
        ("wait...!?", ["wait", ".", ".", ".", "!", "?"]),
        ("snake_case e-mail@x.org", ["snake", "_", "case", "e", "-", "mail", "@", "x", ".", "org"]),
        ("ÄÖÜ straße ÉCOLE", ["äöü", "straße", "école"]),
        ("ΟΔΟΣ Москва", ["οδος", "москва"]),  # the sigma at the end is ς in lower case
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are marks, no letters
        ("می‌خواهم", ["می‌خواهم"]),  # with a zero-width non-joiner
        ("我爱你。好", ["我爱你", "。", "好"]),
        ("I ❤️ it 👍", ["i", "❤️", "it", "👍"]),  # the heart and its variation selector
        ("ﬁne x² ①", ["ﬁne", "x²", "①"]),  # composed, but no other signs put in their places
        ("<unk> <UNK> <pad>", ["<unk>", "<unk>", "<", "pad", ">"]),
        (" \t\n\u00a0\u3000", []),
        ("", []),
    ],
)
def test_tokens(text, tokens):
    expected = [unicodedata.normalize("NFC", token) for token in tokens]
    assert Vocabulary([]).tokenize(text) == expected
    assert Vocabulary([]).tokenize(unicodedata.normalize("NFD", text)) == expected


def test_case_stays_if_wanted():
    assert Vocabulary([], lower=False).tokenize("Big İstanbul") == ["Big", "İstanbul"]
    assert Vocabulary([]).tokenize("İstanbul") == ["i̇stanbul"]  # an i with a dot above is one word
    cased = Vocabulary.fit(["A a A"], lower=False)
    assert cased.words == ("<pad>", "<unk>", "A", "a")
    assert cased.encode("a A b").tolist() == [3, 2, 1]


def test_tokens_hold_every_sign_but_white_space():
    """Over all characters of the first two planes: nothing is lost, nothing invented."""
    for start in range(0, 0x20000, 64):
        text = " ".join(chr(code) for code in range(start, start + 64) if not 0xD800 <= code < 0xE000)
        assert "".join(token_pattern().findall(text)) == "".join(text.split())


def test_a_word_has_no_white_space_and_no_lone_sign():
    for code in range(0x3000):
        character = chr(code)
        category = unicodedata.category(character)
        assert bool(word_pattern().fullmatch(character)) == (category[0] in "LN"), (hex(code), category)


def test_the_most_frequent_words_come_first_and_equals_by_the_alphabet():
    texts = ["b b a", "c a", "d d d", "É e", "e"]  # d 3, a 2, b 2, e 2, c 1, é 1
    assert Vocabulary.fit(texts).words[2:] == ("d", "a", "b", "e", "c", "é")
    assert Vocabulary.fit(reversed(texts)).words == Vocabulary.fit(texts).words
    assert Vocabulary.fit(texts, size=5).words == ("<pad>", "<unk>", "d", "a", "b")
    assert len(Vocabulary.fit(texts, size=5)) == 5
    assert Vocabulary.fit(texts, min_count=2).words[2:] == ("d", "a", "b", "e")
    assert Vocabulary.fit(texts, size=3, min_count=2).words[2:] == ("d",)


def test_the_unknown_word_is_no_word_of_its_own():
    assert Vocabulary.fit(["<unk> <unk> a"]).words == ("<pad>", "<unk>", "a")


def test_encode_and_decode():
    vocabulary = Vocabulary(WORDS)
    ids = vocabulary.encode("A cat and a DOG.")
    assert ids.dtype == np.int64
    assert ids.tolist() == [2, 3, 1, 2, 4, 5]
    assert vocabulary.decode(ids) == "a cat <unk> a dog ."
    assert vocabulary.decode(np.array([0, 2, 0, 3, 0])) == "a cat"
    assert vocabulary.encode(vocabulary.decode(ids)).tolist() == ids.tolist()
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.encode("").dtype == np.int64
    assert 0 not in vocabulary.encode("<pad> pad < >")


def test_a_batch_is_as_long_as_its_longest_text():
    batch = Vocabulary(WORDS).encode_batch(["a cat.", "dog", "", "a bird a bird"])
    assert batch["input_ids"].dtype == np.int64
    assert batch["attention_mask"].dtype == bool
    assert batch["input_ids"].tolist() == [[2, 3, 5, 0], [4, 0, 0, 0], [1, 0, 0, 0], [2, 1, 2, 1]]
    assert batch["attention_mask"].tolist() == [
        [True, True, True, False],
        [True, False, False, False],
        [True, False, False, False],
        [True, True, True, True],
    ]


@pytest.mark.parametrize(("fixed", "length"), [(False, 2), (True, 3)])
def test_long_texts_are_cut_and_a_fixed_length_is_kept(fixed, length):
    batch = Vocabulary(WORDS).encode_batch(["a", "a cat"], max_length=3, fixed=fixed)
    assert batch["input_ids"].tolist() == [[2, 0, 0][:length], [2, 3, 0][:length]]
    batch = Vocabulary(WORDS).encode_batch(["a", "a cat . a dog"], max_length=3, fixed=fixed)
    assert batch["input_ids"].tolist() == [[2, 0, 0], [2, 3, 5]]
    assert batch["attention_mask"].sum(axis=1).tolist() == [1, 3]


def test_a_batch_of_no_texts():
    batch = Vocabulary(WORDS).encode_batch([])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (0, 1)


@pytest.mark.parametrize("lower", [True, False])
def test_what_is_saved_is_loaded(tmp_path, lower):
    vocabulary = Vocabulary.fit(["Ein Maß, a café: 我 \ud800 1.5"], lower=lower)
    path = tmp_path / "words.json"
    path.write_text("an older file")
    vocabulary.save(path)
    loaded = Vocabulary.load(str(path))
    assert (loaded.words, loaded.lower) == (vocabulary.words, lower)
    assert [file.name for file in tmp_path.iterdir()] == ["words.json"]
    assert pickle.loads(pickle.dumps(loaded)).encode("maß maß x").tolist() == loaded.encode("maß maß x").tolist()


def saved(**changes):
    content = {"format": "lightning_tuning vocabulary 1", "lower": True, "words": WORDS, **changes}
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "is no vocabulary: it is not JSON"),
        (b"\xff\xfe", "line 1: byte 0 of the file (from 0) is 0xff"),
        (b'["a"]', "its format is 'list'"),
        (b'{"a": 1}', "its format is None"),
        (saved(format="lightning_tuning vocabulary 2"), "its format is 'lightning_tuning vocabulary 2'"),
        (saved(lower=1), "is damaged: 'lower' must be true or false"),
        (saved(words={"a": 2}), "'words' a list"),
        (saved(words=["a", "a"]), "is damaged: The word 'a' is in the vocabulary twice."),
        (saved(words=["a", 3]), "is damaged: The word 3 of the vocabulary can come out of no text"),
        (saved(words=[["a"]]), "is damaged: The word ['a'] of the vocabulary"),
        (saved(words=["Cat"]), "The word 'Cat' of the vocabulary can come out of no text: it must be one token, in lo"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "words.json"
    path.write_bytes(content)
    with pytest.raises(InvalidValueError) as caught:
        Vocabulary.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidValueError, match=r"There is no file .*nothing\.json"):
        Vocabulary.load(tmp_path / "nothing.json")


@pytest.mark.parametrize("word", ["two words", "<unk>", "<pad>", "", " a", "a.", "cafe\u0301", "A"])
def test_words_that_no_text_can_have_are_refused(word):
    with pytest.raises(InvalidValueError, match="can come out of no text"):
        Vocabulary([word])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: Vocabulary.fit(["a"], size=2), "size is 2; it must be an integer of at least 3 or None."),
        (lambda v: Vocabulary.fit(["a"], min_count=0), "min_count is 0;"),
        (lambda v: Vocabulary.fit(["a a", "b"], min_count=3), "the most frequent word of the texts comes 2 times"),
        (lambda v: Vocabulary.fit(["<unk> <unk>"]), "comes 0 times"),
        (lambda v: Vocabulary.fit("a text"), "texts is 'a text'; it must be a list of texts."),
        (lambda v: Vocabulary.fit(["a", float("nan")]), "texts[1] is nan; it must be a string."),
        (lambda v: v.encode_batch("a"), "texts is 'a'"),
        (lambda v: v.encode_batch(["a", None]), "texts[1] is None"),
        (lambda v: v.encode_batch(["a"], 0), "max_length is 0;"),
        (lambda v: v.encode_batch(["a"], fixed=True), "fixed is True and max_length is None"),
        (lambda v: v.decode([2, 6]), "ids has 6; the vocabulary has the numbers from 0 to 5."),
        (lambda v: v.decode([-1]), "ids has -1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(InvalidValueError) as caught:
        call(Vocabulary(WORDS))
    assert message in str(caught.value)


def test_words_and_gaps_make_the_text_again():
    for text in ("", " ", "a", "'2nd' U.S.A., don't! ", "<unk>x 1.x,y 我。"):
        words, gaps = split_words(text)
        assert "".join(gap + word for gap, word in zip(gaps, [*words, ""], strict=True)) == text
    assert split_words("'2nd' U.S.A., don't! ") == (["2nd", "U.S.A", "don't"], ["'", "' ", "., ", "! "])
