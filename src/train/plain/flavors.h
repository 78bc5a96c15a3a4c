// The origin's model flavors and trainer configurations, as data: rows of settings over a base row.
//
// A flavor sets keys of model.* and moe.* only. A trainer preset takes a flavor and adds batch,
// optimizer, schedule and the like.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

namespace amoeba::train {

struct Setting {
  std::string_view path;
  std::variant<bool, int64_t, double, std::string_view> value;
};

struct Flavor {
  std::string_view name;
  std::string_view base;  // the flavor it changes; empty: what all have in common
  std::string_view note;  // what sets it apart, in a few words; empty: the numbers say it
  std::vector<Setting> settings;
};

struct TrainerPreset {
  std::string_view name;  // as the origin's trainer configuration
  std::string_view flavor;
  std::string_view base;  // the preset whose training it changes; empty: what all have in common
  std::vector<Setting> settings;
};

std::span<const Flavor> flavors();
std::span<const TrainerPreset> trainer_presets();

// The row with exactly this name; nullptr when there is none.
const Flavor* find_flavor(std::string_view name);
const TrainerPreset* find_trainer_preset(std::string_view name);

// Everything a row sets, bases first: later settings of a key win.
std::vector<Setting> settings_of(const Flavor& flavor);
std::vector<Setting> settings_of(const TrainerPreset& preset);

}  // namespace amoeba::train
