"""Finds and loads the library of operators that lies beside this file."""

from pathlib import Path

import torch

MINIMUM_TORCH = (2, 11)
LIBRARY = Path(__file__).absolute().parent / "libamoeba_ops.so"
CUDA_LIBRARY = LIBRARY.with_name("libamoeba_ops_cuda.so")  # there when it was built with a CUDA compiler


def load():
    """Registers torch.ops.amoeba.*; raises ImportError with the reason when that is not possible."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < MINIMUM_TORCH:
        raise ImportError(f"amoeba: torch is {torch.__version__}, want 2.11 or later")
    if not LIBRARY.exists():
        raise ImportError(f"amoeba: {LIBRARY} is missing: install the package with pip, or build the target amoeba_ops")
    torch.ops.load_library(str(LIBRARY))
    if torch.version.cuda and CUDA_LIBRARY.exists():
        torch.ops.load_library(str(CUDA_LIBRARY))
