// The backends' entries in the table of experts.cpp; contract: ExpertBackend in amoeba/experts.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "amoeba/experts.h"

namespace amoeba::nn {

at::Tensor run_for_loop(const at::Tensor& x, const at::Tensor& counts, const ExpertWeights& weights,
                        const ExpertOptions& options, ExpertStats& stats);
at::Tensor run_grouped_mm(const at::Tensor& x, const at::Tensor& counts,
                          const ExpertWeights& weights, const ExpertOptions& options,
                          ExpertStats& stats);
at::Tensor run_batched_mm_padded(const at::Tensor& x, const at::Tensor& counts,
                                 const ExpertWeights& weights, const ExpertOptions& options,
                                 ExpertStats& stats);
at::Tensor run_batched_mm_capacity(const at::Tensor& x, const at::Tensor& counts,
                                   const ExpertWeights& weights, const ExpertOptions& options,
                                   ExpertStats& stats);

at::Tensor run_fused_rows(const at::Tensor& x, const at::Tensor& counts,
                          const ExpertWeights& weights, const ExpertOptions& options,
                          ExpertStats& stats);
at::Tensor run_fused_tokens(const ExpertTokens& tokens, const ExpertParameters& parameters,
                            ExpertStats& stats, const at::Tensor& error_word);

// "" or the reason, as ExpertBackend::supports.
std::string supports_any(const ExpertProblem& problem);
std::string supports_fused(const ExpertProblem& problem);
std::string supports_grouped_mm(const ExpertProblem& problem);

// As ExpertBackend::auto_refuses.
std::string auto_refuses_fused(const ExpertProblem& problem);

}  // namespace amoeba::nn
