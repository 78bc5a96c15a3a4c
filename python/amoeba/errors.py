"""Bad data that an operator met but could not refuse without waiting for the device.

Each call ORs its error word into one int32 a device, on that device; nothing is read until asked.
"""

import torch

# Bits of src/base/error_word.h.
MEANINGS = {
    1 << 0: "an expert id was outside [-1, E]; its slot was skipped",
    1 << 1: "counts were negative or summed to more than the rows there are, or slots and offsets "
    "contradicted each other; those rows were skipped",
    1 << 2: "router logits held NaN",
    1 << 3: "a loss or gradient norm was not finite",
}

_words = {}  # (device type, index) -> [1] int32


@torch.compiler.assume_constant_result
def _make_word(kind, index):
    """Runs while a caller is being compiled, never inside its graph: the word outlives both."""
    if (kind, index) not in _words:
        with torch.inference_mode(False):  # training may write to it later
            _words[kind, index] = torch.zeros(1, dtype=torch.int32, device=torch.device(kind, index))
    return True


def record(error):
    """ORs `error`, [1] int32, into the word of its device; not where tensors are shapes without data."""
    if type(error) is not torch.Tensor or error.is_meta:
        return
    key = (error.device.type, error.device.index)
    _make_word(*key)
    with torch._C.DisableTorchFunction():  # the word is no part of the computation that a mode looks at
        _words[key].bitwise_or_(error)


def check_errors():
    """Waits for every device used so far and raises RuntimeError when a call since the last check met
    bad data; the message says what. Clears the words."""
    bits = 0
    for word in _words.values():
        bits |= int(word.item())
        word.zero_()
    if bits:
        met = [meaning for bit, meaning in MEANINGS.items() if bits & bit]
        raise RuntimeError(f"amoeba: since the last check, {'; '.join(met)} (error word {bits:#x})")
