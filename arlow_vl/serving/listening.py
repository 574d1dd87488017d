"""Listening sockets. Light to import, so that an unusable address is refused before anything is loaded."""

import contextlib
import errno
import ipaddress
import socket

from arlow_vl.printing import visible


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine reaches."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Binds a socket to an address; port 0 takes a free one. Raises ValueError if the address cannot be used."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be from 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except socket.gaierror:
        raise ValueError(f"--host {visible(host)} is no address of this machine; try 127.0.0.1") from None
    except OSError as error:
        raise _refusal(host, port, error) from None
    return listener


def begin_to_listen(listener: socket.socket) -> None:
    """Lets clients connect. Raises ValueError if another program has begun to listen there since `listen`."""
    try:
        listener.listen()
    except OSError as error:
        host, port, *_ = listener.getsockname()
        raise _refusal(host, port, error) from None


def _refusal(host: str, port: int, error: OSError) -> ValueError:
    is_taken = error.errno == errno.EADDRINUSE
    reason = "another program listens there" if is_taken else error.strerror
    return ValueError(f"cannot listen on {visible(host)} port {port}: {reason}; take another --port")
