"""Which camera of a file saw which picture: by name, never by two ways of counting.

1. A picture has the camera whose `file_path` ends in the same names as its path (without suffixes), or whose `camera_label` is
   its name, or its folder's. A video, or a folder of pictures, has the camera of its name, or of pictures in such a folder.
2. The frames of a freeze-time video without names have cameras by index, where there are as many, or by `time`.
3. Where nothing has a name of the file's, view v has camera v in natural order.

A camera is all frames of one `camera_label`, or of one pose at different times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from fourreal.errors import UserError
from fourreal.geometry.conventions import readings
from fourreal.geometry.rays import focus_distance, from_first
from fourreal.grid import even_cut
from fourreal.media.clips import Clip, natural_order
from fourreal.media.lens import pinhole, without_lens
from fourreal.media.pictures import Crop, fit_intrinsics
from fourreal.media.transforms import CameraFile, FileCamera, name_parts

SAME = 1e-3  # how far numbers of a rotation, and places in extents of the rig, of one camera may differ
WORDS = {"c2w": "camera to world", "w2c": "world to camera"}
NAMES = {"opengl": "OpenGL's", "opencv": "OpenCV's"}


@dataclass(frozen=True)
class Source:
    """A frame and where it comes from, which is what cameras are paired by."""

    path: str
    """as messages name it"""
    file: tuple[str, ...]
    """the parts of its picture's path, empty in a video"""
    clip: tuple[str, ...]
    """the parts of the path of its video or folder"""
    index: int
    count: int
    """its place in the clip, and the clip's frames"""
    seconds: float | None
    sweep: bool
    """of a freeze-time video, where every frame has another camera"""


def sources(clip: Clip, indices: Sequence[int], sweep: bool) -> list[Source]:
    """The frames of a clip at these indices."""
    folder = clip.files[0].parent if clip.files else clip.source
    parts = folder.absolute().parts if clip.files else name_parts(str(folder.absolute()))
    still = clip.kind == "picture" and clip.count == 1

    def one(index: int) -> Source:
        file = clip.files[index] if clip.files else clip.source if still else None
        names = () if file is None else name_parts(str(file.absolute()))
        path = f"{clip.name} (frame {index} of {clip.count})" if file is None else "/".join(file.absolute().parts[-2:])
        return Source(path, names, parts, index, clip.count, clip.times[index] if clip.times else None, sweep)

    return [one(index) for index in indices]


class Rig:
    """The cameras of a grid's views: paired with pictures first, then asked about each as it is decoded."""

    def __init__(self, file: CameraFile, views: int, chosen: Mapping[int, Sequence[Source]], every: Sequence[Source]):
        """`chosen`: the frames that are taken, by view; `every`: all of their clips.

        Raises UserError for a picture without a camera, and for a camera without a picture unless its view is sampled.
        """
        self.file, self.sizes = file, {}
        self.cameras, self.how = _pair(file, views, chosen, every)

    def straighten(self, view: int, picture: Image.Image) -> Image.Image:
        """The picture of a view as a pinhole sees it. Raises UserError where it is not one of its camera's."""
        camera, size = self.cameras[view], picture.size[::-1]
        self.sizes.setdefault(view, size)
        try:
            K = camera.intrinsics(size)
            return without_lens(picture, camera.lens, K) if camera.lens else picture
        except UserError as error:
            raise UserError(f"{self.file.path}: {error}") from None

    def fitted(self, size: tuple[int, int], crop: Crop) -> tuple[np.ndarray, np.ndarray]:
        """K of the views' pictures at the grid's `size` (height, width) [v, 3, 3], and c2w float64 [v, 4, 4].

        Of a view without a picture, K is of the file's own size, or of the first picture's.
        """
        try:
            K = np.concatenate([self._fitted(view, size, crop) for view in range(len(self.cameras))])
        except UserError as error:
            raise UserError(f"{self.file.path}: {error}") from None
        return K, np.stack([camera.c2w for camera in self.cameras])

    def _fitted(self, view: int, size: tuple[int, int], crop: Crop) -> Float[np.ndarray, "1 3 3"]:
        camera = self.cameras[view]
        own = self.sizes.get(view) or camera.size or next(iter(self.sizes.values()), None)
        if own is None:
            raise UserError(f"camera {camera.name} lacks w and h, and there is no picture to take them from")
        K = camera.intrinsics(own)
        if camera.lens and view in self.sizes:
            K = pinhole(camera.lens, K, own)
        return fit_intrinsics(K[None], own, size, crop)

    def notes(self) -> tuple[str, ...]:
        """What was paired and changed, and what is odd about the poses, a line each."""
        said = f"{self.file.path}: cameras of {', '.join(camera.name for camera in self.cameras)}, {self.how}"
        if any(self.cameras[view].lens for view in self.sizes):
            said += "; lens distortion taken out of the pictures"
        scaled = {
            f"; pictures of {size[1]}x{size[0]} for cameras of {own[1]:g}x{own[0]:g}, which are scaled"
            for view, size in self.sizes.items()
            if (own := self.cameras[view].size) and tuple(own) != size
        }
        said += "".join(sorted(scaled))
        c2w = np.stack([camera.c2w for camera in self.cameras])
        return (said, *pose_notes(self.file, c2w))


def pose_notes(file: CameraFile, c2w: Float[np.ndarray, "v 4 4"]) -> list[str]:
    """What is odd about poses (OpenCV): another convention that fits, or places that are noise."""
    notes, fitting = [], readings(c2w)
    if fitting and ("opengl", "c2w") not in fitting:
        axes, poses = next(iter(fitting))
        notes.append(
            f"{file.path}: warning: read as camera to world in OpenGL's axes, as this form has them, the cameras look at no "
            f"common subject; as {WORDS[poses]} in {NAMES[axes]} axes they do: if they should, run "
            f"fourreal cameras convert {file.path} fixed.json --poses {poses} --axes {axes}"
        )
    elif file.focus is None and np.isinf(focus_distance(from_first(c2w).astype(np.float32))):
        notes.append(
            f"{file.path}: the cameras turn, and their places are scattered as by noise: taken as standing in one place "
            'with rotation only; a "focus" in the file, the distance to the subject, says otherwise'
        )
    return notes


def same_camera(frames: Sequence[FileCamera], extent: float) -> bool:
    """Whether frames have one pose and field of view, with places measured in the rig's extent."""
    first = frames[0]
    return all(
        np.abs(frame.c2w[:3, :3] - first.c2w[:3, :3]).max() <= SAME
        and np.abs(frame.c2w[:3, 3] - first.c2w[:3, 3]).max() <= SAME * extent
        and (frame.focal, frame.angles, frame.lens) == (first.focal, first.angles, first.lens)
        for frame in frames
    )


def stations(file: CameraFile) -> list[list[FileCamera]]:
    """The frames of each camera, in natural order of labels, else of paths; without either in the file's order."""
    groups: dict[object, list[FileCamera]] = {}
    extent = _extent(file)
    for number, frame in enumerate(file.frames):
        if frame.label is not None:
            key = frame.label
        elif frame.time is not None:
            pose = np.concatenate([frame.c2w[:3, :3], frame.c2w[:3, 3:] / (extent or 1)], 1)
            key = ((pose.round(6) + 0.0).tobytes(), frame.focal, frame.angles, frame.lens)
        else:
            key = number
        groups.setdefault(key, []).append(frame)
    found = []
    for frames in groups.values():  # a label that moves is as many cameras as it has frames
        found += [frames] if same_camera(frames, extent) else [[frame] for frame in frames]
    return sorted(found, key=lambda frames: natural_order(Path(f"{frames[0].label or ''}/{frames[0].path}")))


def _extent(file: CameraFile) -> float:
    places = np.stack([frame.c2w[:3, 3] for frame in file.frames])
    return float(np.linalg.norm(places - places[0], axis=1).max())


def _pair(
    file: CameraFile, views: int, chosen: Mapping[int, Sequence[Source]], every: Sequence[Source]
) -> tuple[list[FileCamera], str]:
    """One camera a view, and how they were found."""
    found, extent = stations(file), _extent(file)
    if len(found) < views:
        raise UserError(f"{file.path}: {len(found)} cameras; the grid needs {views}, one a view")
    station_of, how = _stations_of(every, found)
    of_view: dict[int, int] = {}
    for view, pictures in chosen.items():
        seen = sorted(set().union(*(station_of[source] for source in pictures)))
        if seen and not same_camera([found[station][0] for station in seen], extent):
            names = ", ".join(found[station][0].name for station in seen[:3])
            raise UserError(
                f"{file.path}: {pictures[0].path} fits several cameras ({names}): a view has one camera, which stands still; "
                "give pictures by paths that tell, or of a moving camera one picture a view (--orbit)"
            )
        if seen:
            of_view[view] = seen[0]
    if not of_view:
        return _in_order(file, views, chosen, found)
    for view, pictures in chosen.items():
        if view not in of_view:
            raise UserError(
                f"{file.path}: no camera for {pictures[0].path} at view {view}; expected a frame whose file_path or "
                "camera_label is its name: add one, or leave the picture out"
            )
    free = [view for view in range(views) if view not in chosen]
    used = set().union(*station_of.values())
    rest = [station for station in range(len(found)) if station not in (used if not free else of_view.values())]
    if len(rest) < len(free):
        raise UserError(f"{file.path}: {len(rest)} cameras beside those of pictures; {len(free)} views need one")
    if rest and not free:
        raise UserError(
            f"{file.path}: no picture for the camera {found[rest[0]][0].name}; give one, take the camera out of the file, or "
            "leave a view without pictures for it (--num-views)"
        )
    if free:
        of_view |= zip(free, (rest[place] for place in even_cut(len(rest), len(free))), strict=True)
    return [found[of_view[view]][0] for view in range(views)], how


def _in_order(
    file: CameraFile, views: int, chosen: Mapping[int, Sequence[Source]], found: list[list[FileCamera]]
) -> tuple[list[FileCamera], str]:
    """View v has camera v; of more cameras an even cut, where no picture but the first view's is given."""
    if len(found) > views and set(chosen) - {0}:
        view = max(chosen)
        raise UserError(
            f"{file.path}: {len(found)} cameras for {views} views, and no name or number says which of them saw "
            f"{chosen[view][0].path}; expected a file_path or camera_label of its name, or {views} cameras, one a view"
        )
    return [found[place][0] for place in even_cut(len(found), views)], "in their order"


def _stations_of(every: Sequence[Source], found: list[list[FileCamera]]) -> tuple[dict[Source, frozenset[int]], str]:
    """The cameras that may have seen each frame (of one place, else it is not clear which), and what they were found by."""
    by_file = {source: _named(source.file, found, _file_score) for source in every}
    named = {source.clip for source, hits in by_file.items() if hits}
    of_clip = {clip: _named(clip, found, _clip_score) for clip in {source.clip for source in every}}

    def by_clip(source: Source) -> frozenset[int]:
        hits = of_clip[source.clip]
        if not source.sweep:
            return hits
        return frozenset() if source.clip in named else _numbered(source, sorted(hits) or [*range(len(found))], found)

    seen = {source: by_file[source] or by_clip(source) for source in every}
    numbered = any(hits and source.sweep and not by_file[source] for source, hits in seen.items())
    return seen, "by the frames' index or time" if numbered else "by the pictures' names"


def _numbered(source: Source, pool: list[int], found: list[list[FileCamera]]) -> frozenset[int]:
    """The camera of a freeze-time video's frame by its index, or the nearest in time; none where that does not tell."""
    if len(pool) == source.count:
        return frozenset([pool[source.index]])
    times = np.array([np.nan if found[station][0].time is None else found[station][0].time for station in pool])
    if np.isnan(times).any() or len(set(times)) < len(pool):
        return frozenset()
    if times.min() >= 0 and times.max() <= 1:
        step = 1 / max(source.count - 1, 1)
        at = source.index * step
    elif source.seconds is not None:
        at, step = source.seconds, source.seconds / source.index if source.index else 1.0
    else:
        return frozenset()
    nearest = int(np.abs(times - at).argmin())
    return frozenset([pool[nearest]] if abs(times[nearest] - at) <= 0.5 * step else [])


def _named(
    names: tuple[str, ...], found: list[list[FileCamera]], score: Callable[[tuple[str, ...], FileCamera], float]
) -> frozenset[int]:
    """The cameras that fit a path best, if any does."""
    scores = [max(score(names, frame) for frame in frames) for frames in found] if names else []
    best = max(scores, default=0)
    return frozenset(station for station, value in enumerate(scores) if value == best and best > 0)


def _file_score(names: tuple[str, ...], frame: FileCamera) -> float:
    """How many parts at the end of a picture's path are those of `file_path`; less than one where the label is its name.

    Less still where the label is that of its folder, as in cam03/video.mp4.
    """
    labels = () if frame.label is None else (frame.label, *name_parts(frame.label)[-1:])
    by_label = 0.5 if names[-1] in labels else 0.25 if set(names[-2:-1]) & set(labels) else 0
    return max(_common(names, frame.parts), by_label)


def _clip_score(names: tuple[str, ...], frame: FileCamera) -> float:
    """The same of a video or folder, whose pictures `file_path` may name."""
    return max(_file_score(names, frame), _common(names, frame.parts[:-1]))


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    pairs = list(zip(reversed(one), reversed(other), strict=False))
    return next((count for count, (a, b) in enumerate(pairs) if a != b), len(pairs))
