// The weights that model.from gives a new run: of a Hugging Face folder or of a checkpoint, as they
// are or with dense networks made into experts.
#pragma once

#include "amoeba/model.h"
#include "base/file_system.h"
#include "base/log.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// Loads them into the model that `config` describes; nothing when model.from is empty.
//
// With model.upcycle "copy" (Komatsuzaki et al. 2022, arXiv 2212.05055) every expert is the dense
// network; with "granular" (He et al. 2024, arXiv 2410.07524) it is one of G slices of it, G =
// dense width / expert width, neighbouring experts are the slices of one copy, and the rows of the
// router are equal within such a group, so that a token goes to whole groups. The weights of the
// output map are multiplied by G / moe.route_scale, so that the sum over a token's experts is what
// the dense network gives.
void load_start_weights(FileSystem& files, const RunConfig& config, nn::Model& model,
                        const LogSink& log);

}  // namespace amoeba::train
