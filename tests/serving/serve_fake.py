"""A server whose worker is `fake_worker.py`; its settings are the one argument, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vmmr.serving.server import serve
from vmmr.serving.settings import Settings

if __name__ == "__main__":
    WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
    serve(Settings(**json.loads(sys.argv[1])), worker=WORKER)
