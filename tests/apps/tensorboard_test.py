"""Reads a run's event files back with the package tensorboard: tensorboard_test.py BINARY.

Exits with 77, which CTest takes for skipped, when the package is not installed.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
except ImportError as error:
    print(f"skipped: {error} (scripts/requirements-oracles.txt)")
    sys.exit(77)

BINARY = ""  # set by main
CONFIG = """
[model]
dim = 32
num_layers = 2
[moe]
num_experts = 4
hidden_dim = 32
[training]
seq_len = 32
local_batch_size = 2
num_threads = 1
[lr_scheduler]
warmup_steps = 2
decay_ratio = 0.0
[metrics]
log_interval = 1
report = false
tensorboard = true
[validation]
interval = 2
[checkpoint]
interval = 3
[data]
path = ["text.txt"]
"""
# Tag -> key of metrics.jsonl.
STEP_TAGS = {
    "loss_metrics/global_avg_loss": "loss",
    "loss_metrics/aux_loss": "aux_loss",
    "loss_metrics/z_loss": "z_loss",
    "grad_norm": "grad_norm",
    "lr": "lr",
    "throughput(tps)": "tokens_per_second",
    "tflops": "tflops",
    "time_metrics/end_to_end(s)": "step_seconds",
    "time_metrics/data_loading(s)": "data_seconds",
    "memory/max_active(%)": "memory_percent",
    "n_tokens_seen": "tokens_seen",
}


class TensorBoard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix="amoeba_tensorboard_")
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        (cls.folder / "config.toml").write_text(CONFIG)
        (cls.folder / "text.txt").write_text("so it was said, and so it was written\n" * 200)

    def train(self, run, *more):
        done = subprocess.run([BINARY, "train", "--config", "config.toml", "--run.folder", run,
                               *more], cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)

    def read(self, run):
        accumulator = EventAccumulator(str(self.folder / run / "tensorboard"),
                                       size_guidance={"scalars": 0})
        accumulator.Reload()
        return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
                for tag in accumulator.Tags()["scalars"]}

    def records(self, run, kind):
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def compare(self, scalars, tag, expected):
        self.assertEqual([step for step, _ in scalars[tag]], [step for step, _ in expected], tag)
        for (_, value), (_, want) in zip(scalars[tag], expected):
            self.assertAlmostEqual(value, want, delta=1e-6 * abs(want), msg=tag)

    def test_scalars_are_those_of_the_metrics(self):
        self.train("whole", "--training.steps", "5")
        scalars, steps = self.read("whole"), self.records("whole", "step")
        self.assertEqual(len(steps), 5)
        for tag, key in STEP_TAGS.items():
            self.compare(scalars, tag, [(step["step"], step[key]) for step in steps])
        self.compare(scalars, "memory/max_active(GiB)",
                     [(step["step"], step["memory_peak_bytes"] / 2**30) for step in steps])
        self.compare(scalars, "time_metrics/data_loading(%)",
                     [(step["step"], 100 * step["data_seconds"] / step["step_seconds"])
                      for step in steps])
        for layer in range(2):
            self.compare(scalars, f"experts/layer_{layer}/max_over_mean",
                         [(step["step"], step["experts"][layer]["max_over_mean"])
                          for step in steps])
        validations = self.records("whole", "validation")
        self.assertEqual([record["step"] for record in validations], [2, 4, 5])
        for key in ["loss", "bits_per_byte"]:
            self.compare(scalars, f"validation_metrics/{key}",
                         [(record["step"], record[key]) for record in validations])
        expected = {*STEP_TAGS, "memory/max_active(GiB)", "time_metrics/data_loading(%)",
                    "experts/layer_0/max_over_mean", "experts/layer_1/max_over_mean",
                    "validation_metrics/loss", "validation_metrics/bits_per_byte"}
        self.assertEqual(set(scalars) - {"mfu(%)"}, expected)

    def test_a_resumed_run_goes_on_where_it_was(self):
        self.train("resumed", "--training.steps", "5")
        self.train("resumed", "--training.steps", "8", "--resume", "auto")
        self.assertEqual(len(list((self.folder / "resumed/tensorboard").iterdir())), 2)
        loss = self.read("resumed")["loss_metrics/global_avg_loss"]
        self.assertEqual([step for step, _ in loss], [1, 2, 3, 4, 5, 6, 7, 8])

    def test_steps_done_again_are_not_shown_twice(self):
        # Killed after step 5, the run goes on from the checkpoint of step 3.
        self.train("again", "--training.steps", "5")
        newest = self.folder / "again/checkpoints/step-00000005"
        newest.rename(self.folder / "lost")
        self.train("again", "--training.steps", "6", "--resume", "auto")
        loss = self.read("again")["loss_metrics/global_avg_loss"]
        self.assertEqual([step for step, _ in loss], [1, 2, 3, 4, 5, 6])
        repeated = [record["loss"] for record in self.records("again", "step")
                    if record["step"] == 5]
        self.assertEqual(len(repeated), 2)

    def test_every_record_of_a_file_is_whole(self):
        self.train("file", "--training.steps", "2")
        [path] = (self.folder / "file/tensorboard").iterdir()
        self.assertRegex(path.name, r"^events\.out\.tfevents\.\d{10}\.amoeba$")
        events = list(EventFileLoader(str(path)).Load())
        self.assertEqual(events[0].file_version, "brain.Event:2")
        self.assertEqual([event.step for event in events if event.HasField("summary")], [1, 2, 2])


if __name__ == "__main__":
    BINARY = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
