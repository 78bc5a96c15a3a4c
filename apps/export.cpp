#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/text.h"
#include "train/export.h"
#include "train/load_model.h"

namespace amoeba::apps {

int run_export(const Arguments& arguments) {
  std::string to, checkpoint, out, family, dtype = "float32", shard_bytes;
  const Command command{
      "export",
      "Writes a trained model as a Hugging Face folder: config.json, safetensors, tokenizer.json.",
      {{"--to", "hf: a family of transformers; origin: one of the origin's own layouts", nullptr,
        &to},
       {"--checkpoint",
        "run folder (its newest checkpoint), one checkpoint's or a Hugging Face one", nullptr,
        &checkpoint},
       {"--out", "folder to write; must not exist", nullptr, &out},
       {"--family", "model_type to write; default: the one that the model's settings fit", nullptr,
        &family},
       {"--dtype", "float32, bfloat16 or float16 (default float32)", nullptr, &dtype},
       {"--max-shard-bytes", "bytes of a weights file (default 5 GiB)", nullptr, &shard_bytes}}};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(to == "hf" || to == "origin", "export: --to is '", printable(to),
               "', want hf or origin");
  AMOEBA_CHECK(!checkpoint.empty(), "export: --checkpoint is missing, want a run's folder");
  AMOEBA_CHECK(!out.empty(), "export: --out is missing, want a new folder");

  train::Progress progress = terminal_progress();
  PosixFileSystem files;
  train::LoadModelOptions on_cpu;
  on_cpu.device = "cpu";
  train::LoadedModel loaded = train::load_model(files, checkpoint, on_cpu, terminal_log(progress));
  train::ExportOptions options;
  options.dtype = dtype;
  if (!shard_bytes.empty()) options.max_shard_bytes = to_integer("--max-shard-bytes", shard_bytes);
  if (!family.empty()) {
    options.family = train::family_of(family, "export: --family", ErrorKind::kUsage);
  } else {
    options.family = to == "hf" ? train::fitting_family(loaded.config)
                                : train::fitting_origin_family(loaded.config);
  }
  train::export_hugging_face(files, *loaded.model, loaded.config, *loaded.tokenizer, options, out);
  std::printf("%s: %s, %s parameters, %s\n", out.c_str(),
              std::string(train::model_type(options.family)).c_str(),
              format_count(loaded.model->store().numel()).c_str(), dtype.c_str());
  return 0;
}

}  // namespace amoeba::apps
