"""Decoding options, the same for every command, the server and the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_BEAMS = 64
MAX_TEMPERATURE = 2  # OpenAI's; far above 1 all tokens become about equally likely


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decoding options of an answer; the defaults are greedy.

    Raises:
        ValueError: a value is out of its range, or beams and sampling are both asked for.
    """

    max_new_tokens: int = 64
    """The longest answer, in tokens."""
    num_beams: int = 1
    temperature: float = 0.0
    """0: always the likeliest token; above 0, tokens are sampled."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability; 1: from all."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0: from all."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that were read or written (Keskar et al., 2019, arXiv:1909.05858); 1: none."""
    seed: int | None = None
    """Seed of the sampling; None: a new one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are not part of it."""

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (1, math.inf),
            "num_beams": (1, MAX_BEAMS),
            "temperature": (0, MAX_TEMPERATURE),
            "top_p": (0, 1),
            "top_k": (0, math.inf),
            "repetition_penalty": (0.01, 100),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:  # NaN is in no range
                limit = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise ValueError(f"{name} is {limit}, got {value}")
        if self.top_p == 0:
            raise ValueError("top_p is above 0, got 0; take top_k 1 or temperature 0 for the likeliest token")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams above 1 searches and temperature above 0 draws; ask for one of them")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is from 0 to 2**64 - 1, got {self.seed}")
        if not all(self.stop):
            raise ValueError("a stop text is empty; give some text or leave it out")
        for name in ("temperature", "top_p", "repetition_penalty"):  # transformers' processors refuse whole numbers
            object.__setattr__(self, name, float(getattr(self, name)))

    def generate_settings(self) -> dict[str, Any]:
        """Returns the keywords of transformers' `generate`, without seed and stop."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        settings["repetition_penalty"] = self.repetition_penalty
        if self.temperature == 0:
            return {**settings, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {**settings, "do_sample": True, **sampling}

    def search_settings(self) -> dict[str, Any]:
        """Returns the keywords for an answer that `drawing` samples: `generate` then searches among the tokens left."""
        return self.generate_settings() | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def check_choices(answers: Sequence[str]) -> None:
    """Raises ValueError unless there are two or more answers that differ by more than the space around them, which
    some chat templates strip."""
    if len(answers) < 2 or len({answer.strip() for answer in answers}) < len(answers):
        raise ValueError(f"choices are two different answers or more, got {', '.join(map(repr, answers)) or 'none'}")
