"""Checks every include line of the tree against the arrows between layers in the table below.

Usage: include_arrows.py ROOT. Prints one line a violation and exits 1 when there is any.
"""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

# Layer -> layers it may include. A layer may always include itself.
ARROWS = {
    "base": set(),
    "formats": {"base"},
    "kernels": {"base"},
    "ops": {"base", "kernels"},
    "nn": {"base"},
    "dist": {"base", "nn"},
    "train": {"base", "formats", "nn"},
    "train/plain": {"base", "formats"},  # the part of train that needs no LibTorch
    "apps": {"base", "formats", "ops", "nn", "dist", "train", "train/plain"},
}
ARROWS["train"].add("train/plain")

# The layer that each public header belongs to.
PUBLIC_HEADERS = {
    "error.h": "base",
    "version.h": "base",
    "kernels.h": "kernels",
    "experts.h": "nn",
    "model.h": "nn",
    "train.h": "train",
}

TORCH = re.compile(r"(ATen|c10|caffe2|torch)/")
STABLE_TORCH = re.compile(r"torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/")
TORCH_FREE_LAYERS = {"base", "formats", "kernels", "train/plain"}

# Header prefix -> (the files that may include it, how many of them at most).
CONFINED = {
    "nlohmann/": (["src/formats/value.cpp", "src/formats/safetensors.cpp"], 2),
    "toml++/": (["src/formats/value.cpp"], 1),
    "toml.hpp": (["src/formats/value.cpp"], 1),
    "CLI/": (["apps/*.cpp"], 1),
    "xxhash.h": (["src/base/*.cpp"], 1),
    "pcre2.h": (["src/formats/*.cpp"], 1),
}

SOURCE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def layer_of(path):
    """Layer of a path relative to the root; None outside the layers; KeyError for an unknown one."""
    parts = Path(path).parts
    if parts[0] == "apps":
        return "apps"
    if parts[:2] == ("include", "amoeba"):
        return PUBLIC_HEADERS["/".join(parts[2:])]
    if parts[0] != "src":
        return None
    layer = "train/plain" if parts[1:3] == ("train", "plain") else parts[1]
    if layer not in ARROWS:
        raise KeyError(layer)
    return layer


def source_files(root):
    for folder in ("include", "src", "apps", "tests", "bench", "fuzz"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCE_SUFFIXES and path.is_file():
                yield path.relative_to(root).as_posix()


def includes_of(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match[1] == '"', match[2]


def resolve(root, path, header):
    """Path of one of our headers relative to the root, found as the compiler does; None if absent."""
    for folder in (Path(path).parent, Path("include"), Path("src"), Path()):
        candidate = (root / folder / header).resolve()
        if candidate.is_file() and candidate.is_relative_to(root):
            return candidate.relative_to(root).as_posix()
    return None


def check_torch(path, layer, header):
    if header == "torch/torch.h":
        return "torch/torch.h costs 16 s a file: include ATen/core/Tensor.h and per-operator headers"
    if not TORCH.match(header):
        return None
    if layer in TORCH_FREE_LAYERS:
        return f"layer {layer} is free of LibTorch"
    if layer == "ops" and not STABLE_TORCH.match(header):
        return "layer ops may use LibTorch's stable ABI only"
    return None


def check_arrow(root, path, layer, quoted, header):
    target = resolve(root, path, header)
    if target is None:
        return f'"{header}" is no file of this tree; other headers take <>' if quoted else None
    try:
        target_layer = layer_of(target)
    except KeyError as error:
        return f"{target} has no layer: add {error} to {Path(__file__).name}"
    if target_layer is None:
        return f"layer {layer} must not include {target}, which is in no layer"
    if target_layer != layer and target_layer not in ARROWS[layer]:
        return f"layer {layer} must not include {target} of layer {target_layer}"
    return None


def check_device_code(root, path, quoted, header):
    """Device-only code includes nothing outside its folder but the system's and CUDA's headers."""
    folder = "src/kernels/cuda/device/"
    if not path.startswith(folder):
        return None
    target = resolve(root, path, header)
    if (quoted or target) and not (target or "").startswith(folder):
        return f"device code must not include {header}, which is outside {folder}"
    return None


def violations(root):
    root = Path(root).resolve()
    found = []
    users = {}  # confined prefix -> files that include it
    for path in source_files(root):
        try:
            layer = layer_of(path)
        except KeyError as error:
            found.append(f"{path}: no layer is known for it: add {error} to {Path(__file__).name}")
            continue
        for number, quoted, header in includes_of(root / path):
            reasons = [check_torch(path, layer, header)]
            if layer is not None:
                reasons.append(check_arrow(root, path, layer, quoted, header))
                reasons.append(check_device_code(root, path, quoted, header))
            for prefix, (allowed, _) in CONFINED.items():
                if header.startswith(prefix):
                    users.setdefault(prefix, set()).add(path)
                    if not any(fnmatch(path, pattern) for pattern in allowed):
                        reasons.append(f"{header} may be included from {', '.join(allowed)} only")
            found += [f"{path}:{number}: {reason}" for reason in reasons if reason]
    for prefix, paths in users.items():
        limit = CONFINED[prefix][1]
        if len(paths) > limit:
            found.append(f"{prefix}: included from {', '.join(sorted(paths))}; at most {limit} may")
    return found


def main():
    root = Path(sys.argv[1])
    found = violations(root)
    print("\n".join(found))
    print(f"{len(list(source_files(root)))} files, {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
