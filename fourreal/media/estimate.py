"""Cameras of a freeze-time video, or of pictures of a scene that stands still, by COLMAP's structure from motion through the
package pycolmap (Schönberger and Frahm 2016): SIFT features, matches of every pair, incremental mapping."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fourreal.errors import UserError
from fourreal.media import colmap
from fourreal.media.clips import Clip, frame_sizes, original_frames
from fourreal.media.pictures import as_rgb

LensModel = Literal["pinhole", "radial", "opencv", "fisheye"]
MODEL_OF: dict[LensModel, str] = {
    "pinhole": "SIMPLE_PINHOLE",
    "radial": "SIMPLE_RADIAL",
    "opencv": "OPENCV",
    "fisheye": "OPENCV_FISHEYE",
}
FEWEST = 3  # pictures that make a model


def estimate_cameras(
    clip: Clip, indices: Sequence[int], lens: LensModel = "radial", folder: Path = Path(), seed: int = 0
) -> tuple[dict[str, Any], list[int]]:
    """The cameras of these frames as the content of a transforms.json, and the frames that COLMAP could not place.

    World and unit are COLMAP's own. Frames of one size share a lens. Of a video each has the name STEM/INDEX and a `time`, its
    share of the clip's frames; of pictures the paths of their files from `folder`. Raises UserError without pycolmap, or where
    no model of three pictures is found.
    """
    try:
        import pycolmap
    except ModuleNotFoundError:
        raise UserError(
            "pycolmap is missing, whose structure from motion finds the cameras: pip install -e '.[colmap]'"
        ) from None
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    pycolmap.set_random_seed(seed)
    single = len(frame_sizes(clip, indices)) == 1
    with tempfile.TemporaryDirectory() as scratch:
        pictures, database, model = (Path(scratch) / name for name in ("pictures", "database.db", "model"))
        pictures.mkdir()
        for index, picture in original_frames(clip, indices):
            as_rgb(picture).save(pictures / f"{index:06d}.png", compress_level=1)
        model.mkdir()
        reader = pycolmap.ImageReaderOptions(camera_model=MODEL_OF[lens])
        mode = pycolmap.CameraMode.SINGLE if single else pycolmap.CameraMode.PER_IMAGE
        pycolmap.extract_features(database, pictures, camera_mode=mode, reader_options=reader)
        pycolmap.match_exhaustive(database)
        options = pycolmap.IncrementalPipelineOptions(min_model_size=FEWEST, random_seed=seed)
        found = pycolmap.incremental_mapping(database, pictures, model, options)
        best = max(found.values(), key=lambda one: one.num_reg_images(), default=None)
        if best is None or best.num_reg_images() < FEWEST:
            raise UserError(
                f"{clip.path}: COLMAP finds no cameras from its {len(indices)} pictures; expected at least {FEWEST} sharp ones "
                "that overlap, of a scene that stands still and has texture, from places that differ"
            )
        best.write_text(model)
        frames = colmap.read_folder(model)["frames"]
    placed = {int(Path(frame["file_path"]).stem): frame for frame in frames}
    for index, frame in placed.items():
        if clip.files:
            frame["file_path"] = os.path.relpath(clip.files[index], folder)
        else:
            frame["file_path"] = f"{clip.source.stem}/{index:06d}"
            frame["time"] = index / max(1, clip.count - 1)
    return {"frames": [placed[index] for index in sorted(placed)]}, sorted(set(indices) - placed.keys())
