# amoeba_unicode_tables(TARGET): adds the character tables that src/formats/unicode.h declares, made
# by AMOEBA_PYTHON while configuring.
function(amoeba_unicode_tables target)
  set(script "${CMAKE_SOURCE_DIR}/scripts/unicode_tables.py")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${script}")
  execute_process(COMMAND "${AMOEBA_PYTHON}" "${script}"
    OUTPUT_VARIABLE source RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "unicode_tables: '${AMOEBA_PYTHON} ${script}' failed, want a Python 3")
  endif()

  # Written only when it differs, so that configuring again does not compile again.
  set(path "${CMAKE_CURRENT_BINARY_DIR}/unicode_tables.cpp")
  file(CONFIGURE OUTPUT "${path}" CONTENT "${source}" @ONLY)
  target_sources(${target} PRIVATE "${path}")
endfunction()
