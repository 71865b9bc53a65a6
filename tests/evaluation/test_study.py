"""The analysis of a study against plain recomputation, on made-up runs."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, rankdata, t

from vmmr.evaluation.study import analysed, chosen, imbalance, measured, read_course
from vmmr.evaluation.study_page import differences_table, study_table, write_study


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_every_mean_spread_and_interval(study_document: dict[str, Any]) -> None:
    document = analysed(study_document)
    runs = document["runs"]
    for setting, line in zip(document["settings"], document["analysis"]["settings"], strict=True):
        keys = [key for key in setting["candidates"][line["chosen"]]["runs"] if runs[key]["error"] is None]
        for condition, cell in line["conditions"].items():
            for measure in set(cell) - {"delta_m"}:
                values = [runs[key]["test"][condition][measure]["value"] for key in keys]
                told = cell[measure]
                assert told["mean"] == pytest.approx(_mean(values))
                assert told["trainings"] == len(keys)
                ci = [binomtest(round(100 * v), 100).proportion_ci(method="wilson") for v in values]
                below, above = told["mean"] - _mean([c.low for c in ci]), _mean([c.high for c in ci]) - told["mean"]
                if len(keys) == 1:
                    assert told["spread"] is None
                    among = 0.0
                else:
                    assert told["spread"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
                    among = t.ppf(0.975, 1) * told["spread"] / math.sqrt(2)
                expected = [
                    max(0, told["mean"] - math.hypot(among, below)),
                    min(1, told["mean"] + math.hypot(among, above)),
                ]
                assert told["interval"] == pytest.approx(expected)
    assert document["analysis"]["settings"][-1]["conditions"]["clean"]["make"]["trainings"] == 1  # the other one failed


def test_gain_is_paired_by_seed(study_document: dict[str, Any]) -> None:
    document = analysed(study_document)
    runs, settings = document["runs"], document["settings"]
    for setting, line in zip(settings, document["analysis"]["settings"], strict=True):
        if len(setting["levels"]) == 1:
            assert "delta_m" not in line["conditions"]["clean"]
            continue
        gains = []
        for seed, key in enumerate(setting["candidates"][line["chosen"]]["runs"]):
            if runs[key]["error"] is None:
                own, alone = runs[key], [runs[single["candidates"][0]["runs"][seed]] for single in settings[:2]]
                tops = [
                    run["test"]["clean"][level]["value"] for run, level in zip(alone, ("make", "class"), strict=True)
                ]
                mine = [own["test"]["clean"][level]["value"] for level in ("make", "class")]
                gains.append(_mean([(m - s) / s for m, s in zip(mine, tops, strict=True)]))
        assert line["conditions"]["clean"]["delta_m"]["mean"] == pytest.approx(_mean(gains))


def test_differences_are_paired_by_seed(study_document: dict[str, Any]) -> None:
    document = analysed(study_document)
    runs, settings = document["runs"], document["settings"]
    table = differences_table(document, "fog@3").splitlines()
    assert table[0] == (
        "| | make − make alone | class − class alone | make − by the finest alone "
        "| make by the finest − by the finest alone |"
    )
    assert len(table) == 2 + 6
    for setting, line in zip(settings, document["analysis"]["settings"], strict=True):
        if len(setting["levels"]) == 1:
            assert line["differences"] == {"clean": {}, "fog@3": {}}
            continue
        kept = setting["candidates"][line["chosen"]]["runs"]
        seeds = [seed for seed, key in enumerate(kept) if runs[key]["error"] is None]
        cells = []
        for name, single, measure, own in (
            ("make", 0, "make", "make"),
            ("class", 1, "class", "class"),
            ("marginal", 1, "marginal", "make"),
            ("marginals", 1, "marginal", "marginal"),
        ):
            told = line["differences"]["fog@3"][name]
            values = []
            for seed in seeds:
                alone = runs[settings[single]["candidates"][0]["runs"][seed]]
                mine = runs[kept[seed]]["test"]["fog@3"][own]["value"]
                values.append(mine - alone["test"]["fog@3"][measure]["value"])
            assert told["mean"] == pytest.approx(_mean(values))
            assert told["trainings"] == len(seeds)
            cell = f"{100 * _mean(values):+.1f}"
            if len(seeds) == 2:
                half = t.ppf(0.975, 1) * abs(values[0] - values[1]) / 2
                assert told["interval"] == pytest.approx([_mean(values) - half, _mean(values) + half])
                cell += f" ({100 * told['interval'][0]:+.1f} to {100 * told['interval'][1]:+.1f})"
            cells.append(cell.replace("-", "−"))
        assert next(row for row in table if line["name"] in row).split(" | ")[1:] == [*cells[:3], f"{cells[3]} |"]


def test_only_validation_tunes(study_document: dict[str, Any]) -> None:
    doctored = copy.deepcopy(study_document)
    for run in doctored["runs"].values():
        for cell in run.get("test", {}).values():
            for told in cell.values():
                told["value"] = 1 - told["value"]
    for setting, same in zip(study_document["settings"], doctored["settings"], strict=True):
        runs = study_document["runs"]
        scores = []
        for candidate in setting["candidates"]:
            found = [runs[key]["val"]["clean"] for key in candidate["runs"] if runs[key]["error"] is None]
            scores.append(_mean([_mean([cell[level]["value"] for level in setting["levels"]]) for cell in found]))
        assert chosen(setting, runs, "clean") == chosen(same, doctored["runs"], "clean") == int(np.argmax(scores))
    tuned = doctored["settings"][3]
    best = chosen(tuned, doctored["runs"], "clean")
    assert best is not None
    for key in tuned["candidates"][best]["runs"]:
        doctored["runs"][key] = {"seed": 0, "error": "gone"}
    assert chosen(tuned, doctored["runs"], "clean") not in (best, None)
    for candidate in tuned["candidates"]:
        doctored["runs"] |= {key: {"seed": 0, "error": "gone"} for key in candidate["runs"]}
    assert chosen(tuned, doctored["runs"], "clean") is None


def test_cost_and_correlation(study_document: dict[str, Any]) -> None:
    document = analysed(study_document)
    lines = {line["name"]: line for line in document["analysis"]["settings"]}
    tuned, uniform = lines["parallel, tuned fixed"], lines["parallel, uniform"]
    every = [run["seconds"] for key in range(6, 12) for run in [document["runs"][f"{key:016x}"]]]
    assert (tuned["runs"], tuned["seconds_of_all"]) == (6, pytest.approx(sum(every)))
    assert tuned["relative_seconds"] == pytest.approx(tuned["seconds"]["mean"] / uniform["seconds"]["mean"])
    assert uniform["relative_seconds"] == 1
    several = [line for line in lines.values() if line["imbalance"] is not None]
    x = rankdata([line["imbalance"]["mean"] for line in several])
    y = rankdata([line["conditions"]["clean"]["delta_m"]["mean"] for line in several])
    rank = float(np.corrcoef(x, y)[0, 1])
    assert document["analysis"]["correlation"] == {"spearman": pytest.approx(rank), "settings": 6}


@given(
    lengths=st.lists(st.tuples(*[st.floats(0.01, 100)] * 3), min_size=1, max_size=5),
    factor=st.floats(0.1, 10),
    order=st.permutations(["make", "model", "class"]),
)
def test_imbalance_knows_neither_scale_nor_order(
    lengths: list[tuple[float, ...]], factor: float, order: list[str]
) -> None:
    norms = {name: [step[k] for step in lengths] for k, name in enumerate(("make", "model", "class"))}
    found = imbalance({"steps": [*range(len(lengths))], "norms": norms, "weights": {}})
    expected = math.prod(max(step) / min(step) for step in lengths) ** (1 / len(lengths))
    assert found == pytest.approx(expected)
    scaled = {name: [factor * value for value in norms[name]] for name in order}
    assert imbalance({"steps": [*range(len(lengths))], "norms": scaled, "weights": {}}) == pytest.approx(found)
    even = {name: [-1 / value for value in values] for name, values in norms.items()}  # surgery may weigh below 0
    assert imbalance({"steps": [*range(len(lengths))], "norms": norms, "weights": even}) == pytest.approx(1)


def test_imbalance_needs_two_lengths() -> None:
    assert imbalance({}) is None
    assert imbalance({"steps": [1], "norms": {"make": [2.0]}, "weights": {}}) is None
    norms = {"make": [2.0, None, 0.0, 3.0], "class": [4.0, 1.0, 1.0, 24.0]}
    assert imbalance({"steps": [1, 2, 3, 4], "norms": norms, "weights": {}}) == pytest.approx(4)  # 2 and 8


def test_a_resumed_log_is_read_once(tmp_path: Path) -> None:
    lines = ["time,step,epoch,name,value"]
    lines += [f"1,10,0,norms/{name},{value}" for name, value in (("make", 1), ("class", 2))]
    lines += ["1,10,0,cosines/make~class,0.5", "1,10,0,weights/make,1", "1,10,0,loss/make,7"]
    lines += ["1,20,0,norms/make,9", "2,20,0,norms/make,3", "2,20,0,norms/class,nan", "3,30,1,weights/make,2"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    assert read_course(tmp_path / "log.csv") == {
        "steps": [10, 20],
        "norms": {"make": [1.0, 3.0], "class": [2.0, None]},
        "cosines": {"make~class": [0.5, None]},
        "weights": {"make": [1.0, None]},
    }
    (tmp_path / "log.csv").write_text("\n".join([lines[0], lines[5]]) + "\n")
    assert read_course(tmp_path / "log.csv") == {}


def test_measures_of_a_results_document() -> None:
    scores = {
        "top1": 0.6,
        "levels": {"make": {"top1": 0.8, "images": 9}, "year_value": {"mean_error": 2.5, "images": 4}},
        "independent": {"joint": 0.5, "consistency": 0.7, "severity": 0.1},
        "consistent": {"joint": 0.6, "consistency": 1.0, "severity": 0.25},
        "marginal": {"make": 0.75},
    }
    document = {"data": {"images": 10}, "conditions": {"clean": scores, "fog@3": scores}}
    several = measured(document | {"mistakes": {"same_make": 0.3}}, ["make", "class", "year_value"])["fog@3"]
    assert {name: told["value"] for name, told in several.items()} == {
        "make": 0.8,
        "year_value": 2.5,
        "marginal": 0.75,
        "answered": 0.6,
        "severity": 0.25,
        "joint": 0.5,
        "consistency": 0.7,
    }
    assert [several[name]["images"] for name in ("make", "year_value", "severity", "joint")] == [9, 4, 4, 10]
    alone = measured(document | {"mistakes": {"same_make": 0.3}}, ["class"])
    assert set(alone["clean"]) - set(alone["fog@3"]) == {"severity"}  # mistakes are known of clean images
    assert alone["clean"]["severity"]["value"] == 0.3
    assert set(measured(document, ["make"])["clean"]) == {"make", "year_value"}


def test_the_table_and_the_page_say_the_same(study_document: dict[str, Any], tmp_path: Path, parse: Any) -> None:
    document = analysed(study_document)
    write_study(tmp_path, document)
    assert json.loads((tmp_path / "study.json").read_text()) == document
    table = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in study_table(document, "clean").splitlines()
    ]
    assert table[0][:3] == ["", "make", "class"]
    page = parse((tmp_path / "study.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags} & {"script", "iframe"} == set()
    shown = [["".join(cell.split()) for cell in row] for row in page.rows if len(row) == len(table[0])]
    told = [["".join(cell.split()) for cell in row] for row in table[2:]]
    assert [row[1:] for row in shown[1 : 1 + len(told)]] == [row[1:] for row in told]
    assert [row[0] for row in shown[1:4]] == ["makealone", "classalone", "uniform"]
    assert told[-1][1].replace(".", "").isdigit()  # one training has no spread
    assert "no longer finite" in (tmp_path / "study.html").read_text(encoding="utf-8")


def test_a_study_of_which_all_failed_has_a_page(study_document: dict[str, Any], tmp_path: Path) -> None:
    gone = {key: {"seed": run["seed"], "error": "out of luck"} for key, run in study_document["runs"].items()}
    write_study(tmp_path, analysed(study_document | {"runs": gone}))
    page = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert "out of luck" in page
    assert "<svg" not in page
