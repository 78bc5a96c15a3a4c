"""Drives the amoeba binary as a new user would: cli_test.py BINARY [unittest options].

Every refusal is one line of data: arguments, exit code, words of the one line on standard error.
Runs are tiny (45 thousand parameters) and on one thread, so that they repeat to the bit.
"""

import array
import fcntl
import json
import math
import os
import pathlib
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import termios
import time
import unittest

from driver import DATA, NUMERIC, OK, TIMEOUT, USAGE, AppTest, main, make_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERBS = ["train", "find-lr", "generate", "eval", "export", "checkpoint", "config", "tokenizer", "data", "doctor"]
BACKENDS = ["fused", "grouped_mm", "batched_mm_padded", "batched_mm_capacity", "for_loop"]

TINY_CONFIG = """
[model]
dim = 32
num_layers = 2
[moe]
num_experts = 4
hidden_dim = 32
[training]
steps = 6
seq_len = 32
local_batch_size = 2
num_threads = 1
[lr_scheduler]
warmup_steps = 2
[metrics]
log_interval = 1
"""
TINY = ["--config", "tiny.toml", "--data.path", "text.txt"]
# Text and steps for runs that are stopped; a report would only take time.
LONG = TINY + ["--training.steps", "60", "--checkpoint.interval", "20", "--metrics.report", "false"]


def make_files(folder):
    text = make_text(2500, seed=1)
    contents = {
        "tiny.toml": TINY_CONFIG.encode(),
        "text.txt": text.encode(),
        "other.txt": make_text(900, seed=2).encode(),
        "empty.txt": b"",
        "short.txt": b"too short",
        "garbage.txt": random.Random(3).randbytes(9000),
        "crlf_nul.txt": text.replace("\n", "\r\n").replace(" the ", " \0 ").encode(),
        "syntax.toml": b"[training]\nsteps =\n",
        "syntax.json": b'{"training": {"steps": }}',
        "unknown.toml": b"[training]\nsteps = 3\nseqlen = 64\n",
        "type.toml": b'[training]\nsteps = "three"\n',
        "list.json": b"[1, 2]",
        "dim64.toml": b"[model]\ndim = 64\nnum_layers = 3\n",
        "dim96.json": b'{"model": {"dim": 96}}',
        "config.yaml": b"training:\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}


def manifest_of(checkpoint):
    return json.loads((checkpoint / "manifest.json").read_text())


def hashes(checkpoint):
    return {(tensor["group"], tensor["name"]): tensor["hash"]
            for tensor in manifest_of(checkpoint)["tensors"]}


def metrics_of(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


class CliTest(AppTest):
    make_files = staticmethod(make_files)


class Usage(CliTest):
    CASES = [  # command line, words of the error
        ("", "verb is missing"),
        ("trian", "'trian'", "did you mean train?"),
        ("-x", "'-x'", *VERBS),
        ("config", "action is missing", "show, check, keys, presets, flavors"),
        ("config shwo", "'shwo'", "did you mean show?"),
        ("config presets extra", "'extra'"),
        ("config flavors extra", "'extra'"),
        ("tokenizer", "action is missing", "train, encode, decode"),
        ("tokenizer trian", "'trian'", "did you mean train?"),
        ("tokenizer train --input text.txt", "--output is missing"),
        ("tokenizer train --input text.txt --output t.json --vocab-size 9", "9", "257"),
        ("tokenizer encode --tokenizer missing.json", "'missing.json'", "tokenizer.json"),
        ("checkpoint", "action is missing", "list, verify"),
        ("checkpoint verify", "got 0 arguments, want one"),
        ("checkpoint list --all", "want one: a run's folder or a checkpoint's"),
        ("checkpoint list a b", "got 2 arguments", "want one: a run's folder or a checkpoint's"),
        ("data", "action is missing", "prepare, info"),
        ("data info", "--path is missing"),
        ("data prepare --input text.txt", "--output is missing"),
        ("doctor extra", "'extra'"),
        ("doctor --frob", "'--frob'"),
        ("eval", "--checkpoint is missing"),
        ("eval --checkpiont run", "'--checkpiont'", "did you mean '--checkpoint'?"),
        ("eval --checkpoint", "--checkpoint"),
        ("eval --checkpoint run --max-windows 2.5", "--max-windows", "'2.5'", "whole number"),
        ("export --checkpoint run --out hf", "--to is ''", "hf or origin"),
        ("export --to hf --out hf", "--checkpoint is missing"),
        ("export --to hf --checkpoint run", "--out is missing"),
        ("generate --prompt x", "--checkpoint is missing"),
        ("generate --checkpoint run", "--prompt is missing"),
        ("generate --checkpoint run --prompt x --num-tokens -1", "--num-tokens", "'-1'"),
        ("generate --checkpoint run --prompt x --temperature hot", "--temperature", "'hot'"),
        ("generate --checkpoint run --prompt x --temperature -1", "--temperature", "'-1'", ">= 0"),
        ("generate --checkpoint run --prompt x --temperature nan", "--temperature", "'nan'"),
        ("generate --checkpoint run --prompt x --seed 1e3", "--seed", "'1e3'"),
        ("train", "data.path is empty"),
        ("find-lr", "data.path is empty"),
        ("find-lr --min-lr fast", "--min-lr", "'fast'"),
        ("find-lr --num-steps 19", "--num-steps is 19", "at least 20"),
        ("find-lr --min-lr 0.1 --max-lr 0.5", "--min-lr is 0.1", "--max-lr is 0.5", "ten times"),
        ("find-lr --training.stepz 3", "'training.stepz'", "did you mean 'training.steps'?"),
    ]
    TRAIN_CASES = [  # behind `train --config tiny.toml --data.path text.txt`
        ("--frob 3", "unknown", "'frob'"),
        ("--conifg a.toml", "'--conifg'", "did you mean '--config'?"),
        ("--data.path", "'--data.path' has no value"),
        ("--training.steps --data.path x", "'--training.steps' has no value"),
        ("--resume", "--resume"),
        ("--resum auto", "'--resum'", "did you mean '--resume'?"),
        ("steps 3", "'steps'", "want --section.key value"),
        ("--trainig.steps 3", "'trainig'", "did you mean 'training'?"),
        ("--training.stepz 3", "'training.stepz'", "did you mean 'training.steps'?"),
        ("--moe.steps 3", "'moe.steps'", "did you mean 'training.steps'?"),
        ("--nonsense.key 3", "unknown section 'nonsense'", "training", "optimizer"),
        ("--training 3", "'training' is a section", "seq_len"),
        ("--training.steps three", "'training.steps'", "'three'", "integer"),
        ("--training.steps 3.5", "'training.steps'", "'3.5'", "integer"),
        ("--training.steps 1e3", "'training.steps'", "'1e3'", "integer"),
        ("--training.steps 0", "'training.steps'", "0", "at least 1"),
        ("--training.steps 99999999999999999999", "'training.steps'", "64 bits"),
        ("--optimizer.lr fast", "'optimizer.lr'", "'fast'", "number"),
        ("--optimizer.lr nan", "'optimizer.lr'", "nan", "finite"),
        ("--metrics.report yes", "'metrics.report'", "'yes'", "true or false"),
        ("--moe.capacity_factor 0", "'moe.capacity_factor'", "0", "more than 0"),
        ("--moe.top_k 5", "moe.top_k is 5", "moe.num_experts is 4"),
        ("--training.global_batch_size 3", "training.global_batch_size is 3",
         "training.local_batch_size is 2"),
        ("--training.batch_ramp_start 2", "training.batch_ramp_start is 2",
         "training.batch_ramp_steps is 0"),
        ("--training.batch_ramp_start 4 --training.batch_ramp_steps 3",
         "training.batch_ramp_start is 4", "training.global_batch_size is 2"),
        ("--profiling.num_steps 1 --profiling.start_step 7", "profiling.start_step is 7",
         "training.steps is 6"),
        ("--model.num_kv_heads 3", "model.num_heads is 4", "model.num_kv_heads is 3"),
        ("--model.dim 30", "model.dim is 30", "model.num_heads is 4"),
        ("--checkpoint.keep_latest_k 1", "checkpoint.keep_latest_k is 1"),
        ("--checkpoint.enable false --resume auto", "checkpoint.resume is 'auto'",
         "checkpoint.enable is false"),
        ("--moe.compute_backend fastest", "'moe.compute_backend'", "'fastest'", *BACKENDS),
        ("--moe.compute_backend bmm", "'bmm'", "batched_mm_capacity"),
        ("--moe.compute_backend bmm_nodrop", "'bmm_nodrop'", "batched_mm_padded"),
        ("--model.use_grouped_mm true", "'model.use_grouped_mm'", "moe.compute_backend"),
        ("--use_grouped_mm true", "'use_grouped_mm'", "moe.compute_backend"),
        ("--data.weights 1,2", "data.weights has 2", "data.path has 1"),
        ("--config dmeo", "'dmeo'", "did you mean 'demo'?"),
        ("--config moe_10b_2b_spda", "did you mean 'moe_10b_2b_sdpa'?"),
        ("--config moe_16b_from_json", "want --config moe_16b --config FILE.json"),
        ("--config 10B_2B --model.rope_max_seq_len 16", "model.rope_max_seq_len is 16",
         "training.seq_len is 32"),
        ("--model.upcycle copy", "model.upcycle is 'copy'", "model.from is empty"),
        ("--model.vocab_size 256", "model.vocab_size: got 256", "want at least 257"),
        ("--config missing.toml", "'missing.toml'", "does not exist"),
        ("--config ./folder", "'./folder'"),
        ("--config ./config.yaml", "'./config.yaml'", ".toml or .json"),
        ("--config syntax.toml", "syntax.toml:2:8", "expected value"),
        ("--config syntax.json", "syntax.json:1:"),
        ("--config unknown.toml", "unknown.toml:3:", "'training.seqlen'", "'training.seq_len'"),
        ("--config type.toml", "type.toml:2:", "'training.steps'", "'three'", "integer"),
        ("--config list.json", "list.json", "array", "object"),
    ]

    def test_refused(self):
        for line, *words in self.CASES:
            self.refuse(line.split(), USAGE, *words)

    def test_refused_by_train(self):
        for line, *words in self.TRAIN_CASES:
            self.refuse(["train", *TINY, "--run.folder", "never", *line.split()], USAGE, *words)
        self.assertFalse((self.folder / "never").exists())

    def test_without_a_verb_the_help_is_shown(self):
        self.assertIn(b"usage: amoeba VERB", self.amoeba().out)

    def test_help(self):
        for arguments in [["--help"], ["-h"], *([verb, "--help"] for verb in VERBS),
                          *(["config", action, "--help"]
                            for action in ["show", "check", "keys", "presets", "flavors"]),
                          *(["tokenizer", action, "--help"]
                            for action in ["train", "encode", "decode"]),
                          *(["data", action, "--help"] for action in ["prepare", "info"]),
                          *(["checkpoint", action, "--help"] for action in ["list", "verify"])]:
            with self.subTest(arguments):
                result = self.succeed(*arguments)
                self.assertIn(b"usage: amoeba", result.out.lower())
                self.assertEqual(result.err, "")
        whole = self.succeed("--help").out.decode()
        for verb in VERBS:
            self.assertRegex(whole, rf"(?m)^  {verb} +\w")

    def test_version(self):
        self.assertRegex(self.succeed("--version").out, rb"\Aamoeba \d+\.\d+\.\d+\n\Z")

    def test_full_standard_output_is_an_error(self):
        for arguments in [["--help"], ["--version"], ["config", "show"], ["config", "keys"]]:
            with self.subTest(arguments), open("/dev/full", "wb") as full:
                self.check_refusal(self.amoeba(*arguments, stdout=full), DATA, "standard output")


class Config(CliTest):
    LAYERS = [  # layers and overrides; the line of `config show`, where it comes from
        ("", "dim = 128", "default"),
        ("--config tiny.toml", "dim = 32", "tiny.toml:3"),
        ("--config tiny.toml --config dim64.toml", "dim = 64", "dim64.toml:2"),
        ("--config tiny.toml --config dim64.toml --config dim96.json", "dim = 96", "dim96.json]"),
        ("--config dim96.json --config dim64.toml", "dim = 64", "dim64.toml:2"),
        ("--config demo --config dim96.json", "dim = 96", "dim96.json]"),
        ("--config dim96.json --config demo", "dim = 128", "demo.toml:"),
        ("--config demo --config dim96.json", "steps = 520", "demo.toml:"),
        ("--config demo --config dim96.json --model.dim 160", "dim = 160", "command line"),
        ("--model.dim 160 --config demo --config dim96.json", "dim = 160", "command line"),
        ("--model.dim 160 --model.dim=192", "dim = 192", "command line"),
        ("--data.path a.txt,b.txt --data.weights 1,2.5", 'path = ["a.txt","b.txt"]',
         "command line"),
    ]

    def test_last_layer_wins_and_the_command_line_over_all(self):
        for line, setting, origin in self.LAYERS:
            with self.subTest(line):
                lines = self.succeed("config", "show", *line.split()).out.decode().splitlines()
                self.assertIn(setting, lines)
                self.assertIn(f"[{origin}", lines[lines.index(setting) - 1])

    def test_shown_configuration_is_a_configuration(self):
        shown = self.succeed("config", "show", "--config", "demo", "--model.dim", "160").out
        (self.folder / "shown.toml").write_bytes(shown)
        again = self.succeed("config", "show", "--config", "shown.toml").out
        self.assertEqual(*(re.sub(rb"(?m)^#.*\n", b"", text) for text in [shown, again]))

    def test_check(self):
        self.assertEqual(self.succeed("config", "check", *TINY).out, b"ok\n")
        self.refuse(["config", "check", "--moe.top_k", "9"], USAGE, "moe.top_k is 9")
        self.refuse(["config", "check", "--model.vocab_size", "200"], USAGE,
                    "model.vocab_size: got 200, want at least 257")

    def test_keys(self):
        keys = self.succeed("config", "keys").out.decode()
        shown = self.succeed("config", "show").out.decode()
        section = ""
        for line in shown.splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif " = " in line and not line.startswith("#"):
                self.assertIn(f"--{section}.{line.split(' = ')[0]}  (", keys)

    def test_presets(self):
        lines = self.succeed("config", "presets").out.decode().splitlines()
        self.assertGreater(len(lines), 20)
        for line in lines:
            name, summary = line.split(maxsplit=1)
            with self.subTest(name):
                self.assertGreater(len(summary), 20)
                self.succeed("config", "check", "--config", name)

    def test_presets_are_the_source_of_their_values(self):
        name = "moe_10b_2b_sdpa_batched_mm_padded"
        lines = self.succeed("config", "show", "--config", name).out.decode().splitlines()
        for setting in ["dim = 2048", 'compute_backend = "batched_mm_padded"', "seq_len = 8192"]:
            self.assertIn(f"[preset {name}]", lines[lines.index(setting) - 1])

    def test_documented_flavors_are_the_flavors(self):
        document = (ROOT / "docs/flavors.md").read_text()
        self.assertIn(self.succeed("config", "flavors").out.decode(), document)

    def test_show_tells_size_and_memory(self):
        shown = self.succeed("config", "show", "--config", "moe_671b").out.decode()
        self.assertIn("# 672,844,897,280 parameters, 39,370,775,552 active", shown)
        self.assertRegex(shown, r"\n# \* activation_checkpoint full +[\d.]+ TiB \(does not fit\): "
                                r"weights 2\.4 TiB, ")
        small = self.succeed("config", "show", "--config", "demo").out.decode()
        for mode in ["none", "full", "selective"]:
            self.assertRegex(small, rf"\n# [ *] activation_checkpoint {mode} +[\d.]+ MiB: weights")
        cuda = self.succeed("config", "show", "--training.device", "cuda").out.decode()
        self.assertIn("\n# Predicted memory of a step on cuda", cuda)
        wrong = self.succeed("config", "show", "--moe.top_k", "9").out.decode()
        self.assertIn("\n# Size and memory unknown: configuration: moe.top_k is 9", wrong)

    def test_doctor_names_each_backend(self):
        out = self.succeed("doctor").out.decode()
        for backend in BACKENDS:
            self.assertRegex(out, rf"(?m)^ +{backend} +\w")
        self.assertRegex(out, r"(?m)^  reference    \w")  # a kernel of fused and what it is


class Memory(CliTest):
    """The predicted memory against the peak of the process, which `docs/memory.md` reports."""
    TOLERANCE = 0.2
    MODELS = {
        "latent attention": ["--config", "moe_debugmodel", "--model.vocab_size", "2048",
                             "--model.num_layers", "3", "--training.seq_len", "128",
                             "--training.local_batch_size", "6"],
        "grouped queries": ["--config", "demo", "--training.local_batch_size", "32"],
        "one wide layer": ["--config", "moe_10b_2b_sdpa_1layer", "--model.vocab_size", "2048",
                           "--model.dim", "512", "--moe.hidden_dim", "704",
                           "--training.seq_len", "256"],
    }

    def peak_and_prediction(self, arguments):
        process = subprocess.Popen(
            [self.binary, "train", *arguments, "--data.path", "text.txt", "--run.folder", "unwritten",
             "--training.steps", "2", "--training.device", "cpu", "--training.num_threads", "2",
             "--data.validation_fraction", "0", "--checkpoint.enable", "false",
             "--metrics.report", "false", "--sample.prompt="],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        log = process.stderr.read().decode()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, OK, log)
        number, unit = re.search(r"memory: ([\d.]+) ([MG])iB predicted", log).groups()
        return usage.ru_maxrss / 1024, float(number) * {"M": 1, "G": 1024}[unit]

    def test_predicted_is_measured(self):
        if b"__asan_init" in pathlib.Path(self.binary).read_bytes():
            self.skipTest("the address sanitizer's own memory would count")
        for name, arguments in self.MODELS.items():
            for dtype, mode in [("float32", "none"), ("float32", "full"), ("bfloat16", "full")]:
                if dtype == "bfloat16" and name != "grouped queries":
                    continue  # slow on CPUs without bf16 products
                with self.subTest(f"{name}, {dtype}, {mode}"):
                    peak, predicted = self.peak_and_prediction(
                        [*arguments, "--training.dtype", dtype,
                         "--training.activation_checkpoint", mode])
                    print(f"{name:17} {dtype:8} {mode:5} predicted {predicted:6.0f} MiB, "
                          f"measured {peak:6.0f} MiB: {predicted / peak:.2f}")
                    self.assertAlmostEqual(predicted / peak, 1, delta=self.TOLERANCE)


class Data(CliTest):
    CASES = [  # data.path, more arguments, code, words
        ("missing.txt", "", DATA, "'missing.txt'", "No such file"),
        ("empty.txt", "", DATA, "'empty.txt'", "empty"),
        ("folder", "", DATA, "'folder'", "is a folder"),
        ("short.txt", "", DATA, "'short.txt'", "9 tokens", "33"),
        ("text.txt,missing.txt", "", DATA, "'missing.txt'"),
        ("/dev/null", "", DATA, "'/dev/null'", "not a regular file"),
        ("", "", USAGE, "data.path is empty"),
        ("text.txt", "--training.seq_len 90000", DATA, "'text.txt'", "90001"),
        ("text.txt,other.txt", "--data.weights 1,2,3", USAGE, "data.weights has 3",
         "data.path has 2"),
        ("text.txt,other.txt", "--data.weights 1,-1", USAGE, "data.weights[1]", "-1"),
    ]

    def test_refused(self):
        for path, more, code, *words in self.CASES:
            self.refuse(["train", "--config", "tiny.toml", f"--data.path={path}",
                         "--run.folder", "never", *more.split()], code, *words)
        self.assertFalse((self.folder / "never").exists())

    def test_any_bytes_train(self):
        for path, more in [("garbage.txt", ""), ("crlf_nul.txt", ""),
                           ("text.txt,other.txt", "--data.weights 1,3"),
                           ("text.txt", "--moe.compute_backend batched_mm_capacity")]:
            with self.subTest(path):
                run = self.folder / "runs" / path.replace(",", "_") / (more[-8:] or "plain")
                self.succeed("train", "--config", "tiny.toml", "--data.path", path,
                             "--run.folder", run, *more.split())
                steps = metrics_of(run, "step")
                self.assertEqual([step["step"] for step in steps], [1, 2, 3, 4, 5, 6])
                self.assertFalse(any(step["rejected"] for step in steps))

    def test_a_tokenizer_of_ones_own(self):
        self.succeed("tokenizer", "train", "--input", "text.txt", "--input", "other.txt",
                     "--output", "made/bpe.json", "--vocab-size", 300, "--num-threads", 2)
        prompt = "in the beginning"
        ids = self.succeed("tokenizer", "encode", "--tokenizer", "made/bpe.json", "--text", prompt).out
        self.assertLess(len(ids.split()), len(prompt) / 2)
        decoded = subprocess.run([self.binary, "tokenizer", "decode", "--tokenizer", "made/bpe.json"],
                                 cwd=self.folder, input=ids, capture_output=True, check=True)
        self.assertEqual(decoded.stdout.decode(), prompt)

        prepare = ["data", "prepare", "--tokenizer", "made/bpe.json", "--output", "prepared",
                   "--input", "text.txt"]
        self.succeed(*prepare)
        self.refuse(prepare, DATA, "'prepared'", "exists already")
        info = [json.loads(self.succeed("data", "info", "--tokenizer", "made/bpe.json", "--path", path)
                           .out) for path in ("prepared", "text.txt")]
        self.assertEqual(info[0]["text_bytes"], (self.folder / "text.txt").stat().st_size)
        self.assertEqual(info[0] | {"path": ""}, info[1] | {"path": ""})
        self.refuse(["train", "--config", "tiny.toml", "--data.path", "prepared"], DATA,
                    "'prepared'", "'made/bpe.json'", "'bytes'")

        steps = []
        for path in ("prepared", "text.txt"):
            run = self.folder / "runs" / f"bpe-{path}"
            self.succeed("train", "--config", "tiny.toml", "--data.path", path, "--run.folder", run,
                         "--data.tokenizer", "made/bpe.json", "--training.num_threads", 1)
            steps.append([step["loss"] for step in metrics_of(run, "step")])
        self.assertEqual(steps[0], steps[1])
        # A token is several bytes, so its nats spread over them.
        last = metrics_of(run, "validation")[-1]
        self.assertLess(last["bits_per_byte"], last["loss"] / math.log(2) / 1.5)
        self.assertGreater(last["bits_per_byte"], last["loss"] / math.log(2) / 6)
        result = json.loads(self.succeed("eval", "--checkpoint", run).out)
        self.assertAlmostEqual(result["bits_per_byte"], last["bits_per_byte"], places=4)
        text = self.succeed("generate", "--checkpoint", run, "--prompt", prompt,
                            "--num-tokens", 20).out
        self.assertTrue(text.decode("utf-8", "replace").startswith(prompt))

    def test_output_below_a_file_or_where_nothing_can_be_made(self):
        for folder in ["text.txt/run", "text.txt", "/proc/amoeba"]:
            self.refuse(["train", *TINY, "--run.folder", folder], DATA, f"'{folder}'")


class FullDisk(CliTest):
    """A file system of 2 MiB: one checkpoint (0.6 MB and 1 MiB of reserve) fits, two do not."""

    def setUp(self):
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", self.disk],
                                 capture_output=True, text=True) if shutil.which("mount") else None
        if mounted is None or mounted.returncode != 0:
            self.disk.rmdir()
            self.skipTest("no right to mount a tmpfs")
        self.addCleanup(self.disk.rmdir)
        self.addCleanup(subprocess.run, ["umount", self.disk], check=True)

    def fill(self, leave):
        free = os.statvfs(self.disk)
        with open(self.disk / "filler", "wb") as filler:
            filler.write(b"x" * max(0, free.f_bavail * free.f_frsize - leave))

    def test_next_checkpoint_does_not_fit(self):
        result = self.amoeba("train", *TINY, "--run.folder", "disk/run",
                             "--checkpoint.interval", "3")
        self.check_refusal(result, DATA, "step-00000006", "disk/run/checkpoints", "free", "have",
                           only=False)
        self.assertEqual(os.listdir(self.disk / "run/checkpoints"), ["step-00000003"])
        self.succeed("eval", "--checkpoint", "disk/run", "--num-threads", "1")

    def test_disk_full_before_the_run_goes_on(self):
        self.succeed("train", *TINY, "--run.folder", "disk/run", "--training.steps", "3")
        before = snapshot(self.disk / "run")
        self.fill(leave=0)
        result = self.amoeba("train", *TINY, "--run.folder", "disk/run", "--resume", "auto")
        self.check_refusal(result, DATA, "disk/run/", "No space left", only=False)
        self.assertEqual(snapshot(self.disk / "run"), before)
        self.succeed("eval", "--checkpoint", "disk/run", "--num-threads", "1")

    def test_disk_full_while_metrics_are_written(self):
        self.fill(leave=20000)  # config.toml takes 8192 of it
        result = self.amoeba("train", *TINY, "--run.folder", "disk/run", "--training.steps", "60",
                             "--checkpoint.enable", "false")
        self.check_refusal(result, DATA, "metrics.jsonl", "No space left", only=False)


class Run(CliTest):
    """One finished run, and what can be done with it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.trained = cls.amoeba("train", *TINY, "--run.folder", "run",
                                 "--sample.prompt", "in the ", "--sample.num_tokens", "5")
        cls.run_folder = cls.folder / "run"

    def setUp(self):
        self.assertEqual(self.trained.code, OK, self.trained)

    def generate(self, *more):
        return self.succeed("generate", "--checkpoint", "run", "--prompt", "in the ",
                            "--num-tokens", "24", "--num-threads", "1", *more).out

    def eval(self, *more):
        out = self.succeed("eval", "--checkpoint", "run", "--num-threads", "1", *more).out
        self.assertEqual(out.count(b"\n"), 1, out)
        return json.loads(out)

    def test_files(self):
        for name in ["config.toml", "metrics.jsonl", "report.html",
                     "checkpoints/step-00000006/manifest.json"]:
            self.assertGreater((self.run_folder / name).stat().st_size, 0, name)
        self.assertFalse(list(self.run_folder.rglob("*.partial")))
        self.assertEqual([end["reason"] for end in metrics_of(self.run_folder, "end")],
                         ["completed"])
        for path in ["run/checkpoints/step-00000006", "run/report.html"]:
            self.assertIn(path.encode(), self.trained.out)

    def test_saved_configuration_is_the_run(self):
        shown = self.succeed("config", "show", "--config", "run/config.toml").out.decode()
        self.assertIn('path = ["text.txt"]', shown)
        self.succeed("train", "--config", "run/config.toml", "--run.folder", "again")
        last = "checkpoints/step-00000006"
        self.assertEqual(hashes(self.folder / "again" / last), hashes(self.run_folder / last))

    def test_step_lines(self):
        words = r"step: {}/6  loss: \S+  grad_norm: \S+  memory: \S+  tps: \S+  tflops: \S+  mfu: "
        lines = self.trained.err.splitlines()
        for step in range(1, 7):
            matches = [line for line in lines if re.match(words.format(step), line)]
            self.assertEqual(len(matches), 1, self.trained)

    def test_piped_output_is_plain(self):
        # Step 1 and 6 are lines, the others would be live lines of a terminal.
        result = self.succeed("train", *TINY, "--run.folder", "piped",
                              "--metrics.log_interval", "0")
        self.assertNotRegex(result.err.encode() + result.out, rb"[\r\x1b]")

    def test_terminal_has_a_live_line(self):
        master, slave = pty.openpty()
        process = subprocess.Popen([self.binary, "train", *TINY, "--run.folder", "terminal",
                                    "--metrics.log_interval", "0"], cwd=self.folder,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave)
        os.close(slave)
        err = b""
        try:
            while chunk := os.read(master, 65536):
                err += chunk
        except OSError:  # EIO: the process has closed its end
            pass
        out, _ = process.communicate(timeout=TIMEOUT)
        os.close(master)
        self.assertEqual(process.returncode, OK, err)
        self.assertRegex(err, rb"\r[^\r\n]+\x1b\[K")   # painted
        self.assertRegex(err, rb"\r\x1b\[K")           # and taken away again
        self.assertNotRegex(out, rb"[\r\x1b]")

    def test_equal_seeds_write_equal_text(self):
        first = self.generate("--seed", "5")
        self.assertTrue(first.startswith(b"in the "))
        self.assertGreater(len(first), len(b"in the \n"))
        self.assertEqual(self.generate("--seed", "5"), first)
        self.assertNotEqual(self.generate("--seed", "6"), first)

    def test_temperature_0_needs_no_seed(self):
        self.assertEqual(self.generate("--temperature", "0", "--seed", "5"),
                         self.generate("--temperature", "0", "--seed", "6"))

    def test_generate_refuses(self):
        checkpoint = ["generate", "--checkpoint", "run", "--prompt"]
        self.refuse([*checkpoint, ""], USAGE, "--prompt", "empty")
        self.refuse([*checkpoint, "x", "--device", "gpu"], USAGE, "'gpu'", "auto, cpu or cuda")
        self.refuse([*checkpoint, "x", "--num-threads", "100000"], USAGE, "100000", "4096")
        for path in ["missing", "folder", "text.txt"]:
            self.refuse(["generate", "--checkpoint", path, "--prompt", "x"], DATA, f"'{path}'")
            self.assertEqual(self.amoeba("generate", "--checkpoint", path, "--prompt", "x").out,
                             b"")

    def test_eval_agrees_with_the_last_validation(self):
        validation = metrics_of(self.run_folder, "validation")[-1]
        for checkpoint in ["run", "run/checkpoints/step-00000006"]:
            result = self.eval("--checkpoint", checkpoint)
            self.assertAlmostEqual(result["bits_per_byte"], validation["bits_per_byte"], delta=1e-6)
            self.assertAlmostEqual(result["loss"], validation["loss"], delta=1e-6)
            self.assertEqual(result["windows"], validation["windows"])
            self.assertEqual(result["step"], 6)

    def test_eval_of_another_text(self):
        size = (self.folder / "other.txt").stat().st_size
        other = self.eval("--text", "other.txt")
        self.assertEqual(other["windows"], size // 32)
        self.assertNotEqual(other["loss"], self.eval()["loss"])
        self.assertEqual(self.eval("--text", "other.txt", "--max-windows", "3")["windows"], 3)
        short = self.eval("--text", "short.txt")  # one window with padding
        self.assertEqual(short["windows"], 1)
        self.assertAlmostEqual(short["bits_per_byte"], short["loss"] / math.log(2), delta=1e-5)

    def test_eval_refuses(self):
        for arguments, code, *words in [
                ("--text missing.txt", DATA, "'missing.txt'"),
                ("--text empty.txt", DATA, "'empty.txt'", "empty"),
                ("--compute-backend fastest", USAGE, "'fastest'", *BACKENDS),
                ("--compute-backend bmm", USAGE, "'bmm'", "batched_mm_capacity")]:
            self.refuse(["eval", "--checkpoint", "run", *arguments.split()], code, *words)

    def test_export_and_back(self):
        refused = ["export", "--to", "hf", "--checkpoint", "run", "--out", "hf"]
        self.refuse(refused, USAGE, "moe.num_shared_experts is 1", "family mixtral", "want 0")
        self.refuse([*refused, "--family", "gpt2"], USAGE, "--family is 'gpt2'", "mixtral, olmoe")
        self.succeed("train", *TINY, "--run.folder", "plain", "--moe.num_shared_experts", "0",
                     "--moe.balance_coeff", "0")
        export = ["export", "--to", "hf", "--checkpoint", "plain", "--out"]
        self.refuse([*export, "hf", "--dtype", "int8"], USAGE, "'int8'", "bfloat16")
        self.assertFalse((self.folder / "hf").exists())
        self.assertIn(b"mixtral", self.succeed(*export, "hf", "--max-shard-bytes", "20000").out)
        self.refuse([*export, "hf"], USAGE, "'hf' exists")
        self.assertGreater(len(list((self.folder / "hf").glob("model-*.safetensors"))), 1)
        text = ["--text", "other.txt", "--num-threads", "1"]
        losses = [json.loads(self.amoeba("eval", "--checkpoint", folder, *text).out)["loss"]
                  for folder in ("plain", "hf")]
        self.assertAlmostEqual(*losses, delta=1e-6)
        more = ["--config", "tiny.toml", "--data.path", "text.txt", "--data.tokenizer", "bytes",
                "--model.from", "hf", "--run.folder", "more"]
        self.refuse(["train", *more, "--model.num_layers", "3"], USAGE, "model.num_layers is 3",
                    "num_hidden_layers of model.from makes it 2", "hf/config.json")
        self.assertIn("weights: from hf", self.succeed("train", *more).err)

    def test_eval_without_text_held_out(self):
        self.succeed("train", *TINY, "--run.folder", "all", "--training.steps", "1",
                     "--data.validation_fraction", "0")
        self.refuse(["eval", "--checkpoint", "all"], DATA, "data.validation_fraction is 0",
                    "--text")

    def test_a_finished_run_is_not_overwritten(self):
        before = snapshot(self.run_folder)
        self.refuse(["train", *TINY, "--run.folder", "run"], USAGE, "'run'", "step 6",
                    "--resume auto")
        self.assertEqual(snapshot(self.run_folder), before)

    def test_resume_of_a_folder_without_checkpoint(self):
        for path in ["missing", "folder", "run"]:
            self.refuse(["train", *TINY, "--run.folder", "resumed", "--resume", path], DATA,
                        f"'{path}'", "checkpoint")

    def test_resume_with_another_model(self):
        shutil.copytree(self.run_folder, self.folder / "changed")
        result = self.amoeba("train", *TINY, "--run.folder", "changed", "--resume", "auto",
                             "--model.dim", "64")
        self.check_refusal(result, DATA, "tensor", "32", "64", "configuration", only=False)
        self.assertIn("model.dim was 32, is now 64", result.err)


class Extras(CliTest):
    """What a run writes besides checkpoints, metrics and report, and the verb that finds a rate."""

    def test_traces_of_chosen_steps(self):
        result = self.succeed("train", *TINY, "--run.folder", "traced", "--profiling.start_step",
                              "5", "--profiling.num_steps", "3")
        traces = sorted((self.folder / "traced/traces").iterdir())
        self.assertEqual([path.name for path in traces],
                         ["step-00000005.json", "step-00000006.json"])  # the run ends at 6
        for path, step in zip(traces, [5, 6]):
            self.assertIn(f"trace: traced/traces/{path.name}", result.err)
            events = json.loads(path.read_text())["traceEvents"]
            names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
            self.assertEqual(names, {f"step {step}", "data", "norm", "attention", "router",
                                     "routed experts", "experts", "feed forward",
                                     "loss", "backward", "optimizer"})
            self.assertGreater(sum(event.get("cat") == "cpu_op" for event in events), 100)
        self.assertNotIn("USDT", result.err)

    def test_batch_ramp(self):
        self.succeed("train", *TINY, "--run.folder", "ramp", "--training.global_batch_size", "6",
                     "--training.batch_ramp_start", "2", "--training.batch_ramp_steps", "4")
        seen = [step["tokens_seen"] for step in metrics_of(self.folder / "ramp", "step")]
        sizes = [after - before for before, after in zip([0] + seen, seen)]
        self.assertEqual(sizes, [32 * sequences for sequences in [2, 2, 4, 4, 6, 6]])

    def test_find_lr(self):
        result = self.succeed("find-lr", *TINY, "--run.folder", "rates", "--num-steps", "30",
                              "--min-lr", "1e-4")
        self.assertEqual(sorted(path.name for path in (self.folder / "rates").iterdir()),
                         ["lr_finder.html", "lr_finder.json"])
        found = json.loads((self.folder / "rates/lr_finder.json").read_text())
        self.assertAlmostEqual(found["points"][0]["lr"], 1e-4)
        self.assertLessEqual(len(found["points"]), 30)
        self.assertIn("amoeba find-lr", found["command"])
        for words in [b"        lr      loss  smoothed\n", b"ended after ", b"curve:  rates/",
                      b"values: rates/lr_finder.json"]:
            self.assertIn(words, result.out)
        self.assertRegex(result.out, rb"suggestion, the lower of the two|not clear: ")
        self.assertIn("find-lr: 3/30  lr: ", result.err)


class Stopping(CliTest):
    """Standard error is a pipe of one page that nobody empties: the run waits at a known place."""

    PAGE = 4096
    LONGEST_LINE = 400

    def start(self, run):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, self.PAGE)
        process = subprocess.Popen([self.binary, "train", *LONG, "--run.folder", run], cwd=self.folder,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=writer)
        os.close(writer)
        err = os.fdopen(reader, "rb", buffering=0)
        for cleanup in [err.close, process.wait, process.kill]:  # the last one goes first
            self.addCleanup(cleanup)
        return process, err

    def wait_until(self, happened, process):
        for _ in range(100 * TIMEOUT):
            if happened():
                return
            self.assertIsNone(process.poll(), "the run ended early")
            time.sleep(0.01)
        self.fail("nothing happened")

    def wait_until_handled(self, process):
        def none_pending():
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            return not any(int(mask, 16) for mask in re.findall(r"(?:Sig|Shd)Pnd:\s*(\w+)", status))
        self.wait_until(none_pending, process)

    def test_stopped_and_resumed_equals_the_whole_run(self):
        self.succeed("train", *LONG, "--run.folder", "whole")
        process, err = self.start("stopped")
        # At most one page of lines ahead of what was read, the run is far from its end here.
        while not (line := err.readline()).startswith(b"step: 3/60 "):
            self.assertTrue(line)
        process.send_signal(signal.SIGTERM)
        rest = err.read()
        self.assertEqual(process.wait(TIMEOUT), OK, rest)
        self.assertNotIn(b"amoeba: ", rest)
        run = self.folder / "stopped"
        end = metrics_of(run, "end")[-1]
        self.assertEqual(end["reason"], "stopped by a signal")
        self.assertTrue(3 <= end["step"] < 60, end)
        newest = max((run / "checkpoints").iterdir())
        self.assertEqual(manifest_of(newest)["step"], end["step"])

        resumed = self.succeed("train", *LONG, "--run.folder", "stopped", "--resume", "auto")
        self.assertIn(f"resume: step {end['step']} from ", resumed.err)
        last = "checkpoints/step-00000060"
        whole = hashes(self.folder / "whole" / last)
        self.assertGreater(len(whole), 30)
        self.assertEqual(hashes(run / last), whole)

        # Once more there is nothing to do.
        self.succeed("train", *LONG, "--run.folder", "stopped", "--resume", "auto")
        self.assertEqual(hashes(run / last), whole)

    def test_second_signal_ends_at_once(self):
        process, err = self.start("killed")
        count = array.array("i", [0])
        asleep = 0

        def waits_for_the_pipe():
            nonlocal asleep
            fcntl.ioctl(err, termios.FIONREAD, count)
            state = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1][0]
            is_full = count[0] > self.PAGE - self.LONGEST_LINE
            asleep = asleep + 1 if is_full and state == "S" else 0
            return asleep == 5
        self.wait_until(waits_for_the_pipe, process)
        process.send_signal(signal.SIGTERM)
        self.wait_until_handled(process)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(TIMEOUT), -signal.SIGTERM)
        for folder in (self.folder / "killed").glob("checkpoints/step-*"):
            self.assertTrue(folder.name.endswith(".partial") or (folder / "manifest.json").exists())
        resumed = self.succeed("train", *LONG, "--run.folder", "killed", "--resume", "auto")
        self.assertNotIn("warning", resumed.err)


class Damage(CliTest):
    def flip(self, checkpoint, group):
        """Flips one bit in the middle of the last tensor of the group; returns its name."""
        path = next(checkpoint.glob(f"{group}-*.safetensors"))
        data = bytearray(path.read_bytes())
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + header_size])
        header.pop("__metadata__", None)
        name, entry = max(header.items(), key=lambda item: item[1]["data_offsets"])
        begin, end = entry["data_offsets"]
        data[8 + header_size + (begin + end) // 2] ^= 1
        path.write_bytes(data)
        return name

    def test_damaged_newest_checkpoint_is_passed_over(self):
        self.succeed("train", *TINY, "--run.folder", "good", "--checkpoint.interval", "2")
        for group in ["weights", "optimizer"]:
            with self.subTest(group):
                run = self.folder / group
                shutil.copytree(self.folder / "good", run)
                newest = run / "checkpoints/step-00000006"
                name = self.flip(newest, group)
                sampled = self.amoeba("generate", "--checkpoint", group, "--prompt", "x",
                                      "--num-threads", "1", "--num-tokens", "1")
                result = self.succeed("train", *TINY, "--run.folder", group, "--resume", "auto")
                for text in [sampled.err, result.err]:
                    warnings = [line for line in text.splitlines() if line.startswith("warning: ")]
                    self.assertEqual(len(warnings), 1, text)
                    self.assertIn(f"'{name}'", warnings[0])
                    self.assertIn("step-00000006", warnings[0])
                self.assertIn("resume: step 4 from ", result.err)
                good = self.folder / "good/checkpoints/step-00000006"
                self.assertEqual(hashes(newest), hashes(good))
                self.assertFalse(list(run.glob("checkpoints/*.replaced")))
                self.succeed("generate", "--checkpoint", newest, "--prompt", "x",
                             "--num-threads", "1", "--num-tokens", "1")

    def test_checkpoints_are_listed_and_verified(self):
        self.succeed("train", *TINY, "--run.folder", "kept", "--checkpoint.interval", "2",
                     "--checkpoint.last_save_model_only", "true",
                     "--checkpoint.export_dtype", "bfloat16")
        listed = self.succeed("checkpoint", "list", "kept").out.decode().splitlines()
        self.assertEqual(len(listed), 4)
        for line, step, content in zip(listed[1:], [6, 4, 2], ["weights", "full", "full"]):
            self.assertRegex(line, rf"^ +{step} +{step * 64} +[\d.]+ KiB +\d+s  {content} +2  "
                                   rf"kept/checkpoints/step-0000000{step}$")
        lines = self.succeed("checkpoint", "verify", "kept/").out.decode().splitlines()
        self.assertEqual([line[:42] for line in lines],
                         [f"ok       kept/checkpoints/step-0000000{step}: s" for step in (6, 4, 2)])
        damaged = self.folder / "kept/checkpoints/step-00000004"
        name = self.flip(damaged, "optimizer")
        for path, num_lines in [("kept", 3), (damaged, 1)]:
            result = self.amoeba("checkpoint", "verify", path)
            self.assertEqual(result.code, DATA, result)
            lines = result.out.decode().splitlines()
            self.assertEqual(len(lines), num_lines)
            line = next(line for line in lines if line.startswith("damaged "))
            self.assertIn("step-00000004/optimizer-", line)
            self.assertIn(f"tensor '{name}'", line)
        (self.folder / "kept/checkpoints/step-00000002/manifest.json").unlink()
        result = self.amoeba("checkpoint", "list", "kept")
        self.assertEqual(result.code, DATA, result)
        self.assertIn(b"damaged  read 'kept/checkpoints/step-00000002/manifest.json'", result.out)
        self.refuse(["checkpoint", "verify", "text.txt"], DATA, "'text.txt' is not a folder")
        self.refuse(["checkpoint", "list", "folder"], DATA, "none in 'folder'")
        self.refuse(["train", *TINY, "--run.folder", "kept", "--training.steps", "8", "--resume",
                     "auto"], DATA, "step-00000006 holds weights only", only=False)

    def test_damage_asked_for_by_name_is_refused(self):
        self.succeed("train", *TINY, "--run.folder", "named")
        newest = self.folder / "named/checkpoints/step-00000006"
        name = self.flip(newest, "weights")
        self.refuse(["eval", "--checkpoint", newest], DATA, f"'{name}'", "damaged")
        self.refuse(["train", *TINY, "--run.folder", "other", "--resume", newest], DATA,
                    f"'{name}'", "damaged")
        self.refuse(["eval", "--checkpoint", "named"], DATA, "'named'", only=False)


class Numeric(CliTest):
    def test_a_run_that_explodes_saves_what_was_before(self):
        result = self.amoeba("train", *TINY, "--run.folder", "run", "--training.steps", "40",
                             "--optimizer.lr", "1e30", "--training.max_norm", "0",
                             "--training.max_rejected_steps", "3")
        self.check_refusal(result, NUMERIC, "3 steps in a row", "run/checkpoints/step-",
                           "optimizer.lr", only=False)
        saved = max((self.folder / "run/checkpoints").iterdir())
        self.assertIn(str(saved.relative_to(self.folder)), result.err)
        rejected = [step["step"] for step in metrics_of(self.folder / "run", "step")
                    if step["rejected"]]
        self.assertEqual(rejected[-1], manifest_of(saved)["step"])
        self.assertGreaterEqual(result.err.count(" rejected: loss "), 3)
        # It loads: sampling reads every tensor and its hash.
        self.succeed("generate", "--checkpoint", "run", "--prompt", "x", "--num-tokens", "1",
                     "--num-threads", "1")


class HostileFiles(CliTest):
    """What tests/train_plain/hostile_files_test.cpp gives to the library, given to the program."""

    def test_each_is_one_line(self):
        def write(name, data):
            (self.folder / name).write_bytes(data)
            return name

        def tokenizer(vocabulary):
            return write("t.json", json.dumps({
                "added_tokens": [{"id": 0, "content": "</s>", "special": True}],
                "decoder": {"type": "ByteLevel"},
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}).encode())

        def npy(shape):
            header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}".encode()
            return write("f.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(8))

        (self.folder / "loop").symlink_to("loop")
        (self.folder / "empty").mkdir()
        os.mkfifo(self.folder / "pipe")
        write("counts.bin", bytes(8))
        write("counts.idx", b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1 << 62, 1 << 62))
        cases = [  # data.path, words of the error
            ("/dev/zero", "'/dev/zero'", "is not a regular file"),
            ("pipe", "'pipe'", "is not a regular file"),
            ("loop", "'loop'", "Too many levels of symbolic links"),
            ("empty", "is a folder without dataset.json"),
            (npy("(99999999999999999999,)"), "'f.npy'", "has a bad shape"),
            ("counts.bin", "'counts.idx'", "want 34 + 12 * sequences"),
            (write("shard.bin", struct.pack("<iii", 20240520, 1, -1) + bytes(1012)),
             "'shard.bin'", "number of tokens is -1"),
            (write("f.jsonl", b'{"text": 7}\n'), "f.jsonl line 1", "'text' is integer, want string"),
            (write("deep.jsonl", b"[" * 100000), "deep.jsonl", "nested deeper than 64"),
        ]
        for path, *words in cases:
            self.refuse(["train", "--config", "tiny.toml", "--data.path", path, "--run.folder", "never"],
                        DATA, *words)
        for make, word in [(lambda: tokenizer({"a": 1, "b": 1}), "both have id 1"),
                           (lambda: tokenizer({"a": 2000000000}), "id is 2000000000"),
                           (lambda: write("t.json", b"[" * 100000), "nested deeper than 64")]:
            self.refuse(["tokenizer", "encode", "--tokenizer", make(), "--text", "x"], DATA, "t.json", word)
        self.assertFalse((self.folder / "never").exists())


if __name__ == "__main__":
    main()
