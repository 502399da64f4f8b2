"""The grid model: invariants 1 to 4 of the design, probes and doors, every parameter away from zero.

Grids have more times than views, so an exchange of the two shows; every cell has a sigma of its own.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from fourreal.conditions.hints import grid_hints
from fourreal.errors import UserError
from fourreal.grid import Cells, cell_sigma
from fourreal.models import GridDiT, GridDiTConfig, Probe
from fourreal.models.build import split_model
from fourreal.nn.attention import fused_attention
from fourreal.parallel.activations import swap_view_time

VIEWS, TIMES = 2, 3
# the same sums in another order over two layers, fp32, outputs near 1
TOLERANCE = 1e-5
# fusion, its initial mix, readout
EXCHANGED = [
    ("soft", "zero", "mean"),
    ("soft", "zero", "time"),
    ("soft", "consensus", "time"),
    ("hard", "half", "mean"),
    ("hard", "time", "mean"),
    ("none", None, "time"),
]


@pytest.fixture(scope="module")
def data(tiny) -> dict[str, np.ndarray]:
    return tiny.grid(VIEWS, TIMES)


def run(tiny, data, grid: GridDiTConfig, fresh_sync: bool = False, seed: int = 0, **changes):
    """The output of a grid model, hints as its default has them."""
    base = tiny.config(**changes)
    params = tiny.params(base, grid, seed, fresh_sync)
    return tiny.forward(base, grid)(params, data["x"], data["sigma"], data["given"])


def base_on_clips(tiny, data, context: str, **changes) -> np.ndarray:
    """The base alone on every fixed-view (`dynamic`) or freeze-time video of the grid, put together to a grid.

    A base with hints gets the grid's two hint pictures, which a clip alone cannot know.
    """
    base = tiny.config(**changes)
    parts = dict(data)
    if base.conditions:
        parts["hints"] = np.asarray(grid_hints(jnp.asarray(data["x"]), jnp.asarray(data["given"])))
    if context == "freeze_time":
        parts = {name: np.swapaxes(value, 1, 2) for name, value in parts.items()}
    forward, params = tiny.forward(base), tiny.params(base)
    clips = []
    for clip in range(parts["x"].shape[1]):
        one = {name: value[:, clip] for name, value in parts.items()}
        axis = 2 if context == "freeze_time" else 1
        hints = {"hints": np.expand_dims(one["hints"], axis)} if base.conditions else {}
        clips.append(forward(params, one["x"], one["sigma"], one["given"], context=context, **hints))
    out = np.stack(clips, axis=1)
    return np.swapaxes(out, 1, 2) if context == "freeze_time" else out


# Invariant 1


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize(("readout", "context"), [("time", "dynamic"), ("view", "freeze_time")])
def test_soft_sync_at_init_equals_the_base_on_every_video_of_the_readout(tiny, data, readout, context, hints):
    out = run(tiny, data, GridDiTConfig("soft", "zero", readout), fresh_sync=True, hints=hints)
    expected = base_on_clips(tiny, data, context, hints=hints)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize(("init", "context"), [("time", "dynamic"), ("view", "freeze_time")])
def test_hard_sync_that_takes_one_stream_equals_the_base_on_every_video_of_it(tiny, data, init, context, hints):
    out = run(tiny, data, GridDiTConfig("hard", init, "mean"), fresh_sync=True, hints=hints)
    np.testing.assert_allclose(out, base_on_clips(tiny, data, context, hints=hints), atol=TOLERANCE)


def test_soft_consensus_equals_hard_half_at_init(tiny, data):
    soft, hard, zero = (
        run(tiny, data, GridDiTConfig(*fusion, "mean"), fresh_sync=True)
        for fusion in (("soft", "consensus"), ("hard", "half"), ("soft", "zero"))
    )
    np.testing.assert_allclose(soft, hard, atol=TOLERANCE)
    assert np.abs(soft - zero).max() > 0.01


@pytest.mark.parametrize("fusion", ["soft", "hard"])
def test_modulated_linear_maps_are_zero_in_a_fresh_model(tiny, fusion):
    fresh = tiny.initial(tiny.config(), GridDiTConfig(fusion))
    sync = {path: value for path, value in fresh.items() if path[0] in ("sync", "sigma_projection")}
    assert len(sync) == 5 and not any(value.any() for value in sync.values())


@pytest.mark.parametrize("changes", [{}, {"hints": True, "copies": "mix"}], ids=["add", "mix"])
def test_readout_mean_is_the_mean_of_the_two_streams_heads(tiny, data, changes):
    outs = {
        readout: run(tiny, data, GridDiTConfig("soft", "zero", readout), **changes)
        for readout in ("mean", "time", "view")
    }
    np.testing.assert_allclose(outs["mean"], (outs["time"] + outs["view"]) / 2, atol=TOLERANCE)
    assert np.abs(outs["time"] - outs["view"]).max() > 0.01


def test_unsynchronized_streams_equal_the_base_on_every_video(tiny, data):
    expected = (base_on_clips(tiny, data, "dynamic") + base_on_clips(tiny, data, "freeze_time")) / 2
    np.testing.assert_allclose(run(tiny, data, GridDiTConfig("none")), expected, atol=TOLERANCE)


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_text_reaches_every_clip_of_its_own_grid(tiny, data, fusion):
    """The soft sync's time stream is the base on every fixed-view video, with the grid's one prompt."""
    base = tiny.config(text_width=10)
    grid = GridDiTConfig(fusion, readout="time" if fusion == "soft" else "mean")
    text = np.random.default_rng(0).normal(size=(2, 5, 10)).astype(np.float32)
    views = slice(None) if fusion == "soft" else slice(0, 1)  # fused equals the base on a grid of one view
    x, sigma, given = (data[name][:, views] for name in ("x", "sigma", "given"))
    out = tiny.forward(base, grid)(tiny.params(base, grid, fresh_sync=True), x, sigma, given, text=text)
    for v in range(x.shape[1]):
        expected = tiny.forward(base)(tiny.params(base), x[:, v], sigma[:, v], given[:, v], text=text)
        np.testing.assert_allclose(out[:, v], expected, atol=TOLERANCE)


# Invariant 2; the merge itself is tested in test_attention.py


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize(("views", "times"), [(1, 3), (3, 1)])
def test_fused_on_one_view_or_one_time_equals_the_base_in_the_dynamic_context(tiny, views, times, hints):
    data = tiny.grid(views, times)
    base = tiny.config(hints=hints)
    out = run(tiny, data, GridDiTConfig("fused"), hints=hints)
    shown = {}
    if hints:
        pictures = grid_hints(jnp.asarray(data["x"]), jnp.asarray(data["given"]))
        shown = {"hints": np.asarray(pictures).reshape(2, 1, 3, *pictures.shape[3:])}
    x = data["x"].reshape(2, 3, 4, 4, 3)
    sigma, given = (data[name].reshape(2, 3) for name in ("sigma", "given"))
    expected = tiny.forward(base)(tiny.params(base), x, sigma, given, context="dynamic", **shown)
    np.testing.assert_allclose(np.reshape(out, x.shape), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("times", "stride"), [(TIMES, None), (TIMES - 1, TIMES)])
def test_fused_is_the_base_on_the_clip_of_all_cells_seen_through_a_dense_mask(tiny, data, times, stride):
    """Cell (v, t) is at position stride v + t of that clip; its tokens see the frames of its own view or its own time.

    With a stored stride a grid of fewer times keeps the distances between views.
    """
    base, grid = tiny.config(), GridDiTConfig("fused", stride=stride)
    data = {name: value[:, :, :times] for name, value in data.items()}
    params = tiny.params(base, grid)
    part = nnx.merge(*nnx_split(base, grid, params)).base
    view, time = (np.repeat(axis.ravel(), 4) for axis in np.indices((VIEWS, times)))
    positions = np.add.outer((stride or times) * np.arange(VIEWS), np.arange(times)).ravel()
    seen = (view[:, None] == view) | (time[:, None] == time)

    def masked(q, k, v):
        frames = q.shape[-4]
        q, k, v = (rearrange(x, "b f s h e -> b (f s) h e") for x in (q, k, v))
        logits = jnp.where(seen, jnp.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5, -jnp.inf)
        out = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(logits, axis=-1), v)
        return rearrange(out, "b (f s) h e -> b f s h e", f=frames)

    @jax.jit
    def by_hand(x, sigma, given):
        x, sigma, given = (rearrange(a, "b v t ... -> b (v t) ...") for a in (x, sigma, given))
        temb, six = part.modulation(cell_sigma(sigma, given))
        tokens, angles = part.embed(x, given), part.angles(positions, (4, 4))
        for layer in range(base.depth):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], part.blocks)
            tokens = block(tokens, six + part.context.table[0], angles, attention=masked)
        return rearrange(
            part.decode(part.head(tokens, temb), x, np.zeros(x.shape[:2])), "b (v t) ... -> b v t ...", v=VIEWS
        )

    expected = by_hand(data["x"], data["sigma"], data["given"])
    np.testing.assert_allclose(run(tiny, data, grid), expected, atol=TOLERANCE)


def nnx_split(base, grid, params):
    return split_model(base, grid)[0], nnx.State(jax.tree.map(jnp.asarray, params))


# Invariant 3


def exchanged(params: dict, width: int) -> dict:
    """Parameters with the two streams' parts, context rows and hint pictures exchanged."""
    params = copy.deepcopy(params)
    base = params["base"]
    base["context"]["table"] = base["context"]["table"][[1, 0, 2]]
    if "hints" in base.get("conditions", {}):
        embed = base["conditions"]["hints"]["embed"]
        embed["kernel"] = np.concatenate(np.split(embed["kernel"], 2)[::-1])
        # copy gates (p, p, picture): of the input itself, of the hint of the view, of the time
        gate = base["head"]["copy_gate"]
        for name, value in gate.items():
            gate[name] = value.reshape(*value.shape[:-1], -1, 3)[..., [0, 2, 1]].reshape(value.shape)
    if "sync" in params:
        linear = params["sync"]["mod_linear"]
        linear["kernel"] = linear["kernel"][:, ::-1, :, ::-1]  # [layer, from stream, d, to output, d]
        linear["bias"] = linear["bias"][:, ::-1]
        linear["modulation"] = linear["modulation"][:, :, ::-1]  # [layer, (shift, scale), stream, d]
        projection = params["sigma_projection"]["linear"]
        for name, value in projection.items():
            projection[name] = value.reshape(*value.shape[:-1], 2, 2, width)[..., ::-1, :].reshape(value.shape)
    return params


OTHER = {"time": "view", "view": "time", "mean": "mean"}


@pytest.mark.parametrize(("fusion", "init", "readout"), EXCHANGED)
def test_exchanging_view_and_time_and_their_parameters_exchanges_the_output(tiny, data, fusion, init, readout):
    base = tiny.config(hints=True)
    grid = GridDiTConfig(fusion, init, readout)
    mirrored = GridDiTConfig(fusion, OTHER.get(init, init), OTHER[readout])
    params = tiny.params(base, grid)
    out = tiny.forward(base, grid)(params, data["x"], data["sigma"], data["given"])
    turned = {name: np.swapaxes(value, 1, 2) for name, value in data.items()}
    forward = tiny.forward(base, mirrored)
    mirror = forward(exchanged(params, base.width), turned["x"], turned["sigma"], turned["given"])
    np.testing.assert_allclose(np.swapaxes(mirror, 1, 2), out, atol=2 * TOLERANCE)
    unchanged = forward(params, turned["x"], turned["sigma"], turned["given"])
    assert np.abs(np.swapaxes(unchanged, 1, 2) - out).max() > 0.01  # the parameters matter


# Invariant 4


@functools.cache
def influence(tiny_functions, fusion: str, depth: int) -> np.ndarray:
    """Largest gradient [v', t', v, t] of a random projection of output cell (v, t) by input cell (v', t')."""
    tiny = tiny_functions.tiny
    base, grid = tiny.config(depth=depth), GridDiTConfig(fusion)
    data = tiny.grid(VIEWS, TIMES, batch=1)
    forward, params = tiny.forward(base, grid), tiny.params(base, grid)
    weight = np.random.default_rng(1).normal(size=data["x"].shape).astype(np.float32)
    pull = jax.jit(lambda x, chosen: jax.vjp(lambda x: forward(params, x, data["sigma"]), x)[1](chosen)[0])
    out = np.zeros((VIEWS, TIMES, VIEWS, TIMES))
    for v, t in np.ndindex(VIEWS, TIMES):
        chosen = np.zeros_like(weight)
        chosen[:, v, t] = weight[:, v, t]
        out[:, :, v, t] = np.abs(pull(data["x"], chosen)).max(axis=(0, 3, 4, 5))
    return out


class Tiny:
    """Hashes by identity, so that `influence` can be kept."""

    def __init__(self, tiny):
        self.tiny = tiny


@pytest.fixture(scope="module")
def kept(tiny) -> Tiny:
    return Tiny(tiny)


def crossing() -> np.ndarray:
    """True where input and output cell differ in both view and time."""
    view, time = np.indices((VIEWS, TIMES))
    return (view[..., None, None] != view) & (time[..., None, None] != time)


@pytest.mark.parametrize("fusion", ["soft", "hard", "fused", "none"])
def test_one_layer_sees_its_own_view_and_its_own_time_and_nothing_else(kept, fusion):
    found = influence(kept, fusion, 1)
    assert (found[crossing()] == 0).all()
    assert (found[~crossing()] > 1e-5).all()


@pytest.mark.parametrize("fusion", ["soft", "hard", "fused"])
def test_two_layers_see_the_whole_grid(kept, fusion):
    assert (influence(kept, fusion, 2) > 1e-6).all()


def test_unsynchronized_streams_never_cross_whatever_the_depth(kept):
    found = influence(kept, "none", 3)
    assert (found[crossing()] == 0).all() and (found[~crossing()] > 1e-5).all()


# Probes and heads


def asked(tiny, base, grid: GridDiTConfig, probe: Probe = Probe(), cells: Cells | None = None):
    """The jitted `heads(params, x, sigma, given)` of a model."""
    graph, _ = split_model(base, grid)

    def heads(params, x, sigma, given):
        return nnx.merge(graph, nnx.State(params)).heads(x, sigma, given, {}, cells, probe)

    return jax.jit(heads)


def silence(message, layer, stream):
    return jax.tree.map(jnp.zeros_like, message)


@pytest.mark.parametrize("fusion", ["soft", "hard", "sequential", "fused"])
def test_nothing_of_another_view_gets_past_an_exchange_of_zeros(tiny, data, fusion):
    """Each stream's own axis alone is left: the time stream's view 1 no longer depends on view 0, bit for bit."""
    base, grid = tiny.config(), GridDiTConfig(fusion)
    params, other = tiny.params(base, grid), data["x"].copy()
    other[:, 0] += 1

    def view_1(heads, x):
        streams, _ = heads(params, x, data["sigma"], data["given"])
        return np.asarray(streams["time" if "time" in streams else "stream"])[:, 1]

    silent, heard = asked(tiny, base, grid, Probe(exchange=silence)), asked(tiny, base, grid)
    np.testing.assert_array_equal(view_1(silent, data["x"]), view_1(silent, other))
    assert np.abs(view_1(heard, data["x"]) - view_1(heard, other)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["soft", "hard"])
def test_streams_that_meet_every_second_layer_and_after_the_last_tell_nothing_in_the_others(tiny, data, fusion):
    base, grid = tiny.config(depth=3), GridDiTConfig(f"{fusion}:every=2")
    params, inputs = tiny.params(base, grid), [data[name] for name in ("x", "sigma", "given")]
    whole, _ = asked(tiny, base, grid)(params, *inputs)

    def without(layer: int) -> dict:
        def silence_one(message, number, stream):
            return jnp.where(number == layer, 0.0, message)

        return asked(tiny, base, grid, Probe(exchange=silence_one))(params, *inputs)[0]

    for layer, meets in enumerate((False, True, True)):
        changed = max(np.abs(out - whole[name]).max() for name, out in without(layer).items())
        assert (changed > 0.01) == meets and (meets or changed == 0)
    kept, _ = asked(tiny, base, grid, Probe(exchange=lambda message, number, stream: message))(params, *inputs)
    for name, out in whole.items():
        np.testing.assert_allclose(kept[name], out, atol=TOLERANCE)
    every, _ = asked(tiny, base, GridDiTConfig(f"{fusion}:every=1"))(params, *inputs)
    assert max(np.abs(out - whole[name]).max() for name, out in every.items()) > 0.01


def test_silent_fused_layer_has_zero_keys_and_values_for_the_other_views_of_its_time(tiny, data):
    """A dense softmax: logits q k / sqrt(e) within the view, 0 with value 0 for every token of the other views."""
    base, grid = tiny.config(depth=1), GridDiTConfig("fused")
    params = tiny.params(base, grid)
    part = nnx.merge(*nnx_split(base, grid, params)).base
    block = jax.tree.map(lambda leaf: leaf[0], part.blocks)

    def attention(q, k, v):
        times = q.shape[2]
        q, k, v = (rearrange(x, "b v t s h e -> b v (t s) h e") for x in (q, k, v))
        logits = jnp.einsum("bvqhe,bvkhe->bvhqk", q, k) / q.shape[-1] ** 0.5
        weights = jnp.exp(logits)
        weights = weights / (weights.sum(-1, keepdims=True) + (VIEWS - 1) * 4)  # 4 tokens a cell
        return rearrange(jnp.einsum("bvhqk,bvkhe->bvqhe", weights, v), "b v (t s) h e -> b v t s h e", t=times)

    @jax.jit
    def by_hand(x, sigma, given):
        temb, six = part.modulation(cell_sigma(sigma, given))
        angles = part.angles(np.arange(VIEWS * TIMES), (4, 4)).reshape(VIEWS, TIMES, 4, -1)
        tokens = block(part.embed(x, given), six + part.context.table[0], angles, attention=attention)
        return part.decode(part.head(tokens, temb), x, np.zeros(x.shape[:2]))

    inputs = [data[name] for name in ("x", "sigma", "given")]
    streams, _ = asked(tiny, base, grid, Probe(exchange=silence))(params, *inputs)
    np.testing.assert_allclose(streams["stream"], by_hand(*inputs), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("fusion", "names"), [("soft", {"view", "time"}), ("none", {"view", "time"}), ("fused", {"stream"})]
)
def test_heads_are_the_streams_and_their_mean_is_the_readout_and_a_probe_observes_every_layer(
    tiny, data, fusion, names
):
    base, grid = tiny.config(), GridDiTConfig(fusion)
    params = tiny.params(base, grid)
    messages = []

    def listen(message, layer, stream):
        messages.append(stream)
        return message

    def observe(streams):
        return {name: jnp.mean(stream, axis=(0, 3, 4)) for name, stream in streams.items()}

    inputs = [data[name] for name in ("x", "sigma", "given")]
    streams, observed = asked(tiny, base, grid, Probe(listen, observe))(params, *inputs)
    assert set(streams) == set(observed) == names
    assert set(messages) == (set() if fusion == "none" else names)
    np.testing.assert_allclose(sum(streams.values()) / len(names), run(tiny, data, grid), atol=TOLERANCE)
    for name in names:
        assert observed[name].shape == (base.depth, VIEWS, TIMES)
        assert np.abs(np.diff(observed[name], axis=0)).max() > 0.001  # another value every layer


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_place_of_a_window_in_its_grid_does_not_matter_but_its_distances_do(tiny, data, fusion):
    """Rotary attention depends on differences of positions alone."""
    base, grid = tiny.config(), GridDiTConfig(fusion, stride=TIMES if fusion == "fused" else None)
    params, inputs = tiny.params(base, grid), [data[name] for name in ("x", "sigma", "given")]

    def out(cells: Cells) -> np.ndarray:
        streams, _ = asked(tiny, base, grid, cells=cells)(params, *inputs)
        return np.asarray(sum(streams.values()) / len(streams))

    views, times = np.arange(VIEWS), np.arange(TIMES)
    here = run(tiny, data, grid)
    # angles up to 3 * 4 + 8 = 20 are rounded to fp32, to 1e-6, and the logits, about 1, with them: ten times the sums' error
    np.testing.assert_allclose(out(Cells(views + 3, times + 5.5)), here, atol=10 * TOLERANCE)
    assert np.abs(out(Cells(views, 2 * times)) - here).max() > 0.001


# Doors

BAD_INPUT = {
    "a clip": ({"x": np.zeros((2, TIMES, 4, 4, 3), np.float32)}, r"grid is \[2, 3, 4, 4, 3\]: expected \[b, views"),
    "pixels": (
        {"x": np.zeros((2, VIEWS, TIMES, 4, 4, 3), np.uint8)},
        "grid is uint8: expected floating point.*to_unit",
    ),
    "sides": ({"x": np.zeros((2, VIEWS, TIMES, 5, 4, 3), np.float32)}, "the patch of 2 divides"),
    "channels": ({"x": np.zeros((2, VIEWS, TIMES, 4, 4, 1), np.float32)}, "expected 3 channels"),
    "sigma a view": ({"sigma": np.ones((2, VIEWS), np.float32)}, r"sigma is \[2, 2\]: expected one number, \[2\]"),
    "sigma too long": ({"sigma": np.ones(3, np.float32)}, r"sigma is \[3\]: expected one number"),
    "sigma whole": ({"sigma": np.ones(2, np.int32)}, "sigma is int32: expected floating point"),
    "float mask": ({"given": np.zeros((2, VIEWS, TIMES), np.float32)}, "given is float32.*expected bool"),
    "long mask": ({"given": np.zeros((2, VIEWS, TIMES + 1), bool)}, r"given is bool \[2, 2, 4\]: expected bool"),
    "unknown condition": ({"conditions": {"camera": 1}}, "takes no camera"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_input_that_does_not_fit_is_refused_in_one_line_with_what_was_expected(tiny, data, case):
    changes, text = BAD_INPUT[case]
    inputs = {"conditions": {}} | data | changes
    graph, shapes = split_model(tiny.config(), GridDiTConfig("soft"))
    with pytest.raises(UserError, match=text) as error:
        jax.eval_shape(
            lambda params: nnx.merge(graph, nnx.State(params))(
                *(inputs[k] for k in ("x", "sigma", "given", "conditions"))
            ),
            shapes,
        )
    assert "\n" not in str(error.value)


# The other fusion, and what is refused


def test_sequential_is_the_block_over_views_then_over_times_in_every_layer(tiny, data):
    """One stream, layer by layer, from the base's own parts."""
    base, grid = tiny.config(), GridDiTConfig("sequential")
    params = tiny.params(base, grid)
    model: GridDiT = nnx.merge(*nnx_split(base, grid, params))

    @jax.jit
    def by_hand(x, sigma, given):
        part = model.base
        sigma = cell_sigma(sigma, given)
        temb, six = part.modulation(sigma)
        tokens = part.embed(x, given)
        for layer in range(base.depth):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], part.blocks)
            six_v = swap_view_time(six + part.context.table[1])
            tokens = swap_view_time(tokens)
            tokens = swap_view_time(block(tokens, six_v, part.angles(np.arange(VIEWS), (4, 4))))
            tokens = block(tokens, six + part.context.table[0], part.angles(np.arange(TIMES), (4, 4)))
        return part.decode(part.head(tokens, temb), x, np.zeros(x.shape[:2]))

    expected = by_hand(data["x"], data["sigma"], data["given"])
    np.testing.assert_allclose(run(tiny, data, grid), expected, atol=TOLERANCE)


# The one-stream controls


def parameter_counts(shapes) -> dict[str, int]:
    """Numbers of parameters by the part of the model."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}


@pytest.mark.parametrize("fusion", ["sequential", "fused"])
def test_matched_control_has_exactly_softs_parameters(tiny, fusion):
    soft, control, plain = (
        parameter_counts(split_model(tiny.config(), grid)[1])
        for grid in (GridDiTConfig("soft"), GridDiTConfig(fusion, matched=True), GridDiTConfig(fusion))
    )
    assert control == soft and set(soft) - set(plain) == {"sync", "sigma_projection"}


@pytest.mark.parametrize("fusion", ["sequential", "fused"])
def test_fresh_matched_control_equals_its_fusion_without(tiny, data, fusion):
    control = run(tiny, data, GridDiTConfig(fusion, matched=True), fresh_sync=True)
    np.testing.assert_allclose(control, run(tiny, data, GridDiTConfig(fusion)), atol=TOLERANCE)


@pytest.mark.parametrize("fusion", ["sequential", "fused"])
def test_matched_control_adds_a_linear_map_of_a_blocks_input_and_output(tiny, data, fusion):
    base, grid = tiny.config(depth=1), GridDiTConfig(fusion, matched=True)
    params = tiny.params(base, grid, fresh_sync=True)
    model: GridDiT = nnx.merge(*nnx_split(base, grid, params))
    linear = {
        name: 0.1 * np.random.default_rng(1).normal(size=p.shape).astype(np.float32)
        for name, p in params["sync"].items()
    }
    out = tiny.forward(base, grid)(params | {"sync": linear}, data["x"], data["sigma"], data["given"])
    block = jax.tree.map(lambda leaf: leaf[0], model.base.blocks)
    kernel, bias, table = (linear[name][0] for name in ("kernel", "bias", "modulation"))

    def corrected(x, y, *outputs):
        z = jnp.stack([(1 + table[1, part]) * value + table[0, part] for part, value in enumerate((x, y))])
        return y + sum(jnp.einsum("p...d,pde->...e", z, kernel[:, :, o]) + bias[o] for o in outputs)

    @jax.jit
    def by_hand(x, sigma, given):
        part = model.base
        temb, six = part.modulation(cell_sigma(sigma, given))
        tokens = part.embed(x, given)
        if fusion == "sequential":
            six_v, angles = swap_view_time(six + part.context.table[1]), part.angles(np.arange(VIEWS), (4, 4))
            tokens = corrected(tokens, swap_view_time(block(swap_view_time(tokens), six_v, angles)), 0)
            y = block(tokens, six + part.context.table[0], part.angles(np.arange(TIMES), (4, 4)))
            tokens = corrected(tokens, y, 1)
        else:
            angles = part.angles(np.arange(VIEWS * TIMES), (4, 4)).reshape(VIEWS, TIMES, 4, -1)
            y = block(tokens, six + part.context.table[0], angles, attention=fused_attention)
            tokens = corrected(tokens, y, 0, 1)
        return part.decode(part.head(tokens, temb), x, np.zeros(x.shape[:2]))

    expected = by_hand(data["x"], data["sigma"], data["given"])
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)
    plain = run(tiny, data, GridDiTConfig(fusion), depth=1)
    assert np.abs(out - plain).max() > 0.01


@pytest.mark.parametrize("hints", [False, True])
def test_no_given_argument_is_the_same_as_nothing_given(tiny, data, hints):
    base, grid = tiny.config(hints=hints), GridDiTConfig("soft", "zero", "mean")
    forward, params = tiny.forward(base, grid), tiny.params(base, grid)
    nothing = np.zeros_like(data["given"])
    out = forward(params, data["x"], data["sigma"])
    np.testing.assert_allclose(out, forward(params, data["x"], data["sigma"], nothing), atol=TOLERANCE)


def test_default_hints_are_those_of_the_grid_and_others_may_be_passed(tiny, data):
    base, grid = tiny.config(hints=True), GridDiTConfig("soft", "zero", "mean")
    forward, params = tiny.forward(base, grid), tiny.params(base, grid)
    hints = np.asarray(grid_hints(jnp.asarray(data["x"]), jnp.asarray(data["given"])))
    out = forward(params, data["x"], data["sigma"], data["given"])
    same = forward(params, data["x"], data["sigma"], data["given"], hints=hints)
    np.testing.assert_allclose(out, same, atol=TOLERANCE)
    other = forward(params, data["x"], data["sigma"], data["given"], hints=0.5 * hints)
    assert np.abs(out - other).max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"fusion": "medium"},
        {"fusion": "soft", "matched": True},
        {"fusion": "soft", "sync_init": "half"},
        {"fusion": "hard", "sync_init": "zero"},
        {"fusion": "fused", "sync_init": "zero"},
        {"fusion": "none", "sync_init": "zero"},
        {"fusion": "sequential", "readout": "time"},
        {"fusion": "fused", "readout": "view"},
        {"readout": "both"},
        {"fusion": "none", "matched": True},
        {"fusion": "soft", "stride": 3},
        {"fusion": "fused", "stride": 0},
        {"fusion": "base", "readout": "time"},
    ],
)
def test_combinations_that_mean_nothing_are_refused_in_one_line(settings):
    with pytest.raises(UserError, match=r"expected|there is no fusion") as error:
        GridDiTConfig(**settings)
    assert "\n" not in str(error.value)
