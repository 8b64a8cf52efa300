"""PCC against scipy, prototypes against sums written out, cosines against scikit-learn."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise

from crh_tune.retrieval.alignment import class_prototypes, cosine_similarity, semantic_alignment

SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, classes=st.integers(4, 25), bits=st.integers(8, 64), scale=st.floats(1e-3, 1e3))
def test_pcc_is_pearsons_r_over_the_pairs_of_classes(seed, classes, bits, scale):
    generator = np.random.default_rng(seed)
    centers = np.where(generator.random((classes, bits)) < 0.5, -1, 1).astype(np.int8)
    reference = generator.normal(size=(classes, classes)) * scale  # only the strict upper triangle counts
    ours, theirs = [], []
    for i in range(classes):
        for j in range(i + 1, classes):
            ours.append(float(centers[i].astype(int) @ centers[j].astype(int)) / bits)
            theirs.append(reference[i, j])
    if len(set(ours)) > 1:
        expected = scipy.stats.pearsonr(ours, theirs).statistic
        assert semantic_alignment(centers, reference) == pytest.approx(expected, abs=1e-9)


def test_what_many_classes_take_of_memory_is_some_rows_beside_the_reference():
    classes = 3000
    centers = np.where(np.random.default_rng(0).random((classes, 16)) < 0.5, -1, 1).astype(np.int8)
    reference = np.random.default_rng(1).random((classes, classes))
    labels, features = np.arange(2 * classes) % classes, np.ones((2 * classes, 4), dtype=np.float32)
    tracemalloc.start()
    pcc = semantic_alignment(centers, reference)
    class_prototypes(features, labels, classes)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 8 * classes**2  # neither cosines, nor the pairs' places, nor a matrix of weights
    upper = np.triu_indices(classes, k=1)
    ours = (centers @ centers.T.astype(int))[upper]
    assert pcc == pytest.approx(np.corrcoef(ours, reference[upper])[0, 1], abs=1e-12)


def test_pcc_is_one_for_the_centres_own_similarity_and_minus_one_for_its_opposite():
    centers = np.where(np.random.default_rng(0).random((6, 16)) < 0.5, -1, 1)
    reference = centers @ centers.T
    assert semantic_alignment(centers, 3 * reference + 7) == pytest.approx(1, abs=1e-12)
    assert semantic_alignment(centers, -reference) == pytest.approx(-1, abs=1e-12)


def test_pcc_is_undefined_where_nothing_varies():
    generator = np.random.default_rng(0)
    centers = np.where(generator.random((5, 16)) < 0.5, -1, 1)
    assert math.isnan(semantic_alignment(centers, np.full((5, 5), 0.3)))
    assert math.isnan(semantic_alignment(np.ones((5, 16)), generator.random((5, 5))))
    assert math.isnan(semantic_alignment(centers[:2], generator.random((2, 2))))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, classes=st.integers(1, 10))
def test_cosines_are_scikit_learns(seed, classes):
    vectors = np.random.default_rng(seed).normal(size=(classes, 5))
    vectors[0] = 0
    assert np.abs(cosine_similarity(vectors) - pairwise.cosine_similarity(vectors)).max() < 1e-12
    assert not cosine_similarity(vectors)[0].any()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, multi=st.booleans())
def test_a_prototype_is_the_mean_of_its_class_with_weights_one_over_the_number_of_labels(seed, multi):
    generator = np.random.default_rng(seed)
    features = generator.integers(0, 256, (20, 3), dtype=np.uint8)
    hot = generator.random((20, 6)) < 0.3 if multi else np.eye(6, dtype=bool)[generator.integers(0, 5, 20)]
    hot[:, 5] = False  # a class without samples
    labels = hot.astype(np.uint8) if multi else hot.argmax(axis=1)
    expected = np.zeros((6, 3))
    for c in range(6):
        weights = [1 / row.sum() if row[c] else 0.0 for row in hot]
        if sum(weights):
            expected[c] = sum(w * x for w, x in zip(weights, features.astype(float), strict=True)) / sum(weights)
    assert np.abs(class_prototypes(features, labels, 6) - expected).max() < 1e-9
    assert not class_prototypes(features, labels, 6)[5].any()
