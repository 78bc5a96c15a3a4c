"""experts_implementation="amoeba" in transformers: models built small from their configurations agree
with the built-in eager experts in logits, loss, every gradient and a short training run."""

import unittest

import support
import torch

CONFIGS = {
    "mixtral": ("MixtralConfig", dict(num_local_experts=4, intermediate_size=24)),
    "qwen3_moe": ("Qwen3MoeConfig", dict(num_experts=6, moe_intermediate_size=24, intermediate_size=40, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, head_dim=8)),
    "olmoe": ("OlmoeConfig", dict(num_experts=6, intermediate_size=24)),
    "deepseek_v3": (
        "DeepseekV3Config",
        dict(n_routed_experts=8, n_group=2, topk_group=1, n_shared_experts=1, moe_intermediate_size=24, intermediate_size=40, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8),
    ),
    "gpt_oss": ("GptOssConfig", dict(num_local_experts=4, intermediate_size=24, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"])),
}
COMMON = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=64, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def build(name, implementation):
    import transformers

    class_name, own = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**(COMMON | own))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation=implementation)
    with torch.no_grad():  # biases start as zero or unset; every parameter is to matter
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.normal_(mean=1, std=0.1)
    return model


def batch(step=0):
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(step))


class Models(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import amoeba

        amoeba.register_transformers()

    def test_logits_loss_and_every_gradient_agree_with_eager(self):
        for name in CONFIGS:
            with self.subTest(model=name):
                results = []
                for implementation in ("eager", "amoeba"):
                    model = build(name, implementation)
                    output = model(batch(), labels=batch())
                    output.loss.backward()
                    results.append((output, {n: p.grad for n, p in model.named_parameters()}))
                (want, want_gradients), (got, got_gradients) = results
                torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0)
                self.assertEqual(list(got_gradients), list(want_gradients))
                moe = [n for n in got_gradients if "experts." in n and "shared" not in n]
                self.assertTrue(moe)
                for parameter, gradient in want_gradients.items():
                    if gradient is None:
                        self.assertIsNone(got_gradients[parameter], parameter)
                        continue
                    scale = float(gradient.abs().max())
                    torch.testing.assert_close(got_gradients[parameter], gradient, rtol=1e-4, atol=1e-5 * scale, msg=parameter)
                for parameter in moe:
                    self.assertGreater(float(got_gradients[parameter].abs().max()), 0, parameter)

    def test_twenty_steps_follow_the_same_losses(self):
        for name in CONFIGS:
            with self.subTest(model=name):
                runs = []
                for implementation in ("eager", "amoeba"):
                    model = build(name, implementation)
                    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
                    losses = []
                    for step in range(20):
                        loss = model(batch(step % 4), labels=batch(step % 4)).loss
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        losses.append(loss.item())
                    runs.append(losses)
                torch.testing.assert_close(runs[1], runs[0], rtol=1e-4, atol=0)
                self.assertLess(runs[1][-1], runs[1][0])

    def test_a_model_can_be_switched(self):
        model = build("mixtral", "eager")
        want = model(batch()).logits
        model.set_experts_implementation("amoeba")
        calls = []
        from amoeba import transformers as adapter

        original = adapter.experts
        adapter.experts = lambda *args, **options: calls.append(1) or original(*args, **options)
        try:
            got = model(batch()).logits
        finally:
            adapter.experts = original
        self.assertEqual(len(calls), 2)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Seam(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import amoeba

        amoeba.register_transformers()

    def experts_of(self, name):
        model = build(name, "amoeba")
        return next(m for m in model.modules() if hasattr(m, "is_concatenated"))

    def test_sentinel_ids_contribute_nothing(self):
        for name in ("mixtral", "gpt_oss"):
            with self.subTest(model=name):
                module = self.experts_of(name)
                x = torch.randn(5, 32, requires_grad=True)
                ids = torch.tensor([[0, 1], [2, 3], [4, 1], [4, 4], [3, 4]])  # 4: num_experts
                weights = torch.rand(5, 2, requires_grad=True)
                y = module(x, ids, weights)
                want = module(x, ids.clamp(max=3), weights * (ids < 4))
                torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-6)
                dweights, dx = torch.autograd.grad(y.sum(), (weights, x))
                self.assertTrue(bool((dweights[ids == 4] == 0).all()))
                self.assertTrue(bool((dx[3] == 0).all()))

    def test_every_pair_of_flags_agrees_with_the_projections_written_out(self):
        from transformers import MixtralConfig
        from transformers.integrations.moe import use_experts_implementation

        for concatenated in (True, False):
            for transposed in (True, False):
                for bias in (True, False):

                    @use_experts_implementation(is_concatenated=concatenated, is_transposed=transposed, has_bias=bias)
                    class Experts(torch.nn.Module):
                        def __init__(self, config):
                            super().__init__()
                            shapes = ((4, 14, 5), (4, 5, 7))
                            self.gate_up_proj, self.down_proj = (torch.randn(e, *((c, r) if transposed else (r, c))) for e, r, c in shapes)
                            if bias:
                                self.gate_up_proj_bias, self.down_proj_bias = torch.randn(4, 14), torch.randn(4, 5)
                            self.act_fn = torch.nn.SiLU()

                        def forward(self, x, ids, weights):
                            gate_up, down = (w.mT if transposed else w for w in (self.gate_up_proj, self.down_proj))
                            rows = []
                            for t in range(len(x)):
                                y = 0
                                for k, e in enumerate(ids[t]):
                                    h = gate_up[e] @ x[t] + (self.gate_up_proj_bias[e] if bias else 0)
                                    gate, up = h.chunk(2) if concatenated else (h[0::2], h[1::2])
                                    row = down[e] @ (self.act_fn(gate) * up) + (self.down_proj_bias[e] if bias else 0)
                                    y = y + weights[t, k] * row
                                rows.append(y)
                            return torch.stack(rows)

                    config = MixtralConfig()
                    module = Experts(config)
                    x, ids, weights = torch.randn(6, 5), torch.randint(0, 4, (6, 2)), torch.rand(6, 2)
                    config._experts_implementation_internal = "eager"
                    want = module(x, ids, weights)
                    config._experts_implementation_internal = "amoeba"
                    with self.subTest(concatenated=concatenated, transposed=transposed, bias=bias):
                        torch.testing.assert_close(module(x, ids, weights), want, rtol=1e-5, atol=1e-5)

    def test_known_gates_compute_clamped_swiglu(self):
        import importlib

        from amoeba.transformers import CLAMPED_GATES

        folders = {"GptOssExperts": "gpt_oss", "OpenAIPrivacyFilterExperts": "openai_privacy_filter", "MiniMaxM3VLExperts": "minimax_m3_vl"}
        for name, (alpha, limit) in CLAMPED_GATES.items():
            folder = folders[name]
            module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
            kind = getattr(module, name)
            holder = type("Holder", (), {alpha: 1.5, limit: 0.8})()
            gate_up = torch.randn(9, 14)
            interleaved = folder == "gpt_oss"
            gate, up = (gate_up[:, 0::2], gate_up[:, 1::2]) if interleaved else gate_up.chunk(2, -1)
            gate, up = gate.clamp(max=0.8), up.clamp(-0.8, 0.8)
            torch.testing.assert_close(kind._apply_gate(holder, gate_up), gate * torch.sigmoid(1.5 * gate) * (up + 1))

    def test_what_is_not_swiglu_is_refused_with_its_reason(self):
        from amoeba.transformers import activation_of

        module = self.experts_of("mixtral")
        self.assertEqual(activation_of(module), {"activation": "swiglu"})
        refusals = [
            (dict(has_gate=False), r"MixtralExperts has experts without a gate"),
            (dict(has_post_expert_norm=True), "a norm after each expert"),
            (dict(act_fn=torch.nn.GELU()), "the activation GELU, want SwiGLU"),
        ]
        for change, message in refusals:
            module = self.experts_of("mixtral")
            for name, value in change.items():
                setattr(module, name, value)
            with self.subTest(message=message), self.assertRaisesRegex(ValueError, message):
                activation_of(module)
        other = type("OtherExperts", (type(module),), {"_apply_gate": lambda self, gate_up: gate_up})
        module.__class__ = other
        self.assertRaisesRegex(ValueError, "OtherExperts has a gate of its own", activation_of, module)

    def test_the_experts_compile_to_one_graph(self):
        for name in ("mixtral", "gpt_oss"):
            module = self.experts_of(name)
            x, ids, weights = torch.randn(5, 32), torch.randint(0, 4, (5, 2)), torch.rand(5, 2)
            with self.subTest(model=name):
                got = torch.compile(module, fullgraph=True, backend="aot_eager")(x, ids, weights)
                self.assertTrue(torch.equal(got, module(x, ids, weights)))


if __name__ == "__main__":
    support.main("transformers")
