import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest

from lightning_tuning.data import BadSampleError, BadSamples
from lightning_tuning.errors import InvalidValueError


def error_of(index):
    return BadSampleError(f"{index}.png", f"it is wrong in way {index}", "Mend it.")


def load(index):
    """All samples with an odd index are bad."""
    if index % 2:
        raise error_of(index)


def note(bad, indices):
    for index in indices:
        bad.check(index, error_of(index))


def test_raise_passes_the_error_on():
    bad = BadSamples(10, load)
    error = error_of(3)
    with pytest.raises(BadSampleError) as raised:
        bad.check(3, error)
    assert raised.value is error
    assert bad.count == 0


def test_skip_counts_each_sample_once():
    bad = BadSamples(400, load, "skip")
    assert bad.report() == "0 of 400 samples are bad."
    note(bad, [7, 7, 301, 7])
    assert bad.count == 2
    assert list(bad.rows()) == [(7, "7.png", "it is wrong in way 7"), (301, "301.png", "it is wrong in way 301")]
    assert bad.report() == (
        "2 of 400 samples are bad.\n7: 7.png: it is wrong in way 7.\n301: 301.png: it is wrong in way 301."
    )


def test_a_sample_that_is_well_by_now():
    bad = BadSamples(400, load, "skip")
    note(bad, [8])
    assert list(bad.rows()) == [(8, "", "it was read without an error when it was loaded again")]
    assert bad.report() == ("1 of 400 samples is bad.\n8: it was read without an error when it was loaded again.")


def test_more_than_the_share_ends_the_run():
    bad = BadSamples(300, load, "skip")
    note(bad, [1, 3, 5])  # 1 %
    with pytest.raises(InvalidValueError) as raised:
        bad.check(9, error_of(9))
    assert str(raised.value) == (
        "4 of 300 samples are bad, more than the 1.00% that may be skipped: 1.png: it is wrong in way 1; 3.png: it is "
        "wrong in way 3; 5.png: it is wrong in way 5; 9.png: it is wrong in way 9. Mend or remove the files."
    )
    assert str(raised.value.__cause__) == str(error_of(9))


def test_the_message_names_the_first_five():
    bad = BadSamples(20, load, "skip", max_share=0.3)
    note(bad, range(1, 13, 2))
    with pytest.raises(InvalidValueError, match=r"^7 of 20 .* 9\.png: it is wrong in way 9; and 2 more\. Mend"):
        bad.check(19, error_of(19))


def test_no_share_at_all():
    with pytest.raises(InvalidValueError, match=r"^1 of 400 samples is bad, more than the 0\.00%"):
        BadSamples(400, load, "skip", max_share=0).check(1, error_of(1))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_write_into_the_same_flags(start):
    context = multiprocessing.get_context(start)
    bad = BadSamples(400, load, "skip")
    workers = [context.Process(target=note, args=(bad, indices)) for indices in ([1, 3], [3, 5])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [index for index, _, _ in bad.rows()] == [1, 3, 5]


def test_what_is_sent_to_a_spawned_process_shares_the_flags():
    bad = BadSamples(400, load, "skip")
    sent = pickle.loads(ForkingPickler.dumps(bad))
    note(sent, [1])
    assert sent is not bad
    assert bad.count == 1


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"policy": "ignore"}, "on_bad_sample"), ({"max_share": 2}, "max_share")]
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(InvalidValueError, match=message):
        BadSamples(3, load, **kwargs)
