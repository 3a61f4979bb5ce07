"""Tables come back as they were written, whatever is in them."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.formats.delimited import Dialect, read_rows
from foveal.data.formats.parquet import open_parquet
from foveal.data.formats.table import open_csv

modest = settings(max_examples=40, deadline=None)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Blanks around a field are dropped; no text file holds a zero byte; Python's writer does not quote a lone \r.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)
names = texts.filter(lambda text: not math.isfinite(as_number(text)))


def as_number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def write_csv(path, rows, end="\n", quoting=csv.QUOTE_MINIMAL, delimiter=","):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=quoting, delimiter=delimiter).writerows(rows)
    path.write_bytes(text.getvalue().encode())


quotings = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])


@modest
@given(
    st.lists(st.tuples(floats, floats, names), min_size=1, max_size=20),
    st.sampled_from(["\n", "\r\n"]),
    quotings,
    st.sampled_from(",;\t|"),
    st.booleans(),
)
def test_numbers_and_classes_come_back_from_csv(folder, rows, end, quoting, delimiter, header):
    path = folder / "some.csv"
    write_csv(path, [("a", "b", "label")] * header + rows, end, quoting, delimiter)
    source = open_csv(path, header=header, label=2, features=[0, 1], delimiter=delimiter).train
    batch = source.read(np.arange(len(rows)))
    assert batch.images.reshape(-1, 2).tolist() == [[a, b] for a, b, _ in rows]
    assert [source.classes[target] for target in batch.targets] == [label for *_, label in rows]
    assert list(source.classes) == sorted({label for *_, label in rows})


@modest
@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(st.tuples(*[texts] * width), min_size=1, max_size=20).filter(
            lambda rows: width > 1 or all(row[0] for row in rows)
        )
    ),
    quotings,
)
def test_any_text_comes_back_from_csv(folder, rows, quoting):
    path = folder / "texts.csv"
    write_csv(path, rows, quoting=quoting)
    found = [
        row
        for block in read_rows(path, Dialect(header=False))
        for row in zip(*map(block.texts, range(len(rows[0]))), strict=True)
    ]
    assert found == rows


@modest
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.booleans(), st.data())
def test_pixels_come_back_from_csv(folder, height, width, channels, channels_first, quoted, data):
    size = height * width * channels
    flat = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=6))
    images = np.array([list(each) for each in flat], np.uint8).reshape(-1, height, width, channels)
    stored = images.transpose(0, 3, 1, 2) if channels_first else images
    path = folder / "pixels.csv"
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    write_csv(path, [["x", *image.ravel().tolist()] for image in stored], quoting=quoting)
    source = open_csv(
        path, header=False, label=0, shape=(height, width, channels), channels_first=channels_first
    ).train
    assert np.array_equal(source.read(np.arange(len(images))).images, images)


@modest
@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=20))
def test_whole_numbers_become_classes_sorted_by_value(folder, labels):
    path = folder / "labels.csv"
    write_csv(path, [("a", "label"), *((1, label) for label in labels)])
    source = open_csv(path).train
    assert source.classes == tuple(str(label) for label in sorted(set(labels)))
    assert [int(source.classes[target]) for target in source.targets] == labels


@modest
@given(
    st.lists(st.tuples(floats, st.integers(-(2**20), 2**20), names), min_size=1, max_size=20),
    st.integers(1, 7),
    st.sampled_from(["parquet", "stream", "file"]),
)
def test_numbers_and_classes_come_back_from_parquet_and_arrow(folder, rows, length, form):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table(dict(zip(("a", "b", "label"), map(list, zip(*rows, strict=True)), strict=True)))
    path = folder / "some.parquet"
    if form == "parquet":
        parquet.write_table(table, path, row_group_size=length)
    else:
        make = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=length)
    source = open_parquet(path).train
    batch = source.read(np.arange(len(rows)))
    assert batch.images.reshape(-1, 2).tolist() == [[a, b] for a, b, _ in rows]
    assert [source.classes[target] for target in batch.targets] == [label for *_, label in rows]
