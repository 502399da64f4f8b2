import numpy as np
import pytest
from PIL import Image

from fourreal.media.pictures import enlarged, fit


def test_center_crop_keeps_the_aspect_ratio_and_the_middle():
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the middle square
    middle = np.asarray(fit(Image.fromarray(wide), (20, 20), "center"))[:, 2:-2]
    assert middle.min() >= 198  # Lanczos rings by a level or two at the edge


def test_padding_keeps_everything_between_black_bars():
    wide = np.full((40, 80, 3), 200, np.uint8)
    padded = np.asarray(fit(Image.fromarray(wide), (20, 20), "pad"))
    assert (padded[5:15] == 200).all() and (padded[:5] == 0).all() and (padded[15:] == 0).all()


def test_a_picture_of_the_right_size_is_not_touched():
    exact = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for crop in ("center", "pad"):
        assert (np.asarray(fit(Image.fromarray(exact), (20, 30), crop)) == exact).all()


@pytest.mark.parametrize("shape", [(64, 64), (45, 80), (101, 67), (300, 401)])
def test_enlarged_frames_have_even_sides_of_at_least_256(shape):
    height, width = enlarged(np.zeros((1, *shape, 3), np.uint8)).shape[1:3]
    assert height % 2 == 0 and width % 2 == 0 and min(height, width) >= 256
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.02)
