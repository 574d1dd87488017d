"""Checkpoints that bring the decoder's code with them, for machines where arlow_vl is not installed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVisionConfig, ArlowVLConfig
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.modeling_arlow_vl import ArlowVLForConditionalGeneration
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.auto import save_with_code
from tests.models.arlow.test_modeling_arlow import text_with_images
from tests.tiny_runs import tiny_tokenizer
from vision.encoder import VisionEncoder

ROOT = Path(__file__).parents[3]

# Loads a folder where neither our packages nor their heavy dependencies can be imported.
STRANGER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("arlow_vl", "vision", "experiments", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

folder = sys.argv[1]
inputs, expected, generated = torch.load(folder + "/expected.pt")
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "arlow"
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert torch.equal(model(**inputs).logits, expected)
mask = torch.ones_like(inputs["input_ids"])
assert torch.equal(model.generate(**inputs, attention_mask=mask, max_new_tokens=4, do_sample=False), generated)
for auto_class, class_name in model.config.auto_map.items():
    one = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    assert type(one).__name__ == class_name.rpartition(".")[2], auto_class
older = AutoModelForCausalLM.from_pretrained(folder + "/../older", trust_remote_code=True).eval()
assert type(older) is not type(model)
assert torch.equal(older(**inputs).logits, expected)
own_call = AutoModelForCausalLM.from_pretrained(folder + "/../own_call", trust_remote_code=True).eval()
assert torch.equal(own_call(**inputs).logits, expected)
assert not {"timm", "jaxtyping", "lightning"} & set(sys.modules)
"""


def test_a_checkpoint_holds_no_code_unless_asked(open_model, tmp_path):
    open_model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.slow
def test_a_shipped_decoder_loads_in_a_process_without_the_package(open_model, tmp_path, monkeypatch):
    inputs = dict(zip(("input_ids", "encoder_hidden_states"), text_with_images(), strict=True))
    mask = torch.ones_like(inputs["input_ids"])
    generated = open_model.generate(**inputs, attention_mask=mask, max_new_tokens=4, do_sample=False)
    save_with_code(open_model, tmp_path / "model")
    save_with_code(open_model, tmp_path / "older")
    with (tmp_path / "older" / "segments.py").open("a") as code:
        code.write("# other code, so that it is loaded beside the model's\n")
    for registered in (ArlowForCausalLM, ArlowConfig):
        monkeypatch.setattr(registered, "_auto_class", None)
    ArlowForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    open_model.save_pretrained(tmp_path / "own_call")
    torch.save((inputs, open_model(**inputs).logits, generated), tmp_path / "model" / "expected.pt")
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    stranger = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(tmp_path / "model")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert stranger.returncode == 0, stranger.stderr


def test_a_shipped_folder_names_a_class_for_every_auto_class_and_holds_its_code(open_model, tmp_path):
    save_with_code(open_model, tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "modeling_arlow.ArlowForCausalLM"
    assert auto_map["AutoModel"] == "modeling_arlow.ArlowModel"
    for entry in auto_map.values():
        module, name = entry.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


def test_the_installed_package_takes_precedence_over_shipped_code(open_model, tmp_path):
    save_with_code(open_model, tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)) is ArlowForCausalLM


def test_saving_with_code_once_does_not_make_later_saves_write_code(open_model, tmp_path):
    save_with_code(open_model, tmp_path / "with")
    open_model.save_pretrained(tmp_path / "without")
    assert not list((tmp_path / "without").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "without" / "config.json").read_text())
    assert type(AutoConfig.from_pretrained(tmp_path / "without")) is ArlowConfig


def test_the_code_of_a_vision_language_model_is_not_saved(small_config, tmp_path):
    vision_config = ArlowVisionConfig(timm_name="test_vit", image_size=160)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=small_config, vision_config=vision_config))
    with pytest.raises(ValueError, match="install arlow-vl"):
        save_with_code(model, tmp_path)


def test_transformers_own_call_writes_the_code_too(small_config, tmp_path, monkeypatch):
    for registered in (ArlowForCausalLM, ArlowConfig):
        monkeypatch.setattr(registered, "_auto_class", None)  # the call below sets it; this takes it back
    ArlowForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    ArlowForCausalLM(small_config).save_pretrained(tmp_path)
    assert (tmp_path / "modeling_arlow.py").exists()
    assert (tmp_path / "configuration_arlow.py").exists()
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModelForCausalLM"}  # without the first, nothing loads


NO_PROCESSOR = (
    STRANGER.split("import torch")[0]
    + """
from transformers import AutoProcessor

for trust in (False, True):
    try:
        AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=trust)
    except (ValueError, ImportError) as error:
        print(" ".join(str(error).split()))
"""
)


@pytest.mark.slow
def test_a_processor_without_the_package_is_refused_and_not_a_bare_tokenizer(tmp_path):
    data_config = VisionEncoder("test_vit").data_config
    ArlowProcessor(ArlowImageProcessor(data_config), tiny_tokenizer()).save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is ArlowProcessor
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    stranger = subprocess.run(
        [sys.executable, "-I", "-c", NO_PROCESSOR, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    untrusted, trusted = stranger.stdout.splitlines()
    assert "trust_remote_code" in untrusted
    assert "arlow_vl" in trusted and "pip install" in trusted


@pytest.mark.parametrize("needy", [ArlowVLForConditionalGeneration, ArlowVLConfig, ArlowProcessor, ArlowImageProcessor])
def test_what_needs_the_package_cannot_be_registered_to_be_saved_with_its_code(needy):
    with pytest.raises(ValueError, match="install arlow-vl where the folder is to be loaded"):
        needy.register_for_auto_class("AutoModel")
    assert needy._auto_class is None


@pytest.mark.slow
def test_a_script_of_any_name_gets_the_auto_classes(tmp_path):
    script = tmp_path / "arlow.py"
    script.write_text(
        "import arlow_vl\nfrom transformers import AutoConfig\nprint(AutoConfig.for_model('arlow').model_type)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout == "arlow\n", ran.stderr


def test_the_command_answers_help_without_any_heavy_library_wherever_it_was_installed(tmp_path):
    heavy = "{'torch', 'transformers', 'timm', 'lightning', 'numpy'} & set(sys.modules)"
    command = shutil.copy(Path(sysconfig.get_path("scripts"), "arlow"), tmp_path)
    code = (
        f"import runpy, sys\nsys.argv = ['arlow', '--help']\ntry: runpy.run_path({str(command)!r}, run_name='__main__')"
    )
    code += f"\nexcept SystemExit: print({heavy})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout.endswith("\nset()\n"), ran.stderr
