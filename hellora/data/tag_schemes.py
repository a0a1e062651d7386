"""Schemes of tags that say where entities are; all of them are brought into one, IOB2.

IOB2     B-PER I-PER O       each entity begins with B
IOB1     I-PER I-PER O       B only where an entity follows another of its type
IOBES    B-PER E-PER S-LOC   the last word is E, a lone one S; BILOU says L and U, BMES M for inside
"""

import re
from collections.abc import Collection, Iterable
from itertools import pairwise

OUTSIDE = "O"
BEGINS, ENDS = "BSUW", "ESLUW"  # parts that always begin an entity, and those that end it
TYPED = re.compile(rf"([{BEGINS}{ENDS}IM])[-_](.+)")
LIKE_TYPED = re.compile(r"([BIbi])[-_:|./].+|.+[-_:|./]([BIbi])")  # as people write it elsewhere
Tags = list[str]


def parted(tag: str) -> tuple[str, str] | None:
    """Return part and type of an entity's tag, such as ("B", "PER"); None of any other tag, outside or plain."""
    if tag in (*BEGINS, *ENDS, "I", "M"):  # of entities of one type, which has no name
        return tag, ""
    match = TYPED.fullmatch(tag)
    return None if match is None else (match[1], match[2])


def are_of_entities(tags: Collection[str]) -> bool:
    """Say whether a set of tags says where entities are; nothing but O says that there are none."""
    inside = {*tags} - {OUTSIDE}
    typed = {tag for tag in inside if TYPED.fullmatch(tag)}
    bare = not inside.isdisjoint("BI") and all(parted(tag) for tag in inside)  # of one type, which has no name
    return not inside or bare or typed == inside or (bool(typed) and OUTSIDE in tags)


def in_another_notation(tags: Collection[str]) -> bool:
    """Say whether tags seem to be of entities, and are not written so: all but one are like b-PER, B:PER or PER-B, with
    beginnings and insides; the other one is what they have in the place of O."""
    like = [match for tag in tags if (match := LIKE_TYPED.fullmatch(tag))]
    parts = {(match[1] or match[2]).upper() for match in like}
    return not are_of_entities(tags) and len({*tags}) - len(like) <= 1 and parts == {"B", "I"}


def in_iob2(tags: Iterable[str]) -> Tags:
    """Return the tags of a sentence in IOB2. What is inside an entity that nothing has begun begins it, as the CoNLL
    tasks count; what is no tag of an entity is outside."""
    found: Tags = []
    before: str | None = None  # the type of the entity that may go on
    for tag in tags:
        part, kind = parted(tag) or (OUTSIDE, "")
        if part == OUTSIDE:
            found.append(OUTSIDE)
            before = None
            continue
        goes_on = part not in BEGINS and kind == before
        found.append("-".join(filter(None, ("I" if goes_on else "B", kind))))
        before = None if part in ENDS else kind
    return found


def scheme_of(sentences: Iterable[Tags]) -> str:
    """Name the scheme of sentences whose tags are of entities."""
    parts: set[str] = set()
    begun = lone = 0  # tags I that begin an entity, and tags B where I would have done in IOB1
    for tags in sentences:
        split_up = [parted(tag) for tag in tags]
        parts.update(each[0] for each in split_up if each)
        for before, own in pairwise([None, *split_up]):
            follows = before is not None and own is not None and before[1] == own[1]
            begun += own is not None and own[0] == "I" and not follows
            lone += own is not None and own[0] == "B" and not follows
    if parts & {*"ESLUMW"}:
        return "BMES" if parts & {*"MW"} else "BILOU" if parts & {*"LU"} else "IOBES"
    return ("IOB1 and IOB2 mixed" if lone else "IOB1") if begun else "IOB2"


def spans(tags: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return the entities of a sentence: the type of each, its first word, and the one behind its last."""
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate(in_iob2(tags)):
        part, kind = parted(tag) or (OUTSIDE, "")
        if part == "B":
            found.append((kind, place, place + 1))
        elif part == "I":
            found[-1] = (kind, found[-1][1], place + 1)
    return found
