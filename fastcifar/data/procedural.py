"""A data set of CIFAR's shape that is drawn from a seed: objects in front of landscapes. Nothing is downloaded.

Each superclass is a landscape: one of 4 skies over one of 5 grounds, each with its colour and texture. The 5 classes of
a superclass differ in the object, which is a shape with its colour. Place, size, turn, horizon, colour, texture phase,
light and noise vary from image to image. No class depends on left or right, or on pixels near the border, so that a
horizontal flip and a crop by 4 pixels never change the class.

The bytes are the same on every machine. They are computed from the raw output of Philox, which NumPy promises not to
change, with +, -, *, /, sqrt, comparisons and integers, which IEEE 754 rounds alike everywhere. (The results of sin and
exp differ between processors.)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAIN_PER_CLASS = 60
TEST_PER_CLASS = 10
SEED = 0
DIGEST = "ad1f2e581993a5b3c6f0f9f4d0d4e7ff884f18d16046bcfd667b5d256e4723cb"  # Dataset.digest of what generate() draws

Float = NDArray[np.floating[Any]]  # always float32

# Colours are RGB, 0..1. A sky or ground has its main colour first, then the colour of its texture.
_SKIES = {
    "cloudy": ((0.50, 0.72, 0.95), (0.92, 0.95, 1.00)),
    "night": ((0.08, 0.10, 0.28), (0.55, 0.58, 0.75)),
    "stormy": ((0.50, 0.53, 0.57), (0.36, 0.38, 0.43)),
    "sunset": ((0.98, 0.62, 0.50), (0.95, 0.42, 0.40)),
}
_GROUNDS = {
    "desert": ((0.86, 0.66, 0.34), (0.72, 0.50, 0.22)),
    "meadow": ((0.34, 0.62, 0.22), (0.20, 0.46, 0.14)),
    "moor": ((0.54, 0.32, 0.60), (0.40, 0.22, 0.44)),
    "sea": ((0.06, 0.42, 0.52), (0.16, 0.56, 0.64)),
    "snow": ((0.94, 0.95, 0.98), (0.80, 0.84, 0.92)),
}
_OBJECTS = {
    "circle": (0.86, 0.10, 0.12),
    "cross": (1.00, 0.86, 0.10),
    "ring": (0.08, 0.07, 0.09),
    "square": (0.10, 0.30, 0.95),
    "triangle": (1.00, 1.00, 1.00),
}

SUPERCLASS_NAMES = tuple(f"{sky}_{ground}" for sky in _SKIES for ground in _GROUNDS)
CLASS_NAMES = tuple(f"{superclass}_{shape}" for superclass in SUPERCLASS_NAMES for shape in _OBJECTS)
SUPERCLASS_OF = tuple(i // len(_OBJECTS) for i in range(len(CLASS_NAMES)))


def generate(
    seed: int = SEED, train_per_class: int = TRAIN_PER_CLASS, test_per_class: int = TEST_PER_CLASS
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Draws both splits, class after class. The default 6,000 + 1,000 images take about a second.

    Args:
        seed: a whole number from 0; each seed draws different images.
        train_per_class: the number of training images of each class.
        test_per_class: the number of test images of each class.

    Returns:
        `{"train": (images, labels), "test": (images, labels)}`: images uint8 [100 * per_class, 32, 32, 3] RGB,
        labels int64 [100 * per_class].
    """
    bits = np.random.Philox(np.random.SeedSequence(seed))
    count = train_per_class + test_per_class
    drawn = [_draw(sky, ground, thing, count, bits) for sky in _SKIES for ground in _GROUNDS for thing in _OBJECTS]
    labels = np.arange(len(CLASS_NAMES))
    return {
        "train": (np.concatenate([images[:train_per_class] for images in drawn]), labels.repeat(train_per_class)),
        "test": (np.concatenate([images[train_per_class:] for images in drawn]), labels.repeat(test_per_class)),
    }


def _draw(sky: str, ground: str, thing: str, count: int, bits: np.random.Philox) -> NDArray[np.uint8]:
    """Draws `count` images of one class, uint8 [count, 32, 32, 3]."""

    def uniform(low: float, high: float, channels: int = 1) -> Float:
        """A random number for each image (and channel), [count, 1, 1, channels]."""
        raw = np.asarray(bits.random_raw(count * channels)) >> np.uint64(40)  # 24 bits: exact in float32
        value = np.float32(low) + np.float32(high - low) * (raw.astype(np.float32) / np.float32(1 << 24))
        return value.reshape(count, 1, 1, channels).astype(np.float32)

    def placed(centre: tuple[float, float], turn: float) -> tuple[Float, Float]:
        """Coordinates around a random centre, turned by up to 2 atan(turn), which needs no sin."""
        dx, dy, t = x - uniform(*centre), y - uniform(*centre), uniform(-turn, turn)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        return cos * dx - sin * dy, sin * dx + cos * dy

    x = np.arange(32, dtype=np.float32).reshape(1, 1, 32, 1)
    y = x.reshape(1, 32, 1, 1)
    u, v = placed((0, 32), 0.12)
    slope = uniform(-0.15, 0.15)
    below = np.clip(y - uniform(13, 19) - slope * (x - 16), 0, 1)  # 0 in the sky, 1 on the ground
    images = _coloured(_SKIES[sky], uniform(-0.04, 0.04, 3), _texture(sky, u, v)) * (1 - below)
    images += _coloured(_GROUNDS[ground], uniform(-0.04, 0.04, 3), _texture(ground, u, v)) * below

    u, v = placed((13, 18), 1)
    distance = _distance(thing, u, v, uniform(7.5, 9.5))
    inside = np.clip(np.float32(0.5) - distance, 0, 1)
    colour = np.array(_OBJECTS[thing], dtype=np.float32) + uniform(-0.04, 0.04, 3)
    images += (colour - images) * inside
    images *= 1 - np.float32(0.6) * inside * np.clip(distance + np.float32(1.5), 0, 1)  # a dark outline, one pixel wide

    light = uniform(0.85, 1.1) + uniform(-0.01, 0.01) * (x - 16)
    raw = np.asarray(bits.random_raw(images.size // 2)).astype("<u8").view(np.uint8).reshape(*images.shape, 4)
    noise = raw.sum(axis=-1, dtype=np.int32) - 510  # four bytes: nearly normal, standard deviation 148
    images = images * light * 255 + noise.astype(np.float32) * np.float32(8 / 148)
    pixels: NDArray[np.uint8] = np.floor(np.clip(images, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return pixels


def _coloured(colours: tuple[tuple[float, ...], tuple[float, ...]], tint: Float, texture: Float) -> Float:
    main, other = (np.array(colour, dtype=np.float32) for colour in colours)
    mixed: Float = main + tint + (other - main) * texture
    return mixed


def _texture(name: str, u: Float, v: Float) -> Float:
    """How much of its second colour a sky or a ground shows, 0..1."""
    match name:
        case "cloudy":
            return _dots(u / 17, v / 8, 0.45, 3)
        case "night":
            return _dots(u / 7, v / 6, 0.2, 8)
        case "stormy":
            return _stripes(v / 9 + _zigzag(u / 14) / 2)
        case "sunset":
            return _stripes(v / 7)
        case "desert":
            return _stripes(v / 5 + _zigzag(u / 8))
        case "meadow":
            return _dots(u / 3, v / 4, 0.45, 4)
        case "moor":
            return _dots(u / 6, v / 5, 0.4, 5)
        case "sea":
            return _stripes(v / 4 + _zigzag(u / 6) * np.float32(0.75))
        case _:  # snow
            return _dots(u / 9, v / 7, 0.5, 3)


def _zigzag(t: Float) -> Float:
    """A triangle wave of period 1 from 0 to 0.5."""
    wave: Float = np.abs(t - np.floor(t) - np.float32(0.5))
    return wave


def _stripes(t: Float) -> Float:
    """Soft-edged stripes of period 1, 0..1."""
    stripes: Float = np.clip((_zigzag(t) - np.float32(0.25)) * 4 + np.float32(0.5), 0, 1)
    return stripes


def _dots(u: Float, v: Float, radius: float, hardness: float) -> Float:
    """A dot in each unit square, 0..1; each row is shifted against the row before."""
    row = np.floor(v)
    u = u + row * np.float32(0.37)
    du, dv = u - np.floor(u) - np.float32(0.5), v - row - np.float32(0.5)
    dots: Float = np.clip((np.float32(radius) - np.sqrt(du * du + dv * dv)) * np.float32(hardness), 0, 1)
    return dots


def _distance(thing: str, u: Float, v: Float, radius: Float) -> Float:
    """The signed distance in pixels to the outline of an object at the origin; it is negative inside."""
    distance: Float
    u_abs, v_abs = np.abs(u), np.abs(v)
    match thing:
        case "circle":
            distance = np.sqrt(u * u + v * v) - radius
        case "cross":
            arm = radius * np.float32(0.36)
            distance = np.minimum(np.maximum(u_abs - radius, v_abs - arm), np.maximum(v_abs - radius, u_abs - arm))
        case "ring":
            distance = np.abs(np.sqrt(u * u + v * v) - radius * np.float32(0.75)) - radius * np.float32(0.3)
        case "square":
            distance = np.maximum(u_abs, v_abs) - radius * np.float32(0.85)
        case _:  # triangle
            distance = np.maximum(u_abs * np.float32(0.8660254) + v / 2, -v) - radius * np.float32(0.6)
    return distance
