"""Folders that transformers writes, read by the engine, and folders that the engine writes, read by
transformers.

Usage: hugging_face_folder_test.py HF_ORACLE AMOEBA. Small random models of each family are saved by
transformers. In fp32 logits, loss and every gradient must agree; in bf16 each row of the logits and
of every gradient may be off fp64 by twice the largest row error of transformers' own bf16, and 2 ulp
of the row's largest value. What `amoeba export` writes must equal the original bit for bit and load without a missing or
unexpected key. Exits 77 (skipped) when transformers is not installed.
"""

import copy
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "nn_oracle"))
import hugging_face_test as plain  # exits 77 without transformers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

VOCAB = 263  # no less than the byte tokenizer's
LOGITS_BOUND = 1e-5  # of the tensor's largest value
SHARD_BYTES = 40000
DRAWS, OUR_DRAWS = 8, 2  # of inputs in bf16

COMMON = {"vocab_size": VOCAB}
CASES = [
    ("mixtral", "Mixtral", plain.GROUPED | {"intermediate_size": 18, "num_local_experts": 5,
                                            "num_experts_per_tok": 2}),
    ("mixtral, tied", "Mixtral", plain.GROUPED | {"intermediate_size": 18, "num_local_experts": 5,
                                                  "num_experts_per_tok": 2, "tie_word_embeddings": True,
                                                  "sliding_window": 5}),
    ("olmoe", "Olmoe", plain.COMMON | {"num_key_value_heads": 2, "hidden_size": 48, "rms_norm_eps": 1e-5,
                                       "rope_parameters": plain.PLAIN, "intermediate_size": 18,
                                       "num_experts": 5, "num_experts_per_tok": 2, "eos_token_id": 2}),
    ("qwen3_moe, first layer dense", "Qwen3Moe",
     plain.GROUPED | {"moe_intermediate_size": 18, "intermediate_size": 22, "num_experts": 5,
                      "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1,
                      "mlp_only_layers": [0]}),
    ("deepseek_v2, low-rank query, YaRN", "DeepseekV2",
     plain.V2 | {"q_lora_rank": 16, "rope_parameters": plain.YARN}),
    ("deepseek_v2, full query, groups", "DeepseekV2",
     plain.V2 | {"q_lora_rank": None, "rope_parameters": plain.PLAIN, "n_routed_experts": 8,
                 "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    ("deepseek_v3, low-rank query, YaRN", "DeepseekV3",
     plain.V3 | {"q_lora_rank": 16, "rope_parameters": plain.YARN}),
    # The norms of the latents keep their own eps.
    ("deepseek_v3, full query, another eps", "DeepseekV3",
     plain.V3 | {"q_lora_rank": None, "rope_parameters": plain.PLAIN, "rms_norm_eps": 1e-2}),
    ("deepseek_v3, YaRN with two mscales", "DeepseekV3",
     plain.V3 | {"q_lora_rank": 16, "rope_parameters": plain.TWO_MSCALES}),
    ("llama", "Llama", plain.GROUPED | {"intermediate_size": 52}),
    ("qwen3", "Qwen3", plain.GROUPED | {"intermediate_size": 52}),
    ("qwen3_moe, YaRN", "Qwen3Moe",
     plain.GROUPED | {"moe_intermediate_size": 18, "num_experts": 5, "num_experts_per_tok": 2,
                      "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
                      "rope_parameters": plain.GROUPED_YARN}),
    ("mixtral, YaRN, own factor, fractional bounds", "Mixtral",
     plain.GROUPED | {"intermediate_size": 18, "num_local_experts": 5, "num_experts_per_tok": 2,
                      "rope_parameters": plain.GROUPED_YARN | {"attention_factor": 1.3,
                                                               "truncate": False}}),
    ("olmoe, linear", "Olmoe",
     plain.COMMON | {"num_key_value_heads": 2, "hidden_size": 48, "rms_norm_eps": 1e-5,
                     "rope_parameters": plain.LINEAR, "intermediate_size": 18, "num_experts": 5,
                     "num_experts_per_tok": 2, "eos_token_id": 2}),
    ("llama, llama3", "Llama",
     plain.GROUPED | {"intermediate_size": 52, "rope_parameters": plain.LLAMA3}),
    ("qwen3, linear", "Qwen3",
     plain.GROUPED | {"intermediate_size": 52, "rope_parameters": plain.LINEAR}),
]
# (what, dense case, settings): the loss starts at the dense model's.
UPCYCLED = [
    ("copy", "llama", {"model.upcycle": "copy", "moe.num_experts": 5, "moe.top_k": 2}),
    ("copy, scale 2.5, sigmoid, one layer dense", "qwen3",
     {"model.upcycle": "copy", "moe.num_experts": 5, "moe.top_k": 3, "moe.route_scale": 2.5,
      "moe.score_function": "sigmoid", "model.num_dense_layers": 1}),
    ("granular, 2 slices", "llama", {"model.upcycle": "granular", "moe.num_experts": 6, "moe.top_k": 4,
                                     "moe.hidden_dim": 26}),
    ("granular, 4 slices, scale 1.7", "qwen3",
     {"model.upcycle": "granular", "moe.num_experts": 8, "moe.top_k": 4, "moe.hidden_dim": 13,
      "moe.route_scale": 1.7}),
]


def on_disk(kind, tensors):
    """Tensors of a model in memory by the names and in the shapes of its folder."""
    block = "block_sparse_moe" if kind == "Mixtral" else "mlp"
    names = ("w1", "w3", "w2") if kind == "Mixtral" else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(model\.layers\.\d+\.)mlp\.experts\.(gate_up|down)_proj", name)
        if not found:
            out[name.replace("mlp.gate.weight", f"{block}.gate.weight")] = tensor
            continue
        for expert, values in enumerate(tensor):
            parts = values.chunk(2) if found[2] == "gate_up" else [values]
            for part, theirs in zip(parts, names[:2] if found[2] == "gate_up" else names[2:]):
                out[f"{found[1]}{block}.experts.{expert}.{theirs}.weight"] = part
    return out


def draw_inputs():
    inputs = {name: torch.randint(VOCAB, (plain.BATCH, plain.LENGTH)) for name in ("tokens", "targets")}
    inputs["targets"][0, 4] = inputs["targets"][1, -1] = -100
    return inputs


def run_theirs(model, kind, inputs):
    model.zero_grad()
    logits = model(inputs["tokens"], use_cache=False).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, inputs["targets"].flatten(), ignore_index=-100)
    loss.backward()
    by_name = on_disk(kind, {name: values.grad for name, values in model.named_parameters()})
    return {"logits": logits.detach(), "loss": loss.detach()} | {
        f"gradient.{name}": values for name, values in by_name.items()}


def run_ours(oracle, folder, inputs, settings=None):
    with tempfile.TemporaryDirectory() as work:
        paths = [Path(work, name) for name in ("in.safetensors", "out.safetensors")]
        save_file(inputs, paths[0])
        overrides = [text for key, value in (settings or {}).items() for text in (f"--{key}", str(value))]
        subprocess.run([oracle, folder, *paths, *overrides], check=True)
        return load_file(paths[1])


def weights_of(folder):
    tensors = {}
    for path in Path(folder).glob("*.safetensors"):
        shard = load_file(path)
        assert not tensors.keys() & shard.keys()
        tensors |= shard
    return tensors


def bf16_excess(*sides):
    """Largest error of a row of ours over what the rule allows; at most 1 passes. The sides, ours,
    theirs and fp64, are one tensor of several draws, of ours the first ones: theirs may be exact by
    luck in a single draw of few rows."""
    ours, theirs, want = (torch.cat([values.double().reshape(-1, values.shape[-1]) for values in side])
                          for side in sides)
    assert ours.isfinite().all() and theirs.isfinite().all() and want.abs().max() > 0
    largest = want.abs().amax(1).clamp_min(1e-30)
    allowed = 2 * (theirs - want).abs().max() + 2 * 2.0 ** (largest.log2().floor() - 7)
    rows = len(ours)
    return ((ours - want[:rows]).abs().amax(1) / allowed[:rows]).max().item()


def choices(model, tokens):
    """The experts that each token of each layer goes to."""
    ids = []
    hooks = [module.register_forward_hook(lambda _, __, out: ids.append(out[-1].sort(-1).values))
             for name, module in model.named_modules() if name.endswith("mlp.gate")]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return ids


def settled_inputs(model):
    """Inputs on which errors of bf16's size change no choice of experts: where one does, a gradient is
    another sum and says nothing about accuracy."""
    exact = copy.deepcopy(model).double()
    others = [copy.deepcopy(model).to(torch.bfloat16)] + [copy.deepcopy(exact) for _ in range(6)]
    with torch.no_grad():
        for noisy in others[1:]:
            for values in noisy.parameters():
                values.mul_(1 + 2.0 ** -7 * torch.randn_like(values))
    for _ in range(500):
        inputs = {name: values[:1, :6] for name, values in draw_inputs().items()}
        want = choices(exact, inputs["tokens"])
        if all(torch.equal(a, b) for other in others
               for a, b in zip(choices(other, inputs["tokens"]), want, strict=True)):
            return inputs
    raise AssertionError("no input settles the choices")


def stacked(tensors):
    """The experts of a layer as one tensor, as both sides hold them."""
    parts = {}
    for name, values in tensors.items():
        parts.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(values)
    return {name: torch.cat(values) if len(values) > 1 else values[0] for name, values in parts.items()}


def bf16_errors(oracle, model, kind, work):
    """Name of a tensor -> its error over what the rule allows."""
    model.to(torch.bfloat16).save_pretrained(Path(work, "bf16"))
    exact = copy.deepcopy(model).double()
    ours, theirs, want = [], [], []
    for draw in range(DRAWS):
        inputs = settled_inputs(model)
        if draw < OUR_DRAWS:
            ours.append(stacked(run_ours(oracle, Path(work, "bf16"), inputs,
                                         {"training.dtype": "bfloat16"})))
        theirs.append(stacked(run_theirs(model, kind, inputs)))
        want.append(stacked(run_theirs(exact, kind, inputs)))
    return {name: bf16_excess(*([draw[name] for draw in side] for side in (ours, theirs, want)))
            for name in want[0] if name != "loss"}


def export(amoeba, folder, out, *options, to="hf"):
    subprocess.run([amoeba, "export", "--to", to, "--checkpoint", folder, "--out", out, *options],
                   check=True, capture_output=True)


def check_export(oracle, amoeba, model, folder, work, inputs, ours):
    """What is wrong with the export of what was imported. It holds the rotation under the key before
    transformers 5, the original under the one since."""
    out = Path(work, "exported")
    export(amoeba, folder, out, "--max-shard-bytes", str(SHARD_BYTES))
    before, after = weights_of(folder), weights_of(out)
    if before.keys() != after.keys():
        return [f"names {before.keys() ^ after.keys()}"]
    wrong = [f"{name} is another" for name, values in before.items() if not torch.equal(values, after[name])]
    if len(list(out.glob("*.safetensors"))) < 2:
        wrong.append("one shard only")
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, attn_implementation="eager", experts_implementation="eager",
        dtype=torch.float32)
    wrong += [f"{key}: {info[key]}" for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
              if info[key]]
    with torch.no_grad():
        if not torch.equal(loaded.eval()(inputs["tokens"]).logits, model(inputs["tokens"]).logits):
            wrong.append("transformers computes other logits from it")
    again = run_ours(oracle, out, inputs)
    if ours.keys() != again.keys() or not all(torch.equal(ours[name], again[name]) for name in ours):
        wrong.append("we compute something else from it")
    return wrong


def check_faults(oracle, kind, folder, inputs, theirs):
    """A comparison that passes these proves nothing."""
    path = Path(folder, "config.json")
    text = path.read_text(encoding="utf-8")
    rope = json.loads(text)["rope_parameters"]
    faults = {"eps": {"rms_norm_eps": 1e-1}, "theta": {"rope_parameters": rope | {"rope_theta": 120.0}}}
    if rope["rope_type"] != "default":
        faults["not stretched"] = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    if plain.attention_factor(rope) != 1:
        faults["attention factor"] = {"rope_parameters": rope | {"attention_factor": 1.0}}
    wrong = []
    for what, change in faults.items():
        config = json.loads(text) | change
        path.write_text(json.dumps(config), encoding="utf-8")
        found = plain.errors_of({"logits": run_ours(oracle, folder, inputs)["logits"]},
                                {"logits": theirs["logits"]})["logits"]
        path.write_text(text, encoding="utf-8")
        if found < plain.FAULT:
            wrong.append(f"did not see the fault '{what}': {found:.1e}")
    return wrong


def check(oracle, amoeba, title, kind, options):
    torch.manual_seed(3)
    options = options | COMMON
    model = plain.build(kind, options)
    inputs = draw_inputs()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        model.save_pretrained(folder)
        theirs = run_theirs(model, kind, inputs)
        ours = run_ours(oracle, folder, inputs)
        errors = plain.errors_of(ours, theirs)
        rows = {name: plain.worst_row(ours[name], want) for name, want in theirs.items()}
        wrong = [f"{name}: {error:.1e}" for name, error in errors.items()
                 if not error <= (LOGITS_BOUND if name == "logits" else plain.BOUND)]
        wrong += [f"{name}, worst row: {error:.1e}" for name, error in rows.items()
                  if not error <= plain.ROW_BOUND]
        wrong += check_export(oracle, amoeba, model, folder, work, inputs, ours)
        wrong += check_faults(oracle, kind, folder, inputs, theirs)

        excess = bf16_errors(oracle, model, kind, work)
        wrong += [f"bf16 {name}: {value:.2f} of what is allowed" for name, value in excess.items()
                  if not value <= 1]
    gradients = [name for name in errors if name.startswith("gradient.")]
    worst = max(gradients, key=errors.get)
    print(f"{title}: logits {errors['logits']:.1e}, loss {errors['loss']:.1e}, worst gradient "
          f"{errors[worst]:.1e}, worst row of any {max(rows[name] for name in gradients):.1e}; bf16, of "
          f"what is allowed: logits {excess['logits']:.2f}, gradients "
          f"{max(excess[name] for name in excess if name != 'logits'):.2f}", flush=True)
    for text in wrong:
        print(f"  FAILED {text}")
    return not wrong


def check_upcycled(oracle, title, dense, settings):
    torch.manual_seed(5)
    kind, options = next((kind, options) for name, kind, options in CASES if name == dense)
    model = plain.build(kind, options | COMMON)
    inputs = draw_inputs()
    theirs = run_theirs(model, kind, inputs)
    with tempfile.TemporaryDirectory() as work:
        model.save_pretrained(work)
        ours = run_ours(oracle, work, inputs, settings)
    loss = abs(ours["loss"] - theirs["loss"]).item() / theirs["loss"].item()
    logits = plain.errors_of({"logits": ours["logits"]}, {"logits": theirs["logits"]})["logits"]
    experts = [name for name in ours if ".experts." in name]
    gates = [name for name in ours if name.endswith("mlp.gate.weight") or "block_sparse_moe.gate" in name]
    good = loss <= 1e-6 and logits <= LOGITS_BOUND and len(gates) > 0 and len(experts) > 0
    print(f"upcycled from {dense}, {title}: loss {loss:.1e}, logits {logits:.1e}"
          f"{'' if good else '  FAILED'}", flush=True)
    return good


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


def check_origin(oracle, amoeba):
    """The origin's own layout of grouped-query attention."""
    torch.manual_seed(6)
    options = plain.GROUPED | COMMON | {"intermediate_size": 18}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
    for layer in model.model.layers:
        layer.mlp = OriginExperts(options["hidden_size"], 18, 36, 5, 2, 1.5)
    plain.randomize(model)
    config = model.config.to_diff_dict() | {
        "model_type": "agpt_moe", "moe_intermediate_size": 18, "shared_expert_intermediate_size": 36,
        "num_local_experts": 5, "num_experts_per_tok": 2, "router_score_function": "softmax",
        "norm_topk_prob": False, "router_bias_selection": True, "router_scale": 1.5}
    inputs = draw_inputs()
    theirs = run_theirs(model, "Origin", inputs)
    with tempfile.TemporaryDirectory() as work:
        folder, out = Path(work, "model"), Path(work, "exported")
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        ours = run_ours(oracle, folder, inputs)
        export(amoeba, folder, out, to="origin")
        same = weights_of(folder).keys() == weights_of(out).keys() and all(
            torch.equal(values, weights_of(out)[name]) for name, values in weights_of(folder).items())
        kind = json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"]
    errors = plain.errors_of(ours, theirs)
    rows = max(plain.worst_row(ours[name], want) for name, want in theirs.items())
    gradient = max(error for name, error in errors.items() if name.startswith("gradient."))
    good = (errors["logits"] <= LOGITS_BOUND and gradient <= plain.BOUND and rows <= plain.ROW_BOUND
            and same and kind == "agpt_moe")
    print(f"agpt_moe: logits {errors['logits']:.1e}, loss {errors['loss']:.1e}, worst gradient "
          f"{gradient:.1e}, worst row of any {rows:.1e}{'' if good else '  FAILED'}", flush=True)
    return good


def quantized(weight):
    """fp8 in blocks of 128 x 128, their scales, and what both stand for."""
    rows, columns = weight.shape
    blocks = [-(-rows // 128), -(-columns // 128)]
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(blocks)
    meant = torch.empty(rows, columns)
    for i in range(blocks[0]):
        for j in range(blocks[1]):
            part = (slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1)))
            scales[i, j] = weight[part].abs().max() / 448
            values[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            meant[part] = values[part].float() * scales[i, j]
    return values, scales, meant


def check_fp8(amoeba):
    torch.manual_seed(4)
    options = plain.V3 | COMMON | {"q_lora_rank": 140, "hidden_size": 150, "intermediate_size": 270,
                                   "moe_intermediate_size": 130, "kv_lora_rank": 132,
                                   "rope_parameters": plain.PLAIN}
    model = plain.build("DeepseekV3", options)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        model.save_pretrained(folder)
        tensors, want, count = {}, {}, 0
        for name, values in weights_of(folder).items():
            want[name] = tensors[name] = values
            if "_proj" in name:
                tensors[name], tensors[name + "_scale_inv"], want[name] = quantized(values)
                count += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3",
                                         "quant_method": "fp8", "weight_block_size": [128, 128]}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        export(amoeba, folder, Path(work, "exported"))
        got = weights_of(Path(work, "exported"))
    good = got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    print(f"deepseek_v3 in fp8: {count} tensors as dequantised, exactly{'' if good else '  FAILED'}",
          flush=True)
    return good and count > 0


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    oracle, amoeba = sys.argv[1:3]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, CPU: largest difference "
          f"relative to the tensor's largest value, in fp32")
    good = [check(oracle, amoeba, *case) for case in CASES]
    good += [check_upcycled(oracle, *case) for case in UPCYCLED]
    good.append(check_origin(oracle, amoeba))
    good.append(check_fp8(amoeba))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
