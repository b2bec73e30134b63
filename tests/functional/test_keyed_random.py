import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import keyed_bits, keyed_uniform

EDGES = [0, 1, -1, 2**63 - 1, -(2**63), 1234567]


def fnv1a(text):
    value = 14695981039346656037
    for byte in text.encode():
        value = ((value ^ byte) * 1099511628211) % 2**64
    return value


def splitmix64(state, column):
    """Output ``column`` (from 0) of the generator, written with unsigned numbers."""
    with np.errstate(over="ignore"):
        z = np.asarray(state, np.uint64) + np.uint64(column + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def reference(seeds, purpose, count):
    key = splitmix64(np.uint64(fnv1a(purpose) if isinstance(purpose, str) else purpose % 2**64), 0)
    states = seeds.numpy().view(np.uint64) ^ key
    return np.stack([splitmix64(states, column) for column in range(count)], axis=1)


@pytest.fixture
def seeds():
    drawn = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64).view(np.int64)
    return torch.cat([torch.tensor(EDGES), torch.from_numpy(drawn)])


def test_the_reference_is_splitmix64():
    """Published outputs of the state 1234567, and of FNV-1a."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [int(splitmix64(1234567, column)) for column in range(4)] == published
    assert fnv1a("foobar") == 0x85944171F73967E8


@pytest.mark.parametrize("purpose", ["flip", "", "grösse", 0, 3, 2**64 - 1, -1])
def test_bit_for_bit_as_written_with_unsigned_numbers(seeds, purpose):
    expected = reference(seeds, purpose, 4)
    np.testing.assert_array_equal(keyed_bits(seeds, purpose, 4).numpy().view(np.uint64), expected)
    uniform = keyed_uniform(seeds, purpose, 4)
    assert uniform.dtype == torch.float32
    np.testing.assert_array_equal(uniform.numpy(), (expected >> np.uint64(40)).astype(np.float64) / 2**24)


def test_neither_batch_nor_other_columns_matter(seeds):
    whole = keyed_uniform(seeds, "crop", 5)
    assert torch.equal(keyed_uniform(seeds, "crop", 2), whole[:, :2])
    assert torch.equal(torch.cat([keyed_uniform(seed[None], "crop", 5) for seed in seeds[:20]]), whole[:20])
    assert torch.equal(keyed_uniform(seeds.flip(0), "crop", 5).flip(0), whole)
    assert keyed_uniform(seeds[:0], "crop", 5).shape == (0, 5)
    assert keyed_uniform(seeds, "crop", 0).shape == (len(seeds), 0)


def test_neither_autocast_nor_the_default_type_matters(seeds):
    expected = keyed_uniform(seeds, "crop", 3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = keyed_uniform(seeds, "crop", 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_global_generators_are_not_touched(seeds):
    before = torch.get_rng_state()
    keyed_uniform(seeds, "crop", 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["consecutive", "random"])
def test_uniform(kind):
    """Chi-square over 64 cells and Kolmogorov-Smirnov, for drawn seeds and for the seeds 0, 1, 2, ..."""
    count = 20000
    seeds = torch.arange(count)
    if kind == "random":
        seeds = torch.from_numpy(np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64).view(np.int64))
    values = keyed_uniform(seeds, "crop", 3).numpy()
    assert values.min() >= 0
    assert values.max() < 1
    for column in values.T:
        assert chisquare(np.bincount((column * 64).astype(int), minlength=64)).pvalue > 0.001
        assert kstest(column, "uniform").pvalue > 0.001


@pytest.mark.parametrize("bit", [0, 1, 31, 40, 62, 63])
def test_each_bit_of_a_seed_changes_half_the_bits(bit):
    seeds = torch.arange(4000)
    changed = keyed_bits(seeds, "flip") ^ keyed_bits(seeds ^ (1 << bit if bit < 63 else -(2**63)), "flip")
    share = np.unpackbits(changed.numpy().view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(4000)


def test_columns_purposes_salts_and_neighbouring_seeds_are_unrelated():
    """No pair is correlated, nor are their places in a 8 by 8 table other than even; 4000 seeds in a row."""
    seeds = torch.arange(4001)
    parts = [keyed_uniform(seeds, purpose, 2) for purpose in ("flip", "crop", "erase", 0, 1, 2)]
    values = torch.cat(parts, dim=1).numpy()
    values = np.concatenate([values[:-1], values[1:, :1]], axis=1)
    correlations = np.corrcoef(values.T) - np.eye(values.shape[1])
    assert np.abs(correlations).max() < 4.5 / np.sqrt(4000)
    cells = (values * 8).astype(int)
    pairs = [(i, j) for i in range(cells.shape[1]) for j in range(i)]
    tables = [np.bincount(8 * cells[:, i] + cells[:, j], minlength=64) for i, j in pairs]
    assert min(chisquare(table).pvalue for table in tables) > 0.001 / len(pairs)


def test_seed_and_purpose_cannot_be_exchanged():
    """The number of a view is spread over all bits, so seed 1 of view 0 is not seed 0 of view 1."""
    table = torch.stack([keyed_bits(torch.arange(50), salt)[:, 0] for salt in range(50)])
    assert len(table.unique()) == 2500


def test_a_whole_number_of_choices_is_never_exceeded():
    """The largest number that can come, times n, is below n in float32."""
    n = torch.arange(1, 2**24, 997, dtype=torch.float32)
    assert bool(((1 - 2.0**-24) * n < n).all())


@pytest.mark.parametrize("bad", [torch.arange(3, dtype=torch.int32), torch.zeros(3), torch.zeros(3, 1).long()])
def test_other_seeds_are_refused(bad):
    with pytest.raises(InvalidValueError, match=r"they must be torch.int64 \[N\].*numpy.int64"):
        keyed_uniform(bad, "flip")
