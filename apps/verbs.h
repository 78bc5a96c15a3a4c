// The verbs of the `amoeba` binary, one file each. main.cpp parses and reports errors; a verb gets
// the arguments behind its name and returns the exit code.
#pragma once

#include <string>
#include <vector>

namespace amoeba::apps {

using Arguments = std::vector<std::string>;

struct Verb {
  const char* name;
  const char* summary;
  int (*run)(const Arguments& arguments);
};

int run_train(const Arguments& arguments);
int run_find_lr(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_eval(const Arguments& arguments);
int run_export(const Arguments& arguments);
int run_checkpoint(const Arguments& arguments);
int run_config(const Arguments& arguments);
int run_tokenizer(const Arguments& arguments);
int run_data(const Arguments& arguments);
int run_doctor(const Arguments& arguments);

}  // namespace amoeba::apps
