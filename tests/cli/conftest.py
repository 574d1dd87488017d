from pathlib import Path
from typing import NamedTuple

import pytest

from arlow_vl.serving.assistant import Assistant
from tests.serving.tiny_folders import write_folders


class Models(NamedTuple):
    text: str
    vision: str


@pytest.fixture(scope="package")
def models(tmp_path_factory):
    """Folders of a tiny text model and of a vision-language model made of it."""
    return Models(*map(str, write_folders(tmp_path_factory.mktemp("models"))))


@pytest.fixture(scope="package")
def assistants(models):
    """The same, open."""
    return {folder: Assistant.open(Path(folder), device="cpu") for folder in models}
