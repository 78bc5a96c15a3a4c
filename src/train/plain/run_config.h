// Every setting of a run: plain structs, one a section of the configuration file, with the
// defaults. Documentation, ranges and retired spellings of the keys: run_config.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/config.h"

namespace amoeba::train {

struct RunSection {
  std::string folder = "runs/amoeba";  // checkpoints, metrics and report go here
  double max_wall_minutes = 0;         // of the process; 0: no limit
  double stop_margin_seconds = 60;     // kept free before that limit
};

struct ModelSection {
  std::string from;              // folder whose weights training starts from; empty: random ones
  std::string upcycle = "none";  // none | copy | granular
  int64_t vocab_size = 0;        // 0: the tokenizer's, rounded up to a multiple of 8
  int64_t dim = 128;
  int64_t num_layers = 4;
  int64_t num_dense_layers = 0;   // the first ones, without experts
  int64_t dense_hidden_dim = 0;   // hidden width of a dense layer
  std::string attention = "gqa";  // gqa | mla
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 0;        // 0: dim / num_heads
  int64_t sliding_window = 0;  // gqa: tokens that a token sees; 0: all before it
  bool qk_norm = false;
  std::string qk_norm_scope = "head";  // head | projection
  int64_t q_lora_rank = 0;             // this and the next four: mla only; 0: no low-rank query
  int64_t kv_lora_rank = 512;
  int64_t qk_nope_head_dim = 128;
  int64_t qk_rope_head_dim = 64;
  int64_t v_head_dim = 128;
  double rope_theta = 10000.0;
  std::string rope_type = "yarn";  // yarn | linear | llama3
  double rope_factor = 1.0;        // 1: none
  double rope_beta_fast = 32.0;
  double rope_beta_slow = 1.0;
  int64_t rope_original_seq_len = 4096;
  int64_t rope_max_seq_len = 0;  // 0: training.seq_len
  double rope_mscale = 1.0;
  double rope_attention_factor = 1.0;
  bool rope_truncate = true;
  double norm_eps = 1e-5;
  double latent_norm_eps = 0.0;  // mla; 0: norm_eps
  bool tie_embeddings = true;
  double init_std = 0.02;           // of the linear maps
  double embedding_init_std = 0.0;  // 0: 0.02 when tied, 1 when not
};

struct MoeSection {
  int64_t num_experts = 8;
  int64_t top_k = 2;
  int64_t hidden_dim = 128;        // of one expert
  int64_t num_shared_experts = 1;  // one FFN of width num_shared_experts * hidden_dim
  bool route_norm = true;          // selected scores sum to 1
  double route_scale = 1.0;
  std::string score_function = "softmax";  // softmax | sigmoid
  int64_t num_groups = 0;                  // node-limited routing; 0: off
  int64_t num_limited_groups = 0;
  std::string group_score = "best_two";  // best_two | best
  bool force_balance = false;            // benchmarks: round-robin ids
  bool score_before_experts = false;
  double balance_coeff = 1e-3;   // step of the bias balancing; 0: off
  double aux_loss_coeff = 1e-2;  // auxiliary load-balance loss; 0: off
  double z_loss_coeff = 0.0;     // router z-loss; 0: off
  std::string compute_backend = "auto";
  double capacity_factor = 1.25;  // batched_mm_capacity only
};

struct TrainingSection {
  int64_t steps = 500;
  int64_t seq_len = 256;
  int64_t local_batch_size = 16;  // sequences of one micro-batch
  int64_t global_batch_size = 0;  // sequences of one step; 0: local_batch_size
  int64_t batch_ramp_start = 0;   // sequences of the first step; 0: no ramp
  int64_t batch_ramp_steps = 0;   // steps until global_batch_size
  double max_norm = 1.0;          // global gradient norm clip; 0: off
  std::string dtype = "float32";  // of the computation; masters are float32
  std::string device = "auto";    // auto | cpu | cuda
  bool cuda_graph = true;         // steps of one shape are replayed on a card
  int64_t num_threads = 0;        // 0: all cores
  int64_t seed = 1;
  int64_t loss_chunk_mib = 0;       // bound on the logits that exist at once; 0: by device
  int64_t max_rejected_steps = 10;  // in a row before the run stops
  std::string activation_checkpoint = "none";  // none | full | selective
};

struct GuardSection {
  bool enable = true;  // off: only steps that are not finite are rejected
  int64_t window = 128;
  double loss_threshold = 8.0;  // this and the next: median absolute deviations above the median
  double grad_norm_threshold = 30.0;
  double cold_loss = 100.0;  // this and the next: limits until the window is full
  double cold_grad_norm = 1e5;
  int64_t max_skips = 5;
  int64_t skip_interval = 1000;
  int64_t max_rollbacks = 3;
};

struct OptimizerSection {
  double lr = 3e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

struct LrSchedulerSection {
  int64_t warmup_steps = 30;
  double decay_ratio = 0.8;           // share of the steps that decay
  std::string decay_type = "linear";  // linear | sqrt | cosine
  double min_lr_factor = 0.1;
};

struct DataSection {
  std::vector<std::string> path;    // text files
  std::vector<double> weights;      // one a file; empty: by size
  std::string tokenizer = "bytes";  // or the path of a tokenizer.json
  std::string document_separator;
  double validation_fraction = 0.05;  // the last part of each file
};

struct ValidationSection {
  int64_t interval = 100;   // steps; 0: only at the end
  int64_t max_windows = 0;  // 0: all
};

struct CheckpointSection {
  bool enable = true;
  int64_t interval = 500;       // steps; 0: only at the end
  std::string resume = "none";  // none | auto | a checkpoint folder
  int64_t keep_latest_k = 0;    // 0: keep all; 1 is refused
  int64_t keep_every = 0;       // multiples of these steps are never removed; 0: none
  bool save_first_step = false;
  bool last_save_model_only = false;     // no optimizer in the last one
  std::string export_dtype = "float32";  // of the weights in that one
  std::string async_mode = "disabled";   // disabled | async
};

struct MetricsSection {
  int64_t log_interval = 10;
  bool report = true;
  bool tensorboard = false;
};

struct ProfilingSection {
  int64_t start_step = 3;  // the first one traced, from 1
  int64_t num_steps = 0;   // 0: off
};

struct SampleSection {
  std::string prompt;  // empty: no sample at the end of training
  int64_t num_tokens = 200;
  double temperature = 0.8;
  int64_t seed = 1;
};

struct RunConfig {
  RunSection run;
  ModelSection model;
  MoeSection moe;
  TrainingSection training;
  GuardSection guard;
  OptimizerSection optimizer;
  LrSchedulerSection lr_scheduler;
  DataSection data;
  ValidationSection validation;
  CheckpointSection checkpoint;
  MetricsSection metrics;
  ProfilingSection profiling;
  SampleSection sample;
};

// The schema over `config`'s fields; `config` must outlive it and stay where it is.
formats::Schema make_schema(RunConfig& config);

// Contradictions between keys: Error(kUsage) that names both keys with their values.
void check_config(const RunConfig& config);

}  // namespace amoeba::train
