"""Strain sees deformation and no rigid motion; HOOF loses no motion; all features keep scikit-learn's rules."""
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from srflow_nb.core import InputError, rng
from srflow_nb.me_features import (HOOF, BiWOOF, OpticalStrain, RemoveHeadMotion, affine_motion, block_mean, check_flow,
                                   direction_votes, strain_magnitude)

ALL = [OpticalStrain(), HOOF(), HOOF(normalise='clip'), HOOF(normalise=None), BiWOOF(), RemoveHeadMotion()]

def linear_flow(A, h=20, w=30):
    "Flow with displacement gradient A = [[ux, uy], [vx, vy]]."
    y, x = np.mgrid[:h, :w] - 7.3
    return np.stack([A[0][0]*x + A[0][1]*y, A[1][0]*x + A[1][1]*y])[None]

@pytest.mark.parametrize('A,want', [
    ([[0, 0], [0, 0]], 0), ([[0, -.1], [.1, 0]], 0),              # nothing; a rotation
    ([[.1, 0], [0, 0]], .1), ([[0, 0], [0, .1]], .1),             # stretch along x, along y
    ([[.1, 0], [0, .1]], .1*2**.5),                               # zoom
    ([[0, .2], [0, 0]], (2*.1**2)**.5), ([[0, 0], [.2, 0]], (2*.1**2)**.5)])  # shear, either way: exy = 0.1
def test_strain_of_known_deformations(A, want):
    np.testing.assert_allclose(strain_magnitude(linear_flow(A)), want, atol=1e-12)

def test_strain_is_invariant_to_rigid_motion_of_the_frame():
    f = rng(0, 'f').normal(size=(1, 2, 16, 16))
    np.testing.assert_allclose(strain_magnitude(f + linear_flow([[0, -.05], [.05, 0]], 16, 16) + 3), strain_magnitude(f), atol=1e-9)

def test_strain_of_a_transposed_picture_is_transposed():
    f = rng(1, 'f').normal(size=(2, 2, 12, 17))
    swapped = f[:, ::-1].transpose(0, 1, 3, 2)
    np.testing.assert_allclose(strain_magnitude(swapped), strain_magnitude(f).transpose(0, 2, 1), atol=1e-12)

@pytest.mark.parametrize('grid', [(1, 1), (3, 4), (13, 11)])
def test_block_means_cover_every_pixel_once(grid):
    a = rng(2, 'a').normal(size=(2, 13, 11)); sizes = block_mean(np.ones((13, 11)), grid)
    np.testing.assert_allclose(sizes, 1)
    h = [13*i//grid[0] for i in range(grid[0] + 1)]; w = [11*i//grid[1] for i in range(grid[1] + 1)]
    slow = [[[b[h[i]:h[i+1], w[j]:w[j+1]].mean() for j in range(grid[1])] for i in range(grid[0])] for b in a]
    np.testing.assert_allclose(block_mean(a, grid), slow, atol=1e-12)

def test_a_grid_finer_than_the_picture_is_refused():
    with pytest.raises(InputError, match='grid 30x4 does not fit flow of 20x20 px'): HOOF((30, 4)).fit_transform(np.zeros((1, 2, 20, 20)))

@pytest.mark.parametrize('bins', [4, 8, 9])
def test_directions_vote_where_they_point(bins):
    for b in range(bins):
        a = 2*np.pi*b/bins
        f = np.broadcast_to(np.array([np.cos(a), -np.sin(a)])[:, None, None]*2.5, (2, 8, 8))[None]
        h = HOOF((1, 1), bins, None).fit_transform(f)[0]
        assert h.argmax() == b and h[b] == pytest.approx(2.5) and h.sum() == pytest.approx(2.5)

def test_soft_votes_keep_every_pixels_speed():
    f = rng(3, 'f').normal(size=(3, 2, 9, 10))
    np.testing.assert_allclose(direction_votes(f, 8).sum(1), np.hypot(f[:, 0], f[:, 1]), atol=1e-12)
    assert (direction_votes(f, 8) >= 0).all()

def test_normalised_histograms_ignore_strength():
    f = rng(4, 'f').normal(size=(2, 2, 24, 24))
    for n in ('block', 'clip'): np.testing.assert_allclose(HOOF(normalise=n).fit_transform(3*f), HOOF(normalise=n).fit_transform(f), atol=1e-9)
    np.testing.assert_allclose(HOOF(normalise=None).fit_transform(3*f), 3*HOOF(normalise=None).fit_transform(f), atol=1e-9)
    np.testing.assert_allclose(HOOF(normalise='clip').fit_transform(f).sum(1), 1)

def test_head_motion_is_removed_and_the_expression_kept():
    y, x = np.mgrid[:64, :60] + .5
    bump = np.exp(-((y - 40)**2 + (x - 20)**2)/40.)
    expression = np.stack([0*bump, -bump])[None]
    head = linear_flow([[.004, -.01], [.012, .003]], 64, 60) + .7
    left = RemoveHeadMotion().fit_transform(expression + head)
    assert np.abs(left - expression).mean() < .01 and np.abs(left - expression).max() < .05
    for step in (1, 3): assert np.abs(RemoveHeadMotion(step=step).fit_transform(head)).max() < 1e-6

def test_affine_fit_of_an_affine_flow_is_itself():
    f = linear_flow([[.1, -.2], [.3, .05]])[0] - 2
    for k in (0, 5): np.testing.assert_allclose(affine_motion(f, k), f, atol=1e-9)

def test_no_motion_gives_finite_features():
    for t in ALL: assert np.isfinite(t.fit_transform(np.zeros((2, 2, 32, 32)))).all()

def test_unknown_flow_counts_as_no_motion():
    f = np.ones((1, 2, 8, 8)); f[0, :, 3, 3] = np.nan
    assert np.isfinite(check_flow(f)).all() and check_flow(f)[0, 0, 3, 3] == 0

@pytest.mark.parametrize('t', ALL, ids=lambda t: f"{type(t).__name__}-{getattr(t, 'normalise', '')}")
def test_transformers_keep_scikit_learns_rules(t):
    X = rng(5, 'X').normal(size=(6, 2, 24, 20)).astype(np.float32); before = X.copy()
    a = clone(t).fit(X).transform(X)
    assert clone(t).get_params() == t.get_params() and len(a) == 6
    np.testing.assert_array_equal(X, before)                                             # the input is left alone
    np.testing.assert_allclose(a[2:4], clone(t).fit(X[:1]).transform(X[2:4]))            # nothing leaks between clips
    np.testing.assert_allclose(a, clone(t).fit_transform(X.tolist()), rtol=1e-5)        # lists are fine
    with pytest.raises(InputError, match='fitted on 24x20'): clone(t).fit(X).transform(X[..., :10])
    for bad in (X[0], X[:, :1], 'no'):
        with pytest.raises(InputError, match='expected flow fields of shape'): clone(t).fit(bad)

def test_a_pipeline_learns_from_flow():
    X = rng(6, 'X').normal(0, .1, size=(12, 2, 16, 16)); y = np.arange(12) % 2; X[y == 1, 1, 4:8, 4:8] -= 1
    p = make_pipeline(RemoveHeadMotion(), HOOF((4, 4), normalise=None), LinearSVC()).fit(X[:8], y[:8])
    assert (p.predict(X[8:]) == y[8:]).all()

def test_infinite_flow_and_wrong_choices_are_refused():
    f = np.zeros((1, 2, 8, 8)); f[0, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match='infinite'): OpticalStrain((2, 2)).fit(f)
    with pytest.raises(InputError, match="normalise: 'l2'"): HOOF((2, 2), normalise='l2').fit_transform(np.zeros((1, 2, 8, 8)))
