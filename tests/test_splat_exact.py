"""The rasterizer is exact: its pictures and gradients are those of float64, its projection and tile lists those of gsplat.

Twins that share nothing with it: a loop over every pixel and every splat in float64 (numba), the same rules written for autograd
(PyTorch, float64), and gsplat's own reference in PyTorch. In float32 a pixel whose decision hangs on a rounding, "at the 1/255
threshold" or where transmittance reaches 1e-4, can go either way: such pixels are counted, printed (`pytest -s`), bounded and left out.
"""
import numba
import numpy as np
import pytest
import torch
from numba import njit

from srflow_nb import splat as room
from srflow_nb.camera import Camera
from srflow_nb.core import rng
from srflow_nb.gaussians import rotmat_to_quat
from srflow_nb.splat import project, splat

ALPHA_MAX, ALPHA_MIN, T_MIN = .999, 1/255, 1e-4              # written again on purpose: the rules of gsplat
EPS = 2.**-24                                                # rounding of float32
TOLERANCE = 1e-5                                             # of every picture and gradient, for features of order 1
BACKENDS = ['numba', 'reference']


# ---- twins -------------------------------------------------------------------------------------------------------

@njit(error_model='numpy')
def _every_pixel(order, means2d, conics, opacities, features, image, alpha, touchy, slack):
    for y in range(alpha.shape[0]):
        for x in range(alpha.shape[1]):
            T, doubt = 1., 0.
            for g in order:
                dx, dy = x+.5-means2d[g, 0], y+.5-means2d[g, 1]
                xx, xy, yy = .5*conics[g, 0]*dx*dx, conics[g, 1]*dx*dy, .5*conics[g, 2]*dy*dy
                if xx+xy+yy > 6: continue
                al = min(opacities[g]*np.exp(-xx-xy-yy), ALPHA_MAX)
                noise = 1e-5+4*EPS*(xx+abs(xy)+yy)               # how far float32 can be off in sigma, and so in log alpha
                if abs(np.log(255*al)) < noise: touchy[y, x] = True
                if al < ALPHA_MIN: continue
                doubt += al*noise/(1-al)
                behind = T*(1-al)
                if abs(behind/T_MIN-1) < 1e-4+doubt: touchy[y, x] = True
                if behind <= T_MIN: break
                slack[y, x] += 4*EPS*(xx+abs(xy)+yy)*al*T
                for k in range(features.shape[1]): image[y, x, k] += T*al*features[g, k]
                T = behind
            alpha[y, x] = 1-T


def every_pixel(means2d, conics, opacities, features, depths, width, height, near=.01):
    "Picture, alpha, the pixels that may go either way, and what cancellation in sigma alone can cost in float32."
    order = depths.argsort(stable=True)
    image, alpha = np.zeros((height, width, features.shape[1])), np.zeros((height, width))
    touchy, slack = np.zeros((height, width), bool), np.zeros((height, width))
    arrays = [t.numpy().astype('f8') for t in (means2d, conics, opacities, features)]
    _every_pixel(order[depths[order] > near].numpy(), *arrays, image, alpha, touchy, slack)
    return image, alpha, touchy, slack


def with_autograd(means2d, conics, opacities, features, depths, width, height):
    "The same rules as PyTorch operations; one splat at a time over the whole picture."
    y, x = torch.meshgrid(torch.arange(height)+.5, torch.arange(width)+.5, indexing='ij')
    image, T = torch.zeros(height, width, features.shape[1], dtype=means2d.dtype), torch.ones(height, width, dtype=means2d.dtype)
    done = torch.zeros(height, width, dtype=torch.bool)
    for i in depths.argsort(stable=True).tolist():
        dx, dy = x-means2d[i, 0], y-means2d[i, 1]
        alpha = (opacities[i]*torch.exp(-.5*(conics[i, 0]*dx*dx+conics[i, 2]*dy*dy)-conics[i, 1]*dx*dy)).clamp(max=ALPHA_MAX)
        hit = alpha >= ALPHA_MIN
        done = done | (hit & (T*(1-alpha) <= T_MIN))
        weight = torch.where(hit & ~done, alpha*T, 0.)
        image, T = image+weight[..., None]*features[i], T-weight
    return image, 1-T


def error_of(scene, backend):
    "Largest error of each pixel (features and alpha), the twin's touchy pixels and slack."
    image, alpha = splat(*scene, backend=backend)
    want, want_alpha, touchy, slack = every_pixel(*scene)
    return np.maximum(abs(image.numpy()-want).max(-1, initial=0), abs(alpha.numpy()-want_alpha)), touchy, slack


def check(scene, backend, share=1e-3, at_threshold=5/255):
    "Every pixel is within the tolerance, but for a share of threshold pixels, and even those are close."
    error, touchy, _ = error_of(scene, backend)
    print(f'{backend}: {touchy.sum()} of {touchy.size} pixels at a threshold; largest error elsewhere {error[~touchy].max(initial=0):.2g}')
    assert touchy.sum() <= max(2, share*touchy.size)
    assert error[~touchy].max(initial=0) <= TOLERANCE
    assert error.max() < at_threshold


# ---- scenes ------------------------------------------------------------------------------------------------------

def tensor(a): return torch.as_tensor(np.asarray(a)).float()


def surface(n, width, height, channels=6, seed=0):
    "Flat splats on an ellipsoid that fills the picture: what a head looks like."
    r, axes = rng(seed, 'surface', n), tensor([1., 1.404, 1.15])
    u = torch.nn.functional.normalize(tensor(r.normal(size=(n, 3))), dim=1)
    normal = torch.nn.functional.normalize(u/axes, dim=1)
    t = torch.nn.functional.normalize(torch.linalg.cross(normal, tensor(r.normal(size=(n, 3)))), dim=1)
    s = 3.4/n**.5*tensor(np.exp(r.normal(0, .3, (n, 2))))
    camera = Camera.look_at((0, 0, 6), focal=6*.445*width, width=width, height=height)
    quats = rotmat_to_quat(torch.stack([t, torch.linalg.cross(normal, t), normal], 2))
    m2, conics, depths = project(u*axes, quats, torch.cat([s, .3*s.amin(1, keepdim=True)], 1), camera.viewmat, camera.K, width, height)
    return [m2, conics, tensor(r.uniform(.3, 1, n)), tensor(r.normal(size=(n, channels))), depths, width, height]


def loose(n, width, height, channels=6, sd=(.6, 6.), opacity=(.02, 1.), seed=0):
    "Round and elongated splats anywhere, also beside the picture and behind the camera."
    r = rng(seed, 'loose', n)
    m2 = r.uniform(-8, [width+8, height+8], (n, 2))
    s, angle = np.exp(r.uniform(*np.log(sd), (n, 2))), r.uniform(0, np.pi, n)
    R = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(n, 2, 2)
    inverse = np.linalg.inv(R@(s[:, :, None]**2*np.eye(2))@R.transpose(0, 2, 1)) if n else np.zeros((0, 2, 2))
    conics = np.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], 1)
    return [tensor(m2), tensor(conics), tensor(r.uniform(*opacity, n)), tensor(r.normal(size=(n, channels))), tensor(r.uniform(-.2, 2, n)), width, height]


# ---- pictures ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('n, size', [(6000, (275, 401)), (3000, (131, 93))])
def test_a_picture_is_within_1e5_of_float64(backend, n, size): check(surface(n, *size), backend)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('size', [(1, 1), (1, 90), (90, 1), (17, 33), (63, 15), (65, 17), (129, 31), (250, 7)])
def test_every_size_of_picture_is_exact(backend, size): check(loose(300, *size), backend)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('n', [0, 1, 2])
def test_hardly_any_splats(backend, n):
    scene = loose(n, 40, 30, opacity=(.5, 1.))
    scene[0], scene[4] = torch.tensor([[20.3, 14.9], [22., 16]])[:n], torch.tensor([.5, 1])[:n]
    check(scene, backend)
    assert (splat(*scene, backend=backend)[1].max() > .4) == (n > 0)


def test_a_million_splats_on_a_tiny_picture():
    check(loose(1_000_000, 37, 21, opacity=(.004, .2)), 'numba', share=.05)      # thousands of layers: more chances to meet a threshold


@pytest.mark.parametrize('backend', BACKENDS)
def test_thin_needles_are_as_exact_as_float32_allows(backend):
    "Sigma of a slanted needle is a small difference of large numbers: the tolerance grows by that, and by nothing else."
    scene = loose(400, 160, 120, sd=(.55, 60.))
    error, touchy, slack = error_of(scene, backend)
    print(f'{backend}: {touchy.sum()} pixels at a threshold; largest error {error[~touchy].max():.2g}, allowed {slack.max():.2g}')
    scale = scene[3].abs().max().item()
    assert touchy.mean() < .02 and (error[~touchy] <= TOLERANCE+2*scale*slack[~touchy]).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_an_opacity_of_exactly_1_255_is_one_pixel_or_none(backend):
    def draw(o):
        one = [tensor([[5.5, 4.5]]), tensor([[1., 0, 1]]), torch.tensor([o], dtype=torch.float32), torch.ones(1, 6), torch.ones(1), 11, 9]
        return splat(*one, backend=backend)[1].numpy()
    at = draw(1/255)
    assert at[4, 5] == 0 or abs(at[4, 5]-1/255) < 1e-7          # the threshold itself may go either way
    assert at.sum() == at[4, 5]                                                   # and nowhere else
    assert draw(.999/255).sum() == 0 and abs(draw(1.001/255)[4, 5]-1.001/255) < 1e-7


@pytest.mark.parametrize('backend', BACKENDS)
def test_splats_of_equal_depth_keep_their_order(backend):
    scene = loose(600, 80, 40)
    scene[4] = torch.ones(600)                                                    # all at one depth: the first given is in front
    check(scene, backend)
    two = [tensor([[3.5, 3.5]]*2), tensor([[.1, 0, .1]]*2), torch.full((2,), .6), torch.eye(2, 6), torch.ones(2), 7, 7]
    assert splat(*two, backend=backend)[0][3, 3, :2].tolist() == pytest.approx([.6, .4*.6], abs=1e-6)


# ---- gradients ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('make', [lambda: surface(500, 90, 60), lambda: loose(300, 70, 45)])
def test_gradients_are_within_1e5_of_float64(backend, make):
    "Largest difference from float64 autograd, over the largest gradient of the same array; nothing is pushed into threshold pixels."
    scene = make()
    scene = [t[scene[4] > .01] for t in scene[:5]] + scene[5:]
    width, height = scene[5:]
    touchy, r = torch.from_numpy(every_pixel(*scene)[2]), rng(0, 'push')
    assert touchy.float().mean() < .01
    push = torch.where(touchy[..., None], 0., torch.from_numpy(r.normal(size=(height, width, scene[3].shape[1]+1))))
    def gradients(draw, dtype):
        leaves = [t.to(dtype).clone().requires_grad_() for t in scene[:4]]
        torch.autograd.backward(draw(*leaves, scene[4], width, height), [push[..., :-1].to(dtype), push[..., -1].to(dtype)])
        return [t.grad.double() for t in leaves]
    got, want = gradients(lambda *a: splat(*a, backend=backend), torch.float32), gradients(with_autograd, torch.float64)
    errors = [((g-w).abs().max()/w.abs().max()).item() for g, w in zip(got, want)]
    print(f'{backend}: {touchy.sum()} threshold pixels; gradient errors (means2d, conics, opacities, features)', [f'{e:.1g}' for e in errors])
    assert all(w.abs().max() > 0 for w in want) and max(errors) <= TOLERANCE


def test_same_bytes_for_any_number_of_threads_and_any_run():
    scene, before = surface(4000, 201, 137), numba.get_num_threads()
    def run(threads):
        numba.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in scene[:4]]
        image, alpha = splat(*leaves, *scene[4:], backend='numba')
        (image.square().sum()+alpha.square().sum()).backward()
        return [t.detach().numpy().tobytes() for t in (image, alpha, *[l.grad for l in leaves])]
    try: runs = [run(t) for t in [1, *range(1, numba.config.NUMBA_NUM_THREADS+1)]]
    finally: numba.set_num_threads(before)
    assert all(r == runs[0] for r in runs)


# ---- gsplat's own reference --------------------------------------------------------------------------------------

def cloud3d(n=3000, seed=0):
    "Gaussians of all shapes before, beside and behind a camera."
    r = rng(seed, 'cloud')
    means = np.c_[r.uniform(-1.2, 1.2, (n, 2)), r.uniform(-.5, 2, n)]
    return torch.from_numpy(means), torch.from_numpy(r.normal(size=(n, 4))), torch.from_numpy(np.exp(r.uniform(-7, -3, (n, 3))))


@pytest.fixture(scope='module')
def impl(): return pytest.importorskip('gsplat.cuda._torch_impl')


# A whole number of tiles: gsplat drops what lies beside the picture, we what lies beside the last tile.
CAMERA = dict(viewmat=torch.eye(4), K=torch.tensor([[300., 0, 101], [0, 280, 71], [0, 0, 1]]), width=208, height=144)


def gsplat_projection(impl, means, quats, scales):
    covariance, _ = impl._quat_scale_to_covar_preci(quats, scales, True, False, False)
    radii, m2, z, conics, _ = impl._fully_fused_projection(means, covariance, CAMERA['viewmat'][None].to(means), CAMERA['K'][None].to(means), 208, 144)
    return radii[0], m2[0], conics[0], z[0]


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_projection_is_gsplats(impl, dtype, tolerance):
    "In float64 the formulas are the same; in float32 both round."
    g = [t.to(dtype) for t in cloud3d()]
    _, m2, conics, z = gsplat_projection(impl, *g)
    got_m2, got_conics, got_z = project(*g, **CAMERA)
    seen = z > .01
    assert seen.sum() > 1000 and (~seen).sum() > 100 and torch.equal(got_z > .01, seen)
    assert (got_z-z).abs().max() <= tolerance
    assert ((got_m2-m2).abs()/m2.abs().clamp_min(1))[seen].max() <= tolerance
    share = (got_conics-conics).abs()/conics.abs().amax(1, keepdim=True)
    assert share[seen].max() <= (tolerance if dtype is torch.float64 else 1e-3)      # a needle's determinant cancels in float32


def lists(tiles_ids, flat_ids, count):
    "gsplat's sorted intersections as one list a tile."
    tile = (tiles_ids >> 32).numpy()
    return np.split(flat_ids.numpy(), np.searchsorted(tile, np.arange(1, count)))


def drawable(conics, opacities, z):
    "In front of the camera, not too faint, and with an area."
    a, b, c = conics.double().unbind(1)
    return (z > .01) & (opacities >= ALPHA_MIN) & (a*c > b*b)


def own_lists(m2, conics, opacities, z):
    "Tile lists of the readable rasterizer, 16 px tiles."
    seen = torch.nonzero(drawable(conics, opacities, z))[:, 0]
    order = seen[z[seen].argsort(stable=True)]
    return [ids.numpy() for ids in room._tile_lists(m2, conics, opacities, order, CAMERA['width'], CAMERA['height'], 16)]


@pytest.fixture(scope='module')
def projected(impl):
    "Splats in float32, their opacities, gsplat's radii."
    radii, m2, conics, z = gsplat_projection(impl, *[t.float() for t in cloud3d(9000)])
    opacities = tensor(rng(0, 'opacities').uniform(.02, 1, len(z)))
    return radii, m2, conics, opacities, z


def test_tile_lists_are_gsplats_for_the_same_boxes(impl, projected):
    "Given our boxes (where a splat reaches 1/255) gsplat lists the same splats for each tile, in the same order."
    _, m2, conics, opacities, z = projected
    boxes = torch.stack(room._half_sizes(conics, opacities), 1)
    boxes[~drawable(conics, opacities, z)] = 0
    _, tiles, flat = impl._isect_tiles(m2[None].double(), boxes[None], z[None], 16, 13, 9)
    theirs, mine = lists(tiles, flat, 117), own_lists(m2, conics, opacities, z)
    assert sum(map(len, mine)) > 2000
    assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_what_gsplats_lists_hold_more_cannot_be_seen(impl, projected):
    "gsplat's boxes are 3.33 sigma wide, rounded up: ours are a subset in the same order, and the rest is below 1/255 all over the tile."
    radii, m2, conics, opacities, z = projected
    _, tiles, flat = impl._isect_tiles(m2[None], radii[None], z[None], 16, 13, 9)
    theirs, mine = lists(tiles, flat, 117), own_lists(m2, conics, opacities, z)
    more, brightest = 0, 0.
    for t, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        kept = np.isin(b, a)
        assert np.array_equal(b[kept], a)
        g = torch.from_numpy(b[~kept].astype('i8'))
        if not len(g): continue
        r = torch.arange(16, dtype=torch.float64)+.5
        dx, dy = t % 13*16+r-m2[g, :1].double(), t//13*16+r-m2[g, 1:].double()
        a_, b_, c_ = conics[g].double()[:, :, None, None].unbind(1)
        alpha = opacities[g].double()[:, None, None]*torch.exp(-.5*(a_*dx[:, None, :]**2+c_*dy[:, :, None]**2)-b_*dx[:, None, :]*dy[:, :, None])
        more, brightest = more+len(g), max(brightest, alpha.max().item())
    print(f'{sum(map(len, theirs))} entries in gsplat\'s lists, {more} of them invisible: at most {brightest*255:.3f}/255')
    assert more > 100 and brightest < ALPHA_MIN
