"""Tokenizers of the kinds that models come with, built from nothing."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from metatune.curricula import build_tokenizer

TEXTS = ["Then 1+1=2.\n\n\n\nWait, no.\n\n", "well.\n\nWait ", "你好 👩‍🚀 é"]


@cache
def make_byte_level() -> PreTrainedTokenizerFast:
    """Bytes merged to tokens, as of GPT-2 or Qwen: characters split, and `.\\n\\n` or `\\n\\nWait` are one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(TEXTS * 20, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    backend.add_tokens([".\n\n", "\n\nWait", "\n\n", "\n", "</think>", "<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")


@cache
def make_sentencepiece() -> PreTrainedTokenizerFast:
    """A space at the start of every text, and a token for each byte, as of Llama 2."""
    pieces = [(piece, -3.0) for piece in "▁abcdefghijklmnopqrstuvwxyzWNT.,:+=12\\{}<>/"]
    pieces += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces, ("▁the", -2.0)], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@cache
def make_word_pieces() -> PreTrainedTokenizerFast:
    """A decoder that treats neighbours differently, as of BERT: no token has a text of its own."""
    backend = Tokenizer(
        models.WordPiece({"[UNK]": 0, "wait": 1, "##ing": 2, ".": 3, "\n": 4, "a": 5}, unk_token="[UNK]")
    )
    backend.add_tokens([AddedToken("don't", special=False)])
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


MAKERS = {
    "starter": cache(build_tokenizer),
    "byte level": make_byte_level,
    "sentencepiece": make_sentencepiece,
    "word pieces": make_word_pieces,
}
