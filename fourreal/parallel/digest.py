"""A digest of arrays, computed where they are: nothing is read back to seal a checkpoint, and a restored one is checked whole.

    digest(x) = sum_i mix(bits(x_i) xor c i)  mod 2^32,     i: the element's place in the whole array

`mix` is the finalizer of MurmurHash3, a bijection of 32 bits: one changed element always changes the digest, several do but for
one case in 2^32. The sum is the same however the array is cut over devices. c is 2^32 over the golden ratio.
"""

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

STEP = 0x9E3779B1  # c
Digests = dict[str, jax.Array | np.uint32]  # by path, each a scalar, uint32


def digests(tree: Any) -> Digests:
    """Of the arrays of a tree, by path; starts them, so that the arrays may be donated afterwards. All processes call it."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        devices = x.sharding.device_set
        if len(devices) == 1 and next(iter(devices)).platform == "cpu":
            found[jax.tree_util.keystr(path)] = _host_digest(np.asarray(x))  # nothing to compile
            continue
        result = found[jax.tree_util.keystr(path)] = _placed_digest(x)
        if len(devices) > 1:
            result.block_until_ready()  # sums over CPUs of several programs at once would wait for each other
    return found


def name_of(found: Digests) -> str:
    """One short name for arrays with such digests, in hex."""
    return f"{zlib.crc32(json.dumps({path: int(value) for path, value in found.items()}).encode()):08x}"


def _placed_digest(x: jax.Array) -> jax.Array:
    everywhere = NamedSharding(x.sharding.mesh, P()) if isinstance(x.sharding, NamedSharding) else None
    return jax.jit(digest, out_shardings=everywhere)(x)


def digest(x: jax.Array) -> jax.Array:
    """Of one array, uint32; inside a `shard_map`, of what this device holds of it."""
    width = min(x.dtype.itemsize, 4)  # 8 bytes become two elements
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    places = jnp.uint32(0)
    for axis in range(bits.ndim):
        stride = jnp.uint32(STEP * math.prod(bits.shape[axis + 1 :]) % 2**32)
        places += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    return jnp.sum(_mixed(bits ^ places), dtype=jnp.uint32)


def _host_digest(x: np.ndarray) -> np.uint32:
    bits = np.ravel(x).view(f"uint{8 * min(x.dtype.itemsize, 4)}").astype(np.uint32)
    return np.sum(_mixed(bits ^ np.arange(len(bits), dtype=np.uint32) * np.uint32(STEP)), dtype=np.uint32)


def _mixed(x: Any) -> Any:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
