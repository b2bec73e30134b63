import csv
import sys
import types

import pytest

from lightning_tuning.data import read_table
from lightning_tuning.errors import InvalidValueError


@pytest.fixture
def write(tmp_path):
    """Writes bytes, or a text as UTF-8, to a file."""

    def make(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


@pytest.mark.parametrize(
    ("content", "text", "label"),
    [
        ("text,label\na,1\nb,2\n", ["a", "b"], ["1", "2"]),
        ("text,label\na,1\nb,2", ["a", "b"], ["1", "2"]),
        ("text,label\r\na,1\r\nb,2\r\n\r\n\n", ["a", "b"], ["1", "2"]),
        ("text,label\ra,1\rb,2\r", ["a", "b"], ["1", "2"]),
        ("\ufefftext,label\na,1\nb,2\n", ["a", "b"], ["1", "2"]),
        ('\ufeff"text",label\n"a, b","1"\n', ["a, b"], ["1"]),
        ('text,label\n"a ""b""\nc\r\nd",1\n', ['a "b"\nc\r\nd'], ["1"]),
        ("text,label\n a ,\n,2\n", [" a ", ""], ["", "2"]),
        ('text,label\nsaid "hi",1\n', ['said "hi"'], ["1"]),
        ("text,label\nä 我\u2028\x85,1\n", ["ä 我\u2028\x85"], ["1"]),
    ],
)
def test_values_are_those_of_the_file(write, content, text, label):
    table = read_table(write(content))
    assert table == {"text": text, "label": label}
    assert list(table) == ["text", "label"]


def test_the_name_gives_the_delimiter_and_an_argument_wins(write):
    assert read_table(write("a\tb\n1,2\t3\n", "x.TSV")) == {"a": ["1,2"], "b": ["3"]}
    assert read_table(write("a\tb\n1,2\t3\n", "x.tab")) == {"a": ["1,2"], "b": ["3"]}
    assert read_table(write("a;b\n1,2;3\n"), delimiter=";") == {"a": ["1,2"], "b": ["3"]}
    assert read_table(write("a|b\n1|3\n", "x.txt"), delimiter="|") == {"a": ["1"], "b": ["3"]}


def test_columns_are_chosen_in_order(write):
    table = read_table(write("a,b,c\n1,2,3\n4,5,6\n"), columns=["c", "a"], required=["b"])
    assert list(table.items()) == [("c", ["3", "6"]), ("a", ["1", "4"])]


def test_quotes_may_be_ordinary_characters(write):
    path = write('text\tlabel\n"Well" he said\t1\n"\t0\n', "a.tsv")
    assert read_table(path, quoted=False) == {"text": ['"Well" he said', '"'], "label": ["1", "0"]}
    with pytest.raises(InvalidValueError, match=r"a\.tsv, line 2 \(row 1\): .*write quoted=False"):
        read_table(path)


def test_long_fields_are_read_and_the_limit_of_python_stays(write):
    before = csv.field_size_limit()
    assert read_table(write("a\n" + "x" * 200_000 + "\n"))["a"] == ["x" * 200_000]
    assert csv.field_size_limit() == before
    with pytest.raises(InvalidValueError):
        read_table(write('a\n"b\n'))
    assert csv.field_size_limit() == before


def test_what_csv_writes_is_read(write):
    """A round trip of all fields of up to three of the characters that matter."""
    signs = ["a", " ", ",", '"', "\n", "\r", ""]
    fields = [x + y + z for x in signs for y in signs for z in signs]
    path = write("")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["x", "y"], *zip(fields, reversed(fields), strict=True)])
    assert read_table(path) == {"x": fields, "y": fields[::-1]}


@pytest.mark.parametrize(
    ("content", "kwargs", "message"),
    [
        (b"", {}, "a.csv is empty; its first line must name the columns."),
        (b"\xef\xbb\xbf\n", {}, "a.csv is empty"),
        (b"a,b\n", {}, "a.csv has a header, but no rows."),
        (b"a,b\n1,2,3\n", {}, "a.csv, line 2 (row 1): 3 fields, but the header has 2: 'a', 'b'."),
        (b"a,b\n1,2\n1\n", {}, "a.csv, line 3 (row 2): 1 fields, but the header has 2"),
        (b'a,b\n"1\n\n",2\n3\n', {}, "a.csv, line 5 (row 2): 1 fields"),
        (b"a,b\n1,2\n\n\n3,4\n", {}, "a.csv, line 3 (row 2): the line is empty"),
        (b"\na,b\n1,2\n", {}, "a.csv, line 1: the line is empty"),
        (b'a,b\n1,2\n3,"4\n5,6\n7,8\n', {}, "a.csv, line 3 (row 2): unexpected end of data"),
        (b'a,b\n1,"2"3\n', {}, "a.csv, line 2 (row 1): ',' expected after '\"'"),
        (b'a,"b\n', {}, "a.csv, line 1: unexpected end of data"),
        (b"a,b,a\n1,2,3\n", {}, "the header has 'a' more than once: 'a', 'b', 'a'."),
        (b"a,\n1,2\n", {}, "the header has a column without a name: 'a', ''."),
        (b"text,label\n1,2\n", {"columns": ["lable"]}, "no column 'lable'; did you mean 'label'? It has 'text', 'l"),
        (b"text,label\n1,2\n", {"required": ["zzz"]}, "has no column 'zzz'. It has 'text', 'label'."),
        (b"text;label\n1;2\n", {"columns": ["text"]}, "separated by ';'? Then write delimiter=';'."),
        (b"a,b\n1,2\n3,\n", {"required": ["b"]}, "a.csv, line 3 (row 2): 'b' is empty; each row needs one."),
        (b'a,b\n"1\n1",2\n3, \t\n', {"required": ["a", "b"]}, "a.csv, line 4 (row 2): 'b' is empty"),
        (b"a,b\n1,\xe4\n", {}, "a.csv, line 2: byte 6 of the file (from 0) is 0xe4, which is not UTF-8 text."),
        (b"a,\xc3\xa4\r\n1,2\r3,\xff", {}, "a.csv, line 3: byte 12 of the file (from 0) is 0xff"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "byte 0 of the file (from 0) is 0xff, which is not UTF-8 text. It looks "),
        ("a,b\n1,2\n".encode("utf-16-le"), {}, "byte 1 of the file (from 0) is 0x00, which is not UTF-8 text. It look"),
        ("\ufeffä,b\n1,\0\n".encode(), {}, "a.csv, line 2: byte 10 of the file (from 0) is 0x00"),
        (b"a,b\n1,2\n", {"columns": "a"}, "columns is 'a'; it must be a list of names: write ['a']."),
        (b"a,b\n1,2\n", {"required": "a"}, "required is 'a'; it must be a list"),
        (b"a,b\n1,2\n", {"delimiter": ", "}, "delimiter is ', '; it must be one character"),
        (b"a,b\n1,2\n", {"delimiter": '"'}, "delimiter is '\"'"),
        (b"a,b\n1,2\n", {"delimiter": ""}, "delimiter is ''"),
    ],
)
def test_tables_that_are_refused(write, content, kwargs, message):
    with pytest.raises(InvalidValueError) as caught:
        read_table(write(content), **kwargs)
    assert message in str(caught.value)


def test_files_that_are_none(write, tmp_path):
    with pytest.raises(InvalidValueError, match=r"There is no file .*/none\.csv\."):
        read_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InvalidValueError, match=r"folder\.csv cannot be read: Is a directory"):
        read_table(tmp_path / "folder.csv")
    with pytest.raises(InvalidValueError, match=r"ending '\.xlsx'; it must be one of \.csv, \.tsv, \.tab, \.parquet"):
        read_table(write("a,b\n", "a.xlsx"))


def test_parquet_without_pyarrow_says_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        InvalidValueError, match=r"a\.parquet: reading Parquet needs pyarrow\. Write `pip install pyarr"
    ):
        read_table(write(b"PAR1", "a.parquet"))


@pytest.fixture
def parquet(monkeypatch):
    """A stand-in for pyarrow, with the columns that a file holds."""

    def make(columns):
        def read(path):
            if isinstance(columns, Exception):
                raise columns
            values = [types.SimpleNamespace(to_pylist=lambda v=v: v) for v in columns.values()]
            return types.SimpleNamespace(column_names=list(columns), columns=values)

        monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", types.SimpleNamespace(read_table=read))

    return make


def test_parquet_becomes_strings(write, parquet):
    parquet({"text": ["a", None], "label": [3, 4], "x": [0.5, None]})
    path = write(b"", "a.pq")
    assert read_table(path) == {"text": ["a", ""], "label": ["3", "4"], "x": ["0.5", ""]}
    assert read_table(path, ["label"]) == {"label": ["3", "4"]}
    with pytest.raises(InvalidValueError, match=r"a\.pq, row 2: 'text' is empty"):
        read_table(path, required=["text"])
    with pytest.raises(InvalidValueError, match="no column 'lable'; did you mean 'label'"):
        read_table(path, ["lable"])


def test_parquet_that_is_refused(write, parquet, tmp_path):
    path = write(b"", "a.parquet")
    parquet({"image": [None, b"\x89PNG"]})
    with pytest.raises(InvalidValueError, match="column 'image' holds bytes; it must hold strings, numbers or dates"):
        read_table(path)
    parquet(ValueError("no magic bytes"))
    with pytest.raises(InvalidValueError, match=r"a\.parquet cannot be read as Parquet: no magic bytes"):
        read_table(path)
    with pytest.raises(InvalidValueError, match=r"There is no file .*none\.parquet"):
        read_table(tmp_path / "none.parquet")
