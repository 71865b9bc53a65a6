"""`vmmr serve`: answers over HTTP."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from vmmr.errors import ConfigError
from vmmr.serving.settings import Settings

__all__ = ["add_serve", "run_serve"]


def add_serve(verbs: Any) -> None:
    """The verb: its flags are the fields of `Settings`, with their defaults and their lines of its docstring."""
    serve = ArgumentParser(description="Answer over HTTP, with a page for people at the address itself.")
    told = dict(re.findall(r"^ {8}(\w+): (.+)$", Settings.__doc__ or "", flags=re.MULTILINE))
    kinds = get_type_hints(Settings)
    for field in fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "bundle":
            serve.add_argument("bundle", type=str, help=told[field.name])
        elif kinds[field.name] is bool:
            serve.add_argument(flag, action="store_true", help=told[field.name])
        else:
            serve.add_argument(flag, type=kinds[field.name], default=field.default, help=told[field.name])
    verbs.add_subcommand("serve", serve, help="answer over HTTP")


def run_serve(args: Namespace) -> int:
    """Serve until a signal ends it."""
    settings = Settings(**{field.name: args[field.name] for field in fields(Settings)})
    try:
        from vmmr.serving.server import serve
    except ImportError as error:
        raise ConfigError("the server is not installed", got=error.name, do="pip install 'vmmr[serve]'") from error
    serve(settings)
    return 0
