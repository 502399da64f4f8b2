"""What a probe changes, on models in which it is known what must come of it. All in fp32 at highest precision."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fourreal.checkpoints.specs import ModelSpec
from fourreal.codecs import PixelCodec
from fourreal.conditions import Cameras
from fourreal.conditions.condition import complete, without
from fourreal.diffusion.denoiser import Denoiser, make_denoiser
from fourreal.diffusion.flow import interpolate
from fourreal.diffusion.noise import cell_noise
from fourreal.errors import UserError
from fourreal.evaluation import probe as module
from fourreal.evaluation.evaluate import EvaluationGrid, given_cells
from fourreal.evaluation.probe import MESSAGES, Probed, probe, probe_pipeline
from fourreal.geometry.trajectories import trajectory
from fourreal.grid import Known, shown, to_unit
from fourreal.metrics.pixels import psnr
from fourreal.models import GridDiTConfig, Probe
from fourreal.models.build import split_model
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.sampling.pipeline import GridPipeline

VIEWS, TIMES, SIZE, SIGMA = 2, 3, 4, 0.7
ROUND_OFF = 2e-3  # dB: one of the 144 levels compared, rounded the other way by another program
HARD = GridDiTConfig("hard", "view", "time")


def scenes(count: int) -> SimpleNamespace:
    """Grids of noise with view 0 and time 0 given, and their noise."""
    rng = np.random.default_rng(count)
    frames = rng.integers(0, 256, (count, VIEWS, TIMES, SIZE, SIZE, 3), dtype=np.uint8)
    given = np.broadcast_to(given_cells("view_and_time", VIEWS, TIMES), (count, VIEWS, TIMES))
    return SimpleNamespace(frames=frames, given=given, noise=rng.normal(size=frames.shape).astype(np.float32))


def noised(grids, sigma: float = SIGMA) -> tuple[jax.Array, Known]:
    known = Known(to_unit(jnp.asarray(grids.frames)), jnp.asarray(grids.given))
    return interpolate(known.frames, grids.noise, jnp.full(known.mask.shape, sigma)), known


def one_step(denoiser: Denoiser, params, grids, conditions=None, sigma: float = SIGMA) -> np.ndarray:
    """The frames that a denoiser, unchanged, answers in one step."""
    x, known = noised(grids, sigma)
    return np.asarray(PixelCodec().decode({}, jax.jit(denoiser)(params, x, jnp.float32(sigma), known, conditions)))


def scored(frames: np.ndarray, grids) -> list[float]:
    """PSNR of the unknown cells of every grid."""
    each = zip(frames, grids.frames, ~grids.given[..., None, None], strict=True)
    return [psnr(*grid) for grid in each]


def probed(tiny, grids, grid: GridDiTConfig, conditions=None, layers=False, params=None, sigmas=(SIGMA,), **changes):
    """(what a probe finds, the denoiser, its parameters)."""
    base = tiny.config(**changes)
    params = tiny.params(base, grid) if params is None else params
    denoiser = make_denoiser(base, grid)
    found = probe(denoiser, params, *vars(grids).values(), conditions, sigmas=sigmas, layers=layers)
    return found, denoiser, params


def keys(found: Probed) -> set[tuple]:
    return {row[:4] for row in found.rows}


@pytest.fixture(scope="module")
def relay(tiny):
    """A probe of a model that answers with what the view stream tells the time stream, and nothing else, and its scenes.

    Hard sync of weights (w_v, w_t) = (1, 0) with fresh maps, so x_v = x_t = y_v in every layer; the head of the time stream;
    nothing copied from the input, which is the scene's own.
    """
    base, grids = tiny.config(), scenes(3)
    params = jax.tree.map(np.copy, tiny.params(base, HARD, fresh_sync=True))
    gate = params["base"]["head"]["copy_gate"]
    params["base"]["head"]["copy_gate"] = jax.tree.map(np.zeros_like, gate)
    found, denoiser, _ = probed(tiny, grids, HARD, layers=True, params=params)
    return SimpleNamespace(found=found, denoiser=denoiser, params=params, grids=grids, last=base.depth - 1)


def test_foreign_messages_of_the_last_layer_are_the_answer_of_the_scene_before(relay):
    answers = one_step(relay.denoiser, relay.params, relay.grids)
    of_others = np.where(relay.grids.given[..., None, None, None], relay.grids.frames, np.roll(answers, 1, axis=0))
    expected = scored(of_others, relay.grids)
    assert np.abs(np.subtract(expected, scored(answers, relay.grids))).min() > 0.05
    for of in ({"stream": "view", "layer": relay.last}, {"stream": "view"}, {}):
        foreign = relay.found.psnr(SIGMA, change="foreign", **of)
        np.testing.assert_allclose(foreign, expected, atol=ROUND_OFF)


def test_silent_messages_of_the_last_layer_leave_a_head_of_zeros(relay):
    """The message is all of the time stream, so without it the tokens are zeros: the same answer to every scene."""
    silent = relay.found.psnr(SIGMA, change="silent", stream="view", layer=relay.last)
    model = nnx.merge(relay.denoiser.graph, nnx.State(relay.params))
    x, known = noised(relay.grids)

    @jax.jit
    def head_of_zeros(x):
        base = model.base
        temb, _ = base.modulation(jnp.where(known.mask, 0.0, SIGMA))
        return base.decode(base.head(base.embed(x, known.mask) * 0, temb), x, jnp.where(known.mask, 0.0, SIGMA))

    np.testing.assert_allclose(
        silent, scored(np.asarray(PixelCodec().decode({}, head_of_zeros(x))), relay.grids), atol=ROUND_OFF
    )


@pytest.mark.parametrize("change", ["silent", "foreign"])
def test_messages_that_nobody_hears_change_nothing_to_the_last_bit(relay, change):
    """w_t = 0: the time stream sends zeros, and what it is sent before the last layer is gone after the next one."""
    kept = relay.found.psnr(SIGMA)
    unheard = [{"stream": "time"}, *({"stream": "time", "layer": layer} for layer in range(relay.last + 1))]
    unheard += [{"stream": "view", "layer": layer} for layer in range(relay.last)]
    for of in unheard:
        np.testing.assert_array_equal(relay.found.psnr(SIGMA, change=change, **of), kept)
    assert (relay.found.psnr(SIGMA, change=change, stream="view") != kept).all()


def test_strength_and_gap_of_streams_that_become_one(relay):
    np.testing.assert_allclose(relay.found.strength["view"], 1, atol=1e-6)
    np.testing.assert_allclose(relay.found.strength["time"], 0)
    np.testing.assert_allclose(relay.found.gap, 0)
    np.testing.assert_allclose(relay.found.heads_gap, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "streams"),
    [
        (GridDiTConfig("soft"), ["view", "time"]),
        (GridDiTConfig("soft:every=2"), ["view", "time"]),
        (GridDiTConfig("hard", readout="view"), ["view", "time"]),
        (GridDiTConfig("sequential"), ["view", "time"]),
        (GridDiTConfig("fused"), ["stream"]),
        (GridDiTConfig("none"), []),
    ],
    ids=lambda value: getattr(value, "fusion", ""),
)
def test_kept_is_the_models_own_answer_and_there_is_a_row_for_every_stream_that_speaks(tiny, grid, streams):
    grids = scenes(2)
    found, denoiser, params = probed(tiny, grids, grid, layers=True, hints=True)
    expected = scored(one_step(denoiser, params, grids), grids)
    np.testing.assert_allclose(found.psnr(SIGMA), expected, atol=ROUND_OFF)
    rows = {(MESSAGES, "kept", None, None)}
    for change in ("silent", "foreign"):
        rows |= {("hints", change, None, None)}
        rows |= {(MESSAGES, change, None, None)} if streams else set()
        rows |= {(MESSAGES, change, stream, None) for stream in streams if len(streams) > 1}
        rows |= {(MESSAGES, change, stream, layer) for stream in streams for layer in range(2)}
    assert keys(found) == rows
    if streams:  # both streams of a model with random maps hear each other
        for change in ("silent", "foreign"):
            assert (np.abs(found.psnr(SIGMA, change=change) - found.psnr(SIGMA)) > 0.01).all()
    two, added = len(grid.make_fusion().readouts) > 1, grid.fusion != "fused"
    assert np.shape(found.gap) == ((1, 2) if two else (0,)) and len(found.heads_gap) == two
    assert set(found.strength) == set(streams if added else [])


def test_hints_are_silent_as_without_them_and_foreign_as_those_of_the_scene_before(tiny):
    grids, grid = scenes(3), GridDiTConfig("none")
    found, denoiser, params = probed(tiny, grids, grid, hints=True)
    _, known = noised(grids)
    told = complete(denoiser.conditions, {}, shown(known))
    silent = one_step(denoiser, params, grids, without(denoiser.conditions, told, frozenset({"hints"})))
    np.testing.assert_allclose(found.psnr(SIGMA, "hints", "silent"), scored(silent, grids), atol=ROUND_OFF)
    foreign = one_step(denoiser, params, grids, {"hints": jnp.roll(told["hints"], 1, axis=0)})
    np.testing.assert_allclose(found.psnr(SIGMA, "hints", "foreign"), scored(foreign, grids), atol=ROUND_OFF)
    assert len({found.mean(SIGMA), found.mean(SIGMA, "hints", "silent"), found.mean(SIGMA, "hints", "foreign")}) == 3


def test_a_lender_is_itself_undisturbed(tiny):
    """With foreign messages in all layers, those of layer 1 are of a scene that heard its own in layer 0."""
    grids, grid, base = scenes(3), GridDiTConfig("soft"), tiny.config()
    found, denoiser, params = probed(tiny, grids, grid)
    x, known = noised(grids)

    def by_hand(exchange) -> tuple[np.ndarray, dict]:
        kept = {}

        def spy(message, layer, stream):
            kept[stream] = message
            return exchange(message, layer, stream)

        def run(x):
            probe = Probe(spy, lambda streams: dict(kept))
            heads, *_ = denoiser.heads(params, x, jnp.float32(SIGMA), known, probe=probe)
            return jnp.where(known.mask[..., None, None, None], known.frames, heads.readout), heads.observed

        out, messages = jax.jit(run)(x)
        return np.asarray(PixelCodec().decode({}, out)), messages

    _, messages = by_hand(lambda message, layer, stream: message)
    others = jax.tree.map(lambda x: jnp.roll(x, 1, axis=1), messages)
    foreign, _ = by_hand(lambda message, layer, stream: others[stream][layer])
    assert messages["view"].shape[0] == base.depth == 2
    np.testing.assert_allclose(found.psnr(SIGMA, change="foreign"), scored(foreign, grids), atol=ROUND_OFF)


def test_strength_and_gap_are_those_of_the_streams_and_messages(tiny):
    """Against NumPy in float64, on what a probe of the model itself sees."""
    grids, grid = scenes(2), GridDiTConfig("soft", "consensus")
    found, denoiser, params = probed(tiny, grids, grid)
    x, known = noised(grids)
    sent = {}

    def spy(message, layer, stream):
        sent[stream] = message
        return message

    def run(x):
        return denoiser.heads(params, x, jnp.float32(SIGMA), known, probe=Probe(spy, lambda s: (dict(sent), s)))[0]

    heads = jax.tree.map(lambda x: np.float64(x), jax.jit(run)(x))
    messages, streams = heads.observed  # [layers n ...]

    def mean_square(x, axes=(2, 3, 4, 5)):
        return np.mean(np.square(x), axis=axes)

    for name, other in (("view", "time"), ("time", "view")):
        strength = np.sqrt(mean_square(messages[name]) / mean_square(streams[other])).mean(1)
        np.testing.assert_allclose(found.strength[name], strength[None], rtol=1e-5)
    apart, of_view, of_time = (
        mean_square(x, (4, 5)) for x in (streams["view"] - streams["time"], streams["view"], streams["time"])
    )
    np.testing.assert_allclose(found.gap, (2 * apart / (of_view + of_time)).mean((1, 2, 3))[None], rtol=1e-5)
    view, time = (np.where(known.mask[..., None, None, None], known.frames, head) for head in heads.streams.values())
    axes = tuple(range(1, 6))
    expected = mean_square(view - time, axes) / mean_square((view + time) / 2 - known.frames, axes)
    np.testing.assert_allclose(found.heads_gap, [expected.mean()], rtol=1e-5)


def test_several_programs_say_the_same_as_one(tiny, monkeypatch):
    """Grids in parts of 2, the last filled up, are lent the messages of the grid before them, of another part or not."""
    grids, grid = scenes(5), GridDiTConfig("soft")
    whole, *_ = probed(tiny, grids, grid, hints=True)
    monkeypatch.setattr(module, "TOGETHER", 2)
    parts, *_ = probed(tiny, grids, grid, hints=True)
    assert [row[:5] for row in parts.rows] == [row[:5] for row in whole.rows]
    for one, other in zip(parts.rows, whole.rows, strict=True):
        np.testing.assert_allclose(one.psnr, other.psnr, atol=ROUND_OFF)
    for name in ("heads_gap", "gap", "strength"):
        ours, theirs = (jax.tree.leaves(getattr(found, name)) for found in (parts, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda grids: [x[:1] for x in vars(grids).values()], "found 1"),
        (lambda grids: [grids.frames, np.arange(12).reshape(2, 2, 3) < 5, grids.noise], "the same given cells"),
        (lambda grids: [grids.frames, np.ones_like(grids.given), grids.noise], "without"),
    ],
)
def test_grids_that_cannot_be_probed_are_refused_in_a_line(tiny, change, message):
    base, grid = tiny.config(), GridDiTConfig("none")
    with pytest.raises(UserError, match=message) as error:
        probe(make_denoiser(base, grid), split_model(base, grid)[1], *change(scenes(2)))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_four_devices_find_what_one_finds(tiny, fusion):
    base, grid = tiny.config(hints=True, cameras=True), GridDiTConfig(fusion)
    spec, cells = ModelSpec(base, grid, 2, 4, (SIZE, SIZE)), given_cells("view_and_time", 2, 4)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 4, SIZE, SIZE, 3), dtype=np.uint8)
    grids = [EvaluationGrid(truth, cells, trajectory("orbit:40", 2, (SIZE, SIZE))) for truth in frames]
    one, four = (
        probe_pipeline(GridPipeline(spec, tiny.params(base, grid), mesh=make_mesh(config, devices)), grids, [SIGMA])
        for config, devices in (
            (MeshConfig(), jax.local_devices()[:1]),
            (MeshConfig(data=2, grid=2), jax.local_devices()[:4]),
        )
    )
    assert [row[:5] for row in four.rows] == [row[:5] for row in one.rows]
    for ours, theirs in zip(four.rows, one.rows, strict=True):
        np.testing.assert_allclose(ours.psnr, theirs.psnr, atol=ROUND_OFF)
    np.testing.assert_allclose(jax.tree.leaves(four.strength), jax.tree.leaves(one.strength), rtol=1e-5)
    np.testing.assert_allclose(four.gap, one.gap, rtol=1e-5)


class Pipeline:
    """What a probe takes from a pipeline that can be told cameras."""

    cameras_taken, denoiser, params, told = ("cameras",), "denoiser", "params", GridPipeline.told

    def __init__(self, base):
        self.config = ModelSpec(base, GridDiTConfig("soft"), VIEWS, TIMES, (SIZE, SIZE))
        self.mesh = jax.make_mesh((1,), ("data",))


@pytest.mark.parametrize("all_have", [True, False])
def test_a_checkpoint_is_probed_with_the_noise_of_each_grid_and_its_cameras_if_all_have_some(
    tiny, monkeypatch, all_have
):
    grids = scenes(2)
    poses = [trajectory(f"orbit:{degrees}", VIEWS, (SIZE, SIZE)) for degrees in (20, 40)]
    listed = [EvaluationGrid(*each) for each in zip(grids.frames, grids.given, poses, strict=True)]
    if not all_have:
        listed[1] = EvaluationGrid(grids.frames[1], grids.given[1])
    monkeypatch.setattr(module, "probe", lambda *arguments, **options: (arguments, options))
    (denoiser, params, frames, given, noise, told), options = probe_pipeline(
        Pipeline(tiny.config(cameras=True)), listed, [0.5]
    )
    assert (denoiser, params, options["sigmas"]) == ("denoiser", "params", (0.5,))
    np.testing.assert_array_equal(frames, grids.frames)
    np.testing.assert_array_equal(given, grids.given)
    np.testing.assert_array_equal(noise, [cell_noise(seed, VIEWS, TIMES, (SIZE, SIZE, 3)) for seed in range(2)])
    assert set(told) == ({Cameras.kind} if all_have else set())
    if all_have:
        from_first = [pose.c2w - np.pad(pose.c2w[:1, :3, 3:], ((0, 0), (0, 1), (3, 0))) for pose in poses]
        np.testing.assert_allclose(told["cameras"].c2w, from_first, atol=1e-6)
