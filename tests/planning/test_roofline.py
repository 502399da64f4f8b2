"""Times of single collectives against what links can carry, and of a step against its parts."""

import dataclasses
import itertools

import pytest

from fourreal.parallel.chips import parse_topology
from fourreal.planning import roofline
from fourreal.planning.collectives import Collective

V5E = parse_topology("v5e:4x16")  # its second axis wraps around
PLACES = [[x, y, 0] for x, y in itertools.product(range(4), range(16))]
LINK = 45e9
PAYLOAD = 10**9


def seconds(kind: str, group: list[int], topology=V5E, places=PLACES) -> float:
    return roofline.link_seconds(Collective(kind, PAYLOAD, (tuple(group),), False, 1), topology, places)


RING, LINE = list(range(16)), [0, 16, 32, 48]


def test_ring_that_wraps_around_gathers_over_both_links_and_a_line_over_one():
    assert seconds("all-gather", RING) == pytest.approx(PAYLOAD * 15 / 16 / (2 * LINK))
    assert seconds("all-gather", LINE) == pytest.approx(PAYLOAD * 3 / 4 / LINK)


def test_all_reduce_takes_as_long_as_reduce_scatter_and_all_gather():
    for group in (RING, LINE):
        assert seconds("all-reduce", group) == pytest.approx(
            seconds("reduce-scatter", group) + seconds("all-gather", group)
        )


def test_all_to_all_is_bound_by_the_links_at_its_middle():
    """Of a line of 4, two devices send half of their payload over the one link at the middle; of a ring of 16, eight do
    over two."""
    assert seconds("all-to-all", LINE) == pytest.approx(2 * PAYLOAD / 2 / LINK)
    assert seconds("all-to-all", RING) == pytest.approx(8 * PAYLOAD / 2 / (2 * LINK))


def test_group_over_two_axes_has_the_links_of_both():
    assert seconds("all-gather", list(range(64))) == pytest.approx(PAYLOAD * 63 / 64 / (3 * LINK))


def test_groups_of_every_other_chip_share_their_links():
    whole, half = seconds("all-gather", list(range(8))), seconds("all-gather", list(range(0, 16, 2)))
    assert half == pytest.approx(whole * 15 / 8)


def test_what_crosses_slices_takes_the_network_and_the_rest_does_not():
    topology = parse_topology("v5e:4x16", slices=2)
    between = Collective("all-reduce", PAYLOAD, ((0, 1),), True, 3)
    found = roofline.estimate(topology, 0, 0, [between], PLACES)
    assert found.network == pytest.approx(3 * PAYLOAD / 3.125e9) and found.links == 0


def test_gpus_of_one_host_take_its_switch_and_others_the_network():
    topology = parse_topology("h100:16")
    inside = Collective("all-gather", PAYLOAD, (tuple(range(8)),), False, 1)
    across = Collective("all-gather", PAYLOAD, (tuple(range(16)),), False, 1)
    found = roofline.estimate(topology, 0, 0, [inside, across], [])
    assert found.links == pytest.approx(PAYLOAD * 7 / 8 / 450e9)
    assert found.network == pytest.approx(PAYLOAD * 15 / 16 / 50e9)


def test_step_takes_its_longest_part_at_best_and_all_of_them_at_worst():
    topology = parse_topology("v5e:2x2")
    found = roofline.estimate(topology, 4 * 197e12, 819e9 // 2, [], [])
    assert (found.best, found.worst) == (pytest.approx(1), pytest.approx(1.5))
    assert roofline.utilization(topology, 4 * 197e12 / 2, found.best) == pytest.approx(0.5)


def test_collective_that_nothing_overlaps_adds_to_the_least_that_a_step_takes():
    waited = Collective("all-gather", PAYLOAD, (tuple(RING),), False, 3)
    beside = dataclasses.replace(waited, overlaps=True)
    compute = 64 * 197e12  # a second
    found = [roofline.estimate(V5E, compute, 0, [each], PLACES) for each in (waited, beside)]
    links = 3 * seconds("all-gather", RING)
    assert [each.exposed for each in found] == [pytest.approx(links), 0]
    assert [each.best for each in found] == [pytest.approx(1 + links), pytest.approx(1)]
    assert [each.worst for each in found] == [pytest.approx(1 + links)] * 2


def test_two_devices_of_a_chip_share_its_memory_and_links():
    topology = parse_topology("tpu7x:2x2x1")
    found = roofline.estimate(topology, 0, 7380e9, [], [])
    assert found.memory == pytest.approx(2)
