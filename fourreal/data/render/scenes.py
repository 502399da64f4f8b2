"""What a scene is, and how one is drawn at random from (seed, split, index).

A scene is a description in plain numbers and names: `as_json` gives the text that each example carries, `from_json` reads it
back, and `stage.py` turns it into meshes and cameras. World units: a subject's clip is about 1 across; z is up, the ground
is z = 0. Angles are in degrees, phases and spans in lengths of the clip.
"""

import dataclasses
import json
import zlib
from dataclasses import dataclass

import numpy as np

from fourreal.data.render.assets import SPLITS, Assets
from fourreal.data.render.procedural import KINDS
from fourreal.errors import UserError

PROCEDURAL = 0.35  # share of scenes with procedural subjects only
SECOND_SUBJECT = 0.25
SWAPPED_TEXTURE = 0.2
PROCEDURAL_GROUND = 0.2
SWEEP = 20.0, 120.0  # degrees around the subject
RISING = 0.1  # shares of camera paths that rise over the subject, and that come nearer or go away
DOLLY = 0.25


@dataclass(frozen=True)
class Subject:
    """One moving thing: a clip of a `.glb` (`file`) or a procedural kind (`file` None, made from `seed`).

    The clip runs from `phase` over `span`, while the subject turns by `turn` and walks by `walk` (x, y). `texture` names the
    file whose first texture it wears instead of its own; `hue` turns its colours.
    """

    unit: str
    file: str | None
    clip: str
    seed: int
    phase: float
    span: float
    yaw: float
    turn: float
    walk: tuple[float, float]
    size: float
    texture: str | None
    hue: float


@dataclass(frozen=True)
class Ground:
    """The plane z = 0 under a texture `file` (None: procedural, from `seed`), one repeat of it `tile` wide."""

    file: str | None
    seed: int
    tile: float
    yaw: float
    hue: float


@dataclass(frozen=True)
class Sky:
    """Colours (RGB in [0, 1]) overhead and at the horizon, into which the ground fades at distance `haze`."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    haze: float


@dataclass(frozen=True)
class Sun:
    """A directional light from `azimuth`, `elevation`; `ambient` in [0, 1] is what the shadow keeps."""

    azimuth: float
    elevation: float
    ambient: float


@dataclass(frozen=True)
class Arc:
    """Cameras around the subject from `azimuth` over `sweep` (either sign), `elevation` rising by `climb`, field of view `fov`.

    `margin` is the share of half a picture that the subject may reach where the camera is nearest. The distance grows by
    `dolly` of the nearest one on the way, or below 0 shrinks to it.
    """

    azimuth: float
    sweep: float
    elevation: float
    climb: float
    fov: float
    margin: float
    dolly: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One or two subjects, side by side along `aside` degrees, and what surrounds them."""

    split: str
    seed: int
    index: int
    subjects: tuple[Subject, ...]
    aside: float
    ground: Ground
    sky: Sky
    sun: Sun
    arc: Arc

    def as_json(self) -> str:
        """The scene as JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Scene":
        """The scene that `as_json` wrote."""
        entry = json.loads(text)
        subjects = tuple(Subject(**{**subject, "walk": tuple(subject["walk"])}) for subject in entry["subjects"])
        sky = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["sky"].items()}
        parts = {
            "ground": Ground(**entry["ground"]),
            "sky": Sky(**sky),
            "sun": Sun(**entry["sun"]),
            "arc": Arc(**entry["arc"]),
        }
        return Scene(**{**entry, **parts, "subjects": subjects})


def sample_scene(seed: int, split: str, index: int, assets: Assets, sweep: tuple[float, float] | None = None) -> Scene:
    """Draws the scene number `index` of a split. Equal arguments give equal scenes in any process, in any order.

    Another `sweep` (lowest and highest, in degrees) changes nothing but that of the cameras. None: SWEEP, or a quarter of it
    where they mainly rise or change their distance. Raises UserError for a split that there is not.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split '{split}': choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    procedural = rng.random() < PROCEDURAL
    count = 2 if rng.random() < SECOND_SUBJECT else 1
    subjects = tuple(_subject(rng, split, assets, procedural) for _ in range(count))
    arc = _arc(rng, sweep)
    return Scene(
        split=split,
        seed=seed,
        index=index,
        subjects=subjects,
        aside=_rounded(rng.uniform(0, 360)),
        ground=_ground(rng, split, assets),
        sky=_sky(rng),
        sun=Sun(_rounded(rng.uniform(0, 360)), _rounded(rng.uniform(35, 75)), _rounded(rng.uniform(0.35, 0.65))),
        arc=arc,
    )


def _subject(rng: np.random.Generator, split: str, assets: Assets, procedural: bool) -> Subject:
    moves = rng.random() < 0.35
    common = {
        "seed": int(rng.integers(2**31)),
        "phase": _rounded(rng.random()),
        "span": _rounded(rng.uniform(0.5, 1.2)),
        "yaw": _rounded(rng.uniform(0, 360)),
        "turn": _rounded(rng.uniform(-90, 90) if moves else 0.0),
        "walk": tuple(_rounded(step) for step in (rng.uniform(-0.25, 0.25, 2) if moves else (0.0, 0.0))),
        "size": _rounded(rng.uniform(0.8, 1.2)),
    }
    hue = _rounded(rng.uniform(-180, 180) if rng.random() < 0.3 else rng.uniform(-15, 15))
    if procedural:
        kind = str(rng.choice(KINDS, p=[0.25, 0.25, 0.5]))
        return Subject(unit=f"procedural {kind}", file=None, clip=kind, texture=None, hue=0.0, **common)
    units = assets.units(split)
    unit = units[rng.integers(len(units))]
    clips = [clip for clip in assets.clips(split) if clip.unit == unit]
    chosen = clips[rng.integers(len(clips))]
    others = assets.clips(split)
    swapped = others[rng.integers(len(others))].file if rng.random() < SWAPPED_TEXTURE else None
    if not assets.model(chosen.file).clips[chosen.clip].loop:
        # what ends does not begin again: play a good part of it, once
        common["span"] = _rounded(min(common["span"], 1.0))
        common["phase"] = _rounded(common["phase"] * (1 - common["span"]))
    return Subject(unit=chosen.unit, file=chosen.file, clip=chosen.clip, texture=swapped, hue=hue, **common)


def check_sweep(sweep: tuple[float, float] | None) -> None:
    """Raises UserError for a range of degrees that no camera's path can have."""
    if sweep is not None and not 0 <= sweep[0] <= sweep[1] <= 360:
        raise UserError(f"--sweep {sweep[0]:g} {sweep[1]:g}: give the lowest and the highest, from 0 to 360 degrees")


def _arc(rng: np.random.Generator, wanted: tuple[float, float] | None) -> Arc:
    """Mostly around the subject; sometimes mainly upward over it, sometimes nearer or farther, then often hardly around."""
    less = 1 / 4 if wanted is None else 1
    sweep = rng.uniform(*(wanted or SWEEP)) * rng.choice([-1, 1])
    elevation = rng.uniform(5, 50)
    climb = rng.uniform(-12, 12) if rng.random() < 0.4 else 0.0
    azimuth, fov, margin = rng.uniform(0, 360), rng.uniform(25, 60), rng.uniform(0.88, 0.97)
    path, dolly = rng.random(), 0.0
    if path < RISING:
        sweep, climb = sweep * less, rng.uniform(15, 40) * (1 if elevation < 27.5 else -1)
    elif path < RISING + DOLLY:
        dolly = rng.uniform(0.2, 0.8) * rng.choice([-1, 1])
        sweep = sweep * less if rng.random() < 0.5 else sweep
    climb = np.clip(elevation + climb, 5, 50) - elevation
    return Arc(*map(_rounded, (azimuth, sweep, elevation, climb, fov, margin, dolly)))


def _ground(rng: np.random.Generator, split: str, assets: Assets) -> Ground:
    files = assets.grounds(split)
    file = files[rng.integers(len(files))]
    return Ground(
        file=None if rng.random() < PROCEDURAL_GROUND else file,
        seed=int(rng.integers(2**31)),
        tile=_rounded(rng.uniform(0.8, 2.5)),
        yaw=_rounded(rng.uniform(0, 360)),
        hue=_rounded(rng.uniform(-180, 180) if rng.random() < 0.2 else rng.uniform(-15, 15)),
    )


def _sky(rng: np.random.Generator) -> Sky:
    if rng.random() < 0.6:  # blue to grey, paler at the horizon
        blue = np.array([rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.65), rng.uniform(0.65, 0.95)])
        zenith = blue + rng.uniform(0, 0.8) * (blue.mean() - blue)
        horizon = zenith + rng.uniform(0.3, 0.8) * (rng.uniform(0.75, 0.95) - zenith)
    else:
        zenith, horizon = rng.uniform(0.1, 0.9, 3), rng.uniform(0.3, 0.95, 3)
    colours = (tuple(_rounded(channel) for channel in colour) for colour in (zenith, horizon))
    return Sky(*colours, haze=_rounded(rng.uniform(6, 20)))


def _rounded(value: float) -> float:
    return round(float(value), 4)
