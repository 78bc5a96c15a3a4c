"""What the tests of the amoeba binary share: input files in a folder of their own, runs of the program, refusals."""

import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

OK, USAGE, DATA, NUMERIC = 0, 2, 3, 4
TIMEOUT = 60  # seconds until a process that hangs fails its test


def make_text(num_words, seed):
    draw = random.Random(seed)
    words = "in the beginning was a word and it moved upon face of waters".split()
    return "".join(draw.choice(words) + draw.choice("    \n") for _ in range(num_words))


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __str__(self):
        return f"exit code {self.code}\nstdout: {self.out[-2000:]!r}\nstderr: {self.err[-2000:]!r}"


class AppTest(unittest.TestCase):
    """A folder with the input files for all tests of a class; each names its own run folders."""

    binary = ""  # set by main

    @staticmethod
    def make_files(folder):
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix="amoeba_app_")
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        cls.make_files(cls.folder)

    @classmethod
    def amoeba(cls, *arguments, stdin=b"", stdout=subprocess.PIPE):
        done = subprocess.run([cls.binary, *map(str, arguments)], cwd=cls.folder, timeout=TIMEOUT,
                              input=stdin, stdout=stdout, stderr=subprocess.PIPE)
        return Result(done.returncode, done.stdout or b"", done.stderr.decode("utf-8", "replace"))

    def succeed(self, *arguments, stdin=b""):
        result = self.amoeba(*arguments, stdin=stdin)
        self.assertEqual(result.code, OK, f"{arguments}\n{result}")
        self.assertNotIn("amoeba: ", result.err)
        return result

    def check_refusal(self, result, code, *words, only=True):
        """The error is one line and the last one; `only`: nothing else is on standard error."""
        self.assertEqual(result.code, code, result)
        lines = result.err.split("\n")
        self.assertEqual(lines.pop(), "", result)
        errors = [line for line in lines if line.startswith("amoeba: ")]
        self.assertEqual(len(errors), 1, result)
        self.assertEqual(errors[0], lines[-1], result)
        if only:
            self.assertEqual(len(lines), 1, result)
        self.assertNotRegex(errors[0], r"[\x00-\x1f\x7f]", result)
        for word in words:
            self.assertIn(word, errors[0], result)

    def refuse(self, arguments, code, *words, only=True):
        with self.subTest(" ".join(map(str, arguments))):
            self.check_refusal(self.amoeba(*arguments), code, *words, only=only)


def main():
    AppTest.binary = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
