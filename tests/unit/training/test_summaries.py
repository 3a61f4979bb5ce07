from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.training.summaries import BUCKETS, histogram, image, scalar


def pixels(values: torch.Tensor) -> np.ndarray:
    found = image("x", values).image
    with Image.open(BytesIO(found.encoded_image_string)) as opened:
        array = np.asarray(opened)
    assert array.shape[:2] == (found.height, found.width)
    return array


def test_a_number_has_its_tag() -> None:
    found = scalar("a/b", 0.5)
    assert (found.tag, found.simple_value) == ("a/b", 0.5)


class TestHistogram:
    def test_counts_as_numpy_does(self) -> None:
        values = torch.randn(5, 1000, generator=torch.Generator().manual_seed(1))
        found = histogram("x", values).histo
        counts, edges = np.histogram(values.double().numpy(), bins=BUCKETS)
        assert list(found.bucket) == counts.tolist()
        np.testing.assert_allclose(found.bucket_limit, edges[1:])
        assert (found.min, found.max, found.num) == (values.min(), values.max(), 5000)
        assert found.sum == pytest.approx(values.double().sum().item())
        assert found.sum_squares == pytest.approx(values.double().square().sum().item())

    def test_of_one_value_has_one_bucket(self) -> None:
        found = histogram("x", torch.full((7,), 0.25)).histo
        assert (list(found.bucket_limit), list(found.bucket)) == ([0.25], [7])

    def test_leaves_out_what_is_no_number(self) -> None:
        found = histogram("x", torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf")])).histo
        assert (found.min, found.max, found.num, sum(found.bucket)) == (1, 3, 2, 2)

    @pytest.mark.parametrize("values", [torch.empty(0), torch.tensor([float("nan")])], ids=["empty", "NaN"])
    def test_of_nothing_is_empty(self, values: torch.Tensor) -> None:
        found = histogram("x", values)
        assert (found.WhichOneof("value"), found.histo.num, len(found.histo.bucket)) == ("histo", 0, 0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_takes_every_floating_dtype(self, dtype: torch.dtype) -> None:
        assert histogram("x", torch.arange(4, dtype=dtype, requires_grad=True)).histo.sum == 6


class TestImage:
    def test_without_negative_numbers_has_its_largest_at_255(self) -> None:
        found = pixels(torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1).expand(3, 2, 4))
        assert found.shape == (2, 4, 3)
        assert found[0, 0].tolist() == [0, 128, 255]

    @pytest.mark.parametrize(("value", "expected"), [(-2.0, 0), (0.0, 128), (1.0, 191)])
    def test_with_negative_numbers_has_0_in_the_middle(self, value: float, expected: int) -> None:
        assert pixels(torch.tensor([[[-2.0, value]]]))[0, 1] == expected

    def test_of_one_channel_is_grey_and_a_black_one_stays_black(self) -> None:
        found = pixels(torch.zeros(1, 3, 2))
        assert (found.shape, found.max()) == ((3, 2), 0)
