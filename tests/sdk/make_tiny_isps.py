"""Makes tests/data/tiny.*.tflite: one seeded random network in three precisions, with specs. Needs the extra `convert`.

    python tests/sdk/make_tiny_isps.py

A QISP of 8 channels and one inner convolution: stride 2, block 4, so inputs must be even and the halo is 6. Its
pictures have detail in all of [0, 1] but mean nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from eguot_compress.convert.tflite import to_tflite
from eguot_compress.fake_quant import calibrate, quantise_body
from eguot_sdk.ispfile import embed_spec
from eguot_sdk.spec import IspSpec, Precision, TensorSpec
from eguot_train.isps.base import IspNet

DATA = Path(__file__).resolve().parent.parent / "data"
INT8 = TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128)
INT16 = TensorSpec(dtype="int16", scale=1 / 32767, zero_point=0)


class Tiny(IspNet):
    name, shuffle, halo, multiple = "tiny", 4, 6, 2

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 6, stride=2, padding=2)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, 48, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for conv, gain in ((self.stem, 1.4), (self.inner, 1.4), (self.tail, 0.3)):
                conv.weight.normal_(0.0, gain / conv.weight[0].numel() ** 0.5, generator=generator)
                conv.bias.uniform_(-0.1, 0.1, generator=generator)  # type: ignore[union-attr]
            self.tail.bias.add_(0.5)  # type: ignore[union-attr]

    def body(self, planes: Tensor) -> Tensor:
        return self.tail(torch.relu(self.inner(torch.relu(self.stem(planes)))))


def main() -> None:
    net = Tiny().eval()
    generator = torch.Generator().manual_seed(1)
    tiles = [torch.rand(1, 4, 32, 32, generator=generator) for _ in range(4)]
    tensors: dict[Precision, tuple[TensorSpec, TensorSpec]] = {
        "fp32": (TensorSpec(), TensorSpec()),
        "w8a8": (INT8, INT8),
        "w8a16": (INT16, TensorSpec()),
    }
    for precision, (stored_input, stored_output) in tensors.items():
        state = None
        if precision != "fp32":
            body = quantise_body(net, bits=8 if precision == "w8a8" else 16)
            calibrate(body, tiles)
            state = body.state()
        spec = IspSpec(
            name=f"tiny {precision}",
            architecture=net.name,
            parameters=net.parameter_count(),
            halo=net.halo,
            multiple=net.multiple,
            tile=64,
            input=stored_input,
            output=stored_output,
            precision=precision,
            provenance={"made_by": "tests/sdk/make_tiny_isps.py"},
        )
        path = DATA / f"tiny.{precision}.tflite"
        path.write_bytes(embed_spec(to_tflite(net, precision, side=32, state=state), spec))
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
