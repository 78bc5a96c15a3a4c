#!/usr/bin/env bash
# Builds the engine for a machine with a GPU on one that has none, against the CUDA wheel of torch
# 2.11, and packs all that the GPU machine lacks into build/gpu-bundle.
#
# Usage: package_gpu.sh [--torch-root DIR] [--tests]
#   --torch-root DIR  the unpacked wheel's torch folder; else downloaded to build/cuda-torch (530 MB)
#   --tests           pack the tests that use a GPU too
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
torch_requirement="torch==2.11.0"
torch_python=3.12
bundle=build/gpu-bundle
max_mib=60
gpu_tests=(test_kernels_cuda test_nn test_train)
torch_root="" with_tests=OFF
while [ $# -gt 0 ]; do
  case "$1" in
    --torch-root) torch_root=${2:?--torch-root wants a folder}; shift 2 ;;
    --tests) with_tests=ON; shift ;;
    *) die "unknown argument $1 (want --torch-root DIR or --tests)" ;;
  esac
done

fetch_torch() {
  local folder=build/cuda-torch
  torch_root=$PWD/$folder/torch
  [ ! -e "$torch_root/version.py" ] || return 0  # unpacked last
  say "downloading $torch_requirement for CUDA into $folder (530 MB)"
  .venv/bin/python -m pip download --disable-pip-version-check --no-deps "$torch_requirement" \
    --python-version "$torch_python" --only-binary=:all: --platform manylinux_2_28_x86_64 \
    -d "$folder/wheel"
  say "unpacking headers and libraries (1 GB)"
  .venv/bin/python - "$folder" <<'PYTHON'
import glob, re, sys, zipfile
[path] = glob.glob(f"{sys.argv[1]}/wheel/torch-*.whl")
wheel = zipfile.ZipFile(path)
wanted = re.compile(r"torch/(include/.*|lib/lib(c10|torch)[^/]*\.so|lib/libgomp[^/]*|version\.py)")
names = [name for name in wheel.namelist() if wanted.fullmatch(name)]
for name in sorted(names, key=lambda name: name.endswith("version.py")):
    wheel.extract(name, sys.argv[1])
PYTHON
  rm -r "$folder/wheel"
}

# The GPU machine has torch's libraries and the C++ run time; anything else must be linked statically.
check_needed() {
  local allowed='^(libamoeba_ops\.so|libtorch[a-z_]*\.so|libc10[a-z_]*\.so|lib(c|m|stdc\+\+|gcc_s|pthread)\.so\.[0-9]+|ld-linux.*)$'
  local extra
  extra=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vE "$allowed" || true)
  [ -z "$extra" ] || die "$1 needs libraries that the GPU machine may lack: $(echo $extra)"
}

# pack FILE [FOLDER of the bundle]
pack() {
  local packed
  packed=$bundle/${2:-.}/$(basename "$1")
  strip -o "$packed" "$1"
  check_needed "$packed"
}

scripts/setup.sh
[ -n "$torch_root" ] || fetch_torch
[ -e "$torch_root/lib/libtorch_cuda.so" ] || die "$torch_root is no torch folder of a CUDA wheel"
scripts/demo_text.sh

configure build/gpu -DAMOEBA_TORCH_ROOT="$torch_root" -DAMOEBA_TESTS="$with_tests" -DCMAKE_SKIP_RPATH=ON
targets=(amoeba amoeba_package)
[ "$with_tests" = OFF ] || targets+=("${gpu_tests[@]}")
build build/gpu "${targets[@]}"

rm -rf "$bundle"
mkdir -p "$bundle/python/amoeba"
pack build/gpu/amoeba
for library in build/gpu/python/amoeba/libamoeba_ops*.so; do pack "$library" python/amoeba; done
cp python/amoeba/*.py "$bundle/python/amoeba/"
cp bench/*.py "$bundle/"
if [ "$with_tests" = ON ]; then
  for test in "${gpu_tests[@]}"; do pack "build/gpu/tests/$test"; done
  cp tests/python/{support,cuda_test}.py "$bundle/python/"
fi
cp -r configs "$bundle/configs"
cp build/data/kjv.txt "$bundle/"
cp scripts/gpu_run.sh "$bundle/run.sh"
sed -n "s/^__version__ = '\([0-9]*\.[0-9]*\).*/\1/p" "$torch_root/version.py" >"$bundle/torch_version"

size_kib=$(du -sk "$bundle" | cut -f1)
say "$bundle: $((size_kib / 1024)) MiB"
sha256sum "$bundle/amoeba"
[ "$size_kib" -le $((max_mib * 1024)) ] || die "$bundle is larger than $max_mib MiB"
