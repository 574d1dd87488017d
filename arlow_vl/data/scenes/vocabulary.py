"""The vocabulary of scenes: things with their drawings, colours, numbers, relations and words to read."""

from typing import Literal, NamedTuple

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink"]
Relation = Literal["left of", "above"]
Direction = Literal["left of", "right of", "above", "below"]

COLOURS: dict[Colour, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "orange": (255, 140, 10),
    "yellow": (250, 220, 30),
    "green": (50, 170, 60),
    "blue": (50, 95, 230),
    "purple": (135, 55, 190),
    "pink": (255, 130, 195),
}
NUMBERS = ("one", "two", "three", "four", "five")
"""Number words by count, from 1."""
OPPOSITE: dict[Relation, Direction] = {"left of": "right of", "above": "below"}


class Concept(NamedTuple):
    """A thing that has a drawing in every emoji style, with its other drawings."""

    noun: str
    code: str
    """Its emoji, as `arlow_vl.data.fetch.emoji.plain_code` writes it."""
    stamps: tuple[str, ...] = ()
    """Tux Paint stamps, below the package's folder."""
    clip_art: tuple[str, ...] = ()
    """Open Clip Art, below the package's folder, without `.png`."""
    plural: str = ""

    @property
    def nouns(self) -> str:
        return self.plural or f"{self.noun}s"


CONCEPTS: dict[str, Concept] = {
    concept.noun: concept
    for concept in (
        Concept("apple", "1f34e", ("food/fruit/cartoon/apple.png",), ("food/fruit/apple", "food/fruit/an_apple_01")),
        Concept("banana", "1f34c", ("food/fruit/banana.png", "food/fruit/cartoon/banana.png"), ("food/fruit/banana",)),
        Concept("bird", "1f426", (), ("animals/birds/bird_of_peace_mauro_oliv_01",)),
        Concept(
            "boat",
            "26f5",
            ("vehicles/ship/sail_boat1.svg", "vehicles/ship/sail_boat2.svg"),
            ("transportation/boating/sailboat_illustration",),
        ),
        Concept("bus", "1f68c", ("vehicles/iso_bus.svg", "vehicles/masstransit/green_korean_bus.png"), (), "buses"),
        Concept(
            "butterfly",
            "1f98b",
            ("animals/insects/cartoon/butterfly.png", "seasonal/easter/butterfly.png"),
            ("animals/bugs/butterfly_jonathan_dietr_01", "animals/bugs/farfalla_butterfly_fra1"),
            "butterflies",
        ),
        Concept(
            "car",
            "1f697",
            (),
            (
                "transportation/vehicles/car",
                "transportation/car_jamin_ellis_",
                "transportation/skoda_car_alejandro_teja_",
            ),
        ),
        Concept(
            "cat",
            "1f408",
            (),
            ("animals/mammals/cartoon_cat_gerald_g._01", "animals/mammals/housecats/gatto_cat_architetto_fra_02"),
        ),
        Concept("crown", "1f451", ("clothes/hats/crown1.svg", "clothes/hats/crown2.svg")),
        Concept(
            "dog",
            "1f415",
            ("animals/mammals/dogs/dog.png",),
            ("animals/mammals/dog_01_drawn_with_strai_01", "animals/mammals/dog_03_drawn_with_strai_01"),
        ),
        Concept("duck", "1f986", ("animals/birds/duck.png",), ("animals/birds/jonathon_s_duck_01",)),
        Concept("elephant", "1f418", ("animals/mammals/elephant.png",)),
        Concept("fish", "1f41f", (), ("animals/fish/brown_fish_01",), "fish"),
        Concept(
            "flower",
            "1f33b",
            ("plants/flowers/flower1.png", "plants/flowers/yellow-flower.png"),
            ("plants/flowers/flower_01", "plants/flowers/red_flower_01"),
        ),
        Concept("guitar", "1f3b8", ("hobbies/music/string/guitar2.png",), ("recreation/music/guitar_jarno_vasamaa1",)),
        Concept(
            "hammer",
            "1f528",
            ("household/tools/hammer.png", "household/tools/hammer2.svg"),
            ("tools/hammer_nicu_buculei_01", "tools/hammer_peterm1"),
        ),
        Concept("horse", "1f40e", ("animals/mammals/equines/horse.png",)),
        Concept(
            "house",
            "1f3e0",
            (),
            ("buildings/homes/house", "buildings/homes/small_house_01", "buildings/homes/house_christoph_brill_01"),
        ),
        Concept("key", "1f511", ("household/key.png",), ("computer/icons/key_juliane_krug_01",)),
        Concept(
            "ladybug",
            "1f41e",
            ("animals/insects/cartoon/ladybug.png", "animals/insects/cartoon/ladybug-2.png"),
            ("animals/bugs/ladybug_02", "animals/bugs/ladybug_01"),
        ),
        Concept(
            "mushroom",
            "1f344",
            ("food/vegetables/mushroom.png",),
            ("plants/mushroom", "plants/mushroom_benji_park_"),
        ),
        Concept(
            "pear",
            "1f350",
            ("food/fruit/cartoon/pear.png", "food/fruit/pear.png"),
            ("food/fruit/pear", "food/fruit/pear_01"),
        ),
        Concept(
            "penguin",
            "1f427",
            ("animals/birds/penguin.png", "animals/birds/magellanic_penguin.png"),
            ("animals/birds/new_penguin_charles_mcco_01",),
        ),
        Concept("plane", "2708", ("vehicles/flight/planes/cartoon/plane.png", "vehicles/flight/planes/plane.svg")),
        Concept("rabbit", "1f407", ("animals/mammals/rodents/rabbit.png", "animals/mammals/rodents/rabbit-2.png")),
        Concept(
            "rocket",
            "1f680",
            ("space/rocket1.svg", "space/rocket3.svg", "space/rocket5.svg"),
            ("transportation/vehicles/rocket",),
        ),
        Concept("snail", "1f40c", ("animals/insects/cartoon/snail.png", "animals/insects/cartoon/snail2.png")),
        Concept("spider", "1f577", ("animals/insects/cartoon/spider.svg",), ("animals/bugs/spider",)),
        Concept(
            "strawberry",
            "1f353",
            ("food/fruit/cartoon/strawberry.png",),
            ("food/fruit/strawberry", "food/fruit/strawberry_01"),
            "strawberries",
        ),
        Concept(
            "train",
            "1f682",
            ("vehicles/locomotive/cartoon/toy_train.png",),
            ("recreation/toys/kiddy_train_orlando_kara_",),
        ),
        Concept("turtle", "1f422", (), ("animals/turtle_jurgen_gaeremyn_01",)),
        Concept("umbrella", "2602", ("household/umbrella.svg",), ("tools/umbrella",)),
    )
}
NOUNS: tuple[str, ...] = tuple(CONCEPTS)

WORDS: tuple[str, ...] = tuple(
    """
    air arm ask bag ball bath beach beard bed bell book bread brick bring cabin cake call cedar chair chalk city clock
    cloud coast coin corn cup dance desk door dream drum dust eagle echo egg elbow farm fern field fire flag flute
    fork game gate ghost glass gold grape grass hand hill honey hotel ice inn jam jazz jewel jump king kite lake lamp
    leaf lemon light lion lunar map maple melon milk mint moon moss music nail nest night north ocean opera paper park
    pearl piano pilot pine plum pond pump queen quick quilt radio rain ring river road rock rope rose ruby sail salt
    sand shelf sky sleep smile snow soap sofa south spoon stone storm sugar sun table tea tent tiger tower tulip voice
    wagon watch water west wheat wheel wind wolf wood wool yard yolk zebra zoo
    """.split()
)
"""Words that are written in scenes to be read: short, and no names of things, colours or numbers."""
