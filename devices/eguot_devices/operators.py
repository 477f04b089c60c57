"""Who runs the operators of a model, and how long each takes.

LiteRT's Python API has no profiler. Times come from the model cut short: the network up to an operator, minus the
network up to the one before. They add up to the whole, and an operator that the runtime fuses into its neighbour
shows as free.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eguot_sdk.ispfile import unpack_model

from .schema import Operators, OpTime

MAX_OPERATORS = 120
CUT_RUNS = 3
PATIENCE = 2.0
"""Times its seconds that one round over all operators may take."""
SOURCE = "difference between the network cut after the operator and before it, best of some runs on one thread"


def operators(path: Path, height: int, width: int, *, seconds: float, delegate: str | None = None) -> Operators | None:
    """The operators of a model on an input of packed pixels height x width; None where the runtime does not tell.

    `seconds`: for timing them; 0 leaves times out. `delegate`: a library that is asked alone, without XNNPACK; what it
    takes it takes as a whole, so single operators have no times then.
    """
    details = _details(path, height, width, delegate)
    if details is None:
        return None
    nodes = [d for d in details if d["op_name"] != "DELEGATE"]
    taken = _taken(nodes, [d for d in details if d["op_name"] == "DELEGATE"])
    left = sorted({d["op_name"] for d in nodes if d["index"] not in taken})
    times, source = ((), "n/a: a delegate ran") if delegate else _times(path, height, width, seconds)
    return Operators(
        total=len(nodes), delegated=len(taken), not_delegated=tuple(left), times=times, times_source=source
    )


def _details(path: Path, height: int, width: int, delegate: str | None) -> list[dict[str, Any]] | None:
    """Nodes of the graph as the interpreter holds it after its delegates took theirs."""
    for name in ("ai_edge_litert", "tflite_runtime"):
        try:
            module = importlib.import_module(f"{name}.interpreter")
            alone = {} if delegate is None else {
                "experimental_delegates": [module.load_delegate(str(Path(delegate).absolute()))],
                "experimental_op_resolver_type": module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            }  # fmt: skip
            interpreter = module.Interpreter(model_content=path.read_bytes(), num_threads=1, **alone)
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, height, width, 4])
            interpreter.allocate_tensors()
            found: list[dict[str, Any]] = interpreter._get_ops_details()
            return found
        except (ImportError, AttributeError, ValueError, RuntimeError):
            continue
    return None


def _taken(nodes: Sequence[dict[str, Any]], delegates: Sequence[dict[str, Any]]) -> set[int]:
    """Indices of the nodes that delegates replaced: those on the way from a delegate's outputs back to its inputs."""
    maker = {int(out): node for node in nodes for out in node["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        inputs = {int(i) for i in delegate["inputs"]}
        waiting = [int(out) for out in delegate["outputs"]]
        while waiting:
            tensor = waiting.pop()
            node = maker.get(tensor)
            if tensor in inputs or node is None or node["index"] in taken:
                continue
            taken.add(int(node["index"]))
            waiting += [int(i) for i in node["inputs"] if int(i) >= 0]
    return taken


def _times(path: Path, height: int, width: int, seconds: float) -> tuple[tuple[OpTime, ...], str]:
    if seconds <= 0:
        return (), "n/a: left out"
    try:
        cuts = _cuts(path.read_bytes())
    except ImportError:
        return (), "n/a: needs ai-edge-litert"
    if len(cuts) > MAX_OPERATORS:
        return (), f"n/a: more than {MAX_OPERATORS} operators"
    best = [float("inf")] * len(cuts)
    start, rounds, elapsed, last = time.monotonic(), 0, 0.0, 0.0
    while elapsed < seconds or not rounds:
        for i, (_, data) in enumerate(cuts):
            if not rounds and elapsed + last > PATIENCE * seconds:
                return (), f"n/a: timing {len(cuts)} operators takes more than {PATIENCE * seconds:.0f} s"
            begun = elapsed
            try:
                best[i] = min(best[i], _best_ms(data, height, width))
            except Exception as error:  # a cut the runtime refuses says nothing about the model
                return (), f"n/a: the runtime refuses the network cut after operator {i} ({type(error).__name__})"
            elapsed = time.monotonic() - start
            last = elapsed - begun
        rounds += 1
    times, before = [], 0.0
    for (name, _), after in zip(cuts, best, strict=True):
        times.append(OpTime(name=name, ms=max(0.0, after - before)))
        before = max(before, after)
    return tuple(times), SOURCE


def _cuts(data: bytes) -> list[tuple[str, bytes]]:
    """Name of each operator that computes something at run time, and the model up to and with it."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = unpack_model(data)
    model.signatureDefs, model.metadata = [], []
    graph = model.subgraphs[0]
    everything, known, cuts = graph.operators, {int(i) for i in graph.inputs}, []
    for i, op in enumerate(everything):
        if not known.intersection(int(t) for t in op.inputs):
            continue  # works on constants only: done once, when the model is opened
        known.update(int(t) for t in op.outputs)
        graph.operators, graph.outputs = everything[: i + 1], [int(op.outputs[0])]
        builder = flatbuffers.Builder(len(data) + 4096)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        code = model.operatorCodes[op.opcodeIndex]
        name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
        cuts.append((name, bytes(builder.Output())))
    return cuts


def _best_ms(data: bytes, height: int, width: int) -> float:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    entry = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(entry["index"], [1, height, width, 4])
    interpreter.allocate_tensors()
    interpreter.invoke()
    times = []
    for _ in range(CUT_RUNS):
        start = time.perf_counter()
        interpreter.invoke()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)
