"""From a shard's members to its samples: which belong together, which samples are whole, and why the others are not."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from arlow_vl.data.tar_members import TarMember
from arlow_vl.data.text import Unusable, clean_caption, has_lone_surrogate, json_memory, parse_object

IMAGE_SUFFIXES = frozenset("jpg jpeg jpe jfif png gif webp bmp tif tiff mpo".split())
UNSAFE_NAME = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
MEMBER_BYTES = 750  # of memory that one member takes, roughly


class ShardOverflow(ValueError):
    """The shard holds more than its limits allow; what came before is used."""


@dataclass(frozen=True, kw_only=True)
class ReaderLimits:
    """What one shard may cost."""

    max_member_bytes: int = 64 * 2**20
    """Bytes of an image."""
    max_text_bytes: int = 2**20
    """Bytes of a .txt or .json member."""
    max_pixels: int = 64_000_000
    """Width times height of an image, where images are decoded."""
    max_members: int = 500_000
    """Members of one shard, whatever they are."""
    max_held_bytes: int = 200 * 2**20
    """Memory that the texts and fields of one shard take, roughly."""


class FoundSample(NamedTuple):
    """A whole sample: exactly one image and one text that is not empty."""

    key: str
    image: TarMember
    text: str
    fields: dict[str, Any]


class _Part(NamedTuple):
    extension: str
    value: Any
    fault: str | None


@dataclass(slots=True)
class _Group:
    """Members that share a key; one key has several groups if it comes twice."""

    key: str
    image: list[_Part] = field(default_factory=list)
    txt: list[_Part] = field(default_factory=list)
    json: list[_Part] = field(default_factory=list)

    def sample(self) -> FoundSample:
        """Raises Unusable if this is not a whole sample."""
        image = _only(self.image, "image")
        text = _only(self.txt, "text") if self.txt else self._caption()
        fields = self.json[0].value if len(self.json) == 1 else None
        return FoundSample(self.key, image, text, fields or {})

    def _caption(self) -> str:
        caption = _only(self.json, "text").get("caption")
        if not isinstance(caption, str):
            raise Unusable("missing_text")
        return clean_caption(caption)

    def is_whole(self) -> bool:
        try:
            return self.sample() is not None
        except Unusable:
            return False


def _only(parts: list[_Part], what: str) -> Any:
    if len(parts) != 1:
        raise Unusable(f"several_{what}s" if parts else f"missing_{what}")
    if parts[0].fault:
        raise Unusable(parts[0].fault)
    return parts[0].value


class SampleGatherer:
    """Takes the members of one shard in file order and groups them by key, also where other keys come between."""

    def __init__(self, limits: ReaderLimits) -> None:
        self.limits = limits
        self.last_key = ""
        self._groups: list[_Group] = []  # in file order
        self._open: dict[str, _Group] = {}  # the last group of each key
        self._unsafe_example = ""
        self._members = self._held = self._unsafe = 0

    def add(self, member: TarMember, read: Callable[[], bytes]) -> None:
        """Raises ShardOverflow when the limits of the whole shard are reached."""
        self._members += 1
        if self._members > self.limits.max_members:
            raise ShardOverflow(f"more than {self.limits.max_members:,} members, the rest is not read")
        if member.is_folder:
            return
        if not member.name or UNSAFE_NAME.search(member.name):
            self._unsafe_example = self._unsafe_example or (member.name or "a name with a NUL or not UTF-8")[:80]
            self._unsafe += 1
            return
        key, extension = split_name(member.name)
        suffix = extension.rpartition(".")[2]
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind not in ("image", "txt", "json"):
            return
        self._hold(MEMBER_BYTES + 2 * len(member.name))
        group = self._group(key, kind, extension)
        if member.is_regular:  # a link or device leaves its sample incomplete
            getattr(group, kind).append(self._part(member, kind, extension, read))

    def _group(self, key: str, kind: str, extension: str) -> _Group:
        """The group that a member joins. A part that its key already has begins a second sample of that key if the
        first is whole or other keys came between; else it is one part too many of the first."""
        group, is_same_run = self._open.get(key), key == self.last_key
        self.last_key = key
        if group is not None:
            present = [part.extension for part in getattr(group, kind)]
            repeats = extension in present
            if not present or (is_same_run and not (repeats and group.is_whole())):
                return group
            if not is_same_run and not repeats and not group.is_whole():
                return group
        group = self._open[key] = _Group(key)
        self._groups.append(group)
        return group

    def _part(self, member: TarMember, kind: str, extension: str, read: Callable[[], bytes]) -> _Part:
        limit = self.limits.max_member_bytes if kind == "image" else self.limits.max_text_bytes
        if member.size > limit:
            return _Part(extension, None, "image_too_large" if kind == "image" else "text_too_large")
        if kind == "image":
            return _Part(extension, member, None)
        raw = read()
        try:
            value = clean_caption(raw) if kind == "txt" else _fields(raw)
        except Unusable as fault:
            return _Part(extension, None, str(fault))
        self._hold(sys.getsizeof(value) if kind == "txt" else json_memory(raw))
        return _Part(extension, value, None)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self.limits.max_held_bytes:
            raise ShardOverflow(f"texts and names over {self.limits.max_held_bytes:,} bytes, the rest is not read")

    def finish(self, skip: Callable[..., None], ignored: Counter[str]) -> Iterator[FoundSample]:
        """The whole samples in file order. `skip(reason, key)` is called for each of the others, `skip(reason, example,
        count)` for unsafe names; `ignored` counts broken .json members of samples that do not need them."""
        if self._unsafe:
            skip("unsafe_name", self._unsafe_example, self._unsafe)
        used = set()
        for group in self._groups:
            if group.key in used:
                skip("duplicate_key", group.key)
                continue
            try:
                sample = group.sample()
            except Unusable as fault:
                skip(str(fault), group.key)
                continue
            used.add(group.key)
            ignored.update(part.fault for part in group.json if part.fault)
            yield sample


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's key (the path up to the first dot of its last part) and extension (the rest, in lower case).

    The extension is empty for what operating systems leave behind and for names that are no sample's.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or base.lower() == "thumbs.db" or "__MACOSX" in folder.split("/"):
        return "", ""
    return folder + slash + stem, extension.lower()


def _fields(raw: bytes) -> dict[str, Any]:
    fields = parse_object(raw)
    if has_lone_surrogate(raw, fields):
        raise Unusable("bad_json")
    return fields
