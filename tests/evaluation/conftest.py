"""Results documents as the evaluation writes them, made up from seeded draws; and an HTML page in its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

KINDS = ("gaussian", "fog", "jpeg", "speckle", "low_light", "rain", "downscale")
SIGMAS = (0.05, 0.1, 0.2, 0.4)
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, the text of the page, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags close in order"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data.strip())
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def _bins(random: np.random.Generator, too_sure: float) -> list[dict[str, float]]:
    shares = random.dirichlet(np.linspace(0.3, 3, 15))
    shares[0] = 0.0  # an empty bin
    low = np.arange(15) / 15
    confidence = low + 0.5 / 15
    accuracy = np.clip(confidence - too_sure * np.sin(np.pi * confidence), 0, 1)
    columns = {"low": low, "high": low + 1 / 15, "confidence": confidence, "accuracy": accuracy, "share": shares}
    return [{key: float(column[i]) for key, column in columns.items()} for i in range(15)]


def results_document(
    *,
    seed: int = 0,
    clean: float = 0.9,
    falls: float = 0.3,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[float] = (1, 3, 5),
    names: Sequence[str] = ("Audi A4 2012", "Audi A6 2012", "BMW M3 2010", "BMW X5 2007", "Volvo V70 2005"),
    progressive: bool = False,
    unknown: bool = False,
) -> dict[str, Any]:
    """A document in which accuracy falls from `clean` by exp(-falls * severity), a little differently every time."""
    random = np.random.default_rng(seed)
    images = 400

    def score(rate: float) -> dict[str, Any]:
        top1 = random.binomial(images, rate) / images
        half = 1.96 * float(np.sqrt(max(top1 * (1 - top1), 1e-4) / images))
        return {
            "top1": top1,
            "top5": top1 + 0.7 * (1 - top1),
            "macro": 0.98 * top1,
            "make": top1 + 0.3 * (1 - top1),
            "ece": 0.2 * (1 - top1),
            "ece_calibrated": 0.05 * (1 - top1),
            "nll": 3.1 * (1 - top1),
            "interval": [max(top1 - half, 0.0), min(top1 + half, 1.0)],
        }

    conditions = {"clean": score(clean)} | {f"gaussian_{s:g}": score(clean * np.exp(-6 * falls * s)) for s in SIGMAS}
    for severity in severities:
        for kind in kinds:
            pace = falls * random.uniform(0.4, 1.4)
            conditions[f"{kind}@{severity:g}"] = score(clean * np.exp(-pace * severity))

    if unknown:
        for scores in conditions.values():
            taken = 1 - scores["top1"]
            scores["unknown"] = {
                "taken_for_unknown": taken,
                "reasons": {"ok": 1 - taken, "low_quality": taken / 4, "unknown_vehicle": 3 * taken / 4},
            }

    def summary(of: Sequence[str]) -> dict[str, Any]:
        rows = [conditions[name] for name in of]
        mean = float(np.mean([row["top1"] for row in rows]))
        return {"value": mean, "interval": [max(mean - 0.02, 0.0), min(mean + 0.02, 1.0)]}

    corrupted = [name for name in conditions if "@" in name]
    parts = {
        "mean_corruption": corrupted,
        "validation": [n for n in corrupted if n.startswith(("speckle", "gaussian_blur", "spatter", "saturate"))],
        "camera": [n for n in corrupted if n.startswith(("low", "rain", "travel", "rolling", "h264", "down"))],
        "gaussian": [n for n in conditions if n.startswith("gaussian_0")],
    }
    parts["common"] = [n for n in corrupted if n not in parts["validation"] + parts["camera"]]
    found = {"clean": summary(["clean"])} | {key: summary(of) for key, of in parts.items() if of}
    if corrupted:
        lost = 1 - found["mean_corruption"]["value"] / found["clean"]["value"]
        found["relative_drop"] = {"value": lost, "interval": [lost - 0.03, lost + 0.03]}
    makes = [name.split()[0] for name in names]
    return {
        "format": "vmmr-evaluation",
        "version": 1,
        "vmmr": "0.1.0",
        "bundle": {
            "name": "bundle",
            "digest": f"{seed:064x}",
            "kind": "progressive" if progressive else "plain",
            "backbone": "mobilenetv2_100",
            "size": 96,
        },
        "data": {"split": "test", "images": images, "classes": len(names), "makes": len(set(makes))},
        "seed": 0,
        "conditions": conditions,
        "summary": found,
        "calibration": {
            "temperature": 1.37,
            "fitted_on": "val",
            "bins": _bins(random, 0.12),
            "bins_calibrated": _bins(random, 0.02),
            "bins_corrupted": _bins(random, 0.25),
        },
        "unknown": {"score": "knn", "known": 0.75, "vehicle": 0.9} if unknown else None,
        "confusions": [
            {"truth": t, "answer": a, "share": 0.3 / (k + 1), "count": 12 - k, "same_make": makes[k] == a.split()[0]}
            for k, (t, a) in enumerate(zip(names, [*names[1:], names[0]], strict=True))
        ],
        "worst_classes": [
            {
                "name": name,
                "top1": 0.05 * (k + 1),
                "images": 20 + k,
                "mistaken_for": names[k - 1],
                "example": f"test/{k}.png",
            }
            for k, name in enumerate(names)
        ],
        "restoration": {
            name: {"psnr_noisy": 18.0 + k % 9, "psnr_restored": 22.0, "ssim_noisy": 0.5, "ssim_restored": 0.75}
            for k, name in enumerate(corrupted)
        }
        if progressive
        else {},
        "cost": {
            "parameters": 2_474_948,
            "macs": 61_000_000,
            "latency_ms": 8.25,
            "images_per_s": 161.5,
            "batch": 32,
            "threads": 1,
            "device": "cpu",
        },
    }


@pytest.fixture(scope="session")
def document() -> Callable[..., dict[str, Any]]:
    """`results_document`, for tests to vary."""
    return results_document


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Page]:
    """A page from its text."""
    return Page


@pytest.fixture(scope="session")
def study_document() -> dict[str, Any]:
    """A made-up study: two single tasks and two forms under three ways to weigh, one of them tuned, two seeds, one run
    that failed; not yet analysed."""
    random = np.random.default_rng(0)
    settings: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}

    def run(levels: list[str], seed: int) -> str:
        def measures() -> dict[str, dict[str, float]]:
            names = [*levels, "marginal", "answered", "severity", *(["joint", "consistency"] if levels[1:] else [])]
            return {name: {"value": int(random.integers(40, 90)) / 100, "images": 100} for name in names}

        steps = [10, 20, 30, 40]
        lengths = {level: random.uniform(0.1, 3, 4).tolist() for level in levels}
        course = {
            "steps": steps,
            "norms": lengths,
            "cosines": {"make~class": random.uniform(-1, 1, 4).tolist()},
            "weights": {},
        }
        key = f"{len(runs):016x}"
        judged = {split: {"clean": measures(), "fog@3": measures()} for split in ("val", "test")}
        seconds = float(random.uniform(50, 90))
        runs[key] = {"seed": seed, "error": None, "seconds": seconds, "best_epoch": 1, **judged}
        runs[key]["course"] = course if levels[1:] else {}
        return key

    both = ["make", "class"]
    rows = {"make alone": ["make"], "class alone": ["class"], "parallel": both, "a cascade with a very long name": both}
    for row, levels in rows.items():
        for choice in ["uniform", "tuned fixed", "AvgNorm"] if levels[1:] else [""]:
            weights = [{}, {"make": 0.3}, {"make": 3.0}] if choice == "tuned fixed" else [{}]
            candidates = [
                {"settings": {"levels": levels, "level_weights": w}, "runs": [run(levels, seed) for seed in (0, 1)]}
                for w in weights
            ]
            choices = {"weights": choice} if choice else {}
            name = ", ".join(filter(None, [row, choice]))
            settings.append({"name": name, "row": row, "choices": choices, "shared": {}, "levels": levels})
            settings[-1]["candidates"] = candidates
    failed = settings[-1]["candidates"][0]["runs"][1]
    runs[failed] = {"seed": 1, "error": "the loss is no longer finite at step 3; got {'make': nan}; lower lr"}
    head = {"format": "vmmr-study", "version": 1, "vmmr": "0.1.0", "title": "one network or two", "images": "0" * 16}
    return head | {
        "seeds": [0, 1],
        "conditions": ["clean", "fog@3"],
        "settings": settings,
        "runs": runs,
        "split": "test",
    }
