"""python -m amoeba doctor, and what importing says when something is missing."""

import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import unittest

import support
import torch

import amoeba
from amoeba import doctor


def run(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


class Doctor(unittest.TestCase):
    def test_report(self):
        result = run("-m", "amoeba", "doctor")
        self.assertEqual(result.returncode, 0, result.stderr)
        for expected in (f"torch        {torch.__version__}", "libamoeba_ops.so", "variants on cpu"):
            self.assertIn(expected, result.stdout)
        for dtype in ("bfloat16", "float16", "float32", "float64"):
            lines = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(dtype + " ")]
            self.assertEqual(len(lines), len(doctor.PROBLEMS), dtype)
        self.assertEqual({line[-1] for line in lines}, {"reference"})  # fp64

    def test_report_says_what_each_variant_is(self):
        lines = doctor.report()
        self.assertTrue(any(line.split()[:1] == ["reference"] and "fp64" in line for line in lines), lines)
        if platform.machine() == "x86_64":
            self.assertTrue(any(line.startswith("  amx_bf16      AMX-BF16: ") for line in lines), lines)

    def test_another_command_is_a_usage_error(self):
        for arguments in (["docter"], [], ["doctor", "now"]):
            result = run("-m", "amoeba", *arguments)
            self.assertEqual(result.returncode, 2)
            self.assertIn("want doctor", result.stderr)

    def test_variants_name_their_reasons(self):
        for dtype in doctor.DTYPES:
            for problem in doctor.PROBLEMS:
                lines = doctor._choice("cpu", dtype, *problem)
                self.assertNotIn("none", lines[0].split())
                self.assertTrue(all(" not " in line and ": " in line for line in lines[1:]))


class Import(unittest.TestCase):
    def test_a_missing_library_is_a_sentence(self):
        with tempfile.TemporaryDirectory() as folder:
            package = pathlib.Path(folder, "amoeba")
            package.mkdir()
            for source in pathlib.Path(amoeba.__file__).parent.glob("*.py"):
                shutil.copy(source, package)
            result = run("-c", "import amoeba", cwd=folder, env={"PYTHONPATH": folder})
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr.splitlines()[-1], r"ImportError: amoeba: .*libamoeba_ops.so is missing: install")

    def test_an_old_torch_is_a_sentence(self):
        result = run("-c", "import torch; torch.__version__ = '2.10.1+cpu'; import amoeba")
        self.assertIn("ImportError: amoeba: torch is 2.10.1+cpu, want 2.11 or later", result.stderr)


if __name__ == "__main__":
    support.main()
