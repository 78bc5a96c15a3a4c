"""A model of transformers in fp64. Its classes compute norms, softmax and rotary tables in fp32 whatever
the dtype of the weights, so that a model turned to fp64 is no better than fp32 in those places."""

import copy

import torch
from torch.overrides import TorchFunctionMode


class Fp32AsFp64(TorchFunctionMode):
    """Within it, what asks for fp32 gets fp64."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        wider = lambda value: torch.float64 if value is torch.float32 else value
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wider, arguments), **{key: wider(value) for key, value in (options or {}).items()})


def run_exact(run, model, inputs):
    """What `run` returns of the model in fp64, its rotary table made anew from the configuration."""
    with Fp32AsFp64():
        exact = copy.deepcopy(model).double()
        exact.model.rotary_emb = type(exact.model.rotary_emb)(exact.config)
        assert exact.model.rotary_emb.inv_freq.dtype == torch.float64
        out = run(exact, inputs)
    assert all(values.dtype == torch.float64 for values in out.values())
    return out
