"""JSON fields of a request: each is taken once, and a field that nobody took is refused by its name."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from arlow_vl.models.arlow.spelling import closest
from arlow_vl.printing import visible
from arlow_vl.serving.refusals import Refusal

SHOWN = 60  # characters of a client's own words in a message
MAX_DIGITS, MAX_SIZE = 400, 1e300  # of a number
MAX_DEPTH = 100  # of nested lists and objects; deeper ones may be parsed and yet be too deep to be shown


def shown(value: Any) -> str:
    """Returns a client's value for a message, shortened and escaped."""
    if value == "":
        return "an empty string"
    text = value if isinstance(value, str) else json.dumps(value)
    return visible(text[:SHOWN] + ("..." if len(text) > SHOWN else ""))


def parse_object(body: bytes, max_values: int) -> dict[str, Any]:
    """Parses a body that must be a JSON object. Raises Refusal."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > max_values:
        raise Refusal(413, f"the JSON holds over {max_values:,} values; send fewer")
    try:
        hooks = {"parse_constant": _refuse_constant, "parse_int": _whole_number, "object_pairs_hook": _object_of}
        values = json.loads(body.decode("utf-8-sig"), **hooks)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error.msg} at character {error.pos:,}") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Refusal(400, f"the body must be a JSON object, got {_name(values)}")
    _check_depth(values)
    return values


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(MAX_DEPTH):
        below = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = list(chain.from_iterable(below))
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Refusal:
    return Refusal(400, "the JSON is nested too deeply; send an object as the API describes it")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, and {MAX_DIGITS} are the most")
    return int(digits)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object. Raises ValueError for a name that comes twice, which JSON readers treat differently."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has {shown(twice)} twice; send it once")
    return values


class Fields:
    """The members of the JSON object at `path`, "" for the body itself. null counts as absent."""

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, dict):
            raise Refusal(400, f"{path} must be an object, got {_name(values)}", path)
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path
        self._taken: set[str] = set()

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, problem: str, code: str | None = None) -> Refusal:
        """Returns the refusal of a field, for the caller to raise."""
        return Refusal(400, f"{self.path(name)} {problem}", self.path(name), code)

    def take(self, name: str) -> Any:
        """Returns any value, None if absent."""
        self._taken.add(name)
        return self._values.pop(name, None)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.refuse(name, f"must be a string, got {_name(value)}")
        return checked_text(value, self.path(name))

    def flag(self, name: str) -> bool:
        """Returns a boolean, False if absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, got {shown(value)}")
        return bool(value)

    def number(self, name: str) -> float | None:
        value = self.take(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not is_number:
            raise self.refuse(name, f"must be a number, got {shown(value)}")
        if value is not None and not abs(value) < MAX_SIZE:
            raise self.refuse(name, "must be a number from -1e300 to 1e300, got one beyond")
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refuse(name, f"must be a whole number from {least:,} to {most:,}, got {shown(value)}")
        return value

    def neutral(self, name: str, allowed: Iterable[Any], instead: str = "leave it out") -> None:
        """Takes a field that is not supported. Raises Refusal unless it asks for nothing, by a value in `allowed`."""
        value = self.take(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            raise self.refuse(name, f"is not supported; {instead}", "unsupported_parameter")

    def end(self) -> None:
        """Raises Refusal for a field that nobody took."""
        for name in self._values:
            path = shown(self.path(name))
            close = closest(name, sorted(self._taken), cutoff=0.8)
            instead = f"did you mean {self.path(close)}?" if close else "leave it out"
            raise Refusal(400, f"{path} is not known here; {instead}", path, "unknown_parameter")


def checked_text(text: str, path: str) -> str:
    """Returns the text. Raises Refusal if it cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(
            400, f"{path} holds half of a surrogate pair, which is no character; send whole ones", path
        ) from None
    return text


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
