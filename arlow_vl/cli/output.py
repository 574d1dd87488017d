"""Standard output that says so where it cannot be written, as a full disk does of no file."""

import io
import os
import sys

from arlow_vl.errors import ResourceError


class Output(io.TextIOWrapper):
    """Raises ResourceError in place of OSError, and has it at hand where a library passes over it."""

    fault: ResourceError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise self._told(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise self._told(error) from error

    def _told(self, error: OSError) -> ResourceError:
        """What is left of it is let go, as Python would try once more, and complain, at its end."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
        self.fault = ResourceError(
            f"standard output cannot be written ({error.strerror}), and what was printed is not whole; send it to "
            "where there is room"
        )
        return self.fault


def tell_of_output() -> None:
    """Puts an `Output` in the place of Python's; a terminal that lacks a letter is shown its number."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        how = {"encoding": out.encoding, "line_buffering": out.line_buffering, "write_through": out.write_through}
        sys.stdout = sys.__stdout__ = Output(out.detach(), errors="backslashreplace", **how)


def flush_output() -> None:
    """Raises ResourceError where something of what was printed could not be written."""
    sys.stdout.flush()
    if fault := getattr(sys.stdout, "fault", None):
        raise fault
