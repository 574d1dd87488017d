"""Annotations checked on every call, at a fraction of what jaxtyping's own decorator costs.

That one binds the arguments of every call by `inspect`, and checks them twice: a tiny training run took half as long
again. beartype alone checks each once; what a name of an axis means is kept for one call of a function in whose
annotations there are axes.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CHECK = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
"""With jaxtyping's exception, which is a TypeError."""
ONE_CALL = jaxtyping.jaxtyped("context")
"""Within it a name of an axis is one size; entered again, the names of the inner call are its own."""


def install(modules: list[str]) -> None:
    """To be called before the modules are imported."""
    jaxtyping.jaxtyped = checked  # what the hook puts above every function and class
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def checked(of: Any = None, *, typechecker: Any = None) -> Any:
    """The decorator: nearest to a function, and above a dataclass, of which it checks what it is made of."""
    if of is None:
        return checked
    if not inspect.isclass(of):
        return checked_function(of)
    if dataclasses.is_dataclass(of) and "__init__" in vars(of):
        of.__init__ = checked_function(of.__init__)
    return of


def checked_function(function: Callable) -> Callable:
    checks = CHECK(function)
    if not any(map(has_axes, getattr(function, "__annotations__", {}).values())):
        return checks

    @functools.wraps(function)
    def with_axes(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with ONE_CALL:
            return checks(*args, **kwargs)

    return with_axes


def has_axes(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return "Tensor" in annotation or "ndarray" in annotation
    is_array = inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_array or any(map(has_axes, typing.get_args(annotation)))
