"""The wheel: built against the installed torch, complete, and of one kind for every Python 3."""

import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile
import unittest
import zipfile

import support

ROOT = pathlib.Path(__file__).parents[2]


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder.name, str(ROOT)]
        subprocess.run(command, check=True)
        [cls.wheel] = cls.folder.glob("*.whl")

    def test_name_and_requirements(self):
        self.assertRegex(self.wheel.name, r"^amoeba-[\d.]+-py3-none-linux_\w+\.whl$")
        [metadata] = importlib.metadata.distributions(path=[str(self.wheel)])
        self.assertEqual(metadata.requires, ["torch>=2.11"])

    def test_holds_the_library_and_every_source(self):
        names = {name for name in zipfile.ZipFile(self.wheel).namelist() if name.startswith("amoeba/")}
        sources = {f"amoeba/{path.name}" for path in (ROOT / "python/amoeba").glob("*.py")}
        self.assertEqual(names - {"amoeba/libamoeba_ops_cuda.so"}, sources | {"amoeba/libamoeba_ops.so"})

    def test_the_installed_package_computes(self):
        site = self.folder / "site"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, self.wheel], check=True)
        code = (
            "import torch, amoeba; x = torch.randn(3, 4, requires_grad=True); w = torch.randn(2, 6, 4); d = torch.randn(2, 4, 3);"
            "amoeba.experts(x, torch.tensor([[0], [1], [0]]), None, w, d, layout='concatenated').sum().backward();"
            f"assert amoeba.__file__.startswith({str(site)!r}) and x.grad.abs().sum() > 0"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(site)}, cwd=self.folder)


if __name__ == "__main__":
    support.main("scikit_build_core", "pip")
