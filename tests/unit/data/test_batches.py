from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from foveal.data.batches import join, kind, pick
from foveal.data.source import Batch, Encoded
from foveal.tensorflow.example import Ragged

WORDS = [[1, 2], [], [3], [4, 5, 6], []]


def ragged(rows, dtype=np.int64):
    lengths = [len(row) for row in rows]
    return Ragged(np.array([value for row in rows for value in row], dtype), np.cumsum([0, *lengths]))


def nested(rows):
    return Ragged(ragged([inner for row in rows for inner in row]), np.cumsum([0, *map(len, rows)]))


def plain(column):
    """The rows of a column as lists."""
    if isinstance(column, Ragged):
        return [plain(column[row]) for row in range(len(column))]
    return column.tolist()


def batch(rows=WORDS, *, encoded=False, features=True):
    """An example for each row; its image and target are its first number, or 0."""
    firsts = np.array([row[0] if row else 0 for row in rows], np.int64)
    if encoded:
        images = Encoded(tuple(f"image {first}".encode() for first in firsts))
    else:
        images = np.broadcast_to(firsts.astype(np.uint8)[:, None, None, None], (len(rows), 2, 3, 1))
    columns = {
        "row": ragged(rows),
        "sum": np.array([sum(row) for row in rows]),
        "pair": nested([[r, r] for r in rows]),
    }
    return Batch(images, firsts, columns if features else {})


def equal(one, other):
    same = (
        one.images == other.images
        if isinstance(one.images, Encoded)
        else np.array_equal(one.images, other.images)
    )
    columns = [{name: plain(column) for name, column in each.features.items()} for each in (one, other)]
    return same and np.array_equal(one.targets, other.targets) and columns[0] == columns[1]


either = pytest.mark.parametrize("encoded", [True, False])


@either
@pytest.mark.parametrize("rows", [[0], [3, 3, 0], [4, 2, 1, 0], [1], []])
def test_examples_are_picked_in_any_order_and_as_often_as_asked(encoded, rows):
    assert equal(
        pick(batch(encoded=encoded), np.array(rows, np.int64)),
        batch([WORDS[row] for row in rows], encoded=encoded),
    )


@either
@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 0, 1, 1, 4, 5, 5]])
def test_batches_are_joined_one_after_another(encoded, cuts):
    pieces = [batch(WORDS[first:stop], encoded=encoded) for first, stop in pairwise(cuts)]
    assert equal(join(pieces), batch(encoded=encoded))


def test_ragged_columns_that_share_their_values_with_other_rows_are_joined():
    whole = ragged(WORDS)
    parts = [Ragged(whole.values, whole.row_splits[first : first + 3]) for first in (0, 2)]
    empty = np.zeros((2, 1, 1, 1), np.uint8)
    joined = join([Batch(empty, np.zeros(2, np.int64), {"row": part}) for part in parts])
    assert plain(joined.features["row"]) == WORDS[:4]


class TestSizes:
    def encoded(self, *heights, known=True):
        sizes = np.array([(height, 7) for height in heights], np.int32)
        contents = tuple(f"image {height}".encode() for height in heights)
        return Batch(Encoded(contents, sizes if known else None), np.zeros(len(heights), np.int64))

    def test_of_encoded_images_go_with_them(self):
        joined = join([self.encoded(1, 2), self.encoded(3)])
        assert joined.images.sizes.tolist() == [[1, 7], [2, 7], [3, 7]]
        assert pick(joined, np.array([2, 0])).images.sizes.tolist() == [[3, 7], [1, 7]]

    def test_are_known_of_all_or_of_none(self):
        joined = join([self.encoded(1), self.encoded(2, known=False)])
        assert joined.images.sizes is None
        assert pick(joined, np.array([1])).images.sizes is None


def test_what_a_batch_consists_of_tells_which_can_be_joined():
    assert kind(batch()) == "uint8 images of 2 x 3 x 1 with pair, row, sum"
    assert kind(batch(encoded=True, features=False)) == "encoded images"
    assert kind(batch([])) == kind(batch())
