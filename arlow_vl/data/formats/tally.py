"""What a reader of samples used, and by reason what it left out."""

from collections import Counter
from dataclasses import dataclass, field

from arlow_vl.data.bad_share import MAX_BAD_FRACTION, BadTexts, refuse_bad_share, refuse_bad_texts, told_reasons
from arlow_vl.data.samples import Sample, Task
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.data.shard_samples import BadSample
from arlow_vl.data.shards import counted, examples_of, in_brackets
from arlow_vl.data.text import Unusable
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible

FAULTS_TOLD = 5


@dataclass
class Tally:
    """Every annotation of a source is in one place: a text of a sample, a bad text, or a member of a bad sample."""

    samples: int = 0
    texts: int = 0
    """Of the samples."""
    questions: int = 0
    """Of the texts."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that are left out; `members` are the texts (in tars, the members) that are lost with one."""
    bad_texts: list[BadSample] = field(default_factory=list)
    """Texts that are left out while their image may have others: a caption, a question of ten. Each has its task."""
    faults: list[ShardFault] = field(default_factory=list)
    """Damage to whole files: what was whole before it is used."""
    ignored: Counter[str] = field(default_factory=Counter)
    """What makes no sample and was not expected to, by what it is."""

    def use(self, sample: Sample) -> Sample:
        """Counts a sample that is used, and gives it back."""
        self.samples += 1
        self.texts += len(sample.texts)
        self.questions += sum(text.task == "question" for text in sample.texts)
        return sample

    def leave_out(self, name: str, fault: Unusable, members: int = 1, count: int = 1) -> None:
        """Counts a sample that cannot be used, or `count` of them from the one that is named."""
        self.bad.append(BadSample(name, str(fault), members, count, fault.detail, fault.image_files))

    def leave_out_text(self, name: str, fault: Unusable, task: Task) -> None:
        """Counts a text that cannot be used."""
        self.bad_texts.append(BadSample(name, str(fault), detail=fault.detail, task=task))

    @property
    def skipped(self) -> Counter[str]:
        """Samples that are left out, by reason."""
        skipped = counted(self.bad)
        skipped.update({"behind_a_shard_fault": missing} if (missing := self._behind_faults()) else {})
        return skipped

    def _behind_faults(self) -> int:
        return sum(fault.missing for fault in self.faults)

    def summary(self) -> str:
        """`9,871 used, 129 skipped (missing_image_file 129), 3 texts skipped (empty_text 3)`, and so on."""
        skipped, texts = self.skipped, counted(self.bad_texts)
        parts = [f"{self.samples:,} used", f"{skipped.total():,} skipped{in_brackets(skipped)}"]
        if texts:
            parts.append(f"{number_of(texts.total(), 'text')} skipped{in_brackets(texts)}")
        if self.faults:
            parts.append(number_of(len(self.faults), "fault"))
        if self.ignored:
            parts.append(f"{self.ignored.total():,} ignored{in_brackets(self.ignored)}")
        return ", ".join(parts)

    def told(self) -> str:
        """The summary with an example of each reason and the first faults."""
        kinds = {"skipped": self.bad, "texts skipped": self.bad_texts}
        parts = [f"{what}: {told_reasons(counted(bad), examples_of(bad))}" for what, bad in kinds.items() if bad]
        parts += [f"{visible(fault.shard)}: {visible(fault.reason)}" for fault in self.faults[:FAULTS_TOLD]]
        return "; ".join([self.summary(), *parts])

    def check(self, where: str, max_bad_fraction: float = MAX_BAD_FRACTION) -> None:
        """Raises DataError if no sample is usable, or too large a share of samples, questions or other texts is not."""
        where = visible(where)
        if not self.samples:
            raise DataError(f"{where}: no usable sample: {self.told()}; mend the data")
        examples = examples_of(self.bad)
        for fault in self.faults:
            examples.setdefault("behind_a_shard_fault", f"{fault.shard}: {fault.reason}")
        refuse_bad_share("samples", self.samples, self.skipped, examples, max_bad_fraction, where=f"{where}: ")
        others = self.texts - self.questions
        refuse_bad_texts(self.questions, others, map(BadTexts.of, self.bad_texts), max_bad_fraction, where=f"{where}: ")
