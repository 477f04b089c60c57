"""Develop raws with an ISP file: ingest, tiles and a runtime joined.

A frame is cut into tiles that run in parallel, each on a runtime of one thread; a single tile gets all the threads
itself. Memory is the picture plus the tiles in flight. The result does not depend on tile size or thread count:
bit for bit for integer ISPs, within rounding for float ones. Writing files is `output`'s.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .errors import IspFileError, UsageError
from .ingest import Ingest, dequantise, quantise
from .ispfile import read_spec
from .output import Picture, lying, to_square_pixels, upright
from .paths import DEFAULT_ISP, named_isp
from .raw import AS_IN_FILE, BytesLike, Overrides, RawFrame, read_raw
from .runtimes import Runtime, RuntimeFactory, check_tensors, runtime_factory
from .runtimes.fake import FakeRuntime, fake_spec
from .shading import LensShading, check_lens_shading, shaded
from .spec import IspSpec, TensorSpec
from .tiling import TileSide, Tiling, auto_tile, plan, tile_side
from .workers import core_count

MAX_EXPOSURE_EV = 16.0
MAX_THREADS = 256
STRIPE = 1 << 14
"""Pixels written at once where a copy is needed on the way, so that it stays in cache."""

KEPT_PICTURES = 2
"""Pictures whose memory an ISP keeps: one with its user while the next is developed."""
KEPT_BYTES = 160 << 20
"""Memory of larger pictures is given back at once."""
LEAVE_S = 2.0
"""Seconds that leaving a stream waits for its source."""
_probe = [np.empty(0)]
UNSHARED = sys.getrefcount(_probe[0])
"""What `getrefcount` says of an array that only a list refers to."""

Storer = Callable[[NDArray[Any], NDArray[Any]], None]
Source = str | os.PathLike[str] | BytesLike | BinaryIO | RawFrame | NDArray[Any]
Progress = Callable[[int, int], None]
"""Called in the caller's thread with (tiles done, tiles of this frame). To cancel, raise from it."""


class ISP:
    """One ISP, ready to develop raws. Safe to use from several threads; frames are developed one at a time.

        with ISP.load("look.w8a8.tflite") as isp:
            rgb = isp.process("IMG.dng")

    `spec`: what the ISP file says of itself. `threads`: how many are used. `runtime`: package and version it runs on.
    """

    def __init__(
        self,
        spec: IspSpec,
        runtime_factory: RuntimeFactory,
        *,
        threads: int | None = None,
        tile: TileSide | None = None,
    ) -> None:
        """`runtime_factory`: number of threads -> a new Runtime. Most callers want `ISP.load` or `ISP.fake`."""
        if spec.layout != "NHWC":
            raise IspFileError(f"ISP {spec.name!r}: its layout {spec.layout} cannot be run here: convert it as NHWC")
        if spec.scale_factor % 2:
            raise IspFileError(f"ISP {spec.name!r}: raws need an even scale factor, not {spec.scale_factor}")
        self.spec = spec
        self.threads = _thread_count(threads)
        self.tile = auto_tile(spec, self.threads) if tile is None else tile_side(spec, tile)
        self._factory = runtime_factory
        self._opened: dict[int, list[Runtime]] = {}
        self._pictures = _Pictures()
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._closed = False
        self.runtime = self._runtimes(1, self.threads if self.tile == "whole" else 1)[0].name

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        threads: int | None = None,
        tile: TileSide | None = None,
        delegate: str | Path | None = None,
    ) -> ISP:
        """Open an ISP file. `path` None, or the word `default`: that of this package.

        `threads`: at most this many; None: the processors this process may use, or 1 with a delegate.
        `tile`: side of a tile in packed pixels (2x2 raw pixels); None: chosen from the caches and the free memory of
        this machine; "whole": the frame at once, which takes much more memory (some 70 bytes a pixel for a small
        network).
        `delegate`: path of a TFLite delegate library; it is code and will be run.
        Raises IspFileError, UsageError or MissingDependency.
        """
        path = DEFAULT_ISP if path is None else named_isp(path)
        if path == DEFAULT_ISP and not path.is_file():
            raise IspFileError("this installation of eguot-sdk has no default ISP: give the path of an ISP file")
        factory = runtime_factory(path, delegate=delegate)
        spec = read_spec(path)
        if threads is None and delegate is not None:
            threads = 1
        return cls(spec, factory, threads=threads, tile=tile)

    @classmethod
    def fake(
        cls,
        *,
        dtype: Literal["int8", "float32"] = "int8",
        threads: int | None = None,
        tile: TileSide | None = None,
    ) -> ISP:
        """An ISP without a model or a runtime package, for tests of your own program: right colours, soft detail."""
        spec = fake_spec(dtype)
        return cls(spec, lambda _: FakeRuntime(spec), threads=threads, tile=spec.tile if tile is None else tile)

    def process(
        self,
        source: Source,
        *,
        like: RawFrame | None = None,
        exposure: float = 0.0,
        bits: Literal[8, 16] = 8,
        lens_shading: LensShading = "auto",
        overrides: Overrides = AS_IN_FILE,
        progress: Progress | None = None,
    ) -> Picture:
        """Develop one raw: uint8 (or uint16 with `bits` 16) [H, W, 3] in sRGB, upright, with square pixels.

        `source`: path, bytes or open file of a raw, a RawFrame, or a mosaic [H, W] of raw counts from the camera that
        took `like`. `exposure`: in EV, added before clipping. `bits`: 16 only with an ISP whose output is float.
        `lens_shading`: whether gain maps of the file are applied (`shading.LensShading`). `overrides`: values in the
        place of the file's. `progress`: called after every tile; what it raises ends the work and is raised here, so
        raise from it to cancel. It cannot use this ISP. Raises RawError, IspFileError or UsageError.
        """
        self._check(exposure, bits)
        store = _storer(self.spec.output, bits)
        frame = shaded(_frame_of(source, like, overrides), lens_shading)
        ingest = Ingest(frame, self.spec, float(exposure))
        tiling = plan(ingest.height, ingest.width, self.spec, self.tile, threads=self.threads)
        height, width = (side * self.spec.scale_factor // 2 for side in frame.mosaic.shape)
        # Tiles are written where they lie in the upright picture; only pixels that are not square need a copy.
        orientation = frame.orientation if frame.pixel_aspect == 1.0 else 1
        shape = (width, height, 3) if orientation >= 5 else (height, width, 3)
        picture = self._pictures.take(shape, np.dtype(np.uint8 if bits == 8 else np.uint16))
        with self._alone():
            self._develop(_Job(ingest, tiling, lying(picture, orientation), store), progress)
        if frame.pixel_aspect != 1.0:
            square = to_square_pixels(picture, frame.pixel_aspect)
            picture = cast("Picture", np.ascontiguousarray(upright(square, frame.orientation)))
        return picture

    def stream(
        self,
        sources: Iterable[Source],
        *,
        like: RawFrame | None = None,
        exposure: float = 0.0,
        bits: Literal[8, 16] = 8,
        lens_shading: LensShading = "auto",
        overrides: Overrides = AS_IN_FILE,
    ) -> Iterator[Picture]:
        """Develop one source after another, for files or a live camera; arguments as of `process`.

        The next source is waited for and read by a thread of its own while the present one is developed, so `sources`
        is iterated there, one ahead. Runtimes, tables and tile memory are used again, and so is the memory of a picture
        that nobody holds any more. A mosaic is copied when it is read, so a camera may write every frame into one
        buffer.
        A source that cannot be read ends the stream with its error. Leaving the stream waits until the source has given
        what was asked of it, for at most 2 seconds: stop a camera after that.
        Raises UsageError at once where an argument does not fit.
        """
        self._check(exposure, bits)
        check_lens_shading(lens_shading)
        one = isinstance(sources, str | os.PathLike | bytes | bytearray | memoryview | RawFrame)
        if one or hasattr(sources, "read") or (isinstance(sources, np.ndarray) and sources.ndim < 3):
            raise UsageError("stream takes several sources: give a list, or use `process` for one")
        return self._streamed(iter(sources), like, exposure, bits, lens_shading, overrides)

    def _streamed(
        self,
        iterator: Iterator[Source],
        like: RawFrame | None,
        exposure: float,
        bits: Literal[8, 16],
        lens_shading: LensShading,
        overrides: Overrides,
    ) -> Iterator[Picture]:
        def read_next() -> RawFrame | None:
            for source in iterator:
                if isinstance(source, np.ndarray):
                    source = np.array(source)
                return shaded(_frame_of(source, like, overrides), lens_shading)
            return None

        wanted: SimpleQueue[bool] = SimpleQueue()
        found: SimpleQueue[RawFrame | BaseException | None] = SimpleQueue()

        def read() -> None:
            while wanted.get():
                try:
                    found.put(read_next())
                except BaseException as error:
                    found.put(error)

        # A daemon: a camera that was stopped may never give the frame that is waited for, and a program must end.
        reader = threading.Thread(target=read, name="eguot-read", daemon=True)
        reader.start()
        try:
            wanted.put(True)
            while (frame := found.get()) is not None:
                if isinstance(frame, BaseException):
                    raise frame
                wanted.put(True)
                yield self.process(frame, exposure=exposure, bits=bits, lens_shading="off")
        finally:
            wanted.put(False)
            reader.join(LEAVE_S)

    def run(self, packed: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network alone, on exactly this input: companded planes float32 [h, w, 4] in [0, 1], R Gr Gb B.

        Returns float32 [2h, 2w, 3], sRGB, not clipped where the ISP's output is float. No tiles and no halo: the
        borders see the network's own padding. Raises UsageError where the file does not take this size.
        """
        planes = np.asarray(packed)
        if planes.ndim != 3 or planes.shape[2] != 4 or planes.size == 0 or planes.dtype.kind != "f":
            raise UsageError(f"run takes float planes [h, w, 4], not {planes.dtype} of shape {planes.shape}")
        height, width = planes.shape[:2]
        if height % self.spec.multiple or width % self.spec.multiple:
            raise UsageError(f"this ISP takes sizes that are multiples of {self.spec.multiple}, not {height} x {width}")
        side = self.spec.tile + 2 * self.spec.halo
        if self.spec.fixed_tile and (height, width) != (side, side):
            raise UsageError(f"this ISP file takes exactly {side} x {side} packed pixels, not {height} x {width}")
        with self._alone():
            runtime = self._runtimes(1, self.threads)[0]
            try:
                runtime.resize(height, width)
                runtime.input()[0] = quantise(planes, self.spec.input)
                runtime.invoke()
                return np.array(dequantise(self._output(runtime, height, width), self.spec.output))
            except BaseException:
                self._drop_runtimes()
                raise

    def close(self) -> None:
        """Free all runtimes. The ISP cannot be used afterwards; closing twice is fine."""
        with self._alone():
            self._closed = True
            self._drop_runtimes()
            self._pictures.forget()

    def __enter__(self) -> ISP:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"ISP({self.spec.name!r}, {self.spec.precision}, {self.runtime}, "
            f"threads={self.threads}, tile={self.tile!r})"
        )

    def _check(self, exposure: float, bits: int) -> None:
        if not (isinstance(exposure, Real) and abs(exposure) <= MAX_EXPOSURE_EV):
            raise UsageError(f"the exposure must be in -{MAX_EXPOSURE_EV:g}..{MAX_EXPOSURE_EV:g} EV, not {exposure!r}")
        check_bits(self.spec, bits)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, no other thread uses this ISP."""
        if self._owner == threading.get_ident():
            raise UsageError("an ISP cannot be used or closed from its own progress callback: raise there to cancel")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _develop(self, job: _Job, progress: Progress | None) -> None:
        """Fill `job.rgb`, the frame as the sensor lay, tile by tile."""
        cores = job.tiling.cores
        count, each = (1, self.threads) if len(cores) == 1 else (min(self.threads, len(cores)), 1)
        runtimes = self._runtimes(count, each)
        tell = progress or (lambda done, tiles: None)
        try:
            if count == 1:
                for done, core in enumerate(cores, 1):
                    self._run_tile(runtimes[0], job, core)
                    tell(done, len(cores))
            else:
                self._side_by_side(runtimes, job, tell)
        except BaseException:
            self._drop_runtimes()  # one may have stopped half way
            raise

    def _side_by_side(self, runtimes: Sequence[Runtime], job: _Job, tell: Progress) -> None:
        """Run the tiles in as many threads as there are runtimes."""
        idle: SimpleQueue[Runtime] = SimpleQueue()
        for runtime in runtimes:
            idle.put(runtime)

        def one(core: tuple[int, int]) -> None:
            runtime = idle.get()
            try:
                self._run_tile(runtime, job, core)
            finally:
                idle.put(runtime)

        with ThreadPoolExecutor(len(runtimes), thread_name_prefix="eguot-tile") as pool:
            futures = [pool.submit(one, core) for core in job.tiling.cores]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    tell(done, len(futures))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _run_tile(self, runtime: Runtime, job: _Job, core: tuple[int, int]) -> None:
        tiling, crop = job.tiling, job.ingest.crop
        height, width = tiling.input_size
        try:
            runtime.resize(height, width)
        except IspFileError as error:
            if not self.spec.global_context:
                raise
            raise IspFileError(
                f"ISP {self.spec.name!r} looks at the whole frame at once and cannot take one of "
                f"{job.rgb.shape[1]} x {job.rgb.shape[0]}: it is too small, or the file tied to another size ({error})"
            ) from error
        job.ingest.fill(runtime.input()[0], core[0] - tiling.halo, core[1] - tiling.halo)
        runtime.invoke()
        to_rows, from_rows = self._place(core[0], tiling.core[0], crop[0], job.rgb.shape[0], tiling.halo)
        to_cols, from_cols = self._place(core[1], tiling.core[1], crop[1], job.rgb.shape[1], tiling.halo)
        job.store(self._output(runtime, height, width)[from_rows, from_cols], job.rgb[to_rows, to_cols])

    def _output(self, runtime: Runtime, height: int, width: int) -> NDArray[Any]:
        """View [H, W, 3] of the output for an input of height x width."""
        factor, output = self.spec.scale_factor, runtime.output()
        if output.shape != (1, factor * height, factor * width, 3):
            raise IspFileError(
                f"ISP {self.spec.name!r}: an input of {height} x {width} must give "
                f"{[1, factor * height, factor * width, 3]}, the model gave {list(output.shape)}: convert it again"
            )
        view: NDArray[Any] = output[0]
        return view

    def _place(self, start: int, core: int, crop: int, size: int, halo: int) -> tuple[slice, slice]:
        """Along one axis: where a core lies in the picture of `size` pixels, and where in the tile's output."""
        factor = self.spec.scale_factor
        offset = crop * factor // 2
        first, last = max(start * factor, offset), min((start + core) * factor, offset + size)
        shift = (start - halo) * factor
        return slice(first - offset, last - offset), slice(first - shift, last - shift)

    def _runtimes(self, count: int, each: int) -> list[Runtime]:
        """So many runtimes with `each` threads; those opened before are used again."""
        if self._closed:
            raise UsageError("this ISP was closed: load it again")
        opened = self._opened.setdefault(each, [])
        while len(opened) < count:
            runtime = self._factory(each)
            check_tensors(runtime, self.spec)
            opened.append(runtime)
        return opened[:count]

    def _drop_runtimes(self) -> None:
        for runtimes in self._opened.values():
            for runtime in runtimes:
                runtime.close()
        self._opened.clear()


@dataclass(frozen=True, slots=True)
class _Job:
    """One frame on its way."""

    ingest: Ingest
    tiling: Tiling
    rgb: NDArray[Any]
    store: Storer


class _Pictures:
    """Memory for pictures; that of one which nobody holds any more is used again.

    Memory new to the process costs as much as writing the picture into it: the system maps and clears it page by page.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Picture:
        """An array that nothing else refers to, with any values in it."""
        size = math.prod(shape) * dtype.itemsize
        if size > KEPT_BYTES:
            return cast("Picture", np.empty(shape, dtype))
        with self._lock:
            free = [i for i in range(len(self._kept)) if sys.getrefcount(self._kept[i]) == UNSHARED]
            fits = next((i for i in free if self._kept[i].nbytes == size), None)
            if fits is None:  # what is free does not fit and goes; what is held is its holder's
                held = [memory for i, memory in enumerate(self._kept) if i not in free]
                self._kept = [*held[1 - KEPT_PICTURES :], np.empty(size, np.uint8)]
                fits = -1
            # A view, and views of it, refer to the memory they lie in.
            return cast("Picture", self._kept[fits].view(dtype).reshape(shape))

    def forget(self) -> None:
        """Keep nothing; pictures that are held stay as they are."""
        with self._lock:
            self._kept = []


def _frame_of(source: Source, like: RawFrame | None, overrides: Overrides) -> RawFrame:
    if isinstance(source, np.ndarray):
        if like is None:
            raise UsageError(
                "a bare mosaic needs `like`, a RawFrame of its camera: RawFrame.from_array(mosaic, cfa=..., black=..., "
                "white=...) makes one"
            )
        return overrides.apply(like.with_mosaic(source))
    if like is not None:
        raise UsageError(f"`like` is for a mosaic as an array, not for {type(source).__name__}")
    return (
        overrides.apply(source) if isinstance(source, RawFrame) else read_raw(source, overrides=overrides, copy=False)
    )


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return core_count()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads must be a whole number from 1 to {MAX_THREADS}, not {threads!r}")
    return threads


def check_bits(spec: IspSpec, bits: int) -> None:
    """Raise UsageError where an ISP makes no pictures of so many bits."""
    if bits not in (8, 16):
        raise UsageError(f"a picture has 8 or 16 bits, not {bits!r}")
    if bits == 16 and spec.output.dtype != "float32":
        raise UsageError(
            f"16 bits need an ISP whose output is float, this one's is {spec.output.dtype}: ask for 8, or give one "
            "in fp32 (`eguot-sdk convert default --precision fp32 --out DIR` makes one of the default ISP, given the "
            "extras train and convert)"
        )


def _storer(tensor: TensorSpec, bits: int) -> Storer:
    """What writes output as the model stores it into a picture of 8 or 16 bits: clipped to [0, 1] and rounded."""
    if tensor.dtype == "float32":
        return partial(_store_float, 255.0 if bits == 8 else 65535.0)
    unsigned = np.dtype(f"u{np.dtype(tensor.dtype).itemsize}")
    codes = np.arange(np.iinfo(unsigned).max + 1, dtype=unsigned)
    table = np.rint(np.clip(dequantise(codes.view(tensor.dtype), tensor), 0.0, 1.0) * 255.0).astype(np.uint8)
    if unsigned == np.uint8 and np.array_equal(table, codes ^ 0x80):  # int8, scale 1/255, zero point -128
        return _store_flipped
    return partial(_store_table, table)


def _store_flipped(stored: NDArray[Any], out: NDArray[Any]) -> None:
    np.bitwise_xor(stored.view(np.uint8), np.uint8(0x80), out=out)


def _store_table(table: NDArray[np.uint8], stored: NDArray[Any], out: NDArray[Any]) -> None:
    codes = stored.view(f"u{stored.dtype.itemsize}")
    rows = max(1, STRIPE // out.shape[1])
    for row in range(0, out.shape[0], rows):
        out[row : row + rows] = table[codes[row : row + rows]]


def _store_float(high: float, stored: NDArray[Any], out: NDArray[Any]) -> None:
    rows = max(1, STRIPE // out.shape[1])
    for row in range(0, out.shape[0], rows):
        values = np.fmax(stored[row : row + rows], np.float32(0.0))  # fmax, fmin: not-a-number becomes black
        np.fmin(values, np.float32(1.0), out=values)
        values *= np.float32(high)
        values += np.float32(0.5)
        out[row : row + rows] = values.astype(out.dtype)
