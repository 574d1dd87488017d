"""Operations of a training step, and how long a card of these rates should take over it."""

from dataclasses import dataclass

from arlow_vl import ArlowConfig
from experiments.benchmarks.gpu.bench import Bench

PRODUCTS, ATTENTION = 0.85, 0.45
"""Shares of the large product's rate that a step's own products and attention (FlashAttention 2) reach."""
BYTES = {"eager": 340, "compiled": 120}
"""Moved a hidden unit, layer and token between products, forward and backward, in half precision: norms with float32
inside (60), rotary (60), SwiGLU (80), residuals (20), and what backward reads again; the compiler merges most."""
LOGIT_BYTES = 40
"""Moved for each logit: written, widened, made a softmax, and again a gradient."""
OPTIMIZER_BYTES = 14
"""Moved a parameter by AdamW: weight and two moments read and written, the gradient read; 2 bytes each."""
KERNELS = {"eager": 90, "compiled": 30}
"""Launched a layer and step."""
LAUNCH = 5e-6
"""Seconds of the host for each."""


@dataclass(frozen=True)
class Work:
    products: float
    """Operations of products with weights, forward and backward."""
    attention: float
    """Those of scores and sums."""
    layers: float
    """Decoder layers, cross-attention blocks counted as one each."""
    bytes_between: dict[str, float]
    """Moved outside of products, by form."""

    @property
    def operations(self) -> float:
        return self.products + self.attention

    def __add__(self, other: "Work") -> "Work":
        moved = {form: self.bytes_between[form] + other.bytes_between[form] for form in BYTES}
        return Work(self.products + other.products, self.attention + other.attention, self.layers + other.layers, moved)

    def seconds(self, bench: Bench, form: str) -> float:
        """Predicted: the device's time, or the host's where launching takes longer."""
        device = self.products / (PRODUCTS * bench.matmul) + self.attention / (ATTENTION * bench.matmul)
        return max(device + self.bytes_between[form] / bench.bandwidth, self.layers * KERNELS[form] * LAUNCH)

    def describe(self, bench: Bench, form: str) -> str:
        moved, rate = self.bytes_between[form], bench.matmul
        parts = self.products / (PRODUCTS * rate), self.attention / (ATTENTION * rate), moved / bench.bandwidth
        return (
            f"predicted {1e3 * self.seconds(bench, form):.3g} ms: {self.products / 1e12:.3g} TFLOP in products "
            f"{1e3 * parts[0]:.3g} + {self.attention / 1e12:.3g} in attention {1e3 * parts[1]:.3g} + "
            f"{moved / 1e9:.3g} GB {1e3 * parts[2]:.3g}, host {1e3 * self.layers * KERNELS[form] * LAUNCH:.3g}"
        )


def layer_weights(config: ArlowConfig) -> tuple[int, int]:
    """Matrix entries of a layer that text goes through, and those that keys and values do."""
    heads, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    text = config.hidden_size * (2 * heads + 3 * config.intermediate_size)
    return text, 2 * config.hidden_size * keys


def text_work(config: ArlowConfig, tokens: int, row: int) -> Work:
    """6 operations a weight and token; causal attention sees half a row."""
    layer, depth, hidden = sum(layer_weights(config)), config.num_hidden_layers, config.hidden_size
    head = config.vocab_size * hidden
    around = tokens * config.vocab_size * LOGIT_BYTES + (depth * layer + head) * OPTIMIZER_BYTES
    return Work(
        products=6 * tokens * (depth * layer + head),
        attention=6 * tokens * depth * config.num_attention_heads * config.head_dim * row,
        layers=depth,
        bytes_between={form: tokens * depth * hidden * moved + around for form, moved in BYTES.items()},
    )


def image_work(config: ArlowConfig, *, tokens: int, images: int, patches: int, encoder: tuple[int, int, int]) -> Work:
    """Returns the work that images add, where `tokens` read one each: blocks, projector, the frozen encoder forward.

    `encoder` is the entries of its matrices, its width and depth.
    """
    weights, width, depth = encoder
    text, keys = layer_weights(config)
    blocks, hidden, image_tokens = len(config.cross_attention_layers), config.hidden_size, images * patches
    heads = config.num_attention_heads * config.head_dim
    of_blocks = 6 * blocks * (tokens * text + image_tokens * keys)
    of_encoder = 2 * image_tokens * weights
    between = {form: tokens * blocks * hidden * moved for form, moved in BYTES.items()}
    forward = {form: image_tokens * depth * width * moved / 3 for form, moved in BYTES.items()}
    return Work(
        products=of_blocks + 4 * image_tokens * width * hidden + of_encoder,
        attention=12 * blocks * tokens * patches * heads + 4 * image_tokens * depth * patches * width,
        layers=blocks + depth / 3,
        bytes_between={form: between[form] + forward[form] + blocks * text * OPTIMIZER_BYTES for form in BYTES},
    )
