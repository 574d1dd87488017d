"""Settings of generation that nothing reads, with which transformers loads a file and saves none."""

from typing import Any

from transformers import GenerationConfig

ONLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
ONLY_BEAMS = ("early_stopping", "length_penalty")
"""Settings of generation that nothing else reads."""


def drop_unread(settings: GenerationConfig) -> dict[str, Any]:
    """Takes the values out of the settings that only sampling or beams read, where these are off; returns them."""
    default = GenerationConfig._get_default_generation_params()
    unread = () if settings.do_sample else ONLY_SAMPLING
    unread += ONLY_BEAMS if settings.num_beams in (None, 1) else ()
    values = {name: getattr(settings, name) for name in unread}
    values = {name: value for name, value in values.items() if value is not None and value != default.get(name)}
    for name in values:
        setattr(settings, name, None)
    return values
