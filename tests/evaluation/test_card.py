"""Cards and tables in Markdown: the numbers of the document, renewed in place, safe from what classes are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError
from vmmr.evaluation.card import comparison_table, evaluation_part, with_evaluation
from vmmr.evaluation.markdown import replace_part
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle, write_bundle
from vmmr.models import Backbone
from vmmr.taxonomy import Taxonomy

Make = Callable[..., dict[str, Any]]


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_card_says_what_the_document_says(document: Make) -> None:
    results = document()
    part = evaluation_part(results, licence="research only")
    rows, scores, summary = cells(part), results["conditions"], results["summary"]
    value, (low, high) = 100 * summary["camera"]["value"], summary["camera"]["interval"]
    assert f"| Camera and road | {value:.1f} % ({100 * low:.1f}–{100 * high:.1f}) |" in part
    assert rows["Gaussian noise"] == [  # the last row of that name: the noise curve
        f"{100 * scores[name]['top1']:.1f} %" for name in ("clean", *(f"gaussian_{s}" for s in (0.05, 0.1, 0.2, 0.4)))
    ]
    assert rows["severity"] == ["0", "1", "3", "5"]
    camera = ("downscale", "low_light", "rain")
    means = [sum(scores[f"{kind}@{s}"]["top1"] for kind in camera) / 3 for s in (1, 3, 5)]
    assert rows["Camera and road"][1:] == [f"{100 * mean:.1f} %" for mean in means]
    for words in (
        "400 images of the split test, 5 classes of 3 makes",
        "Licence of the data: research only.",
        f"{100 * scores['clean']['ece']:.1f} % on clean images",
        "Temperature 1.37, fitted on val.",
        "2,474,948 parameters, 61.0 million MACs an image, 8.2 ms an image",
        "Audi A4 2012 as Audi A6 2012 (30.0 %)",
    ):
        assert words in part


def test_a_card_is_renewed_in_place(document: Make) -> None:
    card = "# vmmr bundle\n\n- method: plain\n"
    first = with_evaluation(card, document())
    assert first.startswith(card)
    assert with_evaluation(first, document()) == first
    second = with_evaluation(first + "\nA word of mine.\n", document(seed=5))
    assert second.startswith(card)
    assert second.endswith("A word of mine.\n")
    assert second.count("## Evaluation") == 1
    assert evaluation_part(document(seed=5)) in second
    assert evaluation_part(document()) not in second


def test_a_card_survives_its_bundle(tmp_path: Path, document: Make) -> None:
    spec = ModelSpec("plain", "test_resnet", classes=2)
    network = build_network(spec)
    assert isinstance(network, Backbone)
    taxonomy = Taxonomy.from_rows(["Audi", "Audi"], ["A4", "A6"])
    tensors = {name: value.clone() for name, value in network.model.state_dict().items()}
    write_bundle(tmp_path / "b", Bundle(spec, taxonomy, Preprocess(height=32, width=32), tensors, "# mine\n"))
    before = read_bundle(tmp_path / "b")
    write_bundle(tmp_path / "b", replace(before, card=with_evaluation(before.card, document())))
    after = read_bundle(tmp_path / "b")
    assert after.card == with_evaluation("# mine\n", document())
    assert after.digest != before.digest
    assert all(torch.equal(after.tensors[name], value) for name, value in before.tensors.items())
    assert (after.spec, after.taxonomy.names, after.preprocess) == (spec, taxonomy.names, before.preprocess)


def test_little_is_said_of_a_document_that_holds_little() -> None:
    part = evaluation_part({"conditions": {"clean": {"top1": 0.5}}})
    assert "Noise curve" not in part
    assert "Cost" not in part
    assert "Limits" in part


def test_hostile_names_make_no_markup(document: Make) -> None:
    name = "a | b\n<!-- end of evaluation -->\n# c *d* `e` [f](g) <script>"
    part = evaluation_part(document(names=[name, "Audi A6"]), licence=name)
    assert "<" not in part
    assert not re.search(r"^# c", part, re.MULTILINE)
    assert "a \\| b &lt;!-- end of evaluation --&gt; # c \\*d\\* \\`e\\` \\[f\\](g)" in part
    card = with_evaluation("x\n", document(names=[name, "Audi A6"]))
    assert with_evaluation(card, document()) == with_evaluation("x\n", document())
    table = comparison_table({"a|b": document()})
    assert table.splitlines()[0] == "| top-1 (95 % interval) | a\\|b |"


def test_the_best_of_a_row_is_bold(document: Make) -> None:
    documents = {"worse": document(falls=0.6), "better": document(falls=0.1)}
    rows = cells(comparison_table(documents))
    for title in ("All corruptions", "Gaussian noise", "Lost, of clean"):
        assert not rows[title][0].startswith("**")
        assert rows[title][1].startswith("**")
    with pytest.raises(ConfigError, match="different conditions"):
        comparison_table(documents | {"other": document(severities=(2,))})


def test_only_its_own_part_of_a_text_is_replaced() -> None:
    text = "a\n<!-- x: generated -->old<!-- end of x -->\nb <!-- y: generated -->kept<!-- end of y -->"
    found = replace_part(text, "x", "new")
    assert found == text.replace("old", "\n\nnew\n\n")
    assert replace_part(found, "x", "new") == found
    for other in ("no comments", "<!-- x: generated -->", "<!-- end of x --><!-- x: generated -->"):
        with pytest.raises(ConfigError, match="no place for the x"):
            replace_part(other, "x", "new")
