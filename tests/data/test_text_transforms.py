import copy
import itertools
import math
import pickle
import re
from collections import Counter

import numpy as np
import pytest

from lightning_tuning.data import (
    TEXT_PIPELINES,
    OneOf,
    RandomDeletion,
    RandomInsertion,
    RandomSwap,
    SentenceShuffle,
    SynonymReplacement,
    TextPipeline,
    TokenDropout,
    Vocabulary,
    named_text_transforms,
)
from lightning_tuning.data.text_transforms import _below
from lightning_tuning.errors import InvalidValueError

TABLE = {"big": ["large", "huge"], "cat": ["feline"], "sat": ["was seated"]}
EACH = {
    "synonyms": lambda share: SynonymReplacement(TABLE, share),
    "insertion": lambda share: RandomInsertion(TABLE, share),
    "swap": RandomSwap,
    "deletion": RandomDeletion,
    "dropout": TokenDropout,
}
every_one = pytest.mark.parametrize("make", EACH.values(), ids=EACH)
ODD_TEXTS = [
    "",
    " \n",
    "...",
    "cat",
    "<unk>",
    "<unk> cat <unk>",
    "The big cat sat; it's a well-known 2nd-hand cat (U.S.A).\n\nWhy? 'Big cats,' he said: \"sat!\"",
    "x'2y 1.a.2 a,b <unk>x cat.Sat",
    "हिन्दी में 我爱你。好。再见",
]


def outcomes(transform, text, count=400):
    """How often each text comes out."""
    pipeline = TextPipeline([transform])
    return Counter(pipeline(text, seed) for seed in range(count))


def assert_even(counts, expected):
    """Exactly the ``expected`` texts come out, equally often: chi-square below its 99.99 % quantile or so."""
    assert set(counts) == set(expected)
    mean, free = sum(counts.values()) / len(expected), len(expected) - 1
    chi = sum((counts[text] - mean) ** 2 / mean for text in expected)
    assert chi < free + 4 * math.sqrt(2 * free) + 6


def tokens(text):
    return Vocabulary([]).tokenize(text)


@pytest.mark.parametrize("text", ODD_TEXTS)
@every_one
def test_off_changes_nothing(make, text):
    assert outcomes(make(0.0), text, 5).keys() == {text}


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("share", [0.1, 0.7, 1.0])
@every_one
def test_a_text_with_a_known_word_keeps_one(make, share, text):
    def known(text):
        return any(word[0].isalnum() for word in tokens(text))

    for result in outcomes(make(share), text, 30):
        assert known(result) == known(text)


@pytest.mark.parametrize("text", ODD_TEXTS)
@every_one
def test_no_new_words_and_no_lost_signs(make, text):
    """Words never grow together: all tokens are those of the text, of the table, or ``<unk>``."""
    allowed = {*tokens(text), "large", "huge", "feline", "was", "seated", "<unk>"}
    signs = Counter(re.sub(r"[\w\s]|<unk>", "", text))
    for result in outcomes(make(0.6), text, 60):
        assert set(tokens(result)) <= allowed
        if make not in (RandomDeletion, TokenDropout):  # they drop "2nd" and "U.S.A" with the signs inside
            assert Counter(re.sub(r"[\w\s]|<unk>", "", result)) == signs


def test_synonyms_are_chosen_evenly_over_words_and_synonyms():
    expected = Counter(outcomes(SynonymReplacement(TABLE, 0.2), "a big cat sat down", 900))
    texts = {
        "big": ["a large cat sat down", "a huge cat sat down"],
        "cat": ["a big feline sat down"],
        "sat": ["a big cat was seated down"],
    }
    assert set(expected) == {text for group in texts.values() for text in group}
    assert_even(Counter({word: sum(expected[t] for t in group) for word, group in texts.items()}), texts)
    assert_even(Counter({t: expected[t] for t in texts["big"]}), texts["big"])


@pytest.mark.parametrize(
    ("length", "share", "n"), [(3, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (100, 0.29, 29), (9, 1, 9)]
)
def test_n_is_a_share_of_all_words_and_at_least_one(length, share, n):
    text = " ".join(["cat"] * length)
    for result in outcomes(SynonymReplacement(TABLE, share), text, 5):
        assert result.split().count("feline") == n
        assert len(result.split()) == length
    for result in outcomes(RandomInsertion(TABLE, share), text, 5):
        assert Counter(result.split()) == {"cat": length, "feline": n}


def test_n_counts_words_without_synonyms_too_but_replaces_only_those_that_have_one():
    text = "one two three four five six seven eight nine cat"
    assert set(outcomes(SynonymReplacement(TABLE, 0.5), text, 20)) == {text.replace("cat", "feline")}
    assert set(outcomes(SynonymReplacement(TABLE, 0.5), "no such word", 5)) == {"no such word"}
    assert set(outcomes(RandomInsertion(TABLE, 0.5), "no such word", 5)) == {"no such word"}


def test_replaced_words_keep_case_and_signs():
    text = "CAT, Cat (cat)... (Sat) cafe\u0301."
    table = {**TABLE, "caf\u00e9": ["bistro"]}
    expected = "FELINE, Feline (feline)... (Was seated) bistro."
    assert set(outcomes(SynonymReplacement(table, 1.0), text, 5)) == {expected}
    assert set(outcomes(SynonymReplacement({"i": ["me"]}, 1.0), "I", 3)) == {"Me"}


def test_insertion_reaches_every_place_and_synonym_evenly():
    counts = outcomes(RandomInsertion({"a": ["x", "y z"]}, 0.1), "(a, b).", 900)
    places = ["({} a, b).", "(a, {} b).", "(a, b {})."]
    assert_even(counts, [place.format(new) for place in places for new in ("x", "y z")])


def test_insertion_draws_from_the_words_of_the_text_evenly():
    counts = outcomes(RandomInsertion({"a": ["x"], "b": ["y"]}, 0.1), "a b a", 900)
    x = sum(count for text, count in counts.items() if "x" in text)
    assert abs(x - 600) < 4 * math.sqrt(900 * 2 / 9)


def test_swap_exchanges_each_pair_evenly_and_signs_stay():
    counts = outcomes(RandomSwap(0.1), "Well, (no) yes.", 900)
    assert_even(counts, ["no, (Well) yes.", "yes, (no) Well.", "Well, (yes) no."])
    assert set(outcomes(RandomSwap(1.0), "one", 5)) == {"one"}


def test_swap_does_n_exchanges():
    """Two exchanges of three words are an even permutation, one an odd one; all of the kind come out."""
    words = ["a", "b", "c"]
    even = {" ".join(words[i] for i in p) for p in ((0, 1, 2), (1, 2, 0), (2, 0, 1))}
    assert set(outcomes(RandomSwap(0.67), "a b c", 100)) == even
    assert set(outcomes(RandomSwap(0.66), "a b c", 100)) == {"b a c", "c b a", "a c b"}


@pytest.mark.parametrize(("make", "gone"), [(RandomDeletion, ""), (TokenDropout, "<unk>")])
def test_words_go_with_their_probability_each_by_itself(make, gone):
    """The exact distribution over three words, the rule that one must stay included."""
    share, count = 0.4, 3000
    expected = Counter()
    for kept in itertools.product([True, False], repeat=3):
        chance = math.prod(1 - share if keep else share for keep in kept)
        choices = [kept] if any(kept) else [tuple(i == j for i in range(3)) for j in range(3)]
        for choice in choices:
            words = [word if keep else gone for word, keep in zip("abc", choice, strict=True)]
            expected[" ".join(word for word in words if word)] += chance / len(choices)
    counts = outcomes(make(share), "a b c", count)
    assert set(counts) == set(expected)
    for text, chance in expected.items():
        assert abs(counts[text] - count * chance) < 4 * math.sqrt(count * chance * (1 - chance))


def test_deletion_takes_the_white_space_before_and_leaves_the_signs():
    counts = outcomes(RandomDeletion(0.5), " A sad, (old)\nman-like dog.\t", 3000)
    assert {
        " A sad, (old)\nman-like.\t",
        " sad, (old)\nman-like dog.\t",
        " A, (old)\nman-like dog.\t",
        " A sad, ()\nman-like dog.\t",
        " A sad, (old)-like dog.\t",
        " A sad, (old)\nman- dog.\t",
        " , ()- dog.\t",
        " , (old)-.\t",
        " A, ()-.\t",
    } <= set(counts)
    assert len(counts) == 2**6 - 1  # all sets of words but the empty one


def test_what_is_unknown_does_not_count_as_a_word_left():
    assert set(outcomes(RandomDeletion(1.0), "<unk> cat <unk>", 30)) == {"cat"}
    assert set(outcomes(TokenDropout(1.0), "<unk> cat <unk>", 30)) == {"<unk> cat <unk>"}
    assert set(outcomes(RandomDeletion(1.0), "<unk> <unk>", 30)) == {"<unk>"}


def test_sentences_come_in_every_order_evenly():
    counts = outcomes(SentenceShuffle(), ' One "two." Three?!\nfour 4.5 \n', 900)
    sentences = ['One "two."', "Three?!", "four 4.5"]
    assert_even(counts, [" {} {}\n{} \n".format(*order) for order in itertools.permutations(sentences)])


@pytest.mark.parametrize(
    ("text", "orders"),
    [
        ("One. ", {"One. "}),
        ("", {""}),
        ("... well... yes.", {"... well... yes.", "yes. ... well..."}),
        ("a line\r\nanother", {"a line\r\nanother", "another\r\na line"}),
        ("你好。再见", {"你好。 再见", "再见 你好。"}),
        ("Is 3.5 a.b? Yes (it is.) ", {"Is 3.5 a.b? Yes (it is.) ", "Yes (it is.) Is 3.5 a.b? "}),
    ],
)
def test_where_sentences_end(text, orders):
    assert set(outcomes(SentenceShuffle(), text, 30)) == orders


@pytest.mark.timeout(60)
def test_long_runs_of_one_sign_take_linear_time():
    for sign in (".", " ", "\n", ")", "'", "a", "1.", ".)", "<", "\u0301"):
        text = "a" + sign * 50_000 + "b"
        SentenceShuffle()(text, np.random.default_rng(0))
        RandomSwap()(text, np.random.default_rng(0))
        Vocabulary([]).tokenize(text)


def test_one_of_takes_each_equally_often():
    def adds(sign):
        return lambda text, rng: text + sign

    assert_even(outcomes(OneOf([adds("x"), adds("y"), adds("z")]), "a", 900), ["ax", "ay", "az"])


def test_random_integers_stay_below_their_bound():
    class Largest:
        random = staticmethod(lambda: 1 - 2**-53)

    assert all(_below(count, Largest()) == count - 1 for count in range(1, 100_000))


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_the_result_is_a_function_of_text_and_seed(name):
    texts = ["The big cat sat. It was big.", "One two three four five. Six!"]
    seeds = [0, 1, 2**64 - 1, np.uint64(2**63 + 5)]
    transforms = named_text_transforms(name, TABLE)
    first = TextPipeline(transforms)
    expected = {(t, int(s)): first(t, s) for t in texts for s in seeds}
    # In another order, by another pipeline, by one that travelled, and between calls of a neighbour.
    others = [TextPipeline(transforms), pickle.loads(pickle.dumps(first)), copy.deepcopy(first)]
    for text, seed in itertools.product(reversed(texts), reversed(seeds)):
        for pipeline in others:
            first("something else", 3)
            assert pipeline(text, int(seed)) == first(text, seed) == expected[text, int(seed)]


def test_the_global_random_state_is_not_touched():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    TextPipeline(named_text_transforms("strong", TABLE))("The big cat sat.", 3)
    assert np.random.rand() == expected  # noqa: NPY002


def test_seeds_and_salts_give_different_texts():
    text = " ".join(f"word{i}" for i in range(50))
    pipelines = [TextPipeline([RandomSwap(0.3)], salt) for salt in (0, 1, 2**64 - 1)]
    assert len({pipeline(text, seed) for pipeline in pipelines for seed in range(50)}) == 150


def test_transforms_of_a_pipeline_draw_different_numbers():
    """Two deletions by the same numbers would delete nothing more of those that stayed."""
    text = " ".join(f"word{i}" for i in range(2000))
    once = len(TextPipeline([RandomDeletion(0.5)])(text, 1).split())
    twice = len(TextPipeline([RandomDeletion(0.5), RandomDeletion(0.5)])(text, 1).split())
    assert abs(once - 1000) < 100
    assert abs(twice - 500) < 100


def test_transforms_act_in_order():
    pipeline = TextPipeline([SynonymReplacement({"a": ["b"]}, 1.0), SynonymReplacement({"b": ["c"]}, 1.0)])
    assert pipeline("a b", 0) == "c c"


def test_the_named_pipelines():
    assert TEXT_PIPELINES == ("none", "weak", "strong")
    text = "The big cat sat on the mat. It was a very big cat, and it sat there all day. Why?"
    assert TextPipeline(named_text_transforms("none", TABLE))(text, 3) == text

    def changed(name, synonyms=None):
        """The mean share of the text's words, as a bag, that are gone."""
        pipeline, before = TextPipeline(named_text_transforms(name, synonyms)), Counter(tokens(text))
        return np.mean([(before - Counter(tokens(pipeline(text, s)))).total() for s in range(100)]) / before.total()

    assert 0 < changed("weak") < changed("strong") < 0.5
    assert changed("weak", TABLE) < changed("strong", TABLE) < 0.5
    assert any("feline" in TextPipeline(named_text_transforms("weak", TABLE))(text, s) for s in range(50))
    kinds = [type(transform) for transform in named_text_transforms("weak", TABLE)[0].transforms]
    assert kinds == [SynonymReplacement, RandomInsertion, RandomSwap, RandomDeletion]
    with pytest.raises(InvalidValueError, match="name is 'strang'; did you mean 'strong'"):
        named_text_transforms("strang")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.1", True])
@every_one
def test_shares_out_of_range_are_refused(make, share):
    with pytest.raises(InvalidValueError, match=r"share is .*; it must be a number in \[0, 1\]"):
        make(share)


def test_one_of_nothing_is_refused():
    with pytest.raises(InvalidValueError, match="OneOf has no transforms"):
        OneOf([])
