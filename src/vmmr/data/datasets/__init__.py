"""One reader a data set: `read(root, *, strict=False) -> Manifest`. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

from vmmr.data.datasets import (
    bit_vehicle,
    class_folders,
    compcars_surveillance,
    compcars_web,
    stanford_cars,
    vidmmr,
    vtid2,
)
from vmmr.data.manifest import Manifest

__all__ = ["DATASETS", "MARKS"]

DATASETS: dict[str, Callable[..., Manifest]] = {
    "bit_vehicle": bit_vehicle.read,
    "class_folders": class_folders.read,
    "compcars_surveillance": compcars_surveillance.read,
    "compcars_web": compcars_web.read,
    "stanford_cars": stanford_cars.read,
    "vidmmr": vidmmr.read,
    "vtid2": vtid2.read,
}

MARKS: dict[str, str] = {
    "VehicleInfo.mat": "bit_vehicle",
    "car_data": "stanford_cars",
    "car_ims": "stanford_cars",
    "cars_train": "stanford_cars",
    "misc/make_model_name.mat": "compcars_web",
    "sv_make_model_name.mat": "compcars_surveillance",
    "Seden": "vtid2",
}
"""What a folder holds -> the data set it must be: `Manifest.load` looks here before it takes folders for classes."""
