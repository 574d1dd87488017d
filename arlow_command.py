"""Entry point of the `arlow` command. It lies outside the package, whose import takes seconds to register the models.

`arlow_vl/__init__.py` leaves that out where this module is loaded, and the verbs import the models that they need.
"""

from arlow_vl.cli import run

__all__ = ["run"]
