"""Standard output that reports when it cannot be written, as on a full disk."""

import io
import os
import sys

from arlow_vl.errors import ResourceError


class Output(io.TextIOWrapper):
    """Raises ResourceError in place of OSError, and keeps it in `fault`, as libraries may ignore it."""

    fault: ResourceError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ResourceError:
        """Returns the error, and drops the rest of the output, which Python would try to write again at its end."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
        self.fault = ResourceError(
            f"standard output cannot be written ({error.strerror}), and what was printed is not whole; send it to "
            "where there is room"
        )
        return self.fault


def install_output() -> None:
    """Replaces `sys.stdout` by an `Output`; characters that its encoding lacks are shown as escapes."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        how = {"encoding": out.encoding, "line_buffering": out.line_buffering, "write_through": out.write_through}
        sys.stdout = sys.__stdout__ = Output(out.detach(), errors="backslashreplace", **how)


def flush_output() -> None:
    """Raises ResourceError if anything that was printed could not be written."""
    sys.stdout.flush()
    if fault := getattr(sys.stdout, "fault", None):
        raise fault
