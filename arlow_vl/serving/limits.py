"""Limits on what one client, and all clients together, may cost the server."""

from dataclasses import dataclass

from vision.decoding.image import DEFAULT_LIMITS, ImageLimits


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """All limits of the server.

    Raises:
        ValueError: a limit is not positive, or below what one request needs.
    """

    max_body_bytes: int = 32 * 2**20
    """Size of one request's body, images in base64 included."""
    max_held_bytes: int = 128 * 2**20
    """Total size of the bodies that are being read or answered."""
    max_values: int = 500_000
    """Values in a request's JSON, which take far more memory than their text."""
    max_images: int = 8
    """Images of one request."""
    image: ImageLimits = DEFAULT_LIMITS
    max_new_tokens: int = 1024
    """Longest answer that may be asked for, in tokens."""
    request_seconds: float = 300
    """Time from a request's first byte to the last byte of its answer."""
    read_seconds: float = 30
    """Time for a client to send a head, to send a body, or to read what was written to it."""
    max_connections: int = 256

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name != "image" and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(f"max_held_bytes is {self.max_held_bytes:,}, less than one body, {self.max_body_bytes:,}")


DEFAULT_SERVER_LIMITS = ServerLimits()
