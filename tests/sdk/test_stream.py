"""Live cameras, many threads and asyncio: `ISP.stream`, mosaics without a file, and memory that stays where it is."""

from __future__ import annotations

import asyncio
import gc
import io
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eguot_sdk import ISP, RawFrame
from eguot_sdk.errors import CorruptRaw, RawError, UsageError

README = Path(__file__).resolve().parents[2] / "README.md"
DATA = Path(__file__).resolve().parent.parent / "data"
MakeDng = Callable[..., bytes]


def make_frames(count: int, height: int = 90, width: int = 120) -> tuple[RawFrame, list[NDArray[np.uint16]]]:
    rng = np.random.default_rng(0)
    mosaics = [rng.integers(64, 1023, (height, width)).astype(np.uint16) for _ in range(count)]
    camera = RawFrame.from_array(mosaics[0], cfa="GBRG", black=64, white=1023, white_balance=(2, 1, 1.5), orientation=6)
    return camera, mosaics


def test_a_mosaic_is_developed_like_a_frame_of_its_camera() -> None:
    camera, mosaics = make_frames(3)
    with ISP.fake() as isp:
        for mosaic in mosaics:
            frame = RawFrame.from_array(
                mosaic, cfa="GBRG", black=64, white=1023, white_balance=(2, 1, 1.5), orientation=6
            )
            np.testing.assert_array_equal(isp.process(mosaic, like=camera), isp.process(frame))


def test_a_mosaic_of_a_camera_is_not_copied() -> None:
    camera, mosaics = make_frames(1)
    padded = np.zeros((90, 128), np.uint16)  # rows of a video buffer are longer than the picture
    padded[:, :120] = mosaics[0]
    frame = camera.with_mosaic(padded[:, :120])
    assert np.shares_memory(frame.mosaic, padded)
    assert not frame.mosaic.flags.writeable
    assert padded.flags.writeable
    np.testing.assert_array_equal(frame.mosaic, mosaics[0])
    # What cannot be used as it lies is copied, and what is no mosaic is refused.
    assert not np.shares_memory(camera.with_mosaic(padded[::-1, ::2]).mosaic, padded)
    np.testing.assert_array_equal(camera.with_mosaic(mosaics[0].astype(np.int64)).mosaic, mosaics[0])
    with pytest.raises(RawError, match="two axes"):
        camera.with_mosaic(np.zeros((4, 4, 3), np.uint16))
    with pytest.raises(RawError, match="integers"):
        camera.with_mosaic(np.zeros((8, 8)))


def test_like_and_mosaics_belong_together() -> None:
    camera, mosaics = make_frames(1)
    isp = ISP.fake()
    with pytest.raises(UsageError, match="needs `like`"):
        isp.process(mosaics[0])
    with pytest.raises(UsageError, match="`like` is for a mosaic"):
        isp.process(camera, like=camera)


def test_a_stream_gives_the_pictures_in_order(make_dng: MakeDng, counts: Any) -> None:
    camera, mosaics = make_frames(7)
    with ISP.fake(threads=2) as isp:
        expected = [isp.process(mosaic, like=camera, exposure=0.5) for mosaic in mosaics]
        found = list(isp.stream(iter(mosaics), like=camera, exposure=0.5))
        assert len(found) == 7
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, two)
        data = make_dng(counts)
        files = list(isp.stream([data, io.BytesIO(data)]))
        np.testing.assert_array_equal(files[0], isp.process(data))
        np.testing.assert_array_equal(files[1], files[0])
        assert list(isp.stream([])) == []


def test_a_camera_may_write_every_frame_into_one_buffer() -> None:
    camera, mosaics = make_frames(6)
    buffer = np.zeros((90, 128), np.uint16)  # its rows are longer than the picture, too

    def source() -> Iterator[NDArray[np.uint16]]:
        for mosaic in mosaics:
            buffer[:, :120] = mosaic
            yield buffer[:, :120]

    with ISP.fake() as isp:
        for picture, mosaic in zip(isp.stream(source(), like=camera), mosaics, strict=True):
            np.testing.assert_array_equal(picture, isp.process(mosaic.copy(), like=camera))


def test_a_source_is_not_used_once_a_stream_is_left() -> None:
    camera, mosaics = make_frames(1)
    stopped, used_after = False, False

    def source() -> Iterator[NDArray[np.uint16]]:
        nonlocal used_after
        while True:
            time.sleep(0.2)
            used_after |= stopped
            yield mosaics[0]

    frames = source()
    for _ in ISP.fake().stream(frames, like=camera):
        break
    stopped = True
    frames.close()  # says "already executing" where the reader is still inside
    time.sleep(0.4)
    assert not used_after


def test_a_picture_does_not_wait_for_the_frame_after_the_next() -> None:
    camera, mosaics = make_frames(3)
    more = threading.Event()

    def source() -> Iterator[NDArray[np.uint16]]:
        yield mosaics[0]
        more.wait(10)  # the camera's next frame comes later than the first picture is wanted
        yield mosaics[1]

    with ISP.fake() as isp:
        stream = isp.stream(source(), like=camera)
        first = next(stream)
        assert not more.is_set()
        np.testing.assert_array_equal(first, isp.process(mosaics[0], like=camera))
        more.set()
        assert len(list(stream)) == 1


def test_an_error_ends_the_stream_after_the_pictures_before_it(make_dng: MakeDng, counts: Any) -> None:
    good = make_dng(counts)
    stream = ISP.fake().stream([good, good[:900], good])
    assert next(stream).shape == (32, 48, 3)
    with pytest.raises(CorruptRaw):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sources": "IMG.dng"}, "several sources"),
        ({"sources": Path("IMG.dng")}, "several sources"),
        ({"sources": np.zeros((8, 8), np.uint16)}, "several sources"),
        ({"bits": 3}, "8 or 16 bits"),
        ({"exposure": 99.0}, "exposure"),
        ({"lens_shading": "yes"}, "auto, on or off"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_before_the_first_source_is_asked_for(given: dict[str, Any], words: str) -> None:
    def sources() -> Iterator[NDArray[np.uint16]]:
        pytest.fail("asked")
        yield

    with pytest.raises(UsageError, match=words):
        ISP.fake().stream(**{"sources": sources(), **given})


def test_leaving_a_stream_early_frees_the_isp() -> None:
    camera, mosaics = make_frames(4)
    isp = ISP.fake()
    for picture in isp.stream(mosaics * 50, like=camera):
        assert picture.shape == (120, 90, 3)
        break
    assert isp.process(mosaics[0], like=camera).shape == (120, 90, 3)
    isp.close()
    with pytest.raises(UsageError, match="closed"):
        isp.process(camera)


STOPPED = """
import threading
import numpy as np
from eguot_sdk import ISP, RawFrame

def camera():
    yield camera_frame.mosaic
    threading.Event().wait()

camera_frame = RawFrame.from_array(np.full((32, 32), 500, np.uint16), cfa="RGGB", black=64, white=1023)
for picture in ISP.fake().stream(camera(), like=camera_frame):
    break
"""


def test_a_program_ends_though_its_camera_gives_no_more() -> None:
    subprocess.run([sys.executable, "-c", STOPPED], check=True, timeout=60)


@pytest.mark.parametrize("model", [None, "tiny.w8a8.tflite"])
def test_a_stream_does_not_grow(model: str | None) -> None:
    if model is not None:
        pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    camera, mosaics = make_frames(2, 180, 240)
    isp = ISP.fake(threads=2) if model is None else ISP.load(DATA / model, threads=2, tile=64)
    sizes = []
    with isp:
        tracemalloc.start()
        try:
            for number, picture in enumerate(isp.stream((mosaics[n % 2] for n in range(60)), like=camera)):
                assert picture.any()
                if number % 10 == 9:
                    sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert max(sizes[2:]) - min(sizes[2:]) < 3 * picture.nbytes  # one more or less is in flight
    assert sizes[-1] <= sizes[2] + picture.nbytes


def address(picture: NDArray[Any]) -> int:
    """Where the memory that an array lies in begins."""
    while isinstance(picture.base, np.ndarray):
        picture = picture.base
    return int(picture.ctypes.data)


def test_memory_of_a_picture_nobody_holds_is_used_again() -> None:
    camera, mosaics = make_frames(40)
    with ISP.fake() as isp:
        places = {address(picture) for picture in isp.stream(mosaics, like=camera)}
        assert len(places) <= 2  # one with us while the next is developed
        first = address(isp.process(camera))
        assert address(isp.process(camera)) == first


@pytest.mark.parametrize(
    "part",
    [
        lambda picture: picture,
        lambda picture: picture[10:20, :, 1],
        lambda picture: picture.reshape(-1)[::7],
        lambda picture: memoryview(picture[5]),
        lambda picture: picture.view(np.int8).T,
    ],
)
def test_a_picture_stays_as_long_as_any_part_of_it_is_held(part: Callable[[Any], Any]) -> None:
    camera, mosaics = make_frames(5)
    with ISP.fake() as isp:
        held = part(isp.process(camera))
        before = np.array(held)
        others = [isp.process(mosaic, like=camera) for mosaic in mosaics]
        for mosaic in mosaics:
            isp.process(mosaic, like=camera)
        np.testing.assert_array_equal(held, before)
        expected = [ISP.fake().process(mosaic, like=camera) for mosaic in mosaics]
        for one, two in zip(others, expected, strict=True):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(held, before)  # nor does closing change it


def test_little_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    camera, mosaics = make_frames(20, 300, 400)
    small, _ = make_frames(1, 30, 40)
    isp = ISP.fake()
    tracemalloc.start()
    try:
        pictures = [isp.process(mosaic, like=camera) for mosaic in mosaics]
        size = pictures[0].nbytes
        held = tracemalloc.get_traced_memory()[0]
        del pictures
        gc.collect()
        assert held - tracemalloc.get_traced_memory()[0] > 17.5 * size  # all but two
        isp.process(small)
        assert held - tracemalloc.get_traced_memory()[0] > 19.5 * size  # those do not fit any more
        monkeypatch.setattr("eguot_sdk.isp.KEPT_BYTES", size - 1)
        isp.process(camera)
        assert held - tracemalloc.get_traced_memory()[0] > 19.5 * size
    finally:
        tracemalloc.stop()


def test_the_program_of_the_readme_runs(
    make_dng: MakeDng, counts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text(encoding="utf-8")
    program = text[text.index("## From a program") :].split("```python\n")[1].split("```")[0]
    (tmp_path / "IMG.dng").write_bytes(make_dng(counts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ISP, "load", lambda path, *, threads: ISP.fake(threads=threads))
    shown: list[Any] = []
    names: dict[str, Any] = {"mosaic": counts, "mosaics": [counts] * 3, "matrix": np.eye(3), "show": shown.append}
    exec(program, names)
    assert len(shown) == 3
    picture = asyncio.run(names["handler"]("IMG.dng"))
    np.testing.assert_array_equal(picture, ISP.fake().process("IMG.dng"))


def test_asyncio_runs_on_while_a_raw_is_developed(make_dng: MakeDng, counts: Any) -> None:
    data = make_dng(counts)

    async def develop() -> tuple[list[Any], int]:
        ticks, done = 0, asyncio.Event()

        async def tick() -> None:
            nonlocal ticks
            while not done.is_set():
                ticks += 1
                await asyncio.sleep(0)

        with ISP.fake() as isp:
            ticker = asyncio.create_task(tick())
            pictures = await asyncio.gather(*(asyncio.to_thread(isp.process, data) for _ in range(4)))
            done.set()
            await ticker
        return list(pictures), ticks

    pictures, ticks = asyncio.run(develop())
    assert ticks > 0
    expected = ISP.fake().process(data)
    for picture in pictures:
        np.testing.assert_array_equal(picture, expected)
