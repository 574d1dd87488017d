"""Grouping of a shard's members into samples: which are whole, and for what reason the others are not.

One rule, WebDataset's, decides key and kind. The key is the name up to the first dot of its last part; the rest is the
extension. It must be exactly an image's, `txt` or `json` to make a part of a sample:

    v1.0/a.jpg       the image of sample v1.0/a
    1.mask.png       ignored where sample 1 has an image of its own: another image of it, which is not used
    photo.0000.jpg   else a lost sample: its key has a dot, and read by the rule it would be one of many named photo
    b.0.jpg b.1.jpg  images of sample b, if b.json says where they belong ("messages", "texts" or "document") and there
                     is no b.jpg; they are counted from 0 without gaps

Every member is in one place in the end: of a sample, of a bad sample with its reason, or ignored and counted by kind.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from arlow_vl.data.formats.messages import BadText, read_texts, texts_named_in
from arlow_vl.data.member_names import NUMBERED_IMAGE, UNSAFE_NAME, kind_of, split_name, system_file
from arlow_vl.data.questions import Question, read_questions
from arlow_vl.data.samples import Text, TextTask
from arlow_vl.data.tar_members import TarMember
from arlow_vl.data.text import Unusable, clean_caption, has_lone_surrogate, json_memory, keys_of, parse_object

MEMBER_BYTES = 750  # of memory that one member takes, roughly
MAX_NAME_SHOWN = 80  # characters of a name that is kept for messages alone
MAX_IGNORED_KINDS = 100  # that are counted apart; more are "others"


class ShardOverflow(ValueError):
    """The shard holds more than its limits allow; the members before are used."""


@dataclass(frozen=True, kw_only=True)
class ReaderLimits:
    """Limits on what one shard may cost."""

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
    """A whole sample: a text that is not empty and its image, or `texts` and as many images as each has places for."""

    key: str
    images: tuple[TarMember, ...]
    caption: str
    """Empty where `texts` or questions stand in for it."""
    fields: dict[str, Any]
    questions: tuple[Question, ...]
    bad_questions: list[tuple[int, str]]
    """Number and reason of each question that cannot be used."""
    texts: tuple[Text, ...]
    """The conversations and documents of the .json."""
    bad_texts: list[BadText]
    members: int


class BadSample(NamedTuple):
    """A sample, or a text of a sample, that cannot be used, and the reason."""

    name: str
    reason: str
    members: int = 1
    count: int = 1
    """Samples that were lost, at least: one key may be written over many of them."""
    detail: str = ""
    """Continuation of the name in a message."""
    image_files: tuple[str, ...] = ()
    """Image files to repair, as in `Unusable`."""
    task: TextTask | None = None
    """Task of a text; None: this is a sample."""


class Gathered(NamedTuple):
    """A shard's members, each in exactly one place: of a sample, of a bad sample, or ignored."""

    samples: list[FoundSample]
    bad: list[BadSample]
    ignored: Counter[str]
    """Members by what they are: `.cls`, `folder`, `hidden_file`, or the fault of a .json whose sample does without."""


class _Part(NamedTuple):
    extension: str
    value: Any
    fault: str | None = None
    detail: str = ""


@dataclass(slots=True)
class _Group:
    """Members that share a key; one key has several groups if it comes twice."""

    key: str
    image: list[_Part] = field(default_factory=list)
    txt: list[_Part] = field(default_factory=list)
    json: list[_Part] = field(default_factory=list)
    links: Counter[str] = field(default_factory=Counter)
    """Number, by kind, of members that are a link, device or FIFO: never followed, so they are no parts."""
    names: set[str] = field(default_factory=set)
    """Extensions of the parts."""
    is_numbered: bool = False
    """The images are those named `key.0.jpg`, `key.1.jpg`, ..., in the order of their numbers."""

    def claim(self, numbered: list["_Dotted"]) -> bool:
        """Takes images named `key.0.jpg` if the .json has a place for them and there is no `key.jpg`."""
        if self.image or self.links["image"] or not texts_named_in(self._fields()):
            return False
        self.image = [part for dotted in numbered for part in dotted.images]
        self.is_numbered = bool(self.image)
        return self.is_numbered

    @property
    def members(self) -> int:
        return len(self.image) + len(self.txt) + len(self.json) + self.links.total()

    def sample(self, ignored: Counter[str]) -> FoundSample:
        """Returns the sample and counts in `ignored` what it does without. Raises Unusable if it is not whole."""
        fields = self._fields()
        named = texts_named_in(fields)
        images = self._images() if named else (_only(self.image, "image"),)
        texts, bad_texts = read_texts({name: fields[name] for name in named}, len(images))
        questions, bad_questions = read_questions(fields.get("questions"))
        caption = "" if self._does_without_caption(fields, bool(texts or questions), bad_texts) else self._caption()
        if not images and (caption or questions):
            raise Unusable("missing_image")
        rest = {name: value for name, value in fields.items() if name != "questions" and name not in named}
        faults = [part.fault or "several_jsons" for part in self.json if part.fault or len(self.json) > 1]
        faults += ["not_a_file"] * self.links.total()
        ignored.update(faults)
        members = self.members - len(faults)
        return FoundSample(self.key, images, caption, rest, questions, bad_questions, tuple(texts), bad_texts, members)

    def _fields(self) -> dict[str, Any]:
        return self.json[0].value if len(self.json) == 1 and not self.json[0].fault else {}

    def _images(self) -> tuple[TarMember, ...]:
        """Returns the images of conversations and documents: none, one, or those that are numbered."""
        if not self.image:
            return ()
        if not self.is_numbered:
            return (_only(self.image, "image"),)
        if [part.extension.partition(".")[0] for part in self.image] != [str(n) for n in range(len(self.image))]:
            raise Unusable("images_not_counted_from_0")
        return tuple(_only([part], "image") for part in self.image)

    def _does_without_caption(self, fields: dict[str, Any], has_texts: bool, bad_texts: list[BadText]) -> bool:
        if self.txt or fields.get("caption") is not None:
            return False
        if bad_texts and not has_texts:
            raise bad_texts[0].fault
        return has_texts

    def _caption(self) -> str:
        if self.txt:
            return _only(self.txt, "text")
        fields = _only(self.json, "text")
        caption = fields.get("caption")
        if not isinstance(caption, str):
            raise Unusable("missing_text", f"{keys_of(fields)}: a text belongs under 'caption' as a string")
        return clean_caption(caption)

    def bad(self, reason: str, detail: str = "") -> BadSample:
        kinds = ("txt", "json") if self.is_numbered else ("image", "txt", "json")
        surplus = (len(getattr(self, kind)) + self.links[kind] - 1 for kind in kinds)
        lost = max(1, *surplus)
        return BadSample(self.key, reason, self.members, lost, detail)

    def is_whole(self) -> bool:
        try:
            return self.sample(Counter()) is not None
        except Unusable:
            return False


def _only(parts: list[_Part], what: str) -> Any:
    if len(parts) != 1:
        raise Unusable(f"several_{what}s" if parts else f"missing_{what}")
    if parts[0].fault:
        raise Unusable(parts[0].fault, parts[0].detail)
    return parts[0].value


@dataclass(slots=True)
class _Dotted:
    """Members whose names have more dots than one, as `photo.0000.jpg`: alike up to the last dot."""

    key: str
    """The name up to the first dot."""
    extensions: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    images: list[_Part] = field(default_factory=list)
    """Numbered images, named `1.jpg` after the key."""

    @property
    def number(self) -> int:
        return int(self.images[0].extension.partition(".")[0])

    def is_lost_sample(self, group: _Group | None) -> bool:
        """Tells `photo.0000.jpg`, a sample whose key has a dot, from `1.mask.png`, one more image of sample 1.

        `group` has the members that are named by the key alone, as `1.jpg` is.
        """
        if "image" not in self.kinds:
            return group is None
        return "txt" in self.kinds or group is None or not group.image


class SampleGatherer:
    """Groups the members of one shard, given in file order, by key, also where other keys come between."""

    def __init__(self, limits: ReaderLimits) -> None:
        self.limits = limits
        self.last_key = ""
        self.members = 0
        self._groups: list[_Group] = []  # in file order
        self._open: dict[str, _Group] = {}  # the last group of each key
        self._dotted: dict[str, _Dotted] = {}  # by the name up to its last dot
        self._unsafe: list[BadSample] = []
        self._ignored: Counter[str] = Counter()
        self._held = 0

    def add(self, member: TarMember, read: Callable[[], bytes]) -> None:
        """Adds a member. Raises ShardOverflow when the limits of the whole shard are reached."""
        if self.members == self.limits.max_members:
            raise ShardOverflow(f"more than {self.limits.max_members:,} members, the rest is not read")
        if member.is_folder:
            self._ignore("folder")
        elif not member.name or UNSAFE_NAME.search(member.name):
            name = member.name[:MAX_NAME_SHOWN] or "a name with a NUL or not UTF-8"
            self._hold(MEMBER_BYTES)
            self._unsafe.append(BadSample(name, "unsafe_name"))
        elif left_over := system_file(member.name):
            self._ignore(left_over)
        else:
            self._add_named(member, read)
        self.members += 1  # one that made the shard overflow is not read

    def _add_named(self, member: TarMember, read: Callable[[], bytes]) -> None:
        key, extension = split_name(member.name)
        stem, _, last = member.name.rpartition(".")
        kind, last_kind = kind_of(extension), kind_of(last.lower())
        if kind is None and last_kind is None:
            self._ignore(f".{extension}")
            return
        self._hold(MEMBER_BYTES + 3 * len(member.name))
        if kind is None:
            dotted = self._dotted.setdefault(stem, _Dotted(key))
            dotted.extensions.append(extension[-MAX_NAME_SHOWN:])
            dotted.kinds.add(last_kind or "")
            if NUMBERED_IMAGE.fullmatch(extension) and last_kind == "image":
                part = self._part(member, "image", extension, read)
                dotted.images.append(part if member.is_regular else _Part(extension, None, "missing_image"))
            return
        group = self._group(key, kind, extension)
        if member.is_regular:
            getattr(group, kind).append(self._part(member, kind, extension, read))
            group.names.add(extension)
        else:
            group.links[kind] += 1

    def _ignore(self, what: str) -> None:
        what = what[:MAX_NAME_SHOWN]
        self._ignored[what if what in self._ignored or len(self._ignored) < MAX_IGNORED_KINDS else "others"] += 1

    def _group(self, key: str, kind: str, extension: str) -> _Group:
        """Returns the group that a member joins. A part that its key already has begins a second sample of that key if
        the first is whole or other keys came between; else it is one part too many of the first."""
        group, is_same_run = self._open.get(key), key == self.last_key
        self.last_key = key
        if group is not None:
            present, repeats = getattr(group, kind), extension in group.names
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
            return _Part(extension, member)
        raw = read()
        try:
            value = clean_caption(raw) if kind == "txt" else _parse_json_member(raw)
        except Unusable as fault:
            return _Part(extension, None, str(fault), fault.detail)
        self._hold(sys.getsizeof(value) if kind == "txt" else json_memory(raw))
        return _Part(extension, value)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self.limits.max_held_bytes:
            raise ShardOverflow(f"texts and names over {self.limits.max_held_bytes:,} bytes, the rest is not read")

    def finish(self) -> Gathered:
        """Returns the samples in file order, and what became of every other member."""
        self._give_numbered_images()
        found = Gathered([], list(self._unsafe), self._ignored)
        used = set()
        for group in filter(lambda group: group.members, self._groups):  # the last has none if it made an overflow
            try:
                if group.key in used:
                    raise Unusable("duplicate_key")
                found.samples.append(group.sample(found.ignored))
                used.add(group.key)
            except Unusable as fault:
                found.bad.append(group.bad(str(fault), fault.detail))
        for stem, dotted in self._dotted.items():
            if dotted.is_lost_sample(self._open.get(dotted.key)):
                found.bad.append(BadSample(stem, "dot_in_key", len(dotted.extensions)))
            else:
                for extension in dotted.extensions:
                    self._ignore(f".{extension}")
        return found

    def _give_numbered_images(self) -> None:
        """Gives numbered images to the sample whose key they begin with, if it has places for them."""
        numbered: dict[str, dict[str, _Dotted]] = {}
        for stem, dotted in self._dotted.items():
            if dotted.images and dotted.kinds == {"image"}:
                numbered.setdefault(dotted.key, {})[stem] = dotted
        for key, of_key in numbered.items():
            group = self._open.get(key)
            if group is not None and group.claim(sorted(of_key.values(), key=lambda dotted: dotted.number)):
                for stem in of_key:
                    del self._dotted[stem]


def _parse_json_member(raw: bytes) -> dict[str, Any]:
    fields = parse_object(raw)
    if has_lone_surrogate(raw, fields):
        raise Unusable("bad_json")
    return fields
