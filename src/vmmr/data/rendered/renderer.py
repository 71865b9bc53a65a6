"""Scenes to pictures with Panda3D's software renderer: no display, no GPU, no window.

Every picture is drawn twice from one geometry: shaded at twice the size and averaged down, and with flat part ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from panda3d import core as panda
from PIL import Image
from scipy.spatial import ConvexHull

from vmmr.data.rendered.details import mark_mesh, model_mesh
from vmmr.data.rendered.light import palette, shade
from vmmr.data.rendered.mesh import Floats, Mesh
from vmmr.data.rendered.scene import Scene
from vmmr.data.rendered.scenery import GROUND_TILE, ground, panorama
from vmmr.data.rendered.truth import Part, Truth, viewpoint_of
from vmmr.errors import ConfigError

__all__ = ["Renderer", "Sample"]

_SETTINGS = """
load-display p3tinydisplay
window-type none
audio-library-name null
notify-level error
notify-level-display fatal
notify-level-x11display fatal
textures-power-2 down
"""
_SEEN, _MASKED = panda.BitMask32.bit(0), panda.BitMask32.bit(1)


class Sample(NamedTuple):
    """A picture uint8 [H, W, 3], its part mask uint8 [H, W] (values of `Part`) and what is true of it."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    truth: Truth


class Renderer:
    """Draws scenes of `size` pixels (one number for a square, or height and width), until closed.

    Use it as a context manager. Raises ConfigError for a size outside 16 to 2048 pixels, and where the renderer of
    the panda3d package cannot be started.
    """

    def __init__(self, size: int | Sequence[int] = 128, *, seed: int = 0) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if not (16 <= height <= 2048 and 16 <= width <= 2048):
            raise ConfigError(
                "picture size out of range", got=f"{height} x {width}", do="pass 16 to 2048 pixels a side"
            )
        self.height, self.width, self.seed = height, width, seed
        panda.loadPrcFileData("vmmr", _SETTINGS)
        self._engine = panda.GraphicsEngine()
        self._pipe = panda.GraphicsPipeSelection.getGlobalPtr().makeModulePipe("p3tinydisplay")
        if self._pipe is None:
            raise ConfigError("the software renderer cannot be started", do="reinstall panda3d")
        self._root = panda.NodePath("world")
        self._lens = panda.PerspectiveLens()
        self._lens.setAspectRatio(width / height)
        self._shaded, self._picture = self._target(2 * height, 2 * width, _SEEN)
        self._flat, self._ids = self._target(height, width, _MASKED)
        self._eye = panda.NodePath("eye")
        self._eye.reparentTo(self._root)
        for camera in (self._shaded, self._flat):
            camera.reparentTo(self._eye)
        self._ground, self._sky = self._stage()
        self._built = lru_cache(maxsize=1024)(_build)
        empty = np.zeros((2 * len(_TURN) + 1, 4), np.float32)
        self._shadow = panda.NodePath(_coloured(_shadow_faces(), empty[:, :3], empty.astype(np.uint8)))
        self._shadow.setTwoSided(True)
        self._shadow.setTransparency(panda.TransparencyAttrib.MAlpha)
        self._shadow.hide(_MASKED)
        # Sky, ground and shadow are painted one over the other; depth would let ground and shadow fight.
        for order, node in enumerate((self._sky, self._ground, self._shadow)):
            node.setBin("background", order)
            node.setDepthTest(False)
            node.setDepthWrite(False)
        self._textures: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the buffers. The renderer cannot be used afterwards."""
        self._engine.removeAllWindows()

    def render(self, scene: Scene) -> Sample:
        """Draw one scene. Raises ConfigError when the renderer is closed."""
        if self._engine.getNumWindows() == 0:
            raise ConfigError("the renderer is closed", do="render inside its with block")
        self._dress(scene)
        nodes, eye = self._vehicle(scene)
        self._engine.renderFrame()
        for node in nodes:
            node.detachNode()
        big = (2 * self.width, 2 * self.height)
        fine = Image.frombuffer("RGBX", big, self._picture.getRamImage(), "raw", "BGRX", 0, -1)
        image = np.array(fine.reduce(2).convert("RGB"))
        mask = np.ascontiguousarray(_pixels(self._ids)[..., 2] >> 4)
        return Sample(image, mask, _truth(scene, mask, eye))

    def _target(self, height: int, width: int, mask: Any) -> tuple[Any, Any]:
        depth = panda.FrameBufferProperties()
        depth.setRgbColor(True)
        depth.setDepthBits(24)
        size = panda.WindowProperties.size(width, height)
        buffer = self._engine.makeOutput(self._pipe, "target", 0, depth, size, panda.GraphicsPipe.BFRefuseWindow)
        if buffer is None:
            raise ConfigError("no off-screen buffer", got=f"{height} x {width}", do="reinstall panda3d")
        picture = panda.Texture()
        buffer.addRenderTexture(picture, panda.GraphicsOutput.RTMCopyRam, panda.GraphicsOutput.RTPColor)
        buffer.setClearColor((0, 0, 0, 1))
        camera = panda.Camera("camera", self._lens)
        camera.setCameraMask(mask)
        buffer.makeDisplayRegion().setCamera(path := panda.NodePath(camera))
        return path, picture

    def _stage(self) -> tuple[Any, Any]:
        """A ground of 160 m and a cylinder of sky around it."""
        u = np.linspace(-80, 80, 11, dtype=np.float32)
        flat = np.stack([*np.meshgrid(u, u), np.zeros((11, 11), np.float32)], -1)
        turn = np.linspace(0, 2 * np.pi, 25, dtype=np.float32)
        rise = np.array([[-1.5], [30]], np.float32)
        wall = np.stack(np.broadcast_arrays(75 * np.cos(turn), 75 * np.sin(turn), rise), -1)
        along = np.stack(np.broadcast_arrays(turn * (2 / np.pi), (rise + 1.5) / 31.5), -1)
        nodes = []
        for points, texture in ((flat, flat[..., :2] / GROUND_TILE), (wall, along)):
            node = self._root.attachNewNode(_textured(points, texture.astype(np.float32)))
            node.hide(_MASKED)
            node.setTwoSided(True)
            nodes.append(node)
        return nodes[0], nodes[1]

    def _dress(self, scene: Scene) -> None:
        rng = np.random.default_rng([self.seed, 7, scene.seed])
        light, kind = scene.light, scene.camera.background
        high = 0.45 * math.sin(math.radians(light.elevation))
        lit = list(zip(light.sky, light.sun, _gain(scene), strict=True))
        tint, haze = (
            [*(255 * math.sqrt(min(1.0, (sky * a + sun * b) * gain)) for sky, sun, gain in lit), 255.0]
            for a, b in ((0.75, high), (1.3, 0.25))
        )
        for node, name, draw, colour in (
            (self._ground, "ground", ground, tint),
            (self._sky, "sky", panorama, haze),
        ):
            node.setTexture(self._texture(name, kind, draw), 1)
            _write(node.node(), 1, np.full((node.node().getGeom(0).getVertexData().getNumRows(), 4), colour, np.uint8))
        # Moving the surroundings is free; changing their state would cost new geometry.
        turn, quarter, x, y, tilt = rng.random(5)
        self._sky.setH(360 * turn)
        self._ground.setPosHpr(
            GROUND_TILE * (x - 0.5), GROUND_TILE * (y - 0.5), 0, 90 * int(4 * quarter) + 20 * tilt - 10, 0, 0
        )
        view = scene.view
        self._eye.setPos(*view.eye)
        self._eye.lookAt(*view.aim)
        distance = math.dist(view.eye, view.aim)
        self._lens.setNearFar(max(0.5, distance * 0.25), 170)
        self._lens.setMinFov(view.field)
        self._lens.setAspectRatio(self.width / self.height)

    def _texture(self, name: str, kind: str, draw: Any) -> Any:
        key = (name, kind)
        if key not in self._textures:
            pixels = draw(kind, self.seed)
            texture = panda.Texture(name)
            texture.setup2dTexture(pixels.shape[1], pixels.shape[0], panda.Texture.TUnsignedByte, panda.Texture.FRgb)
            texture.setRamImage(np.ascontiguousarray(pixels[::-1, :, ::-1]).tobytes())
            texture.setWrapU(panda.Texture.WMRepeat)
            texture.setWrapV(panda.Texture.WMRepeat if name == "ground" else panda.Texture.WMClamp)
            texture.setMinfilter(panda.Texture.FTNearestMipmapNearest)
            self._textures[key] = texture
        return self._textures[key]

    def _vehicle(self, scene: Scene) -> tuple[list[Any], Floats]:
        """Set up the vehicle: the nodes to take away after the picture, and the eye in the vehicle's frame."""
        vehicle, pose, light = scene.vehicle, scene.pose, scene.light
        turn, up, around = (math.radians(angle) for angle in (pose.heading, light.elevation, scene.sun))
        eye = _local((scene.view.eye[0] - pose.x, scene.view.eye[1] - pose.y, scene.view.eye[2]), turn)
        sun = _local((math.cos(up) * math.cos(around), math.cos(up) * math.sin(around), math.sin(up)), turn)
        colours, gain = palette(vehicle, light), _gain(scene)
        nodes = []
        for mesh in (model_mesh(vehicle.model, vehicle.trim), mark_mesh(vehicle.model, vehicle.mark, vehicle.variant)):
            if mesh is not None:
                node, shaded = self._built(mesh)
                _write(shaded, 1, shade(mesh, colours, light, eye=eye, sun=sun, gain=gain))
                nodes.append(node)
        outline = _outermost(model_mesh(vehicle.model, vehicle.trim))
        strongest = max(light.sun)
        below, dark = _shadow(outline, sun if strongest > 0.2 else np.array((0, 0, 1), np.float32), strongest)
        _write(self._shadow.node(), 0, below)
        _write(self._shadow.node(), 1, dark)
        nodes.append(self._shadow)
        for node in nodes:
            node.reparentTo(self._root)
            node.setPosHpr(pose.x, pose.y, 0, pose.heading, 0, 0)
        return nodes, eye


def _build(mesh: Mesh) -> tuple[Any, Any]:
    """A mesh for both cameras: its node, and the part of it whose colours change."""
    place, shaded = panda.NodePath("vehicle"), _coloured(mesh.faces, mesh.vertices, _ids(mesh))
    place.attachNewNode(shaded).hide(_MASKED)
    place.attachNewNode(_coloured(mesh.faces, mesh.vertices, _ids(mesh))).hide(_SEEN)
    return place, shaded


@lru_cache(maxsize=512)
def _outermost(mesh: Mesh) -> Floats:
    return mesh.vertices[ConvexHull(mesh.vertices).vertices]


def _ids(mesh: Mesh) -> npt.NDArray[np.uint8]:
    """Part ids as colours, in the middle of steps of 16 so that no rounding moves them."""
    ids = np.repeat(mesh.part[:, None] * np.uint8(16) + np.uint8(8), 4, axis=1)
    ids[:, 3] = 255
    return ids


def _gain(scene: Scene) -> tuple[float, float, float]:
    gain, warmth = scene.camera.gain, scene.camera.warmth
    return gain * (1 + warmth), gain, gain * (1 - warmth)


def _local(vector: tuple[float, float, float], turn: float) -> Floats:
    """A world vector in the frame of something turned by `turn` radians."""
    (x, y, z), c, s = vector, math.cos(turn), math.sin(turn)
    return np.array([c * x + s * y, c * y - s * x, z], np.float32)


def _pixels(texture: Any) -> npt.NDArray[np.uint8]:
    """The rows from the top, blue first."""
    shape = (texture.getYSize(), texture.getXSize(), texture.getNumComponents())
    return np.frombuffer(texture.getRamImage(), np.uint8).reshape(shape)[::-1]


def _format(*columns: tuple[str, int, int, int]) -> Any:
    layout = panda.GeomVertexFormat()
    for column in columns:
        layout.addArray(panda.GeomVertexArrayFormat(*column))
    return panda.GeomVertexFormat.registerFormat(layout)


_POINT = ("vertex", 3, panda.Geom.NTFloat32, panda.Geom.CPoint)
_COLOUR = ("color", 4, panda.Geom.NTUint8, panda.Geom.CColor)
_TEXTURE = ("texcoord", 2, panda.Geom.NTFloat32, panda.Geom.CTexcoord)
_COLOURED, _TEXTURED = _format(_POINT, _COLOUR), _format(_POINT, _COLOUR, _TEXTURE)


def _geometry(layout: Any, faces: npt.NDArray[np.integer[Any]], *arrays: npt.NDArray[Any]) -> Any:
    data = panda.GeomVertexData("", layout, panda.Geom.UHStatic)
    data.uncleanSetNumRows(len(arrays[0]))
    for i, array in enumerate(arrays):
        data.modifyArrayHandle(i).copyDataFrom(np.ascontiguousarray(array))
    triangles = panda.GeomTriangles(panda.Geom.UHStatic)
    triangles.setIndexType(panda.Geom.NTUint32)
    index = triangles.modifyVertices()
    index.uncleanSetNumRows(faces.size)
    index.modifyHandle().copyDataFrom(np.ascontiguousarray(faces, np.uint32))
    geom = panda.Geom(data)
    geom.addPrimitive(triangles)
    node = panda.GeomNode("")
    node.addGeom(geom)
    # Known bounds spare a pass over all vertices whenever a colour changes.
    node.setBounds(panda.OmniBoundingVolume())
    node.setFinal(True)
    return node


def _coloured(faces: npt.NDArray[Any], vertices: Floats, colours: npt.NDArray[np.uint8]) -> Any:
    node = _geometry(_COLOURED, faces, vertices, colours)
    node.setAttrib(panda.ColorAttrib.makeVertex())
    return node


def _write(node: Any, array: int, values: npt.NDArray[Any]) -> None:
    """New vertices (array 0) or colours (array 1) for a node of `_coloured`."""
    node.modifyGeom(0).modifyVertexData().modifyArrayHandle(array).copyDataFrom(values)


def _textured(points: Floats, texture: Floats) -> Any:
    rows, columns = points.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.stack([a, b, c, a, c, d], -1).reshape(-1, 3)
    white = np.full((rows * columns, 4), 255, np.uint8)
    node = _geometry(_TEXTURED, faces, points.reshape(-1, 3).astype(np.float32), white, texture.reshape(-1, 2))
    node.setAttrib(panda.ColorAttrib.makeVertex())
    return node


_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False, dtype=np.float32)
_AROUND = np.stack([np.cos(_TURN), np.sin(_TURN)])


def _shadow_faces() -> npt.NDArray[np.int64]:
    """A fan from the middle to an inner ring, and a band from there to an outer ring."""
    n = len(_TURN)
    k, following = np.arange(n), (np.arange(n) + 1) % n
    fan = np.stack([np.zeros(n, int), 1 + k, 1 + following], 1)
    band = np.stack([1 + k, 1 + n + k, 1 + n + following, 1 + k, 1 + n + following, 1 + following], 1)
    return np.concatenate([fan, band.reshape(-1, 3)])


def _shadow(points: Floats, sun: Floats, strength: float) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Vertices and colours of a soft-edged polygon on the ground: the hull of the outline along the sun's rays."""
    flat = points[:, :2] - points[:, 2:] * (sun[:2] / max(float(sun[2]), 0.2))
    # The outermost point in each of many directions: the corners of the convex hull, in order.
    rim = flat[(flat @ _AROUND).argmax(0)]
    middle = rim.mean(0)
    outward = rim - middle
    outward /= np.sqrt((outward * outward).sum(1, keepdims=True))
    below = np.full((2 * len(rim) + 1, 3), 0.012, np.float32)
    below[:, :2] = np.concatenate([middle[None], rim - 0.12 * outward, rim + 0.18 * outward])
    dark = np.zeros((len(below), 4), np.uint8)
    dark[: len(rim) + 1, 3] = int(255 * (0.45 * strength + 0.18))
    return below, dark


def _truth(scene: Scene, mask: npt.NDArray[np.uint8], eye: Floats) -> Truth:
    vehicle = scene.vehicle
    parts = Image.fromarray(mask)
    left, top, right, bottom = parts.getbbox() or (None,) * 4
    azimuth = math.degrees(math.atan2(eye[1], eye[0])) % 360
    return Truth(
        make=vehicle.model.make,
        model=vehicle.model.name,
        year=vehicle.trim.year,
        body=vehicle.model.body,
        colour=vehicle.colour,
        viewpoint=viewpoint_of(azimuth),
        azimuth=azimuth,
        elevation=math.degrees(math.atan2(eye[2] - vehicle.model.shape.height / 2, math.hypot(eye[0], eye[1]))),
        vehicle_id=vehicle.id,
        camera_id=scene.camera.id,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        pixels=tuple(parts.histogram()[: len(Part)]),
        marks=vehicle.mark,
        light=scene.light.name,
        background=scene.camera.background,
        seed=scene.seed,
        x=scene.pose.x,
        y=scene.pose.y,
        heading=scene.pose.heading,
        trajectory_id=scene.trajectory_id,
        frame=scene.frame,
        time=scene.time,
    )
