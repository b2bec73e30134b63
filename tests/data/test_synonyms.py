import pytest

from lightning_tuning.data import RandomInsertion, SynonymReplacement, read_synonyms
from lightning_tuning.data.synonyms import check_synonyms
from lightning_tuning.errors import InvalidValueError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "Car\tautomobile\tmotor car\n\ndon't\tdo not\n"),
        ("a.TXT", "\ufeffCar\tautomobile\tmotor car\r\ndon't\tdo not"),
        ("a.json", '{"Car": ["automobile", "motor car"], "don\'t": ["do not"]}'),
    ],
)
def test_files_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_synonyms(tmp_path / name) == {"car": ["automobile", "motor car"], "don't": ["do not"]}
    assert read_synonyms(str(tmp_path / name)) == read_synonyms(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"", "a.tsv has no synonyms."),
        ("a.tsv", b"car\tautomobile\n\nnew york\tcity\n", "a.tsv, line 3: 'new york' is not one word"),
        ("a.tsv", b"car,automobile\n", "a.tsv, line 1: 'car,automobile' has []; it must have at least one synonym"),
        ("a.tsv", b"car\tauto\nCar\tautomobile\n", "a.tsv, line 2: 'Car' stands there twice; put all its synonyms"),
        ("a.tsv", b"car\tauto\t\n", "a.tsv, line 1: 'car' has the synonym ''; it must be a word"),
        ("a.tsv", b"car\tauto \n", "'car' has the synonym 'auto '"),
        ("a.tsv", b"car\t--\n", "'car' has the synonym '--'"),
        ("a.tsv", b"car\tCAR\n", "a.tsv, line 1: 'car' is its own synonym"),
        ("a.tsv", b"car\tauto\nb\xe4r\tx\n", "a.tsv, line 2: byte 10 of the file (from 0) is 0xe4"),
        ("a.tsv", b"<unk>\tauto\n", "'<unk>' is not one word"),
        ("a.json", b"car\tauto", "a.json is not JSON: Expecting value"),
        ("a.json", b'["car"]', "a.json holds list; it must be an object of words with lists."),
        ("a.json", b"{}", "a.json has no synonyms."),
        ("a.json", b'{"car": "auto"}', "a.json: 'car' has 'auto'; it must have at least one synonym, in a list."),
        ("a.json", b'{"car": []}', "a.json: 'car' has []"),
        ("a.json", b'{"car": {"auto": 1}}', "a.json: 'car' has "),
        ("a.json", b'{"car": [1]}', "a.json: 'car' has the synonym 1"),
        ("a.json", b'{"car": ["a"], "car": ["b"]}', "a.json: 'car' stands there twice"),
        ("a.csv", b"car,auto", "a.csv has the ending '.csv'; it must be one of .tsv, .tab, .txt, .json."),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValueError) as caught:
        read_synonyms(tmp_path / name)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidValueError, match=r"There is no file .*none\.tsv"):
        read_synonyms(tmp_path / "none.tsv")


@pytest.mark.parametrize("make", [SynonymReplacement, RandomInsertion])
def test_tables_given_by_hand_are_checked_and_copied(make):
    table = {"Car": ("automobile",)}
    assert make(table).table == {"car": ["automobile"]}
    table["Car"] = ("x",)
    assert make(table).table == {"car": ["x"]}
    with pytest.raises(InvalidValueError, match=r"The synonyms: 'a b' is not one word"):
        make({"a b": ["c"]})
    with pytest.raises(InvalidValueError, match=r"The synonyms are 'words\.tsv'; they must be a mapping"):
        make("words.tsv")
    with pytest.raises(InvalidValueError, match=r"The synonyms: 3 is not one word"):
        check_synonyms({3: ["c"]})
