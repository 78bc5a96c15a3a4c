"""libamoeba_ops.so as the loader sees it: one torch library by name, the C functions of the stable ABI
and nothing of torch's C++, no search path, no symbol of its own."""

import pathlib
import re
import subprocess
import unittest

import support

import amoeba
from amoeba import _library

SYSTEM = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "librt.so.1", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}


def lines_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


class Library(unittest.TestCase):
    path, torch_libraries = str(_library.LIBRARY), {"libtorch_cpu.so"}

    def test_needs_torch_by_name_and_the_system(self):
        entries = lines_of("readelf", "-d", self.path)
        needed = {match[1] for line in entries if (match := re.search(r"\(NEEDED\).*\[(.*)\]", line))}
        self.assertEqual(needed - SYSTEM, self.torch_libraries)
        self.assertFalse([line for line in entries if "(RPATH)" in line or "(RUNPATH)" in line])

    def test_takes_only_c_functions_from_torch(self):
        undefined = [line.split()[-1] for line in lines_of("nm", "-D", "--undefined-only", self.path)]
        torch_symbols = [name for name in undefined if "torch" in name or "c10" in name or "aten" in name.lower()]
        self.assertTrue(torch_symbols)
        self.assertFalse([name for name in torch_symbols if not name.startswith(("aoti_torch_", "torch_"))])

    def test_exports_nothing(self):
        linker_marks = {"_edata", "_end", "__bss_start"}
        defined = {line.split()[-1] for line in lines_of("nm", "-D", "--defined-only", self.path) if " W " not in line and " V " not in line and " u " not in line}
        self.assertEqual(defined - linker_marks, set())

    def test_version_is_that_of_the_headers(self):
        header = pathlib.Path(__file__).parents[2] / "include/amoeba/version.h"
        self.assertIn(f'"{amoeba.__version__}"', header.read_text())


@unittest.skipUnless(_library.CUDA_LIBRARY.exists(), "built without CUDA")
class CudaLibrary(Library):
    path, torch_libraries = str(_library.CUDA_LIBRARY), {"libtorch_cpu.so", "libtorch_cuda.so"}


if __name__ == "__main__":
    support.main()
