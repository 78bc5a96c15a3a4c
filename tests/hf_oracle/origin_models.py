"""Models of the origin's own layouts, written by its description on top of transformers' classes, with
their tensors by the names and in the row order of that layout."""

import hugging_face_test as plain
import torch
import transformers


class OriginExperts(torch.nn.Module):
    """The origin's layer of experts, by its description: softmax scores, a bias that takes part in the
    selection only, a factor on the scores, shared experts added as they are."""

    def __init__(self, dim, hidden, shared, num_experts, top_k, scale):
        super().__init__()
        self.top_k, self.scale = top_k, scale
        self.gate = torch.nn.Linear(dim, num_experts, bias=False)
        self.experts = torch.nn.ModuleList(self.network(dim, hidden) for _ in range(num_experts))
        self.shared_experts = self.network(dim, shared)
        self.expert_bias = torch.nn.Buffer(0.05 * torch.randn(num_experts))

    @staticmethod
    def network(dim, hidden):
        sizes = {"gate_proj": (dim, hidden), "up_proj": (dim, hidden), "down_proj": (hidden, dim)}
        return torch.nn.ModuleDict({name: torch.nn.Linear(*size, bias=False) for name, size in sizes.items()})

    @staticmethod
    def run(network, x):
        return network["down_proj"](torch.nn.functional.silu(network["gate_proj"](x)) * network["up_proj"](x))

    def forward(self, x):
        scores = self.gate(x).softmax(-1)
        chosen = (scores + self.expert_bias).topk(self.top_k, -1).indices
        weights = torch.zeros_like(scores).scatter(-1, chosen, self.scale * scores.gather(-1, chosen))
        routed = torch.stack([self.run(expert, x) for expert in self.experts], -1)
        return self.run(self.shared_experts, x) + (routed * weights.unsqueeze(-2)).sum(-1)


def grouped(common):
    """agpt_moe: (model, config.json, tensors in memory -> tensors of the folder)."""
    options = plain.GROUPED | common | {"intermediate_size": 18}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
    for layer in model.model.layers:
        layer.mlp = OriginExperts(options["hidden_size"], 18, 36, 5, 2, 1.5)
    plain.randomize(model)
    config = model.config.to_diff_dict() | {
        "model_type": "agpt_moe", "moe_intermediate_size": 18, "shared_expert_intermediate_size": 36,
        "num_local_experts": 5, "num_experts_per_tok": 2, "router_score_function": "softmax",
        "norm_topk_prob": False, "router_bias_selection": True, "router_scale": 1.5}
    return model, config, dict


def latent(common, changes, softmax_scale=None, eps=1e-6):
    """origin_mla, as `grouped`: transformers' DeepSeek-V3 in the form that rotates halves, where the origin
    rotates neighbouring pairs; with softmax_scale the origin's own experts behind the dense layers, and
    with eps its norms of the narrow vectors."""
    options = plain.V3 | common | changes
    model = plain.build("DeepseekV3", options | {"rope_interleave": False})
    for name, module in model.named_modules():
        if name.endswith("_a_layernorm"):
            module.variance_epsilon = eps
    if softmax_scale is not None:
        width = options["moe_intermediate_size"]
        for layer in model.model.layers[options["first_k_dense_replace"]:]:
            layer.mlp = OriginExperts(options["hidden_size"], width, width * options["n_shared_experts"],
                                      options["n_routed_experts"], options["num_experts_per_tok"],
                                      softmax_scale)
            plain.randomize(layer.mlp)
    config = options | {
        "model_type": "origin_mla", "latent_norm_eps": eps,
        "scoring_func": "sigmoid" if softmax_scale is None else "softmax"}
    heads, rope = options["num_attention_heads"], options["qk_rope_head_dim"]

    def convert(tensors):
        out = {}
        for name, values in tensors.items():
            name = name.replace("mlp.expert_bias", "mlp.gate.e_score_correction_bias")
            if name.endswith("self_attn.kv_a_proj_with_mqa.weight"):
                values = rope_rows_as_pairs(values, 1, rope)
            if name.endswith(("self_attn.q_proj.weight", "self_attn.q_b_proj.weight")):
                values = rope_rows_as_pairs(values, heads, rope)
            if name.endswith("mlp.experts.gate_up_proj"):
                for expert, both in enumerate(values):
                    parts = zip(("gate_proj", "up_proj"), both.chunk(2))
                    out |= {name.replace("gate_up_proj", f"{expert}.{part}.weight"): rows for part, rows in parts}
            elif name.endswith("mlp.experts.down_proj"):
                out |= {name.replace("down_proj", f"{expert}.down_proj.weight"): rows
                        for expert, rows in enumerate(values)}
            else:
                out[name] = values
        return out

    return model, config, convert


def rope_rows_as_pairs(rows, heads, rope):
    """The last `rope` rows of every head from halves (i, i + rope/2) to neighbouring pairs (2i, 2i + 1)."""
    rows = rows.unflatten(0, (heads, -1))
    first, second = rows[:, -rope:].chunk(2, 1)
    return torch.cat([rows[:, :-rope], torch.stack([first, second], 2).flatten(1, 2)], 1).flatten(0, 1)
