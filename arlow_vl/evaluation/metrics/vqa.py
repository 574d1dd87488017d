"""VQA accuracy by the two rules in use. They give different numbers, so a result names its rule.

"official" is the rule of the VQA challenge (Antol et al., 2015, arXiv:1505.00468) as its code has it since 2021
(GT-Vision-Lab/VQA, commit a013f00): where the annotators' answers differ, they and the prediction are normalised; where
all agree, nothing is, and the prediction has to equal them letter by letter. Code from before that commit, of which
there are many copies, always normalises the prediction and removes only punctuation from the answers.

"normalised both" always normalises everything, as the harnesses do for TextVQA and VizWiz (mmf, lmms-eval, VLMEvalKit).
If ten annotators say "two", the predictions "two" and "2" score 1 and 0 by the first rule, and 1 and 1 by the second.
Two details differ from mmf's TextVQA script: it splits off 's as a word, and drops commas and question marks before it
handles other punctuation. VizWiz's own script normalises only the prediction, which is the same if the answers are in
normal form already.

By either rule an empty prediction never matches. Normalisation leaves nothing of "A", "the", "?" or an empty
prediction, so the official code counts each of them as equal to the answer "A". Here such a prediction is right only if
it has the annotator's words: "a." for "A", but not "the" or "". `empty_may_match` gives the official behaviour.
"""

import re
from collections.abc import Sequence
from typing import Literal

Rule = Literal["official", "normalised both"]

NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
NUMBERS["none"] = "0"
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_SPELLED_OUT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've
    you'll you're you've
""".split()
# Maps a word that lacks one of its apostrophes to the word. The last entry is a slip in the official list.
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _SPELLED_OUT for place in range(len(word)) if word[place] == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(prediction: str, answers: Sequence[str], *, rule: Rule, empty_may_match: bool = False) -> float:
    """Computes the accuracy of one prediction: min(1, matches / 3), averaged over leaving each annotator out.

    With a single answer (easy-VQA) it is equality after normalisation of both, by either rule. With `empty_may_match` a
    prediction of which normalisation leaves nothing matches every such answer, as in the official code.

    Raises:
        ValueError: there is no answer.
    """
    if not answers:
        raise ValueError("a question needs an answer to score a prediction")
    predicted, expected = in_one_line(prediction), list(map(in_one_line, answers))
    if rule == "normalised both" or len(expected) == 1 or len(set(expected)) > 1:
        predicted, expected = normalise_answer(predicted), list(map(normalise_answer, expected))
    matches = [answer == predicted for answer in expected]
    if not empty_may_match and not normalise_answer(prediction):
        said = spelled(prediction) or None  # equal to no answer, not to an empty one either
        matches = [is_match and said == spelled(answer) for is_match, answer in zip(matches, answers, strict=True)]
    if len(matches) == 1:
        return float(matches[0])
    return sum(min(1.0, (sum(matches) - left_out) / 3) for left_out in matches) / len(matches)


def vqa_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if the prediction equals a reference after normalisation of both, else 0; an empty one scores 0."""
    predicted = normalise_answer(prediction)
    return float(bool(predicted) and predicted in map(normalise_answer, references))


def spelled(answer: str) -> list[str]:
    """Returns the words, articles included, without punctuation unless there is nothing else."""
    return remove_punctuation(answer).lower().split() or answer.split()


def normalise_answer(answer: str) -> str:
    """Normalises: lower case, digits for number words up to ten, no articles, apostrophes restored, no punctuation."""
    words = remove_punctuation(in_one_line(answer)).lower().split()
    numbers = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbers if word not in ARTICLES)


def in_one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def remove_punctuation(answer: str) -> str:
    """Removes a mark next to a space, and replaces others by a space; with a comma between digits removes them all.

    Full stops are removed unless a digit follows. (The official code stops at the 32nd, by accident.)
    """
    has_thousands = re.search(r"\d,\d", answer) is not None
    cleaned = answer
    for mark in PUNCTUATION:
        vanishes = has_thousands or f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if vanishes else " ")
    return re.sub(r"\.(?!\d)", "", cleaned)
