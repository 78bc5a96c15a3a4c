"""tokenizer.json files in the configurations of the model families, with small vocabularies.

The configurations are those of the published files: normalizer, patterns, decoder, template and kinds of added
tokens of DeepSeek-V3, DeepSeek-V2, Qwen3, OLMoE (GPT-NeoX) and Mixtral (Llama, both its older and newer form).
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
DEEPSEEK2 = [
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7d"
    "ᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ"
    "ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
]
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def train_bytes(tokenizer, texts, vocab_size):
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def deepseek3(texts, vocab_size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([])
    t.pre_tokenizer = pre_tokenizers.Sequence([split(p) for p in DEEPSEEK3] + [byte_level()])
    train_bytes(t, texts, vocab_size)
    names = ["begin▁of▁sentence", "end▁of▁sentence", "▁pad▁"]
    t.add_special_tokens([AddedToken(f"<｜{n}｜>", normalized=True) for n in names])
    t.add_tokens([AddedToken(f"<｜{n}｜>", normalized=False) for n in ("fim▁hole", "User", "Assistant")])
    t.add_tokens([AddedToken("<｜place▁holder▁no▁0｜>", normalized=False), AddedToken("<|EOT|>", normalized=True)])
    return t


def deepseek2(texts, vocab_size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([])
    digits = pre_tokenizers.Digits(individual_digits=True)
    t.pre_tokenizer = pre_tokenizers.Sequence([split(p) for p in DEEPSEEK2] + [digits, byte_level()])
    train_bytes(t, texts, vocab_size)
    t.add_special_tokens([AddedToken(f"<｜{n}▁of▁sentence｜>", normalized=True) for n in ("begin", "end")])
    t.add_tokens([AddedToken("<|EOT|>", normalized=True), AddedToken("ø", normalized=True)])
    return t


def qwen3(texts, vocab_size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN), byte_level()])
    train_bytes(t, texts, vocab_size)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    t.add_special_tokens([AddedToken(n, normalized=False) for n in names])
    t.add_tokens([AddedToken(n, normalized=False) for n in ("<think>", "</think>", "<tool_call>")])
    return t


def olmoe(texts, vocab_size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = byte_level(use_regex=True)
    train_bytes(t, texts, vocab_size)
    t.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    t.add_special_tokens([AddedToken("|||IP_ADDRESS|||", normalized=False)])
    t.add_special_tokens([AddedToken("<|padding|>", normalized=False), AddedToken("<|endoftext|>", normalized=False)])
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return t


def spaces_rules(texts, vocab_size):
    """Every option of an added token, every behaviour of Split; no family has them all."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"\t+"), " ")])
    behaviors = ["removed", "merged_with_previous", "merged_with_next", "contiguous"]
    marks = [pre_tokenizers.Split(m, b) for m, b in zip("~=#-", behaviors)]
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\s+"), "isolated", invert=True)
    last = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    t.pre_tokenizer = pre_tokenizers.Sequence(marks + [words, pre_tokenizers.Digits(False), last])
    train_bytes(t, texts, vocab_size)
    t.add_special_tokens(["<eos>", AddedToken("<mask>", lstrip=True), AddedToken("<r>", rstrip=True, normalized=False)])
    t.add_tokens([AddedToken("the", single_word=True), AddedToken("LORD", lstrip=True, rstrip=True), "ab", "abc"])
    return t


def mixtral(texts, vocab_size, newer=False):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, limit_alphabet=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    words += sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    runs = [("▁", "▁"), ("▁▁", "▁▁"), ("▁▁", "▁"), ("▁▁▁▁", "▁▁▁▁")]
    words += [a + b for a, b in runs]
    vocabulary = {}
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    bpe = models.BPE(vocabulary, merges[:50] + runs + merges[50:], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    bpe.ignore_merges = newer
    t = Tokenizer(bpe)
    if newer:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])])
    t.add_special_tokens([AddedToken(w, normalized=False) for w in ("<unk>", "<s>", "</s>")])
    if newer:
        t.add_tokens([AddedToken("[INST]", normalized=False)])
    return t


def mixtral_metaspace(texts, vocab_size):
    t = mixtral(texts, vocab_size)
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(prepend_scheme="always")
    return t


FAMILIES = {
    "deepseek3": deepseek3,
    "deepseek2": deepseek2,
    "qwen3": qwen3,
    "olmoe": olmoe,
    "mixtral": mixtral,
    "mixtral_newer": lambda texts, size: mixtral(texts, size, newer=True),
    "mixtral_metaspace": mixtral_metaspace,
    "rules": spaces_rules,
}
