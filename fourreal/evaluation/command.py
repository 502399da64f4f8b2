"""The verb `evaluate`: checkpoints and baselines on the same grids, as a table, `report.json` and `report.html`."""

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fourreal.errors import FileInTheWay, UserError
from fourreal.host.folders import check_creatable
from fourreal.serialize import to_json

PATH = tyro.conf.arg(metavar="PATH")
OWN = "own"
MAX_COUNT = 1000  # of grids, steps, seeds and samples


@dataclass(frozen=True)
class Evaluate:
    """Score checkpoints and baselines on grids whose truth is known.

    Without --data it takes the bundled grids: too few to tell anything, enough to try it. Scenes never
    used to choose a setting come from `fourreal data render --out data/evaluation64 --train 0 --validation 0 --seed 2026`.

    With --probe it also asks what the streams tell each other: what a single step loses when their messages, or the
    hints and cameras, are silent or another scene's.
    """

    checkpoint: tuple[str, ...] = ("nano",)
    """bundled names, runs' folders or folders of weights; several are compared side by side"""
    vae: Annotated[str | None, PATH] = None
    """folder of the autoencoder, as diffusers writes it, for checkpoints on latents that name none"""
    data: Annotated[str | None, PATH] = None
    """folder of a rendered data set"""
    split: str = "test"
    """its split"""
    grids: int | None = None
    """how many grids, from the first on; all by default"""
    given: Literal["view_and_time", "fixed_view", "three_views", "freeze_time", "one_cell"] = "view_and_time"
    """which cells are given: view 0 and time 0, view 0 alone, views 0, V // 2 and V - 1, time 0 alone, or cell (0, 0) alone"""
    text: Annotated[str | None, PATH] = None
    """for checkpoints that take text: features as `fourreal embed-text` writes them; without --captions of the empty prompt"""
    captions: Annotated[str | None, PATH] = None
    """the prompts in --text of all scenes of --data, a line each, as `fourreal encode` takes them"""
    steps: tuple[int | Literal["own"], ...] = ("own",)
    """denoising steps of every stage; own: as many as each names. The first is sampled with several seeds, the others make rows
    of their own"""
    seeds: int = 4
    """seeds over which the samples' mean and deviation are taken"""
    samples: int = 8
    """samples for the rows of their mean and of the best of them"""
    control_grids: int = 6
    """grids for those rows and for the same weights without cameras or with parts left out, which take most of the time"""
    lpips: Literal["none", "alex", "vgg", "both"] = "alex"
    """networks of LPIPS; vgg takes 25 times as long as alex"""
    fvd: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """also FVD and KVD of the copies, the samples and the 1 step, over whole clips by I3D: 2.2 s a clip on two cores"""
    metric: tuple[str, ...] = ()
    """your own, MODULE:FUNCTION of (frames uint8 [v t h w 3], truth, given) -> number; add :lower where less is better"""
    predictions: Annotated[tuple[str, ...], PATH] = ()
    """folders of what other systems say, NAME.npz with `frames` for every grid; --inputs writes the names"""
    inputs: Annotated[str | None, PATH] = None
    """only write what each grid gives to this folder, NAME.npz with frames, given, K and c2w, for other systems"""
    probe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """also change what the streams tell each other and what they are told, on the first --control-grids grids, two or more"""
    out: Annotated[str | None, PATH] = None
    """folder to write; out/evaluation-CHECKPOINT by default. A killed evaluation goes on when it is called again"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the folder if it exists"""

    def run(self) -> None:
        """Checks the options before any weights load; raises ValueError, OSError or ModuleNotFoundError with one line."""
        from fourreal.checkpoints.specs import describe_checkpoint
        from fourreal.evaluation import others
        from fourreal.evaluation.evaluate import (
            Protocol,
            evaluate,
            grids_hash,
            open_folder,
            read_grids,
            with_text,
        )
        from fourreal.evaluation.fvd import FEATURES, KeptFeatures, clip_distances, compared_methods, fvd_text
        from fourreal.evaluation.html_report import write_page
        from fourreal.evaluation.probe import SIGMAS, probe_pipeline
        from fourreal.evaluation.probe_report import probe_text
        from fourreal.evaluation.scoring import score_grid
        from fourreal.evaluation.summary import summarise
        from fourreal.evaluation.tables import text_table, write_json
        from fourreal.metrics.i3d import make_i3d
        from fourreal.metrics.lpips import make_lpips
        from fourreal.sampling.load import load_pipeline

        began = time.perf_counter(), time.process_time()
        self._check()
        names = _names(self.checkpoint)
        out = Path(self.out or f"out/evaluation-{'-'.join(names)}").expanduser()
        _check_destination(out, self.overwrite)
        specs = {name: describe_checkpoint(path) for name, path in names.items()}
        shapes = {name: (spec.views, spec.times, spec.size) for name, spec in specs.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(
                f"the checkpoints are for different grids (views, times, size): {shapes}; compare equal ones"
            )
        own = others.own_metrics(self.metric)
        predicted = {Path(folder).name: Path(folder).expanduser() for folder in self.predictions}
        if len(predicted) < len(self.predictions) or predicted.keys() & names:
            raise UserError("--predictions: two things have one name; rename a folder")
        data = Path(self.data).expanduser() if self.data else None
        grids = read_grids(data, self.split, self.grids, next(iter(specs.values())), self.given)
        if self.text:
            captions = Path(self.captions).expanduser() if self.captions else None
            grids = with_text(grids, Path(self.text).expanduser(), captions, data, self.split)
        if self.inputs:
            others.write_inputs(Path(self.inputs).expanduser(), grids)
            print(
                f"what {len(grids)} grids give is in {self.inputs}: put predictions beside it as NAME.npz with frames"
            )
            return
        networks = {"none": (), "both": ("alex", "vgg")}.get(self.lpips, (self.lpips,))
        lpips = {network: make_lpips(network) for network in networks}
        i3d = make_i3d() if self.fvd else None
        if self.probe and len(grids) < 2:
            raise UserError("--probe lends a grid the messages of another one: found 1 grid, give 2 or more")
        for folder in predicted.values():
            for grid in grids:
                others.read_prediction(folder, grid)  # now, not after sampling
        on_latents = [name for name, spec in specs.items() if hasattr(spec.codec, "weights")]
        if self.vae and not on_latents:
            raise UserError(f"--vae {self.vae}: no checkpoint works on latents, leave it out")
        pipes = {
            name: load_pipeline(path, vae=self.vae if name in on_latents else None) for name, path in names.items()
        }
        steps = tuple(None if steps == OWN else steps for steps in self.steps)
        protocol = Protocol(steps, self.seeds, self.samples, min(self.control_grids, len(grids)))
        settings = asdict(protocol) | {
            "generator": _generator(),
            "checkpoints": {name: pipe.weights_hash for name, pipe in pipes.items()},
            "own_steps": {name: pipe.steps for name, pipe in pipes.items()},
            "data": str(data) if data else "bundled",
            "split": self.split if data else "bundled",
            "grids": len(grids),
            "grids_hash": grids_hash(grids),
            "given": self.given,
            "codecs": {name: to_json(pipe.config.codec) for name, pipe in pipes.items()},
            "lpips": list(networks),
            "metrics": list(own),
            "predictions": {name: others.predictions_hash(folder) for name, folder in predicted.items()},
        }
        if self.probe:
            settings["probe"] = list(SIGMAS)
        if self.fvd:
            settings["fvd"] = True
        partial = out.with_name(out.name + ".partial")
        open_folder(partial, settings)
        print(f"{len(grids)} {settings['split']} grids of {settings['data']}, {self.given} given", flush=True)
        from tqdm import tqdm

        def score(prediction, grid):
            return score_grid(prediction, grid.truth, grid.given, lpips, own, grid.surface, grid.cameras)

        readers = {name: functools.partial(others.read_prediction, folder) for name, folder in predicted.items()}
        with tqdm(total=len(grids) * (1 + len(pipes) + len(readers)), unit="grid", dynamic_ncols=True) as bar:
            table = evaluate(pipes, grids, score, protocol, partial, lambda: bar.update(), readers)
        parts = summarise(table)
        probed = {}
        for name, pipe in pipes.items() if self.probe else ():
            print(f"probing {name} on {protocol.control_grids} grids", flush=True)
            probed[name] = probe_pipeline(pipe, grids[: protocol.control_grids])
        distances = []
        if i3d is not None:
            methods = compared_methods(pipes, protocol.steps[0], readers)
            with tqdm(total=len(grids) * (1 + len(methods)), unit="grid of clips", dynamic_ncols=True) as bar:
                kept = KeptFeatures(partial / FEATURES, i3d)
                distances = clip_distances(methods, grids, kept, lambda: bar.update())
        spent = {"wall_s": time.perf_counter() - began[0], "cpu_s": time.process_time() - began[1]}
        about = {"settings": settings, "seconds": {name: round(seconds, 1) for name, seconds in spent.items()}}
        found = {"probe": {name: one.to_json() for name, one in probed.items()}} if probed else {}
        found |= {"fvd": [asdict(one) for one in distances]} if distances else {}
        write_json(partial / "report.json", parts, about | found)
        write_page(partial / "report.html", parts, about, table, pipes, grids, names, probed, distances)
        _take_place(partial, out)
        print("\n".join([text_table(parts), *("\n" + probe_text(name, one) for name, one in probed.items())]))
        if distances:
            print("\n" + fvd_text(distances) + "\n")
        print(f"{spent['wall_s']:.0f} s, {spent['cpu_s']:.0f} s of CPU; open {out / 'report.html'}")

    def _check(self) -> None:
        if not self.checkpoint or not self.steps:
            raise UserError("--checkpoint and --steps need at least one value each")
        for name, values in (
            ("steps", [steps for steps in self.steps if steps != OWN]),
            ("seeds", (self.seeds,)),
            ("samples", (self.samples,)),
            ("control-grids", (self.control_grids,)),
        ):
            for value in values:
                if not 1 <= value <= MAX_COUNT:
                    raise UserError(f"--{name} {value}: give 1 to {MAX_COUNT}")
        if self.captions and not self.text:
            raise UserError("--captions names prompts of --text FILE: give both")
        if self.probe and self.control_grids < 2:
            raise UserError(
                f"--probe lends a grid the messages of another one: give --control-grids 2 or more, not {self.control_grids}"
            )
        if self.split != type(self).split and self.data is None:
            raise UserError(f"--split {self.split} is of a data set: name it with --data")
        if self.samples < max(2, self.seeds):
            raise UserError(f"--samples {self.samples}: give 2 or more, and at least as many as --seeds {self.seeds}")


def _generator() -> str:
    from fourreal import __version__

    return f"fourreal {__version__}"


def _names(checkpoints: tuple[str, ...]) -> dict[str, str]:
    """Short name -> what was given: the last part of a path, or all of it where that is not unique."""
    short = [Path(path).name for path in checkpoints]
    names = {name if short.count(name) == 1 else path: path for name, path in zip(short, checkpoints, strict=True)}
    if len(names) < len(checkpoints):
        raise UserError(f"--checkpoint {' '.join(checkpoints)}: one is named twice")
    return {name.replace("/", "_"): path for name, path in names.items()}


def _check_destination(out: Path, overwrite: bool) -> None:
    check_creatable(out)
    if out.exists() and not overwrite:
        raise FileInTheWay(f"--out {out} exists; add --overwrite to replace it, or choose another name")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").is_file())):
        raise FileInTheWay(f"--out {out} is no evaluation and is not replaced; choose another name")


def _take_place(partial: Path, out: Path) -> None:
    """Renames the finished folder to `out`; one that is there goes first."""
    import shutil

    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
