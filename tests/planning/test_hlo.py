"""Counts of compiled programs against what the programs say: on eight CPU devices, and in lines that XLA wrote for v5e."""

# ruff: noqa: E501  (the lines are not ours)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fourreal.planning.collectives import Collective, collectives, device_groups
from fourreal.planning.hlo import parse
from fourreal.planning.traffic import memory_traffic

STEPS = 5


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), devices=jax.local_devices()[:8], axis_types=(AxisType.Auto,) * 2)


def found_in(mesh, function, shape: tuple[int, ...]) -> list[Collective]:
    """The collectives of a function of one array, every device's own share of it, run in a loop."""

    def loop(x):
        return jax.lax.scan(lambda x, _: (function(x), None), x, length=STEPS)[0]

    local = jax.shard_map(loop, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
    whole = jax.ShapeDtypeStruct((8 * shape[0], *shape[1:]), jnp.float32)
    text = jax.jit(local).lower(whole).compile().as_text()
    return collectives(parse(text))


BYTES = 8 * 16 * 4  # of a device's share
ROWS, COLUMNS = ((0, 1, 2, 3), (4, 5, 6, 7)), ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("function", "kind", "payload", "groups", "sent"),
    [
        (lambda x: jax.lax.psum(x, "a") / 2, "all-reduce", BYTES, COLUMNS, BYTES),
        (lambda x: jax.lax.psum(x, "b") / 2, "all-reduce", BYTES, ROWS, 1.5 * BYTES),
        (lambda x: jnp.sum(jax.lax.all_gather(x, "b"), 0), "all-gather", 4 * BYTES, ROWS, 3 * BYTES),
        (
            lambda x: jnp.tile(jax.lax.psum_scatter(x, "b", tiled=True), (4, 1)),
            "reduce-scatter",
            BYTES,
            ROWS,
            0.75 * BYTES,
        ),
        (lambda x: jax.lax.all_to_all(x, "b", 1, 1, tiled=True), "all-to-all", BYTES, ROWS, 0.75 * BYTES),
        (
            lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2)]),
            "collective-permute",
            BYTES,
            ((0, 1), (1, 2), (4, 5), (5, 6)),
            BYTES,
        ),
    ],
    ids=["all-reduce of 2", "all-reduce of 4", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"],
)
def test_collective_in_a_loop_counts_as_often_as_the_loop_runs(mesh, function, kind, payload, groups, sent):
    (collective,) = found_in(mesh, function, (8, 16))
    assert (collective.kind, collective.payload, collective.count) == (kind, payload, STEPS)
    assert sorted(collective.groups) == sorted(groups)
    assert collective.sent == sent and not collective.between_slices


def test_loop_in_a_loop_multiplies(mesh):
    def three_times(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.psum(x, "b") / 2, x)

    (collective,) = found_in(mesh, three_times, (8, 16))
    assert collective.count == 3 * STEPS


def test_program_on_one_device_has_no_collective():
    text = jax.jit(lambda x: x @ x).lower(np.zeros((4, 4), np.float32)).compile().as_text()
    assert collectives(parse(text)) == []


def test_kernels_metadata_over_several_lines_does_not_end_a_computation():
    names = [each.name for each in parse(V5E).computations["body"]]
    assert {"splash_mha_fwd", "all_to_all.72", "tuple.9"} <= set(names)
    with pytest.raises(ValueError, match="body has no result"):
        parse(V5E.replace("  ROOT %tuple.9 =", "  %tuple.9 ="))


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule nothing\n")


# Lines of a training step that XLA's compiler for TPUs (libtpu 0.0.42) wrote for v5e:2x4, without their metadata and most of
# their arguments: a scan of 6 layers and its backward, which runs its first layer before the loop.
V5E = r"""HloModule jit_step, is_scheduled=true, num_partitions=8

%fused_computation.74 (param_0.216: bf16[2048,128]) -> (bf16[2048,128], bf16[2048,512], s32[2], u32[], u32[]) {
  %param_0.216 = bf16[2048,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.35 = bf16[2048,512]{1,0:T(8,128)(2,1)} all-gather(%param_0.216), channel_id=7, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[],"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"},"used_scoped_memory_configs":[]}
  ROOT %custom-call.2 = (bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[2048,512]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}, /*index=4*/u32[]{:S(2)}) custom-call(%all-gather.35), custom_call_target="AsyncCollectiveStart"
}

%fused_computation.77 (param_0.229: bf16[2048,128], param_1.206: bf16[2048,512], param_2.158: s32[2]) -> bf16[2048,512] {
  %param_0.229 = bf16[2048,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.206 = bf16[2048,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %param_2.158 = s32[2]{0:S(4)} parameter(2)
  %all-gather.41 = bf16[2048,512]{1,0:T(8,128)(2,1)} all-gather(%param_0.229), channel_id=7, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[],"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"},"used_scoped_memory_configs":[]}
  ROOT %custom-call.4 = bf16[2048,512]{1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.229, %param_1.206, %all-gather.41, %param_2.158), custom_call_target="AsyncCollectiveDone"
}

%add.clone (x.3: bf16[], y.1: bf16[]) -> bf16[] {
  %x.3 = bf16[]{:T(256)} parameter(0)
  %y.1 = bf16[]{:T(256)} parameter(1)
  ROOT %add.230 = bf16[]{:T(256)} add(%x.3, %y.1)
}

%all-reduce-scatter.clone.1 (input.2: bf16[512,2048]) -> bf16[128,2048] {
  %input.2 = bf16[512,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.10 = bf16[512,2048]{1,0:T(8,128)(2,1)} all-reduce(%input.2), channel_id=10, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add.clone, frontend_attributes={from-cross-replica-sharding="true"}
  %constant.shard_id_table.2 = u32[8]{0:T(128)} constant({0, 1, 2, 3, 0, 1, 2, 3})
  %partition-id.14 = u32[] partition-id()
  %dynamic-slice.36 = u32[1]{0:T(128)} dynamic-slice(%constant.shard_id_table.2, %partition-id.14), dynamic_slice_sizes={1}
  %bitcast.130 = u32[]{:T(128)} bitcast(%dynamic-slice.36)
  %constant.266 = u32[] constant(0)
  ROOT %dynamic-slice.37 = bf16[128,2048]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.10, %bitcast.130, %constant.266), dynamic_slice_sizes={128,2048}
}

%body (wide.param.1: (s32[], bf16[2048,128], bf16[512,2048], f32[2,2,4,64,512])) -> (s32[], bf16[2048,128], bf16[512,2048], f32[2,2,4,64,512]) {
  %wide.param.1 = (s32[]{:T(128)}, bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  %weights = bf16[2048,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param.1), index=1
  %gradient = bf16[512,2048]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param.1), index=2
  %x = f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)} get-tuple-element(%wide.param.1), index=3
  %async-collective-start = (bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[2048,512]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}, /*index=4*/u32[]{:S(2)}) fusion(%weights), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.74
  %get-tuple-element.357 = bf16[2048,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=0
  %get-tuple-element.358 = bf16[2048,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=1
  %get-tuple-element.359 = s32[2]{0:S(4)} get-tuple-element(%async-collective-start), index=2
  %splash_mha_fwd = bf16[2,2,4,64,512]{4,3,2,1,0:T(8,128)(2,1)S(1)} custom-call(%gradient), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[512,2048]{1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 768, \"block_kv\": 1536, \"block_q_dkv\": null}"
}}, metadata={op_name="jit(step)/jvp()/while/body/closed_call"}
  %all_to_all.72 = f32[2,2,4,64,512]{4,3,1,0,2:T(8,128)} all-to-all(%x), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={2}
  %async-collective-done = bf16[2048,512]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.357, %get-tuple-element.358, %get-tuple-element.359), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%fused_computation.77
  %fusion.105 = bf16[128,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.clone.1
  %send.7 = (bf16[128,2048]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%fusion.105, %after-all.7), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.11_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.7 = (bf16[128,2048]{1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all.7), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.11_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %tuple.9 = (s32[]{:T(128)}, bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)}) tuple(%counter, %weights, %gradient, %all_to_all.72)
}

%condition (wide.param.7: (s32[], bf16[2048,128], bf16[512,2048], f32[2,2,4,64,512])) -> pred[] {
  %constant.136.clone.1 = s32[]{:T(128)} constant(6)
  %wide.param.7 = (s32[]{:T(128)}, bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)}) parameter(0)
  %get-tuple-element.244 = s32[]{:T(128)} get-tuple-element(%wide.param.7), index=0
  ROOT %lt.11 = pred[]{:T(512)} compare(%get-tuple-element.244, %constant.136.clone.1), direction=LT
}

ENTRY %main.10_spmd (param.8: bf16[2048,128], param.10: bf16[512,2048], param.9: f32[2,2,4,64,512]) -> f32[2,2,4,64,512] {
  %param.8 = bf16[2048,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param.10 = bf16[512,2048]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %param.9 = f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)} parameter(2)
  %constant.57 = s32[]{:T(128)} constant(1)
  %copy.3 = s32[]{:T(128)} copy(%constant.57)
  %tuple.69 = (s32[]{:T(128)}, bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)}) tuple(%copy.3, %param.8, %param.10, %param.9)
  %while.30 = (s32[]{:T(128)}, bf16[2048,128]{1,0:T(8,128)(2,1)S(1)}, bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)}) while(%tuple.69), condition=%condition, body=%body
  ROOT %get-tuple-element.6 = f32[2,2,4,64,512]{4,3,2,1,0:T(8,128)} get-tuple-element(%while.30), index=3
}
"""


def test_loop_of_a_tpu_program_runs_from_where_its_counter_starts_to_its_bound():
    assert dict(parse(V5E).runs()) == {"main.10_spmd": 1, "body": 6 - 1}


@functools.cache
def of_v5e() -> dict[tuple[str, bool], Collective]:
    return {(each.kind, each.between_slices): each for each in collectives(parse(V5E))}


def test_asynchronous_collective_counts_once_though_it_stands_in_every_fusion_that_it_overlaps():
    gather = of_v5e()["all-gather", False]
    assert (gather.count, gather.payload, gather.sent) == (5, 2048 * 512 * 2, 0.75 * 2048 * 512 * 2)


def test_collective_overlaps_where_something_is_computed_between_its_start_and_its_end():
    """A kernel runs while V5E gathers, which alone is asynchronous there; nothing while TPU7X does."""
    overlaps = {kind: each.overlaps for kind, each in of_v5e().items()}
    assert overlaps.pop(("all-gather", False)) and not any(overlaps.values())
    (gather,) = collectives(parse(TPU7X))
    assert not gather.overlaps
    start = TPU7X.index("  %all-gather.282.cloned.1.call-done")
    kernel = '  %kernel = bf16[32,128]{1,0} custom-call(%part), custom_call_target="tpu_custom_call"\n'
    (gather,) = collectives(parse(TPU7X[:start] + kernel + TPU7X[start:]))
    assert gather.overlaps
    idle = "\n".join(line for line in V5E.splitlines() if not line.startswith("  %splash_mha_fwd"))
    assert not any(each.overlaps for each in collectives(parse(idle)))


def test_groups_named_by_axes_of_a_transposed_mesh():
    assert of_v5e()["all-gather", False].groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert device_groups("replica_groups=[4,2]<=[2,2,2]T(1,0,2), use_global_device_ids=true", 8) == (
        (0, 1),
        (4, 5),
        (2, 3),
        (6, 7),
    )
    assert device_groups("replica_groups=[2,4]<=[8]", 8) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert device_groups("replica_groups={}", 3) == ((0, 1, 2),)


def test_all_reduce_that_a_fusion_slices_is_a_reduce_scatter():
    scatter = of_v5e()["reduce-scatter", False]
    assert (scatter.count, scatter.payload, scatter.size) == (5, 512 * 2048 * 2, 4)
    assert ("all-reduce", False) not in of_v5e()


def test_what_hosts_exchange_between_slices_counts_once_and_apart():
    reduce = of_v5e()["all-reduce", True]
    assert (reduce.count, reduce.payload, reduce.groups) == (5, 128 * 2048 * 2, ((1, 2),))
    assert reduce.sent == 128 * 2048 * 2  # 2 (n - 1) / n of two slices


# Of a step for tpu7x: an all-gather in a loop of 4 that the sparse cores run.
TPU7X = r"""HloModule jit_step, is_scheduled=true, num_partitions=4

%called_computation.43 (param_0.4112: bf16[32,128], param_1.4596: token[]) -> bf16[128,128] {
  %param_0.4112 = bf16[32,128]{1,0:T(16,128)(2,1)} parameter(0)
  %param_1.4596 = token[] parameter(1)
  ROOT %all-gather.281 = bf16[128,128]{1,0:T(16,128)(2,1)} all-gather(%param_0.4112), channel_id=251, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}, use_global_device_ids=true
}

%body (param: (s32[], bf16[32,128])) -> (s32[], bf16[32,128]) {
  %param = (s32[]{:T(128)}, bf16[32,128]{1,0:T(16,128)(2,1)}) parameter(0)
  %part = bf16[32,128]{1,0:T(16,128)(2,1)} get-tuple-element(%param), index=1
  %counter = s32[]{:T(128)} get-tuple-element(%param), index=0
  %token = token[] after-all()
  %all-gather.282.cloned.1.call-start = ((bf16[32,128]{1,0:T(16,128)(2,1)}, token[]), bf16[128,128]{1,0:T(16,128)(2,1)}) call-start(%part, %token), async_execution_thread="sparsecore", to_apply=%called_computation.43
  %all-gather.282.cloned.1.call-done = bf16[128,128]{1,0:T(16,128)(2,1)} call-done(%all-gather.282.cloned.1.call-start)
  ROOT %tuple = (s32[]{:T(128)}, bf16[32,128]{1,0:T(16,128)(2,1)}) tuple(%counter, %part)
}

%condition (param.1: (s32[], bf16[32,128])) -> pred[] {
  %param.1 = (s32[]{:T(128)}, bf16[32,128]{1,0:T(16,128)(2,1)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %bound = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%counter.1, %bound), direction=LT
}

ENTRY %main (part.1: bf16[32,128]) -> bf16[32,128] {
  %part.1 = bf16[32,128]{1,0:T(16,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[32,128]{1,0:T(16,128)(2,1)}) tuple(%zero, %part.1)
  %while = (s32[]{:T(128)}, bf16[32,128]{1,0:T(16,128)(2,1)}) while(%start), condition=%condition, body=%body
  ROOT %end = bf16[32,128]{1,0:T(16,128)(2,1)} get-tuple-element(%while), index=1
}
"""


def test_collective_that_sparse_cores_run_counts_with_what_it_reads_and_writes():
    program, part = parse(TPU7X), 32 * 128 * 2
    (gather,) = collectives(program)
    assert (gather.kind, gather.count, gather.payload) == ("all-gather", 4, 4 * part)
    assert memory_traffic(program) == pytest.approx(4 * (part + 4 * part), rel=0.01)


def test_memory_traffic_leaves_out_what_stays_on_the_chip():
    """Of V5E's loop, the all-to-all alone reads and writes main memory: the other arrays are in S(1)."""
    share = 2 * 2 * 4 * 64 * 512 * 4
    assert memory_traffic(parse(V5E)) == pytest.approx(5 * 2 * share, rel=0.01)


def test_memory_traffic_of_a_loop_over_slices_reads_each_slice_once():
    """Each of 7 steps reads its slice and the carry, and writes the carry."""
    rows = jax.ShapeDtypeStruct((7, 1024, 1024), jnp.float32)
    text = jax.jit(lambda rows: jax.lax.scan(lambda x, row: (jnp.tanh(x + row), None), rows[0], rows)[0])
    traffic = memory_traffic(parse(text.lower(rows).compile().as_text()))
    one = 1024 * 1024 * 4
    assert 7 * 3 * one <= traffic <= (7 * 3 + 6) * one
