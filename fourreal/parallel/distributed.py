"""The processes of a run: how they find each other, agree with each other, and end together.

Every process keeps one connection to process 0, from before JAX starts until the run ends:

    join       number and host go to process 0; once all are there, or the time is up, its answer goes to everybody
    exchange   a value of every process, known to all afterwards: also a barrier, and how process 0 decides for all
    failed     one line and an exit code, for those who would wait for a process that has given up
    end        the connection may close now

A connection that closes without `end` is a process that died; the others say so in one line and end, too. JAX would notice a
hundred seconds later, and abort with a stack trace. JAX's own service listens at the port after the coordinator's.
"""

import atexit
import contextlib
import dataclasses
import errno
import json
import math
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from fourreal.cli import LOST, exit_code

T = TypeVar("T")

COORDINATOR, COUNT, ID = "FOURREAL_COORDINATOR", "FOURREAL_PROCESS_COUNT", "FOURREAL_PROCESS_ID"
TIMEOUT = "FOURREAL_START_TIMEOUT"  # seconds until all processes must have joined
GRACE = 5.0  # seconds in which a process whose peer failed may end by its own error
ERRORS = {
    kind.__name__: kind
    for kind in (ValueError, OSError, FileNotFoundError, FileExistsError, PermissionError, TimeoutError)
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of several processes stands."""

    host: str
    """of process 0"""
    port: int
    """of process 0; JAX takes the next one"""
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    """the only devices of its host that it uses; None: all"""
    names: tuple[str, ...] = ()
    """what the cluster calls the processes, where it says so"""

    @property
    def coordinator(self) -> str:
        """As the user writes it."""
        return f"{self.host}:{self.port}"

    @property
    def jax_port(self) -> int:
        """Of JAX's service."""
        return self.port + 1 if self.port < 65535 else self.port - 1

    def name(self, index: int) -> str:
        """A process as its user knows it."""
        return f"{index} ({self.names[index]})" if self.names else str(index)


class Peers:
    """This process among those of its run, for exchanging small values; by default it is alone.

    A context: what leaves it by an exception ends all processes, each with one line.
    """

    def __init__(self, index: int = 0, hosts: tuple[str, ...] = ("",), links: dict[int, "Link"] | None = None):
        self.index, self.hosts, self._links, self.verb = index, hosts, links or {}, "train"
        self._calls: dict[str, int] = {}
        self._given: dict[str, dict[int, Any]] = {}  # process 0's: what has come so far
        self._answers: dict[str, list] = {}
        self._changed = threading.Condition()
        self._finished = False
        self._leaving, self._failed = threading.Event(), threading.Event()
        self._why = ("", 0)
        for who, link in self._links.items():
            threading.Thread(target=self._listen, args=(who, link), daemon=True, name=f"peer {who}").start()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self.hosts)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def name(self, index: int) -> str:
        """`process 2 of 4 on HOST`."""
        return f"process {index} of {self.count} on {self.hosts[index]}"

    def exchange(self, name: str, value: Any = None) -> list:
        """The values (as JSON has them) that all processes give under a name, in their order; waits for them.

        All processes make the same calls in the same order; threads use names of their own.
        """
        if self.count == 1:
            return [value]
        with self._changed:
            self._calls[name] = self._calls.get(name, 0) + 1
            key = f"{name} {self._calls[name]}"
        if self.first:
            self._take(0, key, value)
        else:
            self._links[0].send("value", key=key, value=value)
        with self._changed:
            self._changed.wait_for(lambda: key in self._answers)
            return self._answers.pop(key)

    def of_first(self, name: str, function: Callable[[], T]) -> T:
        """What `function` returns, or raises, in process 0, the only one to call it; in all of them."""
        if self.count == 1:
            return function()
        outcome, raised = {}, None
        if self.first:
            try:
                outcome = {"value": function()}
            except (ValueError, OSError) as error:
                kind = type(error).__name__
                kind = kind if kind in ERRORS else "OSError" if isinstance(error, OSError) else "ValueError"
                outcome, raised = {"error": kind, "text": str(error)}, error
        told = self.exchange(name, outcome)[0]
        if raised is not None:
            raise raised
        if "error" in told:
            raise ERRORS[told["error"]](told["text"])
        return told["value"]

    def finish(self) -> None:
        """Waits until all processes are done with everything that they do together."""
        self.exchange("end")
        self._finished = True

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if self.count == 1:
            return
        if kind is None and not self._finished:
            self.finish()
        if not self._finished:
            # An error of JAX or of a file may be a peer's death, of which word is on its way.
            expected = isinstance(error, (ValueError, FloatingPointError, KeyboardInterrupt, SystemExit))
            if self._failed.wait(0 if expected else GRACE / 2):
                self._end_now()
            code = exit_code(error)
            for link in self._links.values():
                link.send("failed", line=f"{self.name(self.index)}: {one_line(error)}", code=code)
            atexit.register(_exit, code)  # JAX's own end would wait for processes that do not come
        self._leaving.set()
        for link in self._links.values():
            link.send("end")
        if self._finished:
            jax.distributed.shutdown()

    def _take(self, who: int, key: str, value: Any) -> None:
        """Process 0's: a value has come; with the last of them the answer goes to everybody."""
        with self._changed:
            given = self._given.setdefault(key, {})
            given[who] = value
            if len(given) < self.count:
                return
            answer = [value for _, value in sorted(self._given.pop(key).items())]
            self._answers[key] = answer
            self._changed.notify_all()
        for link in self._links.values():
            link.send("answer", key=key, answer=answer)

    def _listen(self, who: int, link: "Link") -> None:
        """A thread that takes what comes over one connection."""
        for kind, message in link.messages():
            if kind == "end":
                return
            if kind == "failed":
                self._fail(message["line"], message["code"])
            elif kind == "value":
                self._take(who, message["key"], message["value"])
            else:
                with self._changed:
                    self._answers[message["key"]] = message["answer"]
                    self._changed.notify_all()
        if not self._leaving.is_set():
            self._fail(f"{self.name(who)} ended without a word: see its log; start all again with --resume", LOST)

    def _fail(self, line: str, code: int) -> None:
        """Tells the others what has come, and ends this process unless it ends by itself."""
        with self._changed:
            if self._failed.is_set():  # of several that fail the first one counts
                return
            self._why = (line, code)
            self._failed.set()
        if self.first:
            for link in self._links.values():
                link.send("failed", line=line, code=code)
        if not self._leaving.wait(GRACE):
            self._end_now()

    def _end_now(self) -> None:
        line, code = self._why
        print(f"fourreal {self.verb}: error: {line}", file=sys.stderr)
        _exit(code)


ALONE = Peers()


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
            return bool(readable) and self._connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True


def start(verb: str = "train") -> Peers:
    """Joins the other processes of the run, if the environment says that there are some; before JAX's devices are touched.

    On TPU pods and in SLURM steps JAX knows them; elsewhere FOURREAL_COORDINATOR (host:port of process 0),
    FOURREAL_PROCESS_COUNT and FOURREAL_PROCESS_ID do, or there are none. Raises, in every process, ValueError where these are
    wrong, and TimeoutError where some processes do not join within FOURREAL_START_TIMEOUT seconds (300). `verb` is for the
    lines of errors.
    """
    timeout = start_timeout()
    place = find_place(timeout)
    if place is None:
        return Peers()
    peers = gather(place, timeout) if place.index == 0 else join(place, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"{place.host}:{place.jax_port}",
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(timeout),
    )
    peers.verb = verb
    return peers


def start_timeout() -> float:
    """Seconds from the environment; raises ValueError."""
    text = os.environ.get(TIMEOUT, "300")
    try:
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    except ValueError:
        pass
    raise ValueError(f"{TIMEOUT} is '{text}': give seconds, above 0")


def find_place(timeout: float) -> Place | None:
    """This process's place by the environment; None where it is alone.

    Raises ValueError for variables that are wrong, TimeoutError where the cluster does not say who the others are.
    """
    if given := {name: os.environ[name] for name in (COORDINATOR, COUNT, ID) if os.environ.get(name)}:
        return named_place(given)
    # JAX's detection asks the cloud's metadata server, so only where it is sure to be.
    from jax._src import cloud_tpu_init, clusters
    from jax._src.clusters import cloud_tpu_cluster

    asked = wanted_platforms()
    pod = cloud_tpu_init.running_in_cloud_tpu_vm and (not asked or "tpu" in asked)
    if not pod and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:  # which srun alone sets
        return None
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    except (RuntimeError, OSError) as error:
        raise TimeoutError(f"the other hosts could not be found ({one_line(error)}): set {COORDINATOR}") from error
    coordinator, count, index, local_devices = found
    if coordinator is None or count == 1:
        return None
    names = pod_names(count, cloud_tpu_cluster.BaseTpuCluster._get_num_slices()) if pod else ()
    host, _, port = coordinator.rpartition(":")
    return Place(host, int(port), count, index, tuple(local_devices) if local_devices else None, names)


def wanted_platforms() -> str:
    """The platforms that the user or JAX has chosen, or nothing."""
    return jax.config.jax_platforms or ""


def pod_names(count: int, slices: int) -> tuple[str, ...]:
    """Workers as the cloud counts them."""
    each = count // slices
    return tuple((f"slice {i // each}, " if slices > 1 else "") + f"worker {i % each}" for i in range(count))


def named_place(given: dict[str, str]) -> Place | None:
    """The place that our variables name; None for one process alone."""
    missing = [name for name in (COORDINATOR, COUNT, ID) if name not in given]
    if missing:
        raise ValueError(f"{next(iter(given))} is set, {missing[0]} is not: set all of {COORDINATOR}, {COUNT} and {ID}")
    host, _, port = given[COORDINATOR].rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{COORDINATOR} is '{given[COORDINATOR]}': give host:port of process 0, as in first-host:8476")
    for name, least in ((COUNT, 1), (ID, 0)):
        if not given[name].isdecimal() or int(given[name]) < least:
            raise ValueError(f"{name} is '{given[name]}': give a whole number from {least} on")
    count, index = int(given[COUNT]), int(given[ID])
    if index >= count:
        raise ValueError(f"{ID} is {index} with {COUNT} {count}: processes are numbered from 0 to {count - 1}")
    return Place(host.strip("[]"), int(port), count, index) if count > 1 else None


def gather(place: Place, timeout: float) -> Peers:
    """Process 0's side of the start: waits for all others. Raises ValueError or TimeoutError, which they get, too."""
    joined: dict[int, tuple[Link, str]] = {}
    try:
        with listener(place.port) as server:
            listener(place.jax_port).close()
            accept(server, place, joined, time.monotonic() + timeout)
        absent = [index for index in range(1, place.count) if index not in joined]
        if absent:
            here = ", ".join(f"{index} on {host}" for index, (_, host) in sorted(joined.items())) or "none"
            raise TimeoutError(
                f"{'processes' if len(absent) > 1 else 'process'} {listed([place.name(index) for index in absent])} of "
                f"{place.count} did not join within {timeout:g} s (joined: {here}): start the same command on all hosts, "
                f"from which the coordinator {place.coordinator} must be reachable"
            )
    except (ValueError, TimeoutError) as error:
        for link, _ in joined.values():
            link.send("refused", line=str(error), error=type(error).__name__)
        raise
    hosts = (socket.gethostname(), *(joined[index][1] for index in range(1, place.count)))
    for link, _ in joined.values():
        link.send("welcome", hosts=hosts)
        link.wait(None)
    return Peers(0, hosts, {index: link for index, (link, _) in joined.items()})


def accept(server: socket.socket, place: Place, joined: dict[int, tuple[Link, str]], deadline: float) -> None:
    """Lets the other processes in, until all are there or the time is up."""
    while len(joined) < place.count - 1 and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            link = Link(server.accept()[0])
        except TimeoutError:
            return
        link.wait(min(left, 10))
        kind, message = next(link.messages(), ("", {}))
        if kind != "join":
            continue  # somebody else who tries ports
        index, host = message["index"], message["host"]
        if message["count"] != place.count:
            text = (
                f"process {index} on {host} was started as one of {message['count']}, process 0 as one of {place.count}"
            )
            joined[place.count] = link, host  # to be told
            raise ValueError(f"{text}: start the same command on all hosts")
        if index in joined and not joined[index][0].closed:
            text = f"two processes have the number {index}, on {joined[index][1]} and on {host}"
            joined[place.count] = link, host
            raise ValueError(f"{text}: give each its own")
        joined[index] = link, host


def join(place: Place, timeout: float) -> Peers:
    """Any other process's side of the start. Raises what process 0 does, and TimeoutError where it does not answer."""
    link = Link(connect(place, timeout))
    link.send("join", index=place.index, count=place.count, host=socket.gethostname())
    link.wait(timeout + 30)
    kind, message = next(link.messages(), ("", {}))
    if kind == "refused":
        raise ERRORS[message["error"]](message["line"])
    if kind != "welcome":
        raise TimeoutError(f"the coordinator {place.coordinator} ended before all processes had joined: see its log")
    link.wait(None)
    return Peers(place.index, tuple(message["hosts"]), {0: link})


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
    """A socket that listens on all addresses; raises ValueError where it cannot."""
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port} ({error.strerror}): end what uses it, or name another coordinator port"
        ) from error


def one_line(error: BaseException) -> str:
    """An error's text, or what it is."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def listed(names: list[str]) -> str:
    """`1, 2 and 3`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _exit(code: int) -> None:
    """Ends at once, without waiting for anybody."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
