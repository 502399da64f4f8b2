"""Wan through diffusers' own code and `VideoDiT` through our name map compute the same (invariant 9).

The fixture holds random weights, inputs and diffusers' outputs; `tests/fixtures/make_wan_fixture.py` made it.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from fourreal.checkpoints.wan import from_diffusers
from fourreal.conditions import Cameras, Hints, Prope, Text
from fourreal.models import VideoDiT, VideoDiTConfig
from fourreal.scene import Cameras as CameraValue

# invariant 9; fp32 sums in another order came out ten times closer
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def config(wan_config) -> VideoDiTConfig:
    wan = wan_config
    return VideoDiTConfig(
        width=wan["num_attention_heads"] * wan["attention_head_dim"],
        depth=wan["num_layers"],
        heads=wan["num_attention_heads"],
        mlp_width=wan["ffn_dim"],
        patch=tuple(wan["patch_size"]),
        channels=wan["in_channels"],
        conditions=(Text(width=wan["text_dim"]),),
        frequency_width=wan["freq_dim"],
        prediction="u",
    )


def converted(state, config: VideoDiTConfig) -> VideoDiT:
    model = VideoDiT(config, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(jnp.asarray, from_diffusers(state, config)))
    return model


def run(model: VideoDiT, wan, sigma: str, context: str | None = None, given=None, **conditions) -> np.ndarray:
    clip = jnp.asarray(rearrange(wan["clip"], "b c f h w -> b f h w c"))
    with jax.default_matmul_precision("highest"):
        out = model(
            clip, jnp.asarray(wan[sigma]), given, {"context": context, "text": jnp.asarray(wan["text"])} | conditions
        )
    return rearrange(np.asarray(out), "b f h w c -> b c f h w")


def test_wan_and_video_dit_agree_with_one_sigma_an_example(wan, state, config):
    out = run(converted(state, config), wan, "sigma_b")
    np.testing.assert_allclose(out, wan["output_b"], atol=TOLERANCE, rtol=0)


def test_wan_and_video_dit_agree_with_one_sigma_a_frame(wan, state, config):
    out = run(converted(state, config), wan, "sigma_bf")
    np.testing.assert_allclose(out, wan["output_bf"], atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_our_additions_leave_a_converted_wan_unchanged(wan, state, config):
    """Context, given vector, hints and both ways of cameras are zero; the given frames take sigma 0, which they have anyway."""
    model = converted(state, replace(config, conditions=(Hints(), Cameras(), Prope(), *config.conditions)))
    given = jnp.asarray(wan["sigma_bf"] == 0)
    for context, views in (("dynamic", 1), ("freeze_time", given.shape[1]), ("image", 1)):
        ones = jnp.ones((len(given), views, 1, 1))
        cameras = CameraValue(2 * ones * jnp.eye(3), ones * jnp.eye(4))
        out = run(model, wan, "sigma_bf", context, given, cameras=cameras, prope=cameras)
        np.testing.assert_allclose(out, wan["output_bf"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("hints", [False, True])
def test_map_gives_every_parameter_of_the_model_its_shape(state, config, hints):
    config = replace(config, conditions=(*config.conditions, *[Hints()] * hints))
    model = nnx.eval_shape(lambda: VideoDiT(config, rngs=nnx.Rngs(0)))
    expected = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert jax.tree.map(np.shape, from_diffusers(state, config)) == expected


@pytest.mark.slow
def test_every_tensor_of_the_checkpoint_reaches_the_output(wan, state, config):
    """A tensor that the map swaps for another or drops would pass a test of shapes."""
    model = converted(state, config)
    parameters = from_diffusers(state, config)
    clip = jnp.asarray(rearrange(wan["clip"], "b c f h w -> b f h w c"))
    sigma, text = jnp.asarray(wan["sigma_bf"]), jnp.asarray(wan["text"])
    graph, _ = nnx.split(model)

    def total(parameters):
        moved = nnx.merge(graph, nnx.State(parameters))
        return jnp.sum(jnp.sin(moved(clip, sigma, None, {"context": None, "text": text})))

    gradients = jax.jit(jax.grad(total))(jax.tree.map(jnp.asarray, parameters))
    unused = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(np.asarray(leaf)).max() > 1e-6
    ]
    assert set(unused) == {"['context']['table']", "['given']['vector']"}


def test_norms_of_cross_attention_keep_their_names(state, config):
    """Outputs cannot tell: without a rotation between them the two scales only meet as a product."""
    cross = from_diffusers(state, config)["blocks"]["cross"]["text"]
    for layer in range(config.depth):
        for ours, theirs in (("query_norm", "norm_q"), ("key_norm", "norm_k")):
            np.testing.assert_array_equal(cross[ours]["scale"][layer], state[f"blocks.{layer}.attn2.{theirs}.weight"])


def test_missing_unknown_and_misshapen_tensors_are_named(state, config):
    with pytest.raises(ValueError, match=r"misses 1 tensors \(proj_out.bias\)"):
        from_diffusers({name: value for name, value in state.items() if name != "proj_out.bias"}, config)
    with pytest.raises(ValueError, match=r"has unknown 1 tensors \(blocks.0.attn2.add_k_proj.weight\)"):
        from_diffusers(state | {"blocks.0.attn2.add_k_proj.weight": np.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"misses .* 3 layers"):
        from_diffusers(state, replace(config, depth=3))
    with pytest.raises(ValueError, match=r"ffn.net.0.proj.weight has shape \[64, 48\]: the config expects \[96, 48\]"):
        from_diffusers(state, replace(config, mlp_width=96))
    with pytest.raises(ValueError, match=r"list conditions.Text\(\)"):
        from_diffusers(state, replace(config, conditions=()))
