"""The starter model's tokenizer: the families' words as one token each, everything else one token a character."""

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>"
WORDS = (
    # the words of the built-in families
    *("make", "from", "using", "right", "wrong", "answer", "compute", "says", "and", "or", "same", "ok", "bad"),
    # room for a family to come: the vocabulary of a checkpoint cannot grow
    *("the", "of", "is", "what", "who", "how", "many", "knight", "knave", "true", "false", "yes", "no"),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + '" + END + "' }}"
    "{% else %}{{ '" + USER + "' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the starter tokenizer from nothing: lossless on ASCII text, with a two-token chat template."""
    characters = "\n" + "".join(c for c in string.printable if c.isprintable())
    vocabulary = dict.fromkeys([PAD, UNKNOWN, USER, ASSISTANT, END, *WORDS, *characters])
    # WordPiece with no continuation mark is the longest match from the left: a known word is one token.
    tokenizer = Tokenizer(
        models.WordPiece(
            vocab={token: index for index, token in enumerate(vocabulary)},
            unk_token=UNKNOWN,
            continuing_subword_prefix="",
            max_input_chars_per_word=2**31 - 1,  # its default of 100 makes a longer run of letters unknown
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
