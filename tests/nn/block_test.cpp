// Whole blocks, dense and Mixture-of-Experts, with both attentions, against the plain computation.
#include "nn/block.h"

#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/topk.h>

#include "nn/plain.h"
#include "nn/plain_attention.h"

namespace amoeba::test {
namespace {

// All sizes differ: T 18, D 20, dense H 26, expert H 12, E 5, K 2.
constexpr int64_t kDim = 20, kTokens = kRows * kLength, kExperts = 5, kTopK = 2;

struct Shape {
  const char* name;
  bool mla, dense;
  std::vector<nn::Segment> segments;
};

nn::BlockConfig config_of(const Shape& shape) {
  nn::BlockConfig config;
  config.attention.dim = config.moe.router.dim = kDim;
  config.attention.num_heads = 4;
  if (shape.mla) {
    config.attention.mla = nn::MlaConfig{11, 14, 6, 4, 7};
    config.attention.rope = {.head_dim = 4,
                             .theta = 100.0,
                             .factor = 4.0,
                             .beta_fast = 2.0,
                             .original_seq_len = 6,
                             .max_seq_len = 24};
    config.attention.yarn_mscale = 0.7;
  } else {
    config.attention.num_kv_heads = 2;
    config.attention.head_dim = config.attention.rope.head_dim = 8;
  }
  if (shape.dense) {
    config.dense_hidden_dim = 26;
    return config;
  }
  config.moe.router.num_experts = kExperts;
  config.moe.router.top_k = kTopK;
  config.moe.router.route_norm = true;
  config.moe.router.route_scale = 1.5;
  config.moe.hidden_dim = 12;
  config.moe.num_shared_experts = 2;
  return config;
}

at::Tensor plain_swiglu(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                        const at::Tensor& w3) {
  const at::Tensor gate = at::mm(x, w1.t());
  return at::mm(gate * at::sigmoid(gate) * at::mm(x, w3.t()), w2.t());
}

// [1, D]: the two losses of the router, then zeros, so that they pass as one more row of output.
at::Tensor loss_row(const at::Tensor& aux_loss, const at::Tensor& z_loss, at::ScalarType dtype) {
  return at::cat({aux_loss.view({1, 1}), z_loss.view({1, 1}),
                  at::zeros({1, kDim - 2}, aux_loss.options())},
                 1)
      .to(dtype);
}

struct Plain {
  at::Tensor logits;  // [T, E], of the router
  at::Tensor y;       // [T + 1, D]: hidden and loss_row; dense: [T, D]
};

// Weights after x in the order of declaration; `ids` [T, K] are the experts to take.
Plain plain_block(const Tensors& in, const Shape& shape, const at::Tensor& ids) {
  const nn::BlockConfig config = config_of(shape);
  const nn::SequenceLayout layout = layout_of(shape.segments);
  const at::Tensor normal = plain_norm(in[0], in[1]);
  const at::Tensor hidden =
      in[0] + (shape.mla ? plain_latent(normal, in, 2, config.attention, layout)
                         : plain_grouped(normal, in, 2, config.attention, layout));
  size_t next = shape.mla ? 9 : 6;  // past the attention
  const at::Tensor x = plain_norm(hidden, in[next++]);
  if (shape.dense) {
    return {{}, hidden + plain_swiglu(x, in[next], in[next + 2], in[next + 1])};
  }
  const at::ScalarType wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor logits = at::mm(x.to(wide), in[next].to(wide).t());
  const at::Tensor scores = at::softmax(logits, -1);
  at::Tensor chosen = scores.gather(1, ids);
  chosen = chosen / chosen.sum(-1, true) * 1.5;
  at::Tensor y = hidden + plain_swiglu(x, in[next + 4], in[next + 6], in[next + 5]);
  at::Tensor share = at::zeros({kExperts}, logits.options());
  for (int64_t e = 0; e < kExperts; ++e) {
    const at::Tensor taken = ids.eq(e);
    const at::Tensor weight = (chosen * taken).sum(1, true);
    y = y + (weight * plain_swiglu(x, in[next + 1].select(0, e), in[next + 2].select(0, e),
                                   in[next + 3].select(0, e)))
                .to(y.scalar_type());
    share.select(0, e).copy_(taken.sum() / static_cast<double>(kTokens * kTopK));
  }
  const at::Tensor aux_loss = (share * scores.mean(0)).sum() * static_cast<double>(kExperts);
  const at::Tensor z_loss = at::logsumexp(logits, {-1}).square().mean();
  return {logits, at::cat({y, loss_row(aux_loss, z_loss, y.scalar_type())})};
}

// expect_agrees for a long chain of roundings, where the plain error of a tensor with few rows is
// one draw and may come out small by luck: the largest of four plain computations counts, whose
// inputs carry one more rounding.
void expect_chain_agrees(const Tensors& actual, const std::function<at::Tensor(const Tensors&)>& f,
                         const Tensors& inputs, const at::Tensor& dy, at::ScalarType dtype) {
  const Tensors exact = run_with_gradients(f, inputs, dy, at::kDouble);
  Tensors same(exact.size());
  std::vector<double> largest(exact.size(), -1.0);
  for (int draw = 0; draw < 4; ++draw) {
    Tensors rounded = inputs;
    for (at::Tensor& input : rounded) input = input * (1.0 + 0x1p-24 * random(input.sizes()));
    const Tensors plain = run_with_gradients(f, rounded, dy, dtype);
    for (size_t i = 0; i < exact.size(); ++i) {
      const double error = (plain[i].to(at::kDouble) - exact[i]).abs().max().item<double>();
      if (error <= largest[i]) continue;
      largest[i] = error;
      same[i] = plain[i];
    }
  }
  ASSERT_EQ(actual.size(), same.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const Comparison result = compare_rows(actual[i], same[i], exact[i]);
    EXPECT_TRUE(result) << (i == 0 ? "output" : "gradient " + std::to_string(i)) << ": "
                        << result.message;
  }
}

class Blocks : public testing::TestWithParam<std::tuple<Shape, at::ScalarType>> {};

TEST_P(Blocks, AgreeWithPlainInOutputsAndGradients) {
  at::manual_seed(23);
  const auto& [shape, dtype] = GetParam();
  nn::ParameterStore store;
  const nn::Block block(config_of(shape), "block", {0.02, 0.02}, store);
  store.allocate(at::kCPU, dtype, 13);
  store.allocate_training_state();
  for (nn::ParameterGroup& group : store.groups()) {
    // Far from the initial values, and exact in bf16.
    if (group.decay) group.master.mul_(12.0);
    if (!group.decay) group.master.add_(random(group.master.sizes()) * 0.3);
    group.master.copy_(group.master.to(at::kBFloat16));
  }
  store.refresh_compute();
  nn::ExpertStats stats;
  const nn::BlockCall call{
      .layout = layout_of(shape.segments),
      .rope = nn::make_rope_table(config_of(shape).attention.rope, kLength, at::kCPU),
      .token_mask = {},
      .expert_bias = at::zeros({kExperts}),
      .error_word = {},
      .backend = &nn::expert_backends().back(),
      .stats = &stats};
  const at::Tensor x = random({kTokens, kDim}).to(dtype);
  at::Tensor leaf = x.clone().set_requires_grad(true);
  const nn::BlockOutput out =
      block.forward(leaf, call, {}, nullptr, nn::ActivationCheckpoint::kNone);
  EXPECT_EQ(out.counts.defined(), !shape.dense);
  EXPECT_EQ(stats.calls, shape.dense ? 0 : 1);
  const at::Tensor y =
      shape.dense ? out.hidden : at::cat({out.hidden, loss_row(out.aux_loss, out.z_loss, dtype)});
  const at::Tensor dy = random(y.sizes()).to(dtype);
  torch::autograd::backward({y}, {dy});

  Tensors inputs = {x.to(at::kDouble)}, actual = {y.detach(), leaf.grad()};
  for (const auto& parameter : store.parameters()) {
    inputs.push_back(parameter->master.detach().to(at::kDouble));
    actual.push_back(parameter->grad.to(dtype));
  }
  const auto plain = [&](const Tensors& in) { return plain_block(in, shape, out.expert_ids).y; };
  expect_chain_agrees(actual, plain, inputs, dy, dtype);
  if (shape.dense || dtype != at::kFloat) return;  // bf16 may choose otherwise at a close call
  const at::Tensor ids =
      std::get<1>(at::topk(plain_block(inputs, shape, out.expert_ids).logits, kTopK));
  EXPECT_TRUE(at::equal(ids, out.expert_ids));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Blocks,
    testing::Combine(testing::Values(Shape{"gqa_dense", false, true, {}},
                                     Shape{"gqa_moe", false, false, kDocuments},
                                     Shape{"mla_dense", true, true, kDocuments},
                                     Shape{"mla_moe", true, false, {}}),
                     testing::Values(at::kFloat, at::kBFloat16)),
    [](const auto& row) {
      return std::string(std::get<0>(row.param).name) + "_" + c10::toString(std::get<1>(row.param));
    });

}  // namespace
}  // namespace amoeba::test
