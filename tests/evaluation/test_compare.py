"""The page of results: it says what the documents say, leaves out what they do not, and compares like with like."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import ConfigError
from vmmr.evaluation.compare import (
    between,
    family_curves,
    mean_over,
    name_results,
    read_results,
    sigma_curves,
    write_comparison,
)
from vmmr.evaluation.conditions import families
from vmmr.evaluation.examples import Example, Reply

HOSTILE = '<script>alert("x")</script><img src=http://example.org/x onerror=alert(1)> & \'"'
Make, Parse = Callable[..., dict[str, Any]], Callable[[str], Any]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def picture(value: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((8, 8, 3), value, np.uint8)


def example(*names: str, restored: bool = True) -> Example:
    replies = {name: Reply("Audi A4 2012", 0.625, k == 0) for k, name in enumerate(names)}
    return Example("fog@3", "Audi A4 2012", picture(1), picture(2), picture(3) if restored else None, replies)


def test_one_model_says_what_its_document_says(tmp_path: Path, document: Make, parse: Parse) -> None:
    results = document(progressive=True)
    shown = {"test/0.png": picture(7)}
    path = write_comparison(tmp_path / "a.html", {"mine": results}, examples=[example("mine")], pictures=shown)
    page = parse(path.read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in page.rows}
    conditions, summary = results["conditions"], results["summary"]
    for kind, title in {"fog": "fog", "jpeg": "JPEG", "speckle": "speckle noise"}.items():
        values = [conditions[f"{kind}@{severity}"]["top1"] for severity in (1, 3, 5)]
        assert rows[title] == [*map(percent, values), percent(float(np.mean(values)))]
    for title, key in {"All corruptions": "mean_corruption", "Camera and road": "camera"}.items():
        line = next(row for row in page.rows if row[0] == title)  # families have a heading of that name further down
        assert line[-1] == percent(summary[key]["value"]) + between(summary[key]["interval"])
    measures = [conditions["gaussian_0.2"][key] for key in ("top1", "top5", "macro", "make", "ece", "ece_calibrated")]
    nll, interval = (conditions["gaussian_0.2"][key] for key in ("nll", "interval"))
    assert rows["Gaussian noise, σ 0.2"] == [*map(percent, measures), f"{nll:.2f}", between(interval)]
    assert percent(summary["relative_drop"]["value"]) in page.words
    for pair in results["confusions"]:
        make = "same" if pair["same_make"] else "another"
        assert [pair["truth"], pair["answer"], make, percent(pair["share"]), str(pair["count"])] in page.rows
    for row in results["worst_classes"]:
        assert row["name"] in page.words
        assert f"taken for {row['mistaken_for']}" in page.words
    lead = (
        "400 images of the split test, 5 classes of 3 makes: clean, under Gaussian noise of 4 sizes, and spoiled in 7 "
    )
    assert f"{lead}ways at 3 severities." in page.words
    assert rows["mine"] == ["2,474,948", "61.0 million", "8.2 ms", "162 in batches of 32", "cpu, 1 thread"]
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [p["alt"] for p in pictures] == [
        "Audi A4 2012, clean",
        "Audi A4 2012, fog",
        "Audi A4 2012, denoised",
        "Audi A4 2012, a test image",
    ]
    restored = [row for name, row in results["restoration"].items() if name.startswith("fog@")]
    psnr = float(np.mean([row["psnr_noisy"] for row in restored]))
    assert ["fog", f"{psnr:.1f}", "22.0", "0.500", "0.750"] in page.rows


def test_several_models_stand_side_by_side(tmp_path: Path, document: Make, parse: Parse) -> None:
    documents = {f"m{k}": document(seed=k, falls=0.1 + 0.1 * k) for k in range(3)}
    text = write_comparison(tmp_path / "a.html", documents, examples=[example("m0", "m2")]).read_text(encoding="utf-8")
    page = parse(text)
    rows = {row[0]: row[1:] for row in page.rows}
    for kind in ("fog", "rain"):
        names = [f"{kind}@{severity}" for severity in (1, 3, 5)]
        expected = [np.mean([d["conditions"][name]["top1"] for name in names]) for d in documents.values()]
        assert rows[kind] == [percent(float(value)) for value in expected]
    for results in documents.values():
        assert page.words.count(percent(results["summary"]["mean_corruption"]["value"])) >= 2  # its card, the table
    assert sum(tag == "svg" for tag, _ in page.tags) == 4 + 7 + 3  # families and sigma, corruptions, reliability
    assert {f"var(--series-{i})" for i in range(3)} <= set(re.findall(r"var\(--series-\d\)", text))
    assert not re.search(r"#0[1-4]0[1-4]0\d", text)  # no stand-in for a colour is left


@pytest.mark.parametrize("several", [False, True])
def test_the_page_is_whole_and_runs_nothing(tmp_path: Path, document: Make, parse: Parse, several: bool) -> None:
    documents = {name: document(names=[HOSTILE, "b"], progressive=True) for name in ([HOSTILE, "b"][: 1 + several])}
    documents[HOSTILE]["bundle"]["backbone"] = documents[HOSTILE]["data"]["split"] = HOSTILE
    for other in documents.values():
        other["data"] = documents[HOSTILE]["data"]
    text = write_comparison(tmp_path / "a.html", documents, examples=[example(HOSTILE)]).read_text(encoding="utf-8")
    page = parse(text.strip())
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#"))
        assert tag != "svg" or attributes["aria-label"]
        assert tag != "img" or attributes["alt"]
        assert tag != "th" or attributes["scope"]
    assert not re.search(r"@import|url\((?!#)", text)
    assert sum(HOSTILE in word for word in page.words) >= 6  # title, lead, class, confusion, reply, facts


PARTS = {
    "summary": "In short",
    "calibration": "When it says it is sure",
    "worst_classes": "Where it fails",
    "confusions": "What it takes for what",
    "restoration": "What the decoder restores",
    "cost": "What it costs",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("empty", [False, True])
def test_a_part_without_numbers_is_left_out(
    tmp_path: Path, document: Make, parse: Parse, part: str, empty: bool
) -> None:
    whole = document(progressive=True, kinds=("fog",), severities=(3,))
    less = {key: value for key, value in whole.items() if key != part} | ({part: type(whole[part])()} if empty else {})
    words = parse(write_comparison(tmp_path / "a.html", {"m": less}).read_text()).words
    assert set(PARTS.values()) - set(words) == {PARTS[part]}


def test_clean_images_alone_are_enough(tmp_path: Path, document: Make, parse: Parse) -> None:
    results = {"conditions": {"clean": {"top1": 0.8125}}}
    page = parse(write_comparison(tmp_path / "a.html", {"m": results}).read_text())
    assert {"m on clean images", "81.2 %"} <= set(page.words)
    assert not [tag for tag, _ in page.tags if tag in ("svg", "img")]
    found = document(kinds=(), progressive=True)
    found["calibration"] = {"temperature": None, "fitted_on": None, "bins": [], "bins_calibrated": []}
    found["cost"] = {"parameters": 12, "macs": 5_000_000}  # without times
    page = parse(write_comparison(tmp_path / "a.html", {"m": found}).read_text())
    assert ["m", "12", "5.0 million", "–", "–", "–"] in page.rows
    assert "When it says it is sure" not in page.words


def test_a_line_of_reliability_looks_the_same_without_the_others(tmp_path: Path, document: Make, parse: Parse) -> None:
    whole = document()
    less = copy.deepcopy(whole)
    less["calibration"]["bins_corrupted"] = []
    texts = [write_comparison(tmp_path / "a.html", {"m": results}).read_text() for results in (whole, less)]
    for text, marks in zip(texts, ("●■▲", "●▲"), strict=True):
        assert [mark for mark in "●■▲" if mark in parse(text).words] == list(marks)
        figure = text[text.index("Confidence against accuracy") :].partition("</svg>")[0]
        assert "stroke: var(--ink)" in figure  # calibrated
        assert ("stroke: var(--muted); stroke-opacity: 0.6" in figure) == ("■" in marks)  # corrupted


@given(st.lists(st.sampled_from(["fog", "rain", "spatter"]), unique=True, min_size=1), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_curves_are_means_over_the_corruptions(document: Make, kinds: list[str], seed: int) -> None:
    results = document(seed=seed, kinds=kinds)
    for group in families(results["conditions"]).values():
        [curve] = family_curves({"m": results}, group)
        assert curve.levels == (0, 1, 3, 5)
        for level, value, low, high in zip(curve.levels, curve.values, curve.low, curve.high, strict=True):
            scores = [results["conditions"]["clean" if level == 0 else f"{kind}@{level:g}"] for kind in group]
            assert value == pytest.approx(sum(score["top1"] for score in scores) / len(scores))
            assert low == pytest.approx(sum(score["interval"][0] for score in scores) / len(scores))
            assert low <= value <= high


def test_a_severity_that_one_corruption_lacks_is_not_averaged(document: Make) -> None:
    results = document(kinds=("fog", "jpeg"), severities=(1, 3))
    del results["conditions"]["jpeg@3"]
    [curve] = family_curves({"m": results}, families(results["conditions"])["common"])
    assert curve.levels == (0, 1)


def test_sigma_stands_in_order_and_starts_at_the_clean_image(document: Make) -> None:
    results = document()
    results["conditions"] = dict(reversed(results["conditions"].items()))
    [curve] = sigma_curves({"m": results})
    assert curve.levels == (0, 0.05, 0.1, 0.2, 0.4)
    assert curve.values[0] == results["conditions"]["clean"]["top1"]
    assert curve.values[-1] == results["conditions"]["gaussian_0.4"]["top1"]
    assert sigma_curves({"m": {"conditions": {"clean": {"top1": 1.0}}}}) == []


def test_a_mean_needs_all_its_numbers(document: Make) -> None:
    results = document(kinds=("fog",), severities=(1, 3))
    scores = results["conditions"]
    assert mean_over(results, ["fog@1", "fog@3"], "nll") == (scores["fog@1"]["nll"] + scores["fog@3"]["nll"]) / 2
    del scores["fog@3"]["nll"]
    assert mean_over(results, ["fog@1", "fog@3"], "nll") is None


def test_unlike_results_are_refused_and_leave_no_page(tmp_path: Path, document: Make) -> None:
    first = document()
    page = write_comparison(tmp_path / "a.html", {"m": first})
    before = page.read_bytes()
    other = copy.deepcopy(first)
    other["data"]["images"] += 1
    with pytest.raises(ConfigError, match="different images"):
        write_comparison(page, {"m": first, "n": other})
    with pytest.raises(ConfigError, match="seeds"):
        write_comparison(page, {"m": first, "n": first | {"seed": 1}})
    with pytest.raises(ConfigError, match="different conditions"):
        write_comparison(page, {"m": first, "n": document(severities=(1,))})
    with pytest.raises(ConfigError, match="a few models"):
        write_comparison(page, {})
    with pytest.raises(ConfigError, match="a few models"):
        write_comparison(page, dict.fromkeys("abcdefg", first))
    assert page.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_a_page_is_replaced_whole_or_not_at_all(
    tmp_path: Path, document: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = document(kinds=("fog",))
    page = write_comparison(tmp_path / "a.html", {"m": results})
    before = page.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_comparison(page, {"other": results})
    assert page.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_the_same_results_give_the_same_bytes(tmp_path: Path, document: Make) -> None:
    documents = {"m": document(), "n": document(seed=1)}
    first = write_comparison(tmp_path / "a.html", documents).read_bytes()
    again = json.loads(json.dumps(documents))
    assert write_comparison(tmp_path / "b.html", again).read_bytes() == first


def test_results_come_back_from_file_and_folder(tmp_path: Path, document: Make) -> None:
    results = document()
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no results of a format"),
        ({"version": 2}, "no results of a format"),
        ({"conditions": {"fog@3": {"top1": 0.5}}}, "no clean images"),
        ({"conditions": []}, "no clean images"),
        ({"conditions": {"clean": {"top1": 0.5}, "fog@x": {"top1": 0.5}}}, "fog@x"),
        ({"conditions": {"clean": {"top1": 1.5}}}, "no accuracy"),
        ({"conditions": {"clean": {"top1": None}}}, "no accuracy"),
        ({"conditions": {"clean": 0.5}}, "no accuracy"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, document: Make, change: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document() | change))
    with pytest.raises(ConfigError, match=message):
        read_results(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", "\udcff", "[" * 100_000])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="results"):
        read_results(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="cannot read results"):
        read_results(tmp_path / "gone.json")


def test_names_are_those_given_or_the_telling_part_of_the_path(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "report" / "results.json", tmp_path / "b" / "bundle", tmp_path / "c.json"]
    assert list(name_results(paths)) == ["a", "b", "c"]
    assert name_results(paths, ["x", "y", "z"])["y"] == [paths[1]]
    assert name_results(paths, ["x", "y", "x"]) == {"x": [paths[0], paths[2]], "y": [paths[1]]}
    with pytest.raises(ConfigError, match="--names"):
        name_results(paths, ["x", "y"])
    with pytest.raises(ConfigError, match="--names"):
        name_results([tmp_path / "a" / "bundle", tmp_path / "a.json"])
