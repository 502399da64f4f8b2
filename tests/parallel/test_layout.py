"""The mesh's sizes, the table of parameters, and where activations and batches go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.checkpoints.weights import flat_names, open_weights, read_placed, save_weights
from fourreal.conditions import Condition, Prope
from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CLIPS, CutMix
from fourreal.models import GridDiT, GridDiTConfig, VideoDiT
from fourreal.models.build import fresh_params, model_table, split_model
from fourreal.parallel import activations, layout
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.scene import Cameras
from fourreal.training.config import TrainConfig
from fourreal.training.state import fresh_state
from fourreal.training.step import fusion_of, input_axes


def mesh(**sizes: int):
    return jax.set_mesh(make_mesh(MeshConfig(**sizes), jax.local_devices()))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(grid=2, tensor=2), (2, 1, 2, 2)),
        (MeshConfig(data=1, fsdp=-1, grid=2), (1, 4, 2, 1)),
    ],
)
def test_axis_of_minus_one_takes_the_devices_that_are_left(config, wanted):
    assert tuple(config.sizes(8).values()) == wanted
    assert make_mesh(config, jax.local_devices()).devices.shape == wanted


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as a run of several hosts shows it: what it calls a slice is the host."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"


@pytest.mark.parametrize("processes", [2, 16])
def test_gpus_of_several_hosts_are_one_slice_and_inner_axes_stay_within_a_host(processes):
    """Also where ids and processes go round the hosts."""
    gpus = [Gpu(i, i % processes, i % 2) for i in range(16)]
    placed = make_mesh(MeshConfig(data=1, fsdp=4, grid=2, tensor=2), gpus).devices
    assert {device.id for device in placed.flat} == set(range(16))
    for part in placed[0]:
        assert len({device.slice_index for device in part.flat}) == 1
    assert make_mesh(MeshConfig(data=1, fsdp=16), gpus).devices.shape == (1, 16, 1, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeshConfig(grid=0), "mesh.grid is 0: give 1 or more"),
        (lambda: MeshConfig(fsdp=-1), "only one axis can be -1"),
        (lambda: MeshConfig(grid=3).sizes(8), "grid 3 on 8 devices: the sizes' product must be 8"),
        (lambda: MeshConfig(data=3, grid=4).sizes(12, slices=2), "mesh.data is 3 on 2 slices: .* multiple of 2"),
    ],
)
def test_sizes_that_do_not_come_out_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_grid_axis_of_more_devices_than_views_or_times_is_refused_with_the_sizes_that_would_do(tiny):
    model = GridDiT(VideoDiT(tiny.config(), rngs=_rngs()), GridDiTConfig(), rngs=_rngs())
    with (
        mesh(grid=8),
        pytest.raises(ValueError, match=r"mesh.grid 8 is too many for 4 views and 6 times: give 1 to 4$"),
    ):
        model(jnp.zeros((1, 4, 6, 4, 4, 3)), jnp.ones(1))


@pytest.mark.slow
def test_tensor_axis_that_does_not_divide_the_heads_is_refused(tiny):
    with mesh(tensor=4), pytest.raises(ValueError, match=r"mesh.tensor 4 does not divide 2 heads: give 1 or 2"):
        VideoDiT(tiny.config(), rngs=_rngs())(jnp.zeros((1, 2, 4, 4, 3)), jnp.ones(1))


def test_widths_that_the_mesh_does_not_cut_evenly_are_refused(tiny):
    with mesh(fsdp=8), pytest.raises(ValueError, match=r"must divide model\.width 20"):
        layout.check_widths(tiny.config(width=20))


def test_rank_coded_tensor_passes_the_layout_switch_and_back_without_a_misplaced_element():
    """Every element says its own (b, v, t, s), and every device's share of the switched tensor is what its place says."""
    b, v, t, s = np.meshgrid(*map(np.arange, (4, 8, 4, 3)), indexing="ij")
    coded = b * 1000 + v * 100 + t * 10 + s
    with mesh(fsdp=2, grid=4):
        x = jax.device_put(coded, NamedSharding(jax.sharding.get_mesh(), P("fsdp", "grid")))
        switched = jax.jit(activations.swap_view_time)(x)
        back = jax.jit(activations.swap_view_time)(switched)
    assert switched.sharding.spec[:2] == ("fsdp", "grid")
    for shard in switched.addressable_shards:
        assert shard.data.shape == (2, 1, 8, 3)
        np.testing.assert_array_equal(shard.data, np.swapaxes(coded, 1, 2)[shard.index])
    np.testing.assert_array_equal(back, coded)


def test_clips_that_fill_up_a_stream_stay_behind_at_the_switch_and_new_ones_are_zeros():
    """6 views and 5 times on a grid axis of 4 become 8 times of 6 views, and those 8 views of 5 times."""
    coded = np.arange(1, 1 + 4 * 6 * 5 * 3).reshape(4, 6, 5, 3)
    with mesh(fsdp=2, grid=4):
        switched = jax.jit(activations.swap_view_time)(coded)
        back = jax.jit(functools.partial(activations.swap_view_time, views=5))(switched)
    np.testing.assert_array_equal(switched[:, :5], np.swapaxes(coded, 1, 2))
    np.testing.assert_array_equal(back[:, :6], coded)
    assert switched.shape == (4, 8, 6, 3) and back.shape == (4, 8, 5, 3)
    assert not switched[:, 5:].any() and not back[:, 6:].any()
    assert switched.sharding.spec[:2] == ("fsdp", "grid")


def test_switch_is_one_all_to_all_and_nothing_else():
    with mesh(grid=4):
        x = jax.ShapeDtypeStruct(
            (2, 8, 4, 3), jnp.float32, sharding=NamedSharding(jax.sharding.get_mesh(), P("data", "grid"))
        )
        text = jax.jit(activations.swap_view_time).lower(x).compile().as_text()
    counts = {
        kind: text.count(f" {kind}(") for kind in ("all-to-all", "all-gather", "all-reduce", "collective-permute")
    }
    assert counts == {"all-to-all": 1, "all-gather": 0, "all-reduce": 0, "collective-permute": 0}


@pytest.mark.parametrize(
    "grid",
    [GridDiTConfig("base"), GridDiTConfig(), GridDiTConfig("hard"), GridDiTConfig("fused", matched=True)],
    ids=lambda grid: grid.fusion,
)
def test_table_knows_every_parameter_and_every_axis_it_cuts_is_there(tiny, grid):
    base = tiny.config(hints=True, cameras=True, text_width=8, heads=3, conditions=(Prope(),))
    table, shapes = model_table(base, grid), flat_names(split_model(base, grid)[1])
    assert table.keys() == shapes.keys()
    for name, shape in shapes.items():
        spec = table[name].spec
        assert len(spec) <= 1 or len(spec) == len(shape.shape), name
        if name.endswith("kernel"):
            assert ("fsdp", "grid") in spec, name  # nothing large is whole on every device


@pytest.mark.parametrize(("lead", "devices"), [(2, 4), (1, 8)])
def test_microbatches_are_equal_parts_of_every_devices_own_examples(lead, devices):
    """The largest that divide a device's six examples and have at most four; nothing is sent."""
    with mesh(fsdp=2, grid=2):
        over = P(("data", "fsdp") if lead == 2 else ("data", "fsdp", "grid"))
        x = jax.device_put(np.arange(6.0 * devices), NamedSharding(jax.sharding.get_mesh(), over))
        split = jax.jit(lambda x: activations.split_examples(x, 4, lead)).lower(x).compile()
        parts = split(x)
    expected = [
        np.concatenate([np.arange(3) + 6 * device + 3 * part for device in range(devices)]) for part in range(2)
    ]
    np.testing.assert_array_equal(parts, expected)
    assert all(kind not in split.as_text() for kind in ("all-gather", "all-reduce", "all-to-all", "permute"))


class Forgetful(nnx.Module):
    """A module that claims one of its two parameters."""

    layout = {"kernel": P(None, layout.FSDP)}  # noqa: RUF012

    def __init__(self):
        self.kernel, self.bias = nnx.Param(jnp.zeros((4, 8))), nnx.Param(jnp.zeros(8))


@dataclasses.dataclass(frozen=True)
class Careless(Condition):
    """A condition whose module forgets to claim a parameter."""

    kind = "careless"

    def module(self, base, rngs):
        return Forgetful()


def test_parameter_that_no_module_claims_is_refused_with_its_path_where_the_model_is_laid_out(tiny):
    """Also one in a condition's module, and before anything of it is made."""
    with pytest.raises(TypeError, match=r"no module claims the parameter base\.conditions\.careless\.bias: .*`layout`"):
        model_table(tiny.config(conditions=(Careless(),)), GridDiTConfig("base"))


def test_claims_of_stacked_layers_leave_the_layer_axis_whole_and_keep_the_group_of_the_module(tiny):
    table = model_table(tiny.config(text_width=8), GridDiTConfig())
    assert table["base.blocks.mlp.in_.kernel"].spec == P(None, layout.FSDP, "tensor")
    assert table["sync.mod_linear.kernel"][:2] == (P(None, None, layout.FSDP, None, "tensor"), "sync")
    assert table["base.given.vector"].group == "conditions"
    assert table["base.blocks.attention.query.kernel"].group == "attention"
    assert table["base.patch_embed.kernel"].group == "base"


def test_every_device_holds_its_part_of_the_state_alone_and_the_values_are_those_of_one_device(tiny):
    """Parameters, average and both moments of AdamW are made in parts, without a whole one anywhere."""
    base, grid = tiny.config(), GridDiTConfig()
    config = TrainConfig("x", base, grid)
    wanted = fresh_params(base, grid, 0)
    with mesh(fsdp=2, grid=2, tensor=2, data=1):
        table = model_table(base, grid)
        params = fresh_params(base, grid, 0, layout.shardings(split_model(base, grid)[1], table))
        state = layout.jit_placed(lambda params: fresh_state(params, config), table, params)(params)
    for name, leaf in flat_names(params).items():
        np.testing.assert_array_equal(leaf, flat_names(wanted)[name], err_msg=name)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "'query'" in jax.tree_util.keystr(path) and "'kernel'" in jax.tree_util.keystr(path)
    ]
    assert len(kernels) == 4  # params, ema, mu, nu
    for leaf in kernels:
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(2, 24 // 4, 24 // 2)}


@pytest.mark.parametrize(
    ("fusion", "shares"),
    [
        ("soft", {"given": (4, 1, 2), "K": (4, 1, 3, 3), "c2w": (4, 1, 4, 4), "text": (4, 5, 6), "known": (4,)}),
        ("base", {"given": (1, 4, 2), "K": (1, 4, 3, 3), "c2w": (1, 4, 4, 4), "text": (1, 5, 6), "known": (1,)}),
    ],
)
def test_batch_is_cut_over_examples_and_views_and_a_base_s_over_examples_alone(tiny, fusion, shares):
    """Of a condition's value each array by its own axes; a grid's text and flags are where its frames are."""
    rng, base = np.random.default_rng(0), tiny.config(cameras=True, text_width=6)
    K, c2w, text = (rng.normal(size=(8, *shape)).astype(np.float32) for shape in ((4, 3, 3), (4, 4, 4), (5, 6)))
    conditions = {"cameras": Cameras(K, c2w, known=np.arange(8) % 2 > 0), "text": text}
    batch = {"given": rng.random((8, 4, 2)) < 0.5, "conditions": conditions}
    cuts = CutMix() if fusion == "soft" else CLIPS
    config = TrainConfig("x", base, GridDiTConfig(fusion), data=PipelineConfig(cuts=cuts))
    lead = fusion_of(config).lead
    with mesh(data=2, grid=4):
        shapes = layout.batch_shapes(batch, input_axes(config, batch), 1, lead)
        assert layout.share_of_batch(lead, 8) == (0, 1)
        placed = layout.put_batch(batch, shapes, (0, 1))
    told = placed["conditions"]
    arrays = {"given": placed["given"], "text": told["text"]} | told["cameras"]._asdict()
    found = {name: {s.data.shape for s in x.addressable_shards} for name, x in arrays.items() if x is not None}
    assert found == {name: {shape} for name, shape in shares.items()}
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


@pytest.mark.parametrize("size", [4, 6, 16])
def test_part_of_a_batch_is_the_smallest_that_holds_a_processes_rows(size):
    for first in range(size):
        for end in range(first + 1, size + 1):
            which, parts = layout.smallest_part(first, end, size)
            fits = {
                (at, count)
                for count in range(1, size + 1)
                for at in range(count)
                if size % count == 0 and at * size // count <= first and end <= (at + 1) * size // count
            }
            assert (which, parts) == max(fits, key=lambda part: part[1])


def test_weights_are_read_where_they_live_each_part_once(tmp_path):
    values = np.arange(2 * 24 * 8, dtype=np.float32).reshape(2, 24, 8)
    save_weights(tmp_path, {"base": values}, {}, dtype="float32")
    with mesh(data=2, fsdp=2, tensor=2), open_weights(tmp_path) as tensors:
        read = []
        tensor = dataclasses.replace(tensors["base"], slices=Recorded(tensors["base"].slices, read))
        placed = read_placed(tensor, NamedSharding(jax.sharding.get_mesh(), P(None, ("fsdp", "grid"), "tensor")))
    np.testing.assert_array_equal(placed, values)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 12, 4)}
    assert read == [(2, 12, 4)] * 4  # the two groups of data hold the same


class Recorded:
    """Notes the shapes of what is read."""

    def __init__(self, slices, read: list):
        self.slices, self.read = slices, read

    def __getitem__(self, index):
        self.read.append(self.slices[index].shape)
        return self.slices[index]


def _rngs():
    return nnx.Rngs(0)


class _Places:
    """The devices of one process, as a sharding says what they hold."""

    def __init__(self, sharding, own):
        self.sharding, self.own = sharding, own

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.sharding.devices_indices_map(shape).items() if d.id in self.own}


@pytest.mark.parametrize(
    ("axes", "per_process", "size", "expected"),
    [
        ({"fsdp": 2, "grid": 4}, 2, 8, [(1, 4)] * 4),  # two processes hold the same examples: each reads half of them
        ({"fsdp": 2, "grid": 4}, 2, 4, [(2, 2)] * 4),  # 8 devices do not divide 4 examples
        ({"fsdp": 2, "grid": 4}, 4, 8, [(2, 2)] * 2),  # all views of its examples are a process's own
    ],
)
def test_processes_that_hold_other_views_of_the_same_examples_read_them_once(
    axes, per_process, size, expected, monkeypatch
):
    with mesh(**axes):
        devices = [device.id for device in jax.sharding.get_mesh().devices.flat]
        for place, (lead, parts) in enumerate(expected):
            own = devices[place * per_process : (place + 1) * per_process]
            monkeypatch.setattr(layout, "NamedSharding", lambda *of, own=own: _Places(NamedSharding(*of), own))
            assert layout.reading_lead(2, size) == lead
            assert layout.share_of_batch(lead, size) == (place * parts // len(expected), parts)
