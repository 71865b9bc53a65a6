"""How the pages of the repository become a site: a hook of MkDocs and an extension of griffe, named in mkdocs.yml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Alias, Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ["HouseDocstrings", "as_markdown", "on_files"]

BESIDE_DOCS = ("*.md", "LICENSE", "CITATION.cff", "deploy/*", "examples/**/*.*")
"""What pages may link to outside of docs/."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page at its place in the repository: docs/ stays docs/, and what it links to above stands above."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir)
    found = []
    for file in files:
        if file.src_dir == config.docs_dir:
            file = _file(root, f"{docs.name}/{file.src_uri}", config)
        found.append(file)
    beside = sorted({path for pattern in BESIDE_DOCS for path in root.glob(pattern) if path.is_file()})
    return Files([*found, *(_file(root, path.relative_to(root).as_posix(), config) for path in beside)])


def _file(root: Path, place: str, config: MkDocsConfig) -> File:
    return File(place, str(root), config.site_dir, config.use_directory_urls)


class HouseDocstrings(Extension):
    """Docstrings as Markdown, and every object once: on the page of the module that defines it."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_alias(self, *, alias: Alias, **_: Any) -> None:
        """What a room's `__init__` hands on is shown where it stands; the face of the package shows what it imports."""
        if alias.parent is not None and alias.parent.path != "vmmr":
            alias.public = False


def as_markdown(text: str) -> str:
    r"""Doctests, runs of lines from ">>>" to the next empty one, as blocks of code, and numbers of arXiv as links.

    >>> as_markdown("Adds (arXiv 1234.56789).\n\n>>> 1 + 1  # doctest: +SKIP\n2").splitlines()
    ['Adds ([arXiv 1234.56789](https://arxiv.org/abs/1234.56789)).', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    text = re.sub(r" *# doctest: .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", text)
