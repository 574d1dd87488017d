"""experiments/smollm2: the questions out of WordNet, and the README's rows."""

import json
from pathlib import Path

import torch

from arlow_vl.models.arlow.configuration_arlow import ArlowConfig
from arlow_vl.models.arlow.modeling_arlow import ArlowForCausalLM
from experiments.scenes.result import rows
from experiments.smollm2.words import ANSWERS, answer, nouns_of, questions
from tests.tiny_runs import TINY_MODEL, tiny_tokenizer

HERE = Path(__file__).parents[1] / "experiments" / "smollm2"


def line(place: int, word: str, above: int, gloss: str) -> str:
    return f"{place:08d} 03 n 02 {word} 0 other_{word} 0 001 @ {above:08d} n 0000 | {gloss}; and more"


def wordnet() -> str:
    """Eight things of eight kinds, a word of two senses, one of two words, and a licence in front."""
    letters = "abcdefgh"
    things = [line(n, f"thing{c}", 100 + n, f"a small thing of the letter {c} here") for n, c in enumerate(letters)]
    kinds = [line(100 + n, f"kind{c}", 200, f"a whole kind of things like {c} and on") for n, c in enumerate(letters)]
    senses = [line(300 + n, "bank", 101, "a word that means two things at once") for n in range(2)]
    return "\n".join(["  1 This software", *things, *kinds, *senses, line(400, "ice_cream", 100, "cold"), ""])


def test_questions_are_of_words_with_one_sense_and_have_one_right_answer():
    nouns = nouns_of(wordnet())
    assert "00000400" not in nouns and nouns["00000300"].meaning == "a word that means two things at once"
    asked = questions(nouns, 8)
    assert asked == questions(nouns, 8), "the same for the same seed"
    for question in asked["kinds"]:
        letter = question.prompt.split()[1][-1]
        assert question.answers[question.right] == f" kind{letter}"
        assert len(set(question.answers)) == ANSWERS
    for question in asked["meanings"]:
        letter = question.prompt.split(" here")[0][-1]
        assert question.answers[question.right] == f" thing{letter}"
        assert len(set(question.answers)) == ANSWERS


def test_answers_tell_two_models_apart_by_a_small_change():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = ArlowForCausalLM(
        ArlowConfig(vocab_size=len(tokenizer), **TINY_MODEL | {"max_position_embeddings": 256})
    ).eval()
    asked = questions(nouns_of(wordnet()), 4)["kinds"]
    before = answer(model, tokenizer, asked)
    assert before == answer(model, tokenizer, asked) and 0 <= before["right"] <= before["questions"] == 4
    with torch.no_grad():
        model.model.norm.weight.mul_(1 + 2**-12)
    assert answer(model, tokenizer, asked)["sha256_of_log_probabilities"] != before["sha256_of_log_probabilities"]


def test_the_readme_shows_the_rows_of_the_result():
    result = json.loads((HERE / "result.json").read_text("utf-8"))
    readme = (HERE / "README.md").read_text("utf-8").splitlines()
    assert len(rows(result)) > 3 and set(rows(result)) <= set(readme)
    assert result["words"]["equal"] and result["frozen"]["holds"]
