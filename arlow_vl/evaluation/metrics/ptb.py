"""Tokenises captions as the official COCO caption evaluation does, without its Java.

That evaluation runs Stanford CoreNLP 3.4.1's Penn Treebank tokeniser, lower-cases, and drops most punctuation. The
rules here were derived from its output on caption-like lines; addresses and markup may come out differently.
"""

import regex

SPELLED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPELLED |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "¢": "cents", "£": "#", "€": "$"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": ""}
# The full stop stays with these; with `_STATES` when capitalised; with `_BEFORE_NUMBERS` when a digit follows.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt
    cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri
    ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg
    mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof profs
    pte ptes pty pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu
    thurs treas tue tues univ va vs vt wed wis wisc wm wyo
""".split()
_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash".split()
# After a single letter's full stop these begin a sentence, so the stop is dropped.
_SENTENCE_STARTS = r"""
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr\. Ms\.
    Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet
    You
""".split()
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop".split()

_L = r"[\p{L}\p{M}]"
_W = r"[\p{L}\p{M}\p{Nd}]"
_END = rf"(?!{_W})"
_APOSTROPHE = "['’]"
_RULES = (
    rf"</?[a-z][^<>]*> | (?:https?://|www\.)[^\s\"<>]*{_W}/? | [\w.]+@[\w-]+(?:\.[\w-]+)+ | \#{_L}\w* | @\w+",
    rf"&(?:amp|lt|gt|quot|\#\d+); | [:;=]-?[()dp]{_END} | c(?:\+\+|\#)",
    rf"can(?=not{_END}) | (?:gon|wan)(?=na{_END}) | got(?=ta{_END}) | (?:gim|lem)(?=me{_END})",
    # n't, 's and their like stand alone; the apostrophe stays inside o'clock, O'Neil, ma'am, 'em, ol' and '90s.
    rf"(?P<clitic>{_APOSTROPHE}(?:s|m|d|re|ve|ll){_END} | n{_APOSTROPHE}t{_END}) | {_L}+?(?=n{_APOSTROPHE}t{_END})",
    rf"{_APOSTROPHE}t(?=(?:is|was){_END}) | {_APOSTROPHE}n{_APOSTROPHE} | {_APOSTROPHE}(?:n|em|till?|cause){_END}",
    rf"(?<!\d){_APOSTROPHE}\d(?:\d|0s){_END}",
    rf"(?:[dol]|n|(?-i:[A-HJ-XZ])){_APOSTROPHE}{_L}{{2,}} | {_L}+[aeiouy]{_APOSTROPHE}[aeiou]{_L}*",
    rf"ne'er | cap'n | nat'l | c'est | qu'il | (?:[dljy]|ol){_APOSTROPHE}",
    # The full stop stays inside U.S., p.m., dog.png and behind abbreviations and single letters.
    rf"(?:ed|ph)\.d\. | (?:{_L}\.){{2,}}(?:-{_W}+|{_L}+)? | {_L}{_W}*(?:\.{_L}+)+",
    rf"[a-z]\.(?!\s+(?-i:{'|'.join(_SENTENCE_STARTS)})(?:\s|$))",
    rf"(?:{'|'.join(_ABBREVIATIONS)} | (?-i:{'|'.join(_STATES)}))\.",
    rf"(?:{'|'.join(_BEFORE_NUMBERS)})\.(?=\ ?\d)",
    # Words with digits, hyphens, slashes: AT&T, t-shirt, 3-year-old, and/or, 1/2-inch, 3 1/2, 10:30, -5.
    r"\d{1,4}[\ \xa0]\d{1,4}/\d{1,4}",
    rf"(?-i:[A-Z]+(?:&[A-Z]+)+) | {_W}*{_L}{_W}*(?:[-/_]{_W}+)* | (?:\d+/)?\d+(?:[-/_]{_W}*{_L}{_W}*)+",
    r"\d+(?:-\d+)+(?:/\d+)? | \d+(?:/\d+){1,2}",
    r"(?P<dashes>-{2,4}(?!-)) | [+-]?(?:\d+(?:[.,:]\d+)* | \.\d+(?:[.,]\d+)*)",
    r"-{5,} | [!?]{2,} | _+ | \*+ | \#+ | @+ | (?P<dropped>[-.…–—“”‘’«»‹›\"'`,:;!?]) | \S",
)
_TOKEN = regex.compile("|".join(_RULES), regex.VERBOSE | regex.IGNORECASE)
# Most captions are plain words with a full stop at the end, and need no rules unless one of the words below occurs.
_PLAIN = regex.compile(r"[A-Za-z]+(?:,?\ +[A-Za-z]+)*\.?")
_CUT = {"cannot", "gonna", "wanna", "gotta", "gimme", "lemme"}
_KEEPS_STOP = {*_ABBREVIATIONS, *(state.lower() for state in _STATES)}
# The Java drops emoji and other characters above U+FFFF, their joiners, and control characters.
_UNREADABLE = regex.compile(
    r"[\U00010000-\U0010FFFF\N{VARIATION SELECTOR-16}\N{ZERO WIDTH JOINER}\N{REPLACEMENT CHARACTER}\x80-\x9f]+"
)


def tokenize_caption(caption: str) -> list[str]:
    """Returns the lower-cased words; punctuation is dropped, and brackets are spelt as in the Treebank.

    The Java tokenises a whole file: whether "the letter a." keeps its full stop there depends on the next line's first
    word. Here each caption is tokenised by itself.
    """
    if _PLAIN.fullmatch(caption):
        plain = caption.replace(",", "").lower().rstrip(".").split()
        keeps_stop = caption[-1] == "." and (len(plain[-1]) == 1 or plain[-1] in _KEEPS_STOP)
        if not keeps_stop and _CUT.isdisjoint(plain):
            return plain
    return tokenize_by_rules(caption)


def tokenize_by_rules(caption: str) -> list[str]:
    """Tokenises by all rules; `tokenize_caption` calls this for captions that its shortcut does not cover."""
    words = []
    for match in _TOKEN.finditer(_UNREADABLE.sub(" ", caption)):
        if match["dropped"] or match["dashes"]:
            continue
        word = ENTITIES.get(match[0].lower(), match[0].lower())
        if match["clitic"]:
            word = word.replace("’", "'")
        words.extend("".join(SPELLED.get(character, character) for character in word).split())
    return words
