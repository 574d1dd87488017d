"""Results of a look at a model in training: its texts for fixed samples, and how much its images help it."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SampleLook:
    """Result for one sample."""

    key: str
    prompt: str
    """Prompt as text, without its images."""
    reference: str
    """Answer of the data."""
    written: str
    """Answer of the model, decoded greedily."""
    images: list[str] = field(default_factory=list)
    """Paths of its thumbnails, relative to the run folder."""
    attention: list[float] | None = None
    """Share of the cross-attention that each image gets; None with fewer than two."""


@dataclass(frozen=True)
class SourceLook:
    """Results for the samples of one source."""

    name: str
    samples: list[SampleLook]
    loss: float | None = None
    """Loss of the samples with their own images, in nats a token; None where no images can be exchanged."""
    exchanged_loss: float | None = None
    """Loss with the images exchanged among the samples."""

    @property
    def different(self) -> int:
        """Number of distinct texts that the model wrote."""
        return len({sample.written for sample in self.samples})

    @property
    def image_use(self) -> float | None:
        """Loss that wrong images add, in nats a token; near 0 if the model ignores its images. None: unknown."""
        if self.loss is None or self.exchanged_loss is None:
            return None
        return self.exchanged_loss - self.loss


@dataclass(frozen=True)
class Look:
    """One look, at all sources, as a line of looks.jsonl has it."""

    step: int
    sources: list[SourceLook]
    gates: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Tanh of the attention gate and the MLP gate, by layer."""
    is_validation: bool = False
    """True if it belongs to a validation, which is repeated when the run resumes from this step."""
    fault: str | None = None
    """Reason why the model could write nothing; None if it could."""

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of the look by metric name, for logs that take no text."""
        found: dict[str, float | None] = {}
        for source in self.sources:
            found[f"image_use_{source.name}"] = source.image_use
            if source.samples:
                found[f"different_texts_{source.name}"] = source.different / len(source.samples)
        for layer, (attention, mlp) in self.gates.items():
            found |= {f"gate_attention_{layer}": attention, f"gate_mlp_{layer}": mlp}
        return {name: value for name, value in found.items() if value is not None}

    def line(self) -> str:
        """Returns a line for a terminal: one sample, and the summary of each source."""
        if self.fault:
            return f"step {self.step:,}  {self.fault}"
        parts = []
        for source in self.sources[:1]:
            for sample in source.samples[:1]:
                parts.append(f"writes {_short(sample.written)} for {_short(sample.reference)}")
        for source in self.sources:
            words = [f"{source.different} different of {len(source.samples)} texts"] if len(source.samples) > 1 else []
            words += [] if source.image_use is None else [f"a wrong image costs {source.image_use:.3f} nats"]
            parts += [f"{source.name}: {', '.join(words)}"] if words else []
        return f"step {self.step:,}  {'; '.join(parts)}"

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        for source, of in zip(plain["sources"], self.sources, strict=True):
            source |= {"different": of.different, "image_use": of.image_use}
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Look":
        sources = [
            SourceLook(
                name=source["name"],
                samples=[SampleLook(**sample) for sample in source["samples"]],
                loss=source["loss"],
                exchanged_loss=source["exchanged_loss"],
            )
            for source in plain["sources"]
        ]
        gates = {layer: (pair[0], pair[1]) for layer, pair in plain["gates"].items()}
        return cls(plain["step"], sources, gates, plain["is_validation"], plain["fault"])


def _short(text: str) -> str:
    words = " ".join(text.split())
    return f"{words[:57]}..." if len(words) > 60 else words or "(nothing)"
