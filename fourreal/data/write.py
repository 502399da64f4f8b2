"""Writes a data set of scenes in several processes, without holding it in memory, and goes on where it was killed.

A split is made of candidates 0, 1, 2, ...: `make(i)` gives a scene, or says why candidate i is left out. The first `count`
scenes are the split. Candidates are made in parts of `part` that follow each other; a process makes one part at a time and
writes its scenes to shards of its own as they come. A part that is finished says so in a file, and is never made again; the
scenes that the last part has too many are cut off. So neither the number of processes nor a kill changes a byte.

    .OUT.partial/settings.json              a second call goes on only if its settings are the same
    .OUT.partial/parts/train-0000003.json     part 3 is finished: its shards, its scenes, what was left out
    .OUT.partial/parts/train-0000003.PID.0    one of its shards
    .OUT.partial/whole/                     the shards under their last names, once all parts are there; becomes OUT
"""

import collections
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fourreal.data.records import ShardWriter, Stored, check_same, index_file, shard_name, write_description
from fourreal.errors import FileInTheWay, UserError
from fourreal.host.folders import check_creatable, partial_folder, resumed_folder
from fourreal.scene import Scene
from fourreal.serialize import differences, read_json

MOST_WORKERS = 256
FORMAT = 3


@dataclass(frozen=True)
class Split:
    """The scenes of a split, made one by one in any process. For several, `make` is picklable and a script guards its main."""

    make: Callable[[int], Scene | str]
    """candidate i: a scene, or in a word why it is left out; the same wherever and whenever it is called"""
    count: int
    """scenes wanted"""
    part: int = 16
    """candidates that one process makes at a time; a kill loses no more of each process's work"""


Progress = Callable[[str, int], None]


def write_scenes(
    out: Path,
    splits: dict[str, Split],
    *,
    settings: dict[str, Any] | None = None,
    licence: str = "",
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = lambda split, scenes: None,
) -> dict[str, dict[str, int]]:
    """Writes a data set to the folder `out`, which appears only when all of it is there, or goes on with one.

    `settings` are JSON values that tell this data set from others; they are kept in its metadata. `progress` is told of each
    split how many more scenes there are. Returns of each split how many candidates were left out, by reason.

    Raises FileInTheWay where `out` exists, and UserError where a writing of other settings was begun there, another process
    writes there, the scenes are not of one kind, or nearly all candidates are left out.
    """
    check_workers(workers)
    if not splits or min(split.count for split in splits.values()) < 1:
        raise UserError("a split holds no scenes: ask for at least one of each")
    if odd := [name for name in splits if not name.isidentifier()]:
        raise UserError(f"'{odd[0]}' is no name of a split: give letters, digits and _")
    if out.exists() and not overwrite:
        raise FileInTheWay(f"{out} exists already: name another folder or overwrite it")
    out = out.resolve()
    settings = {"format": FORMAT, **(settings or {})}
    asked = settings | {"splits": {name: [split.count, split.part] for name, split in splits.items()}}
    with resumed_folder(out, keep=lambda partial: any(partial.glob("parts/*.json"))) as partial:
        _begin(partial, asked)
        parts, whole = partial / "parts", partial / "whole"
        if not whole.exists():
            with _processes(workers, progress) as (pool, listen):
                writing = _Writing(parts, pool, workers, listen, progress)
                for name, split in splits.items():
                    writing.make(name, split)
            for name, split in splits.items():
                _cut_off(parts, name, split.count)
        left_out = _put_together(parts, whole, list(splits), settings, licence)
        old = out.with_name(f".{out.name}.old")
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        whole.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    return left_out


def check_data_out(out: Path, overwrite: bool) -> None:
    """Raises FileInTheWay where something stands at `out` that is not to be replaced, OSError where none can be made."""
    check_creatable(out)
    if out.exists() and not overwrite:
        raise FileInTheWay(f"{out} exists already: name another --out or pass --overwrite")
    if out.exists() and not out.is_dir():
        raise FileInTheWay(f"{out} is a file: name a folder with --out")
    if out.exists() and any(out.iterdir()) and not (out / "dataset_info.json").is_file():
        raise FileInTheWay(f"{out} is no data set, so --overwrite leaves it: name another --out")


def write_with_bar(out: Path, splits: dict[str, Split], **options: Any) -> dict[str, dict[str, int]]:
    """`write_scenes` with a progress bar; says where the work of a call that fails is kept."""
    with tqdm(total=sum(split.count for split in splits.values()), unit="grid", dynamic_ncols=True) as bar:

        def progress(split: str, grids: int) -> None:
            bar.set_description(split, refresh=False)
            bar.update(min(grids, bar.total - bar.n))

        try:
            return write_scenes(out, splits, progress=progress, **options)
        finally:
            if (kept := partial_folder(out)).exists():
                print(f"{kept} keeps what is finished: the same command goes on with it")


def check_workers(workers: int) -> None:
    """Raises UserError for a number of processes that cannot be."""
    if not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"{workers} processes cannot write: give 1 to {MOST_WORKERS} workers")


def _begin(partial: Path, asked: dict[str, Any]) -> None:
    """Checks the settings of a writing that goes on, keeps those of a new one, and clears what a killed one left."""
    file = partial / "settings.json"
    if file.exists():
        before = read_json(file)
        if unlike := differences(before, json.loads(json.dumps(asked))):
            said = ", ".join(f"{name} was {was!r}, is {now!r}" for name, (was, now) in unlike.items())
            raise UserError(f"{partial} was begun with other settings ({said}): give the same ones, or delete it")
    (partial / "parts").mkdir(exist_ok=True)
    _write_whole(file, asked)
    kept = set()
    for path in partial.glob("parts/*.json"):
        shards = {shard["name"] for shard in read_json(path)["files"]}
        if (partial / "whole").exists() or all((path.parent / name).exists() for name in shards):
            kept |= shards | {path.name}
    for path in (partial / "parts").iterdir():
        if path.name not in kept:
            path.unlink()


@dataclass
class _Writing:
    """Has the parts of the splits made that are not there."""

    parts: Path
    pool: concurrent.futures.Executor
    workers: int
    listen: Callable[[], None]
    progress: Progress
    arrays: dict[str, str] | None = None

    def make(self, name: str, split: Split) -> None:
        """Makes parts, those with the lowest numbers first, until there are enough scenes."""
        done: dict[int, int] = {}
        left_out: collections.Counter = collections.Counter()
        running: dict[concurrent.futures.Future, int] = {}
        for path in sorted(self.parts.glob(f"{name}-*.json")):
            done[int(path.stem.rpartition("-")[2])] = self._take(path, left_out)
        self.progress(name, sum(done.values()))
        while True:
            number, expected = 0, 0
            while number in done or number in running.values():
                expected += done.get(number, split.part)
                number += 1
            if expected < split.count and len(running) <= self.workers:
                most = split.count - sum(count for n, count in done.items() if n < number)
                running[self.pool.submit(_write_part, self.parts, name, split, number, most)] = number
            elif running:
                for future in concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)[0]:
                    future.result()
                    number = running.pop(future)
                    done[number] = self._take(_part(self.parts, name, number), left_out)
                self.listen()
            else:
                return
            if left_out.total() > 20 * (sum(done.values()) + 20):
                said = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
                raise UserError(f"nearly every scene of {name} is left out ({said}): check what they are made from")

    def _take(self, path: Path, left_out: collections.Counter) -> int:
        """The number of scenes of a finished part. Raises UserError where they are not of the kind of those before."""
        found = read_json(path)
        left_out.update(filter(None, found["outcomes"]))
        if found["arrays"]:
            self.arrays = self.arrays or found["arrays"]
            check_same(self.arrays, found["arrays"], path.stem)
        return len(found["scenes"])


def _write_part(parts: Path, name: str, split: Split, number: int, most: int) -> None:
    """Makes the candidates of a part until it has `most` scenes; its file appears when its shards are whole."""
    writer = ShardWriter(parts / f"{name}-{number:07}.{os.getpid()}")
    outcomes, scenes = [], []
    with contextlib.closing(writer):
        for candidate in range(number * split.part, (number + 1) * split.part):
            if _Process.stopped():
                return
            made = split.make(candidate)
            outcomes.append(made if isinstance(made, str) else None)
            if isinstance(made, str):
                continue
            scenes.append(writer.write(made, candidate)._asdict())
            del made
            _Process.tell(name)
            if len(scenes) == most:
                break
    found = {"outcomes": outcomes, "scenes": scenes, "arrays": writer.arrays, "files": writer.files}
    _write_whole(_part(parts, name, number), found)


def _cut_off(parts: Path, name: str, count: int) -> None:
    """Cuts the part in which a split has enough scenes down to those that it needs, and those after it to none."""
    for file in sorted(parts.glob(f"{name}-*.json")):
        found = read_json(file)
        if len(found["scenes"]) >= count:
            _cut_part(file, found, count)
        count -= min(count, len(found["scenes"]))


def _cut_part(file: Path, found: dict[str, Any], count: int) -> None:
    """Leaves a part its first `count` scenes: its shards are written anew as far as they go."""
    from array_record.python.array_record_module import ArrayRecordReader

    left = sum(Stored(**scene).records for scene in found["scenes"][:count])
    kept = [n for n, reason in enumerate(found["outcomes"]) if reason is None][:count]
    outcomes = found["outcomes"][: kept[-1] + 1] if kept else []
    if outcomes == found["outcomes"]:
        return
    writer = ShardWriter(file.with_name(f"{file.stem}.cut-{os.getpid()}"))
    with contextlib.closing(writer):
        for shard in found["files"]:
            reader = ArrayRecordReader(str(file.with_name(shard["name"])), "readahead_buffer_size:0")
            for n in range(min(left, shard["records"])):
                writer.append(reader.read([n])[0])
            left -= min(left, shard["records"])
            reader.close()
    _write_whole(file, found | {"outcomes": outcomes, "scenes": found["scenes"][:count], "files": writer.files})


def _put_together(
    parts: Path, whole: Path, splits: list[str], settings: dict[str, Any], licence: str
) -> dict[str, dict[str, int]]:
    """Gives the shards their names, lists the scenes and describes the data set. It may be killed and called again."""
    whole.mkdir(exist_ok=True)
    left_out, files, arrays = {}, {}, {}
    for name in splits:
        files[name], reasons = [], collections.Counter()
        with open(index_file(whole, name), "w", encoding="utf-8") as index:
            for found in map(read_json, sorted(parts.glob(f"{name}-*.json"))):
                files[name] += found["files"]
                arrays = arrays or found["arrays"] or {}
                reasons.update(filter(None, found["outcomes"]))
                index.writelines(json.dumps(scene) + "\n" for scene in found["scenes"])
        left_out[name] = dict(reasons)
        for number, file in enumerate(files[name]):
            place = whole / shard_name(name, number, len(files[name]))
            if not place.exists():
                (parts / file["name"]).rename(place)
    write_description(whole, files, arrays, settings, licence)
    return left_out


def _part(parts: Path, name: str, number: int) -> Path:
    return parts / f"{name}-{number:07}.json"


def _write_whole(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps(values))
    new.replace(path)


class _Process:
    """What a process that makes parts knows of the one that wants them."""

    stopped: Callable[[], bool] = staticmethod(lambda: False)
    tell: Callable[[str], None] = staticmethod(lambda split: None)


@contextlib.contextmanager
def _processes(workers: int, progress: Progress) -> Iterator[tuple[concurrent.futures.Executor, Callable[[], None]]]:
    """Runs parts in `workers` processes, in this one for 1; the second value passes on what they told of their progress."""
    if workers == 1:
        _Process.tell = staticmethod(lambda split: progress(split, 1))
        yield _Here(), lambda: None
        return
    # spawn: a forked copy of a process that has drawn with Panda3D does not work
    context = multiprocessing.get_context("spawn")
    for library in ("OMP", "OPENBLAS", "MKL"):  # a process a core: more threads would only wait for each other
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    told, tell = context.Pipe(duplex=False)
    stopped, keep_on = context.Pipe(duplex=False)

    def listen() -> None:
        while told.poll():
            progress(told.recv_bytes().decode(), 1)

    with concurrent.futures.ProcessPoolExecutor(workers, context, _start, (stopped, tell)) as pool:
        try:
            yield pool, listen
        finally:
            keep_on.close()
            pool.shutdown(wait=True, cancel_futures=True)


class _Here(concurrent.futures.Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, function: Callable, /, *arguments: Any, **named: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(function(*arguments, **named))
        return future


def _start(stopped: Any, tell: Any) -> None:
    """Prepares a process; it ends when the one that started it is gone: one that is killed does not shut its pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the others
    _Process.stopped = staticmethod(stopped.poll)  # readable once its other end is closed
    _Process.tell = staticmethod(lambda split: tell.send_bytes(split.encode()))

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
