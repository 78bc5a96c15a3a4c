// The one list of Amoeba's keys: what each means, its range, and the spellings that came before it.
#include "train/plain/run_config.h"

#include <algorithm>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/plain/schedule.h"

namespace amoeba::train {
namespace {

using formats::Key;
using formats::Schema;

// Bounds of sizes, far above any run: products of a few of them stay inside 64 bits.
constexpr double kMaxSize = 1 << 20;
constexpr double kMaxSteps = 1e9;

// ---- Keys ---------------------------------------------------------------------------------------

void add_model_keys(Schema& schema, ModelSection& model) {
  schema.add({.path = "model.from",
              .field = &model.from,
              .doc = "What training starts from: a Hugging Face folder, a run's folder or a "
                     "checkpoint's, which sets model and moe too; empty: random weights."});
  schema.add({.path = "model.upcycle",
              .field = &model.upcycle,
              .doc = "How the dense networks of model.from become experts; copy: each expert is "
                     "the network; granular: each is a slice of it; none: model.from has its "
                     "layers already.",
              .choices = {"none", "copy", "granular"}});
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
  schema.add(
      {.path = "model.num_dense_layers",
       .field = &model.num_dense_layers,
       .doc = "Layers, the first ones, with a dense feed-forward network in place of experts.",
       .minimum = 0,
       .maximum = 10000});
  schema.add({.path = "model.dense_hidden_dim",
              .field = &model.dense_hidden_dim,
              .doc = "Hidden width of that network; wanted with model.num_dense_layers.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "model.attention",
              .field = &model.attention,
              .doc = "Kind of attention; gqa: grouped-query; mla: multi-head latent, keys and "
                     "values from one narrow vector a token.",
              .choices = {"gqa", "mla"}});
  schema.add({.path = "model.num_heads",
              .field = &model.num_heads,
              .doc = "Query heads of the attention; with mla all heads.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.num_kv_heads",
              .field = &model.num_kv_heads,
              .doc = "gqa: key and value heads; divides model.num_heads.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.head_dim",
              .field = &model.head_dim,
              .doc = "gqa: width of one head, even; 0: model.dim / model.num_heads.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "model.sliding_window",
              .field = &model.sliding_window,
              .doc =
                  "gqa: a token attends to itself and to the tokens before it, this many in all; "
                  "0: to all of them.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add(
      {.path = "model.qk_norm",
       .field = &model.qk_norm,
       .doc = "gqa: normalises each query and key head (RMSNorm) before the rotary embedding."});
  schema.add({.path = "model.qk_norm_scope",
              .field = &model.qk_norm_scope,
              .doc = "What model.qk_norm normalises: head, each head by itself, or projection, all "
                     "heads of a token together.",
              .choices = {"head", "projection"}});
  schema.add({.path = "model.q_lora_rank",
              .field = &model.q_lora_rank,
              .doc = "mla: width that queries pass through; 0: straight from the hidden state.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "model.kv_lora_rank",
              .field = &model.kv_lora_rank,
              .doc = "mla: width of the vector that keys and values come from.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.qk_nope_head_dim",
              .field = &model.qk_nope_head_dim,
              .doc = "mla: width of the part of a query or key head that is not rotated.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.qk_rope_head_dim",
              .field = &model.qk_rope_head_dim,
              .doc = "mla: width of the rotated part, even; all heads share one such key.",
              .minimum = 2,
              .maximum = kMaxSize});
  schema.add({.path = "model.v_head_dim",
              .field = &model.v_head_dim,
              .doc = "mla: width of a value head.",
              .minimum = 1,
              .maximum = kMaxSize});
  schema.add({.path = "model.rope_theta",
              .field = &model.rope_theta,
              .doc = "Base of the rotary embedding's wave lengths.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.rope_type",
              .field = &model.rope_type,
              .doc = "How model.rope_factor stretches the rotary embedding; yarn: when "
                     "model.rope_max_seq_len is more than model.rope_original_seq_len; linear: all "
                     "frequencies are divided by it; llama3: as Llama 3.1.",
              .choices = {"yarn", "linear", "llama3"}});
  schema.add({.path = "model.rope_factor",
              .field = &model.rope_factor,
              .doc = "Stretches the rotary embedding to longer sequences; 1: off.",
              .minimum = 1});
  schema.add({.path = "model.rope_beta_fast",
              .field = &model.rope_beta_fast,
              .doc = "yarn, llama3: frequencies that turn more often than this within "
                     "model.rope_original_seq_len are kept.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.rope_beta_slow",
              .field = &model.rope_beta_slow,
              .doc = "yarn, llama3: frequencies that turn less often than this are divided by "
                     "model.rope_factor; a ramp between.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.rope_original_seq_len",
              .field = &model.rope_original_seq_len,
              .doc = "yarn, llama3: length that is not stretched.",
              .minimum = 1,
              .maximum = 1 << 24});
  schema.add(
      {.path = "model.rope_max_seq_len",
       .field = &model.rope_max_seq_len,
       .doc = "Length the model is meant for, at least training.seq_len; 0: training.seq_len.",
       .minimum = 0,
       .maximum = 1 << 24});
  schema.add({.path = "model.rope_mscale",
              .field = &model.rope_mscale,
              .doc = "yarn with mla: the attention scale is multiplied by (0.1 * this * "
                     "ln(model.rope_factor) + 1)^2.",
              .minimum = 0});
  schema.add({.path = "model.rope_attention_factor",
              .field = &model.rope_attention_factor,
              .doc = "yarn: of the rotary embedding's sines and cosines where it is stretched.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.rope_truncate",
              .field = &model.rope_truncate,
              .doc = "yarn: the ramp between both bounds starts and ends at whole frequencies."});
  schema.add({.path = "model.norm_eps",
              .field = &model.norm_eps,
              .doc = "Added to the mean square in every RMSNorm.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "model.latent_norm_eps",
              .field = &model.latent_norm_eps,
              .doc = "mla: the same in the norms of the narrow vectors; 0: model.norm_eps.",
              .minimum = 0});
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
  schema.add({.path = "moe.score_function",
              .field = &moe.score_function,
              .doc = "From router logits to scores.",
              .choices = {"softmax", "sigmoid"}});
  schema.add({.path = "moe.num_groups",
              .field = &moe.num_groups,
              .doc = "Groups of neighbouring experts, of which a token may use "
                     "moe.num_limited_groups; 0: no groups.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add(
      {.path = "moe.num_limited_groups",
       .field = &moe.num_limited_groups,
       .doc = "Groups, the best, that the experts of a token come from; 0 without moe.num_groups.",
       .minimum = 0,
       .maximum = kMaxSize});
  schema.add({.path = "moe.group_score",
              .field = &moe.group_score,
              .doc = "What ranks a group: the sum of its best_two scores, or its best one.",
              .choices = {"best_two", "best"}});
  schema.add(
      {.path = "moe.force_balance",
       .field = &moe.force_balance,
       .doc = "Sends tokens to the experts in turn, whatever the scores; for benchmarks only."});
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
  schema.add({.path = "moe.z_loss_coeff",
              .field = &moe.z_loss_coeff,
              .doc = "Weight of the router z-loss, which keeps the router logits small; 0: off.",
              .minimum = 0});
  schema.add({.path = "moe.compute_backend",
              .field = &moe.compute_backend,
              .doc = "How the experts are computed; auto: the best that runs here.",
              .choices = {"auto", "fused", "grouped_mm", "batched_mm_padded", "batched_mm_capacity",
                          "for_loop"}});
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
  schema.add({.path = "training.batch_ramp_start",
              .field = &training.batch_ramp_start,
              .doc = "Sequences of the first step, from which steps grow to "
                     "training.global_batch_size; 0: no ramp.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "training.batch_ramp_steps",
              .field = &training.batch_ramp_steps,
              .doc = "Steps until training.global_batch_size is reached.",
              .minimum = 0,
              .maximum = kMaxSteps});
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
  schema.add({.path = "training.cuda_graph",
              .field = &training.cuda_graph,
              .doc =
                  "On a card, record a step as one CUDA graph and replay it while the shape stays "
                  "and nothing is read on the host within it."});
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
              .doc = "Bound on the logits that exist at once, in MiB; 0: 64 on the CPU, 2048 on a "
                     "card.",
              .minimum = 0,
              .maximum = kMaxSize});
  schema.add({.path = "training.max_rejected_steps",
              .field = &training.max_rejected_steps,
              .doc = "Rejected steps in a row (not finite, or a spike) after which the run stops.",
              .minimum = 1});
  schema.add({.path = "training.activation_checkpoint",
              .field = &training.activation_checkpoint,
              .doc = "What a layer keeps for backward; none: everything; full: its input only, the "
                     "layer is computed again; selective: the attention half only, the "
                     "feed-forward half is computed again.",
              .choices = {"none", "full", "selective"}});
}

void add_guard_keys(Schema& schema, GuardSection& guard) {
  schema.add({.path = "guard.enable",
              .field = &guard.enable,
              .doc = "Whether spikes are rejected, and too many rejected steps lead back to a "
                     "checkpoint; steps that are not finite are rejected always."});
  schema.add({.path = "guard.window",
              .field = &guard.window,
              .doc = "Accepted steps, the last ones, whose median and median absolute deviation "
                     "(MAD) a step is measured by.",
              .minimum = 8,
              .maximum = 1 << 16});
  schema.add({.path = "guard.loss_threshold",
              .field = &guard.loss_threshold,
              .doc =
                  "A loss more than this many MADs above the median is a spike; of normal noise 8 "
                  "are 5.4 standard deviations.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "guard.grad_norm_threshold",
              .field = &guard.grad_norm_threshold,
              .doc = "The same for the gradient norm, before clipping.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "guard.cold_loss",
              .field = &guard.cold_loss,
              .doc = "Largest loss until guard.window steps have been accepted.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "guard.cold_grad_norm",
              .field = &guard.cold_grad_norm,
              .doc = "Largest gradient norm until guard.window steps have been accepted.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "guard.max_skips",
              .field = &guard.max_skips,
              .doc = "Rejected steps within guard.skip_interval that are let pass; one more, and "
                     "the run goes back to a checkpoint.",
              .minimum = 0,
              .maximum = kMaxSteps});
  schema.add({.path = "guard.skip_interval",
              .field = &guard.skip_interval,
              .doc = "Steps in which rejected steps add up.",
              .minimum = 1,
              .maximum = kMaxSteps});
  schema.add({.path = "guard.max_rollbacks",
              .field = &guard.max_rollbacks,
              .doc = "Times that a run goes back before it ends instead.",
              .minimum = 0,
              .maximum = kMaxSteps});
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
  schema.add({.path = "checkpoint.keep_every",
              .field = &checkpoint.keep_every,
              .doc = "Checkpoints of steps that are multiples of this are never removed; 0: none.",
              .minimum = 0,
              .maximum = kMaxSteps});
  schema.add({.path = "checkpoint.save_first_step",
              .field = &checkpoint.save_first_step,
              .doc = "Saves after the first step too, so that a folder that cannot be written or a "
                     "disk that is too small shows at once."});
  schema.add({.path = "checkpoint.last_save_model_only",
              .field = &checkpoint.last_save_model_only,
              .doc = "Leaves the optimizer out of the checkpoint of the last step: for use, not to "
                     "be resumed."});
  schema.add({.path = "checkpoint.export_dtype",
              .field = &checkpoint.export_dtype,
              .doc = "Type of the weights in that last checkpoint; checkpoints to resume from keep "
                     "float32.",
              .choices = {"float32", "bfloat16", "float16"}});
  schema.add({.path = "checkpoint.async_mode",
              .field = &checkpoint.async_mode,
              .doc =
                  "async: copies the state and writes the copy while training goes on; disabled: "
                  "training waits.",
              .choices = {"disabled", "async"}});
}

void add_metrics_keys(Schema& schema, MetricsSection& metrics) {
  schema.add({.path = "metrics.log_interval",
              .field = &metrics.log_interval,
              .doc = "Steps between lines of output; 0: only the first and the last step.",
              .minimum = 0});
  schema.add({.path = "metrics.report",
              .field = &metrics.report,
              .doc = "Whether the run ends with a report, report.html in run.folder."});
  schema.add({.path = "metrics.tensorboard",
              .field = &metrics.tensorboard,
              .doc = "Whether scalars are written for TensorBoard, in run.folder/tensorboard."});
}

void add_profiling_keys(Schema& schema, ProfilingSection& profiling) {
  schema.add({.path = "profiling.start_step",
              .field = &profiling.start_step,
              .doc = "First step that is traced, counted from 1.",
              .minimum = 1,
              .maximum = kMaxSteps});
  schema.add({.path = "profiling.num_steps",
              .field = &profiling.num_steps,
              .doc = "Steps to trace, each a file in run.folder/traces; 0: none.",
              .minimum = 0,
              .maximum = kMaxSteps});
}

void add_sample_keys(Schema& schema, SampleSection& sample) {
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

void add_run_keys(Schema& schema, RunSection& run) {
  schema.add({.path = "run.folder",
              .field = &run.folder,
              .doc = "Folder of the run: checkpoints, metrics, report."});
  schema.add({.path = "run.max_wall_minutes",
              .field = &run.max_wall_minutes,
              .doc = "Minutes from the start of the program in which the run must save and end, as "
                     "a job's time limit wants it; 0: no limit.",
              .minimum = 0});
  schema.add({.path = "run.stop_margin_seconds",
              .field = &run.stop_margin_seconds,
              .doc = "Seconds of run.max_wall_minutes to leave unused, beside the time of a step "
                     "and of a save.",
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
  schema.retire(
      formats::RetiredKey{"enable_first_step_checkpoint", "use checkpoint.save_first_step"});
}

// ---- Contradictions -----------------------------------------------------------------------------

void check_grouped_query(const ModelSection& model) {
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

void check_latent(const ModelSection& model) {
  AMOEBA_CHECK(model.qk_rope_head_dim % 2 == 0, "configuration: model.qk_rope_head_dim is ",
               model.qk_rope_head_dim, ", want an even number");
  const int64_t key_dim = model.qk_nope_head_dim + model.qk_rope_head_dim;
  AMOEBA_CHECK(model.v_head_dim <= key_dim, "configuration: model.v_head_dim is ", model.v_head_dim,
               " and model.qk_nope_head_dim and model.qk_rope_head_dim make keys ", key_dim,
               " wide, want no more");
  AMOEBA_CHECK(!model.qk_norm, "configuration: model.qk_norm is true and model.attention is '",
               model.attention, "', want gqa, or no normalised heads");
  AMOEBA_CHECK(model.sliding_window == 0, "configuration: model.sliding_window is ",
               model.sliding_window, " and model.attention is '", model.attention,
               "', want gqa, or no window");
}

void check_model(const ModelSection& model, int64_t seq_len) {
  if (model.attention == "mla") {
    check_latent(model);
  } else {
    check_grouped_query(model);
  }
  AMOEBA_CHECK(model.num_dense_layers <= model.num_layers,
               "configuration: model.num_dense_layers is ", model.num_dense_layers,
               " and model.num_layers is ", model.num_layers,
               ", want no more than there are layers");
  AMOEBA_CHECK(model.num_dense_layers == 0 || model.dense_hidden_dim > 0,
               "configuration: model.num_dense_layers is ", model.num_dense_layers,
               " and model.dense_hidden_dim is ", model.dense_hidden_dim, ", want a width");
  AMOEBA_CHECK(model.rope_max_seq_len == 0 || model.rope_max_seq_len >= seq_len,
               "configuration: model.rope_max_seq_len is ", model.rope_max_seq_len,
               " and training.seq_len is ", seq_len, ", want at least that, or 0");
  AMOEBA_CHECK(model.rope_beta_fast > model.rope_beta_slow,
               "configuration: model.rope_beta_fast is ", model.rope_beta_fast,
               " and model.rope_beta_slow is ", model.rope_beta_slow, ", want more");
  AMOEBA_CHECK(
      model.rope_attention_factor == 1 || (model.rope_type == "yarn" && model.rope_factor > 1),
      "configuration: model.rope_attention_factor is ", model.rope_attention_factor,
      ", model.rope_type is '", model.rope_type, "' and model.rope_factor is ", model.rope_factor,
      ", want 1, or yarn with a factor above 1");
  // YaRN divides by ln(theta).
  AMOEBA_CHECK(model.rope_factor == 1 || model.rope_theta > 1,
               "configuration: model.rope_theta is ", model.rope_theta,
               " and model.rope_factor is ", model.rope_factor, ", want a base above 1 to stretch");
}

// Where the settings below hold, a token's weights sum to what the start weights expect, so that
// the model computes what the dense one did.
void check_upcycle(const ModelSection& model, const MoeSection& moe) {
  if (model.upcycle == "none") return;
  const auto want = [&](bool good, const char* path, const auto& got, const char* wanted) {
    AMOEBA_CHECK(good, "configuration: model.upcycle is '", model.upcycle, "' and ", path, " is ",
                 got, ", want ", wanted, ": the loss would not start at the dense model's");
  };
  want(model.num_dense_layers < model.num_layers, "model.num_dense_layers", model.num_dense_layers,
       "fewer than model.num_layers");
  want(moe.route_norm, "moe.route_norm", "false", "true");
  want(moe.num_shared_experts == 0, "moe.num_shared_experts", moe.num_shared_experts, "0");
  want(!moe.score_before_experts, "moe.score_before_experts", "true", "false");
  want(!moe.force_balance, "moe.force_balance", "true", "false");
  if (model.upcycle == "copy") {
    want(moe.hidden_dim == model.dense_hidden_dim, "moe.hidden_dim", moe.hidden_dim,
         cat(model.dense_hidden_dim, ", the dense network's").c_str());
    return;
  }
  want(model.dense_hidden_dim % moe.hidden_dim == 0 && moe.hidden_dim < model.dense_hidden_dim,
       "moe.hidden_dim", moe.hidden_dim,
       cat("a part of ", model.dense_hidden_dim, ", the dense network's").c_str());
  const int64_t slices = model.dense_hidden_dim / moe.hidden_dim;
  const std::string multiple = cat("a multiple of ", slices, ", the slices of the dense network");
  want(moe.num_experts % slices == 0, "moe.num_experts", moe.num_experts, multiple.c_str());
  want(moe.top_k % slices == 0, "moe.top_k", moe.top_k, multiple.c_str());
  want(moe.num_groups == 0, "moe.num_groups", moe.num_groups, "0");
}

void check_moe(const MoeSection& moe) {
  AMOEBA_CHECK(moe.top_k <= moe.num_experts, "configuration: moe.top_k is ", moe.top_k,
               " and moe.num_experts is ", moe.num_experts,
               ", want no more than there are experts");
  AMOEBA_CHECK((moe.num_groups == 0) == (moe.num_limited_groups == 0),
               "configuration: moe.num_groups is ", moe.num_groups,
               " and moe.num_limited_groups is ", moe.num_limited_groups, ", want both or neither");
  if (moe.num_groups == 0) return;
  AMOEBA_CHECK(moe.num_experts % moe.num_groups == 0, "configuration: moe.num_experts is ",
               moe.num_experts, " and moe.num_groups is ", moe.num_groups, ", want a multiple");
  const int64_t group_size = moe.num_experts / moe.num_groups;
  AMOEBA_CHECK(group_size >= 2, "configuration: moe.num_experts is ", moe.num_experts,
               " and moe.num_groups is ", moe.num_groups, ", want at least 2 experts a group");
  AMOEBA_CHECK(moe.num_limited_groups <= moe.num_groups,
               "configuration: moe.num_limited_groups is ", moe.num_limited_groups,
               " and moe.num_groups is ", moe.num_groups, ", want no more than there are groups");
  AMOEBA_CHECK(moe.top_k <= moe.num_limited_groups * group_size, "configuration: moe.top_k is ",
               moe.top_k, " and moe.num_limited_groups is ", moe.num_limited_groups,
               ", which hold ", moe.num_limited_groups * group_size,
               " experts, want no more than those");
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
  AMOEBA_CHECK(checkpoint.keep_every == 0 || checkpoint.interval == 0 ||
                   checkpoint.keep_every % checkpoint.interval == 0,
               "configuration: checkpoint.keep_every is ", checkpoint.keep_every,
               " and checkpoint.interval is ", checkpoint.interval,
               ", want a multiple: other steps are not saved");
  AMOEBA_CHECK(
      checkpoint.export_dtype == "float32" || checkpoint.last_save_model_only,
      "configuration: checkpoint.export_dtype is '", checkpoint.export_dtype,
      "' and checkpoint.last_save_model_only is false, want true: only that checkpoint has "
      "another type");
}

}  // namespace

formats::Schema make_schema(RunConfig& config) {
  Schema schema;
  add_run_keys(schema, config.run);
  add_model_keys(schema, config.model);
  add_moe_keys(schema, config.moe);
  add_training_keys(schema, config.training);
  add_guard_keys(schema, config.guard);
  add_optimizer_keys(schema, config.optimizer);
  add_lr_scheduler_keys(schema, config.lr_scheduler);
  add_data_keys(schema, config.data);
  add_validation_keys(schema, config.validation);
  add_checkpoint_keys(schema, config.checkpoint);
  add_metrics_keys(schema, config.metrics);
  add_profiling_keys(schema, config.profiling);
  add_sample_keys(schema, config.sample);
  retire_spellings(schema);
  return schema;
}

void check_config(const RunConfig& config) {
  RunConfig copy = config;  // the schema wants fields it could write
  make_schema(copy).check();

  AMOEBA_CHECK(!config.run.folder.empty(), "configuration: run.folder is empty, want a path");
  AMOEBA_CHECK(config.run.max_wall_minutes == 0 ||
                   60 * config.run.max_wall_minutes > config.run.stop_margin_seconds,
               "configuration: run.max_wall_minutes is ", config.run.max_wall_minutes,
               " and run.stop_margin_seconds is ", config.run.stop_margin_seconds,
               ", want more time than the margin");
  check_model(config.model, config.training.seq_len);
  check_moe(config.moe);
  check_upcycle(config.model, config.moe);
  global_batch_size(config.training, 0);  // checks its keys
  check_data(config.data);
  check_checkpoint(config.checkpoint);
  AMOEBA_CHECK(
      config.profiling.num_steps == 0 || config.profiling.start_step <= config.training.steps,
      "configuration: profiling.start_step is ", config.profiling.start_step,
      " and training.steps is ", config.training.steps, ", want a step of the run");
}

}  // namespace amoeba::train
