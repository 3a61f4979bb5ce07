from __future__ import annotations

import numpy as np
import pytest

from foveal.data.formats.fixed_length import open_fixed_length
from foveal.errors import DataError, RecipeError

SHAPE = [2, 3, 2]


def write(folder, **counts):
    """Files of records: a label, the number of the file, and pixels of the number of the record."""
    for number, (name, count) in enumerate(counts.items()):
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(bytes([number, *[record] * 12]) for record in range(count)))
    return folder


def opened(path, **options):
    return open_fixed_length(path, **{"image_shape": SHAPE, "classes": 9} | options)


def sizes(data):
    return {name: len(part) for name, part in data.parts().items()}


def test_a_folder_has_the_parts_that_the_names_of_its_files_say(tmp_path):
    folder = write(
        tmp_path, train1_bin=2, train2_dat=3, val_bin=4, test__a_raw=5, test__b_data=1, readme_txt=7
    )
    data = opened(folder)
    assert sizes(data) == {"train": 2 + 3, "validation": 4, "test": 5 + 1}
    assert data.train.key(2) == f"{folder / 'train2.dat'} record 0"
    batch = data.train.read(np.array([1, 4]))
    assert batch.targets.tolist() == [0, 1]
    assert batch.images[:, 0, 0].tolist() == [[1, 1], [2, 2]]


def test_a_file_is_trained_on(tmp_path):
    write(tmp_path, some_bin=3)
    data = opened(tmp_path / "some.bin", classes=["a", "b"])
    assert sizes(data) == {"train": 3}
    assert data.train.classes == ("a", "b")
    assert data.train.image_shape == (2, 3, 2)


def test_patterns_say_which_file_is_which(tmp_path):
    write(tmp_path, one_bin=2, two_bin=3, three_bin=4)
    assert sizes(opened(tmp_path, train="t*.bin", test=["one.bin"])) == {"train": 7, "test": 2}
    assert sizes(opened(tmp_path / "t*.bin")) == {"train": 7}


def test_options_are_those_of_the_layout(tmp_path):
    record = [9, 1, *range(12)]
    (tmp_path / "some.bin").write_bytes(bytes([7, 7, 7, *record, *record, 8]))
    data = opened(tmp_path, label_bytes=2, label_at=1, channels_first=False, header_bytes=3, footer_bytes=1)
    batch = data.train.read(np.array([1]))
    assert batch.targets.tolist() == [1]
    assert batch.images.tolist() == [np.arange(12).reshape(2, 3, 2).tolist()]


def test_a_folder_without_such_files_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        opened(write(tmp_path, readme_txt=1))
    assert str(caught.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("options", [{"image_shape": [2, 3]}, {"classes": []}, {"label_at": 1}])
def test_options_that_cannot_be_are_refused(tmp_path, options):
    with pytest.raises(RecipeError):
        opened(write(tmp_path, some_bin=1), **options)
