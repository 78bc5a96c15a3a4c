// The tokens that may be drawn, for comparison with another implementation: a JSON object a line on
// standard input, {"logits": [...], "temperature", "top_k", "top_p"}, gives the kept ids as one
// line.
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "formats/value.h"
#include "train/plain/sampler.h"

int main() {
  using namespace amoeba;
  constexpr const char* kWhat = "sampler_driver";
  for (std::string line; std::getline(std::cin, line);) {
    const formats::Value json = formats::parse_json(line, kWhat);
    std::vector<float> logits;
    for (const formats::Value& value : json.array_at("logits", kWhat)) {
      logits.push_back(static_cast<float>(*value.get_if<double>()));
    }
    const train::SamplingOptions options{json.number_at("temperature", kWhat),
                                         json.integer_at("top_k", kWhat),
                                         json.number_at("top_p", kWhat)};
    for (const train::Candidate& token : train::kept_tokens(logits, options)) {
      std::cout << token.id << ' ';
    }
    std::cout << '\n';
  }
  return 0;
}
