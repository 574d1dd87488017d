"""Llama's configuration becomes Arlow's without another number coming out."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from arlow_vl.models.arlow.layers_arlow import ArlowRotaryEmbedding
from arlow_vl.models.convert.llama_config import arlow_config
from tests.models.convert.made_llamas import SIZES

ORIGINAL = {"original_max_position_embeddings": 64}
SCALINGS = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)]},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@pytest.mark.parametrize("within", [{}, ORIGINAL, {"original_max_position_embeddings": 128}])
@pytest.mark.parametrize("beside", [{}, ORIGINAL])
@pytest.mark.parametrize("kind", SCALINGS)
def test_rotary_embeddings_are_llamas_wherever_the_original_length_stands(kind, beside, within):
    scaling = {"rope_type": kind, **SCALINGS[kind], **(within if kind in ("yarn", "longrope", "llama3") else {})}
    values = {"model_type": "llama", "rope_theta": 1e4, "rope_scaling": scaling, **SIZES, **beside}
    kept = deepcopy(values)
    found = ArlowRotaryEmbedding(arlow_config(values, Path("a")))
    assert values == kept
    expected = LlamaRotaryEmbedding(LlamaConfig.from_dict(values))
    positions = torch.arange(200)[None]  # beyond the original length
    for ours, theirs in zip(found(torch.ones(1), positions), expected(torch.ones(1), positions), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
