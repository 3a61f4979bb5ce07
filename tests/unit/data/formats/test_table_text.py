"""CSV files as text: rows, fields, headers, encodings, compression; and whatever may be wrong with them."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from tests.privileges import as_ordinary_user

from foveal.data.formats import delimited
from foveal.data.formats.delimited import Dialect, read_rows
from foveal.data.formats.table import open_csv
from foveal.errors import DataError

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files in /proc")

GOOD = 'a,b,label\n1,2.5,"x, ""y"""\n3,4,z\n5,-6e-2,x\n'


def descriptors(path):
    """How many of this process's open files are ``path``."""
    return sum(os.path.realpath(each) == str(path) for each in Path("/proc/self/fd").iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.csv"


@pytest.fixture
def read(path):
    """Writes a file, and reads the table in it: its columns and all its fields."""

    def read(content, **options):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        blocks = list(read_rows(path, Dialect(**options), {"label"}))
        columns = blocks[0].columns
        width = range(len(columns.names))
        fields = [row for rows in blocks for row in zip(*map(rows.texts, width), strict=True)]
        return None if columns.numbered else columns.names, fields

    return read


@pytest.fixture
def refuse(path):
    """Writes a file, and gives the message of the error that opening it as a table of features makes."""

    def refuse(content, name=path.name, **options):
        (path.parent / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError) as error:
            open_csv(path.parent / name, **options)
        message = str(error.value)
        assert message.startswith(f"{path.parent}/")
        assert "\n" not in message
        assert len(message) < 400
        return message.removeprefix(f"{path.parent}/")

    return refuse


class TestFields:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_stand_in_lines_of_any_system_with_or_without_a_last_end(self, read, end):
        for last in ("", end, end * 2):
            text = f"a,label{end}1,x{end}{end}2,y{last}"
            assert read(text) == (("a", "label"), [("1", "x"), ("2", "y")])

    @pytest.mark.parametrize(
        ("written", "field"),
        [
            ('"x"', "x"),
            ('"x,y"', "x,y"),
            ('"x ""y"""', 'x "y"'),
            ('"two\nlines"', "two\nlines"),
            ('"two\r\nlines"', "two\r\nlines"),
            ('  "x"', "x"),
            (" x ", "x"),
            ('5" pipe', '5" pipe'),
            ("#x", "#x"),
            ("日本語", "日本語"),
            ("x\u2028y", "x\u2028y"),
        ],
    )
    def test_may_be_quoted_and_hold_anything(self, read, written, field):
        assert read(f"a,label\n1,{written}\n2,z\n")[1] == [("1", field), ("2", "z")]

    def test_are_divided_by_any_character(self, read, path):
        assert read("a;label\n1,5;x\n", delimiter=";")[1] == [("1,5", "x")]
        tabs = path.with_suffix(".tsv")
        tabs.write_text("a\tlabel\n1,5\tx\n")
        (rows,) = read_rows(tabs, Dialect(), {"label"})
        assert rows.columns.names == ("a", "label")

    def test_may_all_be_empty_in_a_row_of_tabs(self, path):
        path.write_text("a\tlabel\n1\tx\n\t\n")
        source = open_csv(path, delimiter="\t", defaults={"a": 2, "label": "y"}).train
        assert source.images.ravel().tolist() == [1, 2]
        assert source.classes == ("x", "y")

    def test_of_wide_rows_are_the_same_from_either_end(self, read):
        fields = [str(number) for number in range(50)]
        assert read(",".join(fields), header=False)[1] == [tuple(fields)]

    def test_are_numbers_alike_whether_read_at_once_or_one_by_one(self, path):
        written = ["1", "-2.5", " 3 ", "+4e-3", "0.1", "1e-310", "16777217", ".5", "5.", "1" * 40]
        columns = range(len(written))
        values = []
        for end in ("plain", '"quoted"'):
            path.write_text(",".join([*written, end]) + "\n")
            (rows,) = read_rows(path, Dialect(header=False))
            values.append(rows.numbers(columns, {}).tolist())
        assert values[0] == values[1] == [[float(field) for field in written]]

    def test_may_be_in_another_encoding(self, read):
        for encoding in ("latin-1", "utf-16", "utf-8-sig"):
            assert read("a,label\n1,Bär\n".encode(encoding), encoding=encoding)[1] == [("1", "Bär")]

    def test_begin_after_a_byte_order_mark(self, read):
        assert read("a,label\n1,x\n".encode("utf-8-sig"))[0] == ("a", "label")

    def test_may_be_compressed_whatever_the_file_is_called(self, read):
        assert read(gzip.compress(b"a,label\n1,x\n"))[1] == [("1", "x")]

    def test_of_many_blocks_are_all_there_in_order(self, read, monkeypatch):
        monkeypatch.setattr(delimited, "_BLOCK", 100)
        rows = [(str(number), f"x{number}" * (number % 7 + 1)) for number in range(500)]
        text = "a,label\n" + "".join(f'{a},"{b}"\n' if int(a) % 3 else f"{a},{b}\n" for a, b in rows)
        assert read(text)[1] == rows


class TestHeader:
    @pytest.mark.parametrize(
        ("text", "header"),
        [
            ("a,b\n1,2\n", True),
            ("a,b\nx,2\n", True),
            ("1,2\n3,4\n", False),
            ("a,1\nb,2\n", False),
            ("a,b\nc,d\n", False),
            ("a,b\n", False),
            ("0,1,label\n5,6,x\n", True),
            ("A,Label\nx,y\n", True),
            ("120,4,setosa\n6.4,2.8,2\n", False),
        ],
    )
    def test_is_known_by_a_usual_name_or_by_having_no_number_above_one(self, read, text, header):
        names, rows = read(text)
        assert (names is not None) == header
        assert len(rows) == text.count("\n") - header

    @pytest.mark.parametrize("header", [True, False])
    def test_is_there_or_not_as_the_user_says(self, read, header):
        for text in ("a,b\n1,2\n", "1,2\n3,4\n"):
            names, rows = read(text, header=header)
            assert (names is not None) == header
            assert len(rows) == 2 - header

    def test_is_known_by_a_name_that_the_options_use(self, path):
        path.write_text("7,8,9\n1,2,x\n")
        assert open_csv(path, label=2).train.classes == ("9", "x")
        path.write_text("7,8,kind\n1,2,x\n")
        assert open_csv(path, label="kind").train.classes == ("x",)

    def test_that_is_not_there_is_said_where_a_name_is_not_found(self, refuse):
        assert "has no column 'kind' (it has no header; `header = true` if it does)" in refuse(
            "1,2,x\n", label="kind"
        )

    def test_that_was_taken_for_data_is_suspected(self, refuse):
        message = refuse("4,b,setosa\n1,2,3\n", label=-1)
        assert message.startswith(
            "some.csv line 1: column 1: 'b' is not a number (if this line is a header: "
        )


class TestMistakes:
    @pytest.mark.parametrize("row", ["1,2", "1,2,x,4", "1,2,x,", '1,"2,x"'])
    def test_of_ragged_rows_name_the_line(self, refuse, row):
        expected = len(next(csv.reader([row])))
        message = refuse(f'a,b,label\n1,2,"x\ny"\n\n{row}\n')
        assert message == f"some.csv line 5: has {expected} fields instead of 3"

    @pytest.mark.parametrize("row", ['1,2,"x', '1,2,"x"y', '1,"2"",x'])
    def test_of_quotes_name_the_line_where_the_row_begins(self, refuse, row):
        assert refuse(f"a,b,label\n{row}\n1,2,x\n1,2,x\n").startswith(
            "some.csv line 2: the quotes in it are wr"
        )

    def test_of_the_encoding_name_the_line(self, refuse):
        assert "some.csv line 3: is no text in utf-8" in refuse(b"a,label\n1,x\n2,B\xe4r\n3,y\n")
        assert "line 1: is no text in ascii" in refuse("ä,label\n1,x\n", encoding="ascii")
        assert "is no text in utf-16" in refuse("a,label\n1,x\n".encode("utf-16")[:-1], encoding="utf-16")
        assert "after line" in refuse(b"\xff\xfe\x00\xd8" * 10, encoding="utf-16")

    def test_of_binary_files_name_the_line(self, refuse):
        assert "some.csv line 2: holds a zero byte: this is no text" in refuse(b"a,label\n1,\0\n")
        assert "line 1: " in refuse(np.random.default_rng(0).bytes(10_000))

    @pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n", gzip.compress(b"")])
    def test_of_files_without_rows_are_said(self, refuse, content):
        assert refuse(content) == "some.csv: is empty"

    def test_of_files_with_a_header_alone_are_said(self, refuse):
        assert refuse("a,label\n\n") == "some.csv: has a header and no rows"

    @pytest.mark.parametrize(
        "content",
        [b"1," * 400, b'"' + b"x\n" * 400, b'1,"' + b"x" * 400, b"a,label\n" + b"9" * 400 + b",x\n"],
        ids=["fields", "lines in quotes", "a field in quotes", "a number"],
    )
    def test_rows_without_an_end_are_not_read_to_it(self, refuse, content, monkeypatch):
        monkeypatch.setattr(delimited, "ROW_LIMIT", 300)
        assert "more than 300 characters" in refuse(content)

    def test_fields_beyond_the_limit_of_pythons_reader_are_an_error(self, refuse):
        assert "field larger than field limit" in refuse('a,label\n1,"' + "x" * 200_000 + '"\n')

    def test_compressed_files_are_not_unpacked_without_end(self, refuse, monkeypatch):
        monkeypatch.setattr(delimited, "UNPACKED_LIMIT", 10_000)
        bomb = gzip.compress(b"a,label\n" + b"1,x\n" * 10_000)
        assert "the file unpacks to more than" in refuse(bomb, "some.csv.gz")

    def test_a_file_cut_off_at_any_byte_is_read_or_refused(self, path, refuse):
        for content in (GOOD.encode(), gzip.compress(GOOD.encode())):
            read = 0
            for length in range(len(content)):
                path.write_bytes(content[:length])
                try:
                    open_csv(path)
                    read += 1
                except DataError:
                    refuse(content[:length])
            packed = content.startswith(b"\x1f\x8b")
            assert read == 0 if packed else 0 < read < len(content)

    @pytest.mark.parametrize("packed", [False, True])
    def test_a_flipped_bit_never_ends_in_anything_but_one_line(self, path, refuse, packed):
        whole = gzip.compress(GOOD.encode(), mtime=0) if packed else GOOD.encode()
        path.write_bytes(whole)
        expected = open_csv(path).train.fingerprint()
        for place in range(10 if packed else 0, len(whole)):  # in a gzip header are bytes that mean nothing
            content = bytearray(whole)
            content[place] ^= 1 << place % 8
            path.write_bytes(content)
            try:
                found = open_csv(path).train.fingerprint()
            except DataError:
                refuse(bytes(content))
            else:
                assert not packed or found == expected  # gzip has a checksum


class TestFiles:
    def test_that_are_missing_or_folders_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"nothing\.csv"):
            open_csv(tmp_path / "nothing.csv")
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(DataError, match=r"folder\.csv"):
            open_csv(tmp_path / "folder.csv")

    def test_that_may_not_be_read_are_refused(self, path):
        path.write_text(GOOD)
        path.chmod(0)
        with as_ordinary_user(), pytest.raises(DataError, match="cannot be opened: Permission denied"):
            list(read_rows(path, Dialect()))

    def test_that_change_while_they_are_read_are_refused(self, path, monkeypatch):
        monkeypatch.setattr(delimited, "_BLOCK", 10)
        path.write_text("a,label\n" + "1,x\n" * 100)
        rows = read_rows(path, Dialect(), {"label"})
        next(rows)
        path.write_text("a,label\n" + "1,y\n" * 90)
        os.utime(path, ns=(0, 0))
        with pytest.raises(DataError, match="has changed while it was read"):
            list(rows)

    @needs_proc
    @pytest.mark.parametrize("wrong", ["1,2,x,9", "1,two,x"], ids=["row", "field"])
    def test_are_closed_when_reading_breaks_off(self, path, wrong):
        path.write_text(f"{GOOD}{wrong}\n")
        with pytest.raises(DataError) as error:
            open_csv(path)
        assert "line 5" in str(error.value)
        assert descriptors(path) == 0
