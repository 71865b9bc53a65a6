"""The rules of the house that a machine can check.

`python tests/test_house.py` rewrites the tables of docs/training.md.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import vmmr
from vmmr.config import TrainConfig
from vmmr.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vmmr"
MODULES = {".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in sorted(SOURCE.rglob("*.py"))}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TRAINING_PAGE = ROOT / "docs" / "training.md"

# The order in which an image meets the rooms: each may import from those before it.
ROOMS = (
    *("data", "noise", "models", "unknown", "incremental"),
    *("objectives", "balancing", "training", "evaluation", "export", "serving"),
)
# What every room may import, and what no room may: the face stands on all of them.
FLOOR = {"answer", "config", "discriminants", "errors", "files", "levels", "taxonomy", "torchvision_ops"}
FACE = {"__init__", "bulk", "cli", "demo", "extend", "recipes", "recognizer", "study", "tracks", "triage", "workers"}
# Imports against the order, each with its reason.
AGAINST_THE_ORDER = {
    ("training.loop", "evaluation.classify"),  # the validation score that selects
    ("training.loop", "evaluation.hierarchy"),  # and that of every level
    ("training.run", "evaluation.evaluate"),  # the one look at the test images, at the very end
    ("training.run", "export.bundle"),  # what a run leaves, and the teacher it starts from
    ("training.run", ""),  # the version that metrics.json names
    ("evaluation.evaluate", "export.bundle"),  # what is judged is a bundle
    ("evaluation.gate", "export.bundle"),  # and what its detector says
    ("evaluation.evaluate", ""),  # the version that the results name
    ("evaluation.examples", "export.bundle"),  # and so is what answers on its page
    ("export.bench", ""),  # the version that times name
    ("export.export", ""),  # and the one that an artifact names
    ("serving.worker", "recognizer"),  # what it serves
    ("serving.app", ""),  # the version that the server names
}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _code(name: str) -> ast.Module | None:
    """The module, or None for the empty file that makes a folder a package."""
    tree = _tree(MODULES[name])
    return tree if tree.body else None


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def _imports(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports, also inside functions; "" is the package itself."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("vmmr").removeprefix(".") for name in found if name.split(".")[0] == "vmmr"}


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff sorts `__all__`."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


@pytest.mark.parametrize("name", [name for name in MODULES if _code(name) is not None])
def test_every_module_says_what_it_is_and_what_it_offers(name: str) -> None:
    tree = _tree(MODULES[name])
    assert ast.get_docstring(tree), "no docstring"
    exported = _exported(tree)
    assert exported is not None, "no __all__"
    assert exported == sorted(set(exported), key=_order), "__all__ is not sorted"
    bare = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in exported:
            members = node.body if isinstance(node, ast.ClassDef) else []
            methods = [m for m in members if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
            bare += [item.name for item in (node, *methods) if not ast.get_docstring(item)]
    assert bare == [], "public, without a docstring"


def test_rooms_import_from_the_left() -> None:
    against = set()
    for name in MODULES:
        room = name.split(".")[0]
        if room not in ROOMS:
            continue
        for imported in _imports(_tree(MODULES[name])):
            target = imported.split(".")[0]
            if target in FLOOR or (target in ROOMS and ROOMS.index(target) <= ROOMS.index(room)):
                continue
            against.add((name, imported))
    assert against == AGAINST_THE_ORDER


def test_every_module_has_its_place() -> None:
    assert {name.split(".")[0] for name in MODULES} <= {*ROOMS, *FLOOR, *FACE}
    for name in FLOOR:
        assert {imported.split(".")[0] for imported in _imports(_tree(MODULES[name]))} <= FLOOR, name


def test_answers_and_help_need_no_torch() -> None:
    """torch takes seconds to import, and `vmmr --help` has nothing to compute."""
    modules = "vmmr, vmmr.answer, vmmr.cli, vmmr.config, vmmr.data.manifest, vmmr.recipes, vmmr.taxonomy"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_the_plan_names_every_module() -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    own_rooms = ("data.datasets.", "data.rendered.", "recipes.")  # described as a whole
    names = {name.split(".")[-1] for name in MODULES if not name.startswith(own_rooms)} - {"__init__"}
    assert {name for name in names if not re.search(rf"\b{name}\b", plan)} == set()


def test_nothing_runs_what_it_reads_and_nothing_calls_home() -> None:
    """No pickle in any form, no evaluation of text, no network of our own."""
    modules = {"pickle", "shelve", "marshal", "dill", "joblib", "urllib", "http", "socket", "requests", "ftplib"}
    calls = {"eval", "exec", "torch.load", "torch.hub.load", "yaml.load", "np.load", "numpy.load", "os.system"}
    found = []
    for name, path in MODULES.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                if (module or "").split(".")[0] in modules:
                    found.append(f"{name}: import {module}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                found.append(f"{name}: {ast.unparse(node.func)}")
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search("https?:/{2}", node.value)
            ):
                found.append(f"{name}: {node.value[:40]!r}")
    assert found == []


def test_no_path_of_somebodys_machine() -> None:
    folders = ("src", "tests", "docs", "examples", "benchmarks")
    files = [
        p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".md", ".jinja", ".html"}
    ]
    machine = re.compile(r"(?<![\w.<])/(work|farm|tmp|home|root|Users)/")
    hits = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*files, *PAGES, ROOT / "Makefile", ROOT / "pyproject.toml"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert hits == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == vmmr.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert f'version = "{vmmr.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## [{vmmr.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def test_no_file_holds_the_marks_of_a_conflict() -> None:
    for path in [*PAGES, *MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.startswith(("<" * 7 + " ", ">" * 7 + " ")), f"{path.name}: {line}"


def settings_table() -> str:
    """Every field of TrainConfig with its default and its line of the docstring."""
    told = dict(re.findall(r"^ {8}(\w+): (.+)$", TrainConfig.__doc__ or "", flags=re.MULTILINE))
    assert set(told) == {field.name for field in fields(TrainConfig)}, "docstring and fields of TrainConfig differ"
    defaults = TrainConfig().to_dict()
    rows = [f"| `{name}` | {_shown(defaults[name])} | {meaning} |" for name, meaning in told.items()]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def recipes_table() -> str:
    """The settings that any two recipes differ in."""
    table = {name: recipe().to_dict() for name, recipe in RECIPES.items()}
    names = [f.name for f in fields(TrainConfig) if len({str(config[f.name]) for config in table.values()}) > 1]
    rows = [f"| `{n}` | {' | '.join(_shown(config[n]) for config in table.values())} |" for n in names]
    return "\n".join([f"| setting | {' | '.join(table)} |", f"|---|{'---|' * len(table)}", *rows])


def _with_tables(text: str) -> str:
    for name, table in (("settings", settings_table()), ("recipes", recipes_table())):
        start, end = f"<!-- {name}: from the code -->", f"<!-- end of {name} -->"
        text = re.sub(f"{start}.*?{end}", lambda _, s=start, t=table, e=end: f"{s}\n{t}\n{e}", text, flags=re.DOTALL)
    return text


def test_the_settings_are_documented() -> None:
    text = TRAINING_PAGE.read_text(encoding="utf-8")
    assert settings_table() in text, "run `python tests/test_house.py`"
    assert recipes_table() in text, "run `python tests/test_house.py`"


def test_the_results_page_shows_its_records() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "results.py", "--check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


if __name__ == "__main__":
    TRAINING_PAGE.write_text(_with_tables(TRAINING_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
