"""The report's page in a real browser: Debian's Chromium, headless, through Playwright."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import with_models

from eguot_devices.page import to_html
from eguot_devices.report import write_report
from eguot_devices.schema import ModelProfile, Report
from eguot_sdk.pairs import list_pairs

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PHONE = {"width": 360, "height": 740}


def model(report: Report, name: str, precision: str, ms: float, psnr_db: float) -> ModelProfile:
    (one,) = report.devices[0].models
    assert one.frame is not None
    assert one.accuracy is not None
    return dataclasses.replace(
        one,
        name=name,
        precision=precision,
        frame=dataclasses.replace(one.frame, per_megapixel_p50_ms=ms),
        accuracy=dataclasses.replace(one.accuracy, psnr_db=psnr_db),
    )


@pytest.fixture
def many(report: Report) -> Report:
    """Three models here, the same on an emulated device that is no one's latency, and a name that is an attack."""
    models = (
        model(report, "fast.w8a8.tflite", "w8a8", 10.0, 24.0),
        model(report, "good.fp32.tflite", "fp32", 40.0, 30.0),
        model(report, "<img src=x onerror=alert(1)>.tflite", "fp32", 50.0, 22.0),
    )
    here = with_models(report, *models).devices[0]
    machine = dataclasses.replace(here.machine, emulated="QEMU")
    there = dataclasses.replace(here, device="ssh://board", machine=machine, models=models[:2])
    return dataclasses.replace(report, devices=(here, there))


@pytest.fixture
def folder(many: Report, pairs: Path, tmp_path: Path) -> Path:
    """The files of a report with pictures."""
    from PIL import Image

    rng = np.random.default_rng(7)
    for d, device in enumerate(many.devices):
        for m in range(len(device.models)):
            kept = tmp_path / "pictures" / f"{d}-{m}"
            kept.mkdir(parents=True)
            for pair in list_pairs(pairs):
                Image.fromarray(rng.integers(0, 256, pair.truth().shape, np.uint8)).save(kept / f"{pair.name}.png")
    write_report(many, tmp_path / "out", pictures=tmp_path / "pictures", pairs=pairs)
    return tmp_path / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`: playwright")
    if CHROMIUM is None:
        pytest.skip("no browser: on Debian, apt-get install chromium")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The page, with the test failing on any error in it or any attempt to reach the network."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    shown = context.new_page()
    wrong: list[str] = []
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    shown.on("dialog", lambda dialog: wrong.append("a dialog opened"))
    shown.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
    )
    shown.goto((folder / "report.html").as_uri())
    yield shown
    assert wrong == []
    context.close()


def test_nothing_in_the_page_is_fetched_and_names_cannot_be_markup(many: Report) -> None:
    text = to_html(many)
    assert "@DATA@" not in text
    assert "<img src=x" not in text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)


def test_the_front_leaves_emulated_times_out_and_shows_their_memory(page: Any) -> None:
    assert page.locator("svg .point").count() == 3
    assert "2 without such a number are left out (emulated: not latency)" in page.inner_text("#front-note")
    assert "emulated: not latency" in page.inner_text("#notes")
    page.select_option("#device", "1")
    assert page.locator("svg .point").count() == 0
    assert "Emulated: not latency" in page.inner_text("#front-note")
    page.select_option("#cost", "memory")
    assert page.locator("svg .point").count() == 2


def test_the_front_joins_the_best_and_tells_more_on_hover_and_by_keyboard(page: Any) -> None:
    assert page.locator("svg .pareto").get_attribute("d").count("L") == 1  # fast and good, not the third
    names = page.locator("svg .point").evaluate_all("all => all.map(e => e.getAttribute('aria-label').split(', ')[0])")
    best = page.locator("svg .point").nth(names.index("good.fp32.tflite"))
    best.hover()
    assert "30.00" in page.inner_text("#tip")
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()
    best.focus()
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def column(page: Any, number: int) -> list[str]:
    found: list[str] = page.locator(f"#table tbody td:nth-child({number})").all_inner_texts()
    return found


def test_the_table_sorts_by_click_and_by_key_and_filters(page: Any) -> None:
    assert page.locator("#table tbody tr").count() == 5
    page.locator("th button[data-key=psnr]").click()
    psnr = [float(text) for text in column(page, 5)]
    assert psnr == sorted(psnr)
    page.locator("th button[data-key=model]").focus()
    page.keyboard.press("Enter")
    assert column(page, 1)[0] == "<img src=x onerror=alert(1)>.tflite"
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("model")
    page.fill("#filter", "w8a8 board")
    assert column(page, 1) == ["fast.w8a8.tflite"]
    assert column(page, 2) == ["ssh://board"]
    assert page.inner_text("#count") == "1 of 5 rows"
    head = page.locator("#table th").all_inner_texts()
    (frame,) = (i for i, name in enumerate(head, 1) if name.startswith("raw to picture"))
    assert column(page, frame) == ["n/a"]


def test_tiles_of_different_sizes_are_no_cost(browser: Any, report: Report, tmp_path: Path) -> None:
    (one,) = report.devices[0].models
    larger = dataclasses.replace(one, name="b", tile=dataclasses.replace(one.tile, width_packed=390))
    for models, sizes in (((one, one), {"276 × 276"}), ((one, larger), {"276 × 276", "276 × 390"})):
        write_report(with_models(report, *models), tmp_path)
        page = browser.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        costs = page.locator("#cost option").evaluate_all("all => all.map(e => e.value)")
        assert ("tile" in costs) == (len(sizes) == 1)
        assert set(column(page, 4)) == sizes
        page.close()


def test_operators_of_the_chosen_model(page: Any) -> None:
    assert page.locator("#ops .bar").count() == 2
    assert "5 of 6 operators run accelerated; not DEPTH_TO_SPACE" in page.inner_text("#ops")
    assert "500 frames in 60 s" in page.inner_text("#ops")
    page.select_option("#ops-model", "3")
    assert "frames in" not in page.inner_text("#ops")
    assert page.locator("#ops .bar").count() == 0
    assert "Emulated: no times" in page.inner_text("#ops")


def test_crops_are_shown_pixel_by_pixel_and_the_slider_moves(page: Any, pairs: Path) -> None:
    pictures = page.locator("#crops img")
    assert pictures.count() == 6
    page.wait_for_function("[...document.querySelectorAll('#crops img')].every(i => i.complete && i.naturalWidth)")
    sizes = pictures.evaluate_all(
        "all => all.map(e => [e.clientWidth, e.naturalWidth, e.clientHeight, e.naturalHeight])"
    )
    assert {tuple(size) for size in sizes} == {(48, 48, 40, 40)}
    page.locator("#split").focus()
    before = page.locator("#img-left").evaluate("e => e.style.clipPath")
    page.keyboard.press("ArrowRight")
    after = page.locator("#img-left").evaluate("e => e.style.clipPath")
    assert (before, after) == ("inset(0px 50% 0px 0px)", "inset(0px 49% 0px 0px)")
    left, right = (page.locator(f"#img-{side}").bounding_box() for side in ("left", "right"))
    assert left == right


def test_pictures_that_came_out_alike_are_shown_once_and_name_all_who_made_them(
    browser: Any, many: Report, pairs: Path, tmp_path: Path
) -> None:
    from PIL import Image

    for d, m, grey in ((0, 0, 50), (0, 1, 90), (1, 0, 50), (1, 1, 120)):  # the third model here made none
        kept = tmp_path / "pictures" / f"{d}-{m}"
        kept.mkdir(parents=True)
        for pair in list_pairs(pairs):
            Image.fromarray(np.full(pair.truth().shape, grey, np.uint8)).save(kept / f"{pair.name}.png")
    write_report(many, tmp_path, pictures=tmp_path / "pictures", pairs=pairs)
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    captions = page.locator("#crops figcaption").all_inner_texts()
    assert [c.partition(" (")[0] for c in captions] == [
        "truth", "fast.w8a8.tflite on local and ssh://board", "good.fp32.tflite on local",
        "good.fp32.tflite on ssh://board",
    ]  # fmt: skip
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_and_with_contrast(page: Any, scheme: str) -> None:
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for selector in ("body", ".soft", ".note", "#command"):
        assert contrast(page, selector) >= 4.5  # WCAG 2, level AA


def contrast(page: Any, selector: str) -> float:
    """Of a text's colour against the first background behind it that is not transparent."""
    script = """e => { const ink = getComputedStyle(e).color; let back = null;
        for (let n = e; n; n = n.parentElement) {
            back = getComputedStyle(n).backgroundColor;
            if (!/, 0\\)/.test(back)) break;
        }
        return [ink, back]; }"""
    ink, back = (luminance(c) for c in page.locator(selector).first.evaluate(script))
    return (max(ink, back) + 0.05) / (min(ink, back) + 0.05)


def luminance(color: str) -> float:
    values = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_everything_can_be_reached_by_tab(page: Any) -> None:
    where = "(e => e.id || (e.classList.contains('point') ? 'point' : e.tagName))(document.activeElement)"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(where))
    assert {"device", "quality", "cost", "filter", "ops-model", "image", "left", "right", "split", "point"} <= reached


def test_a_report_without_pictures_says_so(browser: Any, report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert "profile with --pairs" in page.inner_text("#s-crops")
    page.close()
