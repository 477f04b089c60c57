"""Procedural scenes: unlimited seeded sRGB pictures to train and test on where photos are few or may not be shipped.

A scene is painted in linear light from back to front: a sky-or-wall gradient, shapes whose radii follow a power law
(dead leaves: edges at all scales, as in natural images) with flat, shaded, striped or noisy fills, then a colour
chart and strokes like writing in some scenes; smooth light over all of it; a lens's slight blur; exposure; sRGB.
The same (seed, height, width) gives the same bytes with one NumPy version.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# Mean linear sRGB and spread of what pictures show: how often, colour, log-spread of brightness, spread of hue.
MATERIALS: tuple[tuple[float, tuple[float, float, float], float, float], ...] = (
    (0.22, (0.25, 0.25, 0.25), 0.9, 0.06),  # greys: concrete, clouds, metal, cloth
    (0.16, (0.20, 0.14, 0.09), 0.6, 0.15),  # earth, wood, skin in shade
    (0.16, (0.08, 0.13, 0.04), 0.6, 0.20),  # foliage
    (0.12, (0.28, 0.40, 0.62), 0.5, 0.15),  # sky, water
    (0.10, (0.50, 0.31, 0.22), 0.4, 0.12),  # skin, brick, sand
    (0.08, (0.72, 0.70, 0.64), 0.3, 0.05),  # paper, walls
    (0.14, (0.012, 0.012, 0.012), 1.0, 0.10),  # black, shadow
)
MATERIAL_SHARES = np.array([m[0] for m in MATERIALS]) / sum(m[0] for m in MATERIALS)
SATURATED_SHARE = 0.14


def make_scene(seed: int, height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    """One scene: uint8 sRGB [height, width, 3]. About 0.2 s for 640 x 480."""
    rng = np.random.default_rng([seed, 0x5CE7E])
    noise = _noise_tile(rng, 256)
    palette = np.stack([_material(rng) for _ in range(int(rng.integers(6, 24)))])
    scene = _background(rng, height, width, palette, noise)
    for radius in _radii(rng, height, width):
        _paint_leaf(rng, scene, radius, palette, noise)
    if rng.random() < 0.3:
        _paint_chart(rng, scene)
    if rng.random() < 0.4:
        _paint_writing(rng, scene)
    scene *= _light(rng, height, width)[..., None]
    if rng.random() < 0.8:
        scene = _blur(scene, float(rng.uniform(0.3, 0.9)))
    return _expose(rng, scene)


def _material(rng: np.random.Generator) -> Float32:
    """One linear colour [3] drawn from what pictures show."""
    if rng.random() < SATURATED_SHARE:
        hue, low = rng.uniform(0, 6), rng.uniform(0.01, 0.2)
        wheel = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        return (rng.uniform(0.1, 0.9) * (low + (1 - low) * wheel)).astype(np.float32)
    _, mean, brightness, hue_spread = MATERIALS[rng.choice(len(MATERIALS), p=MATERIAL_SHARES)]
    colour = np.array(mean) * math.exp(rng.normal(0, brightness)) * np.exp(rng.normal(0, hue_spread, 3))
    return np.clip(colour, 0.002, 1.2).astype(np.float32)


def _resize(field: Float32, height: int, width: int) -> Float32:
    """Bilinear stretch of a small field to [height, width]."""
    h, w = field.shape
    y, x = np.linspace(0, h - 1, height), np.linspace(0, w - 1, width)
    y0, x0 = np.minimum(y.astype(int), h - 2), np.minimum(x.astype(int), w - 2)
    fy, fx = (y - y0).astype(np.float32)[:, None], (x - x0).astype(np.float32)[None, :]
    rows = field[y0] * (1 - fy) + field[y0 + 1] * fy
    result: Float32 = rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx
    return result


def _noise_tile(rng: np.random.Generator, side: int) -> Float32:
    """Noise of all scales (amplitude ~ 1/f), [side, side], periodic, mean 0, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency ** rng.uniform(0.7, 1.3)
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int, palette: Float32, noise: Float32) -> Float32:
    first, second = palette[rng.integers(len(palette), size=2)]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle)
    mix = np.clip(0.5 + ramp * rng.uniform(0.3, 1.4), 0, 1)[..., None].astype(np.float32)
    texture = np.exp(rng.uniform(0, 0.25) * _resize(noise, height, width))[..., None]
    return np.asarray((first * (1 - mix) + second * mix) * texture, np.float32)


def _radii(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Radii in pixels, large ones first for the most part.

    Many have density ~ r^-3 between 2.5 pixels and a third of the side, as in natural images; some more large ones
    make sure that the background does not show through everywhere.
    """
    low, high = 2.5, max(5.0, min(height, width) / 3)
    count = int(np.exp(rng.uniform(np.log(80), np.log(1200))) * height * width / (480 * 640)) + 8
    u = rng.random(count)
    radii = low / np.sqrt(1 - u * (1 - (low / high) ** 2))
    large = np.exp(rng.uniform(np.log(high / 8), np.log(high), int(rng.integers(12, 90))))
    radii = np.concatenate([large, radii])
    order = np.argsort(-radii * np.exp(rng.normal(0, 0.8, len(radii))))
    return np.asarray(radii[order])


def _paint_leaf(rng: np.random.Generator, scene: Float32, radius: float, palette: Float32, noise: Float32) -> None:
    """One ellipse, box or diamond with a soft-edged mask, painted over `scene` in place."""
    height, width = scene.shape[:2]
    cy, cx = rng.uniform(-0.1, 1.1) * height, rng.uniform(-0.1, 1.1) * width
    reach = int(radius * 1.5) + 2
    top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
    bottom, right = min(height, int(cy) + reach + 1), min(width, int(cx) + reach + 1)
    if top >= bottom or left >= right:
        return
    angle, aspect = rng.uniform(0, math.pi), rng.uniform(0.35, 1.0)
    y = np.arange(top - cy, bottom - cy, dtype=np.float32)[: bottom - top, None]
    x = np.arange(left - cx, right - cx, dtype=np.float32)[None, : right - left]
    u = ((x * math.cos(angle) + y * math.sin(angle)) / np.float32(radius)).astype(np.float32, copy=False)
    v = ((y * math.cos(angle) - x * math.sin(angle)) / np.float32(radius * aspect)).astype(np.float32, copy=False)
    kind = rng.random()
    if kind < 0.5:
        distance = np.sqrt(u * u + v * v)
    elif kind < 0.85:
        distance = np.maximum(np.abs(u), np.abs(v))
    else:
        distance = np.abs(u) + np.abs(v)
    softness = radius * aspect / rng.choice([1.0, 1.0, 1.0, 6.0])
    mask = np.clip((1 - distance) * softness + 0.5, 0, 1)[..., None]
    target = scene[top:bottom, left:right]
    target += mask * (_fill(rng, u, v, radius, palette, noise) - target)


def _fill(rng: np.random.Generator, u: Float32, v: Float32, radius: float, palette: Float32, noise: Float32) -> Float32:
    """The colours of one shape in its own coordinates: flat, shaded, striped or noisy."""
    colour = palette[rng.integers(len(palette))] * np.float32(math.exp(rng.normal(0, 0.25)))
    kind = rng.random()
    if kind < 0.25 or radius < 4:
        return colour[None, None, :]
    if kind < 0.55:  # a round thing lit from one side
        side = rng.uniform(0, 2 * math.pi)
        shade = 1 + rng.uniform(0.1, 0.7) * (u * math.cos(side) + v * math.sin(side))
        return np.asarray(np.clip(shade, 0.1, 2.0)[..., None] * colour, np.float32)
    if kind < 0.7:
        other = palette[rng.integers(len(palette))]
        wave = 0.5 + 0.5 * np.clip(rng.uniform(1, 4) * np.sin(u * rng.uniform(3, max(4.0, radius * 0.9))), -1, 1)
        return np.asarray(colour * wave[..., None] + other * (1 - wave[..., None]), np.float32)
    (h, w), period = np.broadcast_shapes(u.shape, v.shape), len(noise)
    rows = (np.arange(h) + int(rng.integers(period))) % period
    cols = (np.arange(w) + int(rng.integers(period))) % period
    patch = noise[np.ix_(rows, cols)]
    return np.asarray(np.exp(rng.uniform(0.1, 0.6) * patch)[..., None] * colour, np.float32)


def _paint_chart(rng: np.random.Generator, scene: Float32) -> None:
    """A chart: a row of greys, and rows of colours from dull to saturated."""
    height, width = scene.shape[:2]
    side = int(rng.uniform(0.03, 0.09) * min(height, width))
    if side < 4:
        return
    rows, cols, gap = 4, 6, max(1, side // 6)
    top = int(rng.integers(0, max(1, height - rows * side)))
    left = int(rng.integers(0, max(1, width - cols * side)))
    scene[top : top + rows * side + gap, left : left + cols * side + gap] = 0.03
    for r in range(rows):
        for c in range(cols):
            if r == rows - 1:
                colour = np.full(3, 0.9 * 0.52**c, np.float32)
            else:
                colour = _material(rng) if r < rows - 2 else _wheel(c / cols, float(rng.uniform(0.3, 0.8)))
            y, x = top + r * side + gap, left + c * side + gap
            scene[y : y + side - gap, x : x + side - gap] = colour


def _wheel(turn: float, value: float) -> Float32:
    wheel = np.clip(np.abs((turn * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0.03, 1)
    return (value * wheel).astype(np.float32)


def _paint_writing(rng: np.random.Generator, scene: Float32) -> None:
    """Lines of glyph-like strokes on a panel."""
    height, width = scene.shape[:2]
    size = int(rng.integers(7, 20))
    rows, cols = int(rng.integers(2, 7)), int(rng.integers(8, 26))
    top = int(rng.integers(0, max(1, height - rows * size * 2)))
    left = int(rng.integers(0, max(1, width - cols * size)))
    panel, ink = (_material(rng) for _ in range(2))
    scene[top : top + rows * size * 2, left : left + cols * size] = panel
    stroke = max(1, size // 6)
    for row in range(rows):
        for col in range(cols):
            if rng.random() < 0.18:
                continue
            y, x = top + row * size * 2 + size // 2, left + col * size + 1
            for _ in range(int(rng.integers(2, 5))):
                if rng.random() < 0.5:
                    a = y + int(rng.integers(0, size))
                    scene[a : a + stroke, x : x + size - 2] = ink
                else:
                    b = x + int(rng.integers(0, max(1, size - 3)))
                    scene[y : y + size, b : b + stroke] = ink


def _light(rng: np.random.Generator, height: int, width: int) -> Float32:
    """Smooth illumination [height, width], around 1."""
    field = rng.standard_normal((3, 4)).astype(np.float32) * np.float32(rng.uniform(0.05, 0.9))
    return np.asarray(np.exp(_resize(field, height, width)), np.float32)


def _blur(scene: Float32, sigma: float) -> Float32:
    taps = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        pad: list[Any] = [(0, 0)] * 3
        pad[axis] = (2, 2)
        padded = np.pad(scene, pad, mode="edge")
        n = scene.shape[axis]
        scene = sum(t * (padded[i : i + n] if axis == 0 else padded[:, i : i + n]) for i, t in enumerate(taps))
    return scene


def _expose(rng: np.random.Generator, scene: Float32) -> NDArray[np.uint8]:
    """Exposure that lets a small part clip, a tint of imperfect white balance, sRGB curve, 8 bits."""
    level = float(np.quantile(scene[::4, ::4].max(axis=2), rng.uniform(0.9, 0.998)))
    tint = np.exp(rng.normal(0, 0.04, 3)).astype(np.float32)
    linear = np.clip(scene * (tint * np.float32(rng.uniform(0.35, 1.05) / max(level, 1e-3))), 0, 1)
    curve = np.linspace(0, 1, 4096)
    encoded = np.where(curve <= 0.0031308, 12.92 * curve, 1.055 * np.maximum(curve, 1e-9) ** (1 / 2.4) - 0.055)
    table = np.rint(encoded * 255).astype(np.uint8)
    return np.asarray(table[(linear * 4095 + 0.5).astype(np.uint16)])
