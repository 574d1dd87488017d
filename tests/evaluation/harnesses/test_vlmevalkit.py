"""Arlow as a model of VLMEvalKit. Runs where VLMEvalKit is installed, which is on no package index."""

import pytest

pytest.importorskip("vlmeval", reason="VLMEvalKit is not installed (docs/harnesses.md)")

from arlow_vl.data.prompts import about_image
from arlow_vl.evaluation.harnesses.vlmevalkit import ArlowVLM
from arlow_vl.serving.decoding import Decoding
from arlow_vl.serving.writing import write


def test_a_message_is_answered_as_the_server_answers(model_folder, images, tmp_path):
    model = ArlowVLM(str(model_folder), device="cpu", max_new_tokens=5)
    path = tmp_path / "image.png"
    images[0].save(path)
    prompt = model.assistant.chat(about_image("the cat"), [model.assistant.image(path)])
    (expected,) = write(model.assistant, [prompt], Decoding(max_new_tokens=5))
    message = [{"type": "image", "value": str(path)}, {"type": "text", "value": "the cat"}]
    assert model.generate(message, dataset="set") == expected.text


def test_video_is_refused_by_name(model_folder):
    model = ArlowVLM(str(model_folder), device="cpu")
    with pytest.raises(ValueError, match="set: Arlow reads text and images, got video"):
        model.generate_inner([{"type": "video", "value": "v.mp4"}], dataset="set")
