"""Stands in for LiteRT's benchmark_model: the flags we use, the lines it prints, LiteRT's Python underneath."""

from __future__ import annotations

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

flags = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
name, shape = flags["input_layer"], [int(n) for n in flags["input_layer_shape"].split(",")]
print("INFO: STARTING!")
print(f"INFO: Graph: [{flags['graph']}]")
start = time.perf_counter()
interpreter = Interpreter(model_path=flags["graph"], num_threads=int(flags["num_threads"]))
entry = interpreter.get_input_details()[0]
interpreter.resize_tensor_input(entry["index"], shape)
interpreter.allocate_tensors()
init_us = (time.perf_counter() - start) * 1e6
print(f"INFO: Loaded model {flags['graph']}")
print("VERBOSE: Replacing 3 out of 4 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions.")
dtype = entry["dtype"]
if "input_layer_value_files" in flags:
    given, _, path = flags["input_layer_value_files"].rpartition(":")
    assert given.replace("::", ":") == name  # a colon of the name is written twice
    values = np.fromfile(path, dtype).reshape(shape)
else:
    values = np.zeros(shape, dtype)
interpreter.set_tensor(entry["index"], values)


def timed() -> float:
    begin = time.perf_counter()
    interpreter.invoke()
    return (time.perf_counter() - begin) * 1e6


warm = timed()
print(f"INFO: count=1 curr={warm:.0f}\n")
runs = [timed() for _ in range(int(flags["num_runs"]))]
print(
    f"INFO: count={len(runs)} first={runs[0]:.0f} curr={runs[-1]:.0f} min={min(runs):.0f} max={max(runs):.0f} "
    f"avg={np.mean(runs):.6g} std={np.std(runs):.0f} p5={np.percentile(runs, 5):.0f} median={np.median(runs):.0f} "
    f"p95={np.percentile(runs, 95):.0f}\n"
)
print(
    f"INFO: Inference timings in us: Init: {init_us:.0f}, First inference: {warm:.0f}, Warmup (avg): {warm:.6g}, "
    f"Inference (avg): {np.mean(runs):.6g}"
)
print("INFO: Memory footprint delta from the start of the tool (MB): init=2.5 overall=9.75")
if flags.get("report_peak_memory_footprint") == "true":  # off by default
    print("INFO: Overall peak memory footprint (MB) via periodic monitoring: 12.5")
if flags.get("enable_op_profiling") == "true":
    print("INFO: Operator-wise Profiling Info for Regular Benchmark Runs:")
    print("============================== Run Order ==============================")
    print("\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]")
    for op, ms in (("Convolution (NHWC, QS8, QC8) IGEMM", 0.75), ("DEPTH_TO_SPACE", 0.25)):
        print(f"\t {op:>23}\t{ms:9.3f}\t{ms:9.3f}\t {ms:.1%}\t {ms:.1%}\t 0.000\t 1\t[{op}]:0")
    print("\n============================== Top by Computation Time ==============================")
if "output_filepath" in flags:
    np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])).tofile(flags["output_filepath"])
