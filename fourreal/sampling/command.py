"""The verb `sample`: videos and pictures (or a bundled test grid) in, a sampled grid as a folder out."""

import contextlib
import itertools
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fourreal.parallel.mesh import MeshConfig

if TYPE_CHECKING:
    from fourreal.models.cameras import Cameras
    from fourreal.parallel.distributed import Peers
    from fourreal.sampling.inputs import GridInput

PATH = tyro.conf.arg(metavar="PATH")
MOST_STEPS = 1000
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "av")


@dataclass(frozen=True)
class Sample:
    """Sample a grid of frames over view and time from any cells of it.

    Without inputs it takes a bundled test grid, of which view 0 and time 0 are given. A path may be a video, a gif, an
    npz with frames [f, h, w, 3], a picture, a folder of pictures or a quoted glob.
    """

    checkpoint: str = "nano"
    """a bundled name, a run's folder, or a folder of weights"""
    given: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH@PLACE")] = ()
    """what is given, and where: VIDEO@v=0 fills view 0, ORBIT@t=0 fills time 0, PICTURE@v=3,t=5 fills one cell"""
    video: Annotated[str | None, PATH] = None
    """fixed-view video at view 0, the same as --given VIDEO@v=0"""
    orbit: Annotated[str | None, PATH] = None
    """freeze-time video (the camera moves, time stands) at time 0, the same as --given ORBIT@t=0"""
    image: Annotated[str | None, PATH] = None
    """one picture, the same as --given PICTURE@v=0,t=0"""
    views: Annotated[str | None, PATH] = None
    """folder or quoted glob of synchronised videos, one per view; in order of their names they fill views 0, 1, ..."""
    grid: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH")] = None
    """a test grid instead of inputs: a bundled name, or an npz with frames uint8 [v, t, h, w, 3]"""
    cameras: Annotated[str | None, PATH] = None
    """transforms.json in nerfstudio's form, one camera a view, for a checkpoint with cameras; none: not a test grid's own"""
    trajectory: Annotated[str | None, tyro.conf.arg(metavar="NAME[:AMOUNT]")] = None
    """cameras along a path instead: orbit:60 (degrees around the subject), arc:60 (rising too), rise:20, dolly:0.3 (nearer)"""
    fov: float = 40.0
    """field of view of a trajectory's cameras across the picture, in degrees"""
    elevation: float = 20.0
    """how far a trajectory's first camera looks down, in degrees"""
    frames: Annotated[str | None, tyro.conf.arg(metavar="A:B[:STEP]")] = None
    """which frames of a longer video: a:b spread evenly over that range, a:b:step each step-th from a; else over all"""
    crop: Literal["center", "pad"] = "center"
    """how another aspect ratio becomes the model's: cut the sides, or add black bars"""
    steps: int = 8
    """denoising steps"""
    guidance_scale: float = 1.0
    """classifier-free guidance over the given cells; 1 is none, and half the work"""
    method: Literal["euler", "heun"] = "euler"
    """how the flow is integrated; heun takes twice the time a step"""
    seed: int = 0
    """the noise of a cell depends on (seed, view, time) only"""
    mesh: MeshConfig = MeshConfig()
    """devices along each axis; by default as many along grid as divide views and times"""
    out: Annotated[str | None, PATH] = None
    """folder to write; by default a new one, out/NAME-CHECKPOINT-seedN"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the folder if it exists"""

    def run(self) -> None:
        """Samples; of several processes the first one prints and writes."""
        from fourreal.parallel import distributed

        with contextlib.ExitStack() as stack:
            peers = stack.enter_context(distributed.start("sample"))
            if not peers.first:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            self.sample(peers)

    def sample(self, peers: "Peers") -> None:
        """As one of these processes. Checks the inputs before any weights load; raises ValueError or OSError with one line."""
        from fourreal.models.checkpoints import describe_checkpoint
        from fourreal.sampling.export import check_destination

        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"--steps {self.steps}: give 1 to {MOST_STEPS} steps")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed {self.seed}: give 0 to 2^32 - 1")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"--guidance-scale {self.guidance_scale}: give 0 or more; 1 is no guidance")
        if self.trajectory is None and (self.fov, self.elevation) != (type(self).fov, type(self).elevation):
            raise ValueError(
                "--fov and --elevation describe the cameras of a trajectory: add --trajectory, as orbit:60"
            )
        out = None if self.out is None else Path(os.path.expanduser(self.out))
        if out:
            peers.of_first("destination", lambda: check_destination(out, self.overwrite))
        described = describe_checkpoint(self.checkpoint)
        shape = (described.views, described.times, described.size, described.size)
        inputs = self.read_inputs(shape)
        cameras, line = self.read_cameras(described.model.cameras, inputs)
        out = out or _free(Path(f"out/{inputs.name}-{Path(self.checkpoint).name}-seed{self.seed}"))
        peers.of_first("destination", lambda: check_destination(out, self.overwrite))
        for note in inputs.notes:
            print(note)
        if inputs.given.all():
            raise ValueError("every cell of the grid is given, so there is nothing to sample: leave some out")
        cells = f"{inputs.given.sum()} of {inputs.given.size} cells given"
        print(f"{inputs.name}: {shape[0]} views x {shape[1]} times at {shape[2]}x{shape[3]}, {cells}{line}", flush=True)
        self._sample(inputs, cameras, out, peers)

    def read_inputs(self, shape: tuple[int, int, int, int]) -> "GridInput":
        """The inputs that the options name, in a grid of `shape` (views, times, height, width)."""
        from fourreal.sampling.inputs import parse_placement, place_views, read_grid, read_placements

        sugar = ((self.video, "v=0"), (self.orbit, "t=0"), (self.image, "v=0,t=0"))
        texts = [*self.given, *(f"{path}@{place}" for path, place in sugar if path is not None)]
        placements = [parse_placement(text) for text in texts]
        notes = ()
        if self.views is not None:
            in_views, line = place_views(self.views, shape[0])
            placements, notes = placements + in_views, (line,)
        if not placements:
            if self.frames is not None:
                raise ValueError(f"--frames {self.frames} cuts videos, and there is none: give one, or leave it out")
            return read_grid(self.grid, shape, crop=self.crop)
        if self.grid is not None:
            raise ValueError("--grid brings its own given cells; leave it out, or leave out all other inputs")
        inputs = read_placements(placements, shape, frames=self.frames, crop=self.crop)
        return replace(inputs, notes=(*notes, *inputs.notes))

    def read_cameras(self, taken: bool, inputs: "GridInput") -> tuple["Cameras | None", str]:
        """The cameras that the model is told, by default those of a test grid, and the words that say so."""
        from fourreal.models.cameras import Cameras
        from fourreal.sampling.cameras import read_transforms, trajectory

        views, _, *size, _ = inputs.frames.shape
        if self.cameras is not None and self.trajectory is not None:
            raise ValueError("--cameras and --trajectory both say where the cameras are: give one")
        if not taken and (self.trajectory or self.cameras not in (None, "none")):
            option = "--trajectory" if self.trajectory else "--cameras"
            raise ValueError(
                f"{option}: the checkpoint {self.checkpoint} takes no cameras; train one with --model.cameras"
            )
        if self.trajectory is not None:
            found = trajectory(self.trajectory, views, tuple(size), self.fov, self.elevation)
            return found, f", cameras: {self.trajectory}"
        if self.cameras not in (None, "none"):
            found, line = read_transforms(self.cameras, views, tuple(size), self.crop)
            return found, f", cameras: {line}"
        if taken and self.cameras is None and inputs.K is not None and inputs.c2w is not None:
            return Cameras(inputs.K, inputs.c2w), ", with its cameras"
        return None, ""

    def _sample(self, inputs: "GridInput", cameras: "Cameras | None", out: Path, peers: "Peers") -> None:
        from fourreal.sampling.export import GridResult, score_table, scores, write_result
        from fourreal.sampling.pipeline import load_pipeline

        start = time.perf_counter()
        pipe = load_pipeline(self.checkpoint, None if self.mesh == MeshConfig() else self.mesh)
        loaded = time.perf_counter()
        sampled = pipe(
            inputs.frames,
            inputs.given,
            cameras=cameras,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            method=self.method,
            seed=self.seed,
        )
        done = time.perf_counter()
        if not peers.first:
            return
        about = {
            "options": asdict(self),
            "model": asdict(pipe.config),
            "weights_hash": pipe.weights_hash,
            "notes": list(inputs.notes),
            "versions": _versions(),
            "timings_s": {"load": round(loaded - start, 3), "sample": round(done - loaded, 3)},
            "peak_memory_gib": _peak_memory(),
        }
        K, c2w, focus = (inputs.K, inputs.c2w, None) if cameras is None else cameras[:3]
        focus = None if focus is None else float(focus)
        result = GridResult(inputs.name, sampled, inputs.given, inputs.truth, K, c2w, about, focus)
        index = write_result(out, result, overwrite=self.overwrite)
        print(f"sampled {self.steps} steps in {done - loaded:.1f} s, seed {self.seed} (compilation included)")
        if table := scores(result):
            print(score_table(table, int((~inputs.given).sum())))
        print(f"open {index}")


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(name for name in numbered if not name.exists())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from fourreal import __version__

    return {"fourreal": __version__, "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _peak_memory() -> float | None:
    """Largest resident memory of this process so far, in GiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
