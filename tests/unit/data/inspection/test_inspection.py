from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from foveal.data.formats.folder import open_folder
from foveal.data.inspection.inspection import inspect
from foveal.data.source import ArraySource, DataSet

CLASSES = ("cat", "dog", "owl")


def pictures(count, shape=(20, 24, 3), seed=0):
    """Images with large shapes, all different."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 5, 6, shape[2]), np.uint8)
    return np.ascontiguousarray(np.kron(small, np.ones((1, 4, 4, 1), np.uint8))[:, : shape[0], : shape[1]])


def source(images, targets=None, name="some", classes=CLASSES):
    targets = np.arange(len(images)) % len(classes) if targets is None else np.asarray(targets)
    return ArraySource(images, targets, classes, name)


def only(repeats):
    """The keys of the only group."""
    (group,) = repeats.first
    return [example["key"] for example in group]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return file.getvalue()


class TestCounts:
    def test_are_those_of_each_class_and_part(self):
        data = DataSet(
            source(pictures(9), [0] * 6 + [1] * 2 + [2]), test=source(pictures(4, seed=1), [1] * 4)
        )
        found = inspect(data)
        assert found.parts == {"train": 9, "test": 4}
        assert found.examined == 13
        assert {part: counts.tolist() for part, counts in found.counts.items()} == {
            "train": [6, 2, 1],
            "test": [0, 4, 0],
        }
        assert found.imbalance == 6
        assert found.report()["classes"][1] == {"label": "dog", "train": 2, "test": 4}

    def test_of_a_class_without_examples_have_no_ratio(self):
        assert inspect(DataSet(source(pictures(4), [0, 0, 1, 1]))).imbalance is None


class TestStatistics:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_are_those_of_all_pixels_of_the_train_part(self, channels):
        images = np.random.default_rng(3).integers(0, 200, (3000, 7, 9, channels), np.uint8)
        images[..., 0] //= 3
        found = inspect(DataSet(source(images), test=source(images[:5] + np.uint8(50))), threads=3).statistics
        values = images.reshape(-1, channels) / 255
        np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(found.deviation, values.std(axis=0), rtol=1e-10)
        np.testing.assert_allclose(found.low, values.min(axis=0))
        np.testing.assert_allclose(found.high, values.max(axis=0))

    def test_of_images_larger_than_a_strip_are_exact(self):
        image = np.random.default_rng(0).integers(0, 256, (1, 3000, 1500, 1), np.uint8)
        found = inspect(DataSet(source(image, [0], classes=("a",)))).statistics
        assert found.mean[0] == pytest.approx(image.mean() / 255, rel=1e-12)
        assert found.deviation[0] == pytest.approx(image.std() / 255, rel=1e-10)

    def test_of_rows_of_numbers_are_those_of_each_column(self):
        rows = np.random.default_rng(1).normal(1e6, [1, 0, 500], (5000, 3)).astype(np.float32)
        found = inspect(DataSet(source(rows.reshape(-1, 1, 1, 3))), threads=2)
        assert found.numeric
        exact = rows.astype(np.float64)
        np.testing.assert_allclose(found.statistics.mean, exact.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.statistics.deviation, exact.std(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.statistics.low, exact.min(axis=0))
        np.testing.assert_allclose(found.statistics.high, exact.max(axis=0))

    def test_leave_out_rows_with_values_that_are_not_finite(self):
        rows = np.ones((6, 1, 1, 2), np.float32)
        rows[2, 0, 0, 1] = np.nan
        found = inspect(DataSet(source(rows)))
        assert found.statistics.mean.tolist() == [1, 1]
        assert [each.key for each in found.corrupt] == ["some record 2"]
        assert found.examined == 6


@pytest.fixture
def folder(tmp_path):
    """Writes image files; an array as PNG, bytes as they are."""

    def write(**files):
        for name, content in files.items():
            path = (tmp_path / "data" / name.replace("__", "/")).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else png(content))
        return open_folder(tmp_path / "data")

    return write


class TestOfFolders:
    def test_counts_every_image_the_same_whatever_its_size(self, folder):
        black, white = np.zeros((10, 10, 3), np.uint8), np.full((40, 20, 3), 255, np.uint8)
        found = inspect(folder(a__1=black, b__2=white))
        assert found.statistics.mean.tolist() == [0.5, 0.5, 0.5]
        assert found.statistics.deviation.tolist() == [0.5, 0.5, 0.5]

    def test_tells_sizes_and_colours(self, folder):
        images = pictures(4)
        data = folder(a__1=images[0], a__2=images[1, :10], b__3=images[2, :, :10], b__4=images[3, ..., :1])
        report = inspect(data).report()
        assert (report["sizes"], report["grey"], report["channels"]) == (3, 1, 3)
        assert report["height"] == {"min": 10, "median": 20, "max": 20}
        assert report["width"] == {"min": 10, "median": 24, "max": 24}

    def test_of_grey_images_alone_has_one_channel(self, folder):
        images = pictures(2, (20, 24, 1))
        found = inspect(folder(a__1=images[0], b__2=images[1, :10]))
        assert (found.channels, found.grey, len(found.statistics.mean)) == (1, 2, 1)

    def test_leaves_out_what_cannot_be_decoded_and_lists_it(self, folder):
        images = pictures(4)
        cut = png(images[2])[:60]
        found = inspect(
            folder(a__1=images[0], a__2=images[1, :9], b__3=cut, b__4=b"no image", b__5=images[3])
        )
        assert [each.key.rpartition("/")[2] for each in found.corrupt] == ["3.png"]
        assert [each.key.rpartition("/")[2] for each in found.rejected] == ["4.png"]
        assert found.counts["train"].tolist() == [2, 1]
        json.dumps(found.report(), allow_nan=False)

    def test_of_which_nothing_can_be_decoded_has_no_statistics(self, folder):
        cut = png(pictures(1)[0])[:60]
        found = inspect(folder(a__1=cut, b__2=cut))
        assert (found.statistics, len(found.sizes), len(found.corrupt)) == (None, 0, 2)
        json.dumps(found.report(), allow_nan=False)


class TestDuplicates:
    def test_are_none_where_there_are_none(self):
        found = inspect(DataSet(source(pictures(50)), test=source(pictures(20, seed=1))))
        assert found.equal.all.groups == found.alike.all.groups == 0

    def test_between_parts_are_leaks(self):
        images = pictures(8)
        test = source(np.concatenate([pictures(3, seed=1), images[4:5]]), [0, 0, 0, 1], "held out")
        found = inspect(DataSet(source(images), test=test)).equal
        assert only(found.leaks) == only(found.all) == ["some record 4", "held out record 3"]
        assert found.leaks.first[0][1] == {"key": "held out record 3", "part": "test", "label": "dog"}
        assert (found.all.groups, found.all.examples, found.conflicts.groups) == (1, 2, 0)

    def test_under_two_labels_are_conflicts(self):
        images = pictures(8)
        images[6] = images[1]
        found = inspect(DataSet(source(images, [0, 1, 2, 0, 1, 2, 2, 0]))).equal
        assert only(found.conflicts) == ["some record 1", "some record 6"]
        assert found.leaks.groups == 0

    def test_that_only_look_alike_are_told_apart_from_equal_ones(self):
        images = pictures(8)
        images[3], images[5] = images[2], images[1] // 2 + 50
        found = inspect(DataSet(source(images, [0] * 5 + [1] * 3)))
        assert only(found.equal.all) == ["some record 2", "some record 3"]
        assert only(found.alike.all) == only(found.alike.conflicts) == ["some record 1", "some record 5"]

    def test_show_some_members_and_count_all(self):
        images = np.repeat(pictures(7), 9, axis=0)
        found = inspect(DataSet(source(images))).equal.all
        assert (found.groups, found.examples) == (7, 63)
        assert [len(group) for group in found.first] == [5] * 5

    def test_of_rows_of_numbers_are_equal_ones(self):
        rows = np.arange(40, dtype=np.float32).reshape(10, 1, 1, 4)
        rows[7] = rows[2]
        found = inspect(DataSet(source(rows)))
        assert only(found.equal.all) == ["some record 2", "some record 7"]
        assert found.alike.all.groups == 0


class TestSample:
    def test_looks_at_so_many_of_each_part_always_the_same(self):
        data = DataSet(source(pictures(300)), test=source(pictures(20, seed=1)))
        found = inspect(data, sample=50)
        assert (found.examined, found.parts) == (70, {"train": 300, "test": 20})
        assert found.counts["train"].sum() == 50
        assert inspect(data, sample=50).report() == found.report()

    def test_larger_than_the_data_is_all_of_them(self):
        data = DataSet(source(pictures(30)))
        assert inspect(data, sample=1000).report() == inspect(data).report()


def test_result_does_not_depend_on_the_number_of_threads():
    data = DataSet(source(pictures(5000)), test=source(pictures(100, seed=1)))
    assert inspect(data, threads=1).report() == inspect(data, threads=4).report()
