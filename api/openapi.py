"""``python -m api.openapi``: writes docs/openapi.json."""

from __future__ import annotations

import json
from pathlib import Path

from api.app import make_app
from api.desk import open_desk
from worker.config import Settings

PATH = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"


def text() -> str:
    """The OpenAPI document as it is committed."""
    # Nothing is connected to: any address will do.
    desk = open_desk(Settings(database_url="postgresql://nowhere/ris"))
    return json.dumps(make_app(desk).openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
