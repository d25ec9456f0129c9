"""A learnable data set of CIFAR's shape, drawn from a seed: coloured shapes on textured grounds, nothing downloaded.

A superclass is a palette and a ground texture (5 x 4 = 20); the classes of one superclass differ in the shape that lies
on it (5). Position, size, rotation, texture phase, brightness and noise vary from image to image. No class depends on
left or right, nor on pixels near the border, so a horizontal flip and a crop by 4 pixels never change the class.

Only +, -, *, /, sqrt, comparisons and integers are used, which IEEE 754 rounds alike everywhere (sin and exp differ by
processor), on the raw output of Philox, which NumPy promises not to change: the bytes are the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

TRAIN_PER_CLASS = 60
TEST_PER_CLASS = 10
SEED = 0
VERSION = 1  # goes up with every change of the bytes that a seed gives

Float = NDArray[np.float32]

# RGB, 0..1: the two colours of the ground, then the shape's.
_PALETTES = {
    "amber": ((0.86, 0.60, 0.16), (0.55, 0.30, 0.08), (0.98, 0.94, 0.74)),
    "azure": ((0.25, 0.52, 0.84), (0.12, 0.26, 0.52), (0.90, 0.96, 1.00)),
    "coral": ((0.90, 0.45, 0.40), (0.58, 0.18, 0.22), (1.00, 0.90, 0.84)),
    "jade": ((0.26, 0.66, 0.46), (0.08, 0.36, 0.28), (0.88, 1.00, 0.86)),
    "violet": ((0.58, 0.42, 0.82), (0.30, 0.16, 0.50), (0.96, 0.88, 1.00)),
}
_TEXTURES = ("checked", "dotted", "ringed", "striped")
_SHAPES = ("circle", "cross", "ring", "square", "triangle")

SUPERCLASS_NAMES = tuple(f"{palette}_{texture}" for palette in _PALETTES for texture in _TEXTURES)
CLASS_NAMES = tuple(f"{superclass}_{shape}" for superclass in SUPERCLASS_NAMES for shape in _SHAPES)
SUPERCLASS_OF = tuple(i // len(_SHAPES) for i in range(len(CLASS_NAMES)))


def generate(
    seed: int = SEED, train_per_class: int = TRAIN_PER_CLASS, test_per_class: int = TEST_PER_CLASS
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Draw both splits: ``{"train": (images, labels), "test": (images, labels)}``, class after class.

    Images are uint8 ``[100 * per_class, 32, 32, 3]`` RGB, labels int64 ``[100 * per_class]``. The splits come from one
    stream and share no image. Takes about a second for the default 6,000 + 1,000.
    """
    per_class = train_per_class + test_per_class
    labels = np.repeat(np.arange(len(CLASS_NAMES), dtype=np.int64), per_class)
    images = _draw(labels, np.random.Philox(np.random.SeedSequence(seed)))
    in_train = np.arange(len(labels)) % per_class < train_per_class
    return {"train": (images[in_train], labels[in_train]), "test": (images[~in_train], labels[~in_train])}


def _draw(labels: NDArray[np.int64], bits: np.random.Philox) -> NDArray[np.uint8]:
    n = len(labels)
    texture = labels // len(_SHAPES) % len(_TEXTURES)
    shape = labels % len(_SHAPES)
    colours = np.array(list(_PALETTES.values()), dtype=np.float32)[
        labels // len(_SHAPES) // len(_TEXTURES)
    ]  # [n, 3, 3]

    def uniform(low: float, high: float) -> Float:
        raw = np.asarray(bits.random_raw(n)) >> np.uint64(40)  # 24 bits: every step below is exact in float32
        return (np.float32(low) + np.float32(high - low) * (raw.astype(np.float32) / np.float32(1 << 24)))[
            :, None, None
        ]

    def rotated(x: Float, y: Float) -> tuple[Float, Float]:
        t = uniform(-1, 1)  # the rational circle: cos and sin without calling either
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        return cos * x - sin * y, sin * x + cos * y

    x: Float = np.arange(32, dtype=np.float32)[None, None, :]
    y: Float = np.arange(32, dtype=np.float32)[None, :, None]
    ground = np.empty((n, 32, 32), dtype=np.float32)
    u, v = rotated(x - uniform(0, 32), y - uniform(0, 32))
    period = uniform(5.5, 8.5)
    for i in range(len(_TEXTURES)):
        at = texture == i
        ground[at] = _texture(_TEXTURES[i], u[at] / period[at], v[at] / period[at])

    cover = np.empty_like(ground)
    u, v = rotated(x - uniform(13, 18), y - uniform(13, 18))
    radius = uniform(6.5, 9)
    for i in range(len(_SHAPES)):
        at = shape == i
        cover[at] = np.clip(np.float32(0.5) - _distance(_SHAPES[i], u[at], v[at], radius[at]), 0, 1)

    light = uniform(0.7, 1.1) + uniform(-0.012, 0.012) * (x - 16) + uniform(-0.012, 0.012) * (y - 16)
    raw = np.asarray(bits.random_raw(n * 32 * 32 * 3 // 2)).astype("<u8").view(np.uint8)
    noise = raw.reshape(n, 32, 32, 3, 4).sum(axis=-1, dtype=np.int32) - 510  # four bytes: near enough to a bell
    images = np.empty((n, 32, 32, 3), dtype=np.uint8)
    for channel in range(3):
        first, second, front = (colours[:, i, channel, None, None] for i in range(3))
        value = second + (first - second) * ground
        value = (value + (front - value) * cover) * light * 255
        value = value + noise[..., channel].astype(np.float32) * np.float32(12 / 148)  # a standard deviation of 12
        images[..., channel] = np.floor(np.clip(value, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return images


def _wave(t: Float) -> Float:
    """A triangle of period 1 between 0 and 1, steepened to a soft-edged square wave."""
    folded = np.abs(2 * (t - np.floor(t)) - 1)
    wave: Float = np.clip((folded - np.float32(0.5)) * 3 + np.float32(0.5), 0, 1)
    return wave


def _texture(name: str, u: Float, v: Float) -> Float:
    """Mix of the ground's two colours, 0..1, over coordinates counted in periods."""
    if name == "striped":
        return _wave(u)
    if name == "checked":
        a, b = _wave(u), _wave(v)
        return a + b - 2 * a * b
    if name == "ringed":
        return _wave(np.sqrt(u * u + v * v))
    du, dv = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
    dots: Float = np.clip((np.float32(0.3) - np.sqrt(du * du + dv * dv)) * 6 + np.float32(0.5), 0, 1)
    return dots


def _distance(name: str, u: Float, v: Float, radius: Float) -> Float:
    """Signed distance in pixels to the outline of a shape about the origin, negative inside."""
    from_centre: Float = np.sqrt(u * u + v * v)
    u_abs, v_abs = np.abs(u), np.abs(v)
    width = radius * np.float32(0.3)
    distance: dict[str, Float] = {
        "circle": from_centre - radius,
        "cross": np.minimum(np.maximum(u_abs - radius, v_abs - width), np.maximum(v_abs - radius, u_abs - width)),
        "ring": np.abs(from_centre - radius * np.float32(0.8)) - radius * np.float32(0.25),
        "square": np.maximum(u_abs, v_abs) - radius * np.float32(0.85),
        "triangle": np.maximum(u_abs * np.float32(0.8660254) + v * np.float32(0.5), -v) - radius * np.float32(0.6),
    }
    return distance[name]
