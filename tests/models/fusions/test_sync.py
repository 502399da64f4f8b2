"""The synchronization layers against their formulas in NumPy, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fourreal.grid import all_cells
from fourreal.models.fusions import Fusion, Hard, Probe, Run, Soft, sync
from fourreal.models.fusions.two_streams import Shared, Streams

VIEWS, TIMES, TOKENS, WIDTH = 2, 3, 4, 6
MIXES = [Soft("zero"), Soft("consensus"), Hard("half"), Hard("time"), Hard("view")]
EACH = pytest.mark.parametrize("fusion", MIXES, ids=lambda fusion: f"{fusion.kind}-{fusion.sync_init}")


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def streams() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y_v [b t v s d], y_t [b v t s d], shift and scale [b v t 2 2 d]."""
    return (
        normal(2, TIMES, VIEWS, TOKENS, WIDTH),
        normal(2, VIEWS, TIMES, TOKENS, WIDTH, seed=1),
        normal(2, VIEWS, TIMES, 2, 2, WIDTH, seed=2),
    )


def layer(fusion: Fusion, random: bool, dtype=jnp.float32) -> nnx.Module:
    module = fusion.make(WIDTH, dtype, nnx.Rngs(0))
    if random:
        linear = module.mod_linear
        for seed, part in enumerate((linear.kernel, linear.bias, linear.modulation)):
            part[...] = jnp.asarray(normal(*part.shape, seed=10 + seed))
    return module


def synchronize(fusion: Fusion, module: nnx.Module, y_v, y_t, shift_scale, probe: Probe = Probe()) -> Streams:
    """The streams after a layer, which takes the modulation in the layout of either stream."""
    modulation = Streams(jnp.swapaxes(shift_scale, 1, 2), shift_scale)
    shared = Shared(None, None, modulation)
    run = Run(None, None, None, all_cells(VIEWS, TIMES), (4, 4), {}, shift_scale, probe, shared=shared)
    return fusion.synchronize(module, Streams(y_v, y_t), run)


def mod_linear(linear: sync.ModLinear, view: np.ndarray, time: np.ndarray, shift_scale: np.ndarray, output: int):
    """((1 + scale) z + shift) W + bias for one token [d], in fp64."""
    kernel, bias, table = (np.asarray(p[...], np.float64) for p in (linear.kernel, linear.bias, linear.modulation))
    shift, scale = shift_scale + table
    z = (1 + scale) * np.stack([view, time]) + shift
    return np.concatenate(z) @ kernel[:, :, output].reshape(2 * WIDTH, WIDTH) + bias[output]


def fixed(fusion: Fusion, view: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x_v, x_t) of one token without the ModLinear."""
    mean = (view + time) / 2
    return {
        ("soft", "zero"): (view, time),
        ("soft", "consensus"): (mean, mean),
        ("hard", "half"): (mean, mean),
        ("hard", "time"): (time, time),
        ("hard", "view"): (view, view),
    }[fusion.kind, fusion.sync_init]


@EACH
def test_sync_layer_is_its_formula_at_every_token(fusion):
    y_v, y_t, shift_scale = streams()
    module = layer(fusion, random=True)
    x_v, x_t = jax.jit(lambda *a: synchronize(fusion, module, *a))(y_v, y_t, shift_scale)
    for b, v, t, s in np.ndindex(2, VIEWS, TIMES, TOKENS):
        view, time = y_v[b, t, v, s], y_t[b, v, t, s]
        mix_v, mix_t = fixed(fusion, view, time)
        outputs = (0, 1) if fusion.kind == "soft" else (0, 0)
        d_v, d_t = (mod_linear(module.mod_linear, view, time, shift_scale[b, v, t], o) for o in outputs)
        # sums of 12 products of three normals
        np.testing.assert_allclose(x_v[b, t, v, s], mix_v + d_v, atol=2e-5)
        np.testing.assert_allclose(x_t[b, v, t, s], mix_t + d_t, atol=2e-5)


@EACH
def test_fresh_sync_layer_is_its_fixed_mix_even_around_bf16_matmuls(fusion):
    y_v, y_t, shift_scale = map(jnp.asarray, streams())
    x_v, x_t = synchronize(fusion, layer(fusion, random=False, dtype=jnp.bfloat16), y_v, y_t, shift_scale)
    mix_v, mix_t = fixed(fusion, np.swapaxes(y_v, 1, 2), y_t)
    # one rounding of fp32: a stream through bf16 would be off by 4e-3
    np.testing.assert_allclose(np.swapaxes(x_v, 1, 2), mix_v, atol=3e-7)
    np.testing.assert_allclose(x_t, mix_t, atol=3e-7)


@EACH
def test_every_message_passes_the_probe_and_without_them_a_stream_keeps_its_own_part(fusion):
    """Zeros for what a stream is told leave y + dv(y_v) + bias in the view stream, likewise in the time stream."""
    y_v, y_t, shift_scale = streams()
    module = layer(fusion, random=True)
    told = []

    def silence(message, number, stream):
        told.append((stream, message.shape))
        return jnp.zeros_like(message)

    x_v, x_t = synchronize(fusion, module, y_v, y_t, shift_scale, Probe(exchange=silence))
    assert dict(told) == {"view": y_v.shape, "time": y_t.shape} and len(told) == 2
    linear = module.mod_linear
    nothing = np.zeros(WIDTH)
    own = {"zero": (1, 1), "consensus": (0.5, 0.5), "half": (0.5, 0.5), "time": (0, 1), "view": (1, 0)}[
        fusion.sync_init
    ]
    of_time = 1 if fusion.kind == "soft" else 0  # output of the linear map for the time stream
    for b, v, t, s in np.ndindex(2, VIEWS, TIMES, TOKENS):
        shift = shift_scale[b, v, t]
        # a silent stream adds nothing, not even its shift, and the bias of a hard sync is sent with the time stream's part
        parts = {
            0: own_part(linear, 0, y_v[b, t, v, s], shift, 0),
            1: own_part(linear, 1, y_t[b, v, t, s], shift, of_time),
        }
        bias = np.asarray(linear.bias[...], np.float64)
        bias_v = bias[0] if fusion.kind == "soft" else nothing
        np.testing.assert_allclose(x_v[b, t, v, s], own[0] * y_v[b, t, v, s] + parts[0] + bias_v, atol=2e-5)
        np.testing.assert_allclose(x_t[b, v, t, s], own[1] * y_t[b, v, t, s] + parts[1] + bias[of_time], atol=2e-5)


def own_part(
    linear: sync.ModLinear, stream: int, token: np.ndarray, shift_scale: np.ndarray, output: int
) -> np.ndarray:
    """((1 + scale) y + shift) W of one stream's token [d] and the part of W from that stream, in fp64."""
    kernel, table = (np.asarray(p[...], np.float64) for p in (linear.kernel, linear.modulation))
    shift, scale = (shift_scale + table)[:, stream]
    return ((1 + scale) * token + shift) @ kernel[stream, :, output]


def test_shift_and_scale_of_a_fresh_projection_are_zero_at_every_sigma():
    projection = sync.SigmaProjection(WIDTH, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(projection(jnp.asarray(normal(2, VIEWS, TIMES, WIDTH))), 0)


def test_projection_gives_shift_then_scale_for_view_then_time():
    projection = sync.SigmaProjection(WIDTH, rngs=nnx.Rngs(0))
    kernel, temb = normal(WIDTH, 4 * WIDTH, seed=4), normal(1, VIEWS, TIMES, WIDTH)
    projection.linear.kernel[...] = jnp.asarray(kernel)
    out = np.asarray(projection(jnp.asarray(temb)))
    silu = temb / (1 + np.exp(-temb))
    for part, (kind, stream) in enumerate(np.ndindex(2, 2)):
        expected = silu @ kernel[:, part * WIDTH : (part + 1) * WIDTH]
        np.testing.assert_allclose(out[..., kind, stream, :], expected, atol=5e-6)
