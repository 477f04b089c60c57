"""Colours of other spaces become sRGB as textbook matrices and curves say; what is sRGB stays to the bit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from eguot_sdk import icc
from eguot_sdk.icc import as_srgb
from eguot_sdk.output import srgb_profile
from eguot_sdk.pairs import read_picture

P3_D50 = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}
"""Primaries of Display P3 as its profile has them, adapted to D50."""
P3_TO_SRGB = np.array([[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786361, 1.0982736]])
"""Linear light, both D65 (from the chromaticities of the two spaces)."""


def p3_profile() -> bytes:
    """The curve of sRGB with the primaries of P3."""
    data = bytearray(srgb_profile())
    for i in range(struct.unpack(">I", data[128:132])[0]):
        name, at, _ = struct.unpack(">4sII", data[132 + 12 * i : 144 + 12 * i])
        if name in P3_D50:
            data[at + 8 : at + 20] = struct.pack(">3i", *(round(v * 65536) for v in P3_D50[name]))
    return bytes(data)


def profile(kind: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2, of its tags."""
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    white = struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    pcs = b"Lab " if b"A2B0" in tags else b"XYZ "
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, kind, space, pcs)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def grey_profile(gamma: float) -> bytes:
    """Grey of a plain power curve."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return profile(b"mntr", b"GRAY", {b"wtpt": white, b"kTRC": curve})


def press_profile() -> bytes:
    """CMYK whose paper is L* 100, black wherever an ink is full, and in between by multilinear interpolation."""
    ramp = bytes(range(256))
    corners = b"".join(bytes((0 if any(c) else 255, 128, 128)) for c in np.ndindex(2, 2, 2, 2))
    identity = struct.pack(">9i", *(65536 * (i in (0, 4, 8)) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + 4 * ramp + corners + 3 * ramp
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return profile(b"prtr", b"CMYK", {b"wtpt": white, b"A2B0": table})


def curve(linear: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB levels of 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def tagged(image: Image.Image, data: bytes) -> Image.Image:
    image.info["icc_profile"] = data
    return image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_display_p3_becomes_srgb(mode: str) -> None:
    image = Image.fromarray(noise(40, 50, 3)).convert(mode)
    p3 = np.asarray(image.convert("RGB")) / 255
    linear = np.where(p3 <= 0.04045, p3 / 12.92, ((p3 + 0.055) / 1.055) ** 2.4) @ P3_TO_SRGB.T
    found = np.asarray(as_srgb(tagged(image, p3_profile())).convert("RGB"))
    assert np.abs(found - curve(linear)).max() < 2
    assert np.abs(found - 255 * p3).max() > 20


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("gamma", [256 / 256, 461 / 256])
def test_grey_of_another_curve(gamma: float, mode: str) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(8, 0)
    found = np.asarray(as_srgb(tagged(Image.fromarray(ramp).convert(mode), grey_profile(gamma))).convert("RGB"))
    assert np.abs(found - curve((ramp / 255.0) ** gamma)[..., None]).max() < 0.6


def test_inks_become_the_lightness_their_profile_says() -> None:
    """Half of a black ink is L* 50, Y = .1842, where a plain inversion gives level 127."""
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:, 4:, 3] = 128
    found = np.asarray(as_srgb(tagged(Image.fromarray(inks, "CMYK"), press_profile())))
    assert (found[:, :4] >= 254).all()
    assert np.abs(found[:, 4:] - curve(np.array(0.1842))).max() < 2


@pytest.mark.parametrize(
    "data",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        srgb_profile(),
        grey_profile(1.8),  # of another kind of picture
        b"no profile",
        p3_profile()[:300],
        b"",
    ],
)
def test_what_says_srgb_or_makes_no_sense_changes_nothing(data: bytes) -> None:
    image = tagged(Image.fromarray(noise(40, 50, 3)), data)
    assert as_srgb(image) is image


def test_a_profile_that_is_a_number_changes_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(9, 9, 3), photometric="rgb", extratags=[(34675, "I", 1, 7, True)])
    with Image.open(tmp_path / "a.tif") as image:
        assert image.info["icc_profile"] == 7
        assert as_srgb(image) is image


def test_damaged_and_large_profiles_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(p3_profile())
        for at in rng.integers(0, len(data), 6):
            data[at] = rng.integers(256)
        assert as_srgb(tagged(Image.fromarray(noise(9, 9, 3)), bytes(data))).size == (9, 9)
    monkeypatch.setattr(icc, "MAX_PROFILE_BYTES", 100)
    image = tagged(Image.fromarray(noise(9, 9, 3)), p3_profile())
    assert as_srgb(image) is image


def test_truths_of_pairs_are_converted_too(tmp_path: Path) -> None:
    image = Image.fromarray(noise(20, 30, 3))
    image.save(tmp_path / "p3.png", icc_profile=p3_profile())
    image.save(tmp_path / "plain.png")
    expected = as_srgb(tagged(image.copy(), p3_profile()))
    np.testing.assert_array_equal(read_picture(tmp_path / "p3.png"), np.asarray(expected))
    np.testing.assert_array_equal(read_picture(tmp_path / "plain.png"), np.asarray(image))
