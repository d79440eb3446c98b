"""One rendered clip for all files of this folder."""

from __future__ import annotations

import pytest

from .layouts import Shot, write_shot


@pytest.fixture(scope="session")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Shot:
    return write_shot(tmp_path_factory.mktemp("shot"))
