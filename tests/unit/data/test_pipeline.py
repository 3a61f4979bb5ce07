"""From indices to what the network sees: every format of images, and damaged ones among them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.data.catalog import open_path
from foveal.data.formats.folder import open_folder
from foveal.data.input import evaluation_pipeline, training_pipeline
from foveal.data.pipeline import Pipeline
from foveal.data.sampler import Sample, Sampler
from foveal.data.source import ArraySource
from foveal.errors import DataError, ImageError, RecipeError
from foveal.recipe import Flip, Normalization, Resize
from foveal.tensorflow.example import build_example
from foveal.tensorflow.record_writer import RecordWriter

PLAIN = Normalization()
HALF = Normalization(mean=(0.5,), deviation=(0.25,))


def sample(*indices):
    array = np.array(indices, np.int64)
    return Sample(np.arange(len(array)), array, np.zeros_like(array))


def pictures(count, shape=(6, 7, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, kind)
    return buffer.getvalue()


def folder_of(path, images, damaged=()):
    """Two classes, file names in the order of the images; some of the files lose their middle."""
    for number, image in enumerate(images):
        place = path / ("a" if number < len(images) / 2 else "b") / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        content = encoded(image)
        if number in damaged:
            middle = len(content) // 2
            content = content[:middle] + b"\0\0\0\0" + content[middle + 4 :]
        place.write_bytes(content)
    return path


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_pixels_are_normalised(backend):
    images = pictures(5)
    source = ArraySource(images, np.arange(5), tuple("abcde"))
    prepared = Pipeline(source, (), HALF, 0, backend=backend)(sample(3, 0))
    expected = (images[[3, 0]] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(np.asarray(prepared.images), expected, atol=1e-6)
    assert prepared.targets.tolist() == [3, 0]
    assert prepared.corrupt == ()


def test_rows_of_numbers_are_normalised_column_by_column():
    rows = np.array([[1, 10], [3, 30]], np.float32)[:, None, None]
    source = ArraySource(rows, np.arange(2), ("a", "b"))
    pipeline = Pipeline(source, (), Normalization(mean=(2, 20), deviation=(1, 10)), 0)
    assert pipeline.image_shape == (1, 1, 2)
    assert np.asarray(pipeline(sample(0, 1)).images).tolist() == [[[[-1, -1]]], [[[1, 1]]]]


def test_rows_of_numbers_cannot_be_distorted():
    source = ArraySource(np.zeros((2, 1, 1, 2), np.float32), np.arange(2), ("a", "b"))
    with pytest.raises(RecipeError, match="not for float32"):
        Pipeline(source, (Flip(),), PLAIN, 0)(sample(0))


def test_encoded_images_of_one_size_need_no_transform(tmp_path):
    images = pictures(6)
    data = open_folder(folder_of(tmp_path, images), hold=False)
    pipeline = Pipeline(data.train, (), PLAIN, 0)
    assert pipeline.image_shape == (6, 7, 3)
    found = np.asarray(pipeline(sample(4, 1)).images)
    np.testing.assert_allclose(found * 255, images[[4, 1]], atol=1e-4)


def test_encoded_images_of_several_sizes_are_resized_as_they_are_decoded(tmp_path):
    images = [*pictures(2, (20, 30, 3)), *pictures(2, (16, 16, 3))]
    data = open_folder(folder_of(tmp_path, images), hold=False)
    pipeline = Pipeline(data.train, (Resize(size=(8, 10)),), PLAIN, 0)
    assert pipeline.image_shape == (8, 10, 3)
    found = np.asarray(pipeline(sample(0, 3)).images) * 255
    for pixels, image in zip(found, (images[0], images[3]), strict=True):
        expected = Image.fromarray(image).resize((10, 8), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(pixels, np.asarray(expected), atol=1.01)


def test_sizes_that_the_index_knows_are_not_read_again(tmp_path, monkeypatch):
    images = [*pictures(2, (20, 30, 3)), *pictures(2, (16, 16, 3))]
    source = open_folder(folder_of(tmp_path, images), hold=False).train
    assert source.read(np.array([3, 0])).images.sizes.tolist() == [[16, 16], [20, 30]]
    pipeline = Pipeline(source, (Resize(size=(8, 10)),), PLAIN, 0)
    expected = pipeline(sample(0, 3)).images
    monkeypatch.setattr("foveal.data.decode.read_header", lambda *_: pytest.fail("read the header"))
    np.testing.assert_array_equal(pipeline(sample(0, 3)).images, expected)


def test_images_of_several_sizes_without_a_size_to_make_them_are_a_mistake(tmp_path):
    images = [*pictures(2, (20, 30, 3)), *pictures(2, (16, 16, 3))]
    data = open_folder(folder_of(tmp_path, images), hold=False)
    with pytest.raises(RecipeError, match="resize"):
        Pipeline(data.train, (Flip(),), PLAIN, 0)


def test_training_takes_the_size_from_preprocessing_where_its_own_transforms_give_none(tmp_path):
    images = [*pictures(2, (20, 30, 3)), *pictures(2, (16, 16, 3))]
    data = open_folder(folder_of(tmp_path, images), hold=False)
    recipe = foveal.override_recipe(
        foveal.load_recipe("digits"),
        ["augmentation=[{name='flip'}]", "preprocessing=[{name='resize', size=[8, 8]}]"],
    )
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"backend": "numba"}), "device": "cpu"}
    )
    assert training_pipeline(recipe, data.train).image_shape == (8, 8, 3)
    assert evaluation_pipeline(recipe, data.train).image_shape == (8, 8, 3)


class TestDamagedRecords:
    @pytest.fixture(params=["folder", "tfrecord"])
    def source(self, request, tmp_path):
        """Twenty examples, of which numbers 3 and 11 are damaged."""
        images = pictures(20)
        if request.param == "folder":
            return open_folder(folder_of(tmp_path / "data", images, damaged=(3, 11)), hold=False).train
        path = tmp_path / "data.tfrecord"
        with RecordWriter(path) as writer:
            for number, image in enumerate(images):
                writer.write(build_example({"image_raw": image.tobytes(), "label": number % 2}))
        content = bytearray(path.read_bytes())
        length = len(content) // 20
        for number in (3, 11):
            content[number * length + length // 2] ^= 4
        path.write_bytes(content)
        return open_path(path, options={"shape": [6, 7, 3], "hold": False}).train

    def test_are_errors_that_name_them(self, source):
        pipeline = Pipeline(source, (), PLAIN, 0)
        pipeline(sample(0, 1, 2))
        with pytest.raises(DataError, match=r"(003\.png|record 3)"):
            pipeline(sample(2, 3))

    def test_are_replaced_by_examples_computed_from_the_position(self, source):
        pipeline = Pipeline(source, (), PLAIN, 0, corrupt="replace")
        prepared = pipeline(sample(2, 3, 4, 11))
        assert [record.key for record in prepared.corrupt][:1] == [source.key(3)]
        assert {record.key for record in prepared.corrupt} == {source.key(3), source.key(11)}
        assert prepared.sample.indices[[0, 2]].tolist() == [2, 4]
        assert not {3, 11} & set(prepared.sample.indices.tolist())
        alone = pipeline(Sample(np.array([1]), np.array([3]), np.array([0])))
        assert alone.sample.indices[0] == prepared.sample.indices[1]
        np.testing.assert_array_equal(alone.images[0], prepared.images[1])

    def test_are_left_out_of_evaluations(self, source):
        pipeline = Pipeline(source, (), PLAIN, 0, corrupt="leave_out")
        prepared = pipeline(sample(*range(20)))
        assert prepared.sample.indices.tolist() == [n for n in range(20) if n not in (3, 11)]
        assert len(prepared.images) == len(prepared.targets) == 18
        nothing = pipeline(sample(3))
        assert len(nothing.images) == len(nothing.targets) == 0

    def test_of_which_there_is_nothing_else_are_an_error(self, tmp_path):
        folder_of(tmp_path, pictures(4), damaged=range(4))
        source = open_folder(tmp_path, hold=False).train
        with pytest.raises(DataError, match="nor could 100 others"):
            Pipeline(source, (), PLAIN, 0, corrupt="replace")(sample(0))


def test_data_that_changed_are_an_error_even_where_damaged_records_are_skipped(tmp_path):
    source = open_folder(folder_of(tmp_path, pictures(6)), hold=False).train
    (tmp_path / "a" / "001.png").write_bytes(encoded(pictures(1, seed=9)[0]))
    with pytest.raises(DataError, match=r"001.png.*changed") as caught:
        Pipeline(source, (), PLAIN, 0, corrupt="replace")(sample(1))
    assert not isinstance(caught.value, ImageError)


def test_a_step_is_the_same_whichever_batch_size_and_process_prepares_it(tmp_path):
    source = open_folder(
        folder_of(tmp_path, [*pictures(20, (20, 30, 3)), *pictures(20, (16, 16, 3))]), hold=False
    ).train
    recipe = foveal.override_recipe(
        foveal.load_recipe("digits"),
        [
            "augmentation=[{name='random_resized_crop', size=[8, 8]}, {name='contrast', low=0.5, high=1.5}]",
            "data.backend=numba",
            "device=cpu",
        ],
    )
    pipeline = training_pipeline(recipe, source)
    whole = pipeline(Sampler(len(source), 64, 7).sample(2))
    parts = [pipeline(Sampler(len(source), 64, 7, rank=rank, world_size=3).sample(2)) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.targets for part in parts]), whole.targets)
