"""Kinds of things that images show: one small vocabulary over the fields of all sources."""

SUBGROUP_KINDS = {
    "animal": "animal",
    "plant": "plant",
    "food": "food",
    "drink": "drink",
    "transport": "vehicle",
    "place": "place",
    "hotel": "object",
    "dishware": "object",
    "time": "clock",
    "sky": "weather or sky",
    "sport": "sport",
    "clothing": "clothing",
    "musical": "musical instrument",
    "face": "face",
    "cat": "face",
    "monkey": "face",
    "heart": "symbol",
    "transport-sign": "symbol",
}
GROUP_KINDS = {
    "smileys-emotion": "symbol",
    "people-body": "person",
    "activities": None,
    "objects": "object",
    "symbols": "symbol",
    "flags": "flag",
}
STAMP_KINDS = {
    "animals": "animal",
    "clothes": "clothing",
    "food": "food",
    "hobbies/music": "musical instrument",
    "household": "object",
    "people": "person",
    "plants": "plant",
    "sports": "sport",
    "symbols": "symbol",
    "town": "place",
    "town/flags": "flag",
    "town/roadsigns": "symbol",
    "vehicles": "vehicle",
}
CLIP_ART_KINDS = {
    "animals": "animal",
    "buildings": "place",
    "buildings/furniture": "object",
    "computer/hardware": "object",
    "containers": "object",
    "electronics": "object",
    "food": "food",
    "food/beverages": "drink",
    "office": "object",
    "people": "person",
    "people/clothing": "clothing",
    "people/smilies": "face",
    "plants": "plant",
    "recreation/music": "musical instrument",
    "recreation/sports": "sport",
    "signs_and_symbols": "symbol",
    "signs_and_symbols/clocks": "clock",
    "signs_and_symbols/flags": "flag",
    "signs_and_symbols/weather": "weather or sky",
    "tools": "object",
    "transportation": "vehicle",
    "transportation/roadsigns": "symbol",
}


def kind_of_emoji(group: str, subgroup: str) -> str | None:
    """Returns the kind of a subgroup of emojibase ("animal-bug"), else of its first word, else of the group."""
    for name in (subgroup, subgroup.split("-")[0]):
        if name in SUBGROUP_KINDS:
            return SUBGROUP_KINDS[name]
    return GROUP_KINDS.get(group)


def kind_of_folder(folder: str, kinds: dict[str, str]) -> str | None:
    """Returns the kind of the longest known prefix of a path ("animals/mammals/dogs")."""
    parts = folder.split("/")
    prefixes = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((kinds[prefix] for prefix in prefixes if prefix in kinds), None)
