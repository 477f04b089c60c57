"""Keep the converters' own chatter off the user's terminal, and only that.

Converters and their C++ parts print progress and deprecation notices straight to file descriptors 1 and 2. `quietly`
collects both while it runs, drops the lines known to be noise and passes the rest to stderr when it ends.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISE = re.compile(
    r"flatbuffer_export\.cc"  # operation counts
    r"|Missing quantization parameter on the output"  # of every op with int8 weights and float values
    r"|port\.cc.*oneDNN"
    r"|absl::InitializeLog"
    r"|torchao/_C_"  # kernels of other processors
    r"|register_constant\(\) on Enum"
    r"|Created TensorFlow Lite XNNPACK delegate"
    r"|torchvision is not installed"
    r"|has not been tested with coremltools"
    r"|scikit-learn version .* is not supported"  # only its converters of trees and the like need it
    r"|Failed to load _ML"  # Core ML's own runtime, on macOS only
    r"|Running MIL .* pipeline|Converting PyTorch Frontend"
    r"|^\s*$"
)
MESSAGES = (r".*torch\.ao\.quantization is deprecated", r".*experimental_preserve_all_tensors")
CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)
"""What the converters do with each other's interfaces and their temporary folders is not the user's concern."""


@contextmanager
def quietly(*, drop: bool = False) -> Iterator[None]:
    """Within: converter noise is held back, or with `drop` everything. Not for use from several threads at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, warnings.catch_warnings():
        for pattern in MESSAGES:
            warnings.filterwarnings("ignore", message=pattern)
        for category in CATEGORIES:
            warnings.simplefilter("ignore", category)
        saved = os.dup(1), os.dup(2)
        os.dup2(held.fileno(), 1)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, target)
                os.close(copy)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not drop and not NOISE.search(line):
                    print(line, file=sys.stderr)
