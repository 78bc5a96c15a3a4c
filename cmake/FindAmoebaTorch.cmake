# Finds LibTorch inside an installed torch wheel without torch's own CMake package, which stops with
# a fatal error when the wheel is a CUDA build and no CUDA toolkit is installed.
#
# Input:  AMOEBA_TORCH_ROOT, the wheel's `torch` folder (holds include/ and lib/); when unset, the
#         Python named by AMOEBA_PYTHON is asked where its torch is.
# Output: targets amoeba::torch and amoeba::torch_stable (the stable ABI alone); AMOEBA_TORCH_FOLDER,
#         AMOEBA_TORCH_VERSION, AMOEBA_TORCH_HAS_CUDA.
set(AMOEBA_TORCH_ROOT "" CACHE PATH "torch folder of the wheel to build against; empty: AMOEBA_PYTHON's")
set(AMOEBA_TORCH_FOLDER "${AMOEBA_TORCH_ROOT}")
# Asked at every configuration, so that another wheel put into that Python is noticed. -I looks past the
# PYTHONPATH of pip's isolated builds, which hides the environment that pip installs into.
foreach(isolated IN ITEMS "" "-I")
  if(NOT AMOEBA_TORCH_FOLDER)
    execute_process(
      COMMAND "${AMOEBA_PYTHON}" ${isolated} -c
        "import importlib.util as u; s = u.find_spec('torch'); print(list(s.submodule_search_locations)[0] if s else '')"
      OUTPUT_VARIABLE AMOEBA_TORCH_FOLDER OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
endforeach()
if(NOT EXISTS "${AMOEBA_TORCH_FOLDER}/include/ATen/core/Tensor.h")
  message(FATAL_ERROR "torch: no LibTorch headers under '${AMOEBA_TORCH_FOLDER}' (AMOEBA_PYTHON is '${AMOEBA_PYTHON}'). "
    "Install torch >= 2.11 with pip and set AMOEBA_PYTHON, or set AMOEBA_TORCH_ROOT to the wheel's torch folder; "
    "for a package build, add --no-build-isolation.")
endif()

file(STRINGS "${AMOEBA_TORCH_FOLDER}/version.py" version_line REGEX "^__version__ = ")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" AMOEBA_TORCH_VERSION "${version_line}")
if(AMOEBA_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "torch: found '${AMOEBA_TORCH_VERSION}' in ${AMOEBA_TORCH_FOLDER}, want 2.11 or later")
endif()
set(AMOEBA_TORCH_HAS_CUDA FALSE)
if(EXISTS "${AMOEBA_TORCH_FOLDER}/lib/libtorch_cuda.so")
  set(AMOEBA_TORCH_HAS_CUDA TRUE)
endif()
message(STATUS "torch ${AMOEBA_TORCH_VERSION} (CUDA wheel: ${AMOEBA_TORCH_HAS_CUDA}) in ${AMOEBA_TORCH_FOLDER}")

# Only headers of the stable ABI compile, and the result runs on torch 2.11 and later. libtorch_cpu is
# named because Python loads torch's libraries with local symbols.
add_library(amoeba_torch_stable INTERFACE)
add_library(amoeba::torch_stable ALIAS amoeba_torch_stable)
target_include_directories(amoeba_torch_stable SYSTEM INTERFACE "${AMOEBA_TORCH_FOLDER}/include")
target_compile_definitions(amoeba_torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_directories(amoeba_torch_stable INTERFACE "${AMOEBA_TORCH_FOLDER}/lib")
target_link_libraries(amoeba_torch_stable INTERFACE "-Wl,--push-state,--no-as-needed,-ltorch_cpu,--pop-state")

add_library(amoeba_torch INTERFACE)
add_library(amoeba::torch ALIAS amoeba_torch)
target_include_directories(amoeba_torch SYSTEM INTERFACE
  "${AMOEBA_TORCH_FOLDER}/include" "${AMOEBA_TORCH_FOLDER}/include/torch/csrc/api/include")
target_compile_definitions(amoeba_torch INTERFACE AT_PER_OPERATOR_HEADERS)
target_link_directories(amoeba_torch INTERFACE "${AMOEBA_TORCH_FOLDER}/lib")
# libtorch.so alone drags the right back ends in: its NEEDED entries differ between CPU and CUDA wheels,
# and the linker must keep it although no symbol is taken from it directly. (One item: CMake moves
# flags of their own away from the libraries they are meant for.) The C++ library is looked up first:
# CUDA wheels carry parts of an older one, whose std::filesystem crashes.
target_link_libraries(amoeba_torch INTERFACE
  "-Wl,--push-state,--no-as-needed,-lstdc++,-ltorch,-ltorch_cpu,-lc10,--pop-state")
if(AMOEBA_TORCH_HAS_CUDA)
  # The wheel's CUDA libraries need NVIDIA's, which exist only where torch runs on a GPU.
  target_link_options(amoeba_torch INTERFACE
    -Wl,--allow-shlib-undefined -Wl,--unresolved-symbols=ignore-in-shared-libs)
endif()
