"""Collectives beside what is computed: options of XLA's compilers, which by themselves let a device wait for most of them.

    fusions        a gather runs in steps within the fusions around it; an all-to-all runs beside what does not need it
    sparse_cores   a chip's sparse cores run gathers and sums into parts; all-to-alls as above
    scheduler      of GPUs: collectives start as early, and are waited for as late, as their operands allow

`Chip.overlap` says which is known to run on a chip: published settings of large trainings there. Sparse cores are said both to
gain and to hang on a v5p. Results differ by the order of sums at most.
"""

from typing import Any, Literal

import jax

from fourreal.parallel.chips import chip_of

Overlap = Literal["chip", "none", "fusions", "sparse_cores"]

_ALL_TO_ALL = ("xla_tpu_enable_async_all_to_all",)
OPTIONS = {
    "none": (),
    "fusions": (
        *_ALL_TO_ALL,
        "xla_enable_async_all_gather",
        "xla_tpu_enable_async_collective_fusion",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "xla_tpu_overlap_compute_collective_tc",
    ),
    "sparse_cores": (
        *_ALL_TO_ALL,
        "xla_tpu_enable_sparse_core_collective_offload_all_gather",
        "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather",
        "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather",
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce",
        "xla_tpu_enable_all_gather_offload_tracing",
        "xla_tpu_use_tc_device_shape_on_sc",
        "xla_sc_disable_megacore_partitioning",
    ),
    "scheduler": ("xla_gpu_enable_latency_hiding_scheduler",),
}


def compiler_options(overlap: Overlap = "chip") -> dict[str, Any] | None:
    """For `jax.jit` on the ambient mesh; None for one device, and where the devices are of no listed chip."""
    mesh = jax.sharding.get_mesh()
    chip = chip_of(mesh.devices.flat[0].device_kind) if mesh.size > 1 else None
    if chip is None:
        return None
    chosen = chip.overlap if overlap == "chip" or not chip.sides else overlap
    return dict.fromkeys(OPTIONS["none" if overlap == "none" else chosen], True)
