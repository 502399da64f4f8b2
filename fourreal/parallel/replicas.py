"""Whether the copies of a state along the mesh's axis `data` are the same, by a digest of what each device holds.

A chip that computes wrongly, or an exchange that went wrong, leaves copies that drift apart in silence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from fourreal.parallel.digest import digest
from fourreal.parallel.mesh import AXES


def make_digests(tree: Any) -> Callable[[Any], UInt32[Array, "data fsdp grid tensor"]]:
    """A compiled function of trees placed as this one, of numbers: the digest of each device of the ambient mesh."""

    def of_shards(tree: Any) -> jax.Array:
        return digest(jnp.stack([digest(shard) for shard in jax.tree.leaves(tree)])).reshape((1,) * len(AXES))

    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, tree)
    mapped = jax.shard_map(of_shards, in_specs=(specs,), out_specs=P(*AXES), check_vma=False)
    return jax.jit(mapped, out_shardings=NamedSharding(jax.sharding.get_mesh(), P()))  # every process reads all


def odd_processes(found: UInt32[np.ndarray, "data fsdp grid tensor"]) -> list[int]:
    """The processes with a device whose digest is not that of most of its copies; where no value has most, all with a copy."""
    devices, odd = jax.sharding.get_mesh().devices, set()
    for place in np.ndindex(found.shape[1:]):
        copies = found[:, *place]
        values, counts = np.unique(copies, return_counts=True)
        most = values[counts.argmax()] if 2 * counts.max() > len(copies) else None
        odd |= {device.process_index for device, value in zip(devices[:, *place], copies, strict=True) if value != most}
    return sorted(odd)
