"""A study: settings crossed in one YAML file, every run trained once, all of them analysed together. `vmmr study`.

A run is a folder named by a hash of its settings and images, so that what is finished stays finished, what was killed
goes on, and settings that mean the same are trained once. Validation images select, with the first seed; test images
are shown only to what was selected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

import vmmr
from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.errors import ConfigError
from vmmr.files import alone_in
from vmmr.recipes import recipe
from vmmr.workers import Job, do_all, start_workers

__all__ = ["Setting", "Study", "expand", "read_study", "run_key", "run_study"]

_KEYS = ("title", "data", "out", "recipe", "base", "rows", "grid", "seeds", "conditions", "test")
_OF_THE_STUDY = ("seed", "val_fraction", "near_duplicates")
_OF_LEVELS = ("hierarchy", "feed", "stop_gradient", "teacher_forcing", "level_weights", "marginal_weight")
_OF_BALANCE = ("balancer", "balancer_options", "balance_over", "measure_every")

Choices = Mapping[str, Sequence[Mapping[str, Any]]]
"""The choices of an axis by name, each with its candidates: settings of which validation chooses one."""


@dataclass(frozen=True)
class Study:
    """What a study file says, see docs/study.md.

    recipe and base: the settings that all runs start from, as changes of a recipe. rows: changes by name. grid: axes
    that are crossed with each row. seeds: one training each. conditions: what is evaluated; the first one selects.
    test: look at the test images too, with what was selected.
    """

    title: str
    data: Path
    out: Path
    rows: Mapping[str, Mapping[str, Any]]
    recipe: str = "plain"
    base: Mapping[str, Any] | None = None
    grid: Mapping[str, Choices] | None = None
    seeds: tuple[int, ...] = (0,)
    conditions: tuple[str, ...] = ("clean",)
    test: bool = False


@dataclass(frozen=True)
class Setting:
    """One cell of a study.

    choices: choice by axis. shared: those of them that rows of one level have too, which tell what it is compared with.
    candidates: settings, their seed aside, of which validation chooses; most often one.
    """

    row: str
    choices: Mapping[str, str]
    shared: Mapping[str, str]
    candidates: tuple[TrainConfig, ...]

    @property
    def name(self) -> str:
        """Row and choices in words."""
        return ", ".join([self.row, *self.choices.values()])


def read_study(path: Path, **given: Any) -> Study:
    """A study from its YAML file. given: data, out, weights or test of the command line, which come first; None does
    not count. Raises ConfigError that names the key."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the study {path.name}", got=error, do="see docs/study.md") from error
    said = dict(_mapping(said, path.name))
    weights = given.pop("weights", None)
    said |= {key: value for key, value in given.items() if value is not None}
    for key in said:
        if key not in _KEYS:
            raise ConfigError("a study has no such key", got=repr(key), do=f"use some of {', '.join(_KEYS)}")
    for key in ("data", "out", "rows"):
        if not said.get(key):
            do = "add it" if key == "rows" else f"add it, or pass --{key}"
            raise ConfigError(f"the study lacks {key}", got=path.name, do=do)
    base = _settings(said.get("base") or {}, "base") | ({"weights": str(weights)} if weights is not None else {})
    rows = {str(k): _settings(v or {}, f"rows.{k}") for k, v in _mapping(said["rows"], "rows").items()}
    grid = {str(k): _axis(str(k), v) for k, v in _mapping(said.get("grid") or {}, "grid").items()}
    seeds, conditions = said.get("seeds", [0]), said.get("conditions", ["clean"])
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int or s < 0 for s in seeds):
        raise ConfigError("seeds is a list of numbers, 0 or more", got=seeds)
    if not isinstance(conditions, list) or not conditions or not all(isinstance(c, str) for c in conditions):
        raise ConfigError("conditions is a list of names", got=conditions, do="for example [clean, fog@3]")
    if not isinstance(said.get("test", False), bool):
        raise ConfigError("test is true or false", got=said["test"])
    return Study(
        title=str(said.get("title", path.stem)),
        data=Path(said["data"]),
        out=Path(said["out"]),
        rows=rows,
        recipe=str(said.get("recipe", "plain")),
        base=base,
        grid=grid,
        seeds=tuple(dict.fromkeys(seeds)),
        conditions=tuple(dict.fromkeys(conditions)),
        test=said.get("test", False),
    )


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is a mapping of names", got=repr(value), do="see docs/study.md")
    return value


def _settings(value: Any, where: str) -> dict[str, Any]:
    """Changes of TrainConfig, of the right names and types."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    known = {field.name for field in fields(TrainConfig)}
    found = {}
    for name, said in _mapping(value, where).items():
        if name not in known:
            raise ConfigError(f"{where}: no such setting", got=repr(name), do="see `vmmr train --help`")
        if name in _OF_THE_STUDY and (where != "base" or name == "seed"):
            do = "name seeds" if name == "seed" else "set it in base"
            raise ConfigError(f"{where}: {name} is that of the whole study", got=said, do=do)
        try:
            found[name] = parser.parse_object({name: said})[name]
        except ArgumentError as error:
            raise ConfigError(f"{where}.{name} has a wrong value", got=repr(said), do=str(error).strip()) from error
    return found


def _axis(axis: str, value: Any) -> Choices:
    """A list of values of the setting that the axis is called, or choices by name, each with settings or a list."""
    where = f"grid.{axis}"
    if isinstance(value, list):
        value = {_shown(said): {axis: said} for said in value}
    found = {}
    for choice, said in _mapping(value, where).items():
        candidates = said if isinstance(said, list) else [said]
        found[str(choice)] = [_settings(candidate or {}, f"{where}.{choice}") for candidate in candidates]
        if not candidates:
            raise ConfigError(f"{where}.{choice} has no candidate", do="name settings, {} for none")
    if not found:
        raise ConfigError(f"{where} has no choice", do="name some, or leave it out")
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def expand(study: Study) -> list[Setting]:
    """Every row crossed with every axis. What stands between levels says nothing of a row of one level: there these
    settings are dropped, and with them the axes that hold nothing else.

    Raises ConfigError for a key that is set twice, and for settings that contradict each other, naming the cell.
    """
    start, base, grid = recipe(study.recipe), dict(study.base or {}), dict(study.grid or {})
    changed = {axis: {k for found in choices.values() for c in found for k in c} for axis, choices in grid.items()}
    settings = []
    for row, changes in study.rows.items():
        said = start.to_dict() | base | dict(changes)
        method, levels = said["method"], said["levels"]
        if method == "pmd" or not levels:
            what = "a study has no teachers" if method == "pmd" else "a row needs its levels"
            raise ConfigError(f"rows.{row}: {what}", got=f"method={method}, levels={levels}")
        taken = dict.fromkeys(changes, f"rows.{row}")
        for axis, keys in changed.items():
            for key in sorted(keys):
                if key in taken:
                    raise ConfigError(
                        f"{key} is set twice", got=f"{taken[key]} and grid.{axis}", do="leave one of them"
                    )
                taken[key] = f"grid.{axis}"
        between = (*_OF_LEVELS, *(_OF_BALANCE if method == "plain" else ()))
        both = [axis for axis in grid if changed[axis] - set(between)]
        single = len(levels) == 1
        dropped = between if single else ()
        axes = both if single else list(grid)
        for picked in product(*(grid[axis].items() for axis in axes)):
            candidates = []
            for changing in product(*(found for _, found in picked)):
                merged = base | dict(changes)
                for part in changing:
                    merged |= part
                kept = {key: value for key, value in merged.items() if key not in dropped}
                try:
                    candidate = start.with_(**kept)
                except ConfigError as error:
                    cell = ", ".join([row, *(choice for choice, _ in picked)])
                    raise ConfigError(f"{cell}: {error.what}", got=error.got, do=error.do) from error
                if candidate not in candidates:
                    candidates.append(candidate)
            choices = {axis: choice for axis, (choice, _) in zip(axes, picked, strict=True)}
            shared = {axis: choice for axis, choice in choices.items() if axis in both}
            settings.append(Setting(row, choices, shared, tuple(candidates)))
    return settings


def run_key(config: TrainConfig, images: str) -> str:
    """The name of a run's folder: a hash of all of its settings, whatever their order, and of its images."""
    return _digest({"settings": config.to_dict(), "images": images})


def _seeded(candidate: TrainConfig, seed: int) -> TrainConfig:
    """What is trained; near duplicates have been looked for once, when the table of images was made."""
    return candidate.with_(seed=seed, near_duplicates=False)


def run_study(study: Study, *, processes: int = 0, progress: bool = True) -> dict[str, Any]:
    """Train and evaluate what is missing in `study.out`/runs; write study.json, study.md and study.html beside it.

    processes: how many runs at a time, each on a device of its own where there are several, on one thread of the CPU
    else; 0 for one a device. Returns what study.json says. Raises ConfigError where another study works in the folder.
    """
    from vmmr.evaluation.robustness import condition  # slow to import
    from vmmr.evaluation.study import analysed, chosen
    from vmmr.evaluation.study_page import write_study

    settings = expand(study)
    for name in study.conditions:
        condition(name)
    if processes < 0:
        raise ConfigError("processes are 0 or more", got=processes)
    with alone_in(study.out):
        (study.out / "runs").mkdir(exist_ok=True)
        images, who = _images(study, progress)
        runs: dict[str, tuple[str, TrainConfig]] = {}
        errors: dict[str, str] = {}
        document: dict[str, Any] = {
            "format": "vmmr-study",
            "version": 1,
            "vmmr": vmmr.__version__,
            "title": study.title,
            "images": who,
            "seeds": list(study.seeds),
            "conditions": list(study.conditions),
            "settings": [_described(setting, study) for setting in settings],
        }
        with start_workers(study.out, processes) as workers:
            going = [list(range(len(setting.candidates))) for setting in settings]
            for seeds in filter(None, (study.seeds[:1], study.seeds[1:])):  # the first one tunes
                for seed, (setting, told, places) in product(
                    seeds, list(zip(settings, document["settings"], going, strict=True))
                ):
                    for place in places:
                        config = _seeded(setting.candidates[place], seed)
                        key, count = run_key(config, who), len(setting.candidates)
                        told["candidates"][place]["runs"].append(key)
                        which = f" ({place + 1} of {count})" if count > 1 else ""
                        runs.setdefault(key, (f"{setting.name}{which}, seed {seed}", config))
                errors |= do_all(workers, _jobs(study, runs, images, "val", errors), "train", progress)
                document["runs"] = {key: _record(study.out, key, config, errors) for key, (_, config) in runs.items()}
                best = [chosen(told, document["runs"], study.conditions[0]) for told in document["settings"]]
                going = [places if place is None else [place] for places, place in zip(going, best, strict=True)]
            if study.test:
                kept = {
                    key: runs[key]
                    for told, place in zip(document["settings"], best, strict=True)
                    if place is not None
                    for key in told["candidates"][place]["runs"]
                    if document["runs"][key]["error"] is None
                }
                errors |= do_all(workers, _jobs(study, kept, images, "test", errors), "test", progress)
                document["runs"] = {
                    key: _record(study.out, key, config, errors, test=key in kept) for key, (_, config) in runs.items()
                }
        document["split"] = "test" if study.test else "val"
        document = analysed(document)
        write_study(study.out, document)
    return document


def _described(setting: Setting, study: Study) -> dict[str, Any]:
    """What study.json says of a cell: its candidates by what they change in the recipe, and their runs, none so far."""
    plain = recipe(study.recipe).to_dict()
    return {
        "name": setting.name,
        "row": setting.row,
        "choices": dict(setting.choices),
        "shared": dict(setting.shared),
        "levels": setting.candidates[0].levels,
        "candidates": [
            {
                "settings": {key: value for key, value in config.to_dict().items() if value != plain[key]},
                "runs": [],
            }
            for config in setting.candidates
        ],
    }


def _images(study: Study, progress: bool) -> tuple[Path, str]:
    """The table of images that all runs see, validation carved once for all rows and seeds; and a hash of what it
    says, wherever the images lie."""
    from vmmr.data.check import duplicate_groups  # slow to import
    from vmmr.data.splits import carve_validation, drop_test_duplicates

    manifest = Manifest.load(study.data)
    shared = recipe(study.recipe).with_(**{k: v for k, v in (study.base or {}).items() if k in _OF_THE_STUDY})
    who = _digest([manifest.table.to_pydict(), shared.val_fraction, shared.near_duplicates])
    table = study.out / f"images-{_digest([who, str(manifest.root.resolve())])}.csv"
    if study.test and not (manifest.splits == "test").any():
        raise ConfigError("there are no test images", got=str(study.data), do="leave out test")
    if not table.exists():
        paths = [Path(p) for p in manifest.path_list()]
        groups = duplicate_groups(paths, near=shared.near_duplicates, progress=progress)
        manifest = drop_test_duplicates(manifest, groups)
        if not (manifest.splits == "val").any():
            manifest = carve_validation(manifest, shared.val_fraction, groups=groups)
        manifest.write(table)
    return table, who


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _jobs(
    study: Study,
    runs: Mapping[str, tuple[str, TrainConfig]],
    images: Path,
    split: str,
    errors: Mapping[str, str],
) -> list[Job]:
    """What is still to do: runs without results of this split under all conditions, but for those that failed."""
    return [
        {
            "name": name,
            "key": key,
            "folder": str(study.out / "runs" / key),
            "settings": config.to_dict(),
            "images": str(images),
            "split": split,
            "conditions": list(study.conditions),
        }
        for key, (name, config) in runs.items()
        if key not in errors and not set(study.conditions) <= set(_results(study.out, key, split).get("conditions", {}))
    ]


def _results(out: Path, key: str, split: str) -> dict[str, Any]:
    file = out / "runs" / key / f"{split}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _record(
    out: Path, key: str, config: TrainConfig, errors: Mapping[str, str], *, test: bool = False
) -> dict[str, Any]:
    """One run as study.json has it."""
    from vmmr.evaluation.study import measured, read_course

    if key in errors:
        return {"seed": config.seed, "error": errors[key]}
    metrics = json.loads((out / "runs" / key / "metrics.json").read_text(encoding="utf-8"))
    found = {split: _results(out, key, split) for split in ("val", *(["test"] if test else []))}
    return {
        "seed": config.seed,
        "error": None,
        "seconds": metrics["train_seconds"],
        "best_epoch": metrics["best_epoch"],
        **{split: measured(document, config.levels) for split, document in found.items()},
        "course": read_course(out / "runs" / key / "log.csv"),
    }
