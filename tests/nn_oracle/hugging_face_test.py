"""Compares whole models with Hugging Face transformers: logits, loss and every gradient, in fp32.

Usage: hugging_face_test.py NN_ORACLE. Small random models of each kind are built by transformers; their
weights go through one mapping to our names and layouts, and their gradients through the same. Each
tensor's error is its largest difference relative to its largest value. Exits 77 (skipped) when
transformers is not installed.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SKIPPED = 77
try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(SKIPPED)

BATCH, LENGTH, VOCAB, DIM, HEADS = 2, 13, 37, 42, 6
NUM_ANGLES = 64  # positions of the rotary tables: further on, their fp32 angles are too coarse
BOUND = 2e-5  # of each tensor, relative to its largest value
ROW_BOUND = 2e-4  # of a row, relative to its own largest value: small rows lose digits
FAULT = 1e-3  # what a planted fault must exceed
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.5,
        "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.7}
DEEPSEEK_YARN = YARN | {"rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 0.707}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
# Without an attention_factor or an mscale: sines and cosines times 0.1 ln(factor) + 1.
GROUPED_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 2.0,
                "beta_slow": 0.5, "original_max_position_embeddings": 16}
TWO_MSCALES = YARN | {"mscale": 1.5}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 0.5,
          "high_freq_factor": 2.0, "original_max_position_embeddings": 16}

COMMON = {"vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": 3, "num_attention_heads": HEADS,
          "max_position_embeddings": 64, "tie_word_embeddings": False}
# The DeepSeek classes norm the latents with 1e-6 whatever the configuration says.
LATENT = COMMON | {"num_key_value_heads": HEADS, "kv_lora_rank": 22, "qk_nope_head_dim": 10,
                   "qk_rope_head_dim": 8, "v_head_dim": 14, "intermediate_size": 52, "rms_norm_eps": 1e-6,
                   "moe_intermediate_size": 18, "n_shared_experts": 2}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-5,
                    "rope_parameters": PLAIN}
# V2 limits groups by their best expert, not by the best two as V3 and we do: compared without groups.
V2 = LATENT | {"n_routed_experts": 7, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
               "topk_method": "greedy", "routed_scaling_factor": 1.5}
V3 = LATENT | {"n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 2, "n_group": 4,
               "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}

CASES = [
    ("DeepseekV2, low-rank query, YaRN", "DeepseekV2", V2 | {"q_lora_rank": 16, "rope_parameters": YARN}),
    ("DeepseekV2, full query", "DeepseekV2", V2 | {"q_lora_rank": None, "rope_parameters": PLAIN}),
    ("DeepseekV2, its own rotation", "DeepseekV2",
     V2 | {"q_lora_rank": None, "qk_rope_head_dim": 64, "max_position_embeddings": 16384,
           "rope_parameters": DEEPSEEK_YARN}),
    ("DeepseekV3, low-rank query, YaRN", "DeepseekV3", V3 | {"q_lora_rank": 16, "rope_parameters": YARN}),
    ("DeepseekV3, full query, YaRN", "DeepseekV3", V3 | {"q_lora_rank": None, "rope_parameters": YARN}),
    ("DeepseekV3, YaRN with two mscales", "DeepseekV3",
     V3 | {"q_lora_rank": None, "rope_parameters": TWO_MSCALES}),
    ("DeepseekV2, linear", "DeepseekV2", V2 | {"q_lora_rank": None, "rope_parameters": LINEAR}),
    ("Llama, dense", "Llama", GROUPED | {"intermediate_size": 52}),
    ("Llama, llama3", "Llama", GROUPED | {"intermediate_size": 52, "rope_parameters": LLAMA3}),
    ("Llama, YaRN with its own factor and fractional bounds", "Llama",
     GROUPED | {"intermediate_size": 52,
                "rope_parameters": GROUPED_YARN | {"attention_factor": 1.3, "truncate": False}}),
    ("Mixtral", "Mixtral", GROUPED | {"intermediate_size": 18, "num_local_experts": 5,
                                      "num_experts_per_tok": 2}),
    ("Qwen3Moe, q and k norms", "Qwen3Moe",
     GROUPED | {"moe_intermediate_size": 18, "num_experts": 5, "num_experts_per_tok": 2,
                "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}),
    ("Qwen3Moe, YaRN", "Qwen3Moe",
     GROUPED | {"moe_intermediate_size": 18, "num_experts": 5, "num_experts_per_tok": 2,
                "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
                "rope_parameters": GROUPED_YARN}),
    ("Mixtral, linear", "Mixtral",
     GROUPED | {"intermediate_size": 18, "num_local_experts": 5, "num_experts_per_tok": 2,
                "rope_parameters": LINEAR}),
]


def randomize(model):
    """Weights far from their small initial values."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.dim() == 1:
                values.copy_(1 + 0.2 * torch.randn_like(values))
            else:
                values.normal_(0, 1.0 if "embed" in name else 1.5 * values.shape[-1] ** -0.5)


def build(kind, options):
    """A transformers model with weights far from their small initial values, and its buffers too."""
    config = getattr(transformers, f"{kind}Config")(**options)
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(
        config, attn_implementation="eager", experts_implementation="eager")
    randomize(model)
    with torch.no_grad():
        for name, values in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                values.normal_(0, 0.2)
    return model.eval()


def attention_factor(rope):
    """Of every sine and cosine, from the configuration."""
    if rope["rope_type"] != "yarn":
        return 1.0
    of = lambda mscale: 0.1 * mscale * math.log(rope["factor"]) + 1
    ratio = of(rope["mscale"]) / of(rope["mscale_all_dim"]) if "mscale" in rope else of(1)
    return rope.get("attention_factor", ratio)


def our_config(kind, options):
    rope = options["rope_parameters"]
    ours = {"vocab_size": VOCAB, "num_layers": options["num_hidden_layers"], "num_dense_layers": 0,
            "dense_hidden_dim": 0, "max_seq_len": options["max_position_embeddings"],
            "tie_embeddings": False, "dim": DIM, "num_heads": HEADS, "norm_eps": options["rms_norm_eps"],
            "rope_theta": rope["rope_theta"], "rope_factor": rope.get("factor", 1.0),
            "rope_type": "yarn" if rope["rope_type"] == "default" else rope["rope_type"],
            "rope_attention_factor": attention_factor(rope), "rope_truncate": rope.get("truncate", True),
            "rope_beta_fast": rope.get("beta_fast", rope.get("high_freq_factor", 32.0)),
            "rope_beta_slow": rope.get("beta_slow", rope.get("low_freq_factor", 1.0)),
            "rope_original_seq_len": rope.get("original_max_position_embeddings", 4096),
            "rope_max_seq_len": options["max_position_embeddings"],
            "rope_mscale": rope.get("mscale_all_dim", 1.0),
            "sigmoid": kind == "DeepseekV3", "num_groups": 0, "num_limited_groups": 0,
            "route_norm": True, "route_scale": 1.0, "num_shared_experts": 0}
    if kind.startswith("Deepseek"):
        ours |= {key: options[key] for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
                                               "v_head_dim")}
        ours |= {"q_lora_rank": options["q_lora_rank"] or 0, "num_experts": options["n_routed_experts"],
                 "num_dense_layers": options["first_k_dense_replace"],
                 "dense_hidden_dim": options["intermediate_size"],
                 "route_scale": options["routed_scaling_factor"], "route_norm": kind == "DeepseekV3",
                 "num_shared_experts": options["n_shared_experts"],
                 "num_groups": options.get("n_group", 0), "num_limited_groups": options.get("topk_group", 0)}
    else:
        ours |= {"num_kv_heads": options["num_key_value_heads"], "head_dim": options["head_dim"],
                 "qk_norm": kind == "Qwen3Moe"}
    if kind == "Llama":
        return ours | {"num_dense_layers": 3, "dense_hidden_dim": options["intermediate_size"]}
    ours["top_k"] = options["num_experts_per_tok"]
    ours["hidden_dim"] = options.get("moe_intermediate_size") or options["intermediate_size"]
    if kind == "Mixtral":
        ours["num_experts"] = options["num_local_experts"]
    if kind == "Qwen3Moe":
        ours["num_experts"] = options["num_experts"]
    return ours


def interleaved(rows, head_dim):
    """Rows of every head from halves (i, i + head_dim/2) to neighbouring pairs (2i, 2i + 1)."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.q_norm.weight": "attention.q_norm.weight",
    "self_attn.k_norm.weight": "attention.k_norm.weight",
    "self_attn.q_a_proj.weight": "attention.wq_a.weight",
    "self_attn.q_a_layernorm.weight": "attention.q_norm.weight",
    "self_attn.q_b_proj.weight": "attention.wq_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attention.wkv_a.weight",
    "self_attn.kv_a_layernorm.weight": "attention.kv_norm.weight",
    "self_attn.kv_b_proj.weight": "attention.wkv_b.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate.weight": "moe.router.gate.weight",
    "mlp.experts.down_proj": "moe.experts.w2",
}
HALVED = ("attention.wq.weight", "attention.wk.weight", "attention.q_norm.weight",
          "attention.k_norm.weight")  # rows permuted where the other side rotates halves
for theirs, w in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
    LAYER_NAMES[f"mlp.{theirs}_proj.weight"] = f"feed_forward.{w}.weight"
    LAYER_NAMES[f"mlp.shared_experts.{theirs}_proj.weight"] = f"moe.shared_experts.{w}.weight"


def mapped(tensors, head_dim):
    """Weights or gradients by our names; head_dim: of heads that the other side rotates by halves."""
    out = {}
    for name, tensor in tensors.items():
        if name in NAMES:
            out[NAMES[name]] = tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        if rest == "mlp.experts.gate_up_proj":
            gate, up = tensor.chunk(2, dim=1)
            out[f"layers.{layer}.moe.experts.w1"], out[f"layers.{layer}.moe.experts.w3"] = gate, up
            continue
        ours = LAYER_NAMES[rest]
        if head_dim and ours in HALVED:
            tensor = interleaved(tensor, head_dim)
        out[f"layers.{layer}.{ours}"] = tensor
    return out


def run_theirs(model, tokens, targets, head_dim):
    logits = model(tokens, use_cache=False).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100)
    loss.backward()
    gradients = mapped({name: values.grad for name, values in model.named_parameters()}, head_dim)
    out = {"logits": logits.detach(), "loss": loss.detach()}
    rotary = model.model.rotary_emb
    angles = torch.arange(NUM_ANGLES, dtype=torch.float64)[:, None] * rotary.inv_freq.double()
    factor = rotary.attention_scaling
    out |= {"rope.cos": (factor * angles.cos()).float(), "rope.sin": (factor * angles.sin()).float()}
    return out | {f"gradient.{name}": values for name, values in gradients.items()}


def run_ours(oracle, config, tensors):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("config.json", "in.safetensors", "out.safetensors")]
        paths[0].write_text(json.dumps(config), encoding="utf-8")
        save_file({name: values.detach().clone().contiguous() for name, values in tensors.items()}, paths[1])
        subprocess.run([oracle, *paths], check=True)
        out = load_file(paths[2])
        return out | {name: out[name][:NUM_ANGLES] for name in ("rope.cos", "rope.sin")}


def errors_of(ours, theirs):
    """Name -> largest difference relative to the tensor's largest value."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    out = {}
    for name, want in theirs.items():
        assert ours[name].shape == want.shape, (name, ours[name].shape, want.shape)
        assert torch.isfinite(ours[name]).all() and want.abs().max() > 0, name
        out[name] = ((ours[name] - want).abs().max() / want.abs().max()).item()
    return out


def worst_row(ours, theirs):
    """Largest difference of a row relative to that row's largest value; rows of zeros must be zeros."""
    rows = [values.reshape(-1, values.shape[-1]) if values.dim() else values.view(1, 1)
            for values in (ours, theirs)]
    largest = rows[1].abs().amax(1)
    error = (rows[0] - rows[1]).abs().amax(1)
    assert (error[largest == 0] == 0).all()
    return (error / largest)[largest > 0].max().item()


def planted_faults(kind, config, tensors):
    """(what, config, tensors) that must not agree: a comparison that passes them proves nothing."""
    yield "theta", config | {"rope_theta": 120.0}, tensors
    if config["rope_factor"] > 1:
        yield "not stretched", config | {"rope_factor": 1.0}, tensors
        other = "llama3" if config["rope_type"] == "linear" else "linear"
        yield "stretched otherwise", config | {"rope_type": other}, tensors
    if config["rope_factor"] > 1 and config["rope_type"] == "yarn" and "kv_lora_rank" in config:
        yield "mscale", config | {"rope_mscale": 1.0}, tensors
    if config["rope_attention_factor"] != 1:
        yield "attention factor", config | {"rope_attention_factor": 1.0}, tensors
    if kind == "DeepseekV3":
        yield "no bias", config, tensors | {"expert_bias": torch.zeros_like(tensors["expert_bias"])}
        yield "no groups", config | {"num_groups": 0, "num_limited_groups": 0}, tensors
    if kind != "Llama":
        yield "scale", config | {"route_scale": config["route_scale"] * 1.01}, tensors
    if not kind.startswith("Deepseek"):
        name = "layers.0.attention.wk.weight"
        yield "halves", config, tensors | {name: tensors[name].flip(0)}


def check(oracle, title, kind, options):
    torch.manual_seed(3)
    model = build(kind, options)
    tokens = torch.randint(VOCAB, (BATCH, LENGTH))
    targets = torch.randint(VOCAB, (BATCH, LENGTH))
    targets[0, 4] = targets[1, -1] = -100
    head_dim = 0 if kind.startswith("Deepseek") else options["head_dim"]
    config = our_config(kind, options)
    tensors = mapped(dict(model.named_parameters()), head_dim) | {"tokens": tokens, "targets": targets}
    num_moe_layers = config["num_layers"] - config["num_dense_layers"]
    if num_moe_layers:
        bias = [values for name, values in model.named_buffers() if name.endswith("e_score_correction_bias")]
        tensors["expert_bias"] = torch.stack(bias) if bias else torch.zeros(num_moe_layers,
                                                                           config["num_experts"])
    theirs = run_theirs(model, tokens, targets, head_dim)
    ours = run_ours(oracle, config, tensors)
    errors = errors_of(ours, theirs)
    rows = {name: worst_row(ours[name], want) for name, want in theirs.items()}
    worst_gradient = max((name for name in rows if name.startswith("gradient.")), key=rows.get)
    per_kind = {}  # gradients, the worst of all layers
    for name, error in errors.items():
        if name.startswith("gradient."):
            name = re.sub(r"^gradient\.(layers\.\d+\.)?|\.weight$", "", name)
            per_kind[name] = max(error, per_kind.get(name, 0))
    print(f"{title}: logits {errors['logits']:.1e}, loss {errors['loss']:.1e}, rotary table "
          f"{max(errors['rope.cos'], errors['rope.sin']):.1e}, worst gradient {max(per_kind.values()):.1e}")
    print(f"  relative to the row's largest value, the worst row: logits {rows['logits']:.1e}, gradients "
          f"{rows[worst_gradient]:.1e} ({worst_gradient.removeprefix('gradient.')})")
    print("  gradients: " + ", ".join(f"{name} {error:.1e}" for name, error in per_kind.items()))
    failed = {name: error for name, error in errors.items() if not error <= BOUND}
    failed |= {f"{name}, worst row": error for name, error in rows.items() if not error <= ROW_BOUND}
    for name, error in failed.items():
        print(f"  FAILED {name}: {error:.1e}, want at most "
              f"{ROW_BOUND if name.endswith('row') else BOUND:.0e}")
    faults = list(planted_faults(kind, config, tensors))
    for what, bad_config, bad_tensors in faults:
        found = max(errors_of(run_ours(oracle, bad_config, bad_tensors), theirs).values())
        if found < FAULT:
            print(f"  FAILED to see the fault '{what}': {found:.1e}, want at least {FAULT:.0e}")
            failed[what] = found
    print(f"  planted faults looked for: {', '.join(what for what, _, _ in faults)}")
    return not failed


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, fp32 on the CPU: largest "
          f"difference relative to the tensor's largest value; gradients: the worst of all layers")
    results = [check(sys.argv[1], *case) for case in CASES]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
