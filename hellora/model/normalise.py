"""Make foreign configurations and tokenizers behave: each family of models writes the same things in its own way.

What is said here is found in the model itself, never in a list of names.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from hellora.model.targets import NUMBERED

LIMITS = ("max_position_embeddings", "max_seq_len")  # MPT has the second
LENDERS = ("eos_token", "unk_token", "sep_token", "cls_token", "bos_token", "mask_token")


# ------------------------------------------------------------------------------------------------------------- configs


def text_config(config: Any) -> Any:
    """Return the part of a config that is about text; of most models that is all of it."""
    find = getattr(config, "get_text_config", None)
    return config if find is None else find()


def end_ids(*sources: Any) -> list[int]:
    """Collect the ids that end a text, of configs and tokenizers in turn. Each names one, several or none; 0 is an id
    like any other."""
    found: list[int] = []
    for source in sources:
        said = getattr(source, "eos_token_id", None)
        found += [] if said is None else said if isinstance(said, list | tuple) else [said]
    return list(dict.fromkeys(int(token) for token in found))


def blank_end(config: Any) -> int:
    """Return the id that ends a text in which nothing stands; some models look for the end of each text."""
    return (end_ids(text_config(config), config) or [0])[0]


def embedding_rows(net: Any) -> int | None:
    """Count the tokens that the model has a vector for; None where it does not look them up."""
    try:
        table = net.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return int(table.num_embeddings) if isinstance(table, nn.Embedding) else None


def position_limit(net: nn.Module) -> int | None:
    """Return how many tokens the model has positions for; None where there is no limit.

    A table of positions with a padding index is counted from the row behind it, as RoBERTa and its kin do, and one with
    an `offset`, as BART's, from there.
    """
    config: Any = getattr(net, "config", None)
    said = [getattr(text_config(config), name, None) for name in LIMITS]
    found = [limit for limit in said if isinstance(limit, int) and limit > 0]  # XLNet says -1 for any number
    for name, module in net.named_modules():
        leaf = name.rpartition(".")[2]
        if ("position" not in leaf and leaf != "wpe") or NUMBERED.match(name) or isinstance(module, nn.Linear):
            continue
        table = getattr(module, "weight", None)
        if getattr(table, "ndim", 0) == 2 and table is not None:
            padding = getattr(module, "padding_idx", None)
            before = int(getattr(module, "offset", 0)) + (0 if padding is None else padding + 1)
            found.append(table.shape[0] - before)
    return min(found, default=None)


def settle_own_head(net: Any, tokenizer: Any) -> None:
    """Tell the model's own head which id is padding, before which it reads the last token, and which one id ends a
    text: an encoder-decoder's head compares with one, and configs may name several."""
    for config in (net.config, text_config(net.config)):
        config.pad_token_id = tokenizer.pad_token_id
        if isinstance(ends := getattr(config, "eos_token_id", None), list | tuple):
            own = tokenizer.eos_token_id
            config.eos_token_id = own if own in ends else ends[0] if ends else None


# ---------------------------------------------------------------------------------------------------------- tokenizers


def settle_tokenizer(tokenizer: Any, rows: int | None = None) -> None:
    """Let a tokenizer pad and cut on the right, whatever its files say; positions are counted from the left.

    Where it has no padding token, or one that is none of the model's `rows`, another stands in: it is masked.
    """
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None or (rows is not None and tokenizer.pad_token_id >= rows):
        lent = [t for t in borrowable(tokenizer) if rows is None or tokenizer.convert_tokens_to_ids(t) < rows]
        tokenizer.pad_token = lent[0]


def borrows_padding(tokenizer: Any) -> bool:
    """Tell whether a tokenizer's padding token has another use, so that it may well be a stand-in."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tokenizer.pad_token in borrowable(tokenizer)[:-1] or tokenizer.pad_token not in added


def borrowable(tokenizer: Any) -> list[str]:
    """List the tokens that can stand in for padding, the likeliest first; last, the first of all tokens."""
    lent = [getattr(tokenizer, name) for name in LENDERS]
    return [*(token for token in lent if token is not None), tokenizer.convert_ids_to_tokens(0)]


def special_tokens(tokenizer: Any) -> list[str]:
    """List the tokens that stand for no text, the longest first. An unknown word's is none of them, nor is a word that
    stands in for padding."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {str(token) for token in tokenizer.all_special_tokens if token != tokenizer.pad_token}
    return sorted((added | named) - {tokenizer.unk_token}, key=lambda token: (-len(token), token))


def inseparable(tokenizer: Any) -> list[str]:
    """List the special tokens that the tokenizer takes out of a text even if it is told to split them: those in the
    vocabulary of its own model, such as Unigram's `</s>`."""
    tokens = [token for token in special_tokens(tokenizer) if len(token) > 1]
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    return [token for token, own, split in zip(tokens, ids, split_up(tokenizer, tokens), strict=True) if own in split]


def split_up(tokenizer: Any, tokens: list[str]) -> list[list[int]]:
    """Encode special tokens as texts; what cannot be encoded gives no token."""
    how = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    try:
        found: list[list[int]] = tokenizer(tokens, **how)["input_ids"] if tokens else []
    except Exception:  # a tokenizer without a token for unknown words raises its own kind
        return [split_up(tokenizer, [token])[0] for token in tokens] if tokens[1:] else [[]]
    return found


def plain(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Return the same texts, with spaces in what would become a special token though it is to be split."""
    found = list(texts)
    for token in inseparable(tokenizer):
        found = [text.replace(token, " ".join(token)) for text in found]
    return found
