"""A connection between two processes of a run, with messages of one line of JSON each way."""

import contextlib
import errno
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from fourreal.errors import UserError, one_line
from fourreal.host.place import Place


class Link:
    """One connection, with messages of one line of JSON each way."""

    def __init__(self, connection: socket.socket):
        self._connection, self._lock = connection, threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host without power sends no farewell
        for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_NODELAY", 1)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._lines = connection.makefile("rb")

    def send(self, kind: str, **message: Any) -> None:
        """Sends; a connection that is broken is its reader's affair."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps({"kind": kind, **message}).encode() + b"\n")

    def messages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (kind, content) until the connection closes or breaks."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for line in self._lines:
                message = json.loads(line)
                yield message.pop("kind"), message

    def wait(self, seconds: float | None) -> None:
        """Limits the waiting for messages."""
        self._connection.settimeout(seconds)

    @property
    def closed(self) -> bool:
        """Whether the other side is gone."""
        try:
            readable, _, _ = select.select([self._connection], [], [], 0)
            return bool(readable) and self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:  # its reader was faster
            return False
        except OSError:
            return True


def connect(place: Place, timeout: float) -> socket.socket:
    """A connection to process 0, which may start later."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((place.host, place.port), timeout=max(0.1, min(timeout, 10)))
            if connection.getsockname() != connection.getpeername():  # a port may connect to itself
                return connection
            connection.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the coordinator {place.coordinator} did not answer within {timeout:g} s "
                    f"({error.strerror or one_line(error)}): start the same command on all hosts; from this one, process "
                    f"{place.index} of {place.count}, it must be reachable"
                ) from None
        time.sleep(0.2)


def listener(port: int) -> socket.socket:
    """A socket that listens on all addresses; raises UserError where it cannot."""
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): end what uses it, or name another coordinator port"
        ) from error
