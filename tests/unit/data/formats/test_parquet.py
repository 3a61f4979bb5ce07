"""Parquet and Arrow files: images and numbers in them, laid out as Hugging Face's data sets or otherwise."""

from __future__ import annotations

import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest
from PIL import Image

from foveal.data import catalog
from foveal.data.formats import arrow_files
from foveal.data.formats.arrow_files import GroupCache, open_table
from foveal.data.formats.parquet import open_parquet
from foveal.data.source import Source
from foveal.errors import DataError, RecipeError
from foveal.recipe import DataPart

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FORMATS = ["parquet", "stream", "file"]


def store(table, path, form="parquet", rows=5):
    """Writes a table, so many rows in a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        parquet.write_table(table, path, row_group_size=rows)
        return path
    path = path.with_suffix(".arrow")
    writer = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, writer(file, table.schema) as opened:
        opened.write_table(table, max_chunksize=rows)
    return path


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()


def hugging_face(source, start=0, stop=None):
    """A table as Hugging Face's library writes it."""
    images = [
        {"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(source.images[start:stop])
    ]
    label = {"names": list(source.classes), "_type": "ClassLabel"}
    described = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    table = pa.table({"image": images, "label": source.targets[start:stop]})
    return table.replace_schema_metadata({"huggingface": json.dumps(described)})


def everything(source):
    return source.read(np.arange(len(source)))


@pytest.fixture(scope="module")
def digits():
    return catalog.open_data(DataPart(name="digits"))


@pytest.fixture
def images(digits):
    return digits.test.images[:12]


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, digits, tmp_path_factory):
    """The layout of a data set on the Hugging Face Hub: shards in a folder, parts by their names."""
    folder = tmp_path_factory.mktemp("hub") / "data"
    halfway = len(digits.train) // 2
    for part, table in {
        "train-00000-of-00002-0a1b": hugging_face(digits.train, 0, halfway),
        "train-00001-of-00002-2c3d": hugging_face(digits.train, halfway),
        "validation-00000-of-00001": hugging_face(digits.validation),
        "test-00000-of-00001": hugging_face(digits.test),
    }.items():
        store(table, folder / f"{part}.parquet", request.param, rows=100)
    return folder


class TestRealDigits:
    @pytest.mark.parametrize("hold", [True, False])
    def test_are_those_that_were_written(self, folder, digits, hold):
        data = open_parquet(folder.parent, hold=hold)
        for name, original in digits.parts().items():
            part = data.part(name)
            assert isinstance(part, Source)
            assert part.classes == original.classes
            assert part.image_shape == original.image_shape
            order = np.random.default_rng(0).permutation(len(original))
            batch = part.read(order)
            assert np.array_equal(batch.targets, original.targets[order])
            if hold:
                assert np.array_equal(batch.images, original.images[order])
            else:
                assert list(batch.images.contents) == [png(image) for image in original.images[order]]

    def test_are_the_same_from_many_threads_with_a_cache_of_one_group(self, folder, digits, monkeypatch):
        monkeypatch.setattr(GroupCache.__init__, "__defaults__", (1,))
        source = open_parquet(folder, hold=False).train
        orders = [np.random.default_rng(seed).integers(0, len(source), 30) for seed in range(16)]
        with ThreadPoolExecutor(8) as pool:
            for order, batch in zip(orders, pool.map(source.read, orders), strict=True):
                assert list(batch.images.contents) == [png(image) for image in digits.train.images[order]]

    def test_are_named_by_file_and_row(self, folder, digits):
        source = open_parquet(folder).train
        halfway = len(digits.train) // 2
        first, second = sorted(folder.glob("train-*"))
        assert source.key(halfway - 1) == f"{first} row {halfway - 1}"
        assert source.key(halfway) == f"{second} row 0"

    def test_are_indexed_once(self, folder, monkeypatch):
        first = open_parquet(folder, hold=False).train

        def fail(*_):
            raise AssertionError("the file is read again")

        monkeypatch.setattr(arrow_files._ParquetFile, "groups", fail)
        monkeypatch.setattr(arrow_files._ArrowFile, "groups", fail)
        again = open_parquet(folder, hold=False).train
        assert again.fingerprint() == first.fingerprint()
        assert again.key(500) == first.key(500)
        assert again.read(np.array([500])).images.contents == first.read(np.array([500])).images.contents


class TestImages:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "bytes alone", "no paths"])
    def test_are_bytes_in_any_of_the_usual_columns(self, tmp_path, images, form, kind):
        contents = [png(image) for image in images]
        column = {
            "binary": lambda: pa.array(contents, pa.binary()),
            "large_binary": lambda: pa.array(contents, pa.large_binary()),
            "struct": lambda: pa.array([{"path": "x.png", "bytes": content} for content in contents]),
            "bytes alone": lambda: pa.array([{"bytes": content} for content in contents]),
            "no paths": lambda: pa.array([{"bytes": content, "path": None} for content in contents]),
        }[kind]()
        table = pa.table({"id": range(12), "picture": column, "label": ["a", "b"] * 6})
        source = open_parquet(store(table, tmp_path / "some.parquet", form)).train
        assert np.array_equal(everything(source).images, images)
        assert source.classes == ("a", "b")
        assert source.targets.tolist() == [0, 1] * 6

    @pytest.mark.parametrize("kind", ["struct", "text"])
    def test_may_be_files_beside_the_table(self, tmp_path, images, kind):
        (tmp_path / "sub").mkdir()
        paths = ["0.png", "sub/1.png", str(tmp_path / "2.png")]
        for path, image in zip(paths, images, strict=False):
            (tmp_path / path).write_bytes(png(image))
        column = [{"bytes": None, "path": path} for path in paths]
        if kind == "struct":
            column = pa.array(column, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        else:
            column = pa.array(paths)
        path = store(pa.table({"image": column, "label": [0, 1, 2]}), tmp_path / "some.parquet")
        assert np.array_equal(everything(open_parquet(path).train).images, images[:3])

    def test_that_are_none_are_reported_and_left_out(self, tmp_path, images):
        column = [{"bytes": png(image), "path": None} for image in images]
        column[3]["bytes"], column[7]["bytes"] = b"no image", None
        column[8] = {"bytes": None, "path": "missing.png"}
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({"image": pa.array(column, kind), "label": range(12)})
        path = store(table, tmp_path / "some.parquet")
        source = open_parquet(path, hold=False).train
        assert [key for key, _ in source.rejected] == [
            f"{tmp_path}/some.parquet row {row}" for row in (3, 7, 8)
        ]
        assert source.rejected[1][1] == "has no image"
        assert open_parquet(path, hold=False).train.rejected == source.rejected
        assert source.targets.tolist() == [0, 1, 2, 4, 5, 6, 9, 10, 11]
        assert source.key(3) == f"{tmp_path}/some.parquet row 4"
        assert source.read(np.array([3])).images.contents == (png(images[4]),)

    @pytest.mark.parametrize("form", FORMATS)
    def test_in_a_file_that_changes_are_an_error(self, tmp_path, digits, form):
        path = store(hugging_face(digits.test, 0, 12), tmp_path / "some.parquet", form)
        source = open_parquet(path, hold=False).train
        store(hugging_face(digits.test, 20, 32), tmp_path / "some.parquet", form)
        os.utime(path, ns=(0, 0))
        with pytest.raises(DataError, match=r"some\.(parquet|arrow): has changed since it was opened"):
            source.read(np.array([0]))
        path.unlink()
        with pytest.raises(DataError, match=r"some\.(parquet|arrow)"):
            source.read(np.array([0]))

    def test_of_which_there_are_two_columns_are_asked_for(self, tmp_path, images):
        contents = [png(image) for image in images]
        table = pa.table({"left": contents, "right": contents[::-1], "label": range(12)})
        path = store(table, tmp_path / "some.parquet")
        with pytest.raises(DataError, match="which column is the image, left or right"):
            open_parquet(path)
        assert np.array_equal(everything(open_parquet(path, image="right").train).images, images[::-1])

    def test_that_unpack_beyond_all_measure_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(arrow_files, "GROUP_LIMIT", 1 << 20)
        table = pa.table({"image": [b"x" * 100_000] * 1000, "label": [0] * 1000})
        path = store(table, tmp_path / "some.parquet", rows=1000)
        assert path.stat().st_size < 100_000
        with pytest.raises(DataError, match="row group 0: more than 0 GiB: write it with smaller row groups"):
            open_parquet(path)


class TestNumbers:
    @pytest.mark.parametrize("form", FORMATS)
    def test_are_rows_of_features(self, tmp_path, form):
        table = pa.table(
            {
                "a": [1.5, 2, 3],
                "name": ["x", "y", "z"],
                "b": pa.array([1, 2, 3], pa.int8()),
                "label": [7, 5, 7],
                "c": [True, False, True],
            }
        )
        source = open_parquet(store(table, tmp_path / "some.parquet", form, rows=2)).train
        assert source.image_shape == (1, 1, 3)
        assert everything(source).images.dtype == np.float32
        assert everything(source).images.reshape(3, 3).tolist() == [[1.5, 1, 1], [2, 2, 0], [3, 3, 1]]
        assert source.classes == ("5", "7")
        assert source.targets.tolist() == [1, 0, 1]
        assert source.key(2).endswith(" row 2")

    def test_are_chosen_by_name_number_or_pattern(self, tmp_path):
        path = store(
            pa.table({"a1": [1.0], "a2": [2.0], "b": [3.0], "label": ["x"]}), tmp_path / "some.parquet"
        )
        for features, expected in ((["b", "a1"], [3, 1]), ([1], [2]), ("a*", [1, 2])):
            assert everything(open_parquet(path, features=features).train).images.ravel().tolist() == expected

    @pytest.mark.parametrize(
        ("column", "reason"),
        [
            ([1.0, 2.0, None], "row 2: column 'a' is empty"),
            ([1.0, float("nan"), 2.0], "row 1: column 'a': nan is not finite in float32"),
            ([1.0, 2.0, 1e39], "row 2: column 'a': 1e+39 is not finite in float32"),
            (["1", "2", "3"], "row 0: column 'a' holds string, and no numbers"),
        ],
    )
    def test_that_are_none_are_named_with_their_row(self, tmp_path, column, reason):
        path = store(pa.table({"a": column, "label": [0, 0, 0]}), tmp_path / "some.parquet", rows=2)
        with pytest.raises(DataError) as error:
            open_parquet(path, features=["a"])
        assert str(error.value) == f"{path} {reason}"


class TestLabels:
    @pytest.mark.parametrize(
        ("column", "classes", "targets"),
        [
            (pa.array([3, 1, 3], pa.uint8()), ("1", "3"), [1, 0, 1]),
            (pa.array(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
            (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
            (pa.array([2.0, 10.0, 2.0]), ("2", "10"), [0, 1, 0]),
            (pa.array([True, False, True]), ("false", "true"), [1, 0, 1]),
        ],
    )
    def test_of_any_type_are_sorted_into_classes(self, tmp_path, column, classes, targets):
        source = open_parquet(
            store(pa.table({"a": [1.0] * 3, "label": column}), tmp_path / "x.parquet")
        ).train
        assert source.classes == classes
        assert source.targets.tolist() == targets

    def test_are_named_by_the_user_before_the_file(self, tmp_path, digits):
        path = store(hugging_face(digits.test), tmp_path / "x.parquet")
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        assert open_parquet(path, classes=names).train.classes == tuple(names)

    def test_are_found_as_the_only_class_label_whatever_its_name(self, tmp_path, digits):
        table = hugging_face(digits.test, 0, 9)
        metadata = {b"huggingface": table.schema.metadata[b"huggingface"].replace(b'"label"', b'"digit"')}
        table = table.rename_columns(["image", "digit"]).replace_schema_metadata(metadata)
        assert open_parquet(store(table, tmp_path / "x.parquet")).train.classes == digits.test.classes

    @pytest.mark.parametrize("label", [-1, 10])
    def test_beyond_the_names_are_named_with_their_row(self, tmp_path, digits, label):
        table = hugging_face(digits.test, 0, 3)
        table = table.set_column(1, "label", pa.array([0, label, 1]))
        with pytest.raises(DataError, match=rf"x.parquet row 1: label '{label}' is none of the 10 classes"):
            open_parquet(store(table, tmp_path / "x.parquet"))

    @pytest.mark.parametrize(
        ("column", "reason"), [([0, None], "row 1: column 'label' is empty"), ([[0], [1]], "list<")]
    )
    def test_that_are_none_are_refused(self, tmp_path, column, reason):
        with pytest.raises(DataError, match=reason):
            open_parquet(store(pa.table({"a": [1.0, 2.0], "label": column}), tmp_path / "x.parquet"))

    @pytest.mark.parametrize(
        "metadata", [b"{", b"[]", b'{"info": 1}', b"[" * 100_000, b'{"info": {"features": []}}']
    )
    def test_do_not_depend_on_damaged_metadata(self, tmp_path, metadata):
        table = pa.table({"a": [1.0], "label": ["x"]}).replace_schema_metadata({"huggingface": metadata})
        assert open_parquet(store(table, tmp_path / "x.parquet")).train.classes == ("x",)


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label": "lable"}, "has no column 'lable': did you mean 'label'?"),
            ({"image": "img"}, "has no column 'img'"),
            ({"image": "a"}, "column 'a' holds double, and no images"),
            ({"features": ["a", "label"]}, "the label, column 'label', is among the features"),
            ({"image": "a", "features": ["a"]}, "give one of image and features"),
            ({"features": "x*"}, "no column's name matches 'x*'"),
        ],
    )
    def test_of_options_are_one_clear_error(self, tmp_path, options, message):
        path = store(pa.table({"a": [1.0], "label": [0]}), tmp_path / "x.parquet")
        with pytest.raises((DataError, RecipeError)) as error:
            open_parquet(path, **options)
        assert message in str(error.value)

    def test_tables_without_images_or_numbers_are_refused(self, tmp_path):
        path = store(pa.table({"a": ["x"], "label": [0]}), tmp_path / "x.parquet")
        with pytest.raises(DataError, match="has no column of images or of numbers: a, label"):
            open_parquet(path)

    def test_tables_without_rows_are_refused(self, tmp_path):
        for form in FORMATS:
            table = pa.table({"a": pa.array([], pa.float64()), "label": pa.array([], pa.int64())})
            with pytest.raises(DataError, match="has no examples"):
                open_parquet(store(table, tmp_path / "x.parquet", form))

    def test_files_of_other_columns_than_the_first_are_named(self, tmp_path):
        store(pa.table({"a": [1.0], "label": [0]}), tmp_path / "train.parquet")
        store(pa.table({"b": [1.0], "label": [0]}), tmp_path / "test.parquet")
        with pytest.raises(DataError, match=r"test.parquet: has no column 'a'"):
            open_parquet(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"", b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"not a table", b"PK\3\4"]
    )
    def test_files_of_another_kind_are_refused(self, tmp_path, content):
        path = tmp_path / "x.parquet"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.parquet: (is empty|is neither|cannot be read)"):
            open_parquet(path)

    def test_a_missing_library_is_asked_for(self, tmp_path, monkeypatch):
        path = store(pa.table({"a": [1.0], "label": [0]}), tmp_path / "x.parquet")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(DataError, match=r"pip install 'foveal\[parquet\]'"):
            open_parquet(path)

    def test_more_rows_than_bytes_could_hold_are_refused(self, tmp_path):
        table = pa.table({"a": pa.array([1.0] * 3_000_000), "label": pa.array([0] * 3_000_000, pa.int8())})
        with pytest.raises(DataError, match=r"3,000,000 rows in [\d,]+ bytes cannot be data"):
            open_parquet(store(table, tmp_path / "x.parquet", rows=3_000_000))

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_file_cut_off_at_any_byte_is_refused(self, tmp_path, images, form):
        table = pa.table({"image": [png(image) for image in images[:2]], "label": ["a", "b"]})
        path = store(table, tmp_path / "x.parquet", form, rows=1)
        whole = path.read_bytes()
        for length in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"x\.(parquet|arrow)") as error:
                open_parquet(path, hold=False)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_flipped_byte_never_ends_in_anything_but_one_line(self, tmp_path, images, form):
        table = pa.table({"image": [png(image) for image in images[:2]], "label": ["a", "b"], "n": [1, 2]})
        path = store(table, tmp_path / "x.parquet", form, rows=1)
        whole = path.read_bytes()
        refused = 0
        for place in range(0, len(whole), len(whole) // 80):
            content = bytearray(whole)
            content[place] ^= 1 << place % 8
            path.write_bytes(content)
            try:
                everything(open_parquet(path, hold=False).train)
            except DataError as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017 - not all are refused: there are no checksums
        assert refused > 5

    def test_pages_with_checksums_report_every_flipped_bit(self, tmp_path):
        path = tmp_path / "x.parquet"
        table = pa.table({"a": np.arange(100.0), "label": [0] * 100})
        parquet.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
        whole = path.read_bytes()
        start = whole.index(np.arange(100.0).tobytes())
        for place in range(start, start + 800, 37):
            content = bytearray(whole)
            content[place] ^= 1
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"x\.parquet row group 0: cannot be read: .*CRC"):
                open_parquet(path)


class TestGroupCache:
    def table(self, rows):
        return pa.table({"a": np.zeros(rows)})

    def test_loads_a_group_once_for_all_threads_that_want_it(self):
        cache, barrier, loaded = GroupCache(), Barrier(8), []

        def load():
            loaded.append(1)
            return self.table(3)

        def get():
            barrier.wait()
            return cache.get("a", load)

        with ThreadPoolExecutor(8) as pool:
            tables = [future.result() for future in [pool.submit(get) for _ in range(8)]]
        assert len(loaded) == 1
        assert all(table is tables[0] for table in tables)

    def test_forgets_what_was_used_longest_ago(self):
        cache, loaded = GroupCache(limit=200), []

        def get(name):
            return cache.get(name, lambda: (loaded.append(name), self.table(10))[1])  # 80 bytes

        for name in "abacabcb":
            get(name)
        assert "".join(loaded) == "abcbc"

    def test_keeps_the_last_group_however_large(self):
        cache, loaded = GroupCache(limit=1), []
        for name in "aabba":
            cache.get(name, lambda name=name: (loaded.append(name), self.table(10))[1])
        assert "".join(loaded) == "aba"

    def test_gives_a_failure_to_all_that_waited_and_then_tries_again(self):
        cache, begun, go = GroupCache(), Event(), Event()

        def fail():
            begun.set()
            go.wait(10)
            raise DataError("damaged")

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(cache.get, "a", fail)
            begun.wait(10)
            second = pool.submit(cache.get, "a", fail)
            go.set()
            for future in (first, second):
                with pytest.raises(DataError, match="damaged"):
                    future.result()
        assert cache.get("a", lambda: self.table(1)).num_rows == 1


def test_streams_with_dictionaries_are_referred_to_parquet(tmp_path):
    table = pa.table({"a": [1.0], "label": pa.array(["x"]).dictionary_encode()})
    file = open_table(store(table, tmp_path / "x", "stream"))
    with pytest.raises(
        DataError, match=r"x\.arrow record batch at byte \d+: is a dictionary: save the table as"
    ):
        list(file.groups(["a"]))
