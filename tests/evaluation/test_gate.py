"""What is said of known images by a bundle that tells unknown ones: as the recognizer says it, and in its card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.evaluation.card import evaluation_part
from vmmr.evaluation.compare import write_comparison
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.gate import answer_and_signs, gate_part, gate_scores
from vmmr.evaluation.markdown import replace_part
from vmmr.evaluation.robustness import condition
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle
from vmmr.levels import HierarchySpec
from vmmr.models.decoding import NEVER
from vmmr.recognizer import Recognizer
from vmmr.taxonomy import Taxonomy
from vmmr.unknown import Fitted, Gate
from vmmr.unknown.detector import Detector


@pytest.fixture(scope="module")
def bundle(tiny_known: Path, tiny_cars: Path) -> Bundle:
    """One whose gate lets half of the known images pass."""
    found = read_bundle(tiny_known)
    assert found.detector is not None
    recognizer = Recognizer(found)
    pixels = [recognizer.read(path) for path in Manifest.load(tiny_cars).split("test").path_list()]
    scores = np.sort(recognizer.outputs(np.stack(pixels))["signs"][:, 0])
    gate = replace(found.detector.gate, known=float(scores[5:7].mean()), shortest=0)
    return replace(found, detector=replace(found.detector, gate=gate))


@pytest.fixture(scope="module")
def judged(bundle: Bundle, tiny_cars: Path) -> dict[str, Any]:
    return evaluate(bundle, Manifest.load(tiny_cars).split("test"), wanted=["clean", "fog@5"])


def test_known_images_are_judged_as_the_recognizer_judges_them(
    bundle: Bundle, judged: dict[str, Any], tiny_cars: Path
) -> None:
    recognizer, paths = Recognizer(bundle), Manifest.load(tiny_cars).split("test").path_list()
    assert bundle.detector is not None
    pixels = np.stack([recognizer.read(path) for path in paths])
    fog = condition("fog@5", seed=0)
    assert fog is not None
    network = bundle.network().eval()
    for name in ("clean", "fog@5"):
        image = recognizer.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        image = fog(image, np.arange(len(paths))) if name == "fog@5" else image
        with torch.no_grad():
            outputs = network(image, pooled=True)
        signs = bundle.detector.signs(outputs["pooled"], network.answer_of(outputs), image)
        reasons = Counter(str(bundle.detector.reason(row, sure=True)) for row in signs.tolist())
        found = judged["conditions"][name]["unknown"]
        assert found["reasons"] == {reason: count / 12 for reason, count in reasons.items()}
        assert found["taken_for_unknown"] == pytest.approx(np.mean(signs[:, 0].numpy() > bundle.detector.gate.known))
        assert sum(found["reasons"].values()) == pytest.approx(1)
        if name == "clean":
            assert reasons == Counter(answer.reason for answer in recognizer(paths))
    assert judged["unknown"] == bundle.detector.settings
    assert 0 < judged["conditions"]["clean"]["unknown"]["taken_for_unknown"] < 1


def test_the_rest_of_the_document_is_that_without_a_detector(bundle: Bundle, tiny_cars: Path) -> None:
    test = Manifest.load(tiny_cars).split("test")
    plain = evaluate(replace(bundle, detector=None), test)
    own = evaluate(bundle, test)
    assert plain["unknown"] is None
    del own["conditions"]["clean"]["unknown"]
    assert own["conditions"] == plain["conditions"]
    assert own["confusions"] == plain["confusions"]


def test_where_no_level_is_sure_nothing_known_is_ok() -> None:
    torch.manual_seed(0)
    taxonomy = Taxonomy.from_rows(["Audi", "Audi", "BMW"], ["A4", "A6", "M3"])
    gate = Gate(known=0.9, vehicle=0.95, dull=0.0, soft=-99.0, noisy=99.0)
    detector = Detector("msp", gate, Fitted())
    for threshold, reason in ((0.0, "ok"), (NEVER, "unsure")):
        hierarchy = HierarchySpec(("make", "class"), thresholds={"make": threshold, "class": threshold})
        spec = ModelSpec("plain", "test_resnet", 3, hierarchy=hierarchy)
        network = build_network(spec, taxonomy)
        bundle = Bundle(spec, taxonomy, Preprocess(32, 32), network.state_dict(), "#", detector=detector)
        with torch.no_grad():
            found = answer_and_signs(bundle, network.eval(), detector)(torch.rand(4, 3, 32, 32))
        assert found.shape == (4, 2 + 3 + 3)
        told = gate_scores(bundle, detector, bundle.class_scores(found[:, :-3]), found[:, -3:])
        assert told == {"taken_for_unknown": 0.0, "reasons": {reason: 1.0}}


def test_the_card_says_how_the_gate_was_set(tiny_known: Path, bundle: Bundle) -> None:
    card = read_bundle(tiny_known).card
    start = card.index("## Unknown vehicles")
    assert "Told by knn_pca: known up to 0." in card[start:]
    assert "which 100.0 % of 9 validation images are" in card[start:]  # 0.9 of 9 images: 9 of them
    assert "Nothing is said below 20 pixels." in card[start:]
    assert replace_part(card, "unknown", "x") != card
    detector = replace(bundle.detector, gate=Gate(2.0, 3.0, 0.0, -1.0, 1.0))  # type: ignore[type-var]
    part = gate_part(detector, torch.tensor([1.0, 2.0, 2.5, 1.5]), torch.tensor([2.0, 3.0]))
    assert "which 75.0 % of 4 validation images are; a vehicle up to 3. AUROC of 81.2 %" in part
    assert "pixels" not in part


def test_page_and_card_of_results_say_it(
    tmp_path: Path, judged: dict[str, Any], parse: Callable[[str], Any], document: Callable[..., dict[str, Any]]
) -> None:
    results = document(unknown=True)
    page = parse(write_comparison(tmp_path / "page.html", {"a": results, "b": document(seed=1)}).read_text("utf-8"))
    words = " ".join(page.words)
    assert words.count("What it takes for unknown") == 1
    assert "puts above 0.75" in words
    clean = results["conditions"]["clean"]["unknown"]
    cells = [f"{100 * v:.1f} %" for v in (clean["taken_for_unknown"], *clean["reasons"].values())]
    assert ["clean", *cells] in page.rows
    fog = [results["conditions"][f"fog@{s}"]["unknown"]["taken_for_unknown"] for s in (1, 3, 5)]
    assert f"{100 * np.mean(fog):.1f} %" in next(row for row in page.rows if row[0] == "fog" and len(row) == 5)[1]
    part = evaluation_part(results)
    corrupted = [s["unknown"]["taken_for_unknown"] for n, s in results["conditions"].items() if "@" in n]
    assert f"By knn: {cells[0]} of clean images, {100 * np.mean(corrupted):.1f} % under corruption." in part
    assert "a score that can err" in part
    assert "gets one of them as well" in evaluation_part(document())
    assert "taken for unknown" not in evaluation_part(document())
    real = evaluation_part(judged)
    assert "### Known vehicles taken for unknown" in real
