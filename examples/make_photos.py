"""Makes the photos of examples/photos and their split: 640 px, JPEG, with the provenance of each.

    python examples/make_photos.py --photos DIR

DIR holds NAME.jpg for every name below, or is a checkout of drewnoakes/metadata-extractor-images. Sixty photos of
sixty cameras (1999 to 2016), upright, without metadata. The split keeps scenes apart: photos of one kind of scene that
could be taken for each other stay on one side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

from PIL import Image, ImageOps

HERE = Path(__file__).parent / "photos"
REPOSITORY = "drewnoakes/metadata-extractor-images"
COMMIT = "4beba64048"
GRANT = "You are free to use these media files however you wish."
LONG_SIDE = 640
QUALITY = 88
SPLIT = {"raw": 21, "srgb": 21, "test": 18}
SEED = 3
ALIKE = (
    ("panasonic_dmc_lc33_lumix", "samsung_gt_i9505_galaxy_s4"),  # glasses of beer on a table
    ("panasonic_fx7", "panasonic_fz20"),  # facades, turned the same way
)

SOURCES = {
    "android_depth_map": "jpg/Android Depth Map.jpg",
    "apple_iphone_6": "jpg/Apple iPhone 6.jpg",
    "apple_iphone_6_plus": "jpg/Apple iPhone 6 plus.jpg",
    "canon_eos_1000d": "jpg/Canon EOS 1000D.jpg",
    "canon_eos_1d_mark_iii_via_adobe_lightroo": "jpg/Canon EOS-1D Mark III (via Adobe Lightroom).jpg",
    "canon_eos_20d_3": "jpg/Canon EOS 20D (3).jpg",
    "canon_eos_350d": "jpg/Canon EOS 350D.jpg",
    "canon_powershot_a720_is": "jpg/Canon PowerShot A720 IS.jpg",
    "canon_powershot_a80": "jpg/Canon PowerShot A80.jpg",
    "canon_powershot_s30": "jpg/Canon PowerShot S30.jpg",
    "canon_powershot_s400": "jpg/Canon PowerShot S400.jpg",
    "canon_powershot_s40_1": "jpg/Canon PowerShot S40 (1).jpg",
    "epson_photopc_3000z": "jpg/Epson PhotoPC 3000Z.jpg",
    "fujifilm_finepix4900zoom": "jpg/FujiFilm FinePix4900Zoom.jpg",
    "fujifilm_finepixs5500": "jpg/FujiFilm FinePixS5500.jpg",
    "fujifilm_mx_2900zoom": "jpg/FujiFilm MX-2900Zoom.jpg",
    "htc_desire": "jpg/HTC Desire.jpg",
    "htc_tytn_ii": "jpg/HTC TyTN II.jpg",
    "issue_211": "jpg/Issue 211.jpg",
    "issue_266": "jpg/Issue 266.jpg",
    "issue_308": "jpg/Issue 308.jpg",
    "issue_525": "jpg/Issue 525.jpg",
    "issue_587_dotnet": "jpg/Issue 587 (dotnet).jpg",
    "kodak_clas_digital_film_scanner_hr200_1": "jpg/Kodak CLAS Digital Film Scanner HR200 (1).jpg",
    "kodak_dx4330": "jpg/Kodak DX4330.jpg",
    "kodak_pixpro_az521": "jpg/Kodak PIXPRO AZ521.jpg",
    "kodak_pixpro_sp360": "jpg/Kodak PIXPRO SP360.jpg",
    "kodak_proback": "jpg/Kodak ProBack.jpg",
    "leica_t_typ_701": "jpg/Leica T (Typ 701).jpg",
    "minolta_dimage_7": "jpg/Minolta DiMAGE 7.jpg",
    "motorola_xt1068_moto_g": "jpg/Motorola XT1068 (Moto G).jpg",
    "nexus_4": "jpg/Nexus 4.jpg",
    "nikon_d3100": "jpg/Nikon D3100.jpg",
    "nikon_d40": "jpg/Nikon D40.jpg",
    "nikon_d70": "jpg/Nikon D70.jpg",
    "nikon_d90": "jpg/Nikon D90.jpg",
    "nikon_e775": "jpg/Nikon E775.jpg",
    "nikon_e950": "jpg/Nikon E950.jpg",
    "nokia_lumia_800": "jpg/Nokia Lumia 800.jpg",
    "noritsu_koki_qss": "jpg/Noritsu Koki QSS.jpg",
    "olympus_c720uz": "jpg/Olympus C720UZ.jpg",
    "olympus_e_20": "jpg/Olympus E-20.jpg",
    "olympus_pen_e_p3": "jpg/Olympus PEN E-P3.jpg",
    "panasonic_dmc_lc33_lumix": "jpg/Panasonic DMC-LC33 (Lumix).jpg",
    "panasonic_fx7": "jpg/Panasonic FX7.jpg",
    "panasonic_fz20": "jpg/Panasonic FZ20.jpg",
    "panasonic_nv_gx7": "jpg/Panasonic NV-GX7.jpg",
    "reconyx_hc500_firmware_3_3_0": "jpg/Reconyx HC500 firmware 3.3.0.jpg",
    "samsung_gt_i9100_galaxy_sii": "jpg/Samsung GT-I9100 (Galaxy SII).jpg",
    "samsung_gt_i9505_galaxy_s4": "jpg/Samsung GT-I9505 (Galaxy S4).jpg",
    "samsung_sm_g935l_galaxy_s7_edge": "jpg/Samsung SM-G935L (Galaxy S7 Edge).jpg",
    "samsung_sm_n900a_galaxy_note_3": "jpg/Samsung SM-N900A (Galaxy Note 3).jpg",
    "sony_cybershot_1": "jpg/Sony Cybershot (1).jpg",
    "sony_d5403_xperia_z2": "jpg/Sony D5403 (Xperia Z2).jpg",
    "sony_dcr_pc110e_2": "jpg/Sony DCR-PC110E (2).jpg",
    "sony_dsc_g1": "jpg/Sony DSC-G1.jpg",
    "sony_ericsson_u10i": "jpg/Sony Ericsson U10i.jpg",
    "sony_mavica": "jpg/Sony Mavica.jpg",
    "trust_powercam_zoom_lcd_710": "jpg/Trust PowerCam Zoom LCD 710.JPG",
    "vtech_kidizoom_camera": "jpg/VTech Kidizoom camera.jpg",
}


def find(photos: Path, name: str) -> Path:
    """The photo by its short name, or by its path in the repository."""
    for path in (photos / f"{name}.jpg", photos / SOURCES[name]):
        if path.is_file():
            return path
    raise SystemExit(f"{photos}: neither {name}.jpg nor {SOURCES[name]} is there")


def reduce_photo(source: Path, target: Path) -> None:
    """Upright, at most LONG_SIDE pixels, sRGB JPEG without metadata."""
    with Image.open(source) as image:
        photo = ImageOps.exif_transpose(image).convert("RGB")
    photo.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    photo.save(target, quality=QUALITY, subsampling="4:4:4", optimize=True)


def make_split() -> dict[str, list[str]]:
    """Names by side, disjoint in scene; the same every time."""
    joined = {name: group for group in ALIKE for name in group}
    groups = sorted({joined.get(name, (name,)) for name in SOURCES})
    random.Random(SEED).shuffle(groups)
    groups.sort(key=len, reverse=True)  # pairs first, so that the sides come out at their sizes
    split: dict[str, list[str]] = {side: [] for side in SPLIT}
    for group in groups:
        side = next(s for s in SPLIT if len(split[s]) + len(group) <= SPLIT[s])
        split[side].extend(group)
    return {side: sorted(f"{name}.jpg" for name in names) for side, names in split.items()}


def write_licenses(rows: list[str]) -> None:
    """Say beside the photos where each is from."""
    text = f"""# Photos

From {REPOSITORY} on GitHub, commit {COMMIT}, whose README says: "{GRANT}"
Turned upright, reduced to {LONG_SIDE} px on the long side, metadata removed, JPEG quality {QUALITY} (4:4:4) by
`examples/make_photos.py`.
The sha256 is that of the file reduced: the photo at 1024 px, upright, JPEG quality 92.

| file | path in the repository | sha256 of the source |
|---|---|---|
"""
    (HERE / "LICENSES.md").write_text(text + "\n".join(rows) + "\n")


def main() -> None:
    """Reduce the photos of SOURCES and write down their provenance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    photos = parser.parse_args().photos
    HERE.mkdir(exist_ok=True)
    rows = []
    for name in sorted(SOURCES):
        source = find(photos, name)
        reduce_photo(source, HERE / f"{name}.jpg")
        rows.append(f"| {name}.jpg | `{SOURCES[name]}` | {hashlib.sha256(source.read_bytes()).hexdigest()} |")
    write_licenses(rows)
    (HERE / "split.json").write_text(json.dumps(make_split(), indent=1) + "\n")


if __name__ == "__main__":
    main()
