"""Records of a fetch: the manifest (for resuming and for reports) and the licences."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

from arlow_vl.data.fetch.packages import PackageSet
from arlow_vl.errors import DataError
from vision.whole_files import put_in_place, sha256_of_file, write_whole

BUILD_VERSION = 2  # changes when the same packages give other files
MANIFEST = "manifest.json"


def fingerprint(packages: PackageSet) -> str:
    """Hashes what a build depends on: this code's version and the archives."""
    parts = [str(BUILD_VERSION), *(package.sha256 for package in packages.packages)]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def read_manifest(root: Path) -> dict:
    """Reads the manifest; an unreadable one counts as none, so everything is built again."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"built": {}}
    if isinstance(manifest, dict) and isinstance(manifest.get("built"), dict):
        return manifest
    return {"built": {}}


def is_finished(root: Path, part: str, expected: str) -> bool:
    """Returns True if a part was built from the same packages and its files have not changed since."""
    built = read_manifest(root)["built"].get(part, {})
    if built.get("fingerprint") != expected:
        return False
    files = built["files"].items()
    return bool(files) and all((root / name).is_file() and sha256_of_file(root / name) == sha for name, sha in files)


def begin_part(root: Path, part: str) -> Path:
    """Makes an empty folder to build a part in.

    Raises:
        DataError: other files lie where the part belongs.
    """
    if part not in read_manifest(root)["built"] and (root / part).exists() and any((root / part).iterdir()):
        raise DataError(f"{root / part} holds files that {MANIFEST} does not know: move them or choose another --root")
    partial = root / f"{part}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_part(root: Path, part: str, packages: PackageSet, counts: dict) -> None:
    """Puts the finished folder in its place and records its files."""
    partial, final, old = root / f"{part}.partial", root / part, root / f"{part}.old"
    files = {f"{part}/{path.name}": sha256_of_file(path) for path in sorted(partial.iterdir())}
    manifest = read_manifest(root)
    manifest["set"], manifest["packages"] = packages.name, packages.describe()
    manifest["built"][part] = {"fingerprint": fingerprint(packages), "counts": counts, "files": files}
    shutil.rmtree(old, ignore_errors=True)
    manifest.pop("checked", None)
    _write_manifest(root, manifest)
    if final.exists():
        final.rename(old)
    put_in_place(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def record_check(root: Path, expected: str) -> None:
    """Records that the splits of this build were proved not to leak."""
    _write_manifest(root, read_manifest(root) | {"checked": expected})


def _write_manifest(root: Path, manifest: dict) -> None:
    write_whole(root / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def licences(packages: PackageSet) -> str:
    """Returns the text of LICENSES.md: a short block for each package."""
    lines = ["# Licences of the data and weights in this folder", "", f"Set: {packages.name}.", ""]
    for package in packages.packages:
        lines += [f"## {package.name} {package.version} ({package.registry})", ""]
        lines += [
            f"- licence: {package.license}",
            f"- gives: {package.gives}",
            f"- archive: `{package.file}`",
        ]
        lines += [f"- SHA-256: `{package.sha256}`", ""]
    return "\n".join(lines)
