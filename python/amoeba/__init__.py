"""Mixture-of-Experts layers for PyTorch: grouped experts as one differentiable operator.

    y = amoeba.experts(x, expert_ids, scores, gate_up, down)

Legend of every shape here: T tokens, D model width, H expert hidden width, E experts, K choices per
token, R = T*K routed rows.
"""

from . import _library

_library.load()

from . import operators  # noqa: E402  registers fake and autograd of the loaded operators
from .errors import check_errors  # noqa: E402
from .functional import experts, experts_rows, variants  # noqa: E402

__version__ = "0.1.0"
__all__ = ["check_errors", "experts", "experts_rows", "operators", "register_transformers", "variants"]


def register_transformers(name="amoeba"):
    """Adds `experts_implementation=name` to Hugging Face transformers; see amoeba.transformers."""
    from .transformers import register

    register(name)
