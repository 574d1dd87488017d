import pytest

from arlow_vl.serving.assistant import Assistant
from tests.serving.tiny_folders import write_folders


@pytest.fixture(scope="package")
def folders(tmp_path_factory):
    """A text model's folder and a vision-language model's."""
    return write_folders(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="package")
def assistant(folders):
    """In float64, where no order of a sum shows in what is written."""
    assistant = Assistant.open(folders[1], device="cpu")
    assistant.model.double()
    return assistant
