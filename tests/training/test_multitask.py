"""Training every level: from a table with gaps to a bundle that answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vmmr
from vmmr.cli import main
from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.errors import ConfigError, DataError
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.examples import example_strips
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle, write_bundle
from vmmr.levels import HierarchySpec
from vmmr.models import Backbone, HierarchicNetwork, HierarchicProgressiveNetwork
from vmmr.models.heads.hierarchy import split_levels
from vmmr.objectives import level_losses, marginal_nll
from vmmr.taxonomy import Taxonomy
from vmmr.training.distil import Distil
from vmmr.training.multitask import Multitask, hierarchy_losses, labels_by_level
from vmmr.training.progressive import Progressive
from vmmr.training.run import _assemble, train
from vmmr.training.samples import open_samples

Settings = Callable[..., TrainConfig]
QUIET: dict[str, Any] = {"accelerator": "cpu", "progress": False}
LEVELS = ["make", "model", "class", "body", "year_value"]
CARS = [  # make, model, year, body, colour of the picture
    ("Audi", "A4", 2008, "Sedan", (200, 40, 40)),
    ("Audi", "A4", 2012, "Sedan", (200, 120, 40)),
    ("Audi", "Q5", 2012, "SUV", (200, 40, 160)),
    ("VW", "Golf", 2012, "Hatchback", (40, 40, 200)),
]


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four classes; of the training rows some tell only make and model, some only the make."""
    folder = tmp_path_factory.mktemp("levels")
    random = np.random.default_rng(0)
    lines = ["path,make,model,year,body,split"]
    for number in range(64):
        make, model, year, body, colour = CARS[number % 4]
        pixels = np.clip(np.array(colour) + random.integers(-30, 30, (36, 36, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        split = "train" if number < 44 else "val" if number < 56 else "test"
        told: tuple[Any, ...] = (make, model, year, body)
        if split == "train" and number % 11 == 0:
            told = (make, model, "", "")
        elif split == "train" and number % 11 == 1:
            told = (make, "", "", body)
        lines.append(f"{number}.png,{','.join(map(str, told))},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(cars: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "levels"
    config = tiny(levels=LEVELS, hierarchy="coarse_to_fine", head_dropout=0.1, marginal_weight=0.1, epochs=5)
    return out, train(config, cars, out, **QUIET)


def test_labels_with_gaps_reach_the_batch(cars: Path, tiny: Settings) -> None:
    samples = open_samples(Manifest.load(cars), tiny(levels=LEVELS))
    assert samples.levels is not None
    assert samples.levels.widths == {"make": 2, "model": 3, "class": 4, "body": 3, "year_value": 1}
    assert samples.taxonomy.names == ("Audi A4 2008", "Audi A4 2012", "Audi Q5 2012", "VW Golf 2012")
    missing = {level: int((labels < 0).sum()) for level, labels in samples.train.by_level.items()}
    # Golf and Q5 have one year each, but it is the class that names it.
    assert missing == {"make": 0, "model": 4, "class": 8, "body": 4, "year_value": 8}
    assert (samples.train.labels == samples.train.by_level["class"]).all()
    assert (samples.validation.labels >= 0).all()


def test_coarser_levels_make_a_coarser_taxonomy(cars: Path, tiny: Settings) -> None:
    makes = open_samples(Manifest.load(cars), tiny(levels=["make"]))
    assert makes.taxonomy.names == ("Audi", "VW")
    assert (makes.train.labels >= 0).all()
    models = open_samples(Manifest.load(cars), tiny(levels=["make", "model"]))
    assert models.taxonomy.names == ("Audi A4", "Audi Q5", "VW Golf")
    assert int((models.train.labels < 0).sum()) == 4


def test_a_run_learns_every_level(run: tuple[Path, dict[str, Any]], cars: Path) -> None:
    out, metrics = run
    last = metrics["history"][-1]
    assert {"make", "model", "class", "body", "year_value", "marginal"} <= set(last)
    assert {f"val_{level}" for level in LEVELS} <= set(last)
    for level in ("make", "model", "class", "body"):
        assert last[level] < metrics["history"][0][level]
    best = metrics["history"][metrics["best_epoch"]]
    assert best["val_class"] == best["val_top1"] == metrics["val_top1"] == metrics["val_class"] >= 0.75
    assert best["val_make"] >= 0.9
    bundle = read_bundle(out / "bundle")
    assert bundle.spec.hierarchy is not None
    assert bundle.spec.hierarchy.form == "coarse_to_fine"
    assert bundle.spec.hierarchy.attributes == {"body": ("Hatchback", "SUV", "Sedan")}
    assert bundle.taxonomy.names == ("Audi A4 2008", "Audi A4 2012", "Audi Q5 2012", "VW Golf 2012")


def test_the_evaluation_counts_every_level(run: tuple[Path, dict[str, Any]], cars: Path, tiny: Settings) -> None:
    bundle = read_bundle(run[0] / "bundle")
    held = Manifest.load(cars).split("val")
    clean = evaluate(bundle, held)["conditions"]["clean"]
    best = run[1]["history"][run[1]["best_epoch"]]
    for level in ("make", "model", "class", "body"):
        assert clean["levels"][level]["top1"] == pytest.approx(best[f"val_{level}"])
    assert clean["levels"]["year_value"]["mean_error"] == pytest.approx(best["val_year_value"], rel=1e-4)
    assert clean["consistent"]["consistency"] == 1
    assert clean["consistent"]["joint"] == pytest.approx(clean["top1"])  # a right class has a right make
    with torch.no_grad():
        levels = bundle.levels
        assert levels is not None
        pixels = open_samples(Manifest.load(cars), tiny(levels=LEVELS)).validation
        spec = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
        image = spec.normalise(spec.centre_crop(pixels.pixels[np.arange(len(pixels))]))
        p = split_levels(bundle.network().answer(image), levels.widths)["class"].softmax(1)
    audi = p[:, :3].sum(1) > p[:, 3]
    assert clean["marginal"]["make"] == pytest.approx(((audi.numpy() ^ (pixels.by_level["make"] == 0)) == 0).mean())
    # Rows that tell no class are left out of what is judged; vehicles of no level are refused.
    both = evaluate(bundle, Manifest.load(cars).split("train"))
    assert both["data"]["images"] == 36


def test_answers_carry_every_level(run: tuple[Path, dict[str, Any]], cars: Path) -> None:
    recognizer = vmmr.load(run[0] / "bundle")
    held = Manifest.load(cars).split("test")
    answers = recognizer(list(held.path_list()))
    for answer, row in zip(answers, range(len(held)), strict=True):
        told = {item.level: item for item in answer.levels}
        assert list(told) == LEVELS
        sure = [told[level].confidence for level in ("make", "model", "class")]
        assert sure[2] == pytest.approx(answer.confidence, abs=1e-6)
        assert sure[0] >= sure[1] - 1e-6 >= sure[2] - 2e-6  # type: ignore[operator]
        assert (answer.level, told["class"].value) == ("class", f"{answer.make} {answer.model} {answer.year}")
        assert told["year_value"].confidence is None
        assert abs(int(told["year_value"].value) - 2012) < 12
        assert told["body"].confidence is not None
        assert row < len(answers)
    document = answers[0].to_dict()
    assert [level["level"] for level in document["levels"]] == LEVELS


def test_an_unsure_answer_says_the_make(run: tuple[Path, dict[str, Any]], cars: Path, tmp_path: Path) -> None:
    bundle = read_bundle(run[0] / "bundle")
    picture = str(Manifest.load(cars).split("test").path(0))
    plain = vmmr.load(run[0] / "bundle")(picture)

    def under(**thresholds: float) -> vmmr.Answer:
        assert bundle.spec.hierarchy is not None
        spec = replace(bundle.spec, hierarchy=replace(bundle.spec.hierarchy, thresholds=thresholds))
        return vmmr.load(write_bundle(tmp_path / "car", replace(bundle, spec=spec)))(picture)

    make = under(make=0.0, model=2.0, **{"class": 2.0})
    assert (make.level, make.make, make.model, make.year) == ("make", plain.make, "", None)
    assert make.confidence == plain.levels[0].confidence
    assert make.alternatives[0].model == plain.model
    assert make.alternatives[0].confidence == pytest.approx(plain.confidence)
    assert str(make).startswith(f"{plain.make} (")
    model = under(make=0.0, model=0.0, **{"class": 2.0})
    assert (model.level, model.make, model.model, model.year) == ("model", plain.make, plain.model, None)
    assert under(make=0.0, model=0.0, **{"class": 0.0}) == plain
    nothing = under(make=2.0, model=2.0, **{"class": 2.0})
    assert (nothing.level, nothing.make, nothing.model) == ("", "", "")
    assert str(nothing) == f"unsure ({plain.confidence:.1%})"


def test_thresholds_are_fitted_where_asked(cars: Path, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(levels=["make", "class"], hierarchy="conditional", noise="gaussian", epochs=2, back_off=0.9)
    train(config, cars, tmp_path / "run", **QUIET)
    spec = read_bundle(tmp_path / "run" / "bundle").spec
    assert spec.hierarchy is not None
    assert set(spec.hierarchy.thresholds) == {"make", "class"}
    recognizer = vmmr.load(tmp_path / "run" / "bundle")
    held = Manifest.load(cars).split("val")
    answers = recognizer(list(held.path_list()))
    for level in ("make", "class"):
        said = [(answer, held.column("make")[row]) for row, answer in enumerate(answers) if answer.level == level]
        if level == "make" and said:
            assert np.mean([answer.make == truth for answer, truth in said]) >= 0.9


def test_a_make_alone_is_a_network_of_makes(cars: Path, tiny: Settings, tmp_path: Path) -> None:
    metrics = train(tiny(levels=["make"], epochs=2), cars, tmp_path / "run", **QUIET)
    assert metrics["test_images"] == 8
    bundle = read_bundle(tmp_path / "run" / "bundle")
    strips = example_strips({"makes": bundle}, Manifest.load(cars).split("test"), shown=["clean", "fog@3"])
    assert [strip.truth in ("Audi", "VW") for strip in strips] == [True, True]
    answer = vmmr.load(tmp_path / "run" / "bundle")(str(Manifest.load(cars).path(0)))
    assert (answer.make in ("Audi", "VW"), answer.model, answer.year, answer.level) == (True, "", None, "make")


def test_a_killed_run_goes_on_with_its_levels(cars: Path, tiny: Settings, tmp_path: Path) -> None:
    from lightning.fabric import Fabric  # slow to import

    from vmmr.training.loop import fit

    samples = open_samples(Manifest.load(cars), tiny(levels=["make", "class"]))
    ends = []
    for part in (2, 1):
        for epochs in range(part, 3):  # in one go, and with a stop after the first epoch
            config = tiny(levels=["make", "class"], level_weights={"make": 0.5}, head_dropout=0.3, epochs=2)
            torch.manual_seed(0)
            assert samples.levels is not None
            spec = HierarchySpec(("make", "class"))
            network = HierarchicNetwork(Backbone("test_resnet", 0), samples.levels, spec, dropout=0.3)
            method = Multitask(network, config)
            if epochs == 1:
                method.begin = _stop_in_epoch_1  # type: ignore[method-assign]
            fabric = Fabric(accelerator="cpu", devices=1)
            try:
                fit(method, samples, config, fabric, tmp_path / str(part), resume=True, progress=False)
            except KeyboardInterrupt:
                continue
            ends.append(network.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def _stop_in_epoch_1(batch: dict[str, torch.Tensor], epoch: int) -> dict[str, torch.Tensor]:
    if epoch == 1:
        raise KeyboardInterrupt
    return batch


def test_the_verbs_tell_of_levels(
    run: tuple[Path, dict[str, Any]], cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, report = str(run[0] / "bundle"), tmp_path / "report"
    assert main(["evaluate", bundle, "--data", str(cars), "--split", "test", "--report", str(report)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    clean = json.loads((report / "results.json").read_text())["conditions"]["clean"]
    assert f"each level by itself: make {clean['levels']['make']['top1']:.1%}, model" in printed
    assert f"both right {clean['independent']['joint']:.1%}" in printed
    assert main(["predict", bundle, str(cars / "1.png"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [item["level"] for item in said["levels"]] == LEVELS


def test_losses_are_those_of_each_level(tiny: Settings) -> None:
    taxonomy = Taxonomy.from_rows(*(list(column) for column in zip(*[car[:3] for car in CARS], strict=True)))
    spec = HierarchySpec(("make", "class"))
    torch.manual_seed(0)
    network = HierarchicNetwork(Backbone("test_resnet", 0), spec.levels(taxonomy), spec)
    config = tiny(levels=["make", "class"], level_weights={"make": 0.3}, marginal_weight=0.5)
    method = Multitask(network, config)
    batch = {
        "image": 2 * torch.rand(4, 3, 32, 32) - 1,
        "label": torch.tensor([0, 2, -1, 3]),
        "label_make": torch.tensor([0, 0, 0, 1]),
        "label_class": torch.tensor([0, 2, -1, 3]),
    }
    [step] = method.steps(0, 0)
    losses = step.losses(step.prepare(batch, torch.Generator().manual_seed(0)))
    logits = split_levels(network(batch["image"])["logits_0"], {"make": 2, "class": 4})
    expected = level_losses(logits, labels_by_level(batch), weights={"make": 0.3})
    assert list(losses) == ["make", "class", "marginal"]
    for level in ("make", "class"):
        torch.testing.assert_close(losses[level], expected[level])
    told = marginal_nll(logits["class"], torch.tensor([0, 0, 0, 1]), batch["label_make"], 2)
    torch.testing.assert_close(losses["marginal"], 0.5 * told)
    nobody = dict.fromkeys(("make", "class"), torch.full((4,), -1))
    assert hierarchy_losses(logits, nobody, network.levels, config) == {}
    assert {id(p) for p in method.head_parameters()} == {id(p) for p in network.head.parameters()}


def test_consistency_draws_views_together(tiny: Settings) -> None:
    taxonomy = Taxonomy.from_rows(["A", "B"], ["x", "y"])
    spec = HierarchySpec(("make", "class"), form="coarse_to_fine")
    network = HierarchicNetwork(Backbone("test_resnet", 0), spec.levels(taxonomy), spec, teacher_forcing=True)
    config = tiny(levels=["make", "class"], hierarchy="coarse_to_fine", consistency=12.0, noise="strong")
    labels = torch.tensor([0, 1])
    batch = {"image": torch.zeros(2, 3, 32, 32), "label": labels, "label_make": labels, "label_class": labels}
    [step] = Multitask(network, config).steps(0, 0)
    prepared = step.prepare(batch, torch.Generator().manual_seed(0))
    assert prepared["image"].shape == (6, 3, 32, 32)
    losses = step.losses(prepared)
    assert list(losses) == ["make", "class", "consistency"]
    assert losses["consistency"] > 0


def _progressive(taps: str = "all") -> HierarchicProgressiveNetwork:
    taxonomy = Taxonomy.from_rows(*(list(column) for column in zip(*[car[:3] for car in CARS], strict=True)))
    spec = HierarchySpec(("make", "class"), taps=taps)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return HierarchicProgressiveNetwork(Backbone("test_resnet", 0), spec.levels(taxonomy), spec, "lean")


def _batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "image": 2 * torch.rand(4, 3, 32, 32) - 1,
        "label": torch.tensor([0, 2, -1, 3]),
        "label_make": torch.tensor([0, 0, 0, 1]),
        "label_class": torch.tensor([0, 2, -1, 3]),
    }


@pytest.mark.parametrize("taps", ["all", "shallow_first"])
def test_pmal_recognises_every_level_at_every_depth(taps: str, tiny: Settings) -> None:
    network = _progressive(taps)
    config = tiny(method="pmal", noise="gaussian", levels=["make", "class"], taps=taps, restored_weight=0.5)
    method = Progressive(network, config)
    shallow = ["make"] if taps == "shallow_first" else ["make", "class"]
    for number, depth in enumerate((1, 2, 3)):
        [step] = method.steps(0, number)
        prepared = step.prepare(_batch(), torch.Generator().manual_seed(0))
        losses = step.losses(prepared)
        heads = [f"head_1_{level}" for level in shallow]
        heads += [f"head_{j}_{level}" for j in (2, 3) for level in ("make", "class")]
        again = [f"restored_{depth}_{level}" for level in (shallow if depth == 1 else ["make", "class"])]
        assert list(losses) == [*heads, "trunk_make", "trunk_class", f"restore_{depth}", *again]
        outputs = network(prepared["noisy"])
        for head, logits in network.by_level(outputs).items():
            told = level_losses(logits, labels_by_level(prepared))
            for level, loss in told.items():
                name = f"head_{head}_{level}" if head != "0" else f"trunk_{level}"
                torch.testing.assert_close(losses[name], loss if head != "0" else 2 * loss)
    seldom = Progressive(network, config.with_(restore_every=2))
    [step] = seldom.steps(0, 1)
    losses = step.losses(step.prepare(_batch(), torch.Generator().manual_seed(0)))
    assert list(losses) == [*heads, "trunk_make", "trunk_class"]
    published = Progressive(
        network, tiny(method="pmal", mode="published", noise="published", levels=["make", "class"], taps=taps)
    )
    names = [list(step.losses(step.prepare(_batch(), torch.Generator()))) for step in published.steps(0, 0)]
    assert names[0] == [
        *(f"noisy_1_{level}" for level in shallow),
        "restore_1",
        *(f"restored_1_{level}" for level in shallow),
    ]
    assert names[3][-2:] == ["trunk_make", "trunk_class"]
    trained = {id(p) for p in method.head_parameters()}
    assert trained == {id(p) for n, p in network.named_parameters() if not n.startswith("backbone.")}


def test_pmd_copies_every_level_of_the_heads_that_have_it(tiny: Settings) -> None:
    teacher = _progressive("shallow_first")
    spec = HierarchySpec(("make", "class"))
    torch.manual_seed(2)
    student = HierarchicNetwork(Backbone("test_resnet", 0), teacher.levels, spec)
    method = Distil(student, teacher, tiny(method="pmd", levels=["make", "class"], logit_weight=3.0))
    batch = method.begin(_batch(), 0)
    [step] = method.steps(0, 0)
    losses = step.losses(step.prepare(batch, torch.Generator()))
    assert list(losses) == [
        *("logits_make", "logits_class", "labels_make", "labels_class"),
        *("features_1", "features_2", "features_3"),
    ]
    told = student.by_level(student(batch["image"]))["0"]
    with torch.no_grad():
        heads = teacher.by_level(teacher(batch["image"]))
    for level, voters in (("make", "0123"), ("class", "023")):
        mean = torch.stack([heads[j][level] for j in voters]).mean(0)
        expected = 3.0 * len(voters) * (told[level] - mean).square().mean()
        torch.testing.assert_close(losses[f"logits_{level}"], expected)
    torch.testing.assert_close(losses["labels_class"], level_losses(told, labels_by_level(batch))["class"])


def test_from_a_teacher_of_levels_to_a_student(cars: Path, tiny: Settings, tmp_path: Path) -> None:
    levels = ["make", "class", "body"]
    config = tiny(
        method="pmal", noise="gaussian", epochs=1, levels=levels, hierarchy="conditional", taps="shallow_first"
    )
    train(config, cars, tmp_path / "teacher", **QUIET)
    bundle = tmp_path / "teacher" / "bundle"
    assert isinstance(read_bundle(bundle).network(), HierarchicProgressiveNetwork)
    assert [told.level for told in vmmr.load(bundle)(str(cars / "0.png")).levels] == levels
    student = train(tiny(method="pmd", noise="strong", epochs=1), cars, tmp_path / "s", teacher=bundle, **QUIET)
    assert {"logits_make", "labels_body", "features_1", "val_make"} <= set(student["history"][0])
    spec = read_bundle(tmp_path / "s" / "bundle").spec
    assert spec.hierarchy is not None
    assert (spec.kind, spec.hierarchy.form, spec.hierarchy.names) == ("plain", "parallel", tuple(levels))
    assert isinstance(read_bundle(tmp_path / "s" / "bundle").network(), HierarchicNetwork)
    with pytest.raises(ConfigError, match="same levels"):
        train(tiny(method="pmd", levels=["make"]), cars, tmp_path / "o", teacher=bundle, **QUIET)


def test_the_trunk_that_pmal_leaves_answers_every_level(cars: Path, tiny: Settings, tmp_path: Path) -> None:
    levels = ["make", "class", "body"]
    config = tiny(method="pmal", noise="gaussian", epochs=1, levels=levels, hierarchy="conditional", keep="trunk")
    metrics = train(config, cars, tmp_path / "run", **QUIET)
    network = read_bundle(tmp_path / "run" / "bundle").network()
    assert isinstance(network, HierarchicNetwork)
    assert [told.level for told in vmmr.load(tmp_path / "run" / "bundle")(str(cars / "0.png")).levels] == levels
    assert 0 <= metrics["val_make"] <= 1


@pytest.mark.parametrize("form", ["parallel", "conditional"])
def test_a_student_starts_from_the_teacher_where_their_heads_are_of_one_form(
    form: str, cars: Path, tiny: Settings
) -> None:
    spec = HierarchySpec(("make", "class"), form=form)  # type: ignore[arg-type]
    config = tiny(method="pmd", levels=["make", "class"])
    samples = open_samples(Manifest.load(cars), config)
    model = ModelSpec("progressive", "test_resnet", 4, hierarchy=spec)
    torch.manual_seed(5)
    network = build_network(model, samples.taxonomy)
    assert isinstance(network, HierarchicProgressiveNetwork)
    guide = Bundle(model, samples.taxonomy, samples.preprocess, network.state_dict(), "")
    method, _ = _assemble(config, samples, guide)
    student = method.network
    assert isinstance(student, HierarchicNetwork)
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(student.backbone.state_dict()[name], value)
    same = [torch.equal(student.head.state_dict()[k], v) for k, v in network.level_heads[0].state_dict().items()]
    assert same == [form == "parallel"] * len(same)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": ["wheels"]},
        {"levels": ["body"]},
        {"levels": ["make"], "level_weights": {"class": 1.0}},
        {"levels": ["make"], "level_weights": {"make": -1.0}},
        {"levels": ["make"], "back_off": 1.5},
        {"levels": ["make"], "head_dropout": 1.0},
        {"levels": ["make"], "taps": "shallow_first"},
        {"levels": ["make"], "method": "pmal", "noise": "strong", "teacher_forcing": True},
        {"hierarchy": "conditional"},
        {"level_weights": {"make": 1.0}},
        {"back_off": 0.9},
        {"marginal_weight": 1.0},
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], tiny: Settings) -> None:
    with pytest.raises(ConfigError):
        tiny(**changes)


def test_nothing_to_learn_the_finest_level_from(cars: Path, tiny: Settings) -> None:
    manifest = Manifest.load(cars)
    blurred = [
        year if split == "train" else None for year, split in zip(_years(manifest), manifest.splits, strict=True)
    ]
    columns = {name: manifest.column(name) for name in ("make", "model", "split")}
    table = Manifest.from_columns({"path": manifest.table["path"], **columns, "year": blurred}, manifest.root)
    with pytest.raises(DataError, match="finest"):
        open_samples(table, tiny(levels=["make", "class"]))


def _years(manifest: Manifest) -> list[int | None]:
    years: list[int | None] = manifest.table["year"].to_pylist()
    return years


def test_a_flat_transformer_learns_levels(cars: Path, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(backbone="test_vit", backbone_options={"img_size": 32}, levels=["make", "class"], balancer="avgnorm")
    train(config.with_(epochs=8, lr=3e-3, trunk_lr=3e-3), cars, tmp_path / "run", **QUIET)
    bundle = read_bundle(tmp_path / "run" / "bundle")
    told = evaluate(bundle, Manifest.load(cars).split("test"))["conditions"]["clean"]
    assert told["levels"]["make"]["top1"] >= 0.8  # three reds and a blue: 0.75 by chance
    answer = vmmr.load(tmp_path / "run" / "bundle")(cars / "3.png")
    assert answer.make == "VW"
    with pytest.raises(ConfigError, match=r"takes no image of 32 pixels.*img_size"):
        train(config.with_(backbone="vit_tiny_patch16_224", backbone_options={}), cars, tmp_path / "wrong", **QUIET)
    with pytest.raises(ConfigError, match="pyramid"):
        train(config.with_(method="pmal", noise="strong"), cars, tmp_path / "pmal", **QUIET)
