"""The mesh of devices, with four named axes.

    data     examples; the only axis that crosses the slow network between slices
    fsdp     examples, too; parameters, optimizer and average are cut over fsdp and grid jointly
    grid     views in the time stream, times in the view stream
    tensor   heads and hidden units of the MLPs

A mesh is made ambient with `jax.set_mesh`; models then place their activations on it (`activations.py`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fourreal.errors import UserError

if TYPE_CHECKING:
    import jax

AXES = ("data", "fsdp", "grid", "tensor")
# Over what a batch is cut, by how many leading axes of its arrays a mesh cuts, see `activations.spec`.
EXAMPLE_AXES = {2: ("data", "fsdp"), 1: ("data", "fsdp", "grid")}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis has; one of them may be -1, all that the others leave."""

    data: int = -1
    """examples, whole parameters; across slices"""
    fsdp: int = 1
    """examples, parameters cut"""
    grid: int = 1
    """views and times; one that divides both computes nothing in vain"""
    tensor: int = 1
    """heads and hidden units, not the tokens between them; divides the heads"""

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"mesh.{axis} is {size}: give 1 or more, or -1 for all devices that are left")
        if list(sizes.values()).count(-1) > 1:
            raise UserError(f"mesh {describe(sizes)}: only one axis can be -1, all devices that are left")

    def sizes(self, devices: int, slices: int = 1) -> dict[str, int]:
        """The size of every axis on so many devices; raises ValueError where they do not come out."""
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        sizes = {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}
        if math.prod(sizes.values()) != devices:
            raise UserError(
                f"mesh {describe(dataclasses.asdict(self))} on {devices} devices: the sizes' product must be {devices}; "
                "give -1 for one axis, and sizes for the others that divide it"
            )
        if sizes["data"] % slices:
            raise UserError(
                f"mesh.data is {sizes['data']} on {slices} slices: only data crosses slices, so give a multiple of {slices}"
            )
        return sizes


def example_axes(examples: int, lead: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes over which a batch is cut, as many from the first as divide it."""
    axes = EXAMPLE_AXES[lead]
    while examples % math.prod(sizes.get(axis, 1) for axis in axes):
        axes = axes[:-1]
    return tuple(axis for axis in axes if sizes.get(axis, 1) > 1)


def share_of_examples(examples: int, lead: int, sizes: Mapping[str, int]) -> int:
    """How many examples of a batch each device has."""
    return examples // math.prod(sizes[axis] for axis in example_axes(examples, lead, sizes))


def repeats(examples: int, lead: int, sizes: Mapping[str, int]) -> int:
    """How many devices compute each example: more than one where the axes that cut a batch do not divide it."""
    devices = math.prod(sizes[axis] for axis in EXAMPLE_AXES[lead])
    return devices * share_of_examples(examples, lead, sizes) // examples


def microbatch(share: int, most: int | None) -> int:
    """How many of a device's share of examples are computed at once: the largest equal parts of at most so many."""
    return max(size for size in range(1, min(most or share, share) + 1) if share % size == 0)


def fit_mesh(devices: int, views: int, times: int, width: int, slices: int = 1) -> MeshConfig:
    """For sampling one grid: as many devices along grid as its sides allow, two along data for guidance, the rest along fsdp.

    Slices lie along data. Two branches lie over it only if it divides them. fsdp and grid divide `width`; where that leaves no
    two along data, each device computes both branches.
    """
    grid = math.gcd(devices // slices, views, times, width)
    data = max(2, slices)
    fsdp, odd = divmod(devices // grid, data)
    return MeshConfig(grid=grid) if odd or width % (fsdp * grid) else MeshConfig(data=data, fsdp=fsdp, grid=grid)


def make_mesh(config: MeshConfig = MeshConfig(), devices: "Sequence[jax.Device] | None" = None) -> "jax.sharding.Mesh":
    """The mesh of all devices, or of some; neighbours on the chip's network stay neighbours on the inner axes.

    Without a torus, devices go host by host, so that tensor, then grid lie within a host as far as they fit, and fsdp, whose
    gathers are of weights alone, crosses hosts before they do.
    """
    import jax
    import numpy as np
    from jax.experimental import mesh_utils
    from jax.sharding import AxisType, Mesh

    devices = jax.devices() if devices is None else list(devices)
    slices = count_slices(devices)
    sizes = tuple(config.sizes(len(devices), slices).values())
    if slices > 1:
        inside = (sizes[0] // slices, *sizes[1:])
        placed = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:  # of several processes, a "slice" is a host there
        by_host = sorted(devices, key=lambda device: (slice_of(device), device.process_index, device.id))
        placed = np.asarray(by_host).reshape(sizes)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: "Sequence[jax.Device]") -> int:
    """How many slices TPUs are in; 1 for other devices."""
    return len({slice_of(device) for device in devices}) if devices[0].platform == "tpu" else 1


def slice_of(device: "jax.Device") -> int:
    """Which slice a TPU is in, or which host another device; 0 where there is one."""
    return getattr(device, "slice_index", 0)


def describe(sizes: dict[str, int]) -> str:
    """`data 2, fsdp 4`: the axes that are not 1."""
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "of one device"
