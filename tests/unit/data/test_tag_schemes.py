"""Tags of entities in every scheme come out in IOB2, and the scheme is named."""

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from hellora.data.tag_schemes import are_of_entities, in_iob2, scheme_of, spans

WANTED = ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O", "B-ORG"]  # two people, side by side
SAME = {
    "IOB2": WANTED,
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-LOC", "I-LOC", "O", "I-ORG"],
    "IOB1 and IOB2 mixed": ["B-PER", "I-PER", "B-PER", "O", "I-LOC", "I-LOC", "I-LOC", "O", "B-ORG"],
    "IOBES": ["B-PER", "E-PER", "S-PER", "O", "B-LOC", "I-LOC", "E-LOC", "O", "S-ORG"],
    "BILOU": ["B-PER", "L-PER", "U-PER", "O", "B-LOC", "I-LOC", "L-LOC", "O", "U-ORG"],
    "BMES": ["B_PER", "E_PER", "S_PER", "O", "B_LOC", "M_LOC", "E_LOC", "O", "S_ORG"],
}


@pytest.mark.parametrize("scheme", SAME)
def test_every_scheme_says_the_same(scheme: str) -> None:
    assert in_iob2(SAME[scheme]) == WANTED
    assert scheme_of([["O"], SAME[scheme]]) == scheme
    assert spans(SAME[scheme]) == [("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 7), ("ORG", 8, 9)]


@pytest.mark.parametrize(
    ("odd", "wanted"),
    [
        (["O", "I-PER", "I-LOC"], ["O", "B-PER", "B-LOC"]),  # nothing has begun these
        (["B-PER", "I-LOC", "E-LOC", "I-LOC"], ["B-PER", "B-LOC", "I-LOC", "B-LOC"]),
        (["E-PER", "S-PER", "I-PER"], ["B-PER", "B-PER", "B-PER"]),
        (["B", "I", "O", "I"], ["B", "I", "O", "B"]),  # of one type without a name
        (["B-work-of-art", "I-work-of-art"], ["B-work-of-art", "I-work-of-art"]),
    ],
)
def test_what_nothing_begins_begins_by_itself(odd: list[str], wanted: list[str]) -> None:
    """As seqeval counts, which the scores of CoNLL's tasks are told by."""
    assert in_iob2(odd) == wanted
    assert [(kind or "_", start, end - 1) for kind, start, end in spans(odd)] == get_entities(odd)


def test_parts_of_speech_are_no_entities() -> None:
    for tags in (["NOUN", "VERB"], ["O", "N", "V", "S"], ["3", "0"], ["PER", "O"]):
        assert not are_of_entities(tags), tags
    for tags in (["O"], ["O", "B", "I"], ["B-NP", "I-NP"], ["O", "B-PER", "odd"]):
        assert are_of_entities(tags), tags
