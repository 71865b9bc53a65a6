"""Where a vehicle stands, who looks at it and in which light; single scenes and trajectories under a fixed camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vmmr.data.rendered.light import LIGHTS, Light
from vmmr.data.rendered.truth import VIEWPOINTS
from vmmr.data.rendered.world import Camera, Vehicle, World
from vmmr.errors import ConfigError

__all__ = ["Pose", "Scene", "Trajectory", "View", "portrait"]

DAYTIMES = ("noon", "noon", "noon", "morning", "morning", "overcast", "overcast", "overcast", "evening", "dusk")
"""What a portrait's light is drawn from."""


@dataclass(frozen=True)
class Pose:
    """On the ground: x, y in metres and the heading in degrees, counter-clockwise from the world's x axis."""

    x: float
    y: float
    heading: float


@dataclass(frozen=True)
class View:
    """What the camera does for one picture: its place and aim in metres, and the field of view of the narrower side in
    degrees."""

    eye: tuple[float, float, float]
    aim: tuple[float, float, float]
    field: float


@dataclass(frozen=True)
class Scene:
    """All that a picture follows from. `sun` is the sun's direction, degrees counter-clockwise from x."""

    vehicle: Vehicle
    pose: Pose
    camera: Camera
    view: View
    light: Light
    sun: float
    seed: int
    trajectory_id: str | None = None
    frame: int | None = None
    time: float | None = None


def _eye(camera: Camera) -> tuple[float, float, float]:
    away = math.radians(camera.direction + 180)
    return (camera.distance * math.cos(away), camera.distance * math.sin(away), camera.height)


def _corners(vehicle: Vehicle, pose: Pose) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    shape, t = vehicle.model.shape, math.radians(pose.heading)
    tall = shape.height + (0.35 if shape.hull < shape.length else 0)
    box = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)])
    x, y, z = (box * (shape.length, shape.width, tall)).T
    return np.stack([pose.x + x * math.cos(t) - y * math.sin(t), pose.y + x * math.sin(t) + y * math.cos(t), z], 1)


def _crop(vehicle: Vehicle, pose: Pose, camera: Camera, fill: float, shift: tuple[float, float]) -> View:
    """The square view of a fixed camera in which the vehicle takes `fill` of the frame, `shift` off its middle."""
    eye = np.array(_eye(camera))
    rays = _corners(vehicle, pose) - eye
    aim = rays.mean(0)
    spread = 0.0
    # Perspective shifts the middle: aim at the vehicle's centre first, then at the middle of what that shows.
    for _ in range(2):
        distance = math.hypot(*aim)
        ahead = aim / distance
        level = math.hypot(ahead[0], ahead[1])
        right = np.array((ahead[1] / level, -ahead[0] / level, 0.0))
        up = np.array((-ahead[0] * ahead[2] / level, -ahead[1] * ahead[2] / level, level))
        u, v, depth = np.stack((right, up, ahead)) @ rays.T
        u, v = u / depth, v / depth
        spread = max(u.max() - u.min(), v.max() - v.min()) / fill
        aim = distance * (ahead + (u.max() + u.min()) / 2 * right + (v.max() + v.min()) / 2 * up)
    aim = eye + aim + distance * spread * (shift[0] * right + shift[1] * up)
    return View(_eye(camera), (float(aim[0]), float(aim[1]), float(aim[2])), math.degrees(2 * math.atan(spread / 2)))


def portrait(
    world: World,
    vehicle: Vehicle,
    seed: int,
    *,
    viewpoint: str | None = None,
    camera: Camera | None = None,
    light: str | None = None,
) -> Scene:
    """A detector's view of one vehicle: one of the world's cameras, zoomed in until the vehicle nearly fills the frame.

    What is not given is drawn from `seed`. Raises ConfigError for an unknown viewpoint or light.
    """
    if viewpoint is not None and viewpoint not in VIEWPOINTS:
        raise ConfigError("unknown viewpoint", got=viewpoint, do=f"pass one of {', '.join(VIEWPOINTS)}")
    if light is not None and light not in LIGHTS:
        raise ConfigError("unknown light", got=light, do=f"pass one of {', '.join(LIGHTS)}")
    rng = world.random(4, seed)
    cameras = world.fixed_cameras
    # Everything is drawn, also what is given, so that giving it leaves the rest of the scene as it was.
    number, sector, hour = (int(rng.integers(n)) for n in (len(cameras), len(VIEWPOINTS), len(DAYTIMES)))
    seen_by = cameras[number] if camera is None else camera
    name = DAYTIMES[hour] if light is None else light
    azimuth = 45.0 * (sector if viewpoint is None else VIEWPOINTS.index(viewpoint)) + float(rng.uniform(-22, 22))
    x, y = rng.uniform(-1.5, 1.5, 2)
    eye = _eye(seen_by)
    bearing = math.degrees(math.atan2(eye[1] - y, eye[0] - x))
    pose = Pose(float(x), float(y), (bearing - azimuth) % 360)
    fill = float(rng.uniform(0.88, 1.02))
    shift = (float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.05, 0.05)))
    view = _crop(vehicle, pose, seen_by, fill, shift)
    return Scene(vehicle, pose, seen_by, view, LIGHTS[name], float(rng.uniform(0, 360)), seed)


@dataclass(frozen=True)
class Trajectory:
    """One vehicle on one lane past one camera, at constant speed, straight or along an arc.

    id: unique in a data set. start: where the vehicle is at time 0. speed: metres a second. turn: degrees of heading
    a second. frames, rate: how many pictures, and how many a second. follow: zoom in on the vehicle as a detector
    would, instead of showing the camera's whole frame, whose narrower side sees `field` degrees.

    Raises ConfigError for an unknown light and for values out of range.
    """

    id: str
    vehicle: Vehicle
    camera: Camera
    start: Pose
    speed: float
    turn: float = 0.0
    frames: int = 16
    rate: float = 5.0
    light: str = "noon"
    seed: int = 0
    follow: bool = False
    field: float = 38.0

    def __post_init__(self) -> None:
        if self.light not in LIGHTS:
            raise ConfigError("unknown light", got=self.light, do=f"pass one of {', '.join(LIGHTS)}")
        if self.frames < 1 or self.rate <= 0 or not 1 <= self.field <= 120:
            got = f"frames={self.frames}, rate={self.rate}, field={self.field}"
            raise ConfigError(
                "trajectory out of range", got=got, do="pass frames >= 1, rate > 0, field 1 to 120 degrees"
            )

    def pose(self, time: float) -> Pose:
        """Where the vehicle is after `time` seconds, in closed form."""
        h0, h1 = math.radians(self.start.heading), math.radians(self.start.heading + self.turn * time)
        if abs(self.turn) < 1e-9:
            dx, dy = self.speed * time * math.cos(h0), self.speed * time * math.sin(h0)
        else:
            radius = self.speed / math.radians(self.turn)
            dx, dy = radius * (math.sin(h1) - math.sin(h0)), radius * (math.cos(h0) - math.cos(h1))
        return Pose(self.start.x + dx, self.start.y + dy, math.degrees(h1) % 360)

    def scenes(self) -> Iterator[Scene]:
        """One scene a frame."""
        rng = np.random.default_rng([self.seed, 5])
        sun = float(rng.uniform(0, 360))
        still = View(_eye(self.camera), (0.0, 0.0, 0.6), self.field)
        for frame in range(self.frames):
            time = frame / self.rate
            pose = self.pose(time)
            view = _crop(self.vehicle, pose, self.camera, 0.88, (0.0, 0.0)) if self.follow else still
            yield Scene(self.vehicle, pose, self.camera, view, LIGHTS[self.light], sun, self.seed, self.id, frame, time)

    @classmethod
    def passing(
        cls,
        world: World,
        vehicle: Vehicle,
        camera: Camera,
        seed: int,
        *,
        frames: int = 16,
        rate: float = 5.0,
        light: str | None = None,
        follow: bool = False,
        field: float = 38.0,
    ) -> Trajectory:
        """A plausible pass of a vehicle under a camera, halfway through near the camera's aim, drawn from `seed`."""
        rng = world.random(6, seed)
        heading = camera.direction + 90 * (1 - 2 * int(rng.integers(2))) + float(rng.uniform(-40, 40))
        speed, turn = float(rng.uniform(4, 9)), float(rng.choice([0.0, rng.uniform(-12, 12)]))
        hour = DAYTIMES[int(rng.integers(len(DAYTIMES)))]
        half, t = speed * (frames - 1) / rate / 2, math.radians(heading)
        return cls(
            id=f"t{seed:06d}",
            vehicle=vehicle,
            camera=camera,
            start=Pose(-half * math.cos(t), -half * math.sin(t), heading % 360),
            speed=speed,
            turn=turn,
            frames=frames,
            rate=rate,
            light=hour if light is None else light,
            seed=seed,
            follow=follow,
            field=field,
        )
