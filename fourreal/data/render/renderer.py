"""Renders a scene into a grid: every view at every time, with depth, the subjects' mask and exact cameras.

Panda3D's software rasteriser (no GL, no display) draws the subjects and their shadows, several times larger than the picture;
each pixel is then the mean of its samples. What it draws is told apart by alpha: 255 a subject, 128 a shadow (the mesh
flattened along the light onto z = 0), 0 nothing. With S the sum of the subjects' colours, s and n the shares of shadow and
of nothing, B the backdrop (see backdrop.py) and a the brightness that a shadow keeps,

    picture = S + (n + a s) B.

Shading is per vertex: ambient + (1 - ambient) max(0, n . l). Depth is the mean of 1/z over the samples that are subject,
which is exact on a plane; mask and depth follow the majority of a pixel's samples.
"""

import functools
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from fourreal.data.render.assets import Assets
from fourreal.data.render.backdrop import draw_backdrop, sun_direction, sunlight
from fourreal.data.render.drawing import Mesh, set_stage
from fourreal.data.render.scenes import Scene
from fourreal.errors import UserError

MOST = 512  # views or times
SUPERSAMPLING = 4
SUBJECT, SHADOW = 255, 128
NEAR, FAR = 0.15, 8.0  # clipping planes as shares of the cameras' distance
SETTINGS = """
load-display p3tinydisplay
window-type offscreen
audio-library-name null
notify-level error
model-cache-dir
td-show-zbuffer true
support-threads false
"""
VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 4), ("uv", "<f4", 2)])


def render_scene(
    scene: Scene,
    views: int,
    times: int,
    size: int | tuple[int, int],
    assets: Assets | None = None,
    supersampling: int = SUPERSAMPLING,
) -> dict[str, np.ndarray]:
    """Renders a grid of `views` x `times` pictures of `size` pixels a side, or (height, width).

    The shorter side sees what a square picture does, the longer side more.

    Returns frames uint8 [v, t, h, w, 3], depth float16 [v, t, h, w] (z in scene units, 0 in the sky), subject uint8
    [v, t, h, w], K float32 [v, 3, 3], c2w float32 [v, 4, 4]. Equal arguments give equal bytes in any process.
    Raises UserError for counts below 1 and for a side that is no power of two from 16 to 512.
    """
    check_shape(views, times, size)
    assets = assets or bundled_assets()
    stage = set_stage(scene, views, times, assets)
    height, width = sides(size)
    K = (stage.K * np.array([[min(height, width)], [min(height, width)], [1]])).astype(np.float32)
    K[:2, 2] = width / 2, height / 2
    backdrops = [draw_backdrop(scene, K, c2w, (height, width), assets) for c2w in stage.c2w]
    rasteriser = _rasteriser(height * supersampling, width * supersampling)
    light, ambient = sun_direction(scene), scene.sun.ambient
    kept = ambient / sunlight(scene)
    frames = np.empty((views, times, height, width, 3), np.uint8)
    depth = np.empty((views, times, height, width), np.float16)
    subject = np.empty((views, times, height, width), np.uint8)
    with rasteriser.loaded(stage.meshes) as textures:
        for t in range(times):
            rasteriser.place(stage.meshes, textures, t, light, ambient)
            for v, (c2w, backdrop) in enumerate(zip(stage.c2w, backdrops, strict=True)):
                colour, inverse_z = rasteriser.draw(K[0, 0] / width, c2w, NEAR * stage.distance, FAR * stage.distance)
                frames[v, t], depth[v, t], subject[v, t] = _compose(colour, inverse_z, *backdrop, kept, supersampling)
    return {
        "frames": frames,
        "depth": depth,
        "subject": subject,
        "K": np.repeat(K[None], views, 0),
        "c2w": stage.c2w.astype(np.float32),
    }


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture of that size."""
    return (size, size) if isinstance(size, int) else size


def check_shape(views: int, times: int, size: int | tuple[int, int]) -> None:
    """Raises UserError for a grid that cannot be rendered."""
    if min(views, times) < 1 or max(views, times) > MOST:
        raise UserError(f"a grid of {views} views and {times} times cannot be rendered: choose 1 to {MOST} of each")
    for side in sides(size):
        if side < 16 or side > 512 or side & (side - 1):
            raise UserError(f"pictures of {side} pixels cannot be rendered: choose a power of two from 16 to 512")


@functools.cache
def bundled_assets() -> Assets:
    """The assets that ship with the package."""
    return Assets()


def _compose(
    colour: np.ndarray, inverse_z: np.ndarray, backdrop: np.ndarray, ground: np.ndarray, kept: float, supersampling: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes BGRA samples [n h, n w, 4] with the backdrop: picture, depth and mask at [h, w]."""
    picture, depth, mask = backdrop.copy(), ground.copy(), np.zeros(ground.shape, np.uint8)
    rows, columns = _drawn(colour[..., 3], supersampling)
    samples = tuple(slice(part.start * supersampling, part.stop * supersampling) for part in (rows, columns))
    colour, inverse_z = colour[samples], inverse_z[samples]
    mean = functools.partial(_mean_samples, n=supersampling)
    is_subject = colour[..., 3] > SHADOW + 64  # a texture dims alpha by a level or so
    on_subject, in_shadow = mean(is_subject), mean((colour[..., 3] > 0) & ~is_subject)
    clear = 1 - on_subject - in_shadow
    shown = backdrop[rows, columns]
    picture[rows, columns] = mean(colour)[..., 2::-1] + (clear + kept * in_shadow)[..., None] * shown
    mask[rows, columns] = on_subject >= 0.5
    mean_inverse = mean(np.where(is_subject, inverse_z, np.float32(0))) / np.maximum(on_subject, 1e-6)
    depth[rows, columns] = np.where(on_subject >= 0.5, 1 / np.maximum(mean_inverse, 1e-6), ground[rows, columns])
    return np.rint(picture).clip(0, 255).astype(np.uint8), depth.astype(np.float16), mask


def _drawn(alpha: np.ndarray, n: int) -> tuple[slice, slice]:
    """The rows and columns of pixels in which anything is drawn: the rest is backdrop."""
    found = []
    for axis in (1, 0):
        hit = np.flatnonzero(alpha.any(axis)) // n
        found.append(slice(hit[0], hit[-1] + 1) if len(hit) else slice(0, 0))
    return found[0], found[1]


def _mean_samples(samples: np.ndarray, n: int) -> np.ndarray:
    """The mean over n x n samples of each pixel, float32; adding whole strided rows is several times faster than reducing."""
    dtype = np.float32 if samples.dtype.kind == "f" else np.uint16
    rows = sum((samples[i::n].astype(dtype) for i in range(1, n)), samples[::n].astype(dtype))
    return sum((rows[:, j::n] for j in range(1, n)), rows[:, ::n]) * np.float32(1 / n**2)


@functools.lru_cache(maxsize=2)
def _rasteriser(height: int, width: int) -> "_Rasteriser":
    return _Rasteriser(height, width)


@functools.cache
def _panda():
    """Panda3D's core module, told once to draw in software and to keep quiet. Raises UserError naming the extra."""
    try:
        from panda3d import core
    except ImportError as error:
        raise UserError("rendering needs Panda3D: pip install 'fourreal[render]'") from error
    core.load_prc_file_data("fourreal", SETTINGS)
    return core


class _Rasteriser:
    """One off-screen buffer of `height` x `width` samples and the nodes that it draws."""

    def __init__(self, height: int, width: int):
        core = self.core = _panda()
        self.height, self.width = height, width
        self.engine = core.GraphicsEngine.get_global_ptr()
        pipe = core.GraphicsPipeSelection.get_global_ptr().make_pipe("TinyOffscreenGraphicsPipe", "p3tinydisplay")
        if pipe is None:
            raise OSError("Panda3D's software renderer is missing: reinstall panda3d (pip install 'fourreal[render]')")
        properties = core.FrameBufferProperties()
        properties.set_rgba_bits(8, 8, 8, 8)
        properties.set_depth_bits(24)
        window = core.WindowProperties(size=(width, height))
        self.buffer = self.engine.make_output(
            pipe, f"samples {height} x {width}", 0, properties, window, core.GraphicsPipe.BF_refuse_window
        )
        self.samples = core.Texture()
        self.buffer.add_render_texture(self.samples, core.GraphicsOutput.RTM_copy_ram, core.GraphicsOutput.RTP_color)
        self.buffer.set_clear_color((0, 0, 0, 0))
        self.root = core.NodePath("scene")
        self.root.set_two_sided(True)
        self.root.set_bin("unsorted", 0)  # else equal depths are settled by the order of memory addresses
        self.lens = core.PerspectiveLens()
        # The rasteriser maps [-1, 1] to [0, width - 1/2], not [0, width]: a film as much smaller and a quarter of a sample
        # off-centre undoes that.
        self.lens.set_film_size(width - 0.5, height - 0.5)
        self.lens.set_film_offset(-0.25, 0.25)
        camera = core.Camera("camera", self.lens)
        self.camera = self.root.attach_new_node(camera)
        self.region = self.buffer.make_display_region()
        self.region.set_camera(self.camera)
        self.placed = self.root.attach_new_node("nothing")
        self.buffer.set_active(False)

    def loaded(self, meshes: list[Mesh]) -> "_LoadedTextures":
        return _LoadedTextures(self, meshes)

    def place(self, meshes: list[Mesh], textures: list, t: int, light: np.ndarray, ambient: float) -> None:
        """Puts the meshes at time `t`, shaded and with their shadows, into the scene instead of what was there."""
        self.placed.remove_node()
        self.placed = self.root.attach_new_node("placed")
        for mesh, texture in zip(meshes, textures, strict=True):
            positions = mesh.positions[t]
            shade = ambient + (1 - ambient) * np.maximum(mesh.normals[t] @ light, 0)
            grey = np.rint(255 * shade.clip(0, 1)).astype(np.uint8)
            lit = self._node(mesh, positions, np.stack([grey, grey, grey, np.full_like(grey, SUBJECT)], -1))
            lit.set_texture(texture)
            fallen = positions - positions[:, 2:] / light[2] * light
            self._node(mesh, fallen, np.array([0, 0, 0, SHADOW], np.uint8))

    def draw(self, focal: float, c2w: np.ndarray, near: float, far: float) -> tuple[np.ndarray, np.ndarray]:
        """BGRA uint8 [height, width, 4] and 1/z float32 [height, width] of every sample; `focal` in picture widths."""
        core = self.core
        self.lens.set_focal_length(focal * self.width)
        self.lens.set_near_far(near, far)
        right, down, forward, eye = c2w[:3].T.astype(float)
        rows = [(*right, 0), (*forward, 0), (*-down, 0), (*eye, 1)]  # Panda: x right, y forward, z up, row vectors
        self.camera.set_mat(core.LMatrix4(*[value for row in rows for value in row]))
        colour = self._frame(clear=True).copy().view(np.uint8)
        # The depth buffer cannot be read back. With td-show-zbuffer it is copied over the colours after each frame, so a
        # frame that neither clears nor draws reads it: (1 - z_ndc) / 2 in units of 2^-20.
        stored = self._frame(clear=False)[..., 0]
        normalised = stored.astype(np.float32) * np.float32(2.0**-20)
        inverse_z = 1 / far + normalised * (1 / near - 1 / far)
        return colour, inverse_z.astype(np.float32)

    def _frame(self, clear: bool) -> np.ndarray:
        self.buffer.set_active(True)
        self.buffer.set_clear_color_active(clear)
        self.buffer.set_clear_depth_active(clear)
        self.region.set_active(clear)
        self.engine.render_frame()
        self.buffer.set_active(False)
        data = np.frombuffer(self.samples.get_ram_image(), "<u4")
        return rearrange(data, "(h w one) -> h w one", h=self.height, one=1)[::-1]

    def _node(self, mesh: Mesh, positions: np.ndarray, colour: np.ndarray):
        core = self.core
        vertices = np.empty(len(positions), VERTEX)
        vertices["position"], vertices["colour"] = positions, colour
        vertices["uv"] = mesh.uv * (1, -1) + (0, 1)  # Panda's v runs upward
        data = core.GeomVertexData("mesh", self._format(), core.Geom.UH_static)
        data.unclean_set_num_rows(len(vertices))
        data.modify_array_handle(0).copy_data_from(vertices.tobytes())
        triangles = core.GeomTriangles(core.Geom.UH_static)
        triangles.set_index_type(core.Geom.NT_uint32)
        handle = triangles.modify_vertices(mesh.triangles.size).modify_handle()
        handle.unclean_set_num_rows(mesh.triangles.size)
        handle.copy_data_from(mesh.triangles.astype("<u4").tobytes())
        del handle
        geom = core.Geom(data)
        geom.add_primitive(triangles)
        node = core.GeomNode("mesh")
        node.add_geom(geom)
        return self.placed.attach_new_node(node)

    @functools.cache  # noqa: B019 - a rasteriser lives as long as its process
    def _format(self):
        core = self.core
        array = core.GeomVertexArrayFormat()
        array.add_column("vertex", 3, core.Geom.NT_float32, core.Geom.C_point)
        array.add_column("color", 4, core.Geom.NT_uint8, core.Geom.C_color)
        array.add_column("texcoord", 2, core.Geom.NT_float32, core.Geom.C_texcoord)
        return core.GeomVertexFormat.register_format(core.GeomVertexFormat(array))


@dataclass
class _LoadedTextures:
    """The meshes' textures as Panda's, released when the scene is done."""

    rasteriser: _Rasteriser
    meshes: list[Mesh]

    def __enter__(self) -> list:
        return [self._texture(mesh.texture) for mesh in self.meshes]

    def __exit__(self, *_) -> None:
        self.rasteriser.placed.remove_node()
        self.rasteriser.placed = self.rasteriser.root.attach_new_node("nothing")

    def _texture(self, picture: np.ndarray):
        from PIL import Image

        core = self.rasteriser.core
        height, width = (1 << min(max(side - 1, 0).bit_length(), 9) for side in picture.shape[:2])
        if (height, width) != picture.shape[:2]:
            picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
        texture = core.Texture()
        texture.setup_2d_texture(width, height, core.Texture.T_unsigned_byte, core.Texture.F_rgb)
        texture.set_ram_image(np.ascontiguousarray(picture[::-1, :, ::-1]).tobytes())
        texture.set_minfilter(core.SamplerState.FT_linear_mipmap_linear)
        texture.set_magfilter(core.SamplerState.FT_linear)
        return texture
