"""Folders that transformers writes, read by the engine, and folders that the engine writes, read by
transformers.

Usage: hugging_face_folder_test.py HF_ORACLE AMOEBA. Small random models of each family are saved by
transformers. In fp32 logits, loss and every gradient must agree, and be no further off fp64 than
transformers' own; in bf16 each row of the logits and of every gradient may be off fp64 by twice the
largest row error of transformers' own bf16, and 2 ulp of the row's largest value. What `amoeba export` writes must equal the original bit for bit and load without a missing or
unexpected key. Exits 77 (skipped) when transformers is not installed.
"""

import copy
import functools
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "nn_oracle"))
import hugging_face_test as plain  # exits 77 without transformers  # noqa: E402
import origin_models  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from exact_model import run_exact  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

VOCAB = 263  # no less than the byte tokenizer's
LOGITS_BOUND = 1e-5  # of the tensor's largest value
# In fp32 a row may be off fp64 by this much of its largest value, or by ROW_FACTOR times transformers'
# largest row error of that tensor over its draws; the mean over tensors and draws of our error over theirs,
# both as root mean squares, may be MEAN_FACTOR. Means of a few draws leave 1 by a tenth either way.
FP32_BOUND, ROW_FACTOR, MEAN_FACTOR = 1e-5, 4, 1.5
SMALL_ROW = 1e-4  # of the tensor's largest value: smaller rows are left out of what is printed
SHARD_BYTES = 40000
DRAWS, OUR_FP32_DRAWS, OUR_BF16_DRAWS = 12, 4, 2  # of inputs

COMMON = {"vocab_size": VOCAB}
CASES = [
    ("mixtral", "Mixtral", plain.GROUPED | {"intermediate_size": 18, "num_local_experts": 5,
                                            "num_experts_per_tok": 2}),
    ("mixtral, tied", "Mixtral", plain.GROUPED | {"intermediate_size": 18, "num_local_experts": 5,
                                                  "num_experts_per_tok": 2, "tie_word_embeddings": True,
                                                  "sliding_window": 5}),
    ("olmoe", "Olmoe", plain.COMMON | {"num_key_value_heads": 2, "hidden_size": 48, "rms_norm_eps": 1e-5,
                                       "rope_parameters": plain.PLAIN, "intermediate_size": 18,
                                       "num_experts": 5, "num_experts_per_tok": 2, "eos_token_id": 2,
                                       "pad_token_id": None}),  # else without a gradient of that row
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
                     "num_experts_per_tok": 2, "eos_token_id": 2, "pad_token_id": None}),
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
# (what, how to make it)
ORIGIN = [
    ("agpt_moe", origin_models.grouped),
    ("origin_mla, sigmoid, groups, low-rank query, YaRN",
     functools.partial(origin_models.latent, changes={"q_lora_rank": 16, "rope_parameters": plain.YARN})),
    ("origin_mla, softmax, full query, its own eps",
     functools.partial(origin_models.latent, softmax_scale=1.5, eps=1e-2,
                       changes={"q_lora_rank": None, "rope_parameters": plain.PLAIN, "rms_norm_eps": 1e-5,
                                "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
                                "routed_scaling_factor": 1.5, "first_k_dense_replace": 1})),
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


def run_theirs(model, inputs, convert):
    """`convert` gives a dictionary of tensors the names and shapes of the folder."""
    model.zero_grad()
    logits = model(inputs["tokens"], use_cache=False).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, inputs["targets"].flatten(), ignore_index=-100)
    loss.backward()
    by_name = convert({name: values.grad for name, values in model.named_parameters()})
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


def rows_of(draws, name):
    return torch.cat([draw[name].double().reshape(-1, draw[name].shape[-1]) for draw in draws])


def row_excess(ours, theirs, want, allowed):
    """Name of a tensor -> the largest error of a row of ours over what is `allowed` of transformers' largest
    error of a row and the largest values of ours; at most 1 passes. The sides are lists of draws, of ours
    the first ones: theirs may be exact by luck in a single draw of few rows."""
    out = {}
    for name in want[0]:
        if name == "loss":
            continue
        a, b, c = (rows_of(side, name) for side in (ours, theirs, want))
        assert a.isfinite().all() and b.isfinite().all() and c.abs().max() > 0, name
        limit = allowed((b - c).abs().max(), c[:len(a)].abs().amax(1))
        error = (a - c[:len(a)]).abs().amax(1)
        out[name] = (error[error > 0] / limit[error > 0]).max().item() if error.any() else 0.0
    return out


def allowed_in_bf16(error, largest):
    return 2 * error + 2 * 2.0 ** (largest.clamp_min(1e-30).log2().floor() - 7)


def allowed_in_fp32(error, largest):
    return torch.maximum(ROW_FACTOR * error, FP32_BOUND * largest)


def mean_ratio(ours, theirs, want):
    """Geometric mean over tensors and draws of our root mean square error over theirs."""
    logs = []
    for a, b, c in zip(ours, theirs, want, strict=True):
        for name in c:
            errors = [(side[name].double() - c[name]).square().mean().sqrt() for side in (a, b)]
            if name != "loss" and min(errors) > 0:
                logs.append((errors[0] / errors[1]).log().item())
    return math.exp(sum(logs) / len(logs))


def fp64_errors(draws, want):
    """Largest error of logits, of any gradient and of any of its rows, each relative to its largest value."""
    error = {"logits": 0.0, "tensor": 0.0, "row": 0.0}
    for name in want[0]:
        if name == "loss":
            continue
        got, exact = rows_of(draws, name), rows_of(want, name)
        row, largest = (got - exact).abs().amax(1), exact.abs().amax(1)
        tensor = (row.max() / largest.max()).item()
        if name == "logits":
            error["logits"] = tensor
            continue
        counted = largest > SMALL_ROW * largest.max()
        error["tensor"] = max(error["tensor"], tensor)
        error["row"] = max(error["row"], (row / largest)[counted].max().item())
    return error


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


def check_fp32(oracle, model, convert, folder):
    """What is printed of fp32 errors against fp64, and what is wrong with them."""
    run = functools.partial(run_theirs, convert=convert)
    ours, theirs, want = [], [], []
    for draw in range(DRAWS):
        inputs = draw_inputs()
        if draw < OUR_FP32_DRAWS:
            ours.append(stacked(run_ours(oracle, folder, inputs)))
        theirs.append(stacked(run(model, inputs)))
        want.append(stacked(run_exact(run, model, inputs)))
    excess = row_excess(ours, theirs, want, allowed_in_fp32)
    wrong = [f"fp32 {name}: {value:.2f} of what is allowed" for name, value in excess.items() if not value <= 1]
    theirs, want = theirs[:len(ours)], want[:len(ours)]
    mean = mean_ratio(ours, theirs, want)
    if not mean <= MEAN_FACTOR:
        wrong.append(f"fp32 errors are {mean:.2f} times those of transformers")
    a, b = (fp64_errors(side, want) for side in (ours, theirs))
    text = ", ".join(f"{what} {a[part]:.1e} ({b[part]:.1e})" for part, what in
                     (("logits", "logits"), ("tensor", "worst gradient"), ("row", "worst row of any")))
    return f"{text}, on average {mean:.2f} times theirs, {max(excess.values()):.2f} of what is allowed", wrong


def bf16_errors(oracle, model, convert, work):
    """Name of a tensor -> its error over what the rule allows."""
    torch.manual_seed(6)
    folder = Path(work, "bf16")
    model.to(torch.bfloat16).save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(  # with frequencies that are not rounded
        folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.bfloat16).eval()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    run = functools.partial(run_theirs, convert=convert)
    ours, theirs, want = [], [], []
    for draw in range(DRAWS):
        inputs = settled_inputs(model)
        if draw < OUR_BF16_DRAWS:
            ours.append(stacked(run_ours(oracle, folder, inputs, {"training.dtype": "bfloat16"})))
        theirs.append(stacked(run(model, inputs)))
        want.append(stacked(run_exact(run, model, inputs)))
    return row_excess(ours, theirs, want, allowed_in_bf16)


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
    if not same_tensors(ours, run_ours(oracle, out, inputs)):
        wrong.append("we compute something else from it")
    return wrong


def check_faults(oracle, folder, inputs, theirs):
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
    model = plain.build(kind, options | COMMON)
    convert = functools.partial(on_disk, kind)
    inputs = draw_inputs()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        model.save_pretrained(folder)
        theirs = run_theirs(model, inputs, convert)
        ours = run_ours(oracle, folder, inputs)
        wrong = direct_errors(ours, theirs)
        wrong += check_export(oracle, amoeba, model, folder, work, inputs, ours)
        wrong += check_faults(oracle, folder, inputs, theirs)
        text, more = check_fp32(oracle, model, convert, folder)
        excess = bf16_errors(oracle, model, convert, work)
        wrong += more + [f"bf16 {name}: {value:.2f} of what is allowed" for name, value in excess.items()
                         if not value <= 1]
    print(f"{title}: {text}; bf16, of what is allowed: logits {excess['logits']:.2f}, gradients "
          f"{max(excess[name] for name in excess if name != 'logits'):.2f}", flush=True)
    for line in wrong:
        print(f"  FAILED {line}")
    return not wrong


def direct_errors(ours, theirs):
    """What is wrong between our fp32 and theirs."""
    return [f"{name}: {error:.1e} off transformers" for name, error in plain.errors_of(ours, theirs).items()
            if not error <= (LOGITS_BOUND if name == "logits" else plain.BOUND)]


def check_upcycled(oracle, title, dense, settings):
    torch.manual_seed(5)
    kind, options = next((kind, options) for name, kind, options in CASES if name == dense)
    model = plain.build(kind, options | COMMON)
    inputs = draw_inputs()
    theirs = run_theirs(model, inputs, functools.partial(on_disk, kind))
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


def check_origin(oracle, amoeba, title, make):
    """The origin's own layouts."""
    torch.manual_seed(6)
    model, config, convert = make(COMMON)
    inputs = draw_inputs()
    theirs = run_theirs(model, inputs, convert)
    with tempfile.TemporaryDirectory() as work:
        folder, out, broken = (Path(work, name) for name in ("model", "exported", "broken"))
        tensors = {name: values.contiguous() for name, values in convert(model.state_dict()).items()}
        write_folder(folder, tensors, config)
        ours = run_ours(oracle, folder, inputs)
        wrong = direct_errors(ours, theirs)
        text, more = check_fp32(oracle, model, convert, folder)
        wrong += more
        export(amoeba, folder, out, to="origin")
        kind = json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"]
        if kind != config["model_type"] or not same_tensors(tensors, weights_of(out)):
            wrong.append("the export is another model")
        if not same_tensors(ours, run_ours(oracle, out, inputs)):
            wrong.append("we compute something else from the export")
        unconverted = model.state_dict()
        for part, fault in (("_proj", lambda name, _: unconverted[name]),
                            ("_proj", lambda name, values: values.flip(0).contiguous()),
                            ("_bias", lambda name, values: values.flip(0).contiguous())):
            rows = {name: fault(name, values) for name, values in tensors.items()
                    if part in name and ("self_attn" in name or part == "_bias")}
            if all(torch.equal(values, tensors[name]) for name, values in rows.items()):
                continue  # a layout with the rows of its class
            write_folder(broken, tensors | rows, config)
            found = plain.errors_of({"logits": run_ours(oracle, broken, inputs)["logits"]},
                                    {"logits": theirs["logits"]})["logits"]
            if found < plain.FAULT:
                wrong.append(f"did not see rows of *{part} in another order: {found:.1e}")
    print(f"{title}: {text}", flush=True)
    for line in wrong:
        print(f"  FAILED {line}")
    return not wrong


def write_folder(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def same_tensors(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


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
    good = same_tensors(got, want)
    print(f"deepseek_v3 in fp8: {count} tensors as dequantised, exactly{'' if good else '  FAILED'}",
          flush=True)
    return good and count > 0


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    oracle, amoeba = sys.argv[1:3]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, CPU: fp32 errors against fp64 "
          f"relative to the largest value of the tensor or row, in brackets those of transformers")
    good = [check(oracle, amoeba, *case) for case in CASES]
    good += [check_upcycled(oracle, *case) for case in UPCYCLED]
    good += [check_origin(oracle, amoeba, *case) for case in ORIGIN]
    good.append(check_fp8(amoeba))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
