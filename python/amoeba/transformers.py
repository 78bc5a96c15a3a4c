"""Hugging Face transformers: `experts_implementation="amoeba"`.

    amoeba.register_transformers()
    model = AutoModelForCausalLM.from_pretrained(..., experts_implementation="amoeba")

Every model whose experts transformers decorates with `use_experts_implementation` can take it; weights
stay as they are stored. What the operators do not compute is refused with its reason when the model runs.
"""

from transformers.integrations.moe import ExpertsInterface, _default_apply_gate

from .functional import experts

# Classes whose own gate is clamped SwiGLU, with the names of its alpha and limit.
CLAMPED_GATES = {
    "GptOssExperts": ("alpha", "limit"),
    "OpenAIPrivacyFilterExperts": ("alpha", "limit"),
    "MiniMaxM3VLExperts": ("swiglu_alpha", "swiglu_limit"),
}
SILU_CLASSES = ("SiLU", "SiLUActivation")


def register(name="amoeba"):
    """Makes `name` an experts implementation of transformers."""
    ExpertsInterface.register(name, experts_forward)


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """transformers' seam: hidden_states [T, D], top_k_index and top_k_weights [T, K] -> [T, D]; ids of
    num_experts (expert parallelism's sentinels) are skipped."""
    return experts(
        hidden_states,
        top_k_index,
        top_k_weights,
        self.gate_up_proj,
        self.down_proj,
        layout="concatenated" if self.is_concatenated else "interleaved",
        transposed=self.is_transposed,
        gate_up_bias=self.gate_up_proj_bias if self.has_bias else None,
        down_bias=self.down_proj_bias if self.has_bias else None,
        **activation_of(self),
    )


def activation_of(module):
    """The activation of an experts module as options of amoeba.experts, or ValueError with the reason."""
    kind = type(module)
    if not module.has_gate:
        raise _refusal(kind, "experts without a gate (has_gate=False)")
    if getattr(module, "has_post_expert_norm", False):
        raise _refusal(kind, "a norm after each expert (has_post_expert_norm=True)")
    if kind.__name__ in CLAMPED_GATES:
        alpha, limit = CLAMPED_GATES[kind.__name__]
        return {
            "activation": "swiglu_clamped",
            "alpha": float(getattr(module, alpha)),
            "limit": float(getattr(module, limit)),
        }
    if kind._apply_gate is not _default_apply_gate:
        raise _refusal(kind, "a gate of its own (_apply_gate)")
    activation = type(module.act_fn).__name__
    if activation not in SILU_CLASSES:
        raise _refusal(kind, f"the activation {activation}")
    return {"activation": "swiglu"}


def _refusal(kind, what):
    return ValueError(f"amoeba: {kind.__name__} has {what}, want SwiGLU; choose another experts_implementation")
