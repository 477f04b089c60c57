from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from eguot_devices import operators as finding
from eguot_devices.operators import operators
from eguot_sdk.ispfile import describe
from eguot_sdk.paths import DEFAULT_ISP


@pytest.mark.parametrize("name", ["tiny.fp32.tflite", "tiny.w8a8.tflite"])
def test_every_operator_has_a_name_and_a_time(shipped: Path, name: str) -> None:
    found = operators(shipped / name, 64, 64, seconds=0.1)
    assert found is not None
    assert found.total == sum(describe(shipped / name)["ops"].values())
    assert [op.name for op in found.times] == ["CONV_2D", "CONV_2D", "CONV_2D", "DEPTH_TO_SPACE"]
    assert all(op.ms >= 0 for op in found.times)
    assert sum(op.ms for op in found.times) > 0


def test_all_of_the_default_isp_is_accelerated_here(capfd: pytest.CaptureFixture[str]) -> None:
    found = operators(DEFAULT_ISP, 64, 64, seconds=0)
    assert found is not None
    assert (found.delegated, found.not_delegated) == (found.total, ())
    assert (found.times, found.times_source) == ((), "n/a: left out")


def test_what_a_delegate_took_is_found_between_its_outputs_and_inputs() -> None:
    def node(index: int, inputs: list[int], outputs: list[int], name: str = "CONV_2D") -> dict[str, object]:
        return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}

    chain = [node(0, [0, 10], [1]), node(1, [1, -1], [2]), node(2, [2], [3]), node(3, [3, 1], [4])]
    assert finding._taken(chain, [node(9, [1, 11], [3], "DELEGATE")]) == {1, 2}
    assert finding._taken(chain, [node(9, [0], [4], "DELEGATE")]) == {0, 1, 2, 3}
    assert finding._taken(chain, []) == set()


def test_the_cuts_compute_what_the_whole_computes_on_the_way(shipped: Path) -> None:
    """The last cut is the model itself; each cut before ends in the tensor the next one continues from."""
    data = (shipped / "tiny.fp32.tflite").read_bytes()
    cuts = finding._cuts(data)
    planes = np.random.default_rng(4).random((1, 16, 16, 4), np.float32)

    def run(model: bytes) -> np.ndarray:
        interpreter = Interpreter(model_content=model, num_threads=1)
        entry = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(entry, planes.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry, planes)
        interpreter.invoke()
        out: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return out

    outputs = [run(model) for _, model in cuts]
    assert np.allclose(outputs[-1], run(data), atol=1e-6)
    before = outputs[-2]  # DEPTH_TO_SPACE by hand
    _, h, w, channels = before.shape
    block = int((channels // 3) ** 0.5)
    by_hand = before.reshape(h, w, block, block, 3).transpose(0, 2, 1, 3, 4).reshape(1, h * block, w * block, 3)
    assert np.allclose(by_hand, outputs[-1], atol=1e-6)
