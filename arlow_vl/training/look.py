"""A look at a model while it is trained: what it writes about fixed samples, and what its images are worth to it."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SampleLook:
    key: str
    prompt: str
    """What the model is asked, as text; images left out."""
    reference: str
    """What the data say."""
    written: str
    """What the model writes, greedily."""
    images: list[str] = field(default_factory=list)
    """Files in the run folder that show its images."""
    attention: list[float] | None = None
    """Share of the cross-attention that each of several images gets."""


@dataclass(frozen=True)
class SourceLook:
    name: str
    samples: list[SampleLook]
    loss: float | None = None
    """Of the samples, with their own images; None where nothing can be exchanged."""
    exchanged_loss: float | None = None
    """With the images of each other."""

    @property
    def different(self) -> int:
        """How many of the written texts are different."""
        return len({sample.written for sample in self.samples})

    @property
    def image_use(self) -> float | None:
        """What a wrong image costs, in nats a token; near 0: the model does not look at its images."""
        if self.loss is None or self.exchanged_loss is None:
            return None
        return self.exchanged_loss - self.loss


@dataclass(frozen=True)
class Look:
    step: int
    sources: list[SourceLook]
    gates: dict[str, tuple[float, float]] = field(default_factory=dict)
    """tanh of the attention and MLP gates, by layer."""
    is_validation: bool = False
    """Whether it belongs to a validation, which a run that goes on from this step repeats."""
    fault: str | None = None
    """Why nothing was written."""

    def numbers(self) -> dict[str, float]:
        """For logs that take numbers alone."""
        found: dict[str, float | None] = {}
        for source in self.sources:
            found[f"image_use_{source.name}"] = source.image_use
            if source.samples:
                found[f"different_texts_{source.name}"] = source.different / len(source.samples)
        for layer, (attention, mlp) in self.gates.items():
            found |= {f"gate_attention_{layer}": attention, f"gate_mlp_{layer}": mlp}
        return {name: value for name, value in found.items() if value is not None}

    def line(self) -> str:
        """For a terminal: one sample, and what concerns all."""
        if self.fault:
            return f"step {self.step:,}  {self.fault}"
        parts = []
        for source in self.sources[:1]:
            for sample in source.samples[:1]:
                parts.append(f"writes {_short(sample.written)} for {_short(sample.reference)}")
        for source in self.sources:
            told = [f"{source.different} different of {len(source.samples)} texts"] if len(source.samples) > 1 else []
            told += [] if source.image_use is None else [f"a wrong image costs {source.image_use:.3f} nats"]
            parts += [f"{source.name}: {', '.join(told)}"] if told else []
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
