// The one list of Amoeba's keys: what each means, its range, and the spellings that came before it.
#include "train/plain/run_config.h"

#include <algorithm>

#include "amoeba/error.h"

namespace amoeba::train {
namespace {

using formats::Key;
using formats::Schema;

// Bounds of sizes, far above any run: products of a few of them stay inside 64 bits.
constexpr double kMaxSize = 1 << 20;
constexpr double kMaxSteps = 1e9;

// ---- Keys ---------------------------------------------------------------------------------------

void add_model_keys(Schema& schema, ModelSection& model) {
  schema.add({.path = "model.vocab_size",
              .field = &model.vocab_size,
              .doc = "Rows of the embedding; 0: the tokenizer's, rounded up to a multiple of 8.",
              .minimum = 0,
              .maximum = 1 << 24});
  schema.add({.path = "model.dim",
              .field = &model.dim,
              .doc = "Width of the residual stream.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.num_layers",
              .field = &model.num_layers,
              .doc = "Number of decoder layers.",
              .minimum = 1,
              .maximum = 10000});
  schema.add({.path = "model.num_heads",
              .field = &model.num_heads,
              .doc = "Query heads of the attention.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.num_kv_heads",
              .field = &model.num_kv_heads,
              .doc = "Key and value heads; divides model.num_heads.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.head_dim",
              .field = &model.head_dim,
              .doc = "Width of one head, even; 0: model.dim / model.num_heads.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "model.qk_norm",
              .field = &model.qk_norm,
              .doc = "Normalises each query and key head (RMSNorm) before the rotary embedding."});
  schema.add({.path = "model.rope_theta",
              .field = &model.rope_theta,
              .doc = "Base of the rotary embedding's wave lengths.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.norm_eps",
              .field = &model.norm_eps,
              .doc = "Added to the mean square in every RMSNorm.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.tie_embeddings",
              .field = &model.tie_embeddings,
              .doc = "Uses the embedding's weights for the output projection too."});
  schema.add({.path = "model.init_std",
              .field = &model.init_std,
              .doc = "Standard deviation of the linear maps at the start.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.embedding_init_std",
              .field = &model.embedding_init_std,
              .doc = "Standard deviation of the embedding at the start; 0: 0.02 when tied, 1 when "
                     "not.",
              .minimum = 0});
}

void add_moe_keys(Schema& schema, MoeSection& moe) {
  schema.add({.path = "moe.num_experts",
              .field = &moe.num_experts,
              .doc = "Routed experts of a layer.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "moe.top_k",
              .field = &moe.top_k,
              .doc = "Experts that a token is sent to.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "moe.hidden_dim",
              .field = &moe.hidden_dim,
              .doc = "Hidden width of one expert.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "moe.num_shared_experts",
              .field = &moe.num_shared_experts,
              .doc = "Experts that every token uses, as one of that many times moe.hidden_dim; 0: "
                     "none.",
              .minimum = 0,
              .maximum = 1024});
  schema.add({.path = "moe.route_norm",
              .field = &moe.route_norm,
              .doc = "Scales the scores of a token's experts to the sum 1."});
  schema.add({.path = "moe.route_scale",
              .field = &moe.route_scale,
              .doc = "Factor on the scores of a token's experts.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "moe.score_before_experts",
              .field = &moe.score_before_experts,
              .doc = "Multiplies an expert's input by the score instead of its output."});
  schema.add({.path = "moe.balance_coeff",
              .field = &moe.balance_coeff,
              .doc = "Change of an expert's selection bias per step, towards equal load; 0: off.",
              .minimum = 0});
  schema.add({.path = "moe.aux_loss_coeff",
              .field = &moe.aux_loss_coeff,
              .doc = "Weight of the auxiliary load-balance loss; 0: off.",
              .minimum = 0});
  schema.add(
      {.path = "moe.compute_backend",
       .field = &moe.compute_backend,
       .doc = "How the experts are computed; auto: the best that runs here.",
       .choices = {"auto", "grouped_mm", "batched_mm_padded", "batched_mm_capacity", "for_loop"}});
  schema.add({.path = "moe.capacity_factor",
              .field = &moe.capacity_factor,
              .doc = "Rows an expert takes, as a multiple of the mean; more are dropped; used by "
                     "batched_mm_capacity only.",
              .minimum = 0,
              .minimum_exclusive = true});
}

void add_training_keys(Schema& schema, TrainingSection& training) {
  schema.add({.path = "training.steps",
              .field = &training.steps,
              .doc = "Optimizer steps of the run.",
              .minimum = 1,
              .maximum = kMaxSteps});
  schema.add({.path = "training.seq_len",
              .field = &training.seq_len,
              .doc = "Tokens of one sequence.",
              .minimum = 2,
              .maximum = 1 << 24});
  schema.add({.path = "training.local_batch_size",
              .field = &training.local_batch_size,
              .doc = "Sequences computed at once (a micro-batch).",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "training.global_batch_size",
              .field = &training.global_batch_size,
              .doc = "Sequences of one step, a multiple of training.local_batch_size; 0: the same.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "training.max_norm",
              .field = &training.max_norm,
              .doc = "Largest norm of the whole gradient, which is scaled down to it; 0: off.",
              .minimum = 0});
  schema.add({.path = "training.dtype",
              .field = &training.dtype,
              .doc = "Type of the computation; weights and optimizer stay float32.",
              .choices = {"float32", "bfloat16"}});
  schema.add({.path = "training.device",
              .field = &training.device,
              .doc = "Where to compute; auto: cuda when there is one.",
              .choices = {"auto", "cpu", "cuda"}});
  schema.add({.path = "training.num_threads",
              .field = &training.num_threads,
              .doc = "CPU threads; 0: OMP_NUM_THREADS where it is set, else one for each core.",
              .minimum = 0,
              .maximum = 4096});
  schema.add({.path = "training.seed",
              .field = &training.seed,
              .doc = "Seed of the initial weights and of the order of the data.",
              .minimum = 0});
  schema.add({.path = "training.loss_chunk_mib",
              .field = &training.loss_chunk_mib,
              .doc = "Bound on the logits that exist at once, in MiB.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "training.max_rejected_steps",
              .field = &training.max_rejected_steps,
              .doc = "Steps in a row with a loss or gradient that is not finite, after which the "
                     "run stops.",
              .minimum = 1});
}

void add_optimizer_keys(Schema& schema, OptimizerSection& optimizer) {
  schema.add({.path = "optimizer.lr",
              .field = &optimizer.lr,
              .doc = "Highest learning rate of AdamW, reached after the warm-up.",
              .minimum = 0});
  schema.add({.path = "optimizer.beta1",
              .field = &optimizer.beta1,
              .doc = "Decay of AdamW's mean of the gradient.",
              .minimum = 0,
              .maximum = 1,
              .maximum_exclusive = true});
  schema.add({.path = "optimizer.beta2",
              .field = &optimizer.beta2,
              .doc = "Decay of AdamW's mean of the squared gradient.",
              .minimum = 0,
              .maximum = 1,
              .maximum_exclusive = true});
  schema.add({.path = "optimizer.eps",
              .field = &optimizer.eps,
              .doc = "Added to AdamW's denominator.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "optimizer.weight_decay",
              .field = &optimizer.weight_decay,
              .doc = "Decoupled weight decay, times the learning rate, of matrices; 0: off.",
              .minimum = 0});
}

void add_lr_scheduler_keys(Schema& schema, LrSchedulerSection& scheduler) {
  schema.add(
      {.path = "lr_scheduler.warmup_steps",
       .field = &scheduler.warmup_steps,
       .doc = "Steps of linear warm-up; more than training.steps count as training.steps; 0: none.",
       .minimum = 0,
       .maximum = kMaxSteps});
  schema.add({.path = "lr_scheduler.decay_ratio",
              .field = &scheduler.decay_ratio,
              .doc = "Share of training.steps, at the end, that decays; 0: none.",
              .minimum = 0,
              .maximum = 1});
  schema.add({.path = "lr_scheduler.decay_type",
              .field = &scheduler.decay_type,
              .doc = "Shape of the decay.",
              .choices = {"linear", "sqrt", "cosine"}});
  schema.add({.path = "lr_scheduler.min_lr_factor",
              .field = &scheduler.min_lr_factor,
              .doc = "Learning rate at the end, as a share of optimizer.lr.",
              .minimum = 0,
              .maximum = 1});
}

void add_data_keys(Schema& schema, DataSection& data) {
  schema.add({.path = "data.path",
              .field = &data.path,
              .doc = "Files to train on: text, JSONL, folders of amoeba data prepare, Megatron's "
                     ".bin/.idx, .npy, llm.c shards, .u16, .u32."});
  schema.add({.path = "data.weights",
              .field = &data.weights,
              .doc = "Share of each file of data.path, in any unit; empty: by size.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "data.tokenizer",
              .field = &data.tokenizer,
              .doc = "How text becomes tokens: bytes (one token a byte), or the path of a "
                     "tokenizer.json."});
  schema.add({.path = "data.document_separator",
              .field = &data.document_separator,
              .doc = "Text between the documents of a file; empty: a file is one document."});
  schema.add({.path = "data.validation_fraction",
              .field = &data.validation_fraction,
              .doc = "Last part of each file, as a share, that is kept for validation; 0: none.",
              .minimum = 0,
              .maximum = 1,
              .maximum_exclusive = true});
}

void add_validation_keys(Schema& schema, ValidationSection& validation) {
  schema.add({.path = "validation.interval",
              .field = &validation.interval,
              .doc = "Steps between validations; 0: only at the end.",
              .minimum = 0});
  schema.add({.path = "validation.max_windows",
              .field = &validation.max_windows,
              .doc = "Most windows of training.seq_len tokens in a validation; 0: all.",
              .minimum = 0});
}

void add_checkpoint_keys(Schema& schema, CheckpointSection& checkpoint) {
  schema.add({.path = "checkpoint.enable",
              .field = &checkpoint.enable,
              .doc = "Whether checkpoints are saved."});
  schema.add({.path = "checkpoint.interval",
              .field = &checkpoint.interval,
              .doc = "Steps between checkpoints; 0: only at the end.",
              .minimum = 0});
  schema.add({.path = "checkpoint.resume",
              .field = &checkpoint.resume,
              .doc =
                  "What to continue: none, auto (the newest checkpoint in run.folder, if any) or "
                  "a checkpoint's folder."});
  schema.add({.path = "checkpoint.keep_latest_k",
              .field = &checkpoint.keep_latest_k,
              .doc = "Checkpoints to keep, the newest, 2 or more; 0: all.",
              .minimum = 0});
}

void add_output_keys(Schema& schema, MetricsSection& metrics, SampleSection& sample) {
  schema.add({.path = "metrics.log_interval",
              .field = &metrics.log_interval,
              .doc = "Steps between lines of output; 0: only the first and the last step.",
              .minimum = 0});
  schema.add({.path = "metrics.report",
              .field = &metrics.report,
              .doc = "Whether the run ends with a report, report.html in run.folder."});
  schema.add({.path = "sample.prompt",
              .field = &sample.prompt,
              .doc = "Start of the text that the trained model continues; empty: no sample."});
  schema.add({.path = "sample.num_tokens",
              .field = &sample.num_tokens,
              .doc = "Tokens of the sample.",
              .minimum = 0,
              .maximum = 1 << 24});
  schema.add({.path = "sample.temperature",
              .field = &sample.temperature,
              .doc = "Divides the logits before a token is drawn; 0: always the likeliest token.",
              .minimum = 0});
  schema.add({.path = "sample.seed",
              .field = &sample.seed,
              .doc = "Seed of the sample's draws.",
              .minimum = 0});
}

// The names of the padded backends changed more than once in their history.
void retire_spellings(Schema& schema) {
  schema.retire(formats::RetiredKey{
      "use_grouped_mm",
      "use moe.compute_backend (auto, grouped_mm, for_loop, batched_mm_padded, ...)"});
  schema.retire(formats::RetiredChoice{"moe.compute_backend", "bmm", "use batched_mm_capacity"});
  schema.retire(
      formats::RetiredChoice{"moe.compute_backend", "bmm_nodrop", "use batched_mm_padded"});
}

// ---- Contradictions -----------------------------------------------------------------------------

void check_model(const ModelSection& model) {
  AMOEBA_CHECK(model.num_heads % model.num_kv_heads == 0, "configuration: model.num_heads is ",
               model.num_heads, " and model.num_kv_heads is ", model.num_kv_heads,
               ", want a multiple");
  AMOEBA_CHECK(model.head_dim != 0 || model.dim % model.num_heads == 0,
               "configuration: model.dim is ", model.dim, " and model.num_heads is ",
               model.num_heads, ", want a multiple, or model.head_dim set");
  AMOEBA_CHECK(model.head_dim % 2 == 0, "configuration: model.head_dim is ", model.head_dim,
               ", want an even number");
  AMOEBA_CHECK(model.head_dim != 0 || model.dim / model.num_heads % 2 == 0,
               "configuration: model.dim is ", model.dim, " and model.num_heads is ",
               model.num_heads, ", which makes heads ", model.dim / model.num_heads,
               " wide, want an even width");
}

void check_data(const DataSection& data) {
  for (size_t index = 0; index < data.path.size(); ++index) {
    AMOEBA_CHECK(!data.path[index].empty(), "configuration: data.path[", index,
                 "] is empty, want the path of a file");
  }
  AMOEBA_CHECK(
      !data.tokenizer.empty(),
      "configuration: data.tokenizer is empty, want bytes or the path of a tokenizer.json");
  AMOEBA_CHECK(data.weights.empty() || data.weights.size() == data.path.size(),
               "configuration: data.weights has ", data.weights.size(), " and data.path has ",
               data.path.size(), " elements, want one weight for each file");
}

void check_checkpoint(const CheckpointSection& checkpoint) {
  AMOEBA_CHECK(checkpoint.keep_latest_k != 1,
               "configuration: checkpoint.keep_latest_k is 1: 0 keeps all, 2 or more keep the "
               "latest");
  AMOEBA_CHECK(!checkpoint.resume.empty(),
               "configuration: checkpoint.resume is empty, want none, "
               "auto or a checkpoint's folder");
  AMOEBA_CHECK(checkpoint.enable || checkpoint.resume == "none",
               "configuration: checkpoint.resume is '", checkpoint.resume,
               "' and checkpoint.enable is false, want true to resume");
}

}  // namespace

formats::Schema make_schema(RunConfig& config) {
  Schema schema;
  schema.add({.path = "run.folder",
              .field = &config.run.folder,
              .doc = "Folder of the run: checkpoints, metrics, report."});
  add_model_keys(schema, config.model);
  add_moe_keys(schema, config.moe);
  add_training_keys(schema, config.training);
  add_optimizer_keys(schema, config.optimizer);
  add_lr_scheduler_keys(schema, config.lr_scheduler);
  add_data_keys(schema, config.data);
  add_validation_keys(schema, config.validation);
  add_checkpoint_keys(schema, config.checkpoint);
  add_output_keys(schema, config.metrics, config.sample);
  retire_spellings(schema);
  return schema;
}

void check_config(const RunConfig& config) {
  RunConfig copy = config;  // the schema wants fields it could write
  make_schema(copy).check();

  AMOEBA_CHECK(!config.run.folder.empty(), "configuration: run.folder is empty, want a path");
  check_model(config.model);
  AMOEBA_CHECK(config.moe.top_k <= config.moe.num_experts, "configuration: moe.top_k is ",
               config.moe.top_k, " and moe.num_experts is ", config.moe.num_experts,
               ", want no more than there are experts");
  const int64_t local = config.training.local_batch_size;
  const int64_t global = config.training.global_batch_size;
  AMOEBA_CHECK(global % local == 0, "configuration: training.global_batch_size is ", global,
               " and training.local_batch_size is ", local, ", want a multiple");
  check_data(config.data);
  check_checkpoint(config.checkpoint);
}

}  // namespace amoeba::train
