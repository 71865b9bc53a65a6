"""Rendered vehicles: determinism, geometry against closed forms, truth against pixels, the folder that is written."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vmmr.data.rendered import (
    LIGHTS,
    MANIFEST_COLUMNS,
    VIEWPOINTS,
    Part,
    Pose,
    Renderer,
    Trajectory,
    World,
    draw,
    portrait,
    viewpoint_of,
    write_dataset,
)
from vmmr.data.rendered.body import BODIES
from vmmr.data.rendered.details import model_mesh, vehicle_mesh
from vmmr.data.rendered.light import Light, palette, shade
from vmmr.data.rendered.mesh import Material, Mesh, box, mirror, revolve, surface
from vmmr.errors import ConfigError, DataError

WORLD = World(seed=0)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(96) as drawn:
        yield drawn


def areas(mesh: Mesh) -> np.ndarray:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(float) for i in range(3))
    return np.cross(b - a, c - a) / 2


# The catalogue


def test_world_follows_from_its_seed() -> None:
    assert World(seed=5).models == World(seed=5).models
    assert World(seed=5).models != World(seed=6).models
    assert World(seed=5).fixed_cameras == World(seed=5).fixed_cameras


def test_models_of_one_make_share_the_face_and_nothing_else_does() -> None:
    faces = [m.face for m in WORLD.models]
    makes = [m.make for m in WORLD.models]
    assert len(set(makes)) == WORLD.makes
    assert all(
        (a is b) == (m == n) for a, m in zip(faces, makes, strict=True) for b, n in zip(faces, makes, strict=True)
    )
    assert len({f.grille for f in faces}) == len({f.lamp for f in faces}) == WORLD.makes


def test_every_body_occurs_and_names_are_unique() -> None:
    assert {m.body for m in WORLD.models} == set(BODIES)
    assert len({m.name for m in WORLD.models}) == len(WORLD.models)


def test_years_differ_in_details_only() -> None:
    for model in WORLD.models:
        first, second = model.trims
        assert second.year == first.year + 4
        changed = [k for k in vars(first) if getattr(first, k) != getattr(second, k)]
        assert len(changed) >= 5


def test_vehicles_are_single() -> None:
    fleet = [WORLD.vehicle(1, 0, k) for k in range(WORLD.fleet)]
    assert len({v.id for v in fleet}) == len({v.plate for v in fleet}) == WORLD.fleet
    assert len({v.colour for v in fleet}) > 4
    assert len({v.mark for v in fleet}) > 4


@pytest.mark.parametrize("wrong", [{"makes": 0}, {"makes": 25}, {"years": 6}, {"models_per_make": 13}, {"seed": -1}])
def test_impossible_worlds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"out of range|negative"):
        World(**wrong)


@pytest.mark.parametrize("key", [(24, 0, 0), (-1, 0, 0), (0, 2, 0), (0, 0, 40)])
def test_vehicles_outside_the_fleet_are_refused(key: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="no such"):
        WORLD.vehicle(*key)


# Meshes


def test_box_is_closed_and_faces_outwards() -> None:
    mesh = box((-1, -2, 0), (1, 2, 3), Part.CARGO, Material.CARGO)
    # Divergence theorem: a sixth of the sum of signed tetrahedra is the volume, positive when faces look outwards.
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(float) for i in range(3))
    assert np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6 == pytest.approx(24)
    assert np.allclose(areas(mesh).sum(0), 0)


def test_cylinder_has_the_area_of_its_polygon() -> None:
    n = 16
    mesh = revolve((0, 1, 0), [(-0.5, 2.0), (0.5, 2.0)], Part.WHEEL, Material.RUBBER, corners=n)
    side = 2 * 2.0 * math.sin(math.pi / n)
    assert np.linalg.norm(areas(mesh), axis=1).sum() == pytest.approx(n * side * 1.0, rel=1e-5)
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)


def test_surface_keeps_parts_apart() -> None:
    grid = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1)
    grid = np.concatenate([grid, np.ones((3, 4, 1))], -1)
    part = np.array([[1, 1, 2], [1, 1, 2]])
    mesh = surface(grid, part, Material.PAINT, inside=(0, 0, -5))
    assert all(len(set(mesh.part[face])) == 1 for face in mesh.faces)
    assert np.allclose(mesh.normals, (0, 0, 1))
    assert areas(mesh).sum(0) == pytest.approx([0, 0, 6])
    assert [(mesh.part[mesh.faces[:, 0]] == k).sum() for k in (1, 2)] == [8, 4]


def test_mirror_twice_is_nothing() -> None:
    mesh = box((0, 1, 0), (1, 2, 1), 1, 0)
    again = mirror(mirror(mesh))
    assert np.array_equal(mesh.vertices, again.vertices)
    assert np.array_equal(mesh.faces, again.faces)


@pytest.mark.parametrize("index", range(len(WORLD.models)))
def test_vehicles_have_their_size_and_stand_on_the_ground(index: int) -> None:
    model = WORLD.models[index]
    mesh = model_mesh(model, model.trims[0])
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    shape = model.shape
    assert low[2] == pytest.approx(0, abs=0.02)
    assert shape.height - 0.1 < high[2] < shape.height + 0.45
    assert high[0] - low[0] == pytest.approx(shape.length, abs=0.45)
    painted = mesh.vertices[mesh.part == Part.BODY]
    assert np.ptp(painted[:, 1]) == pytest.approx(shape.width, rel=0.03)
    assert np.isfinite(mesh.normals).all()
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-4)


def test_vehicles_are_symmetric_but_for_their_marks() -> None:
    model = WORLD.models[0]
    v = model_mesh(model, model.trims[0]).vertices.astype(float)
    # A mirrored cloud has the same moments, and none that is odd in y.
    assert np.abs((v * v[:, 1:2]).mean(0)[[0, 2]]).max() < 1e-4
    assert v[:, 1].max() == pytest.approx(-v[:, 1].min(), abs=1e-5)


# Light


def test_shade_of_a_matt_plate_under_the_zenith_sun_is_closed_form() -> None:
    vehicle = WORLD.vehicle(0, 0, 0)
    light = Light("test", (0.2, 0.2, 0.2), (0.3, 0.2, 0.1), (0.9, 0.9, 0.9), 90)
    colours = palette(vehicle, light)
    colours[:] = 0
    colours[Material.PAINT, :3] = (0.5, 0.5, 0.25)
    plate = surface([[(0, 0, 1), (1, 0, 1)], [(0, 1, 1), (1, 1, 1)]], 1, Material.PAINT, inside=(0, 0, 0))
    seen = shade(plate, colours, light, eye=(0, 0, 9), sun=(0, 0, 1), gain=1.0)
    expected = np.sqrt(np.array([0.5, 0.5, 0.25]) * (np.array([0.3, 0.2, 0.1]) + 0.2)) * 255
    assert np.abs(seen[:, :3] - expected).max() <= 1
    assert (seen[:, 3] == 255).all()


def test_less_light_is_never_brighter() -> None:
    vehicle = WORLD.vehicle(0, 0, 0)
    mesh = vehicle_mesh(vehicle)
    noon = LIGHTS["noon"]
    colours = palette(vehicle, noon)
    full, half = (shade(mesh, colours, noon, eye=(9, 2, 2), sun=(0, 0.6, 0.8), gain=g) for g in (1.0, 0.5))
    assert (half <= full).all()


# Viewpoints and trajectories


@given(st.floats(-720, 720))
def test_viewpoint_is_the_nearest_sector(azimuth: float) -> None:
    centre = 45.0 * VIEWPOINTS.index(viewpoint_of(azimuth))
    assert abs((azimuth - centre + 180) % 360 - 180) <= 22.5 + 1e-6


@given(
    speed=st.floats(0.5, 30),
    turn=st.one_of(st.just(0.0), st.floats(1, 60)),
    heading=st.floats(0, 359),
    time=st.floats(0, 5),
)
def test_trajectory_is_the_integral_of_its_speed(speed: float, turn: float, heading: float, time: float) -> None:
    lane = Trajectory(
        "t", WORLD.vehicle(0, 0, 0), WORLD.fixed_cameras[0], Pose(1.0, -2.0, heading), speed=speed, turn=turn
    )
    steps = np.linspace(0, time, 4001)
    angle = np.radians(heading + turn * steps)
    pose = lane.pose(time)
    assert pose.x == pytest.approx(1.0 + np.trapezoid(speed * np.cos(angle), steps), abs=1e-3)
    assert pose.y == pytest.approx(-2.0 + np.trapezoid(speed * np.sin(angle), steps), abs=1e-3)


def test_trajectory_moves_the_vehicle_through_the_frame(renderer: Renderer) -> None:
    camera = WORLD.fixed_cameras[0]
    lane = Trajectory.passing(WORLD, WORLD.vehicle(2, 0, 0), camera, seed=3, frames=8, rate=2.5)
    truths = [renderer.render(scene).truth for scene in lane.scenes()]
    assert [t.frame for t in truths] == list(range(8))
    assert [t.time for t in truths] == pytest.approx(np.arange(8) / 2.5)
    steps = np.hypot(np.diff([t.x for t in truths]), np.diff([t.y for t in truths]))
    assert (steps <= lane.speed / lane.rate + 1e-9).all()
    seen = [t for t in truths if t.left is not None]
    middles = [(t.left + t.right) / 2 for t in seen if t.left is not None and t.right is not None]
    assert len(seen) >= 3
    assert np.ptp(middles) > 20
    followed = [renderer.render(scene).truth for scene in replace(lane, follow=True).scenes()]
    assert all(t.left is not None for t in followed)


# Pictures


@pytest.mark.parametrize("viewpoint", VIEWPOINTS)
def test_pictures_show_the_asked_viewpoint(renderer: Renderer, viewpoint: str) -> None:
    for body in (0, 1, 2):
        truth = renderer.render(portrait(WORLD, WORLD.vehicle(body, 0, 0), 11, viewpoint=viewpoint)).truth
        assert truth.viewpoint == viewpoint
    # Lamps may wrap around a corner, but the near end shows more of its own.
    front, rear = truth.pixels[Part.HEAD_LAMP] + truth.pixels[Part.GRILLE], truth.pixels[Part.TAIL_LAMP]
    assert not viewpoint.startswith("front") or front > 2 * rear
    assert not viewpoint.startswith("rear") or rear > 2 * front


def test_mask_box_and_counts_agree(renderer: Renderer) -> None:
    for i in range(0, len(WORLD.models), 3):
        sample = renderer.render(portrait(WORLD, WORLD.vehicle(i, 1, i), i))
        mask, truth = sample.mask, sample.truth
        assert sample.image.shape == (96, 96, 3)
        assert sample.image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= set(Part)
        assert truth.pixels == tuple((mask == part).sum() for part in Part)
        ys, xs = np.nonzero(mask)
        assert (truth.left, truth.top, truth.right, truth.bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert min(truth.pixels[Part.BODY], truth.pixels[Part.WHEEL], truth.pixels[Part.GLASS]) > 10
        assert 0.1 < (mask > 0).mean() < 0.95


def test_the_vehicle_changes_the_picture_only_where_the_mask_says_so(renderer: Renderer) -> None:
    scene = portrait(WORLD, WORLD.vehicle(0, 0, 0), 7, light="noon")
    other = replace(scene, vehicle=replace(scene.vehicle, paint=(0.9, 0.1, 0.1)))
    a, b = renderer.render(scene), renderer.render(other)
    assert np.array_equal(a.mask, b.mask)
    changed = (a.image != b.image).any(-1)
    grown = np.zeros_like(changed)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            grown |= np.roll(a.mask > 0, (dy, dx), (0, 1))
    assert not (changed & ~grown).any()
    # Door gaps and sills belong to the body and stay dark.
    assert changed[a.mask == Part.BODY].mean() > 0.9


def test_same_scene_same_bytes_in_any_order(renderer: Renderer) -> None:
    scenes = [portrait(WORLD, WORLD.vehicle(m, 0, 1), m) for m in range(4)]
    first = [renderer.render(s) for s in scenes]
    again = [renderer.render(s) for s in reversed(scenes)][::-1]
    with Renderer(96) as other:
        fresh = [other.render(s) for s in scenes]
    for a, b, c in zip(first, again, fresh, strict=True):
        assert a.image.tobytes() == b.image.tobytes() == c.image.tobytes()
        assert a.mask.tobytes() == b.mask.tobytes() == c.mask.tobytes()
        assert a.truth == b.truth == c.truth


def test_what_is_given_leaves_the_rest_of_the_scene() -> None:
    vehicle = WORLD.vehicle(3, 0, 2)
    scene = portrait(WORLD, vehicle, 8)
    assert portrait(WORLD, vehicle, 8, light=scene.light.name, camera=scene.camera) == scene
    darker = portrait(WORLD, vehicle, 8, light="dusk")
    assert replace(darker, light=scene.light) == scene


def test_the_truth_table_is_enough_to_draw_again(renderer: Renderer, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", world=WORLD, per_class={"train": 1}, size=96, viewpoints=["rear", "left"])
    rows = pq.read_table(tmp_path / "set" / "truth.parquet").to_pylist()
    assert {row["viewpoint"] for row in rows} == {"rear", "left"}
    for row in rows[::11]:
        model, year, number = (int(part) for part in row["vehicle_id"][1:].split("-"))
        scene = portrait(WORLD, WORLD.vehicle(model, year, number), row["seed"], viewpoint=row["viewpoint"])
        with Image.open(tmp_path / "set" / row["path"]) as image:
            assert np.array_equal(np.array(image), renderer.render(scene).image)


def test_years_and_makes_can_be_told_apart(renderer: Renderer) -> None:
    vehicle = WORLD.vehicle(0, 0, 0)
    scene = portrait(WORLD, vehicle, 5, viewpoint="front")
    later = replace(scene, vehicle=replace(vehicle, trim=vehicle.model.trims[1]))
    difference = renderer.render(scene).image.astype(int) - renderer.render(later).image
    assert 10 < (np.abs(difference).max(-1) > 12).sum() < 0.25 * 96 * 96


def test_frames_need_not_be_square() -> None:
    with Renderer((48, 80)) as wide:
        sample = wide.render(portrait(WORLD, WORLD.vehicle(0, 0, 0), 1))
    assert sample.image.shape == (48, 80, 3)
    assert sample.mask.shape == (48, 80)
    assert sample.truth.right is not None


def test_an_empty_frame_has_no_box(renderer: Renderer) -> None:
    scene = portrait(WORLD, WORLD.vehicle(0, 0, 0), 1)
    away = replace(scene, view=replace(scene.view, aim=(2 * scene.view.eye[0], 2 * scene.view.eye[1], 1.0), field=30.0))
    truth = renderer.render(away).truth
    assert (truth.left, truth.top, truth.right, truth.bottom) == (None,) * 4
    assert truth.pixels[Part.BACKGROUND] == 96 * 96


def test_rendering_is_silent() -> None:
    code = "from vmmr.data.rendered import World, draw; draw(World(makes=1, models_per_make=1), 1, 32)"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


@pytest.mark.parametrize("size", [8, 4096, (64, 8)])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="size out of range"):
        Renderer(size)


def test_unknown_viewpoints_and_lights_are_refused() -> None:
    vehicle = WORLD.vehicle(0, 0, 0)
    with pytest.raises(ConfigError, match="unknown viewpoint"):
        portrait(WORLD, vehicle, 0, viewpoint="top")
    with pytest.raises(ConfigError, match="unknown light"):
        portrait(WORLD, vehicle, 0, light="midnight")
    with pytest.raises(ConfigError, match="unknown light"):
        Trajectory.passing(WORLD, vehicle, WORLD.fixed_cameras[0], 0, light="midnight")
    with pytest.raises(ConfigError, match="trajectory out of range"):
        Trajectory.passing(WORLD, vehicle, WORLD.fixed_cameras[0], 0, frames=0)


def test_a_closed_renderer_says_so() -> None:
    with Renderer(32) as closed:
        pass
    with pytest.raises(ConfigError, match="closed"):
        closed.render(portrait(WORLD, WORLD.vehicle(0, 0, 0), 0))


# In bulk


def test_draw_labels_its_pictures() -> None:
    world = World(seed=2, makes=2, models_per_make=2)
    drawn = draw(world, 10, size=48, seed=4)
    assert drawn["image"].shape == (10, 48, 48, 3)
    assert drawn["label"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert drawn["model"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    assert drawn["make"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    again = draw(world, 10, size=48, seed=4)
    assert all(np.array_equal(drawn[key], again[key]) for key in drawn)
    assert not np.array_equal(drawn["image"], draw(world, 10, size=48, seed=5)["image"])
    left, top, right, bottom = drawn["box"][3]
    ys, xs = np.nonzero(drawn["mask"][3])
    assert (left, top, right, bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_written_folder_is_complete_and_leaks_nothing(tmp_path: Path) -> None:
    world = World(seed=1, makes=2, models_per_make=2, years=2, fleet=6)
    manifest = write_dataset(tmp_path / "set", world=world, per_class={"train": 3, "test": 2}, size=48, masks=True)
    assert manifest == tmp_path / "set" / "manifest.csv"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == MANIFEST_COLUMNS
    assert len(rows) == 4 * 2 * 5
    assert {(r["make"], r["model"], r["year"]) for r in rows if r["split"] == "test"} == {
        (m.make, m.name, str(t.year)) for m in world.models for t in m.trims
    }
    train, test = ({r["vehicle_id"] for r in rows if r["split"] == s} for s in ("train", "test"))
    assert train
    assert test
    assert not train & test
    assert all(r["group"] == r["vehicle_id"] for r in rows)
    for row in rows[::7]:
        with Image.open(tmp_path / "set" / "masks" / Path(row["path"]).relative_to("images")) as image:
            mask = np.array(image)
        ys, xs = np.nonzero(mask)
        box = tuple(int(row[k]) for k in ("left", "top", "right", "bottom"))
        assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        with Image.open(tmp_path / "set" / row["path"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 48))
    truth = pq.read_table(tmp_path / "set" / "truth.parquet")
    assert set(MANIFEST_COLUMNS) <= set(truth.column_names)
    assert {f"pixels_{p.name.lower()}" for p in Part} <= set(truth.column_names)
    assert truth["path"].to_pylist() == [r["path"] for r in rows]
    assert not list(tmp_path.glob(".*partial*"))


def test_same_seed_same_folder(tmp_path: Path) -> None:
    world = World(makes=1, models_per_make=2, years=1, fleet=3)
    for name in ("a", "b"):
        write_dataset(tmp_path / name, world=world, per_class={"train": 2, "val": 1, "test": 1}, size=32, quality=95)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 2 * 4 + 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_wrong_requests_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match="not empty"):
        write_dataset(tmp_path / "full")
    with pytest.raises(ConfigError, match="per_class"):
        write_dataset(tmp_path / "new", per_class={"train": 0})
    with pytest.raises(ConfigError, match="fewer vehicles than splits"):
        write_dataset(tmp_path / "new", world=World(fleet=1))
    with pytest.raises(ConfigError, match="quality"):
        write_dataset(tmp_path / "new", quality=101)
    with pytest.raises(ConfigError, match="out of range"):
        write_dataset(tmp_path / "new", size=4)
    with pytest.raises(ConfigError, match="viewpoints"):
        write_dataset(tmp_path / "new", viewpoints=["top"])
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
