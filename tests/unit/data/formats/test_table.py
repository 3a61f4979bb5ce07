"""What the columns of CSV files become: images, rows of numbers, classes."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from foveal.data import catalog
from foveal.data.formats import columns, delimited
from foveal.data.formats.table import open_csv
from foveal.data.source import Source
from foveal.errors import DataError, RecipeError
from foveal.recipe import DataPart

IRIS = """\
sepal length,sepal width,petal length,petal width,species
6.4,2.8,5.6,2.2,virginica
5.0,2.3,3.3,1.0,versicolor
4.9,3.1,1.5,0.1,setosa
4.9,3.1,1.5,,virginica
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file, and gives its path."""

    def write(content, name="some.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture(scope="module")
def digits():
    return catalog.open_data(DataPart(name="digits"))


def everything(source):
    return source.read(np.arange(len(source)))


def rows(source):
    return everything(source).images.reshape(len(source), -1).tolist()


def labels(source):
    return [source.classes[target] for target in source.targets]


def as_csv(source, order=(0, 1, 2), label_first=True):
    """Rows of pixels, flattened in the given order of axes."""
    lines = []
    for image, label in zip(source.images, labels(source), strict=True):
        fields = [label, *map(str, image.transpose(order).ravel())]
        lines.append(",".join(fields if label_first else fields[1:] + fields[:1]) + "\n")
    return "".join(lines)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


class TestFeatures:
    def test_of_the_iris_how_to_are_rows_of_four_numbers(self, write):
        source = open_csv(write(IRIS), label="species", defaults={"petal width": 1.5}).train
        assert isinstance(source, Source)
        images = everything(source).images
        assert images.dtype == np.float32
        assert source.image_shape == (1, 1, 4)
        expected = np.array(
            [[6.4, 2.8, 5.6, 2.2], [5, 2.3, 3.3, 1], [4.9, 3.1, 1.5, 0.1], [4.9, 3.1, 1.5, 1.5]], np.float32
        )
        assert np.array_equal(images.reshape(4, 4), expected)
        assert source.classes == ("setosa", "versicolor", "virginica")
        assert source.targets.tolist() == [2, 1, 0, 2]

    def test_are_all_columns_but_the_label_and_those_without_a_name(self, write):
        path = write(",a,label,b\n0,1,x,2\n1,3,y,4\n")
        assert rows(open_csv(path).train) == [[1, 2], [3, 4]]

    @pytest.mark.parametrize(
        ("features", "expected"),
        [
            (["b", "a1"], [[3, 1]]),
            ([3, 0], [[4, 1]]),
            ("a*", [[1, 2]]),
            ("*", [[1, 2, 3, 4]]),
            ([-2], [[4]]),
        ],
    )
    def test_are_chosen_by_name_by_number_or_by_pattern(self, write, features, expected):
        path = write("a1,a2,b,c,label\n1,2,3,4,x\n")
        assert rows(open_csv(path, features=features).train) == expected

    def test_keep_their_columns_when_another_file_has_them_in_another_order(self, write):
        write("a,b,label\n1,2,x\n", "train-1.csv")
        write("label,b,a\nx,20,10\n", "train-2.csv")
        path = write("b,label,a\n200,x,100\n", "test.csv")
        data = open_csv(path.parent)
        assert rows(data.train) == [[1, 2], [10, 20]]
        assert rows(data.test) == [[100, 200]]

    def test_of_many_columns_are_not_taken_for_pixels_if_they_are_asked_for(self, write):
        path = write(",".join(["0.5"] * 64) + ",x\n")
        assert open_csv(path, features="*", label=-1).train.image_shape == (1, 1, 64)

    def test_beyond_float32_are_refused(self, write):
        with pytest.raises(DataError, match=r"line 2: column 'a': 1e\+39 is beyond the range of float32"):
            open_csv(write("a,label\n1e39,x\n"))

    @pytest.mark.parametrize("field", ["", " ", "nan", "-inf", "1e999"])
    def test_that_are_missing_take_the_default_of_their_column(self, write, field):
        path = write(f"a,b,label\n1,{field},x\n3,4,y\n")
        assert rows(open_csv(path, defaults={"b": -1}).train) == [[1, -1], [3, 4]]
        with pytest.raises(
            DataError, match=r"some.csv line 2: column 'b': .*(empty|not finite): data.options.d"
        ):
            open_csv(path, defaults={"a": 0})

    def test_that_are_no_numbers_have_no_default(self, write):
        with pytest.raises(DataError, match=r"line 3: column 'b': 'two' is not a number$"):
            open_csv(write("a,b,label\n1,2,x\n1,two,x\n"), defaults={"b": 0})


class TestPixels:
    @pytest.mark.parametrize("label", [0, -1])
    def test_of_real_digits_are_those_that_were_written(self, write, digits, label):
        for part in ("train", "test"):
            path = write(as_csv(digits.part(part), label_first=label == 0), f"{part}.csv")
        data = open_csv(path.parent, label=label)
        for part in ("train", "test"):
            read, original = data.part(part), digits.part(part)
            assert np.array_equal(everything(read).images, original.images)
            assert np.array_equal(everything(read).targets, original.targets)
            assert read.fingerprint() == original.fingerprint()

    @pytest.mark.parametrize(("channels_first", "order"), [(False, (0, 1, 2)), (True, (2, 0, 1))])
    def test_of_colour_images_may_stand_in_either_order(self, write, channels_first, order):
        images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 3), np.uint8)
        text = "".join(",".join(map(str, image.transpose(order).ravel())) + ",a\n" for image in images)
        source = open_csv(write(text), label=-1, shape=[2, 4, 3], channels_first=channels_first).train
        assert np.array_equal(everything(source).images, images)

    def test_are_chosen_by_a_pattern(self, write):
        path = write("id,p0,p1,label\n7,1,2,x\n")
        source = open_csv(path, pixels="p*", shape=(1, 2, 1)).train
        assert everything(source).images.tolist() == [[[[1], [2]]]]
        assert source.images.dtype == np.uint8

    def test_may_be_written_as_numpy_writes_them(self, tmp_path):
        values = np.arange(130).reshape(2, 65)
        np.savetxt(tmp_path / "some.csv", values, delimiter=",")
        source = open_csv(tmp_path / "some.csv", label=0).train
        assert everything(source).images.reshape(2, 64).tolist() == values[:, 1:].tolist()
        assert source.classes == ("0", "65")

    @pytest.mark.parametrize("value", ["256", "-1", "0.5", "1e9"])
    def test_are_whole_numbers_from_0_to_255(self, write, value):
        path = write(f"a,b,label\n1,2,x\n3,{value},x\n")
        with pytest.raises(
            DataError, match=r"some.csv line 3: column 'b': \S+ is not a pixel, a whole number"
        ):
            open_csv(path, shape=[1, 2, 1])

    def test_that_do_not_make_up_the_shape_are_refused(self, write):
        path = write("a,b,label\n1,2,x\n")
        with pytest.raises(
            DataError, match=r"2 columns of pixels, but data.options.shape = \[1, 3, 1\] has 3"
        ):
            open_csv(path, shape=[1, 3, 1])
        with pytest.raises(RecipeError, match="2 pixels are no square image"):
            open_csv(path, pixels=["a", "b"])


class TestImageFiles:
    @pytest.fixture
    def table(self, write, digits):
        """A CSV file and the images that it names, in several ways."""
        images = digits.test.images[:6]
        folder = write(b"", "data/table/unused").parent
        paths = [
            "0.png",
            "sub folder/ä.png",
            "./2.png",
            "../3.png",
            str(folder.parent / "4.png"),
            "a,b.png",
        ]
        for path, image in zip(paths, images, strict=True):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(png(image))
        lines = [f'"{path}",{digits.test.targets[row]}' for row, path in enumerate(paths)]
        return write("\n".join(["file,label", *lines]), "data/table/some.csv")

    @pytest.mark.parametrize("hold", [True, False])
    def test_are_found_from_the_tables_folder(self, table, digits, hold):
        source = open_csv(table, hold=hold, classes=10).train
        images = everything(source).images
        if hold:
            assert np.array_equal(images, digits.test.images[:6])
        else:
            assert list(images.contents) == [png(image) for image in digits.test.images[:6]]
        assert source.targets.tolist() == digits.test.targets[:6].tolist()
        assert source.image_shape == (8, 8, 1)
        assert source.key(1) == f"{table} row 1 ({table.parent}/sub folder/ä.png)"

    def test_have_the_fingerprint_of_the_same_images_in_another_place(self, table, write):
        files = {path.name: path.read_bytes() for path in table.parent.parent.rglob("*.png")}
        for name, content in files.items():
            write(content, f"elsewhere/{name}")
        lines = [line.rsplit("/", 1)[-1].replace('"', "") for line in table.read_text().splitlines()]
        lines[-1] = '"a,b.png",' + lines[-1].rsplit(",", 1)[1]
        other = write("\n".join(lines), "elsewhere/some.csv")
        assert open_csv(other).train.fingerprint() == open_csv(table).train.fingerprint()

    @pytest.mark.parametrize(
        ("test", "shape"), [((8, 8, 3), (8, 8, 3)), ((8, 9, 1), None), ((8, 8, 1), (8, 8, 1))]
    )
    def test_of_parts_that_differ_are_said_to_be_of_one_shape_or_of_none(self, write, test, shape):
        for part, size in (("train", (8, 8, 1)), ("test", test)):
            write(png(np.zeros(size, np.uint8)), f"{part}.png")
            path = write(f"file,label\n{part}.png,x\n", f"{part}.csv")
        data = open_csv(path.parent)
        assert [part.image_shape for part in data.parts().values()] == [shape, shape]

    def test_that_are_missing_are_named_with_their_row(self, table):
        (table.parent / "2.png").unlink()
        (table.parent.parent / "3.png").unlink()
        with pytest.raises(
            DataError, match=r"some.csv row 2 \(\S+/2.png\): the image is missing \(and so are 1 more\)"
        ):
            open_csv(table)

    def test_that_are_no_images_are_reported_and_left_out(self, table):
        (table.parent / "2.png").write_text("no image")
        source = open_csv(table, hold=False).train
        assert len(source) == 5
        assert source.key(2).startswith(f"{table} row 3 (")
        ((key, reason),) = source.rejected
        assert key.startswith(f"{table} row 2 (")
        assert reason
        again = open_csv(table, hold=False).train
        assert again.rejected == source.rejected

    def test_of_a_table_that_changed_replace_its_index_and_of_another_column_have_their_own(self, table):
        def indexes():
            return sorted(path.name for path in table.parent.glob(".foveal-csv-*"))

        table.write_text("left,right,label\n0.png,2.png,x\n")
        kept = []
        for column in ("left", "right"):
            open_csv(table, image=column)
            kept.append(indexes())
            table.write_text(table.read_text() + "2.png,../3.png,y\n")
            assert len(open_csv(table, image=column).train) == len(kept) + 1
        assert [len(each) for each in kept] == [1, 2]
        assert indexes() == kept[1]

    def test_that_change_are_noticed(self, table, digits):
        source = open_csv(table, hold=False).train
        (table.parent / "0.png").write_bytes(png(255 - digits.test.images[0]))
        with pytest.raises(DataError, match=r"row 0 .*has changed since it was indexed"):
            source.read(np.array([0]))
        assert np.array_equal(everything(open_csv(table).train).images[0], 255 - digits.test.images[0])

    def test_that_vanish_are_an_error_of_their_row(self, table):
        source = open_csv(table, hold=False).train
        (table.parent / "0.png").unlink()
        with pytest.raises(DataError, match=r"some.csv row 0 \(.*0.png\): cannot be read"):
            source.read(np.array([0]))


class TestLabels:
    @pytest.mark.parametrize(
        ("written", "classes", "targets"),
        [
            (["2", "0", "1"], ("0", "1", "2"), [2, 0, 1]),
            (["10", "-3", "9"], ("-3", "9", "10"), [2, 0, 1]),
            (["1.0", "1", "01", "2e0"], ("1", "2"), [0, 0, 0, 1]),
            (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
            (["b", "5", "10"], ("10", "5", "b"), [2, 1, 0]),
            ([" b ", "b"], ("b",), [0, 0]),
        ],
    )
    def test_are_sorted_into_classes(self, write, written, classes, targets):
        source = open_csv(write("a,label\n" + "".join(f"1,{label}\n" for label in written))).train
        assert source.classes == classes
        assert source.targets.tolist() == targets

    @pytest.mark.parametrize(
        ("classes", "written", "names", "targets"),
        [
            (["dog", "cat"], ["cat", "dog"], ("dog", "cat"), [1, 0]),
            (["dog", "cat"], ["1", "0"], ("dog", "cat"), [1, 0]),
            (["1", "0"], ["1", "0"], ("1", "0"), [0, 1]),
            (["2", "1", "9"], ["1.0", "2"], ("2", "1", "9"), [1, 0]),
            (3, ["2", "0"], ("0", "1", "2"), [2, 0]),
        ],
    )
    def test_are_names_or_indices_of_the_classes_given(self, write, classes, written, names, targets):
        path = write("a,label\n" + "".join(f"1,{label}\n" for label in written))
        source = open_csv(path, classes=classes).train
        assert source.classes == names
        assert source.targets.tolist() == targets

    @pytest.mark.parametrize(
        ("classes", "written"), [(["dog", "cat"], "2"), (["dog"], "cow"), (2, "-1"), (2, "x")]
    )
    def test_that_are_none_of_the_classes_are_named_with_their_row(self, write, classes, written):
        path = write(f"a,label\n1,{written}\n")
        with pytest.raises(
            DataError, match=rf"some.csv row 0: label '{written}' is none of the \d classes: "
        ):
            open_csv(path, classes=classes)

    def test_of_the_test_part_must_be_known_from_training(self, write):
        write("a,label\n1,x\n2,y\n", "train.csv")
        path = write("a,label\n1,y\n2,z\n", "test.csv")
        with pytest.raises(DataError, match=r"test.csv row 1: label 'z' is none of the 2 classes: x, y"):
            open_csv(path.parent)

    def test_that_are_numbers_with_fractions_are_no_classes_unless_they_are_given(self, write):
        path = write("a,label\n1,0.5\n1,1\n")
        with pytest.raises(DataError, match=r"the label 0\.5 is neither a whole number nor a name"):
            open_csv(path)
        assert open_csv(path, classes=["0.5", "1"]).train.targets.tolist() == [0, 1]

    def test_of_which_there_are_too_many_are_taken_for_another_column(self, write, monkeypatch):
        monkeypatch.setattr(columns, "CLASS_LIMIT", 2)
        with pytest.raises(DataError, match=r"some.csv: 3 different labels: is this the label column\?"):
            open_csv(write("a,label\n1,x\n1,y\n1,z\n"))

    def test_that_are_empty_take_a_default_or_are_an_error(self, write):
        path = write("a,label\n1,x\n1,\n")
        with pytest.raises(DataError, match=r"some.csv line 3: column 'label' is empty"):
            open_csv(path)
        assert labels(open_csv(path, defaults={"label": "none"}).train) == ["x", "none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "lable"}, "has no column 'lable': did you mean 'label'?"),
        ({"label": 7}, "has no column 7: there are 3"),
        ({"features": ["a", "c"]}, "has no column 'c': known: a, b, label"),
        ({"pixels": "x*"}, "no column's name matches 'x*'"),
        ({"defaults": {"bb": 1}}, "has no column 'bb'"),
        ({"image": "path"}, "has no column 'path'"),
        ({"label": 0.5}, "column 0.5: a name or a number"),
        ({"label": True}, "column True: a name or a number"),
        ({"features": ["a", "label"]}, "the label, column 'label', is among the other columns"),
        ({"features": ["a"], "pixels": ["b"]}, "give one of pixels and features"),
        ({"features": ["a"], "shape": [1, 1, 1]}, "shape is for pixels: leave out features"),
        ({"shape": [1, 2]}, "height, width and channels"),
        ({"shape": [1, 2, 0]}, "each at least 1"),
        ({"defaults": {"a": "much"}}, "'much' is no finite number"),
        ({"defaults": {"a": float("nan")}}, "nan is no finite number"),
        ({"delimiter": "::"}, "one character"),
        ({"encoding": "utf-88"}, "encoding = 'utf-88'"),
        ({"encoding": "base64"}, "encoding = 'base64'"),
        ({"classes": ["x", "x"]}, "classes: 'x'"),
    ],
)
def test_options_that_cannot_be_meant_are_one_clear_error(write, options, message):
    with pytest.raises((DataError, RecipeError)) as error:
        open_csv(write("a,b,label\n1,2,x\n"), **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_label_is_asked_for_where_no_column_is_called_so(write):
    with pytest.raises(
        DataError, match=r"which column is the label\? It has the columns a, b: give data.opt"
    ):
        open_csv(write("a,b\n1,x\n"))
    with pytest.raises(DataError, match=r"which column is the label\? It has no header"):
        open_csv(write("1,2\n3,4\n"))


def test_a_name_that_two_columns_have_does_not_tell_them_apart(write):
    path = write("a,a,label\n1,2,x\n")
    assert rows(open_csv(path).train) == [[1, 2]]
    with pytest.raises(DataError, match="2 columns are named 'a': give a number"):
        open_csv(path, features=["a"])


def test_messages_about_wide_tables_are_short(write):
    names = [f"column {number}" for number in range(20_000)]
    path = write(",".join([*names, "label"]) + "\n" + ",".join(["1"] * 20_001) + "\n")
    assert open_csv(path, features="*").train.image_shape == (1, 1, 20_000)
    for options in ({"label": "other"}, {"label": "x" * 10_000}, {"features": ["x" * 10_000]}):
        with pytest.raises(DataError, match="has no column") as error:
            open_csv(path, **options)
        assert len(str(error.value)) < 600


def test_rows_are_named_by_their_own_file(write):
    write("a,label\n1,x\n2,x\n", "train1.csv")
    path = write("a,label\n3,x\n", "train2.csv")
    source = open_csv(path.parent).train
    assert [source.key(index) for index in (0, 1, 2)] == [
        f"{path.parent}/train1.csv row 0",
        f"{path.parent}/train1.csv row 1",
        f"{path.parent}/train2.csv row 0",
    ]


def test_progress_is_told_of_every_byte_of_the_file(write, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 50_000)
    told = []

    class Reporter:
        def start(self, name, total_bytes, done_bytes):
            told.append((name, total_bytes, done_bytes))

        def advance(self, n):
            told.append(n)

        def finish(self):
            told.append("finished")

    numbers = np.random.default_rng(0).normal(size=20_000).tolist()
    content = gzip.compress(("a,label\n" + "".join(f"{number},x\n" for number in numbers)).encode())
    open_csv(write(content, "some.csv.gz"), Reporter())
    assert told[0] == ("reading some.csv.gz", len(content), 0)
    assert told[-1] == "finished"
    assert sum(told[1:-1]) == len(content)
    assert len(told) > 3
