"""The report of `python -m amoeba doctor`.

Legend: T tokens, D model width, H expert hidden width, E experts, K choices per token.
"""

import importlib.metadata
import importlib.util
import platform

import torch

import amoeba

from . import _library

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# (name, T, D, H, E, K, options)
PROBLEMS = [
    ("separate", 512, 256, 128, 8, 2, {}),
    ("concatenated", 512, 256, 128, 8, 2, dict(layout="concatenated")),
    ("gpt-oss", 512, 256, 128, 8, 2, dict(layout="interleaved", transposed=True, activation="swiglu_clamped")),
    ("odd sizes", 7, 33, 17, 5, 3, {}),
]
FRAMEWORKS = ("transformers", "torchtitan")


def report():
    """The lines of the report; needs no GPU and changes nothing."""
    lines = [
        f"amoeba       {amoeba.__version__}",
        f"python       {platform.python_version()}",
        f"torch        {torch.__version__}, {torch.get_num_threads()} threads",
        f"operators    {_library.LIBRARY}",
    ]
    lines += [f"{name:<12} {_version(name)}" for name in FRAMEWORKS]
    lines += [f"cuda         {_cuda()}"]
    for device in ["cpu"] + (["cuda"] if _serves_cuda() else []):
        lines += ["", f"variants on {device}, best first"] + _summaries(device)
        for dtype in DTYPES:
            for problem in PROBLEMS:
                lines += _choice(device, dtype, *problem)
    return lines


def _version(package):
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else "not installed"


def _cuda():
    if not torch.version.cuda:
        return "this torch has no CUDA"
    if not _library.CUDA_LIBRARY.exists():
        return f"not served: {_library.CUDA_LIBRARY.name} was not built"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU is visible to torch"
    return f"{_library.CUDA_LIBRARY}, {device}"


def _serves_cuda():
    return torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key("amoeba::experts_forward", "CUDA")


def _choice(device, dtype, name, *problem):
    """One line with the variant that runs, one more for each that refused and why."""
    tokens, dim, hidden, num_experts, choices, options = problem
    found = _variants(device, dtype, *problem)
    chosen = next((variant for variant, _, reason in found if not reason), "none")
    sizes = f"T {tokens} D {dim} H {hidden} E {num_experts} K {choices}"
    lines = [f"  {str(dtype).removeprefix('torch.'):<9} {name:<13} {sizes:<28} {chosen}"]
    for variant, _, reason in found:
        if not reason:
            break
        lines.append(f"  {'':<9} {'':<13} not {variant}: {reason}")
    return lines


def _summaries(device):
    """What each variant is, whether this machine runs it or not."""
    return [f"  {name:<13} {summary}" for name, summary, _ in _variants(device, DTYPES[0], *PROBLEMS[0][1:])]


def _variants(device, dtype, tokens, dim, hidden, num_experts, choices, options):
    def parameter(rows, columns):
        shape = (columns, rows) if options.get("transposed") else (rows, columns)
        return torch.empty(num_experts, *shape, dtype=dtype, device=device)

    separate = options.get("layout", "separate") == "separate"
    gate_up = [parameter(hidden, dim)] * 2 if separate else parameter(2 * hidden, dim)
    ids = torch.zeros(tokens, choices, dtype=torch.int64, device=device)
    return amoeba.variants(
        torch.empty(tokens, dim, dtype=dtype, device=device), ids, None, gate_up, parameter(dim, hidden), **options
    )
