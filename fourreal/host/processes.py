"""The processes of a run: how they find each other, agree with each other, and end together.

Every process keeps one connection to process 0, from before JAX starts until the run ends:

    join       number and host go to process 0; once all are there, or the time is up, its answer goes to everybody
    exchange   a value of every process, known to all afterwards: also a barrier, and how process 0 decides for all
    failed     one line and an exit code, for those who would wait for a process that has given up; where it made no progress,
               each writes the stacks of its threads
    end        the connection may close now

A connection that closes without `end` is a process that died; the others say so in one line and end, too. One that hangs keeps
its connection: the others end by their watchdogs. JAX's own service listens at the port after the coordinator's, in process 0,
which therefore ends last: JAX aborts whoever lives on without it.
"""

import atexit
import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from fourreal.errors import LOST, FileInTheWay, MissingFile, UserError, exit_code, one_line
from fourreal.host.link import Link, connect, listener
from fourreal.host.place import Place, find_place, start_timeout

T = TypeVar("T")

GRACE = 5.0  # seconds in which a process whose peer failed may end by its own error
FAREWELL = GRACE + 1  # seconds that process 0 waits for the others to end before it does
WATCHED = 10**8  # seconds until JAX aborts all for one that hangs, with a stack trace: never where we end it ourselves
# The errors that processes tell each other; one that is not here is told as the nearest of its bases.
ERRORS = {
    kind.__name__: kind
    for kind in (
        UserError,
        MissingFile,
        FileInTheWay,
        OSError,
        FileNotFoundError,
        FileExistsError,
        PermissionError,
        TimeoutError,
    )
}


class Peers:
    """This process among those of its run, for exchanging small values; by default it is alone.

    A context: what leaves it by an exception ends all processes, each with one line.
    """

    def __init__(self, index: int = 0, hosts: tuple[str, ...] = ("",), links: dict[int, Link] | None = None):
        self.index, self.hosts, self._links, self.verb = index, hosts, links or {}, "train"
        self._calls: dict[str, int] = {}
        self._given: dict[str, dict[int, Any]] = {}  # process 0's: what has come so far
        self._answers: dict[str, list] = {}
        self._changed = threading.Condition()
        self._finished = False
        self._leaving, self._failed = threading.Event(), threading.Event()
        self._ending, self._why = threading.Lock(), ("", 0)
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
        return f"process {index} of {self.count}" + (f" on {host}" if (host := self.hosts[index]) else "")

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
            except (UserError, OSError) as error:
                number = getattr(error, "errno", None)
                outcome, raised = {"error": told_as(error), "text": str(error), "errno": number}, error
        told = self.exchange(name, outcome)[0]
        if raised is not None:
            raise raised
        if "error" in told:
            error = ERRORS[told["error"]](told["text"])
            error.errno = told["errno"]
            raise error
        return told["value"]

    def finish(self) -> None:
        """Waits until all processes are done with everything that they do together."""
        self.exchange("end")
        self._finished = True

    @contextlib.contextmanager
    def giving_up(self, seconds: float, why: str) -> Iterator[None]:
        """Ends this process, with one line, for a new start, where the block takes longer than that."""
        line = f"{self.name(self.index)}: {why} within {seconds:g} s; start all again with --resume"
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._fail, (line, LOST))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if self.count == 1:
            return
        if kind is None and not self._finished:
            self.finish()
        if not self._finished:
            # An error of JAX or of a file may be a peer's death, of which word is on its way.
            expected = isinstance(error, (UserError, FloatingPointError, KeyboardInterrupt, SystemExit))
            if self._failed.wait(0 if expected else GRACE / 2):
                self._end_now()
            code = exit_code(error)
            for link in self._links.values():
                link.send("failed", line=f"{self.name(self.index)}: {one_line(error)}", code=code)
            atexit.register(self._exit, code)  # JAX's own end would wait for processes that do not come
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

    def _listen(self, who: int, link: Link) -> None:
        """A thread that takes what comes over one connection."""
        for kind, message in link.messages():
            if kind == "end":
                return
            if kind == "failed":
                self._fail(**message)
            elif kind == "value":
                self._take(who, message["key"], message["value"])
            else:
                with self._changed:
                    self._answers[message["key"]] = message["answer"]
                    self._changed.notify_all()
        if not self._leaving.is_set():
            self._fail(f"{self.name(who)} ended without a word: see its log; start all again with --resume", LOST)

    def tell_of_hang(self, line: str) -> None:
        """Ends the other processes, because this one makes no progress; it ends itself once this returns."""
        with self._changed:
            self._why = (line, LOST)
            self._failed.set()  # what others say of it comes too late
        for link in self._links.values():
            link.send("failed", line=line, code=LOST, hang=True)
        self._stay_last()

    def _fail(self, line: str, code: int, hang: bool = False) -> None:
        """Tells the others what has come, and ends this process unless it ends by itself."""
        with self._changed:
            if self._failed.is_set():  # of several that fail the first one counts
                return
            self._why = (line, code)
            self._failed.set()
        if self.first:
            for link in self._links.values():
                link.send("failed", line=line, code=code, hang=hang)
        if hang:
            write_stacks()
        if hang or not self._leaving.wait(GRACE):
            self._end_now()

    def _end_now(self) -> None:
        self._ending.acquire()  # for good: the main thread and one that listens may both come here
        line, code = self._why
        # on a line of its own, below a progress bar
        print(f"\nfourreal {self.verb}: error: {line}", file=sys.stderr, flush=True)
        self._exit(code)

    def _stay_last(self) -> None:
        """In process 0, waits until the others have ended, for as long as they need."""
        deadline = time.monotonic() + FAREWELL
        while self.first and time.monotonic() < deadline and not all(link.closed for link in self._links.values()):
            time.sleep(0.02)

    def _exit(self, code: int) -> None:
        self._stay_last()
        exit_at_once(code)


ALONE = Peers()


def start(verb: str = "train") -> Peers:
    """Joins the other processes of the run, if the environment says that there are some; before JAX's devices are touched.

    On TPU pods and in SLURM steps JAX knows them; elsewhere FOURREAL_COORDINATOR (host:port of process 0),
    FOURREAL_PROCESS_COUNT and FOURREAL_PROCESS_ID do, or there are none. Raises, in every process, UserError where these are
    wrong, and TimeoutError where some processes do not join within FOURREAL_START_TIMEOUT seconds (300). `verb` is for the
    lines of errors.
    """
    timeout = start_timeout()
    place = find_place(timeout)
    if place is None:
        return Peers()
    peers = gather(place, timeout) if place.index == 0 else join(place, timeout)
    peers.verb = verb
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    why = f"JAX did not start (a process hangs, or {place.host}:{place.jax_port} cannot be reached from all hosts)"
    with peers.giving_up(timeout, why):
        jax.distributed.initialize(
            f"{place.host}:{place.jax_port}",
            place.count,
            place.index,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=WATCHED,
            heartbeat_timeout_seconds=WATCHED if verb == "train" else 100,
        )
    return peers


def gather(place: Place, timeout: float) -> Peers:
    """Process 0's side of the start: waits for all others. Raises UserError or TimeoutError, which they get, too."""
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
    except (UserError, TimeoutError) as error:
        for link, _ in joined.values():
            link.send("refused", line=str(error), error=told_as(error))
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
            raise UserError(f"{text}: start the same command on all hosts")
        if index in joined and not joined[index][0].closed:
            text = f"two processes have the number {index}, on {joined[index][1]} and on {host}"
            joined[place.count] = link, host
            raise UserError(f"{text}: give each its own")
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


def told_as(error: Exception) -> str:
    """The name in `ERRORS` under which the other processes raise an error."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)


def listed(names: list[str]) -> str:
    """`1, 2 and 3`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def write_stacks() -> None:
    """Writes the stacks of all threads to stderr, where that is a file."""
    with contextlib.suppress(OSError):
        faulthandler.dump_traceback(sys.stderr)


def exit_at_once(code: int) -> None:
    """Ends at once, without waiting for anybody."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
