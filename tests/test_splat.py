"The rasterizer's promises: one picture from every backend, the same bytes for any number of threads, no crash on odd input."
import warnings

import numba
import numpy as np
import pytest
import torch

import srflow_nb.splat as room
from srflow_nb.camera import Camera, frontal_camera, orbit_rig
from srflow_nb.core import InputError, rng
from srflow_nb.gaussians import Gaussians, quat_to_rotmat
from srflow_nb.splat import ALPHA_MAX, ALPHA_MIN, T_MIN, median_ids, project, rasterize, render, render_depth, splat


def tensor(a, dtype=torch.float32): return torch.as_tensor(np.asarray(a)).to(dtype)


def cloud(n=800, width=150, height=70, channels=4, seed=0):
    "Splats of all sizes and needles; some behind the camera, off the picture or fully transparent."
    r = rng(seed, 'splat test')
    means = tensor(np.c_[r.uniform(-.7, .7, n), r.uniform(-.5, .5, n), r.uniform(-.2, 2, n)])
    K = torch.tensor([[width, 0, width/2], [0, width, height/2], [0, 0, 1.]])
    m2, con, z = project(means, tensor(r.normal(size=(n, 4))), tensor(np.exp(r.uniform(-7, -3, (n, 3)))), torch.eye(4), K, width, height)
    return [m2, con, tensor(r.choice([0, .05, .5, .9, 1], n)), tensor(r.normal(size=(n, channels))), z, width, height]


def ball(n=500, seed=0, behind=False):
    "Gaussians of all sizes and shapes around the origin; with `behind`, some behind a camera at (0, 0, 1) and some far aside."
    r = rng(seed, 'ball')
    means = r.normal(size=(n, 3))*.05
    if behind: means[::5, 2] += 2; means[1::5, 0] += 50
    return Gaussians(tensor(means), tensor(r.normal(size=(n, 4))), tensor(np.exp(r.uniform(-9, -3.5, (n, 3)))), tensor(r.uniform(0, 1, n)), tensor(r.uniform(size=(n, 3))))


def brute_force(m2, con, op, feat, z, width, height, near=.01):
    """gsplat's rules in float64, pixels at once and splats one by one: picture, alpha, median splat, and which pixels
    meet a threshold (1/255, the end of the light, or its half) within rounding."""
    m2, con, op, feat = (t.double() for t in (m2, con, op, feat))
    y, x = torch.meshgrid(torch.arange(height)+.5, torch.arange(width)+.5, indexing='ij')
    image, T = torch.zeros(height, width, feat.shape[1], dtype=torch.float64), torch.ones(height, width, dtype=torch.float64)
    open_, touchy = torch.ones(height, width, dtype=torch.bool), torch.zeros(height, width, dtype=torch.bool)
    median = torch.full((height, width), -1)
    for i in z.argsort(stable=True).tolist():
        if z[i] <= near: continue
        dx, dy = x-m2[i, 0], y-m2[i, 1]
        alpha = (op[i]*torch.exp(-.5*(con[i, 0]*dx*dx+con[i, 2]*dy*dy)-con[i, 1]*dx*dy)).clamp(max=ALPHA_MAX)
        touchy = touchy | (open_ & (((alpha-ALPHA_MIN).abs() < 1e-6) | ((T*(1-alpha)-T_MIN).abs() < 1e-8)))
        hit = alpha >= ALPHA_MIN
        open_ = open_ & ~(hit & (T*(1-alpha) <= T_MIN))
        w = torch.where(open_ & hit, alpha*T, 0.)
        image, T = image+w[..., None]*feat[i], T-w
        median[(median < 0) & (T <= .5)] = i
        touchy = touchy | ((T-.5).abs() < 1e-6)
    return image, 1-T, median, touchy


# ---- projection --------------------------------------------------------------------------------------------------

def plain_projection(means, quats, scales, viewmat, K, width, height, eps2d=.3):
    "Equation by equation in float64, with matrices."
    means, quats, scales, viewmat, K = (t.double() for t in (means, quats, scales, viewmat, K))
    x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    tx, ty = (x/z).clamp(-.15*width/fx-cx/fx, .15*width/fx+(width-cx)/fx), (y/z).clamp(-.15*height/fy-cy/fy, .15*height/fy+(height-cy)/fy)
    M = torch.stack([fx/z, 0*z, -fx*tx/z, 0*z, fy/z, -fy*ty/z], -1).unflatten(-1, (2, 3)) @ viewmat[:3, :3] @ quat_to_rotmat(quats)*scales[:, None]
    conic = torch.linalg.inv(M @ M.mT + eps2d*torch.eye(2).double())
    return torch.stack([fx*x/z+cx, fy*y/z+cy], 1), torch.stack([conic[:, 0, 0], conic[:, 0, 1], conic[:, 1, 1]], 1), z


def view(camera): return camera.viewmat, camera.K, camera.width, camera.height


def test_projection_is_the_equation_even_for_needles():
    g, camera = ball(2000), Camera.look_at((.2, .1, 1), focal=900., width=300, height=200)
    needle = g.replace(scales=g.scales*torch.tensor([30., 1e-3, 1e-3]))
    for cloud_ in (g, needle):
        got, want = project(cloud_.means, cloud_.quats, cloud_.scales, *view(camera)), plain_projection(cloud_.means, cloud_.quats, cloud_.scales, *view(camera))
        assert (got[0]-want[0]).abs().max() < 1e-3 and (got[2]-want[2]).abs().max() < 1e-6
        assert ((got[1]-want[1]).abs()/want[1].abs().amax(1, keepdim=True)).max() < 1e-4


def test_projection_equals_gsplats_torch_reference():
    impl = pytest.importorskip('gsplat.cuda._torch_impl')
    camera, r = frontal_camera(), rng(0, 'projection')
    means, quats = tensor(r.uniform(-.3, .3, (2000, 3))), tensor(r.normal(size=(2000, 4)))
    scales = tensor(np.exp(r.uniform(-7, -3, (2000, 3))))
    covariance, _ = impl._quat_scale_to_covar_preci(quats, scales, True, False, False)
    _, m2, z, con, _ = impl._fully_fused_projection(means, covariance, camera.viewmat[None], camera.K[None], camera.width, camera.height)
    got = project(means, quats, scales, *view(camera))
    assert torch.allclose(got[0], m2[0], atol=1e-3) and torch.allclose(got[2], z[0])
    assert ((got[1]-con[0]).abs()/con[0].abs().amax(1, keepdim=True)).max() < 1e-3


def test_projection_has_the_right_gradients_camera_included():
    g, camera = ball(6).to(torch.float64), Camera.look_at((.1, .2, 1), focal=300., width=90, height=60)
    leaves = [t.clone().requires_grad_() for t in (g.means, g.quats, g.scales, camera.viewmat.double(), camera.K.double())]
    assert torch.autograd.gradcheck(lambda *a: project(*a, 90, 60), leaves, atol=1e-4, rtol=1e-4)


def test_what_is_behind_the_camera_gets_finite_numbers_and_no_gradient():
    g, camera = ball(50, behind=True), Camera.look_at((0, 0, 1))
    means = g.means.clone().requires_grad_()
    m2, con, z = project(means, g.quats, g.scales, *view(camera))
    assert (z <= .01).any() and m2.isfinite().all() and con.isfinite().all()
    (m2.sum()+con.sum()).backward()
    assert means.grad.isfinite().all() and (means.grad[z <= .01] == 0).all()


@pytest.mark.parametrize('name, index', [('means', 0), ('quats', 1), ('scales', 2), ('viewmat', 3), ('K', 4)])
def test_projection_refuses_nan_by_name(name, index):
    g, camera = ball(5), Camera.look_at((0, 0, 1))
    args = [g.means, g.quats, g.scales, *view(camera)]
    args[index] = args[index].clone(); args[index].view(-1)[0] = torch.nan
    with pytest.raises(InputError, match=f'^{name}: '): project(*args)


# ---- blending ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backend', ['numba', 'reference'])
@pytest.mark.parametrize('seed', [0, 1])
def test_backends_draw_what_a_float64_loop_draws(backend, seed):
    scene = cloud(seed=seed)
    image, alpha = splat(*scene, backend=backend)
    want, want_alpha, _, touchy = brute_force(*scene)
    error = (image-want).abs().amax(-1)
    assert touchy.sum() <= 20
    assert error[~touchy].max() < 1e-4 and (alpha-want_alpha).abs()[~touchy].max() < 1e-4
    assert error.max() < 5/255                    # even there: one splat of 1/255 drawn or not


def test_gradients_of_all_four_inputs_match_autograd_in_float64():
    scene = cloud(n=400, width=90, height=50)
    *_, touchy = brute_force(*scene)
    r = rng(0, 'push')
    push = tensor(r.normal(size=(50, 90, 5)))*(~touchy)[..., None]          # a threshold pixel has two right gradients
    def gradients(backend, dtype):
        leaves = [t.to(dtype).clone().requires_grad_() for t in scene[:4]]
        image, alpha = splat(*leaves, scene[4], *scene[5:], backend=backend)
        ((image*push[..., :4]).sum() + (alpha*push[..., 4]).sum()).backward()
        return [t.grad for t in leaves]
    for got, want in zip(gradients('numba', torch.float32), gradients('reference', torch.float64)):
        assert want.norm() > 0 and (got-want).norm() < 2e-4*want.norm()


def test_same_bytes_for_any_number_of_threads():
    if numba.config.NUMBA_NUM_THREADS < 2: pytest.skip('one core')
    scene, threads = cloud(), numba.get_num_threads()
    def run(n):
        numba.set_num_threads(n)
        leaves = [t.clone().requires_grad_() for t in scene[:4]]
        image, alpha = splat(*leaves, *scene[4:])
        (image.square().sum()+alpha.sum()).backward()
        return [t.detach().numpy().tobytes() for t in (image, alpha, median_ids(*scene[:3], *scene[4:]), *[l.grad for l in leaves])]
    try: assert run(1) == run(2) == run(numba.config.NUMBA_NUM_THREADS)
    finally: numba.set_num_threads(threads)


@pytest.mark.parametrize('channels', [1, 3, 4, 7])
def test_any_number_of_channels(channels):
    scene = cloud(n=100, width=40, height=30, channels=channels)
    got, want = splat(*scene, backend='numba')[0], splat(*scene, backend='reference')[0]
    assert got.shape == (30, 40, channels) and (got-want).abs().median() < 1e-5


@pytest.mark.parametrize('backend', ['numba', 'reference'])
@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (64, 16), (65, 17)])
def test_nothing_to_see_is_black_at_any_size(backend, size):
    w, h = size
    def draw(means, conic=(1., 0, 1), opacity=1., depth=1.):
        n = len(means)
        splats = tensor(means).reshape(n, 2), tensor([conic]*n).reshape(n, 3), torch.full((n,), opacity)
        image, alpha = splat(*splats, torch.ones(n, 2), torch.full((n,), depth), w, h, backend=backend)
        ids = median_ids(*splats, torch.full((n,), depth), w, h, backend=backend)
        assert image.shape == (h, w, 2) and alpha.shape == ids.shape == (h, w) and ids.dtype == torch.int64
        assert torch.equal(ids >= 0, alpha >= .5)
        return image.abs().sum().item() + alpha.sum().item()
    middle = [[w/2, h/2]]
    assert draw([]) == 0 and draw(middle, depth=-1.) == 0 and draw(middle, opacity=0.) == 0 and draw([[-900., 3]]) == 0
    assert draw(middle, conic=(0., 0, 0)) == 0 and draw(middle, conic=(1., 2., 1)) == 0 and draw(middle, conic=(-1., 0, -1)) == 0
    assert draw([[1e8, -1e8]]) == 0 and draw(middle) > 0
    assert draw(middle, conic=(1e-9, 0, 1e-9)) > 2.9*w*h*.99                     # wider than any picture: fills it


def test_nersembles_native_size_is_drawn():
    camera = frontal_camera(2204, 3208)
    g = ball(300)
    with torch.no_grad():
        rgb, alpha = render(g, camera, background=torch.tensor([0., 0, 1]))
        small = render(g, camera.scaled(.25), background=torch.tensor([0., 0, 1]))[0]
    assert rgb.shape == (3, 3208, 2204) and (rgb[:, 0, 0] == torch.tensor([0., 0, 1])).all()
    assert (torch.nn.functional.avg_pool2d(rgb[None], 4)[0]-small).abs().mean() < .01


@pytest.mark.parametrize('backend', ['numba', 'reference'])
def test_gradient_of_what_is_not_drawn_is_zero(backend):
    leaves = [torch.tensor([[5., 5], [5, 5]]), torch.tensor([[1., 0, 1], [1, 2, 1]]), torch.tensor([0., 1]), torch.ones(2, 3)]
    leaves = [t.requires_grad_() for t in leaves]
    image, alpha = splat(*leaves, torch.ones(2), 10, 10, backend=backend)
    (image.sum()+alpha.sum()+sum(t.sum()*0 for t in leaves)).backward()
    assert all(t.grad.abs().sum() == 0 for t in leaves)


def test_gradients_stay_finite_through_needles_and_what_is_behind():
    g = ball(200, behind=True)
    g = g.replace(scales=g.scales*torch.tensor([10., 1, 1e-4]), opacities=(g.opacities*1.5).clamp(max=1))
    leaves = {name: getattr(g, name).clone().requires_grad_() for name in ('means', 'quats', 'scales', 'opacities', 'colors')}
    render(Gaussians(**leaves), Camera.look_at((0, 0, 1), focal=300., width=60, height=50))[0].square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in leaves.values())


# ---- median ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backend', ['numba', 'reference', 'auto'])
@pytest.mark.parametrize('seed', [0, 1])
def test_median_splat_is_the_first_that_leaves_half_of_the_light(backend, seed):
    scene = cloud(seed=seed)
    *_, want, touchy = brute_force(*scene)
    got = median_ids(*scene[:3], *scene[4:], backend=backend)
    assert touchy.sum() <= 30 and 100 < (want >= 0).sum() < want.numel()
    assert torch.equal(got[~touchy], want[~touchy])


def test_median_splats_of_leaves_need_no_gradient():
    scene = cloud(n=50)
    assert not median_ids(scene[0].requires_grad_(), *scene[1:3], *scene[4:]).requires_grad


# ---- background --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backend', ['numba', 'reference'])
def test_background_gets_the_light_that_is_left(backend):
    scene = cloud(n=100, channels=3)
    image, alpha = splat(*scene, backend=backend)
    color, picture = torch.tensor([.2, 2., -1.]), tensor(rng(0, 'picture').normal(size=(70, 150, 3)))
    assert torch.allclose(splat(*scene, background=color, backend=backend)[0], image + (1-alpha)[..., None]*color, atol=1e-6)
    assert torch.allclose(splat(*scene, background=picture, backend=backend)[0], image + (1-alpha)[..., None]*picture, atol=1e-6)


def test_background_takes_part_in_gradients():
    scene = cloud(n=30, width=20, height=10, channels=2)
    opacities, color = scene[2].clone().requires_grad_(), torch.tensor([3., -1]).requires_grad_()
    image, alpha = splat(*scene[:2], opacities, *scene[3:], background=color)
    image.sum().backward()
    assert torch.allclose(color.grad, (1-alpha).sum().expand(2))
    again = scene[2].clone().requires_grad_()
    image, alpha = splat(*scene[:2], again, *scene[3:])
    (image.sum()+2*(1-alpha).sum()).backward()
    assert torch.allclose(opacities.grad, again.grad, atol=1e-5)


def test_backgrounds_that_do_not_fit_are_refused():
    scene, g, camera = cloud(n=5), ball(5), Camera.look_at((0, 0, 1), width=20, height=10)
    with pytest.raises(InputError, match=r'background: shape \(3,\); expected \(4,\) or \(70, 150, 4\)'): splat(*scene, background=torch.ones(3))
    with pytest.raises(InputError, match=r'background: shape \(10, 20, 3\); expected \(3,\) or \(3, 10, 20\)'): render(g, camera, background=torch.ones(10, 20, 3))
    with pytest.raises(InputError, match='background: 1 of 3 values'): render(g, camera, background=torch.tensor([0, torch.nan, 0]))


def test_render_puts_the_background_where_nothing_is():
    one = Gaussians(torch.zeros(1, 3), torch.tensor([[1., 0, 0, 0]]), torch.full((1, 3), .01), torch.ones(1), torch.ones(1, 3))
    camera = Camera.look_at((0, 0, 1), focal=400, width=60, height=40)
    rgb, alpha = render(one, camera, background=torch.tensor([0., 0, .5]))
    assert rgb.shape == (3, 40, 60) and torch.equal(rgb[:, 0, 0], torch.tensor([0., 0, .5]))
    assert torch.allclose(rgb[:, 20, 30], torch.full((3,), alpha[20, 30].item()) + (1-alpha[20, 30])*torch.tensor([0., 0, .5]))
    picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(render(one, camera, background=picture)[0][:, alpha == 0], picture[:, alpha == 0])


# ---- many cameras ------------------------------------------------------------------------------------------------

def test_a_batch_of_cameras_is_what_each_camera_sees():
    g, cameras = ball(behind=True), orbit_rig(3, width=60, height=80)
    features = tensor(rng(0, 'features').normal(size=(3, len(g), 7)))
    together = rasterize(g, features, cameras, background=torch.ones(7))
    assert together.image.shape == (3, 80, 60, 7) and together.alpha.shape == (3, 80, 60)
    assert together.means2d.shape == (3, len(g), 2) and together.depths.shape == (3, len(g))
    for b, c in enumerate(cameras):
        alone = rasterize(g, features[b], c, background=torch.ones(7))
        m2, con, z = project(g.means, g.quats, g.scales, *view(c))
        image, alpha = splat(m2, con, g.opacities, features[b], z, c.width, c.height, background=torch.ones(7))
        for name, by_hand in (('image', image), ('alpha', alpha), ('means2d', m2), ('depths', z)):
            assert torch.equal(getattr(alone, name)[0], by_hand) and torch.equal(getattr(together, name)[b], by_hand)


def test_the_same_features_serve_all_cameras():
    g, cameras = ball(100), orbit_rig(2, width=30, height=40)
    assert torch.equal(rasterize(g, g.colors, cameras).image, rasterize(g, g.colors.expand(2, -1, -1), cameras).image)


@pytest.mark.parametrize('cameras', [1, 2])
def test_projected_centres_keep_their_gradient(cameras):
    g, rig = ball(80), orbit_rig(cameras, width=50, height=60)
    g = g.replace(means=g.means.clone().requires_grad_())
    r = rasterize(g, g.colors, rig)
    r.image.square().sum().backward()
    assert r.means2d.grad.shape == (cameras, 80, 2) and g.means.grad.abs().sum() > 0
    for b, c in enumerate(rig):
        m2, con, z = project(g.means.detach(), g.quats, g.scales, *view(c))
        m2.requires_grad_()
        splat(m2, con, g.opacities, g.colors, z, c.width, c.height)[0].square().sum().backward()
        assert m2.grad.abs().sum() > 0 and torch.equal(r.means2d.grad[b], m2.grad)


def test_all_cameras_go_to_the_gpu_in_one_call(monkeypatch):
    g, cameras, calls = ball(30), orbit_rig(3, width=20, height=30), []
    def stand_in(means, quats, scales, opacities, features, viewmats, Ks, width, height):
        calls.append((features.shape, viewmats.shape, Ks.shape))
        r = rasterize(Gaussians(means, quats, scales, opacities, means), features, [Camera(v, k, width, height) for v, k in zip(viewmats, Ks)])
        return r.image, r.alpha, r.means2d, r.depths
    monkeypatch.setattr(room, 'rasterize_gpu', stand_in)
    got, want = (rasterize(g, g.colors, cameras, background=torch.tensor([1., 2, 3]), backend=b) for b in ('gsplat', 'numba'))
    assert calls == [((3, 30, 3), (3, 4, 4), (3, 3, 3))]
    for name in ('image', 'alpha', 'means2d', 'depths'): assert torch.equal(getattr(got, name), getattr(want, name)), name
    with pytest.raises(InputError, match='^quats: '): rasterize(g.replace(quats=g.quats*torch.inf), g.colors, cameras, backend='gsplat')


def test_rasterize_names_what_does_not_fit():
    g, a, b = ball(10), Camera.look_at((0, 0, 1), width=20, height=10), Camera.look_at((0, 0, 1), width=21, height=10)
    with pytest.raises(InputError, match='cameras: 20x10 px, 21x10 px; expected at least one, all of one size'): rasterize(g, g.colors, [a, b])
    with pytest.raises(InputError, match='cameras: none; expected at least one'): rasterize(g, g.colors, [])
    for bad in (g.colors[:5], g.colors[0], torch.ones(3, 10, 2)):
        with pytest.raises(InputError, match=r'features: shape .*; expected \(10, C\) or \(2, 10, C\)'): rasterize(g, bad, [a, a])
    with pytest.raises(InputError, match='^scales: '): rasterize(g.replace(scales=g.scales*torch.nan), g.colors, a)
    with pytest.raises(InputError, match='^features: '): rasterize(g, g.colors*torch.nan, a)


# ---- depth -------------------------------------------------------------------------------------------------------

def sheet(z, opacity, n=30):
    "A wall of overlapping balls across the view at a depth of 1 - z."
    y, x = torch.meshgrid(*[torch.linspace(-.05, .05, n)]*2, indexing='ij')
    means = torch.stack([x, y, torch.full_like(x, z)], -1).flatten(0, 1)
    return Gaussians(means, torch.tensor([[1., 0, 0, 0]]).expand(n*n, -1), torch.full((n*n, 3), .003), torch.full((n*n,), opacity), torch.ones(n*n, 3))


def both(a, b): return Gaussians(*[torch.cat([getattr(a, f), getattr(b, f)]) for f in ('means', 'quats', 'scales', 'opacities', 'colors')])


@pytest.mark.parametrize('backend', ['numba', 'reference'])
def test_depth_between_two_sheets(backend):
    camera = Camera.look_at((0, 0, 1), focal=300., width=64, height=64)
    inner = slice(24, 40), slice(24, 40)
    front, back = sheet(.2, .05), sheet(-.5, .9)
    alpha = render(front, camera, backend=backend)[1][inner]
    assert .2 < alpha.min() and alpha.max() < .5
    scene = both(front, back)
    expected, median = (render_depth(scene, camera, which=w, backend=backend) for w in ('expected', 'median'))
    assert (median[inner] == 1.5).all()                              # the front lets more than half of the light through
    assert torch.allclose(expected[inner], alpha*.8 + (1-alpha)*1.5, atol=2e-3)
    thick = both(sheet(.2, .9), back)
    assert (render_depth(thick, camera, which='median', backend=backend)[inner]-.8).abs().max() < 1e-6
    assert expected[0, 0].isnan() and median[0, 0].isnan()


def test_expected_depth_has_gradients_where_something_is():
    g, camera = ball(50), Camera.look_at((0, 0, 1), focal=200., width=40, height=40)
    g = g.replace(means=g.means.clone().requires_grad_())
    depth = render_depth(g, camera)
    assert depth.isnan().any() and depth.isfinite().any()
    depth[depth.isfinite()].sum().backward()
    assert g.means.grad.isfinite().all() and g.means.grad[:, 2].abs().sum() > 0


def test_nothing_at_all_is_drawn_without_complaint():
    none, camera = ball(3)[torch.zeros(3, dtype=torch.bool)], Camera.look_at((0, 0, 1), width=3, height=2)
    assert len(none) == 0
    rgb, alpha = render(none, camera, background=torch.tensor([.1, .2, .3]))
    assert (alpha == 0).all() and (rgb == torch.tensor([.1, .2, .3])[:, None, None]).all()
    assert render_depth(none, camera).isnan().all() and render_depth(none, camera, which='median').isnan().all()
    assert rasterize(none, none.colors, [camera, camera]).means2d.shape == (2, 0, 2)


# ---- the door ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, index', [('means2d', 0), ('conics', 1), ('opacities', 2), ('features', 3), ('depths', 4)])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(name, index, value):
    scene = cloud(n=5)
    scene[index] = scene[index].clone(); scene[index].view(-1)[2] = value
    with pytest.raises(InputError, match=f'^{name}: '): splat(*scene)
    if name != 'features':
        with pytest.raises(InputError, match=f'^{name}: '): median_ids(*scene[:3], *scene[4:])


def test_wrong_shapes_sizes_and_backends_are_refused_by_name():
    scene = cloud(n=5)
    for index, bad, match in ((1, scene[1][:4], r'conics: shape \(4, 3\); expected \(5, 3\)'), (3, scene[3][:, 0], 'features: shape'),
                              (3, scene[3][:, :0], 'features: 0 channels'), (5, 0, '0x70 px'), (2, scene[2]+1, r'opacities: .* within \[0, 1\]')):
        with pytest.raises(InputError, match=match): splat(*[bad if i == index else v for i, v in enumerate(scene)])
    with pytest.raises(InputError, match="unknown backend 'refrence'; nearest: reference"): splat(*scene, backend='refrence')
    with pytest.raises(InputError, match="unknown backend for median splats 'gsplat'"): median_ids(*scene[:3], *scene[4:], backend='gsplat')
    with pytest.raises(InputError, match="unknown depth 'mean'; nearest: median"): render_depth(ball(5), frontal_camera(), which='mean')


def test_auto_falls_back_to_the_cpu_with_one_warning(monkeypatch):
    room._warn_once.cache_clear()
    monkeypatch.setattr(room, 'gsplat_lacks', lambda: 'no nvcc: install the CUDA toolkit')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        assert [room._choose('auto', torch.device('cuda')) for _ in range(3)] == ['numba']*3
        assert room._choose('auto', torch.device('cpu')) == 'numba'
    assert [str(w.message) for w in told] == ['rendering on the CPU: no nvcc: install the CUDA toolkit']
    monkeypatch.setattr(room, 'gsplat_lacks', lambda: '')
    assert room._choose('auto', torch.device('cuda')) == 'gsplat' and room._choose('auto', torch.device('cpu')) == 'numba'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_gsplat_without_cuda_says_what_to_install():
    g = ball(5)
    for draw in (lambda: splat(*cloud(n=5), backend='gsplat'), lambda: rasterize(g, g.colors, frontal_camera(), backend='gsplat')):
        with pytest.raises(InputError, match="backend 'gsplat': no CUDA device .* install an NVIDIA driver and a CUDA build of torch"): draw()


@pytest.mark.cuda
def test_gsplat_draws_and_differentiates_like_numba():
    scene = cloud()
    *_, touchy = brute_force(*scene)
    def run(device, backend):
        leaves = [t.to(device).clone().requires_grad_() for t in scene[:4]]
        image, alpha = splat(*leaves, scene[4].to(device), *scene[5:], backend=backend)
        (image[~touchy.to(device)].square().sum()+alpha[~touchy.to(device)].sum()).backward()
        return image.detach().cpu(), [l.grad.cpu() for l in leaves]
    (image, grads), (want, want_grads) = run('cuda', 'gsplat'), run('cpu', 'numba')
    assert (image-want).abs().amax(-1)[~touchy].max() < 1e-4
    for g, w in zip(grads, want_grads): assert (g-w).norm() < 1e-3*w.norm()


@pytest.mark.cuda
def test_rasterize_is_the_same_on_both_devices():
    g, cameras = ball(behind=True), orbit_rig(3, width=60, height=80)
    features = tensor(rng(0, 'features').normal(size=(len(g), 11)))
    def run(device):
        moved = g.to(device).replace(means=g.means.to(device).requires_grad_())
        r = rasterize(moved, features.to(device), cameras, background=torch.ones(11))
        r.image.square().sum().backward()
        return [t.detach().cpu() for t in (r.image, r.alpha, r.depths, r.means2d.grad)]
    for name, got, want in zip(('image', 'alpha', 'depths', 'gradient of means2d'), run('cuda'), run('cpu')):
        off = (got-want).abs()/(1 if name != 'gradient of means2d' else want.abs().max())
        assert got.shape == want.shape and (off > 1e-3).float().mean() < .002, name


@pytest.mark.cuda
def test_median_splats_of_cuda_tensors_are_on_cuda():
    scene = cloud()
    ids = median_ids(*[t.cuda() for t in scene[:3]], scene[4].cuda(), *scene[5:])
    assert ids.is_cuda and torch.equal(ids.cpu(), median_ids(*scene[:3], *scene[4:]))
