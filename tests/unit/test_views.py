from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import foveal
from foveal.errors import RecipeError
from foveal.views import check_views, mean_logits

SEVEN = Path(__file__).parents[2] / "examples" / "seven.png"

IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)


def pixels(images: Tensor) -> Tensor:
    """Logits from which it can be told what was seen."""
    return images.flatten(1)


def test_one_view_is_the_networks_answer() -> None:
    assert torch.equal(mean_logits(pixels, IMAGES, "none"), pixels(IMAGES))


def test_an_image_and_its_mirror_image_count_the_same() -> None:
    expected = (pixels(IMAGES) + pixels(IMAGES.flip(-1))) / 2
    torch.testing.assert_close(mean_logits(pixels, IMAGES, "flip"), expected)


def test_shifted_images_have_half_of_the_weight() -> None:
    down_right, up_left = IMAGES.clone(), IMAGES.clone()
    # What is read at (y - 1, x - 1) and (y + 1, x + 1), mirrored about the edge pixels.
    rows, columns = torch.tensor([1, 0, 1, 2]), torch.tensor([1, 0, 1, 2, 3])
    down_right = down_right[:, :, rows][:, :, :, columns]
    rows, columns = torch.tensor([1, 2, 3, 2]), torch.tensor([1, 2, 3, 4, 3])
    up_left = up_left[:, :, rows][:, :, :, columns]
    plain = (IMAGES + IMAGES.flip(-1)) / 4
    shifted = sum((each + each.flip(-1)) / 8 for each in (down_right, up_left))
    torch.testing.assert_close(mean_logits(pixels, IMAGES, "flip+shift"), pixels(plain + shifted))


def test_ten_crops_are_the_middle_the_corners_and_their_mirror_images() -> None:
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return pixels(images)

    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 24)
    columns = torch.arange(24.0).view(1, 1, 1, 24).expand(1, 1, 16, 24)
    place = torch.cat([rows, columns], dim=1)  # each pixel says where it is
    result = mean_logits(network, place, "10-crop")
    middles = [view[0].mean(dim=(1, 2)).tolist() for view in seen[::2]]
    assert middles == [pytest.approx(at) for at in ([7.5, 11], [6.5, 10], [6.5, 13], [8.5, 10], [8.5, 13])]
    for view, mirrored in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(mirrored, view.flip(-1))
        assert view.shape == place.shape
        spread = view[0, 1].max() - view[0, 1].min()
        assert 18 < spread <= 20  # 21 of 24 columns
    torch.testing.assert_close(result, torch.stack([pixels(view) for view in seen]).mean(dim=0))


@pytest.mark.parametrize(("views", "count"), [("none", 1), ("flip", 2), ("flip+shift", 6), ("10-crop", 10)])
def test_the_network_is_asked_once_for_each_view(views: str, count: int) -> None:
    asked = []

    def network(images: Tensor) -> Tensor:
        asked.append(images.shape)
        return pixels(images).bfloat16()

    result = mean_logits(network, IMAGES, views)
    assert asked == [IMAGES.shape] * count
    assert result.dtype == (torch.bfloat16 if views == "none" else torch.float32)


def test_images_that_cannot_be_shifted_are_refused() -> None:
    check_views("flip", (1, 1, 4))
    with pytest.raises(RecipeError, match="needs images of at least 2 x 2 pixels"):
        check_views("flip+shift", (1, 5, 3))
    with pytest.raises(RecipeError, match="needs images of at least 8 x 8 pixels"):
        check_views("10-crop", (8, 7, 3))


def test_evaluations_and_predictions_average_over_views(trained_run: Path) -> None:
    plain, flipped, shifted = (
        foveal.evaluate(trained_run, tta=tta) for tta in ("none", "flip", "flip+shift")
    )
    assert foveal.evaluate(trained_run).report() == plain.report()  # its recipe asks for none
    assert len({plain.loss, flipped.loss, shifted.loss}) == 3
    (one,) = foveal.predict(trained_run, [SEVEN])
    (mean,) = foveal.predict(trained_run, [SEVEN], tta="flip+shift")
    assert one.top[0].probability != mean.top[0].probability
