"""The segment table against a slow, literal reading of its rule, over random layouts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.segments import PADDING, Runs, build_segment_table, document_ids


def seen_pictures(tokens: list[str], documents: list[int]) -> list[list[int]]:
    """For each token the numbers of the pictures that it sees, by walking through the text one token at a time."""
    seen, picture, group, last_group, document = [], 0, [], [], None
    for i, (token, number) in enumerate(zip(tokens, documents, strict=True)):
        if number != document:
            group, last_group, document = [], [], number
        if token == "image":
            group = [*group, picture]
            picture += 1
            follows = i + 1 < len(tokens) and tokens[i + 1] == "image" and documents[i + 1] == number
            if not follows:
                last_group, group = group, []
        seen.append(last_group)
    return seen


@st.composite
def layouts(draw):
    """Rows of equal width: packed documents of text and <image> tokens, with padding on either side."""
    width = draw(st.integers(1, 12))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        padding = draw(st.integers(0, width - 1))
        on_left = draw(st.booleans())
        body = draw(
            st.lists(
                st.tuples(st.sampled_from("tti"), st.booleans()),
                min_size=width - padding,
                max_size=width - padding,
            )
        )
        rows.append((padding if on_left else 0, body, 0 if on_left else padding))
    return rows, draw(st.lists(st.integers(1, 5), min_size=60, max_size=60))


@given(layouts())
def test_every_token_is_paired_with_the_last_group_before_it_in_its_document(layout):
    rows, lengths = layout
    kinds, documents, expected, number, picture = [], [], [], 0, 0
    offsets = torch.tensor([0, *lengths]).cumsum(0).tolist()
    for left, body, right in rows:
        tokens, row_documents = [], []
        for kind, starts in body:
            number += starts or not row_documents
            tokens.append("image" if kind == "i" else "text")
            row_documents.append(number)
        for pictures in seen_pictures(tokens, row_documents):
            expected.append([k for p in pictures for k in range(offsets[picture + p], offsets[picture + p + 1])])
        picture += tokens.count("image")
        kinds.append([""] * left + tokens + [""] * right)
        documents.append([PADDING] * left + row_documents + [PADDING] * right)
    is_image = torch.tensor([[token == "image" for token in row] for row in kinds])
    table = build_segment_table(is_image, torch.tensor(documents), torch.tensor(lengths[:picture], dtype=torch.long))

    keys = torch.arange(offsets[picture]) if table.key_index is None else table.key_index
    actual = {}
    for r in range(len(table.query_runs)):
        q0, q1 = table.query_runs.cu_seqlens[r : r + 2]
        k0, k1 = table.key_runs.cu_seqlens[r : r + 2]
        actual |= {q: keys[k0:k1].tolist() for q in table.query_index[q0:q1].tolist()}
    text_positions = (torch.tensor(documents).flatten() != PADDING).nonzero().squeeze(1).tolist()
    assert actual == {q: e for q, e in zip(text_positions, expected, strict=True) if e}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_padding_runs_and_back_changes_nothing(lengths):
    runs = Runs.of_lengths(torch.tensor(lengths))
    flat = torch.arange(sum(lengths) * 2.0).view(-1, 2)
    assert torch.equal(runs.unpad(runs.pad(flat)), flat)


def test_documents_start_where_positions_restart():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    assert document_ids(positions).tolist() == [[1, 1, 1, 2, 2, 3]]


def test_padding_belongs_to_no_document():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    documents = document_ids(positions, mask)
    assert (documents == PADDING).tolist() == (mask == 0).tolist()
    assert documents[0, 2] == documents[0, 3] != documents[1, 0]


def test_a_later_token_keeps_what_the_last_token_sees():
    is_image = torch.tensor([[False, True, False, True], [False, False, False, False]])
    documents = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]])
    table = build_segment_table(is_image, documents, torch.tensor([3, 2]))
    assert table.keeps.tolist() == [1, PADDING]


def test_a_cached_group_is_seen_until_a_new_one_comes():
    is_image = torch.tensor([[False, True, False]])
    table = build_segment_table(
        is_image,
        torch.ones(1, 3, dtype=torch.long),
        torch.tensor([2]),
        cached_lengths=torch.tensor([3]),
        cached_width=4,
    )
    assert table.query_runs.lengths.tolist() == [1, 2]
    assert table.key_index.tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_another_number_of_pictures_than_image_tokens_is_refused(pictures):
    is_image = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match=rf"{pictures} pictures for 2 <image> tokens"):
        build_segment_table(is_image, torch.ones(1, 3, dtype=torch.long), torch.ones(pictures, dtype=torch.long))
