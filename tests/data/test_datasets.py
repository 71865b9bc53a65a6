"""The readers of published data sets, on the authors' annotation files and on small trees of the same make."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from vmmr.data.datasets import (
    DATASETS,
    MARKS,
    bit_vehicle,
    class_folders,
    compcars_surveillance,
    compcars_web,
    stanford_cars,
    vidmmr,
    vtid2,
)
from vmmr.data.datasets.annotations import read_mat
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError

NAMES = [
    "Audi A4 Sedan 2008",
    "AM General Hummer SUV 2000",
    "Ram C/V Cargo Van Minivan 2012",
    "smart fortwo Coupe 2012",
]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def cell(values: list[Any]) -> np.ndarray:
    """A 1 x n MATLAB cell; an empty text becomes an empty cell."""
    array = np.empty((1, len(values)), dtype=object)
    for i, value in enumerate(values):
        array[0, i] = np.zeros((0, 0)) if value == "" else value
    return array


def struct(rows: list[dict[str, Any]]) -> np.ndarray:
    """A 1 x n MATLAB struct array."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        for name, value in row.items():
            array[0, i][name] = value
    return array


def save(path: Path, **variables: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)


def annotation(name: str, number: int | None, box: tuple[int, int, int, int]) -> dict[str, Any]:
    # uint8 wherever it fits, and the order of the real files: x1, y1, x2, y2, class, fname.
    row: dict[str, Any] = {
        f"bbox_{side}": np.uint8(value) if value < 256 else np.uint16(value)
        for side, value in zip(("x1", "y1", "x2", "y2"), box, strict=True)
    }
    return row | ({} if number is None else {"class": np.uint8(number)}) | {"fname": name}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Stanford Cars as the authors' archives lay it out: two training and two test images of four classes."""
    save(tmp_path / "devkit/cars_meta.mat", class_names=cell(NAMES))
    train = [annotation("00001.jpg", 2, (1, 1, 200, 255)), annotation("00002.jpg", 3, (39, 116, 569, 375))]
    test = [annotation("00001.jpg", 1, (30, 52, 246, 147)), annotation("00002.jpg", 4, (2, 3, 4, 5))]
    save(tmp_path / "devkit/cars_train_annos.mat", annotations=struct(train))
    save(tmp_path / "cars_test_annos_withlabels.mat", annotations=struct(test))
    touch(tmp_path, *(f"cars_{split}/0000{i}.jpg" for split in ("train", "test") for i in (1, 2)))
    return tmp_path


def names_of(manifest: Manifest) -> list[str]:
    return [manifest.class_names[label] for label in manifest.labels]


def test_the_registry() -> None:
    assert list(DATASETS) == sorted(DATASETS)
    assert set(MARKS.values()) < set(DATASETS)


# --- Stanford Cars


def test_stanford_devkit(devkit: Path) -> None:
    for manifest in (stanford_cars.read(devkit, strict=True), Manifest.load(devkit)):
        assert list(manifest.class_names) == NAMES
        assert manifest.labels.tolist() == [1, 2, 0, 3]
        assert manifest.boxes.tolist() == [[0, 0, 200, 255], [38, 115, 569, 375], [29, 51, 246, 147], [1, 2, 4, 5]]
        assert manifest.splits.tolist() == ["train", "train", "test", "test"]
        assert all(Path(path).is_file() for path in manifest.path_list())


def test_stanford_as_torchvision_lays_it_out(devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    devkit.rename(root / "stanford_cars")
    assert stanford_cars.read(root, strict=True).labels.tolist() == [1, 2, 0, 3]


def test_stanford_with_missing_images(devkit: Path, caplog: pytest.LogCaptureFixture) -> None:
    (devkit / "cars_train/00002.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        assert stanford_cars.read(devkit).labels.tolist() == [1, 0, 3]
    assert "1 of 4 images are missing" in caplog.text
    with pytest.raises(ManifestError, match="1 of 4 images of Stanford Cars are missing"):
        stanford_cars.read(devkit, strict=True)


def test_stanford_without_test_labels(devkit: Path, caplog: pytest.LogCaptureFixture) -> None:
    (devkit / "cars_test_annos_withlabels.mat").unlink()
    assert stanford_cars.read(devkit).labels.tolist() == [1, 2]
    assert "left out" in caplog.text
    with pytest.raises(ManifestError, match="test images"):
        stanford_cars.read(devkit, strict=True)


def test_stanford_single_archive(tmp_path: Path) -> None:
    rows = [
        {"relative_im_path": "car_ims/000001.jpg"} | annotation("", 4, (112, 7, 853, 717)) | {"test": np.uint8(0)},
        {"relative_im_path": "car_ims/000002.jpg"} | annotation("", 3, (1, 1, 2, 2)) | {"test": np.uint8(1)},
    ]
    save(tmp_path / "cars_annos.mat", annotations=struct(rows), class_names=cell(NAMES))
    touch(tmp_path, "car_ims/000001.jpg", "car_ims/000002.jpg")
    manifest = Manifest.load(tmp_path)
    assert manifest.splits.tolist() == ["train", "test"]
    assert manifest.labels.tolist() == [3, 2]
    assert manifest.boxes[0].tolist() == [111, 6, 853, 717]


def test_stanford_numbered_folders(devkit: Path) -> None:
    root = devkit / "export"
    touch(root, "train/class_003/a.jpg", "test/class_001/b.JPG")
    manifest = stanford_cars.read(root)  # finds the devkit beside it
    assert names_of(manifest) == [NAMES[0], NAMES[2]]
    assert manifest.labels.tolist() == [0, 2]
    touch(root, "train/class_005/a.jpg")
    with pytest.raises(ManifestError, match=r"class_005.*up to 4"):
        stanford_cars.read(root)


def test_stanford_numbers_without_names_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/class_001/a.jpg")
    with pytest.raises(ManifestError, match=r"cars_meta\.mat"):
        stanford_cars.read(tmp_path)


@pytest.mark.parametrize("spelling", ["Ram C-V", "Ram C_V", "Ram C V", "Ram CV", "Ram C:V"])
def test_stanford_folders_by_name(tmp_path: Path, spelling: str) -> None:
    inner = tmp_path / "car_data/car_data"
    folders = [NAMES[1], f"{spelling} Cargo Van Minivan 2012", NAMES[0], NAMES[3]]
    touch(inner, *(f"{split}/{name}/1.jpg" for split in ("train", "test") for name in folders))
    sorted_names = ["AM General Hummer SUV 2000", "Audi A4 Sedan 2008", NAMES[2], NAMES[3]]
    assert sorted(set(names_of(Manifest.load(tmp_path)))) == sorted_names
    save(inner / "cars_meta.mat", class_names=cell(NAMES))
    manifest = stanford_cars.read(tmp_path)
    assert list(manifest.class_names) == NAMES
    # Sorted by folder as ImageFolder sorts, labelled as the devkit labels.
    assert manifest.split("test").labels.tolist() == [1, 0, 2, 3]


def test_stanford_refuses_strange_folders(devkit: Path) -> None:
    root = devkit / "export"
    touch(root, "train/Fiat Punto 1999/a.jpg")
    with pytest.raises(ManifestError, match="Fiat Punto"):
        stanford_cars.read(root)
    with pytest.raises(ManifestError, match="no Stanford Cars"):
        stanford_cars.read(devkit / "cars_train")


def test_stanford_real_annotations(shared: Path) -> None:
    manifest = stanford_cars.listed(shared / "data/stanford-cars-devkit", strict=True)
    assert np.unique(manifest.splits, return_counts=True)[1].tolist() == [8041, 8144]
    assert (len(manifest.class_names), len(manifest.taxonomy.makes)) == (196, 49)
    assert manifest.class_names[0] == "AM General Hummer SUV 2000"
    assert manifest.class_names[195] == "smart fortwo Convertible 2012"
    assert (manifest.labels[0], manifest.boxes[0].tolist()) == (13, [38, 115, 569, 375])
    assert (manifest.labels[8144], manifest.boxes[8144].tolist()) == (180, [29, 51, 246, 147])
    assert manifest.path(8144) == shared / "data/stanford-cars-devkit/cars_test/00001.jpg"
    per_class = np.stack([np.bincount(manifest.split(s).labels, minlength=196) for s in ("train", "test")])
    assert (per_class.min(), per_class.max()) == (24, 68)
    per_make = np.bincount(manifest.taxonomy.make_of[manifest.split("train").labels])
    assert per_make[manifest.taxonomy.makes.index("Chevrolet")] == per_make.max() == 905
    assert manifest.boxes.min() == 0


def test_stanford_real_folders(shared: Path) -> None:
    root = shared / "data/stanford-cars-160"
    manifest = stanford_cars.read(root, strict=True)
    official = stanford_cars.listed(shared / "data/stanford-cars-devkit")
    assert manifest.taxonomy == official.taxonomy
    assert np.unique(manifest.splits, return_counts=True)[1].tolist() == [4064, 8144]
    # The file names kept their numbers, so every label can be held against the authors' file.
    rows = zip(official.splits, official.path_list(), official.labels, strict=True)
    truth = {(split, Path(path).name): label for split, path, label in rows}
    for split, path, label in zip(manifest.splits, manifest.path_list(), manifest.labels, strict=True):
        assert truth[split, Path(path).name] == label
    table = Manifest.load(root)  # by its labels.csv: the same classes, sorted
    assert set(table.class_names) == set(manifest.class_names)
    assert dict(zip(table.path_list(), names_of(table), strict=True)) == dict(
        zip(manifest.path_list(), names_of(manifest), strict=True)
    )


# --- CompCars


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """CompCars, web part: sparse ids, an empty model name, a year that is none, viewpoint -1."""
    root = tmp_path / "data"
    makes = [""] * 77 + ["BWM"] + [""] * 84 + ["Audi"]
    models = [""] * 2004
    models[3], models[1999] = "Audi A4", "X5"
    save(root / "misc/make_model_name.mat", make_names=cell(makes).T, model_names=cell(models).T)
    save(root / "misc/car_type.mat", types=cell(["MPV", "SUV", "sedan"]))
    (root / "misc/attributes.txt").write_text(
        "model_id max_speed displacement door_number seat_number type\n"
        "4 200 1.8 4 5 3\n2000 0 3.0 5 5 0\n17 1 1 1 1 2\n"
    )
    lists = {"train": ["78/2000/2011/a.jpg", "163/4/unknown/b.jpg"], "test": ["163/4/2012/c.jpg", "163/17/2012/d.jpg"]}
    views = {"a": "1\n1\n1 1 200 255\n", "b": "-1\n1\n11 21 300 400\n", "c": "4\n1\n2 3 4 5", "d": "5\n1\n1 1 9 9\n"}
    for split, lines in lists.items():
        place = root / f"train_test_split/classification/{split}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(lines) + "\n")
        for line in lines:
            touch(root, f"image/{line}", f"label/{line[:-4]}.txt")
            (root / f"label/{line[:-4]}.txt").write_text(views[Path(line).stem])
    return tmp_path


def test_compcars_web(web: Path) -> None:
    manifest = compcars_web.read(web, strict=True)
    # Sorted model ids of the training list first (4, 2000), what only the test list has (17) last.
    assert manifest.class_names == ("Audi A4", "BWM X5", "Audi model 17")
    assert manifest.labels.tolist() == [1, 0, 0, 2]
    assert [c.body for c in manifest.taxonomy.classes] == ["sedan", None, "SUV"]
    assert manifest.column("viewpoint").tolist() == ["front", "", "front-side", "rear-side"]
    assert manifest.boxes.tolist() == [[0, 0, 200, 255], [10, 20, 300, 400], [1, 2, 4, 5], [0, 0, 9, 9]]
    assert Manifest.load(web / "data").labels.tolist() == [1, 0, 0, 2]


def test_compcars_web_by_year(web: Path) -> None:
    manifest = compcars_web.read(web, years=True)
    assert manifest.class_names == ("Audi A4", "BWM X5 2011", "Audi A4 2012", "Audi model 17 2012")
    assert manifest.labels.tolist() == [1, 0, 2, 3]


def test_compcars_web_with_gaps(web: Path, caplog: pytest.LogCaptureFixture) -> None:
    (web / "data/image/163/4/2012/c.jpg").unlink()
    (web / "data/label/163/4/unknown/b.txt").unlink()
    manifest = compcars_web.read(web)
    assert manifest.labels.tolist() == [1, 0, 2]
    assert manifest.boxes.tolist()[1] == [-1] * 4
    assert "1 of 4" in caplog.text
    with pytest.raises(ManifestError, match="annotation file"):
        compcars_web.read(web, strict=True)


@pytest.mark.parametrize("text", ["", "1\n1\n", "7\n1\n1 1 2 2", "1\n1\n1 1 2", "x\n1\n1 1 2 2", "1\n1\n1 1 2 2 3"])
def test_compcars_web_damaged_label(web: Path, text: str) -> None:
    (web / "data/label/163/4/2012/c.txt").write_text(text)
    with pytest.raises(ManifestError, match=r"c\.txt is no label file"):
        compcars_web.read(web)


def test_compcars_surveillance(tmp_path: Path) -> None:
    table = np.empty((3, 3), dtype=object)
    table[:] = [["Audi", "Audi Q5", np.uint16(5)], ["Audi", "Q5", np.uint16(6)], ["Hyundai ", np.zeros((0, 0)), 9]]
    root = tmp_path / "sv_data"
    save(root / "sv_make_model_name.mat", sv_make_model_name=table)
    (root / "train_surveillance.txt").write_text("3/a.jpg\n1/b.jpg\n")
    (root / "test_surveillance.txt").write_text("2/c.jpg\n\n")
    touch(root, "image/3/a.jpg", "image/1/b.jpg", "image/2/c.jpg")
    manifest = compcars_surveillance.read(tmp_path, strict=True)
    assert manifest.class_names == ("Audi Q5", "Audi Q5 (2)", "Hyundai model 3")
    assert manifest.labels.tolist() == [2, 0, 1]
    assert manifest.splits.tolist() == ["train", "train", "test"]
    (root / "test_surveillance.txt").write_text("4/c.jpg\n")
    with pytest.raises(ManifestError, match=r"1\.\.3.*4/c"):
        compcars_surveillance.read(tmp_path)


def test_compcars_surveillance_real_lists(shared: Path) -> None:
    root = shared / "data/compcars-sv"
    manifest = compcars_surveillance.listed(root)
    assert (len(manifest.split("train")), len(manifest.split("test"))) == (31_148, 13_333)
    assert len(manifest.class_names) == len(set(manifest.labels.tolist())) == 281
    assert len(manifest.taxonomy.makes) == 68
    assert manifest.class_names[:3] == ("Besturn X80", "Hafei Lubao", "Audi Q5")
    assert manifest.path(0) == root / "image/1/431e8997607115.jpg"
    numbers = [int(Path(path).parent.name) for path in manifest.path_list()]
    assert manifest.labels.tolist() == [number - 1 for number in numbers]
    with pytest.raises(ManifestError, match="44481 of 44481 images"):
        compcars_surveillance.read(root)


# --- BIT-Vehicle, VTID2, VIDMMR


@pytest.mark.parametrize("inner", ["", "images/"])
def test_bit_vehicle(tmp_path: Path, inner: str) -> None:
    def vehicle(box: tuple[int, int, int, int], category: str) -> dict[str, Any]:
        sides = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        return {k: np.uint8(v) if v < 256 else np.uint16(v) for k, v in sides.items()} | {"category": category}

    two = struct([vehicle((1, 1, 255, 255), "Bus"), vehicle((300, 20, 900, 800), "SUV")])
    one = struct([vehicle((5, 6, 7, 8), "Sedan")])
    rows = [
        {"name": "vehicle_0000001.jpg", "height": 1080, "width": 1920, "Vehicles": two, "nvehicles": np.uint8(2)},
        {"name": "vehicle_0000002.jpg", "height": 1200, "width": 1600, "Vehicles": one, "nvehicles": np.uint8(1)},
    ]
    save(tmp_path / "VehicleInfo.mat", VehicleInfo=struct(rows).T)
    touch(tmp_path, *(f"{inner}{row['name']}" for row in rows))
    manifest = bit_vehicle.read(tmp_path, strict=True)
    assert manifest.boxes.tolist() == [[0, 0, 255, 255], [299, 19, 900, 800], [4, 5, 7, 8]]
    assert names_of(manifest) == ["Bus", "SUV", "Sedan"]
    assert manifest.taxonomy.makes == ("",)
    assert manifest.column("group").tolist() == ["vehicle_0000001.jpg"] * 2 + ["vehicle_0000002.jpg"]
    assert Manifest.load(tmp_path).labels.tolist() == manifest.labels.tolist()


def test_bit_vehicle_with_another_file(tmp_path: Path) -> None:
    save(tmp_path / "VehicleInfo.mat", Else=cell(["x"]))
    with pytest.raises(ManifestError, match="no field 'VehicleInfo'"):
        bit_vehicle.read(tmp_path)
    save(tmp_path / "VehicleInfo.mat", VehicleInfo=cell(["x", "y"]))
    with pytest.raises(ManifestError, match="no field 'name'"):
        bit_vehicle.read(tmp_path)


def test_vtid2(tmp_path: Path) -> None:
    root = tmp_path / "Vehicle Type Image Dataset (Version 2) VTID2"
    touch(root, "Hatchback/1.jpg", "Other/1.jpeg", "Pickup/1.jpg", "SUV/1.jpg", "Seden/1.jpg", "Seden/2.jpg")
    manifest = vtid2.read(tmp_path, strict=True)
    assert names_of(manifest) == ["Hatchback", "Other", "Pickup", "SUV", "Sedan", "Sedan"]
    assert manifest.column("body").tolist() == ["Hatchback", "", "Pickup", "SUV", "Sedan", "Sedan"]
    touch(root, "Bus/1.jpg")
    assert len(vtid2.read(root)) == 6
    with pytest.raises(ManifestError, match="five folders"):
        vtid2.read(root, strict=True)
    with pytest.raises(ManifestError, match="no VTID2"):
        vtid2.read(tmp_path / "nothing")


def test_vidmmr(tmp_path: Path) -> None:
    touch(tmp_path, "VIDMMR/Toyota Corolla/1.jpg", "VIDMMR/Suzuki Alto/1.png", "__MACOSX/x/._1.jpg")
    assert names_of(vidmmr.read(tmp_path, strict=True)) == ["Suzuki Alto", "Toyota Corolla"]


# --- Class folders


def test_class_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "023_Audi_S4_Sedan_2007/1.jpg",
        "Audi__S4 Sedan__2008/1.JPEG",
        "VW/Golf/2012/1.webp",
        "VW/Golf/unknown/1.png",
        "VW/Polo/1.png",
        "Land Rover LR2 SUV 2012/1.jpg",
        "sports_car/1.jpg",
        "sports_car/notes.txt",
        ".hidden/1.jpg",
        "stray.jpg",
    )
    manifest = Manifest.load(tmp_path)
    found = {Path(p).parent.name: c for p, c in zip(manifest.path_list(), names_of(manifest), strict=True)}
    assert found == {
        "023_Audi_S4_Sedan_2007": "Audi S4 Sedan 2007",
        "Audi__S4 Sedan__2008": "Audi S4 Sedan 2008",
        "2012": "VW Golf 2012",
        "unknown": "VW Golf",
        "Polo": "VW Polo",
        "Land Rover LR2 SUV 2012": "Land Rover LR2 SUV 2012",
        "sports_car": "sports_car",
    }
    assert manifest.taxonomy.makes == ("", "Audi", "Land Rover", "VW")
    with pytest.raises(ManifestError, match=r"1, such as stray\.jpg"):
        class_folders.read(tmp_path, strict=True)
    manifest.write(tmp_path / "manifest.csv")
    assert Manifest.load(tmp_path).table.equals(manifest.table)


def test_class_folders_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "valid/a/2.jpg", "Test/b/3.jpg")
    manifest = class_folders.read(tmp_path)
    assert dict(zip(names_of(manifest), manifest.splits.tolist(), strict=True)) == {"a": "val", "b": "test"}
    assert sorted(manifest.splits.tolist()) == ["test", "train", "val"]
    touch(tmp_path, "other/1.jpg")
    everything = class_folders.read(tmp_path)  # beside other folders, "train" is a class like any
    assert set(everything.splits.tolist()) == {""}
    assert set(names_of(everything)) == {"train a", "valid a", "Test b", "other"}


def test_class_folders_refusals(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        class_folders.read(tmp_path / "nothing")
    with pytest.raises(ManifestError, match="no images"):
        class_folders.read(tmp_path)
    touch(tmp_path, "1.jpg")
    with pytest.raises(ManifestError, match="outside"):
        class_folders.read(tmp_path)
    touch(tmp_path, "a/b/c/d/1.jpg")
    with pytest.raises(ManifestError, match="a/b/c/d"):
        class_folders.read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 200, b"MATLAB 7.3 MAT-file" + b" " * 97 + b"\0" * 8 + b"\0\2IM" + b"x" * 99]
)
def test_what_is_no_matlab_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ManifestError, match="MATLAB"):
        read_mat(tmp_path / "a.mat")


def test_a_matlab_file_cut_anywhere(tmp_path: Path) -> None:
    save(tmp_path / "a.mat", annotations=struct([annotation("a.jpg", 1, (1, 2, 3, 4))]), class_names=cell(NAMES))
    content = (tmp_path / "a.mat").read_bytes()
    refused = 0
    for end in range(0, len(content), 7):
        (tmp_path / "b.mat").write_bytes(content[:end])
        try:
            read_mat(tmp_path / "b.mat")
        except ManifestError as error:
            assert "b.mat" in str(error)  # noqa: PT017
            refused += 1
    assert refused > len(content) / 14  # a cut between two variables leaves a smaller whole file
