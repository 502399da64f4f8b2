"""Makes what the tests of bad input spoil: a folder with a good one of everything, and hands that break them."""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.weights import save_weights
from fourreal.conditions import Cameras
from fourreal.data.render.glb import KeyFrames, MorphPrimitive, write_glb
from fourreal.media.videos import write_video
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import split_model
from fourreal.serialize import to_json

VIEWS, TIMES, SIZE = 2, 3, 8
MODEL = {"width": 12, "depth": 1, "heads": 2, "mlp_width": 16, "patch": (1, 4, 4), "frequency_width": 8}
CONFIG = f"""
from fourreal.training.config import TrainConfig
from fourreal.data.batches import PipelineConfig
from fourreal.models import VideoDiTConfig

CONFIG = TrainConfig(
    name="tiny",
    model=VideoDiTConfig(**{MODEL}),
    data=PipelineConfig(source="data", views={VIEWS}, times={TIMES}, batch_size=2),
    steps=3,
    eval_every=0,
    eval_grids=1,
)
"""
ABLATION = """
import dataclasses

from fourreal.training.config import load_config
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = AblationConfig(dataclasses.replace(load_config("config.py"), name="ablation", optim=OptimConfig(final_lr=1.0)))
"""


def make_sandbox(folder: Path) -> None:
    """Checkpoints, clips, pictures, grids, a config, an asset and a data set, all tiny and all good."""
    make_checkpoints(folder)
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 256, (VIEWS, TIMES, 16, 16, 3), dtype=np.uint8)
    for name, frames in (("video", grid[0]), ("long", np.repeat(grid[0], 4, 0)), ("orbit", grid[:, 0])):
        write_video(folder / f"{name}.mp4", frames, fps=8)
    np.savez(folder / "video.npz", frames=grid[0])
    np.savez(folder / "grid.npz", frames=grid, **cameras(VIEWS))
    Image.fromarray(grid[0, 0]).save(folder / "photo.png")
    (folder / "config.py").write_text(CONFIG)
    (folder / "notes.txt").write_text("hello\n" * 50)
    (folder / "units").mkdir()
    write_unit(folder / "units" / "unit.glb")
    write_dataset(folder / "data", rng)


def make_checkpoints(folder: Path) -> None:
    """A grid model, one that takes cameras, and a base alone."""
    rng = np.random.default_rng(0)
    for name, grid in (("model", GridDiTConfig()), ("told", GridDiTConfig()), ("base", GridDiTConfig("base"))):
        model = VideoDiTConfig(**MODEL, conditions=(Cameras(),) if name == "told" else ())
        spec = ModelSpec(model, grid, VIEWS, TIMES, (SIZE, SIZE))
        shapes = split_model(model, grid)[1]
        params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape), shapes)
        save_weights(folder / name, params, to_json(spec), dtype="float32")


def cameras(views: int) -> dict[str, np.ndarray]:
    """K and c2w of a row of cameras."""
    K = np.array([[16, 0, 8], [0, 16, 8], [0, 0, 1]], np.float32)
    return {"K": np.repeat(K[None], views, 0), "c2w": np.repeat(np.eye(4, dtype=np.float32)[None], views, 0)}


def camera_file(frames: int = VIEWS, top: dict | None = None, **frame) -> str:
    """The text of a transforms.json of cameras side by side, with some values replaced."""
    poses = [np.eye(4) + 0.1 * n * np.eye(4)[:, 3:] @ np.eye(4)[:1] for n in range(frames)]
    listed = [{"file_path": f"{n}.png", "transform_matrix": pose.T.tolist(), "fl_x": 9} for n, pose in enumerate(poses)]
    return json.dumps({**(top or {}), "frames": [{**one, **frame} for one in listed]})


def write_dataset(folder: Path, rng: np.random.Generator, size: int = SIZE) -> None:
    """Four grids of noise to train on and two to validate."""
    from fourreal.data.write import Split, write_scenes
    from fourreal.scene import Cameras, Scene

    cell = (VIEWS, TIMES, size, size)
    row = cameras(VIEWS)

    def make(index: int) -> Scene:
        more = {"depth": np.ones(cell, np.float16), "subject": np.ones(cell, np.uint8)}
        frames = rng.integers(0, 256, (*cell, 3), dtype=np.uint8)
        return Scene(frames, index, cameras=Cameras(row["K"], row["c2w"]), more=more)

    write_scenes(folder, {"train": Split(make, 4), "validation": Split(make, 2)})


def write_unit(path: Path) -> None:
    """A triangle that turns."""
    positions = np.random.default_rng(1).normal(size=(4, 3, 3)).astype(np.float32)
    picture = path.with_suffix(".png")
    Image.new("RGB", (4, 4), "red").save(picture)
    part = MorphPrimitive(
        {"walk": positions},
        np.tile([0.0, 0.0, 1.0], (3, 1)),
        np.zeros((3, 2)),
        np.arange(3)[None],
        picture.read_bytes(),
    )
    picture.unlink()
    write_glb(path, "unit", [part], {"walk": KeyFrames(np.arange(4) / 4, 1.0, True)}, {})


# --- hands that break things; each gives a function of the sandbox


def cut(name: str, share: float) -> Callable[[Path], None]:
    """Leaves the first part of a file."""

    def make(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return make


def content(name: str, data: bytes | str) -> Callable[[Path], None]:
    """Writes a file."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def both(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    """Two breaks."""
    return lambda folder: (first(folder), second(folder))


def arrays(name: str, **values) -> Callable[[Path], None]:
    """Writes an npz."""
    return lambda folder: np.savez(folder / name, **values)


def claimed(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    """Writes an npz whose header claims `frames` uint8 of a shape, with hardly any data behind it."""

    def make(folder: Path) -> None:
        header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64)

    return make


def tensors(edit: Callable[[dict], object], name: str = "model") -> Callable[[Path], None]:
    """Changes the tensors of a checkpoint."""

    def make(folder: Path) -> None:
        path = folder / name / "model.safetensors"
        loaded = load_file(path)
        edit(loaded)
        save_file(loaded, path)

    return make


def header(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes the header of a safetensors file, which says where each tensor lies."""

    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        edit(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return make


def settings(file: str, **changes) -> Callable[[Path], None]:
    """Changes keys of a JSON file; a name with two underscores goes one object down."""

    def make(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        for name, value in changes.items():
            *parents, key = name.split("__")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[key] = value
        (folder / file).write_text(json.dumps(values))

    return make


def glb(edit: Callable[[dict], object], name: str = "units/unit.glb") -> Callable[[Path], None]:
    """Changes the JSON of a glb."""

    def make(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (length,) = struct.unpack_from("<I", data, 12)
        document = json.loads(data[20 : 20 + length])
        edit(document)
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + data[20 + length :]
        (folder / name).write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)

    return make


def spoiled(pattern: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the bytes of the one file that fits."""

    def make(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        path.write_bytes(edit(path.read_bytes()))

    return make


def flip_every(step: int, start: int = 0, end: int | None = None) -> Callable[[bytes], bytes]:
    """Flips the bits of every n-th byte."""

    def edit(data: bytes) -> bytes:
        values = np.frombuffer(data, np.uint8).copy()
        values[start:end:step] ^= 255
        return values.tobytes()

    return edit


def pickled(name: str) -> Callable[[Path], None]:
    """Writes an npz whose `frames` is a pickled object."""
    return lambda folder: np.savez(folder / name, frames=np.array([{}], dtype=object))


def raw_array(name: str, header: bytes) -> Callable[[Path], None]:
    """Writes an npz whose `frames` has a header of any text."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")

    return make


def flagged(name: str) -> Callable[[Path], None]:
    """Marks every file of an archive as encrypted."""

    def make(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        at = data.find(b"PK\x01\x02")
        while at >= 0:
            data[at + 8] |= 1
            at = data.find(b"PK\x01\x02", at + 4)
        (folder / name).write_bytes(data)

    return make


def huge_png(name: str, side: int) -> Callable[[Path], None]:
    """Writes a png whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return content(name, b"\x89PNG\r\n\x1a\n" + body)


def saved_and_cut(name: str, **options) -> Callable[[Path], None]:
    """Saves the photo in another format and leaves its first half."""

    def make(folder: Path) -> None:
        Image.open(folder / "photo.png").save(folder / name, **options)
        cut(name, 0.5)(folder)

    return make


def pipe(name: str) -> Callable[[Path], None]:
    """Makes a pipe, which blocks whoever opens it."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir()
        os.mkfifo(folder / name)

    return make


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.glob(name)).unlink()


def moved(name: str, to: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / to).parent.mkdir()
        (folder / name).rename(folder / to)

    return make


def linked(name: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(to)
