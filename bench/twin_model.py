"""The demo model in plain PyTorch: its layers, data order, optimizer and training loop.

The best that PyTorch offers for each part: scaled_dot_product_attention, grouped_mm over the experts,
fused AdamW. T tokens, D model width, H expert width, E experts, K choices, R = T*K routed rows.
"""

import math
import time
import tomllib
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

LOG_INTERVAL = 5
VOCAB_SIZE = 264  # bytes and special tokens, rounded up to a multiple of 8
DEFAULTS = {
    "model": dict(dim=128, num_layers=4, num_heads=4, num_kv_heads=2, qk_norm=False,
                  rope_theta=10000.0, norm_eps=1e-5, init_std=0.02, embedding_init_std=0.0),
    "moe": dict(num_experts=8, top_k=2, hidden_dim=128, num_shared_experts=1, route_norm=True,
                balance_coeff=1e-3, aux_loss_coeff=1e-2),
    "training": dict(steps=500, seq_len=256, local_batch_size=16, max_norm=1.0, seed=1),
    "optimizer": dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1),
    "lr_scheduler": dict(warmup_steps=30, decay_ratio=0.8, min_lr_factor=0.1),
    "data": dict(validation_fraction=0.05),
}


def load_settings(path):
    """The keys of DEFAULTS, flat, with the values of the preset where it has them."""
    preset = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    flat = {}
    for section, keys in DEFAULTS.items():
        flat |= {key: preset.get(section, {}).get(key, value) for key, value in keys.items()}
    return SimpleNamespace(**flat)


def rotate(x, cos, sin):  # [B, heads, S, head_dim]
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Attention(nn.Module):
    def __init__(self, c, output_std):
        super().__init__()
        self.c, self.head_dim = c, c.dim // c.num_heads
        self.wq = linear(c.dim, c.dim, c.init_std)
        self.wk = linear(c.dim, c.num_kv_heads * self.head_dim, c.init_std)
        self.wv = linear(c.dim, c.num_kv_heads * self.head_dim, c.init_std)
        self.wo = linear(c.dim, c.dim, output_std)
        norm = (lambda: nn.RMSNorm(self.head_dim, eps=c.norm_eps)) if c.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x, cos, sin):  # [B, S, D]
        batch, seq, dim = x.shape
        q, k, v = (w(x).view(batch, seq, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(batch, seq, dim))


class Moe(nn.Module):
    def __init__(self, c, output_std):
        super().__init__()
        self.c = c
        shared = c.num_shared_experts * c.hidden_dim
        self.gate = linear(c.dim, c.num_experts, output_std)
        self.w1 = stack(c.init_std, c.num_experts, c.hidden_dim, c.dim)
        self.w2 = stack(output_std, c.num_experts, c.dim, c.hidden_dim)
        self.w3 = stack(output_std, c.num_experts, c.hidden_dim, c.dim)
        self.shared_w1 = linear(c.dim, shared, c.init_std)
        self.shared_w2 = linear(shared, c.dim, output_std)
        self.shared_w3 = linear(c.dim, shared, output_std)
        self.register_buffer("bias", torch.zeros(c.num_experts))
        self.counts = self.aux_loss = None

    def forward(self, x_BSD):
        x = x_BSD.reshape(-1, self.c.dim)  # [T, D]
        scores_TE = F.softmax(self.gate(x), -1)
        expert_ids = torch.topk((scores_TE + self.bias).detach(), self.c.top_k, -1)[1]  # [T, K]
        scores = scores_TE.gather(1, expert_ids)
        if self.c.route_norm:
            scores = scores / scores.sum(-1, keepdim=True)
        slots = torch.argsort(expert_ids.reshape(-1), stable=True)  # [R]
        self.counts = torch.bincount(expert_ids.reshape(-1), minlength=self.c.num_experts)
        share = self.counts.float() / expert_ids.numel()
        self.aux_loss = self.c.num_experts * (share * scores_TE.mean(0)).sum()

        tokens, ends = slots // self.c.top_k, self.counts.cumsum(0).int()
        rows = x.index_select(0, tokens)  # [R, D]; its backward is faster than that of x[tokens]
        gate = F.grouped_mm(rows, self.w1.mT, offs=ends)
        up = F.grouped_mm(rows, self.w3.mT, offs=ends)
        y = F.grouped_mm(F.silu(gate) * up, self.w2.mT, offs=ends)
        y = y * scores.reshape(-1)[slots][:, None]
        out = torch.zeros_like(x).index_add(0, tokens, y)
        if self.c.num_shared_experts:
            out = out + self.shared_w2(F.silu(self.shared_w1(x)) * self.shared_w3(x))
        return out.view_as(x_BSD)

    @torch.no_grad()
    def balance(self):
        """Bias towards experts with less than the mean load, without a loss (DeepSeek-V3)."""
        step = self.c.balance_coeff * torch.sign(self.counts.float().mean() - self.counts)
        self.bias += step - step.mean()


class Twin(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(VOCAB_SIZE, c.dim) * (c.embedding_init_std or 0.02))
        self.layers = nn.ModuleList()
        for layer in range(c.num_layers):
            output_std = c.init_std / math.sqrt(2 * (layer + 1))
            self.layers.append(nn.ModuleDict({
                "attention_norm": nn.RMSNorm(c.dim, eps=c.norm_eps),
                "attention": Attention(c, output_std),
                "ffn_norm": nn.RMSNorm(c.dim, eps=c.norm_eps),
                "moe": Moe(c, output_std),
            }))
        self.norm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        head_dim = c.dim // c.num_heads
        rates = c.rope_theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.arange(c.seq_len).float()[:, None] * rates
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], -1))
        self.register_buffer("sin", torch.cat([angles.sin(), angles.sin()], -1))

    def forward(self, windows):
        """Mean cross entropy of the bytes after the first of each window [B, S + 1]."""
        x = F.embedding(windows[:, :-1], self.embedding)
        for layer in self.layers:
            x = x + layer["attention"](layer["attention_norm"](x), self.cos, self.sin)
            x = x + layer["moe"](layer["ffn_norm"](x))
        logits = F.linear(self.norm(x), self.embedding)  # tied
        return F.cross_entropy(logits.view(-1, VOCAB_SIZE), windows[:, 1:].reshape(-1))


def stack(std, *shape):
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=std))


def linear(inputs, outputs, std):
    module = nn.Linear(inputs, outputs, bias=False)
    nn.init.trunc_normal_(module.weight, std=std)
    return module


class Text:
    """Bytes of a file: the last part is held out, the rest is cut into windows."""

    def __init__(self, path, c):
        self.bytes = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
        self.c = c
        self.split = len(self.bytes) - int(len(self.bytes) * c.validation_fraction)

    def windows(self, starts):
        return torch.stack([self.bytes[s : s + self.c.seq_len + 1] for s in starts])

    def training_batches(self):
        size, generator = self.c.local_batch_size, torch.Generator().manual_seed(self.c.seed)
        while True:  # an epoch
            order = torch.randperm((self.split - 1) // self.c.seq_len, generator=generator)
            for i in range(0, len(order) - size + 1, size):
                yield self.windows([w * self.c.seq_len for w in order[i : i + size].tolist()])

    def validation_batches(self):
        """Every full window of held-out targets; its first input is the byte before them."""
        first, size = self.split - 1, self.c.local_batch_size
        count = (len(self.bytes) - self.split) // self.c.seq_len
        for i in range(0, count, size):
            yield self.windows([first + w * self.c.seq_len for w in range(i, min(count, i + size))])


def learning_rate(c, step, steps):
    """Linear warm-up, constant, linear decay over the last decay_ratio of the steps."""
    decay_steps = max(1, round(steps * c.decay_ratio))
    left = (steps - step) / decay_steps
    decay = c.min_lr_factor + (1 - c.min_lr_factor) * min(1.0, left)
    return c.lr * min(1.0, (step + 1) / max(1, c.warmup_steps)) * decay


def train_twin(c, text, steps, report=None):
    """(the trained model, tokens/s of every LOG_INTERVAL steps)."""
    torch.manual_seed(c.seed)
    model = Twin(c)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=c.weight_decay), dict(params=vectors, weight_decay=0.0)],
        lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)
    batches, speeds, started = text.training_batches(), [], time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(c, step, steps)
        loss = model(next(batches))
        moes = [layer["moe"] for layer in model.layers]
        aux_loss = sum(moe.aux_loss for moe in moes) / len(moes)
        (loss + c.aux_loss_coeff * aux_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), c.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        for moe in moes:
            moe.balance()
        if (step + 1) % LOG_INTERVAL == 0:
            loss.item()
            now = time.perf_counter()
            speeds.append(LOG_INTERVAL * c.local_batch_size * c.seq_len / (now - started))
            started = now
            if report:
                report(step + 1, loss.item(), speeds[-1])
    return model, speeds


@torch.no_grad()
def bits_per_byte(model, text):
    total = count = 0
    for windows in text.validation_batches():
        targets = windows[:, 1:].numel()
        total += model(windows).item() * targets
        count += targets
    return total / count / math.log(2)
