"""Flow where its answer is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fourreal.motion.optical_flow import flow


def test_flow_points_from_a_frame_to_where_its_pixels_are_in_the_other():
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(80, 80, 3)), (2, 2, 0)) * 600 + 128
    texture = texture.clip(0, 255).astype(np.uint8)
    found = flow(texture[8:72, 8:72], texture[7:71, 6:70])
    assert np.median(found[8:-8, 8:-8], axis=(0, 1)) == pytest.approx([2, 1], abs=0.1)
