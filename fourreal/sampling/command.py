"""The verb `sample`: videos and pictures (or a bundled test grid) in, a sampled grid as a folder out."""

import contextlib
import itertools
import math
import os
import platform
import re
import sys
import time
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from fourreal.conditions import Condition
from fourreal.diffusion.samplers import Euler, Sampler
from fourreal.errors import UserError
from fourreal.options import read_options
from fourreal.parallel.mesh import MeshConfig
from fourreal.scene import Cameras
from fourreal.serialize import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourreal.checkpoints.specs import ModelSpec
    from fourreal.host.processes import Peers
    from fourreal.sampling.inputs import GridInput

PATH = tyro.conf.arg(metavar="PATH")
MOST_STEPS, MOST_SEEDS = 1000, 1000
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "av")


@dataclass(frozen=True)
class Inputs:
    """The model, and what it is given.

    A path may be a video, a gif, an npz with frames [f, h, w, 3], a picture, a folder of pictures or a quoted glob.
    """

    checkpoint: str = "nano"
    """a bundled name, a run's folder, or a folder of weights; a base alone makes clips, of one view or one time"""
    vae: Annotated[str | None, PATH] = None
    """folder of the autoencoder, as diffusers writes it, for a checkpoint on latents that does not name one"""
    stage: int | None = None
    """of a checkpoint of several stages, sample only the first so many; 1 is the small grid alone"""
    given: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH@PLACE")] = ()
    """what is given, and where: VIDEO@v=0 fills view 0, ORBIT@t=0 fills time 0, PICTURE@v=3,t=5 fills one cell"""
    video: Annotated[str | None, PATH] = None
    """fixed-view video at view 0, the same as --given VIDEO@v=0"""
    orbit: Annotated[str | None, PATH] = None
    """freeze-time video (the camera moves, time stands) at time 0, the same as --given ORBIT@t=0"""
    image: Annotated[str | None, PATH] = None
    """one picture, the same as --given PICTURE@v=0,t=0"""
    views: Annotated[str | None, PATH] = None
    """folder or quoted glob of videos that began together, one per view; in order of their names they fill views 0, 1, ..."""
    grid: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH")] = None
    """a test grid instead of inputs: a bundled name, or an npz with frames uint8 [v, t, h, w, 3]"""
    first_video: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """first have the checkpoint's base make the video of view 0, of its text and what is given of that view, then the grid"""
    frames: Annotated[str | None, tyro.conf.arg(metavar="A:B[:STEP]")] = None
    """which frames of a longer video: a:b spread evenly over that range, a:b:step each step-th from a; else over all;
    in seconds 2s:4.5s or 2s:4.5s:0.5s"""
    crop: Literal["center", "pad"] = "center"
    """how another aspect ratio becomes the grid's: cut the sides, or add black bars"""


@dataclass(frozen=True)
class Sampling:
    """What is sampled, and how; size and numbers are those of the checkpoint's training by default."""

    num_views: int | None = None
    """views of the grid"""
    num_times: int | None = None
    """times of the grid"""
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")] = None
    """of a frame in pixels; multiples of the model's patch"""
    steps: int | None = None
    """denoising steps of every stage; none: as many as the checkpoint names for each"""
    guidance_scale: float = 1.0
    """classifier-free guidance over the given cells and the text; 1 is none, and half the work"""
    guide: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None
    """what it goes over instead: given, or names of conditions; the text alone is --guide text"""
    method: Sampler = Euler()
    """how the flow is integrated: euler; heun, which takes twice the time a step; unipc, of order 2 at euler's price"""
    shift: float | None = None
    """of the noise levels; none: the checkpoint's. Larger frames want more: Wan 2.1 takes 3 at 480 x 832, 5 at 720 x 1280"""
    seed: int = 0
    """the noise of a cell depends on (seed, view, time) only"""
    seeds: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    """seeds A to B - 1 instead, each in a folder of its own, as if sampled alone"""

    def chosen(self) -> list[int]:
        """The seeds. Raises UserError for what is none."""
        if self.seeds is None:
            seeds = [self.seed]
        else:
            found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", self.seeds)
            seeds = range(int(found[1]), int(found[2])) if found else range(0)
            if not 0 < len(seeds) <= MOST_SEEDS:
                raise UserError(
                    f"--seeds {self.seeds}: expected A:B with A below B, as 0:8, at most {MOST_SEEDS} seeds"
                )
            if self.seed != type(self).seed:
                raise UserError("--seed and --seeds both say it: give one")
        for seed in (seeds[0], seeds[-1]):
            if not 0 <= seed < 2**32:
                raise UserError(f"--seed {seed}: give 0 to 2^32 - 1")
        return list(seeds)


@dataclass(frozen=True)
class Output:
    """What is written."""

    out: Annotated[str | None, PATH] = None
    """folder to write; by default a new one, out/NAME-CHECKPOINT-seedN; with --seeds, of the folders seedN"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the folder if it exists"""


@dataclass(frozen=True)
class Sample:
    """Sample a grid of frames over view and time from any cells of it.

    Without inputs it takes a bundled test grid, of which view 0 and time 0 are given.
    """

    inputs: tyro.conf.OmitArgPrefixes[Inputs] = Inputs()
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = Sampling()
    output: tyro.conf.OmitArgPrefixes[Output] = Output()
    mesh: MeshConfig = MeshConfig()
    """devices along each axis; by default as many along grid as divide views and times"""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Sample":
        """Reads the options, with those of every condition that an imported module defines."""
        fields = [
            (name, tyro.conf.OmitArgPrefixes[options], field(default=options()))
            for options, name in _condition_options().items()
        ]
        every = make_dataclass("EverySample", fields, bases=(cls,), frozen=True)
        every.__doc__ = cls.__doc__
        return read_options(every, argv, prog)

    def run(self) -> None:
        """Samples; of several processes the first one prints and writes."""
        from fourreal.host import processes as distributed

        with contextlib.ExitStack() as stack:
            peers = stack.enter_context(distributed.start("sample"))
            if not peers.first:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            self.sample(peers)

    def sample(self, peers: "Peers") -> None:
        """As one of these processes. Checks the inputs before any weights load; raises UserError or OSError with one line."""
        from fourreal.checkpoints.specs import check_clip, check_shape, describe_checkpoint
        from fourreal.diffusion.guidance import guided_names
        from fourreal.sampling.results import check_destination

        sampling, seeds = self.sampling, self.sampling.chosen()
        if sampling.steps is not None and not 1 <= sampling.steps <= MOST_STEPS:
            raise UserError(f"--steps {sampling.steps}: give 1 to {MOST_STEPS} steps")
        if not 0 <= sampling.guidance_scale < math.inf:
            raise UserError(f"--guidance-scale {sampling.guidance_scale}: give 0 or more; 1 is no guidance")
        if sampling.shift is not None and not 0 < sampling.shift < math.inf:
            raise UserError(f"--shift {sampling.shift}: give a number above 0; 1 is no shift")
        if sampling.guide is not None and (not sampling.guide or sampling.guidance_scale == 1):
            raise UserError(
                "--guide names what --guidance-scale goes over: give both, as --guidance-scale 5 --guide text"
            )
        out = None if self.output.out is None else Path(os.path.expanduser(self.output.out))
        folders = {seed: out if sampling.seeds is None else out and out / f"seed{seed}" for seed in seeds}

        def check() -> None:
            for folder in folders.values():
                if folder:
                    check_destination(folder, self.output.overwrite)

        peers.of_first("destination", check)
        specs = [describe_checkpoint(folder) for folder in self.stage_folders()]
        spec = specs[-1]
        views = spec.views if sampling.num_views is None else sampling.num_views
        times = spec.times if sampling.num_times is None else sampling.num_times
        size = spec.size if sampling.size is None else sampling.size
        check_shape(spec, views, times, size)
        taken = self.taken_conditions(specs)
        guided_names(sampling.guide, tuple(taken.values()))
        check_clip(spec, views, times)
        inputs = self.read_inputs((views, times, *size), "text" in taken)
        if self.inputs.first_video and (len(specs) > 1 or views == 1 or inputs.given[0].all()):
            reason = "view 0 is given as a whole" if inputs.given[0].all() else f"the checkpoint makes {views} views"
            reason = "the checkpoint has stages, of which none makes videos" if len(specs) > 1 else reason
            raise UserError(f"--first-video: {reason}; leave it out")
        told, words = self.read_conditions(taken, inputs)
        for seed in seeds:
            default = _free(Path(f"out/{inputs.name}-{Path(self.inputs.checkpoint).name}-seed{seed}"))
            folders[seed] = folders[seed] or default
        peers.of_first("destination", check)
        for note in inputs.notes:
            print(note)
        if inputs.given.all():
            raise UserError("every cell of the grid is given, so there is nothing to sample: leave some out")
        cells = f"{inputs.given.sum()} of {inputs.given.size} cells given"
        print(
            f"{inputs.name}: {views} views x {times} times at {size[0]}x{size[1]}, {cells}{''.join(words.values())}",
            flush=True,
        )
        self._sample(inputs, told, words, folders, peers)

    def read_inputs(self, shape: tuple[int, int, int, int], of_text: bool = False) -> "GridInput":
        """The inputs that the options name, in a grid of `shape` (views, times, height, width), with their cameras.

        None at all are a bundled grid's or, for a model `of_text`, no given cells.
        """
        from fourreal.media.transforms import read_cameras
        from fourreal.sampling.inputs import GridInput, parse_placement, place_views, read_grid, read_placements

        ours = self.inputs
        sugar = ((ours.video, "v=0"), (ours.orbit, "t=0"), (ours.image, "v=0,t=0"))
        texts = [*ours.given, *(f"{path}@{place}" for path, place in sugar if path is not None)]
        placements = [parse_placement(text) for text in texts]
        file = getattr(getattr(self, "cameras", None), "cameras", None)  # of the condition's own options
        cameras = None if file in (None, "none") else read_cameras(file)
        notes = ()
        if ours.views is not None:
            in_views, line = place_views(ours.views, shape[0])
            placements, notes = placements + in_views, (line,)
        if not placements:
            if ours.frames is not None:
                raise UserError(f"--frames {ours.frames} cuts videos, and there is none: give one, or leave it out")
            if of_text and ours.grid is None:
                if cameras is not None:
                    raise UserError(
                        f"--cameras {file} pairs cameras with pictures, and there is none: give --trajectory"
                    )
                return GridInput(np.zeros((*shape, 3), np.uint8), np.zeros(shape[:2], bool), "text")
            return read_grid(ours.grid, shape, crop=ours.crop, cameras=cameras)
        if ours.grid is not None:
            raise UserError("--grid brings its own given cells; leave it out, or leave out all other inputs")
        inputs = read_placements(placements, shape, frames=ours.frames, crop=ours.crop, cameras=cameras)
        return replace(inputs, notes=(*notes, *inputs.notes))

    def stage_folders(self) -> list[Path]:
        """The folders of weights of the stages that run. Raises UserError where there are fewer than `stage`."""
        from fourreal.checkpoints.specs import stage_folders

        folders, last = stage_folders(self.inputs.checkpoint), self.inputs.stage
        if last is not None and not 1 <= last <= len(folders):
            raise UserError(
                f"--stage {last}: the checkpoint {self.inputs.checkpoint} has {len(folders)} "
                f"stage{'s' * (len(folders) > 1)}; give 1 to {len(folders)}"
            )
        return folders[:last]

    def taken_conditions(self, specs: "Sequence[ModelSpec]") -> dict[str, Condition]:
        """The conditions of the stages' models, by name. Raises UserError for options of one that none takes."""
        taken = {condition.name: condition for spec in specs for condition in spec.model.conditions}
        for kind, name in _condition_options().items():
            options = getattr(self, name, None)
            said = "" if options is None else Condition.named(name).check_options(options)
            if said and not any(condition.Options is kind for condition in taken.values()):
                raise UserError(
                    f"{said}: the checkpoint {self.inputs.checkpoint} takes no {name}; train one with "
                    f"--model.conditions ... {name}"
                )
        return taken

    def read_conditions(
        self, taken: dict[str, Condition], inputs: "GridInput"
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """What the stages' models are told besides the given cells, and the words that say so, by name."""
        told, words, names = {}, {}, _condition_options()
        for name, condition in taken.items():
            options = getattr(self, names.get(condition.Options, ""), None)
            if options is not None:
                value, line = condition.from_options(options, inputs)
                told |= {} if value is None else {name: value}
                words |= {name: line} if line and line not in words.values() else {}
        return told, words

    def _sample(
        self, inputs: "GridInput", told: dict[str, Any], words: dict[str, str], folders: dict[int, Path], peers: "Peers"
    ) -> None:
        from fourreal.sampling.load import load_pipeline
        from fourreal.sampling.results import GridResult, score_table, scores, write_result

        sampling, start = self.sampling, time.perf_counter()
        name = self.inputs.checkpoint if self.inputs.stage is None else self.stage_folders()[-1]
        pipe = load_pipeline(name, None if self.mesh == MeshConfig() else self.mesh, vae=self.inputs.vae)
        loaded = time.perf_counter() - start
        steps = " + ".join(str(sampling.steps or steps) for steps in pipe.steps)
        for seed, out in folders.items():
            start, frames, given = time.perf_counter(), inputs.frames, inputs.given
            options = {
                "conditions": told,
                "steps": sampling.steps,
                "guidance_scale": sampling.guidance_scale,
                "guide": sampling.guide,
                "method": sampling.method,
                "shift": sampling.shift,
                "seed": seed,
            }
            if self.inputs.first_video:
                frames, given = pipe.with_first_video(frames, given, **options)
            sampled = pipe(frames, given, **options)
            took = time.perf_counter() - start
            if not peers.first:
                continue
            about = {
                "options": self.options(seed) | {"steps": steps},
                "told": {name: line.removeprefix(", ") for name, line in words.items()},
                "model": to_json(pipe.config),
                "weights_hash": pipe.weights_hash,
                "notes": list(inputs.notes),
                "versions": _versions(),
                "timings_s": {"load": round(loaded, 3), "sample": round(took, 3)},
                "peak_memory_gib": _peak_memory(),
            }
            cameras = next((value for value in told.values() if isinstance(value, Cameras)), None)
            K, c2w, focus = (inputs.K, inputs.c2w, None) if cameras is None else cameras[:3]
            focus = None if focus is None else float(focus)
            way = about["options"].get("trajectory")
            source = f"asked for by --trajectory {way}, not measured" if way else "known"
            result = GridResult(inputs.name, sampled, given, inputs.truth, K, c2w, about, focus, inputs.fps, source)
            index = write_result(out, result, overwrite=self.output.overwrite)
            compiled = " (compilation included)" if seed == next(iter(folders)) else ""
            print(f"sampled {steps} steps in {took:.1f} s, seed {seed}{compiled}")
            if table := scores(result):
                print(score_table(table, int((~given).sum())))
            print(f"open {index}")

    def options(self, seed: int) -> dict[str, Any]:
        """All options by name, as metadata.json has them, of one seed."""
        groups = [value for name, value in vars(self).items() if name != "mesh"]
        merged = {name: value for group in groups for name, value in vars(group).items()}
        return {name: to_json(value) for name, value in merged.items()} | {
            "method": self.sampling.method.to_text(),
            "seed": seed,
            "mesh": to_json(self.mesh),
        }


def _condition_options() -> dict[type, str]:
    """The options of conditions, by the name of the first kind that has them: kinds of equal `Options` are told the same."""
    names: dict[type, str] = {}
    for kind in Condition.kinds():
        if kind.Options is not None:
            names.setdefault(kind.Options, kind.kind)
    return names


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
