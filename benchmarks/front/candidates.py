"""Other shapes of the QISP family, for the front: classes that `--isp candidates:NAME` builds."""

from __future__ import annotations

from eguot_train.isps.qisp import Qisp


class Q24x2(Qisp):
    """24 channels, 2 convolutions."""

    def __init__(self) -> None:
        super().__init__(shape=(24, 2))


class Q32x1(Qisp):
    """32 channels, 1 convolution."""

    def __init__(self) -> None:
        super().__init__(shape=(32, 1))


class Q32x2(Qisp):
    """32 channels, 2 convolutions."""

    def __init__(self) -> None:
        super().__init__(shape=(32, 2))


class Q32x5(Qisp):
    """32 channels, 5 convolutions."""

    def __init__(self) -> None:
        super().__init__(shape=(32, 5))


class Q48x4(Qisp):
    """48 channels, 4 convolutions."""

    def __init__(self) -> None:
        super().__init__(shape=(48, 4))


class Q64x2(Qisp):
    """64 channels, 2 convolutions."""

    def __init__(self) -> None:
        super().__init__(shape=(64, 2))


class Q64x4(Qisp):
    """64 channels, 4 convolutions."""

    def __init__(self) -> None:
        super().__init__(shape=(64, 4))
