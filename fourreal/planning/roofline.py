"""How long a step takes at least, from what it computes and moves: an estimate, with no measurement in it.

    compute   FLOPs of the program / peak of the chips
    memory    bytes of a device's main memory / its rate
    links     sum over collectives, each at the rate of the torus axes that its group spans, see `link_seconds`
    network   bytes between slices or nodes / a chip's share of its host's network

What a device waits for, doing nothing else, is exposed and adds to every step. At best the rest overlaps wholly and takes as
long as the longest; at worst, with nothing overlapped, a step takes the sum. Model FLOPs
utilization counts the model's own FLOPs, without recomputation.
"""

import dataclasses
from typing import Any

from fourreal.parallel.chips import Topology
from fourreal.planning.collectives import Collective

ASSUMPTIONS = (
    "compute and memory at their peaks, no latency; the least is all but the exposed at once, the most one after the other",
    "kernels read their inputs once; a ring uses every torus axis of its group, both ways where it wraps around",
)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Parts of a step."""

    compute: float
    memory: float
    links: float
    network: float
    links_exposed: float = 0.0
    """of those of links"""
    network_exposed: float = 0.0
    """of those of the network"""

    @property
    def exposed(self) -> float:
        """While which nothing else is done."""
        return self.links_exposed + self.network_exposed

    @property
    def best(self) -> float:
        """All parts at once, but for what is exposed."""
        hidden = self.links - self.links_exposed, self.network - self.network_exposed
        return self.exposed + max(self.compute, self.memory, *hidden)

    @property
    def worst(self) -> float:
        """One after the other."""
        return self.compute + self.memory + self.links + self.network


def estimate(
    topology: Topology,
    executed: float,
    traffic: float,
    collectives: list[Collective],
    coordinates: list[list[int]],
) -> Seconds:
    """Seconds of a step of `executed` FLOPs on all devices, `traffic` bytes on one, and one's collectives."""
    chip = topology.chip
    links, network = [0.0, 0.0], [0.0, 0.0]  # all, exposed
    for collective in collectives:
        inside = not collective.between_slices
        if not inside:
            seconds = collective.count * collective.sent / (chip.network / chip.devices)
        elif chip.sides:
            seconds = collective.count * link_seconds(collective, topology, coordinates)
        else:
            inside = len({device // chip.host for device in collective.groups[0]}) == 1
            seconds = collective.count * collective.sent / (chip.link if inside else chip.network)
        part = links if inside else network
        part[0] += seconds
        part[1] += 0 if collective.overlaps else seconds
    compute, memory = executed / (topology.chips * chip.flops), traffic / (chip.hbm_rate / chip.devices)
    return Seconds(compute, memory, links[0], network[0], links[1], network[1])


def link_seconds(collective: Collective, topology: Topology, coordinates: list[list[int]]) -> float:
    """Seconds of one collective over the links of a torus.

    A ring on an axis moves what a device sends at one link's rate, at two where the axis wraps around; groups of every n-th
    chip share links among n. An all-to-all is bound by the links at its middle: a quarter of its payload times the group's
    length along the axis crosses each.
    """
    chip = topology.chip
    group = [coordinates[device] for device in collective.groups[0]]
    axes = []  # (devices along the axis, links, groups that share a link)
    for side, length in enumerate(topology.shape):
        places = {coordinate[side] for coordinate in group}
        if len(places) > 1:
            wraps = len(places) == length and topology.wraps(side)
            axes.append((len(places), 2 if wraps else 1, (max(places) - min(places) + 1) / len(places)))
    rate = chip.link / chip.devices
    if not axes:  # the cores of one chip
        return collective.sent / (chip.hbm_rate / chip.devices)
    if collective.kind == "all-to-all":
        return max(length * shared * collective.payload / (4 * links * rate) for length, links, shared in axes)
    if collective.kind == "collective-permute":
        return collective.sent / rate
    return collective.sent * max(shared for *_, shared in axes) / (sum(links for _, links, _ in axes) * rate)


def utilization(topology: Topology, flops: float, seconds: float) -> float:
    """Model FLOPs utilization: the share of the peak that the model's FLOPs take."""
    return flops / (seconds * topology.chips * topology.chip.flops)


def from_answer(answer: list[dict[str, Any]]) -> list[Collective]:
    """Collectives from the JSON that another process wrote."""
    return [Collective(**each | {"groups": tuple(tuple(group) for group in each["groups"])}) for each in answer]
