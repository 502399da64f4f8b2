"""What topologies' names say."""

import pytest

from fourreal.parallel.chips import CHIPS, GIB, chip_of, parse_topology


def test_topology_counts_chips_and_the_devices_that_jax_sees():
    assert parse_topology("v5e:4x4").devices == 16
    assert parse_topology("v5p:8x8x4").chips == 256
    assert parse_topology("v5e:2x4", slices=2).devices == 16
    assert (parse_topology("tpu7x:2x2x1").chips, parse_topology("tpu7x:2x2x1").devices) == (4, 8)
    assert parse_topology("h100:16").devices == 16


@pytest.mark.parametrize(
    ("name", "slices", "said"),
    [
        ("a100:8", 1, "known: v4, v5e"),
        ("v5e", 1, "2 lengths, as v5e:2x4"),
        ("v5p:4x4", 1, "3 lengths, as v5p:2x2x4"),
        ("v5e:0x4", 1, "2 lengths"),
        ("h100:2x4", 1, "a number of GPUs, as h100:8"),
        ("v5e:4x4", 0, "slices is 0"),
        ("h100:8", 2, "only TPUs come in slices"),
    ],
)
def test_unknown_topology_is_refused_with_one_that_would_do(name, slices, said):
    with pytest.raises(ValueError, match=said):
        parse_topology(name, slices)


def test_larger_topology_has_twice_the_chips():
    for name, larger in (
        ("v5e:2x4", "v5e:4x4"),
        ("v5e:4x4", "v5e:4x8"),
        ("v5p:8x8x4", "v5p:8x8x8"),
        ("h100:8", "h100:16"),
    ):
        assert parse_topology(name).larger().name == larger


def test_axis_wraps_around_where_it_is_whole():
    assert [parse_topology("v5e:4x16").wraps(side) for side in (0, 1)] == [False, True]
    assert [parse_topology("v5p:2x4x8").wraps(side) for side in (0, 1, 2)] == [False, True, True]


def test_no_program_can_take_more_than_a_chip_has_nor_on_a_gpu_than_jax_takes_by_default():
    for chip in CHIPS.values():
        least, most = (0.9, chip.hbm) if chip.sides else (0.7, 0.75 * 80 * GIB)
        assert least * chip.hbm < chip.usable <= most


def test_devices_are_known_by_what_jax_calls_them():
    kinds = {
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "TPU7x": "tpu7x",
    }
    kinds |= {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA GeForce RTX 4090": "rtx4090"}
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
    assert chip_of("cpu") is None and chip_of("NVIDIA H200") is None
