"""Packed words and Hamming distances against bits compared one by one."""

from __future__ import annotations

import numpy as np
import pytest

from crh_tune.retrieval.packing import first_bits, hamming_distances, pack_codes


@pytest.mark.parametrize("first", range(1, 301, 50))
def test_distances_count_the_differing_bits_for_1_to_300_bits(first):
    for bits in range(first, first + 50):
        generator = np.random.default_rng(bits)
        queries, database = generator.random((3, bits)) < 0.5, generator.random((6, bits)) < 0.5
        queries[0], database[0], database[1] = True, False, True
        distances = hamming_distances(pack_codes(queries), pack_codes(database))
        expected = [
            [sum(a != b for a, b in zip(q, d, strict=True)) for d in database.tolist()] for q in queries.tolist()
        ]
        assert distances.tolist() == expected
        assert distances[0, :2].tolist() == [bits, 0]  # no overflow, at 255 and 256 bits either


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 16, 17, 32, 33, 63, 64, 65, 128, 255, 256, 300])
def test_packed_words_hold_the_bits_lowest_first_and_zeros_after_them(bits):
    codes = np.random.default_rng(bits).random((4, bits)) < 0.5
    codes[0] = True
    packed = pack_codes(codes)
    for code, words in zip(codes.tolist(), packed, strict=True):
        assert int.from_bytes(words.tobytes(), "little") == sum(2**k for k, bit in enumerate(code) if bit)


@pytest.mark.parametrize(("bits", "nbytes"), [(8, 1), (9, 2), (16, 2), (17, 4), (33, 8), (64, 8), (65, 16), (300, 40)])
def test_words_are_the_smallest_that_hold_the_bits(bits, nbytes):
    packed = pack_codes(np.zeros((5, bits), dtype=bool))
    assert packed.nbytes == 5 * nbytes
    assert packed.flags.writeable


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.int64])
def test_signs_pack_like_truth_values(dtype):
    codes = np.random.default_rng(0).random((5, 21)) < 0.5
    assert np.array_equal(pack_codes(codes), pack_codes(np.where(codes, 1, -1).astype(dtype)))


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64])
def test_zero_is_a_one_as_in_an_encoder(dtype):
    outputs = np.array([[0, -1, 1, -2, 0, 3, -1, 0], [-0.0, 1, -1, 2, 0, -3, 1, 0]], dtype=dtype)
    assert pack_codes(outputs).tolist() == [[0b10110101], [0b11011011]]


def test_zeros_and_ones_without_a_sign_are_refused():
    with pytest.raises(ValueError, match=r"uint8: use codes\.astype\(bool\) for 0 and 1"):
        pack_codes(np.ones((2, 8), dtype=np.uint8))


@pytest.mark.parametrize("bits", [8, 20, 64, 65, 300])
def test_first_bits_are_packed_as_codes_of_that_length(bits):
    codes = np.random.default_rng(bits).random((6, bits)) < 0.5
    codes[0] = True
    packed = pack_codes(codes)
    for length in range(1, bits + 1):
        found, expected = first_bits(packed, length), pack_codes(codes[:, :length])
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    assert first_bits(packed[:0], 5).shape == (0, 1)
    assert np.array_equal(packed, pack_codes(codes))  # left as they were


@pytest.mark.parametrize("bits", [13, 300])
def test_no_queries_have_no_distances(bits):
    none, some = pack_codes(np.zeros((0, bits), dtype=bool)), pack_codes(np.ones((4, bits), dtype=bool))
    assert hamming_distances(none, some).shape == (0, 4)
