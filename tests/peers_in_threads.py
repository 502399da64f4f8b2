"""Processes of a run that have found each other, with threads in their place."""

import socket
from concurrent.futures import Future, ThreadPoolExecutor

from fourreal.host.place import Place
from fourreal.host.processes import Peers, gather, join


def places(count: int) -> list[Place]:
    with socket.socket() as free:
        free.bind(("", 0))
        return [Place("localhost", free.getsockname()[1], count, index) for index in range(count)]


def together(calls: list) -> list[Future]:
    """What functions give that run at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(call) for call in calls]


def started(count: int) -> list[Peers]:
    first, *others = places(count)
    done = together([lambda: gather(first, 20), *(lambda place=place: join(place, 20) for place in others)])
    return [future.result() for future in done]
