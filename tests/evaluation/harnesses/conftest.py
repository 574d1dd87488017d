"""The tiny model of the task tests, and images for it."""

import numpy as np
import pytest
from PIL import Image

from arlow_vl.evaluation.harnesses.requests import open_assistant
from tests.evaluation.tasks.conftest import model_folder
from tests.tiny_runs import write_text_checkpoint

__all__ = ["model_folder"]


@pytest.fixture(scope="session")
def assistant(model_folder):
    return open_assistant(str(model_folder), device="cpu")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    return write_text_checkpoint(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def images():
    """Three that differ."""
    dice = np.random.default_rng(0)
    return [Image.fromarray(dice.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
