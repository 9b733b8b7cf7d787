"The z-buffer: one answer for drawing and casting, the same for any number of threads, and no crash on what is no triangle."
import numpy as np
import pytest
from numba import get_num_threads, set_num_threads

from srflow_nb.core import InputError, rng
from srflow_nb.zbuffer import cast, draw, draw_depth

W, H = 73, 51


def soup(seed, n=300, size=12.):
    "Random triangles, large and small, some partly outside of the picture."
    g = rng(seed, 'soup')
    middle, corners = g.uniform((-10, -10, 1), (W+10, H+10, 3), (n, 3)), g.normal(size=(n, 3, 3))*[size, size, .2]*g.uniform(.05, 1, (n, 1, 1))
    return (middle[:, None]+corners).clip((-1e3, -1e3, .2), None)


def brute(corners, x, y, perspective):
    "Every triangle asked in float64, straight from the textbook."
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = (b[:, 0]-a[:, 0])*(c[:, 1]-a[:, 1])-(c[:, 0]-a[:, 0])*(b[:, 1]-a[:, 1])
    l1 = ((x-a[:, 0])*(c[:, 1]-a[:, 1])-(c[:, 0]-a[:, 0])*(y-a[:, 1]))/area
    l2 = ((b[:, 0]-a[:, 0])*(y-a[:, 1])-(x-a[:, 0])*(b[:, 1]-a[:, 1]))/area
    w = np.stack([1-l1-l2, l1, l2], 1)
    z = 1/(w/corners[:, :, 2]).sum(1) if perspective else (w*corners[:, :, 2]).sum(1)
    z = np.where((w >= 0).all(1), z, np.inf)
    return z.argmin() if np.isfinite(z.min()) else -1, z.min()


@pytest.mark.parametrize('perspective', [True, False])
@pytest.mark.parametrize('seed', range(3))
def test_drawing_casting_and_brute_force_agree(seed, perspective):
    corners = soup(seed)
    face, depth, weights = draw(corners, W, H, perspective=perspective)
    y, x = np.mgrid[:H, :W]+.5
    again = cast(corners, np.stack([x.ravel(), y.ravel()], 1), W, H, perspective=perspective)
    for a, b in zip((face, depth, weights), again): assert np.array_equal(a.reshape(b.shape), b)
    for _ in range(60):
        i, j = rng(seed, 'pixel', _).integers((W, H))
        f, z = brute(corners, i+.5, j+.5, perspective)
        assert (face[j, i], depth[j, i]) == (f, pytest.approx(z, rel=1e-9))
    assert (face >= 0).mean() > .5


def test_any_number_of_threads_gives_the_same_bits():
    corners, before = soup(5, 500), get_num_threads()
    many = draw(corners, W, H)
    try:
        set_num_threads(1)
        one = draw(corners, W, H)
    finally: set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(many, one))


def test_a_lamp_sees_what_parallel_rays_see():
    corners = soup(7)
    exact, quick = draw(corners, W, H, perspective=False)[1], draw_depth(corners, W, H)
    on = np.isfinite(exact)
    assert quick.dtype == np.float32 and (np.isfinite(quick) != on).mean() < 1e-3
    both = on & np.isfinite(quick)
    assert np.abs(quick[both]-exact[both]).max() < 1e-4


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e308, -1.])
def test_a_corner_that_is_no_place_takes_its_triangle_out_and_no_other(bad):
    corners = soup(1, 40)
    broken = corners.copy()
    broken[::2, 1, 2 if bad == -1. else slice(0, 2)] = bad
    for ask in (lambda c: draw(c, W, H), lambda c: cast(c, np.full((3, 2), 20.), W, H)):
        face = ask(broken)[0]
        assert ((face == -1) | (face % 2 == 1)).all()
    kept = draw(corners[1::2], W, H)[0]
    assert np.array_equal(np.where(kept >= 0, 2*kept+1, -1), draw(broken, W, H)[0])
    assert np.isfinite(draw_depth(broken, W, H)).sum() > 0


def test_nothing_to_draw_and_points_outside():
    face, depth, _ = draw(np.zeros((0, 3, 3)), 5, 4)
    assert (face == -1).all() and np.isinf(depth).all() and face.shape == (4, 5)
    face, depth, _ = cast(soup(0), np.array([[-1., 5], [W+.5, 5], [np.nan, 3], [1e300, 2]]), W, H)
    assert (face == -1).all() and np.isinf(depth).all()
    flat = np.array([[[5, 5, 1], [20, 5, 1], [40, 5, 1.]]])                       # a triangle without area
    assert (draw(flat, W, H)[0] == -1).all() and np.isinf(draw_depth(flat, W, H)).all()


@pytest.mark.parametrize('args,text', [((np.zeros((3, 3)), 5, 5), r'expected \(F, 3, 3\)'), ((np.zeros((1, 3, 3)), 0, 5), '0x5 px'), ((np.zeros((1, 3, 3)), 5, 10**6), '1000000 px')])
def test_mistakes_are_named(args, text):
    for ask in (draw, draw_depth):
        with pytest.raises(InputError, match=text): ask(*args)
    with pytest.raises(InputError, match=r'points has shape'): cast(np.zeros((1, 3, 3)), np.zeros(4), 5, 5)
