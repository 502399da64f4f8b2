"""The digest of arrays against its formula in numpy, on one device and on many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.parallel.digest import digest, digests


def expected(x: np.ndarray) -> int:
    """sum_i mix(bits(x_i) xor c i) mod 2^32, in integers without bound."""
    bits = np.ascontiguousarray(x).view(f"uint{8 * min(x.dtype.itemsize, 4)}").ravel()

    def mix(value: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            value = ((value ^ (value >> shift)) * factor) % 2**32
        return value

    return sum(mix(int(value) ^ (0x9E3779B1 * place % 2**32)) for place, value in enumerate(bits)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(), (7,), (4, 6), (2, 4, 3)])
def test_digest_is_its_formula(shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape) * 90).astype(dtype)
    assert (
        int(digests({"x": x})["['x']"]) == int(jax.jit(digest)(x)) == expected(np.asarray(x))
    )  # on the host, on a device


def test_digest_of_an_array_that_is_cut_over_devices_is_that_of_the_whole():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32))
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (P("a"), P("a", "b"), P(None, "b"), P(("a", "b"))):
        cut = jax.device_put(x, NamedSharding(mesh, spec))
        assert int(digests(cut)[""]) == expected(np.asarray(x))


@pytest.mark.parametrize("bit", range(32))
def test_one_flipped_bit_changes_the_digest(bit):
    x = np.random.default_rng(0).normal(size=50).astype(np.float32)
    flipped = x.copy()
    flipped.view(np.uint32)[9] ^= np.uint32(1) << np.uint32(bit)
    assert int(digests(jnp.asarray(x))[""]) != int(digests(jnp.asarray(flipped))[""])


def test_two_elements_in_each_other_s_place_change_the_digest():
    x = np.arange(50, dtype=np.float32)
    assert int(digests(jnp.asarray(x))[""]) != int(digests(jnp.asarray(x[::-1].copy()))[""])
