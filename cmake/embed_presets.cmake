# amoeba_embed_presets(TARGET): puts every configs/*.toml into TARGET as text, in the table that
# src/train/plain/config_layers.h declares. Written while configuring; a changed, new or removed
# preset configures again.
function(amoeba_embed_presets target)
  file(GLOB presets CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/configs/*.toml")  # sorted
  if(NOT presets)
    message(FATAL_ERROR "embed_presets: no configs/*.toml in ${CMAKE_SOURCE_DIR}, want at least one")
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${presets})

  set(entries "")
  foreach(preset IN LISTS presets)
    get_filename_component(name "${preset}" NAME_WE)
    file(READ "${preset}" text)
    string(APPEND entries "    {\"${name}\", R\"preset(${text})preset\"},\n")
  endforeach()
  set(source "// Generated from configs/*.toml by cmake/embed_presets.cmake.
#include \"train/plain/config_layers.h\"

namespace amoeba::train {

std::span<const PresetFile> preset_files() {
  static constexpr PresetFile kPresets[] = {
${entries}  };
  return kPresets;
}

}  // namespace amoeba::train
")

  # Written only when it differs, so that configuring again does not compile again.
  set(path "${CMAKE_CURRENT_BINARY_DIR}/presets.cpp")
  set(before "")
  if(EXISTS "${path}")
    file(READ "${path}" before)
  endif()
  if(NOT before STREQUAL source)
    file(WRITE "${path}" "${source}")
  endif()
  target_sources(${target} PRIVATE "${path}")
endfunction()
