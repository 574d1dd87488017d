"""A server and an empty cache."""

import threading

import pytest

from arlow_vl.data.remote_cache import DataCache
from tests.data.remote.server import Server


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ARLOW_DATA_CACHE", str(tmp_path / "cache"))
    return DataCache(tmp_path / "cache", 2**20)
