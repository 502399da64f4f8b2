"""Low resolution: what an example is told, and a fresh model that answers with the enlarged frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import gaussian_filter

from fourreal.conditions import Hints, LowRes
from fourreal.conditions.condition import axes_of, complete, without
from fourreal.conditions.low_res import LowResFrames
from fourreal.errors import UserError
from fourreal.grid import Known
from fourreal.models import GridDiT, GridDiTConfig, VideoDiT
from fourreal.scene import Scene

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(256, size=(2, 3, 8, 8, 3), dtype=np.uint8)
GIVEN = np.zeros((2, 3), bool)


def test_example_is_the_box_mean_blurred_by_a_level_of_its_own():
    condition = LowRes(factor=4, noise=0.4, sampled=0.1)
    means = FRAMES.reshape(2, 3, 2, 4, 2, 4, 3).astype(float).mean((3, 5)) / 127.5 - 1
    values = [condition.example(Scene(FRAMES, 7), GIVEN, np.random.default_rng(seed)) for seed in range(200)]
    levels = np.array([value.level for value in values])
    assert levels.min() < 0.02 and levels.max() > 0.38 and abs(levels.mean() - 0.2) < 0.03  # uniform: deviation 0.008
    noise = np.stack([(value.frames - (1 - value.level) * means) / max(value.level, 1e-3) for value in values])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02  # 14,400 draws
    fixed = condition.example(Scene(FRAMES, 7), GIVEN, None)
    assert fixed.level == np.float32(0.1)
    np.testing.assert_array_equal(condition.example(Scene(FRAMES, 7), GIVEN, None).frames, fixed.frames)
    assert (condition.example(Scene(FRAMES, 8), GIVEN, None).frames != fixed.frames).any()


def test_soft_blurs_unknown_cells_of_half_of_the_examples_by_a_gaussian():
    condition, scene, given = LowRes(factor=2, noise=0.3, sampled=0.0, soft=2.0), Scene(FRAMES), GIVEN.copy()
    given[1, 2] = True
    sharp = condition.example(scene, given, None).frames
    seen = []
    for seed in range(200):
        value = condition.example(scene, given, np.random.default_rng(seed))
        level, rng = value.level, np.random.default_rng(seed)
        rng.uniform(0, 0.3)
        softened = rng.random() < 0.5
        deviation = 2 * (1 - rng.random()) if softened else 0
        means = (value.frames - level * rng.standard_normal(sharp.shape, np.float32)) / (1 - level)
        np.testing.assert_allclose(means[1, 2], sharp[1, 2], atol=1e-6)  # fp32 of numbers up to 4
        expected = np.stack(
            [[gaussian_filter(cell, (deviation, deviation, 0), mode="mirror") for cell in view] for view in sharp]
        )
        expected[1, 2] = sharp[1, 2]
        # OpenCV cuts its kernel where SciPy goes on to four deviations
        np.testing.assert_allclose(means, expected, atol=0.05)
        seen.append(softened)
    assert 70 < sum(seen) < 130


def test_a_callers_pixels_are_taken_as_they_are():
    value = LowRes(factor=4).check(FRAMES[:, :, ::4, ::4], 2, 3)
    assert value.level == 0
    np.testing.assert_allclose(value.frames, FRAMES[:, :, ::4, ::4] / 127.5 - 1, atol=1e-6)
    given = LowResFrames(np.zeros((2, 3, 2, 2, 3), np.float32), np.float32(0.2))
    assert LowRes(factor=4).check(given, 2, 3) is given
    assert axes_of(LowRes(), given) == LowResFrames(3, 1)


def test_a_fresh_model_answers_with_the_enlarged_frames_beside_what_it_says_without_them(tiny):
    """Gates of 1, maps of 0: the picture is added, nothing else changes."""
    configs = [tiny.config(conditions=conditions) for conditions in ((), (LowRes(factor=2),))]
    data = tiny.grid(2, 3)
    low = RNG.uniform(-1, 1, (2, 2, 3, 2, 2, 3)).astype(np.float32)
    told = {"low_res": LowResFrames(low, np.float32([0.1, 0.2]))}
    outs = []
    for config, conditions in zip(configs, ({}, told), strict=True):
        model = GridDiT(VideoDiT(config, rngs=nnx.Rngs(0)), GridDiTConfig("soft"), rngs=nnx.Rngs(1))
        outs.append(
            np.asarray(
                nnx.jit(lambda model, *of: model(*of))(model, data["x"], data["sigma"], data["given"], conditions)
            )
        )
    enlarged = np.asarray(jax.image.resize(low, data["x"].shape, "cubic"))
    np.testing.assert_allclose(outs[1] - outs[0], enlarged, atol=1e-5)  # fp32 sums of numbers near 1


def test_frames_and_level_reach_the_answer(tiny):
    config, grid = tiny.config(conditions=(LowRes(factor=2),)), GridDiTConfig("soft")
    params, forward, data = tiny.params(config, grid), tiny.forward(config, grid), tiny.grid(2, 3)
    low = RNG.uniform(-1, 1, (2, 2, 3, 2, 2, 3)).astype(np.float32)

    def out(frames, level):
        value = LowResFrames(frames, np.full(2, level, np.float32))
        return np.asarray(forward(params, data["x"], data["sigma"], data["given"], low_res=value))

    plain = out(low, 0.1)
    assert np.abs(out(low, 0.2) - plain).max() > 1e-3
    changed = low.copy()
    changed[0, 1, 2] += 0.5
    assert np.abs(out(changed, 0.1) - plain)[0].max() > 0.1
    np.testing.assert_array_equal(out(changed, 0.1)[1], plain[1])


def test_what_does_not_fit_is_refused():
    known = Known(jnp.zeros((1, 2, 3, 8, 8, 3)), jnp.asarray(GIVEN)[None])
    with pytest.raises(UserError, match="pass conditions="):
        complete((LowRes(),), {}, known)
    with pytest.raises(UserError, match="boxes of 3 pixels a side do not divide them"):
        LowRes(factor=3).example(Scene(FRAMES), GIVEN, None)
    with pytest.raises(UserError, match="not of float32"):
        LowRes().example(Scene(FRAMES.astype(np.float32)), GIVEN, None)
    with pytest.raises(UserError, match=r"expected uint8 \[2, 3, h, w, 3\]"):
        LowRes().check(FRAMES[:1], 2, 3)
    with pytest.raises(UserError, match="0 <= sampled <= noise"):
        LowRes(noise=0.1, sampled=0.2)
    null = without(
        (LowRes(), Hints()), {"low_res": LowRes().example(Scene(FRAMES), GIVEN, None)}, frozenset({"low_res"})
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(null))
