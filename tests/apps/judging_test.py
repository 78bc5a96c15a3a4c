"""Drives amoeba eval and amoeba generate on a tiny trained model: judging_test.py BINARY [unittest options].

What they print, to whom, and what they refuse; the numbers themselves are tested in tests/train.
"""

import json
import math
import os
import pty
import signal
import subprocess
import time

from driver import DATA, OK, TIMEOUT, USAGE, AppTest, main, make_text

CONTEXT = 32
CONFIG = f"""
[model]
dim = 32
num_layers = 2
[moe]
num_experts = 4
hidden_dim = 32
[training]
steps = 60
seq_len = {CONTEXT}
local_batch_size = 8
num_threads = 1
[optimizer]
lr = 1e-2
[lr_scheduler]
warmup_steps = 5
[metrics]
report = false
[validation]
interval = 0
"""


def question(context, choices, answer):
    return json.dumps({"context": context, "choices": choices, "answer": answer}) + "\n"


class Judging(AppTest):
    @staticmethod
    def make_files(folder):
        files = {
            "tiny.toml": CONFIG,
            "text.txt": make_text(2500, seed=1),
            "other.txt": make_text(900, seed=2),
            "lines.jsonl": json.dumps({"text": make_text(60, seed=3)}) + "\n",
            # The model has seen the words of the right answers only.
            "words.jsonl": question("in the ", ["zzqx", "beginning", "jkjkjk"], 1)
                           + question("it moved", [" upon", " qqqq"], "A")
                           + question("upon face " * 9 + "of", [" xyzzy", " waters"], 1),
            "wrong.jsonl": question("in the", [" waters", " xqxq"], 1),
            "broken.jsonl": question("a", ["b", "c"], 0) + '{"context": "a", "choices": ["b", "c"]}\n',
            "prompts.jsonl": "".join(json.dumps({"prompt": prompt}) + "\n"
                                     for prompt in ("in the ", "it ", "upon face of ")),
            "bad_prompts.jsonl": '{"prompt": "a"}\n{"prompt": ""}\n',
            "prompt.txt": "in the beginning\nwas ",
            "empty.txt": "",
        }
        for name, content in files.items():
            (folder / name).write_text(content)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.trained = cls.amoeba("train", "--config", "tiny.toml", "--data.path", "text.txt",
                                 "--run.folder", "run")

    def setUp(self):
        self.assertEqual(self.trained.code, OK, self.trained)

    def run_on(self, verb, *arguments, stdin=b""):
        return self.succeed(verb, "--checkpoint", "run", "--num-threads", "1", *arguments, stdin=stdin)

    def eval(self, *arguments):
        return [json.loads(line) for line in self.run_on("eval", *arguments).out.splitlines()]

    def generate(self, *arguments, stdin=b""):
        return self.run_on("generate", *arguments, stdin=stdin).out.decode()

    def test_each_text_and_all_of_them(self):
        self.amoeba("data", "prepare", "--input", "other.txt", "--output", "tokens")
        paths = ["other.txt", "lines.jsonl", "tokens"]
        *parts, total = self.eval(*(word for path in paths for word in ("--text", path)))
        self.assertEqual([part["file"] for part in parts], paths)
        self.assertEqual({part["kind"] for part in parts}, {"text"})
        self.assertEqual(total["kind"], "text_total")
        self.assertNotIn("file", total)
        for key in ("windows", "tokens", "bytes"):
            self.assertEqual(total[key], sum(part[key] for part in parts), key)
        for part, path in zip(parts, paths):
            alone, = self.eval("--text", path)
            self.assertEqual({**alone, "seconds": 0}, {**part, "seconds": 0})
            self.assertAlmostEqual(part["perplexity"], math.exp(part["loss"]))
            self.assertEqual((part["step"], part["complete"]), (60, True))
        nats = sum(part["loss"] * part["tokens"] for part in parts)
        self.assertAlmostEqual(total["loss"], nats / total["tokens"])
        self.assertAlmostEqual(total["bits_per_byte"], nats / math.log(2) / total["bytes"])
        limited, = self.eval("--text", "other.txt", "--max-windows", "3")
        self.assertEqual((limited["windows"], limited["complete"]), (3, True))

    def test_shorter_windows(self):
        whole, = self.eval("--text", "other.txt")
        half, = self.eval("--text", "other.txt", "--seq-len", CONTEXT // 2)
        self.assertIn(half["windows"], (2 * whole["windows"], 2 * whole["windows"] + 1))
        self.assertNotEqual(half["loss"], whole["loss"])

    def test_held_out_part_by_default(self):
        record, = self.eval()
        self.assertEqual((record["kind"], record["file"]), ("held_out", str(self.folder / "text.txt")))
        both = self.eval("--text", "other.txt", "--choices", "words.jsonl")
        self.assertEqual([record["kind"] for record in both], ["text", "choices"])

    def test_choices(self):
        words, wrong, total = self.eval("--choices", "words.jsonl", "--choices", "wrong.jsonl")
        self.assertEqual((words["kind"], words["file"]), ("choices", "words.jsonl"))
        self.assertEqual((words["questions"], words["truncated"]), (3, 1))
        self.assertEqual((words["accuracy"], words["accuracy_norm"]), (1.0, 1.0))
        self.assertEqual(words["accuracy_stderr"], 0.0)
        self.assertEqual((wrong["accuracy"], wrong["accuracy_stderr"]), (0.0, None))
        self.assertEqual((total["kind"], total["questions"]), ("choices_total", 4))
        self.assertEqual(total["accuracy"], 0.75)
        self.assertAlmostEqual(total["accuracy_stderr"], 0.25)
        first, = self.eval("--choices", "words.jsonl", "--max-questions", "1")
        self.assertEqual(first["questions"], 1)

    def test_json_file_and_lines_for_a_reader(self):
        arguments = ["--text", "other.txt", "--choices", "words.jsonl"]
        want = self.eval(*arguments)
        shown = self.run_on("eval", *arguments, "--json", "result.jsonl").out.decode().splitlines()
        got = [json.loads(line) for line in (self.folder / "result.jsonl").read_text().splitlines()]
        self.assertEqual([{**record, "seconds": 0} for record in got],
                         [{**record, "seconds": 0} for record in want])
        self.assertRegex(shown[0], r"^other.txt:  loss \d\.\d{4}  perplexity .*  windows \d+")
        self.assertRegex(shown[1], r"^words.jsonl:  accuracy 1.0000  accuracy_stderr 0.0000 ")

    def test_eval_refuses(self):
        run = ["eval", "--checkpoint", "run"]
        self.refuse([*run, "--choices", "broken.jsonl"], DATA, "broken.jsonl:2", "answer")
        self.refuse([*run, "--choices", "words.jsonl", "--choices", "broken.jsonl"], DATA,
                    "broken.jsonl:2")
        self.refuse([*run, "--choices", "missing.jsonl"], DATA, "missing.jsonl")
        self.refuse([*run, "--choices", "empty.txt"], DATA, "empty.txt", "JSON object")
        self.refuse([*run, "--max-questions", "-1"], USAGE, "--max-questions")
        self.refuse([*run, "--seq-len", CONTEXT + 1], USAGE, "--seq-len: got 33", "at most the model's 32")
        self.refuse([*run, "--text", "other.txt", "--json", "text.txt/x"], DATA, "text.txt/x")

    def test_streams_as_it_prints(self):
        text = self.generate("--prompt", "in the ", "--num-tokens", "80", "--seed", "3")
        self.assertTrue(text.startswith("in the ") and text.endswith("\n"))
        batch = self.generate("--prompt", "in the ", "--prompt", "it ", "--num-tokens", "80", "--seed", "3")
        record = json.loads(batch.splitlines()[0])
        self.assertEqual(record["prompt"] + record["text"] + "\n", text)
        file = self.generate("--prompt-file", "prompt.txt", "--num-tokens", "5")
        self.assertTrue(file.startswith("in the beginning\nwas "))

    def test_prompts_together_equal_prompts_alone(self):
        settings = ["--num-tokens", "70", "--top-k", "5", "--top-p", "0.9"]
        lines = self.generate("--prompts-file", "prompts.jsonl", *settings).splitlines()
        records = [json.loads(line) for line in lines]
        self.assertEqual([record["prompt"] for record in records], ["in the ", "it ", "upon face of "])
        for record in records:
            alone = self.generate("--prompt", record["prompt"], *settings)
            self.assertEqual(record["prompt"] + record["text"] + "\n", alone)
            self.assertEqual((record["num_tokens"], record["reason"]), (70, "num_tokens"))
        two = self.generate("--prompts-file", "prompts.jsonl", "--batch-size", "2", *settings)
        self.assertEqual(two.splitlines(), lines)

    def test_stops_before_a_string(self):
        greedy = ["--prompt", "in the ", "--temperature", "0", "--num-tokens", "60"]
        text = self.generate(*greedy)[len("in the "):-1]
        for stop in (text[9:11], text[20:23], text[:2]):
            stopped = self.generate(*greedy, "--stop", stop, "--stop", "never there")
            self.assertEqual(stopped, "in the " + text[:text.index(stop)] + "\n")

    def test_settings_change_the_text(self):
        base = ["--prompt", "in the ", "--num-tokens", "60", "--temperature", "1.5"]
        text = self.generate(*base)
        self.assertEqual(self.generate(*base), text)
        self.assertEqual(self.generate(*base, "--top-k", "1"),
                         self.generate(*base, "--temperature", "0"))
        self.assertEqual(self.generate(*base, "--top-p", "1e-9"),
                         self.generate(*base, "--temperature", "0"))
        self.assertNotEqual(self.generate(*base, "--seed", "2"), text)

    def test_speeds_of_both_parts(self):
        err = self.run_on("generate", "--prompt", "in the ", "--num-tokens", "20").err
        self.assertRegex(err, r"prompt: 7 tokens, \d+ a second; decoding: 19 tokens, \d+ a second; step 60\n")

    def test_chat_on_a_pipe(self):
        settings = ["--chat", "--temperature", "0", "--num-tokens", "9"]
        first = self.generate(*settings, stdin=b"in the\n")
        self.assertTrue(first.endswith("\n"))
        # Empty lines ask nothing; the last line needs no end.
        both = self.generate(*settings, stdin=b"in the\n\n  \nupon face")
        self.assertTrue(both.startswith(first))
        self.assertGreater(len(both), len(first) + 1)
        self.assertEqual(self.generate(*settings, stdin=b""), "")
        # The answer depends on what was said before.
        long = self.run_on("generate", *settings, "--seed", "4", stdin=b"the waters upon face\n" * 4)
        self.assertIn("the context was full", long.err)

    def test_chat_stops_at_a_line(self):
        text = self.generate("--chat", "--stop", "\n", "--num-tokens", "200", "--seed", "2",
                             stdin=b"in the\nit moved\n")
        self.assertLessEqual(text.count("\n"), 2)

    def test_chat_on_a_terminal_ends_with_ctrl_c(self):
        master, slave = pty.openpty()
        process = subprocess.Popen([self.binary, "generate", "--checkpoint", "run", "--chat", "--num-threads",
                                    "1", "--num-tokens", "5"], cwd=self.folder, stdin=slave, stdout=slave,
                                   stderr=subprocess.PIPE)
        os.close(slave)
        self.addCleanup(os.close, master)
        self.addCleanup(process.stderr.close)
        self.read_until(master, b"> ")
        os.write(master, b"in the\n")
        self.read_until(master, b"> ")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(TIMEOUT), OK)
        self.assertIn(b"decoding: 4 tokens", process.stderr.read())

    def read_until(self, terminal, words):
        seen, deadline = b"", time.monotonic() + TIMEOUT
        while words not in seen:
            self.assertLess(time.monotonic(), deadline, seen)
            seen += os.read(terminal, 4096)

    def test_ctrl_c_ends_a_text(self):
        process = subprocess.Popen([self.binary, "generate", "--checkpoint", "run", "--prompt", "in the ",
                                    "--num-tokens", "100000000", "--num-threads", "1"], cwd=self.folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        seen = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, OK, err)
        text = (seen + rest).decode()
        self.assertTrue(text.startswith("in the ") and text.endswith("\n"))
        self.assertIn(b"a second", err)

    def test_generate_refuses(self):
        run = ["generate", "--checkpoint", "run"]
        prompt = [*run, "--prompt", "x"]
        self.refuse(run, USAGE, "--prompt is missing", "--chat")
        self.refuse([*prompt, "--chat"], USAGE, "got 2 of", "want one")
        self.refuse([*prompt, "--top-p", "0"], USAGE, "--top-p", "'0'")
        self.refuse([*prompt, "--top-p", "1.1"], USAGE, "--top-p", "'1.1'")
        self.refuse([*prompt, "--top-k", "-2"], USAGE, "--top-k", "'-2'")
        self.refuse([*prompt, "--stop", ""], USAGE, "--stop is empty")
        self.refuse([*prompt, "--batch-size", "0"], USAGE, "--batch-size", "'0'")
        self.refuse([*run, "--prompts-file", "bad_prompts.jsonl"], DATA, "bad_prompts.jsonl:2", "empty")
        self.refuse([*run, "--prompts-file", "words.jsonl"], DATA, "words.jsonl:1", "prompt")
        self.refuse([*run, "--prompt-file", "empty.txt"], DATA, "'empty.txt' is empty")

    def test_help_teaches(self):
        for verb, words in (("eval", ["--choices", '"answer": 0', "accuracy_norm", "examples:"]),
                            ("generate", ["--top-k", "--top-p", "--stop", "--chat", "examples:"])):
            text = self.amoeba(verb, "--help").out.decode()
            for word in words:
                self.assertIn(word, text)


if __name__ == "__main__":
    main()
