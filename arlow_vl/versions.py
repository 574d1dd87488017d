"""Versions of packages, as commands and records name them."""

from importlib.metadata import PackageNotFoundError, version

ABSENT = "not installed"


def version_of(package: str) -> str:
    """Returns the version of a package, or `ABSENT`, also for this one in a checkout that was never installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT
