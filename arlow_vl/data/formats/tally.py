"""Counts of what a reader used and, by reason, of what it left out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from arlow_vl.data.bad_share import MAX_BAD_FRACTION, BadTexts, refuse_bad_share, refuse_bad_texts
from arlow_vl.data.samples import Sample, TextTask
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.data.shard_samples import BadSample
from arlow_vl.data.text import Unusable
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible

UNITS = {"sample": "samples", "document": "lines, rows or documents"}
"""Names of all that may be unusable, by `Tally.unit`."""


@dataclass
class Tally:
    """Counts of a source. Each annotation is a text of a sample, a bad text, or a member of a bad sample, never two."""

    unit: Literal["sample", "document"] = "sample"
    """Unit of `samples`: a document where the source is text alone."""
    samples: int = 0
    """Usable samples."""
    texts: int = 0
    """Usable texts of these samples, questions included."""
    questions: int = 0
    """Usable questions of these samples."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that are left out; `members` are the texts (in tars, the members) that are lost with one."""
    bad_texts: list[BadSample] = field(default_factory=list)
    """Texts left out of usable samples: one caption of five, one question of ten. Each has its task."""
    faults: list[ShardFault] = field(default_factory=list)
    """Damage to whole files; the samples before it are used."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Members that make no sample and were not expected to, by what they are; see `shard_samples.Gathered`."""

    def use(self, sample: Sample) -> Sample:
        """Counts a sample that is used, and returns it."""
        self.samples += 1
        self.texts += len(sample.texts)
        self.questions += sum(text.task == "question" for text in sample.texts)
        return sample

    def leave_out(self, name: str, fault: Unusable, members: int = 1, count: int = 1) -> None:
        """Counts a sample that cannot be used, or `count` of them from the one that is named."""
        self.bad.append(BadSample(name, str(fault), members, count, fault.detail, fault.image_files))

    def leave_out_text(self, name: str, fault: Unusable, task: TextTask) -> None:
        """Counts a text that cannot be used."""
        self.bad_texts.append(BadSample(name, str(fault), detail=fault.detail, task=task))

    def add(self, other: "Tally", prefix: str = "") -> None:
        """Adds another tally; `prefix` goes before the names of its bad samples and texts."""
        self.samples += other.samples
        self.texts += other.texts
        self.questions += other.questions
        self.bad += [bad._replace(name=f"{prefix}{bad.name}") for bad in other.bad]
        self.bad_texts += [bad._replace(name=f"{prefix}{bad.name}") for bad in other.bad_texts]
        self.faults += other.faults
        self.ignored.update(other.ignored)

    @property
    def bad_questions(self) -> list[BadSample]:
        """The bad texts that are questions."""
        return [bad for bad in self.bad_texts if bad.task == "question"]

    @property
    def other_bad_texts(self) -> list[BadSample]:
        """The bad texts that are no questions: captions, conversations, documents."""
        return [bad for bad in self.bad_texts if bad.task != "question"]

    @property
    def skipped(self) -> Counter[str]:
        """Number of bad samples by reason."""
        return _counted(self.bad)

    @property
    def examples(self) -> dict[str, str]:
        """First sample that each reason in `skipped` hit, and how."""
        first: dict[str, str] = {}
        for bad in self.bad:
            first.setdefault(bad.reason, f"{bad.name}{bad.detail}")
        return first

    def summary(self) -> str:
        """`9,871 samples can be used, 129 skipped (empty_text 60, image_truncated 69), 1 shard fault`, and so on."""
        skipped = self.skipped
        parts = [f"{number_of(self.samples, self.unit)} can be used", f"{skipped.total():,} skipped{_listed(skipped)}"]
        if self.faults:
            parts.append(number_of(len(self.faults), "shard fault"))
        for what, bad in (("question", self.bad_questions), ("text", self.other_bad_texts)):
            if counts := _counted(bad):
                parts.append(f"{number_of(counts.total(), what)} skipped{_listed(counts)}")
        if self.ignored:
            parts.append(f"{number_of(self.ignored.total(), 'member')} ignored{_listed(self.ignored)}")
        return ", ".join(parts)

    def check(self, source: str, max_bad_fraction: float = MAX_BAD_FRACTION) -> None:
        """Raises DataError if too large a share of samples, questions or other texts is unusable, or none is usable."""
        where = f"{visible(source)}: "
        skipped, examples = self.skipped, self.examples
        for fault in self.faults:
            if fault.missing:
                skipped["behind_a_shard_fault"] += fault.missing
                examples.setdefault("behind_a_shard_fault", f"{fault.shard}: {fault.reason}")
        refuse_bad_share(UNITS[self.unit], self.samples, skipped, examples, max_bad_fraction, where=where)
        others, bad = self.texts - self.questions, map(BadTexts.of, self.bad_texts)
        refuse_bad_texts(self.questions, others, bad, max_bad_fraction, where=where)
        if not self.samples:
            said = "nothing there can be used; name other data"
            if self.faults:
                said = f"no {self.unit} can be used: {visible(self.faults[0].reason)}"
            raise DataError(f"{where}{said}")


def _counted(bad: list[BadSample]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for sample in bad:
        counts[sample.reason] += sample.count
    return counts


def _listed(counts: Counter[str]) -> str:
    """Returns ` (empty_text 60, missing_text 2)`, or nothing."""
    listed = ", ".join(f"{what} {count:,}" for what, count in counts.most_common())
    return visible(f" ({listed})" if counts else "")
