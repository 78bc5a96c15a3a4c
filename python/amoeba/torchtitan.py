"""torchtitan 0.3: grouped experts with a choice of `compute_backend`, by one override line:

    --override.imports amoeba.torchtitan.experts
    --override.imports 'amoeba.torchtitan.experts={"compute_backend": "for_loop"}'

| compute_backend   | what                                                                    |
|-------------------|-------------------------------------------------------------------------|
| auto              | fused on the CPU and, in bf16 and fp16, on CUDA; otherwise grouped_mm   |
| fused             | amoeba.experts_rows                                                     |
| grouped_mm        | torchtitan's own forward, to the bit                                    |
| for_loop          | plain torch, one expert after the other                                 |
| batched_mm_padded | plain torch, every expert padded to the largest                         |

Parameters, their names and their sharding stay torchtitan's; all but grouped_mm compute in the dtype of x
(torchtitan's own casts to bf16).
"""

from dataclasses import dataclass

import spmd_types as spmd
import torch
from torch.distributed.tensor import DTensor
from torchtitan.config import derive, override
from torchtitan.distributed.spmd_types import spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend
from torchtitan.models.common.moe import GroupedExperts

from .functional import experts_rows
from .grouped import batched_mm_padded, for_loop, nothing_of


def _fused(x, counts, w1, w2, w3):
    return experts_rows(x, counts, (w1, w3), w2)


ROW_BACKENDS = {"fused": _fused, "for_loop": for_loop, "batched_mm_padded": batched_mm_padded}
NAMES = ("auto", "fused", "grouped_mm", "for_loop", "batched_mm_padded")


def _check_name(name):
    if name not in NAMES:
        raise ValueError(f"amoeba: compute_backend is {name!r}, want one of {', '.join(NAMES)}")


class AmoebaGroupedExperts(GroupedExperts):
    """torchtitan's GroupedExperts, computed by the backend of its config."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        compute_backend: str = "auto"

        def __post_init__(self):
            _check_name(self.compute_backend)

    def __init__(self, config):
        super().__init__(config)
        self.compute_backend = config.compute_backend

    def forward(self, x_RD, num_tokens_per_expert_E):
        """x_RD [R, D] grouped by expert, num_tokens_per_expert_E [E] -> [R, D]; tail rows give zeros."""
        name = self.compute_backend
        if name == "auto":
            name = "fused" if serves(x_RD) else "grouped_mm"
        if name == "grouped_mm":
            return super().forward(x_RD, num_tokens_per_expert_E)
        weights = [_local(w).to(x_RD.dtype) for w in (self.w1_EFD, self.w2_EDF, self.w3_EFD)]
        if num_tokens_per_expert_E.numel() == 0:
            return torch.zeros_like(x_RD) + nothing_of(x_RD, *weights)
        return ROW_BACKENDS[name](x_RD, _varying(num_tokens_per_expert_E), *weights)


def serves(x):
    """Whether the operators are loaded for the device of x and compute its dtype there."""
    if x.device.type == "cpu":
        return True
    loaded = torch._C._dispatch_has_kernel_for_dispatch_key("amoeba::experts_forward", x.device.type.upper())
    return loaded and x.dtype in (torch.bfloat16, torch.float16)


def _varying(counts):
    """torchtitan's SPMD type checking has counts as partial sums, which may not meet the rows of one rank: here
    they are that rank's own, as its own forward declares of its offsets."""
    if get_spmd_backend() != "spmd_types" or not spmd.is_type_checking() or spmd_mesh_size("ep") != 1:
        return counts
    counts = counts.clone()
    for axis in ("dp", "cp"):
        spmd.mutate_type(counts, axis, src=spmd.P, dst=spmd.V)
    return counts


def _local(parameter):
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def make_experts_config(*, dim, hidden_dim, num_experts, compute_backend="auto", **fields):
    """The config of one layer's experts, where torchtitan takes a GroupedExperts.Config."""
    return AmoebaGroupedExperts.Config(
        dim=dim, hidden_dim=hidden_dim, num_experts=num_experts, compute_backend=compute_backend, **fields
    )


@override(target=GroupedExperts.Config, exact=True, description="Experts by Amoeba, or by a backend of choice.")
def experts(cfg, compute_backend="auto"):
    """The override: names nothing but the backend."""
    return derive(cfg, AmoebaGroupedExperts.Config, compute_backend=compute_backend)
