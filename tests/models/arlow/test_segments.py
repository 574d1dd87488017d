"""The segment table against a slow, literal reading of its rule, over random layouts."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.models.arlow import segments
from arlow_vl.models.arlow.documents import PADDING, document_ids, documents_of_keys
from arlow_vl.models.arlow.segment_building import build_segment_mask, build_segment_table, cached_segments
from arlow_vl.models.arlow.segments import Runs, SegmentTable, flatten_images


def seen_images(tokens: list[str], documents: list[int]) -> list[list[int]]:
    """For each token the numbers of the images that it sees, by walking through the text one token at a time."""
    seen, image, group, last_group, document = [], 0, [], [], None
    for i, (token, number) in enumerate(zip(tokens, documents, strict=True)):
        if number != document:
            group, last_group, document = [], [], number
        if token == "image":
            group = [*group, image]
            image += 1
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


def laid_out(layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`is_image`, `documents` and the lengths of the images."""
    rows, lengths = layout
    kinds, documents, number = [], [], 0
    for left, body, right in rows:
        row_documents = []
        for _, starts in body:
            number += starts or not row_documents
            row_documents.append(number)
        kinds.append([False] * left + [kind == "i" for kind, _ in body] + [False] * right)
        documents.append([PADDING] * left + row_documents + [PADDING] * right)
    is_image = torch.tensor(kinds)
    return is_image, torch.tensor(documents), torch.tensor(lengths[: int(is_image.sum())], dtype=torch.long)


def seen_by_each_token(is_image, documents, lengths, rule) -> list[list[int]]:
    """The encoder tokens that each token of the flattened batch sees, by the literal rule."""
    offsets = [0, *lengths.cumsum(0).tolist()]
    seen, image = [], 0
    for row, row_documents in zip(is_image.tolist(), documents.tolist(), strict=True):
        for images in rule(["image" if x else "text" for x in row], row_documents):
            seen.append([k for p in images for k in range(offsets[image + p], offsets[image + p + 1])])
        image += sum(row)
    return [x if d != PADDING else [] for x, d in zip(seen, documents.flatten().tolist(), strict=True)]


@given(layouts())
def test_every_token_is_paired_with_the_last_group_before_it_in_its_document(layout):
    is_image, documents, lengths = laid_out(layout)
    table = build_segment_table(is_image, documents, lengths)
    keys = torch.arange(int(lengths.sum())) if table.key_index is None else table.key_index
    actual: list[list[int]] = [[] for _ in range(documents.numel())]
    for r in range(len(table.query_runs)):
        q0, q1 = table.query_runs.cu_seqlens[r : r + 2]
        k0, k1 = table.key_runs.cu_seqlens[r : r + 2]
        for q in table.query_index[q0:q1].tolist():
            actual[q] = keys[k0:k1].tolist()
    assert actual == seen_by_each_token(is_image, documents, lengths, seen_images)


@given(layouts())
def test_under_the_other_rule_a_token_sees_every_image_before_it_in_its_document(layout):
    def all_before(tokens, documents):
        return [
            sorted({p for q, d in zip(last[: i + 1], documents, strict=False) if d == documents[i] for p in q})
            for last in [seen_images(tokens, documents)]
            for i in range(len(tokens))
        ]

    is_image, documents, lengths = laid_out(layout)
    table = build_segment_mask(is_image, documents, lengths)
    batch, width = documents.shape
    actual = [
        table.key_index[b][table.mask[b, t]].tolist() if table.sees[b, t] else []
        for b in range(batch)
        for t in range(width)
    ]
    assert actual == seen_by_each_token(is_image, documents, lengths, all_before)
    assert table.mask.any(-1).all() or not table.mask.shape[-1]


def test_behind_a_cache_a_row_sees_what_the_cache_holds_for_it():
    table = cached_segments(torch.tensor([2, 0, 3]), 3)
    assert table.sees.tolist() == [[True], [False], [True]]
    assert table.mask.tolist() == [[[True, True, False]], [[True] * 3], [[True] * 3]]


PAIRS = [((2, 4), (0, 5)), ((4, 6), (5, 6)), ((8, 12), (6, 9))]


def test_a_table_made_by_hand_equals_the_one_of_the_tokens():
    is_image = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    built = build_segment_table(is_image, torch.tensor([[1] * 6, [2] * 6]), torch.tensor([5, 1, 3]))
    made = SegmentTable.of_pairs(PAIRS, batch=2, width=6, encoder_tokens=9)
    for field in ("query_index", "kept_starts", "kept_lengths"):
        assert torch.equal(getattr(made, field), getattr(built, field)), field
    for runs in ("query_runs", "key_runs"):
        assert torch.equal(getattr(made, runs).cu_seqlens, getattr(built, runs).cu_seqlens)
        assert getattr(made, runs).max_seqlen == getattr(built, runs).max_seqlen


def test_a_table_made_by_hand_may_be_empty():
    assert SegmentTable.of_pairs([], batch=2, width=6, encoder_tokens=0).kept_lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: ((4, 2), (0, 5))}, "pair 0: the text run 4 to 2 is empty or runs backwards"),
        ({1: ((3, 6), (5, 6))}, "pair 1: the text run 3 to 6 overlaps the one before, which ends at 4"),
        ({2: ((8, 13), (6, 9))}, "pair 2: the text run 8 to 13 reaches beyond the 12 there are"),
        ({1: ((4, 8), (5, 6))}, "pair 1: the text run 4 to 8 crosses from row 0 into the next"),
        ({1: ((4, 6), (4, 6))}, "pair 1: the encoder token run 4 to 6 overlaps the one before"),
        ({2: ((8, 12), (7, 9))}, "encoder tokens 6 to 7 are in no pair"),
        ({2: ((8, 12), (6, 8))}, "encoder tokens 8 to 9 are in no pair"),
        ({1: ((4, 6), (6, 5))}, "pair 1: the encoder token run 6 to 5 is empty or runs backwards"),
    ],
)
def test_a_table_made_by_hand_is_checked(change, sentence):
    pairs = [change.get(i, pair) for i, pair in enumerate(PAIRS)]
    with pytest.raises(ValueError, match=sentence):
        SegmentTable.of_pairs(pairs, batch=2, width=6, encoder_tokens=9)


def test_flat_images_keep_their_lengths():
    flat = torch.randn(9, 4)
    images, lengths = flatten_images(flat, None, torch.tensor([5, 4]))
    assert images is flat and lengths.tolist() == [5, 4]
    padded, mask = torch.zeros(2, 5, 4), torch.tensor([[1] * 5, [1] * 4 + [0]])
    padded[0], padded[1, :4] = flat[:5], flat[5:]
    images, lengths = flatten_images(padded, mask)
    assert torch.equal(images, flat) and lengths.tolist() == [5, 4]


@pytest.mark.parametrize("lengths", [[5, 5], [9, 0]])
def test_lengths_that_do_not_fit_the_flat_images_are_refused(lengths):
    with pytest.raises(ValueError, match="must be positive and add up to the 9 rows"):
        flatten_images(torch.randn(9, 4), None, torch.tensor(lengths))


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
    assert (table.kept_starts[0], table.kept_lengths.tolist()) == (3, [2, 0])


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


@pytest.mark.parametrize("images", [0, 1, 3])
def test_another_number_of_images_than_image_tokens_is_refused(images):
    is_image = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match=rf"{images} images? for 2 <image> tokens"):
        build_segment_table(is_image, torch.ones(1, 3, dtype=torch.long), torch.ones(images, dtype=torch.long))


def test_a_new_image_of_one_row_stays_in_front_of_the_next_rows_cached_one():
    is_image = torch.tensor([[False, True], [False, False]])
    table = build_segment_table(
        is_image,
        torch.tensor([[1, 1], [2, 2]]),
        torch.tensor([2]),
        cached_lengths=torch.tensor([2, 2]),
        cached_width=2,
    )
    assert table.key_index.tolist() == [0, 1, 4, 5, 2, 3]


def test_an_image_of_no_tokens_is_seen_by_nobody_and_hides_the_one_before():
    is_image = torch.tensor([[True, False, True, False]])
    table = build_segment_table(is_image, torch.ones(1, 4, dtype=torch.long), torch.tensor([3, 0]))
    assert table.query_index.tolist() == [0, 1]
    assert table.kept_lengths.tolist() == [0]


def test_padding_inside_a_document_does_not_part_it():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1]])
    assert document_ids(mask.cumsum(1) - 1, mask).tolist() == [[1, 1, PADDING, PADDING, 1, 1]]


def skewed_table() -> SegmentTable:
    """One long run of text among short ones, one large image among small ones, not in the same pair."""
    texts, images = [40, 3, 2, 1, 3, 2, 2], [4, 3, 4, 30, 3, 4, 4]
    pairs, text, encoder = [], 1, 0
    for length, tokens in zip(texts, images, strict=True):
        pairs.append(((text, text + length), (encoder, encoder + tokens)))
        text, encoder = text + length + 1, encoder + tokens
    return SegmentTable.of_pairs(pairs, batch=1, width=text, encoder_tokens=encoder)


def test_runs_of_about_one_length_are_padded_together():
    table = skewed_table()
    numbers = torch.cat(table.groups)
    assert len(table.groups) > 1
    assert sorted(numbers.tolist()) == list(range(len(table.query_runs)))
    for side in (table.query_runs, table.key_runs):
        for group in table.groups:
            lengths = side.lengths[group]
            assert lengths.max() <= 2 * lengths.min()


def test_runs_are_one_group_where_padding_is_small():
    table = SegmentTable.of_pairs([((0, 4), (0, 5)), ((4, 7), (5, 9))], batch=1, width=7, encoder_tokens=9)
    assert [group.tolist() for group in table.groups] == [[0, 1]]


def test_a_subset_of_runs_has_its_entries_one_run_after_another():
    entries, runs = Runs.of_lengths(torch.tensor([2, 1, 3, 2])).subset(torch.tensor([2, 0]))
    assert entries.tolist() == [3, 4, 5, 0, 1]
    assert runs.lengths.tolist() == [3, 2]


def test_attention_in_groups_is_attention_run_by_run(open_model):
    attn, table = open_model.model.layers[1].cross_block.attn, skewed_table()
    text, images = torch.randn(table.query_index.shape[0], 64), torch.randn(table.key_runs.cu_seqlens[-1], 64)
    together = attn(text, images, table)
    for run in range(len(table.query_runs)):
        queries, keys = (slice(*side.cu_seqlens[run : run + 2].tolist()) for side in (table.query_runs, table.key_runs))
        length, tokens = queries.stop - queries.start, keys.stop - keys.start
        one = SegmentTable.of_pairs([((0, length), (0, tokens))], batch=1, width=length, encoder_tokens=tokens)
        torch.testing.assert_close(together[queries], attn(text[queries], images[keys], one))


def test_the_worked_example_of_the_module_holds():
    failed, tried = doctest.testmod(segments, globs={"torch": torch} | vars(segments))
    assert (failed, tried > 5) == (0, True)


def test_only_the_first_document_of_a_row_goes_on_with_the_cache():
    documents = torch.tensor([[1, 1, 2, 2], [PADDING, 3, 3, 3]])
    nothing, none = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
    table = build_segment_table(nothing, documents, none, cached_lengths=torch.tensor([2, 2]), cached_width=2)
    assert table.query_index.tolist() == [0, 1, 5, 6, 7]
    assert table.kept_lengths.tolist() == [0, 2]
    mask = build_segment_mask(nothing, documents, none, cached_lengths=torch.tensor([2, 2]), cached_width=2)
    assert mask.sees.tolist() == [[True, True, False, False], [False, True, True, True]]
    assert documents_of_keys(documents, 1, 5).tolist() == [[1, 1, 1, 2, 2], [3, PADDING, 3, 3, 3]]


def test_padding_inside_a_document_hides_no_image_under_the_other_rule():
    documents = torch.tensor([[1, 1, PADDING, 1]])
    mask = build_segment_mask(torch.tensor([[True, False, False, False]]), documents, torch.tensor([3]))
    assert mask.sees.tolist() == [[True, True, False, True]]
