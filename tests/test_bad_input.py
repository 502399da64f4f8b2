"""Bad input through the real command lines: one line that says what, what was expected and what to do; exit code 2.

A row is what is wrong, the command line, the three things that its line must say (regular expressions), and what breaks a
copy of a folder where all is well (`bad_input.py`). Most rows run in this process, with its file descriptors captured, so
that noise of C libraries counts as well; those about a whole process run in one of their own.
"""

import ast
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bad_input as bad
import numpy as np
import pytest

from fourreal import cli

ROOT = Path(__file__).parents[1]
SAMPLE = "sample --checkpoint model --steps 1 --out out/new"
TOLD = SAMPLE.replace("model", "told")
EVALUATE = "evaluate --checkpoint model --data data --split validation --out out/new"
ABLATE = "ablate ablation.py --runs out/new --docs out/new"
TRANSFORMS = "expected nerfstudio's transforms.json"
TRAIN = "train config.py --out new"
RENDER = "data render --train 1 --validation 0 --test 0 --views 2 --times 2 --size 16 --workers 1 --out out/new"
UNITS = f"{RENDER} --assets units"
BUILD = "data build --source source --out out/new"
QUERY = "base.blocks.attention.query.kernel"
WEIGHTS, SPEC = "model/model.safetensors", "model/config.json"
MEDIA = "expected a video, a gif, an npz, a picture"
COPY = "copy the file again"
GRID = r"expected frames uint8 \[v, t, h, w, 3\]"
HELP = "--help"
DAMAGED = ("cannot be read as a data set of grids", "render or copy it again")
GLTF = (r"expected glTF 2.0", "export it again as .glb")
UNIT = "units/unit.glb"
FACTION = "source/usr/share/games/megaglest/techs/megapack/factions/egypt"
HUGE_MESH = b"G3D\x04" + struct.pack("<HB64s3I8f2I64s", 1, 0, b"m", *[2**32 - 1] * 3, *[1.0] * 8, 1, 1, b"t")


class Row(NamedTuple):
    """`says`: what is wrong, what was expected, what to do (one may say two of them). `make` breaks the folder."""

    name: str
    command: str
    says: tuple[str, ...]
    make: Callable[[Path], object] | None = None


ROWS = [
    # names, options and values
    Row("verb", "smaple", ("no verb 'smaple'", "did you mean 'sample'", "verbs are train, sample")),
    Row("option", f"{SAMPLE} --stepz 3", ("Unrecognized.*--stepz", r"--steps \{None\}\|INT", HELP)),
    Row(
        "option of a file's settings", f"{TRAIN} --optim.lrr 3", ("Unrecognized.*--optim.lrr", "--optim.lr FLOAT", HELP)
    ),
    Row("option without its value", f"{SAMPLE} --steps", ("Missing value.*--steps", "Expected 1", HELP)),
    Row("value of another type", f"{SAMPLE} --steps 1.5", ("--steps", "INT", HELP)),
    Row("value that is no choice", f"{SAMPLE} --crop centre", ("'centre'", "'center', 'pad'", HELP)),
    Row("choice of a setting", f"{TRAIN} --grid.fusion sotf", ("'sotf'", "did you mean 'soft'", HELP)),
    Row("required option left out", "data build", ("Missing.*--source PATH", "unpacked", HELP)),
    Row("positional argument", f"{SAMPLE} video.mp4", ("Unrecognized.*video.mp4", HELP)),
    Row("too many steps", f"{SAMPLE} --steps 1000000000", ("--steps 1000000000", "give 1 to 1000")),
    Row("no steps", f"{SAMPLE} --steps 0", ("--steps 0", "give 1 to 1000")),
    Row("negative seed", f"{SAMPLE} --seed -1", ("--seed -1", r"give 0 to 2\^32 - 1")),
    Row("guidance that is not finite", f"{SAMPLE} --guidance-scale nan", ("--guidance-scale nan", "give 0 or more")),
    Row("size that the patch does not divide evenly", f"{SAMPLE} --size 9 8", ("size 9 x 8", "give multiples of 4")),
    Row("size in one number", f"{SAMPLE} --size 8", ("--size", "HEIGHT WIDTH|2", HELP)),
    Row("no views to sample", f"{SAMPLE} --num-views 0", ("views 0", "give at least 1")),
    Row("seeds that end before they begin", f"{SAMPLE} --seeds 3:1", ("--seeds 3:1", "expected A:B with A below B")),
    Row("10^9 seeds", f"{SAMPLE} --seeds 0:1000000000", ("--seeds 0:1000000000", "at most 1000")),
    Row("seed and seeds", f"{SAMPLE} --seed 1 --seeds 0:2", ("--seed and --seeds", "give one")),
    Row("sampler's name", f"{SAMPLE} --method eulr", ("no sampler 'eulr'", "did you mean 'euler'", HELP)),
    Row(
        "guidance that leaves the range of numbers",
        f"{SAMPLE.replace('steps 1', 'steps 2')} --guidance-scale 1e30",
        (
            "2 steps at guidance scale 1e\\+30 gave numbers that are not finite",
            "expected pixels",
            "give a smaller scale",
        ),
    ),
    Row(
        "checkpoint's name",
        "sample --checkpoint nanno",
        ("no checkpoint 'nanno'", "a run or a folder", "did you mean 'nano'"),
    ),
    Row(
        "base for a grid model",
        "sample --checkpoint base",
        ("a base makes clips", "train a grid model on it", "--init-from"),
    ),
    Row(
        "grid's name",
        f"{SAMPLE} --grid vikng",
        ("--grid vikng", "neither a file nor a bundled grid", "did you mean viking"),
    ),
    Row("config file's name", "train confg.py", ("no config file confg.py", "did you mean config.py", ""), None),
    Row("no config file", "train", ("first argument is the config file", "as in")),
    # cells
    Row(
        "cell given twice",
        f"{SAMPLE} --video video.mp4 --image photo.png",
        ("v=0,t=0 is given twice", "by video.mp4.*photo.png", "leave one out"),
    ),
    Row("view outside", f"{SAMPLE} --given video.mp4@v=2", ("no view 2", "views 0 to 1")),
    Row("time outside", f"{SAMPLE} --given orbit.mp4@t=3", ("no time 3", "times 0 to 2")),
    Row("view of 5000 digits", f"{SAMPLE} --given video.mp4@v={'9' * 5000}", ("does not say where", "end it in @v=N")),
    Row("negative view", f"{SAMPLE} --given video.mp4@v=-1", ("does not say where", "end it in @v=N")),
    Row("no place", f"{SAMPLE} --given video.mp4", ("does not say where", "end it in @v=N")),
    Row(
        "every cell",
        f"{SAMPLE} --given video.mp4@v=0 --given video.mp4@v=1",
        ("every cell", "nothing to sample", "leave some out"),
    ),
    Row("grid and video", f"{SAMPLE} --grid grid.npz --video video.mp4", ("--grid brings its own", "leave it out")),
    Row("frames in words", f"{SAMPLE} --video long.mp4 --frames first", ("--frames first", "expected a:b")),
    Row(
        "frames that leave too few",
        f"{SAMPLE} --video long.mp4 --frames 5:6",
        ("--frames 5:6 leaves 1", "3 are needed", "give a longer one"),
    ),
    # videos
    Row("missing video", f"{SAMPLE} --video vdeo.mp4", ("vdeo.mp4", "no such file or folder")),
    Row("short video", f"{SAMPLE} --video orbit.mp4", ("orbit.mp4: 2 frames", "3 are needed", "give a longer one")),
    Row(
        "picture for a video",
        f"{SAMPLE} --video photo.png",
        ("photo.png: 1 frame,", "3 are needed", "give a longer one"),
    ),
    Row(
        "empty video",
        f"{SAMPLE} --video video.mp4",
        ("video.mp4: the file is empty", MEDIA),
        bad.content("video.mp4", ""),
    ),
    Row(
        "truncated video",
        f"{SAMPLE} --video video.mp4",
        ("video.mp4: cannot be read", MEDIA),
        bad.cut("video.mp4", 0.5),
    ),
    Row(
        "scrambled video",
        f"{SAMPLE} --video video.mp4",
        ("video.mp4: cannot be read", MEDIA),
        bad.spoiled("video.mp4", bad.flip_every(20)),
    ),
    Row("text for a video", f"{SAMPLE} --video notes.txt", ("notes.txt: cannot be read", MEDIA)),
    Row(
        "playlist",
        f"{SAMPLE} --video a.m3u8",
        ("a.m3u8: cannot be read", MEDIA),
        bad.content("a.m3u8", "#EXTM3U\n#EXTINF:1,\nvideo.mp4\n#EXT-X-ENDLIST\n"),
    ),
    Row(
        "list of files",
        f"{SAMPLE} --video a.ffconcat",
        ("a.ffconcat: cannot be read", MEDIA),
        bad.content("a.ffconcat", "ffconcat version 1.0\nfile video.mp4\n"),
    ),
    Row("more videos than views", f"{SAMPLE} --views *.mp4", ("3 videos", "has 2 views", "choose with a glob")),
    Row("no videos", f"{SAMPLE} --views units", ("no videos there", "expected one video or folder")),
    # npz
    Row(
        "npz of floats with NaN",
        f"{SAMPLE} --video a.npz",
        ("float64", r"expected uint8 \[f, h, w, 3\]"),
        bad.arrays("a.npz", frames=np.full((3, 8, 8, 3), np.nan)),
    ),
    Row(
        "npz that claims 10^12 frames",
        f"{SAMPLE} --video a.npz",
        ("claims 3000000000000 bytes", "holds 64", MEDIA),
        bad.claimed("a.npz", (10**12, 1, 1, 3)),
    ),
    Row(
        "grid that claims 10^15 pixels",
        f"{SAMPLE} --grid a.npz",
        ("claims 192000000000000 bytes", "holds 64", GRID),
        bad.claimed("a.npz", (10**6, 10**6, 8, 8, 3)),
    ),
    Row("npz of a negative shape", f"{SAMPLE} --video a.npz", ("claims -", MEDIA), bad.claimed("a.npz", (-3, 8, 8, 3))),
    Row(
        "npz of objects",
        f"{SAMPLE} --video a.npz",
        ("frames` is object", r"expected uint8 \[f, h, w, 3\]"),
        bad.pickled("a.npz"),
    ),
    Row("grid of objects", f"{SAMPLE} --grid a.npz", ("Object arrays cannot be loaded", GRID), bad.pickled("a.npz")),
    Row(
        "npz with code for a header",
        f"{SAMPLE} --video a.npz",
        ("a.npz: cannot be read", MEDIA),
        bad.raw_array("a.npz", b"__import__('os').mkdir('done')"),
    ),
    Row(
        "grid with code for a header",
        f"{SAMPLE} --grid a.npz",
        ("a.npz: cannot be read", GRID),
        bad.raw_array("a.npz", b"__import__('os').mkdir('done')"),
    ),
    Row(
        "npz without frames",
        f"{SAMPLE} --video a.npz",
        ("no array `frames`", "expected uint8"),
        bad.arrays("a.npz", pictures=np.zeros(3)),
    ),
    Row("grid for a video", f"{SAMPLE} --video grid.npz", ("a whole grid", "not a video", "use --grid")),
    Row(
        "video for a grid",
        f"{SAMPLE} --grid video.npz",
        (r"uint8 \[3, 16, 16, 3\]", r"expected uint8 \[v, t, h, w, 3\]"),
    ),
    Row("truncated grid", f"{SAMPLE} --grid grid.npz", ("grid.npz: cannot be read", GRID), bad.cut("grid.npz", 0.6)),
    Row("encrypted npz", f"{SAMPLE} --grid grid.npz", ("grid.npz: cannot be read", GRID), bad.flagged("grid.npz")),
    Row(
        "NaN in a grid's cameras",
        f"{SAMPLE} --grid a.npz",
        ("`K` .* not finite", "expected float32", "leave it out"),
        bad.arrays("a.npz", frames=np.zeros((2, 3, 8, 8, 3), np.uint8), K=np.full((2, 3, 3), np.nan)),
    ),
    Row(
        "a grid's cameras misshapen",
        f"{SAMPLE} --grid a.npz",
        (r"`K` is \[3, 3\]", r"expected \[2, 3, 3\]"),
        bad.arrays("a.npz", frames=np.zeros((2, 3, 8, 8, 3), np.uint8), K=np.eye(3)),
    ),
    Row(
        "grid without pixels",
        f"{SAMPLE} --grid a.npz",
        (r"\[2, 3, 0, 8, 3\]", "expected uint8"),
        bad.arrays("a.npz", frames=np.zeros((2, 3, 0, 8, 3), np.uint8)),
    ),
    Row(
        "grid with too few views",
        f"{SAMPLE} --grid a.npz",
        ("1 views", "has 2", "give a larger grid"),
        bad.arrays("a.npz", frames=np.zeros((1, 3, 8, 8, 3), np.uint8)),
    ),
    # pictures
    Row(
        "empty picture",
        f"{SAMPLE} --image photo.png",
        ("photo.png: the file is empty", MEDIA),
        bad.content("photo.png", ""),
    ),
    Row(
        "truncated picture",
        f"{SAMPLE} --image photo.png",
        ("photo.png: cannot be read", "truncated", MEDIA),
        bad.cut("photo.png", 0.5),
    ),
    Row(
        "text for a picture",
        f"{SAMPLE} --image photo.png",
        ("photo.png: cannot be read", MEDIA),
        bad.content("photo.png", "hello"),
    ),
    Row(
        "program for a picture",
        f"{SAMPLE} --image photo.png",
        ("cannot identify", MEDIA),
        bad.content("photo.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"),
    ),
    Row(
        "decompression bomb",
        f"{SAMPLE} --image photo.png",
        ("photo.png: cannot be read", "exceeds limit", MEDIA),
        bad.huge_png("photo.png", 30_000),
    ),
    Row(
        "bomb small enough to be opened",
        f"{SAMPLE} --image photo.png",
        ("photo.png: cannot be read", "truncated", MEDIA),
        bad.huge_png("photo.png", 11_000),
    ),
    Row(
        "truncated tiff",
        f"{SAMPLE} --image a.tif",
        ("a.tif: cannot be read", MEDIA),
        bad.saved_and_cut("a.tif", compression="tiff_lzw"),
    ),
    Row("truncated jpeg", f"{SAMPLE} --image a.jpg", ("a.jpg: cannot be read", MEDIA), bad.saved_and_cut("a.jpg")),
    Row("folder without pictures", f"{SAMPLE} --video units", ("units: no pictures there", "expected .png")),
    Row("glob with other files", f"{SAMPLE} --video *.*", ("config.py is no picture", "pictures only", MEDIA)),
    Row(
        "pipe among pictures", f"{SAMPLE} --video pictures", ("a.png is no picture", MEDIA), bad.pipe("pictures/a.png")
    ),
    # checkpoints
    Row(
        "checkpoint without weights",
        SAMPLE,
        ("no checkpoint 'model'", "a folder of weights", "bundled: nano"),
        bad.removed(WEIGHTS),
    ),
    Row("empty weights", SAMPLE, ("is broken", COPY), bad.content(WEIGHTS, "")),
    Row("truncated weights", SAMPLE, ("is broken", COPY), bad.cut(WEIGHTS, 0.5)),
    Row("pickle for weights", SAMPLE, ("is broken", COPY), bad.content(WEIGHTS, b"\x80\x04cos\nmkdir\n(S'done'\ntR.")),
    Row("header of 2^63 bytes", SAMPLE, ("is broken", COPY), bad.content(WEIGHTS, struct.pack("<Q", 2**63) + b"{}")),
    Row(
        "overlapping tensors",
        SAMPLE,
        ("is broken", QUERY, COPY),
        bad.header(lambda h: h[QUERY].update(data_offsets=[0, 576])),
    ),
    Row(
        "tensor beyond the file",
        SAMPLE,
        ("is broken", COPY),
        bad.header(lambda h: h[QUERY].update(data_offsets=[10**9, 10**9 + 576])),
    ),
    Row(
        "tensor of 10^12 numbers",
        SAMPLE,
        ("is broken", COPY),
        bad.header(lambda h: h[QUERY].update(shape=[10**6, 10**6])),
    ),
    Row(
        "tensor of integers",
        SAMPLE,
        (f"{QUERY} is I32", "expected F32", "convert it"),
        bad.tensors(lambda t: t.update({QUERY: t[QUERY].astype(np.int32)})),
    ),
    Row(
        "tensor of 8-bit floats",
        SAMPLE,
        (f"{QUERY} is F8_E4M3", "expected F32", "convert it"),
        bad.header(lambda h: h[QUERY].update(dtype="F8_E4M3", shape=[1, 24, 24])),
    ),
    Row(
        "tensor with NaN",
        SAMPLE,
        (f"{QUERY} holds values that are not finite", "use other weights"),
        bad.tensors(lambda t: t[QUERY].fill(np.nan)),
    ),
    Row(
        "missing tensor",
        SAMPLE,
        (f"lacks the tensor {QUERY}", "take weights and config of the same model"),
        bad.tensors(lambda t: t.pop(QUERY)),
    ),
    Row(
        "extra tensor",
        SAMPLE,
        ("has a tensor base.more", "take weights and config of the same model"),
        bad.tensors(lambda t: t.update({"base.more": np.zeros(2, np.float32)})),
    ),
    Row(
        "misshapen tensor",
        SAMPLE,
        (rf"{QUERY} is \(1, 6, 12\)", r"expected \(1, 12, 12\)", "take weights and config"),
        bad.tensors(lambda t: t.update({QUERY: t[QUERY][:, :6].copy()})),
    ),
    Row(
        "another architecture",
        SAMPLE,
        (f"{SPEC}: unknown key 'model.layers'", "did you mean|known: width"),
        bad.settings(SPEC, model={"layers": 12, "model_type": "other"}),
    ),
    Row(
        "config of another fusion",
        SAMPLE,
        ("has a tensor s", "config knows nothing of", "take weights and config"),
        bad.settings(SPEC, grid__fusion="none"),
    ),
    Row(
        "unknown key of a config",
        SAMPLE,
        ("unknown key 'model.widht'", "did you mean 'width'"),
        bad.settings(SPEC, model__widht=12),
    ),
    Row(
        "text for a width",
        SAMPLE,
        ("model.width is '12'", "expected a whole number"),
        bad.settings(SPEC, model__width="12"),
    ),
    Row(
        "bool for a depth",
        SAMPLE,
        ("model.depth is True", "expected a whole number"),
        bad.settings(SPEC, model__depth=True),
    ),
    Row(
        "number for a bool",
        SAMPLE,
        ("model.unroll is 1", "expected true or false"),
        bad.settings(SPEC, model__unroll=1),
    ),
    Row(
        "fraction in a patch",
        SAMPLE,
        (r"model.patch\[1\] is 2.5", "expected a whole number"),
        bad.settings(SPEC, model__patch=[1, 2.5, 2.5]),
    ),
    Row(
        "patch of nothing",
        SAMPLE,
        (r"patch \(1, 0, 0\)", r"expected \(1, p, p\)"),
        bad.settings(SPEC, model__patch=[1, 0, 0]),
    ),
    Row(
        "unknown fusion",
        SAMPLE,
        (f"{SPEC}: there is no fusion 'sotf'", "did you mean 'soft'"),
        bad.settings(SPEC, grid__fusion="sotf"),
    ),
    Row("no heads", SAMPLE, ("heads is 0", "give 1 to"), bad.settings(SPEC, model__heads=0)),
    Row("width of 30 digits", SAMPLE, ("width is 10{30}", "give 1 to"), bad.settings(SPEC, model__width=10**30)),
    Row(
        "size that the patch does not divide",
        SAMPLE,
        ("size 8 x 9", "patch of 4", "give multiples of 4"),
        bad.settings(SPEC, size=[8, 9]),
    ),
    Row(
        "grid of 10^18 pixels",
        f"{SAMPLE} --image photo.png",
        ("size 1000000000", "at most"),
        bad.settings(SPEC, size=[10**9, 10**9]),
    ),
    Row("no views", SAMPLE, ("views 0", "give at least 1"), bad.settings(SPEC, views=0)),
    Row(
        "shift that is not finite",
        SAMPLE,
        ("shift is nan", "give a shift above 0"),
        bad.settings(SPEC, shift=float("nan")),
    ),
    Row("config that is no JSON", SAMPLE, (f"{SPEC} is no JSON", "copy the folder again"), bad.content(SPEC, "{")),
    Row(
        "config nested 10^5 deep",
        SAMPLE,
        (f"{SPEC} is no JSON", "copy the folder again"),
        bad.content(SPEC, "[" * 10**5),
    ),
    Row(
        "config that is a list",
        SAMPLE,
        (f"{SPEC} holds list", "expected an object", "copy the folder again"),
        bad.content(SPEC, "[1]"),
    ),
    Row("missing key of a config", SAMPLE, ("lacks the key 'model'",), bad.content(SPEC, '{"views": 2}')),
    Row(
        "config of a newer version",
        SAMPLE,
        (f"{SPEC}: it has version 99", r"reads up to \d", "upgrade fourreal"),
        bad.settings(SPEC, version=99),
    ),
    Row(
        "version in words",
        SAMPLE,
        ("it has version 'new'", r"reads up to \d"),
        bad.settings(SPEC, version="new"),
    ),
    Row(
        "condition of another package",
        SAMPLE,
        (f"{SPEC}: there is no condition 'tide'", "known: .*hints", "--extensions MODULE"),
        bad.settings(SPEC, model__conditions=[{"kind": "tide"}]),
    ),
    Row(
        "condition without a name",
        SAMPLE,
        ("there is no condition ''", "known: cameras"),
        bad.settings(SPEC, model__conditions=[{}]),
    ),
    Row(
        "number for a condition",
        SAMPLE,
        ("there is no condition '3'", "known: cameras"),
        bad.settings(SPEC, model__conditions=[{"kind": 3}]),
    ),
    Row(
        "unknown key of a condition",
        SAMPLE,
        (r"unknown key 'model.conditions\[0\].dorp'", "did you mean 'drop'"),
        bad.settings(SPEC, model__conditions=[{"kind": "hints", "dorp": 1}]),
    ),
    Row(
        "conditions in a word",
        SAMPLE,
        ("model.conditions is 'hints'", "expected a list"),
        bad.settings(SPEC, model__conditions="hints"),
    ),
    Row(
        "condition twice",
        SAMPLE,
        ("conditions name 'hints' twice", "give each .* once"),
        bad.settings(SPEC, model__conditions=[{"kind": "hints"}] * 2),
    ),
    Row(
        "fusion of another package",
        SAMPLE,
        ("there is no fusion 'woven'", "known: .*fused", "--extensions MODULE"),
        bad.settings(SPEC, grid__fusion="woven"),
    ),
    Row(
        "fusion without a name", SAMPLE, ("there is no fusion ''", "known: .*base"), bad.settings(SPEC, grid__fusion="")
    ),
    Row(
        "codec of another package",
        SAMPLE,
        ("there is no codec 'wavelet'", "known: .*pixels", "--extensions MODULE"),
        bad.settings(SPEC, codec={"kind": "wavelet"}),
    ),
    Row(
        "codec in a word",
        SAMPLE,
        ("codec", "expected an object of Codec", "found 'pixels'"),
        bad.settings(SPEC, codec="pixels"),
    ),
    # places to write
    Row(
        "folder of others",
        f"{SAMPLE.replace('out/new', 'units')} --overwrite",
        ("units was not written by fourreal", "choose another name"),
    ),
    Row("folder that exists", SAMPLE.replace("out/new", "units"), ("units exists", "add --overwrite")),
    Row(
        "folder of the inputs",
        f"{SAMPLE.replace('out/new', 'videos')} --views videos --overwrite",
        ("videos was not written", "choose another name"),
        bad.moved("video.mp4", "videos/a.mp4"),
    ),
    Row("file for a folder", SAMPLE.replace("out/new", "notes.txt"), ("notes.txt is a file", "name a folder")),
    Row(
        "folder below a file",
        SAMPLE.replace("out/new", "notes.txt/new"),
        ("notes.txt/new cannot be made", "Not a directory", "name a folder where you may write"),
    ),
    Row(
        "folder with too long a name",
        SAMPLE.replace("new", "n" * 250),
        ("cannot be made", "File name too long", "name a folder"),
    ),
    Row(
        "read-only folder",
        SAMPLE.replace("out/new", "/proc/new"),
        ("/proc/new cannot be made", "name a folder where you may write"),
    ),
    Row(
        "link to nothing",
        SAMPLE.replace("out/new", "link"),
        ("link cannot be made", "a link to nothing", "name a folder"),
        bad.linked("link", "nowhere/else"),
    ),
    Row(
        "link to itself",
        SAMPLE.replace("out/new", "link"),
        ("link cannot be made", "a link to nothing", "name a folder"),
        bad.linked("link", "link"),
    ),
    Row("name that is no UTF-8", SAMPLE.replace("new", "\udcff") + " --image a\udcfe.png", ("no such file or folder",)),
    Row(
        "training in a read-only folder",
        TRAIN.replace("new", "/proc/new"),
        ("/proc/new cannot be made", "name a folder where you may write"),
    ),
    Row(
        "training in a file",
        TRAIN.replace("new", "notes.txt"),
        ("notes.txt is a file", "give a folder with --out"),
    ),
    Row(
        "training in a folder of others",
        f"{TRAIN.replace('new', 'units')} --overwrite",
        ("units is no run's folder", "give another --out"),
    ),
    Row(
        "rendering in a read-only folder",
        RENDER.replace("out/new", "/proc/new"),
        ("/proc/new cannot be made", "name a folder where you may write"),
    ),
    Row(
        "rendering in a file",
        f"{RENDER.replace('out/new', 'notes.txt')} --overwrite",
        ("notes.txt is a file", "name a folder with --out"),
    ),
    Row(
        "rendering over the assets",
        f"{UNITS.replace('out/new', 'units')} --overwrite",
        ("units is no data set", "name another --out"),
    ),
    # settings of a run
    Row("name that leaves the folder", f"{TRAIN} --name ../new", ("name is '../new'", "give a plain name")),
    Row(
        "settings that exclude each other",
        f"{TRAIN} --grid.fusion none --grid.sync-init zero",
        ("sync_init 'zero' with fusion 'none'", "expected none"),
    ),
    Row(
        "text for a model",
        f"{TRAIN} --model.conditions text:width=8",
        ("takes text", "hold none", "take a source with text"),
    ),
    Row(
        "condition's name",
        f"{TRAIN} --model.conditions camera",
        ("no condition 'camera'", "did you mean 'cameras'", HELP),
    ),
    Row(
        "condition's setting",
        f"{TRAIN} --model.conditions cameras:dorp=0.3",
        ("unknown key 'dorp'", "did you mean 'drop'", HELP),
    ),
    Row(
        "condition's setting without a value",
        f"{TRAIN} --model.conditions cameras:drop",
        ("'cameras:drop'", "expected NAME or NAME:field=value", HELP),
    ),
    Row(
        "condition dropped twice as often as always",
        f"{TRAIN} --model.conditions cameras:drop=2",
        ("drop is 2", "from 0 to 1", HELP),
    ),
    Row("codec's name", f"{TRAIN} --codec pixel", ("no codec 'pixel'", "did you mean 'pixels'", HELP)),
    Row(
        "channels of another codec",
        f"{TRAIN} --model.channels 4",
        ("model.channels is 4", "the codec 'pixels' has 3"),
    ),
    Row("nothing to cut", f"{TRAIN} --data.cuts.grid 0", ("weights", "at least one above 0", HELP)),
    Row(
        "grids for a base",
        f"{TRAIN} --grid.fusion base",
        ("grid.fusion is base, which takes clips", "set data.cuts.grid 0"),
    ),
    Row("source's setting", f"{TRAIN} --data.source records:foldr=a", ("'foldr'", "did you mean 'folder'", HELP)),
    Row(
        "run of an earlier version",
        "train old --resume",
        ("old/config.json: an earlier version", "--init-from old"),
        bad.content("old/config.json", '{"name": "old"}'),
    ),
    Row(
        "run of a newer version",
        "train new --resume",
        ("new/config.json: it has version 99", "upgrade fourreal"),
        bad.content("new/config.json", '{"version": 99}'),
    ),
    Row("weights for a run", "train model --resume", (f"{SPEC}: unknown key 'views'",)),
    Row("extension", f"{TRAIN} --extensions wnid", ("extension wnid", "cannot be imported", "name a module")),
    Row("setting out of range", f"{TRAIN} --steps 0", ("steps is 0", "give 1 or more")),
    Row("setting that is NaN", f"{TRAIN} --optim.lr nan", ("optim.lr is nan", "give a number")),
    Row("batch of 10^8", f"{TRAIN} --data.batch-size 100000000", ("data.batch_size is 100000000", "give 1 to")),
    Row(
        "heads that do not divide the width",
        f"{TRAIN} --model.heads 5",
        ("width 12 with 5 heads", "choose other heads"),
    ),
    Row(
        "patch that does not divide the pictures",
        f"{TRAIN} --model.patch 1 3 3",
        ("size 8 x 8", "patch of 3", "give multiples of 3"),
    ),
    Row("more views than stored", f"{TRAIN} --data.views 9", ("9 x 3", "have 2 x 3", "ask for fewer")),
    Row("more grids to validate than stored", f"{TRAIN} --eval-grids 9", ("has 2 grids, not 9", "ask for 1 to 2")),
    Row("nothing to resume", f"{TRAIN} --resume", ("no run in new", "leave --resume out")),
    Row(
        "weights of another model to start from",
        f"{TRAIN} --init-from nano",
        ("its width is 192", "this config has 12"),
    ),
    Row(
        "truncated weights to start from",
        f"{TRAIN} --init-from base",
        ("is broken", COPY),
        bad.cut("base/model.safetensors", 0.5),
    ),
    Row(
        "nothing to train",
        f"{TRAIN} --trains sync --grid.fusion none --init-from base",
        ("trains is 'sync' with grid.fusion none", "nothing trains", "give soft or hard"),
    ),
    Row("nothing to keep frozen", f"{TRAIN} --trains sync", ("trains is 'sync'", "name the base", "--init-from")),
    Row("config file that is empty", TRAIN, ("sets no CONFIG", "see configs/"), bad.content("config.py", "")),
    Row(
        "config file that is no Python",
        TRAIN,
        ("does not run", "SyntaxError", "mend the file"),
        bad.content("config.py", "a b"),
    ),
    Row(
        "config file that raises",
        TRAIN,
        ("does not run", "ZeroDivisionError", "mend the file"),
        bad.content("config.py", "1 / 0"),
    ),
    Row(
        "config file that exits",
        TRAIN,
        ("does not run", "SystemExit", "mend the file"),
        bad.content("config.py", "raise SystemExit(0)"),
    ),
    Row("picture for a config file", "train photo.png", ("does not run", "mend the file")),
    Row(
        "unknown setting in a config file",
        TRAIN,
        ("does not run", "'stepz'", "mend the file"),
        bad.content("config.py", bad.CONFIG.replace("steps", "stepz")),
    ),
    # cameras
    Row(
        "cameras for a model without",
        f"{SAMPLE} --trajectory orbit",
        ("model takes no cameras", "train one with --model"),
    ),
    Row(
        "trajectory's name", f"{TOLD} --trajectory orbt:60", ("orbt:60", "expected one of orbit", "did you mean orbit")
    ),
    Row(
        "trajectory in words",
        f"{TOLD} --trajectory orbit:wide",
        ("'wide' is no finite number", "expected NAME or NAME:AMOUNT"),
    ),
    Row("trajectory of nan", f"{TOLD} --trajectory orbit:nan", ("no finite number", "expected NAME or NAME:AMOUNT")),
    Row("trajectory into the subject", f"{TOLD} --trajectory dolly:2", ("ends in the subject", "at most dolly:0.9")),
    Row("trajectory over the top", f"{TOLD} --trajectory rise:90", ("rise:90", "expected to stay between -85 and 85")),
    Row("field of view of 0", f"{TOLD} --trajectory orbit --fov 0", ("field of view of 0", "between 0 and 180")),
    Row("cameras twice", f"{TOLD} --trajectory orbit --cameras a.json", ("--cameras and --trajectory", "give one")),
    Row("missing cameras", f"{TOLD} --cameras a.json", ("a.json: there is no such file", TRANSFORMS)),
    Row("folder for cameras", f"{TOLD} --cameras units", ("units: no sparse model", "expected COLMAP's cameras.txt")),
    Row("video for cameras", f"{TOLD} --cameras video.mp4", ("video.mp4: not JSON", TRANSFORMS)),
    Row(
        "truncated cameras",
        f"{TOLD} --cameras a.json",
        ("a.json: not JSON", TRANSFORMS),
        bad.content("a.json", bad.camera_file()[:-9]),
    ),
    Row(
        "cameras nested 10^5 deep",
        f"{TOLD} --cameras a.json",
        ("a.json: not JSON", TRANSFORMS),
        bad.content("a.json", "[" * 10**5),
    ),
    Row(
        "one camera for two views",
        f"{TOLD} --cameras a.json",
        ("1 cameras", "needs 2, one a view"),
        bad.content("a.json", bad.camera_file(1)),
    ),
    Row(
        "camera at nan",
        f"{TOLD} --cameras a.json",
        ("a frame 0.png transform_matrix is not finite", "expected transform_matrix 4x4"),
        bad.content("a.json", bad.camera_file(transform_matrix=np.full((4, 4), np.nan).tolist())),
    ),
    Row(
        "camera that scales",
        f"{TOLD} --cameras a.json",
        ("holds no rotation", "expected transform_matrix 4x4"),
        bad.content("a.json", bad.camera_file(transform_matrix=(2 * np.eye(4)).tolist())),
    ),
    Row(
        "camera without a focal length",
        f"{TOLD} --cameras a.json",
        ("lacks 'camera_angle_x'", "expected transform_matrix 4x4 and fl_x"),
        bad.content("a.json", bad.camera_file().replace("fl_x", "f")),
    ),
    Row(
        "cameras of pictures without a width",
        f"{TOLD} --cameras a.json",
        ("a frame 0.png w, h are 0, 8", "expected transform_matrix 4x4 and fl_x with w, h"),
        bad.content("a.json", bad.camera_file(top={"w": 0, "h": 8})),
    ),
    Row(
        "camera without an angle of view",
        f"{TOLD} --cameras a.json",
        ("camera_angle_x is 0, not between 0 and pi", "expected .* camera_angle_x"),
        bad.content("a.json", bad.camera_file(top={"camera_angle_x": 0}).replace("fl_x", "f")),
    ),
    Row(
        "cameras beyond all numbers",
        f"{TOLD} --cameras a.json",
        ("is not finite", "expected transform_matrix 4x4"),
        bad.content("a.json", bad.camera_file().replace("[[1.0", "[[1e300")),
    ),
    Row(
        "cameras' focus behind them",
        f"{TOLD} --cameras a.json",
        ("focus is -1.0", "expected a distance above 0"),
        bad.content("a.json", bad.camera_file(top={"focus": -1})),
    ),
    Row(
        "field of view without a trajectory",
        f"{TOLD} --fov 60",
        ("--fov and --elevation describe the cameras of a trajectory", "add --trajectory"),
    ),
    Row("frames of no video", f"{SAMPLE} --frames 0:3", ("--frames 0:3 cuts videos", "leave it out")),
    Row(
        "cameras of a panorama",
        f"{TOLD} --cameras a.json",
        ("camera model EQUIRECTANGULAR; known are PERSPECTIVE", "make pinhole pictures of it first"),
        bad.content("a.json", bad.camera_file(top={"camera_model": "EQUIRECTANGULAR"})),
    ),
    Row(
        "cameras of a picture of another aspect",
        f"{TOLD} --image photo.png --cameras a.json",
        ("camera 0.png is of pictures of 64x32, and this one has 16x16", "expected the same picture"),
        bad.content("a.json", bad.camera_file(top={"w": 64, "h": 32})),
    ),
    Row(
        "picture without a camera",
        f"{TOLD} --image photo.png --given 1.png@v=1,t=0 --cameras a.json",
        ("no camera for .*photo.png at view 0", "expected a frame whose file_path"),
        bad.both(
            bad.content("a.json", bad.camera_file()), lambda folder: shutil.copy(folder / "photo.png", folder / "1.png")
        ),
    ),
    Row(
        "camera without a picture",
        f"{TOLD} --given 0.png@v=0,t=0 --given 1.png@v=1,t=0 --cameras a.json",
        ("no picture for the camera 2.png", "give one, take the camera out"),
        bad.both(
            bad.content("a.json", bad.camera_file(3)),
            lambda folder: [shutil.copy(folder / "photo.png", folder / f"{n}.png") for n in (0, 1)],
        ),
    ),
    Row(
        "camera file to convert",
        "cameras convert nowhere.json b.json",
        ("nowhere.json: there is no such file", TRANSFORMS),
    ),
    Row("camera file to check", "cameras check photo.png", ("photo.png: not JSON", TRANSFORMS)),
    Row("form of cameras", "cameras convert a.json b.json --to llff", ("llff", "nerfstudio")),
    # evaluation
    Row("checkpoint to evaluate", "evaluate --checkpoint nanno", ("no checkpoint 'nanno'", "did you mean 'nano'")),
    Row("split to evaluate", f"{EVALUATE} --split tests", ("no split 'tests'", "it has train, validation")),
    Row("more grids to evaluate than stored", f"{EVALUATE} --grids 9", ("has 2 grids, not 9", "ask for 1 to 2")),
    Row(
        "more bundled grids than there are",
        "evaluate --grids 99",
        ("--grids 99", "render more and name them with --data"),
    ),
    Row("no seeds", f"{EVALUATE} --seeds 0", ("--seeds 0", "give 1 to 1000")),
    Row("fewer samples than seeds", f"{EVALUATE} --samples 2", ("--samples 2", "at least as many as --seeds 4")),
    Row(
        "checkpoints for other grids", f"{EVALUATE} --checkpoint model nano", ("different grids", "compare equal ones")
    ),
    Row(
        "too many steps to evaluate", f"{EVALUATE} --steps 10000000000000", ("--steps 10000000000000", "give 1 to 1000")
    ),
    Row("split of no data set", "evaluate --split train --out out/new", ("--split train", "name it with --data")),
    Row(
        "evaluation that cannot be written",
        EVALUATE.replace("out/new", "/proc/new"),
        ("--out /proc/new cannot be made", "where you may write"),
    ),
    Row(
        "unfinished evaluation with broken settings",
        EVALUATE,
        ("new.partial/settings.json holds list", "expected dict", "put a copy back"),
        bad.content("out/new.partial/settings.json", "[]"),
    ),
    Row("evaluation that exists", EVALUATE.replace("out/new", "units"), ("units exists", "add --overwrite")),
    # ablation
    Row("no ablation", ABLATE, ("no config file ablation.py", "")),
    Row(
        "training's config for an ablation",
        ABLATE.replace("ablation", "config"),
        ("sets no CONFIG = AblationConfig", ""),
    ),
    Row(
        "name of an arm",
        f"{ABLATE} --arms all-sotf",
        ("no arm 'all-sotf'", "did you mean 'all-soft'"),
        bad.content("ablation.py", bad.ABLATION),
    ),
    Row(
        "ablation with a decaying rate",
        f"{ABLATE} --train.optim.final-lr 0.02",
        ("final_lr is 0.02", "give 1, a constant"),
        bad.content("ablation.py", bad.ABLATION),
    ),
    Row(
        "ablation that cannot be written",
        f"{ABLATE} --docs /proc/new",
        ("--docs /proc/new cannot be made", "where you may write"),
        bad.content("ablation.py", bad.ABLATION),
    ),
    Row(
        "truncated file of an arm",
        f"{ABLATE} --report".replace("--docs out/new", "--docs ."),
        ("ablation/all-soft.json is no JSON", "put a copy back"),
        bad.both(bad.content("ablation.py", bad.ABLATION), bad.content("ablation/all-soft.json", '{"arm": "all')),
    ),
    Row(
        "file of an arm without runs",
        f"{ABLATE} --report".replace("--docs out/new", "--docs ."),
        ("ablation/all-soft.json holds no runs", "put a copy back, or delete it"),
        bad.both(bad.content("ablation.py", bad.ABLATION), bad.content("ablation/all-soft.json", '{"runs": [{}]}')),
    ),
    # planning
    Row("no chips", "plan config.py", ("name the chips with --topology", "as v5e:4x4")),
    Row("chip's name", "plan config.py --topology v5z:2x2", ("there is no chip 'v5z'", "known: v4, v5e")),
    # data sets
    Row("no data set", f"{TRAIN} --data.source nowhere", ("nowhere holds no data set", "render one with")),
    Row("file for a data set", f"{TRAIN} --data.source notes.txt", ("notes.txt holds no data set", "render one with")),
    Row("data set without its features", TRAIN, DAMAGED, bad.removed("data/features.json")),
    Row("data set whose description is no JSON", TRAIN, DAMAGED, bad.content("data/dataset_info.json", "{")),
    Row(
        "another data set",
        TRAIN,
        ("its features are {'image'", *DAMAGED),
        bad.settings("data/features.json", featuresDict={"features": {"image": {"pythonClassName": "x"}}}),
    ),
    Row(
        "data set that names a class of its own",
        TRAIN,
        ("its features are", *DAMAGED),
        bad.settings("data/features.json", featuresDict__features__K__pythonClassName="os.system"),
    ),
    Row("missing shard", TRAIN, (r"grid \d of train", *DAMAGED), bad.removed("data/grids-train*")),
    Row("empty shard", TRAIN, (r"grid \d of train", *DAMAGED), bad.spoiled("data/grids-train*", lambda data: data[:0])),
    Row(
        "truncated shard",
        TRAIN,
        (r"grid \d of train", *DAMAGED),
        bad.spoiled("data/grids-train*", lambda data: data[: len(data) // 2]),
    ),
    Row(
        "corrupt record",
        TRAIN,
        (r"grid \d of train", "hash mismatch", *DAMAGED),
        bad.spoiled("data/grids-train*", bad.flip_every(300, 2000, 6000)),
    ),
    Row(
        "missing shard of another split",
        TRAIN,
        ("grid 0 of validation", *DAMAGED),
        bad.removed("data/grids-validation*"),
    ),
    # rendering
    Row(
        "pictures that are no power of two",
        RENDER.replace("--size 16", "--size 60"),
        ("60 pixels", "choose a power of two"),
    ),
    Row("no grids", RENDER.replace("--train 1", "--train 0"), ("hold no grids", "ask for at least one")),
    Row("10^9 cameras", RENDER.replace("--views 2", "--views 1000000000"), ("1000000000 views", "choose 1 to 512")),
    Row("highest sweep first", f"{RENDER} --sweep 60 15", ("--sweep 60 15", "give the lowest and the highest")),
    Row("no processes", RENDER.replace("--workers 1", "--workers 0"), ("0 processes", "1 to 256 workers")),
    Row("seed of a renderer", f"{RENDER} --seed -1", ("--seed -1", "give 0 to")),
    Row("no assets", f"{RENDER} --assets nowhere", ("nowhere holds no animated .glb", "put at least one there")),
    Row(
        "text for an asset",
        UNITS,
        (f"{UNIT} is not a binary glTF", "export it as .glb"),
        bad.content(UNIT, "hello" * 9),
    ),
    Row("truncated asset", UNITS, (f"{UNIT} is damaged", *GLTF), bad.cut(UNIT, 0.9)),
    Row(
        "asset nested 10^5 deep",
        UNITS,
        (f"{UNIT} is damaged", *GLTF),
        bad.content(UNIT, struct.pack("<4sIII4s", b"glTF", 2, 0, 10**5, b"JSON") + b"[" * 10**5),
    ),
    Row(
        "view outside an asset",
        UNITS,
        ("lies outside the file", *GLTF),
        bad.glb(lambda d: d["bufferViews"][0].update(byteOffset=10**9)),
    ),
    Row(
        "view before an asset",
        UNITS,
        ("lies outside the file", *GLTF),
        bad.glb(lambda d: d["bufferViews"][0].update(byteOffset=-50)),
    ),
    Row(
        "10^12 vertices",
        UNITS,
        (f"{UNIT} is damaged", *GLTF),
        bad.glb(lambda d: d["accessors"][0].update(count=10**12)),
    ),
    Row(
        "10^12 vertices without data",
        UNITS,
        ("1000000000000 values without data", *GLTF),
        bad.glb(lambda d: [d["accessors"][0].pop("bufferView"), d["accessors"][0].update(count=10**12)]),
    ),
    Row(
        "nodes in a circle", UNITS, (f"{UNIT} is damaged", *GLTF), bad.glb(lambda d: d["nodes"][0].update(children=[0]))
    ),
    Row(
        "texture elsewhere",
        UNITS,
        ("keeps a texture outside the file", "with textures inside"),
        bad.glb(lambda d: d["images"].__setitem__(0, {"uri": "../../secret.png"})),
    ),
    Row(
        "texture that is no picture",
        UNITS,
        (f"{UNIT} is damaged", *GLTF),
        bad.glb(lambda d: d["images"][0].update(bufferView=0)),
    ),
    Row(
        "asset of NaN",
        UNITS,
        (f"{UNIT} cannot be drawn", "not finite", "export it again"),
        bad.glb(lambda d: d["nodes"][0].update(scale=[float("nan")] * 3)),
    ),
    Row(
        "asset without extent",
        UNITS,
        (f"{UNIT} cannot be drawn", "in one place", "export it again"),
        bad.glb(lambda d: d["nodes"][0].update(scale=[0, 0, 0])),
    ),
    Row(
        "compressed asset",
        UNITS,
        ("needs KHR_draco", "export it without compression"),
        bad.glb(lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"])),
    ),
    Row(
        "asset that does not move",
        UNITS,
        ("units holds no animated .glb", "put at least one there"),
        bad.glb(lambda d: d.pop("animations")),
    ),
    Row(
        "manifest without units",
        UNITS,
        ("is no manifest", "KeyError: 'units'", "build the pack again"),
        bad.content("units/manifest.json", "{}"),
    ),
    Row(
        "manifest that leaves its folder",
        UNITS,
        ("outside its folder, ../notes.txt", "build the pack again"),
        bad.content("units/manifest.json", '{"units": [], "grounds": [{"file": "../notes.txt", "split": "train"}]}'),
    ),
    Row(
        "text for a ground",
        UNITS,
        ("units/grounds/a.png cannot be read", "expected a png or jpeg", "replace it"),
        bad.content("units/grounds/a.png", "hello"),
    ),
    # building the pack
    Row("no game data", BUILD, ("no game data under source", "unpack megaglest-data there")),
    Row(
        "game data without units",
        BUILD,
        ("no unit under source", "unpack the whole package"),
        bad.content(f"{FACTION}/readme", ""),
    ),
    Row(
        "unit that is no mesh",
        BUILD,
        ("is not a G3D file", "version 3 or 4", "unpack the package again"),
        bad.content(f"{FACTION}/units/u/models/u_walk.g3d", "hello"),
    ),
    Row(
        "unit of 2^64 vertices",
        BUILD,
        ("ends early or is damaged", "unpack the package again"),
        bad.content(f"{FACTION}/units/u/models/u_walk.g3d", HUGE_MESH),
    ),
]


def code_of(command: str) -> int:
    """Runs a command line in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    return stop.value.code


def contents(folder: Path) -> dict[bytes, bytes | None]:
    """Every file and folder below, by its name."""
    return {
        os.fsencode(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    bad.make_sandbox(folder)
    return folder


@pytest.fixture
def sandbox(good, tmp_path, monkeypatch) -> Path:
    """A copy of the folder where all is well, to break and to work in."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "_"))
def test_bad_input_is_one_line_exit_code_2_and_leaves_no_trace(row, sandbox, capfd):
    if row.make:
        row.make(sandbox)
    before = contents(sandbox)
    capfd.readouterr()
    assert code_of(row.command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    for part in row.says:
        assert re.search(part, line), f"{part!r} is not in {line!r}"
    assert contents(sandbox) == before


# --- whole processes

ON_EVENT = """
import os, signal, sys, threading
event, part, delay = os.environ["INTERRUPT_AT"].split("|")
def interrupt():
    os.killpg(0, signal.SIGINT)  # as a terminal does: to all processes of the command
def watch(name, arguments, done=[]):
    if name == event and part in str(arguments[0]) and not done:
        done.append(True)
        threading.Timer(float(delay), interrupt).start() if float(delay) else interrupt()
signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of a test run in the background ignore it
if os.environ.pop("INTERRUPT_HERE", None):  # in this process, not in those that it starts
    sys.addaudithook(watch)
"""


def run(script: str, command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """`python SCRIPT OPTIONS` in a session of its own, as from a terminal."""
    paths = os.pathsep.join([str(folder / "hook"), str(ROOT)])
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    quick["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # a training that started itself again would lose the hook
    return subprocess.run(
        [sys.executable, ROOT / script, *command.split()[1:]],
        cwd=folder,
        env=os.environ | quick | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        check=False,
    )


def said(stderr: str) -> list[str]:
    """The lines without those of progress bars."""
    lines = [line.strip() for line in re.split(r"[\r\n]", stderr)]
    return [line for line in lines if line and not re.search(r"\d%\|", line)]


@pytest.mark.parametrize(
    ("script", "command", "words"),
    [
        ("sample.py", f"{SAMPLE} --video nowhere.mp4", "nowhere.mp4: there is no such file"),
        ("sample.py", SAMPLE.replace("out/new", "/proc/new"), "/proc/new cannot be made"),
        ("train.py", f"{TRAIN} --optim.lrr 3", "--optim.lr FLOAT"),
        ("fourreal/__main__.py", "fourreal smaple", "did you mean 'sample'"),
    ],
)
def test_a_script_says_one_line_and_exits_with_2(script, command, words, sandbox):
    before = contents(sandbox)
    done = run(script, command, sandbox)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and words in line and contents(sandbox) == before


@pytest.mark.parametrize(
    ("script", "command", "at"),
    [
        pytest.param("sample.py", SAMPLE, "import|jax|0", id="sample-importing"),
        pytest.param("sample.py", f"{SAMPLE} --video video.npz", "open|video.npz|0", id="sample-reading"),
        pytest.param("sample.py", SAMPLE, "open|model.safetensors|0.5", id="sample-compiling"),
        pytest.param("sample.py", SAMPLE, "open|grid.npz|0", id="sample-writing"),
        pytest.param("train.py", TRAIN, "import|optax|0", id="train-importing"),
        pytest.param("train.py", TRAIN, "open|dataset_info.json|0", id="train-reading"),
        pytest.param("train.py", TRAIN, "open|features.json|3", id="train-compiling"),
        pytest.param("fourreal/__main__.py", f"fourreal {RENDER}", "import|panda3d.core|0", id="render-importing"),
    ],
)
def test_ctrl_c_exits_with_130_one_line_and_leaves_nothing(script, command, at, sandbox):
    bad.content("hook/sitecustomize.py", ON_EVENT)(sandbox)
    before = contents(sandbox)
    command = command.replace("out/new", "new")
    done = run(script, command, sandbox, INTERRUPT_AT=at, INTERRUPT_HERE="1")
    assert done.returncode == 130, done.stderr[-3000:]
    assert len(said(done.stderr)) == 1, done.stderr[-3000:]
    (line,) = said(done.stderr)
    assert line.endswith(": interrupted")
    assert contents(sandbox) == before


@pytest.mark.slow
def test_ctrl_c_while_training_saves_a_run_that_goes_on(sandbox):
    bad.content("hook/sitecustomize.py", ON_EVENT)(sandbox)
    train = f"{TRAIN} --log-every 1 --steps 100000 --grid.fusion base --data.cuts.grid 0 --data.cuts.fixed-view 1"
    done = run("train.py", train, sandbox, INTERRUPT_AT="open|metrics.jsonl|0.3", INTERRUPT_HERE="1")
    assert done.returncode == 130 and said(done.stderr) == ["fourreal train: interrupted"], done.stderr[-3000:]
    assert "go on with --resume" in done.stdout
    run_folder = sandbox / "new"
    assert not [path for path in run_folder.rglob("*") if re.search("tmp|partial", path.name)]
    (steps,) = (int(path.name) for path in (run_folder / "checkpoints").iterdir())
    assert steps >= 1


def test_a_full_disk_is_one_line_and_leaves_nothing(sandbox):
    before = contents(sandbox)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); sys.path.insert(0, sys.argv.pop(1))\n"
        "from fourreal.cli import main; main(verb='sample')"
    )
    (sandbox / "limited.py").write_text(code)
    command = f"sample {ROOT} {SAMPLE.removeprefix('sample ').replace('out/new', 'new')}"
    # JAX warns of programs that it cannot keep
    done = run(sandbox / "limited.py", command, sandbox, JAX_ENABLE_COMPILATION_CACHE="false")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and re.search("File too large.*free some space", line), line
    (sandbox / "limited.py").unlink()
    assert contents(sandbox) == before


def test_written_weights_may_be_read_by_whom_the_umask_allows(tmp_path):
    bad.make_checkpoints(tmp_path)
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1


# --- nothing that is loaded is executed

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "yaml",
    "torch",
    "runpy",
    "subprocess",
}
METHODS = {"extractall", "extract", "unpack_archive", "import_module", "run_path"}
ALLOWED = {
    *(("config.py", name) for name in ("runpy", "run_path")),  # the config file that the user names
    ("cli.py", "import_module"),  # our own verbs
    ("options.py", "import_module"),  # the modules that the user names with --extensions
    ("others.py", "import_module"),  # and those of --metric
    ("encoder.py", "torch"),  # by transformers, which reads safetensors alone
    ("aot.py", "subprocess"),  # itself in a process of its own, asked in JSON
    # packages of networks keep weights as pickles: read only with the right SHA-256, and only pieces of arrays
    *(("package_weights.py", name) for name in ("pickle", "import_module")),
}


def dangers(tree: ast.AST) -> set[str]:
    """What in a module could run code from a file, or write outside a folder."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {node.func.id} & RUNS_CODE
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found |= {node.func.attr} & METHODS
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found |= set() if isinstance(node.value, ast.Constant) and node.value.value is False else {"allow_pickle"}
    return found


def test_nothing_in_the_package_unpickles_evaluates_or_unpacks():
    files = [*(ROOT / "fourreal").rglob("*.py"), ROOT / "train.py", ROOT / "sample.py"]
    found = {(file.name, danger) for file in files for danger in dangers(ast.parse(file.read_text()))}
    assert found == ALLOWED
    planted = "import pickle; np.load(f, allow_pickle=True); eval(x); archive.extractall(); from yaml import load"
    assert dangers(ast.parse(planted)) == {"pickle", "allow_pickle", "eval", "extractall", "yaml"}
