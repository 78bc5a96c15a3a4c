"""Plants include lines in a throwaway tree: the bad ones must be found, the good ones must pass."""

import tempfile
import unittest
from pathlib import Path

from include_arrows import violations

HEADERS = [
    "include/amoeba/error.h",
    "include/amoeba/kernels.h",
    "include/amoeba/experts.h",
    "src/base/text.h",
    "src/formats/value.h",
    "src/kernels/route.h",
    "src/kernels/cuda/device/mma.cuh",
    "src/ops/schemas.h",
    "src/nn/router.h",
    "src/dist/group.h",
    "src/train/loop.h",
    "src/train/plain/run_config.h",
    "apps/options.h",
    "tests/support/compare.h",
]

# (file, its include lines, part of the violation or None)
CASES = [
    ("src/base/a.cpp", ['"amoeba/error.h"', '"base/text.h"', "<string>"], None),
    ("src/base/hash.cpp", ["<xxhash.h>"], None),
    ("src/formats/value.cpp", ["<nlohmann/json.hpp>", "<toml++/toml.h>", '"base/text.h"'], None),
    ("src/kernels/cpu/a.cpp", ['"amoeba/kernels.h"', '"kernels/route.h"'], None),
    ("src/kernels/cuda/device/a.cuh", ['"mma.cuh"', "<cuda_bf16.h>"], None),
    ("src/ops/a.cpp", ["<torch/csrc/stable/library.h>", '"kernels/route.h"'], None),
    ("src/nn/a.cpp", ["<ATen/core/Tensor.h>", '"amoeba/experts.h"'], None),
    ("src/dist/a.cpp", ['"nn/router.h"'], None),
    ("src/train/a.cpp", ['"nn/router.h"', '"train/plain/run_config.h"'], None),
    ("apps/a.cpp", ["<CLI/CLI.hpp>", '"train/loop.h"', '"formats/value.h"'], None),
    ("apps/a.cpp", ['"apps/options.h"'], None),
    ("src/train/a.cpp", ['"apps/options.h"'], "train must not include apps/options.h"),
    ("tests/nn/a.cpp", ['"nn/router.h"', '"support/compare.h"'], None),
    ("src/base/a.cpp", ['"formats/value.h"'], "base must not include src/formats/value.h"),
    ("src/base/a.cpp", ['"../formats/value.h"'], "base must not include src/formats/value.h"),
    ("src/base/a.cpp", ["<formats/value.h>"], "base must not include src/formats/value.h"),
    ("src/base/a.cpp", ['  # include "amoeba/kernels.h"'], "of layer kernels"),
    ("src/base/a.cpp", ['"nowhere.h"'], "no file of this tree"),
    ("src/base/a.cpp", ['"../../tests/support/compare.h"'], "which is in no layer"),
    ("src/formats/a.cpp", ['"nn/router.h"'], "of layer nn"),
    ("src/formats/a.cpp", ["<c10/util/Half.h>"], "free of LibTorch"),
    ("src/kernels/a.cpp", ['"ops/schemas.h"'], "of layer ops"),
    ("src/kernels/a.cpp", ["<torch/csrc/stable/tensor.h>"], "free of LibTorch"),
    ("src/kernels/cuda/device/a.cuh", ['"kernels/route.h"'], "outside src/kernels/cuda/device/"),
    ("src/kernels/cuda/device/a.cuh", ["<base/text.h>"], "outside src/kernels/cuda/device/"),
    ("src/ops/a.cpp", ["<ATen/core/Tensor.h>"], "stable ABI only"),
    ("src/ops/a.cpp", ["<torch/csrc/autograd/custom_function.h>"], "stable ABI only"),
    ("src/nn/a.cpp", ['"kernels/route.h"'], "of layer kernels"),
    ("src/nn/a.cpp", ['"formats/value.h"'], "of layer formats"),
    ("src/nn/a.cpp", ["<torch/torch.h>"], "torch/torch.h costs"),
    ("tests/nn/a.cpp", ["<torch/torch.h>"], "torch/torch.h costs"),
    ("src/dist/a.cpp", ['"train/loop.h"'], "of layer train"),
    ("src/train/plain/a.cpp", ['"nn/router.h"'], "train/plain must not include"),
    ("src/train/plain/a.cpp", ["<ATen/core/Tensor.h>"], "free of LibTorch"),
    ("src/train/a.cpp", ['"dist/group.h"'], "of layer dist"),
    ("apps/a.cpp", ['"kernels/route.h"'], "of layer kernels"),
    ("src/formats/config.cpp", ["<nlohmann/json.hpp>"], "may be included from"),
    ("src/formats/value.h", ["<nlohmann/json.hpp>"], "may be included from"),
    ("src/formats/safetensors.cpp", ["<toml++/toml.h>"], "may be included from"),
    ("src/train/a.cpp", ["<CLI/CLI.hpp>"], "may be included from"),
    ("tests/formats/a.cpp", ["<nlohmann/json.hpp>"], "may be included from"),
    ("src/formats/hash.cpp", ["<xxhash.h>"], "may be included from"),
    ("src/surprise/a.cpp", [], "no layer is known"),
    ("include/amoeba/surprise.h", [], "no layer is known"),
]


class IncludeArrows(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for path in HEADERS:
            self.write(path, [])

    def write(self, path, lines):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{x if '#' in x else '#include ' + x}\n" for x in lines))

    def planted(self, files):
        """Violations of the tree with `files` (path -> include lines) in it."""
        for path, lines in files.items():
            self.write(path, lines)
        found = violations(self.root)
        for path in files:
            self.write(path, []) if path in HEADERS else (self.root / path).unlink()
        return found

    def test_cases(self):
        for path, lines, wanted in CASES:
            with self.subTest(path=path, lines=lines):
                found = self.planted({path: lines})
                if wanted is None:
                    self.assertEqual(found, [])
                else:
                    self.assertTrue(any(path in f and wanted in f for f in found), found)

    def test_a_violation_names_file_and_line(self):
        found = self.planted({"src/base/a.cpp": ["<string>", '"nn/router.h"']})
        self.assertEqual(
            found, ["src/base/a.cpp:2: layer base must not include src/nn/router.h of layer nn"]
        )

    def test_confined_header_from_two_files(self):
        found = self.planted({"apps/a.cpp": ["<CLI/CLI.hpp>"], "apps/b.cpp": ["<CLI/CLI.hpp>"]})
        self.assertEqual(found, ["CLI/: included from apps/a.cpp, apps/b.cpp; at most 1 may"])


if __name__ == "__main__":
    unittest.main()
