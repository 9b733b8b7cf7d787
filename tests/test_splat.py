"The rasterizer's promises: one picture from every backend, the same bytes for any number of threads, no crash on odd input."
import numba
import numpy as np
import pytest
import torch

from srflow_nb.camera import Camera, frontal_camera
from srflow_nb.core import InputError, rng
from srflow_nb.gaussians import Gaussians
from srflow_nb.splat import ALPHA_MAX, ALPHA_MIN, T_MIN, project, render, splat


def tensor(a, dtype=torch.float32): return torch.as_tensor(np.asarray(a)).to(dtype)


def cloud(n=800, width=150, height=70, channels=5, seed=0):
    "Splats of all sizes and needles; some behind the camera, off the picture or fully transparent."
    r = rng(seed, 'splat test')
    means = tensor(np.c_[r.uniform(-.7, .7, n), r.uniform(-.5, .5, n), r.uniform(-.2, 2, n)])
    K = torch.tensor([[width, 0, width/2], [0, width, height/2], [0, 0, 1.]])
    m2, con, z = project(means, tensor(r.normal(size=(n, 4))), tensor(np.exp(r.uniform(-7, -3, (n, 3)))), torch.eye(4), K, width, height)
    return [m2, con, tensor(r.choice([0, .05, .5, .9, 1], n)), tensor(r.normal(size=(n, channels))), z, width, height]


def brute_force(m2, con, op, feat, z, width, height, near=.01):
    "gsplat's rules in float64, pixels at once and splats one by one; also which pixels meet an alpha within rounding of 1/255."
    m2, con, op, feat = (t.double() for t in (m2, con, op, feat))
    y, x = torch.meshgrid(torch.arange(height)+.5, torch.arange(width)+.5, indexing='ij')
    image, T = torch.zeros(height, width, feat.shape[1], dtype=torch.float64), torch.ones(height, width, dtype=torch.float64)
    open_, touchy = torch.ones(height, width, dtype=torch.bool), torch.zeros(height, width, dtype=torch.bool)
    for i in z.argsort(stable=True).tolist():
        if z[i] <= near: continue
        dx, dy = x-m2[i, 0], y-m2[i, 1]
        alpha = (op[i]*torch.exp(-.5*(con[i, 0]*dx*dx+con[i, 2]*dy*dy)-con[i, 1]*dx*dy)).clamp(max=ALPHA_MAX)
        touchy = touchy | (open_ & (((alpha-ALPHA_MIN).abs() < 1e-6) | ((T*(1-alpha)-T_MIN).abs() < 1e-8)))
        hit = alpha >= ALPHA_MIN
        open_ = open_ & ~(hit & (T*(1-alpha) <= T_MIN))
        w = torch.where(open_ & hit, alpha*T, 0.)
        image, T = image+w[..., None]*feat[i], T-w
    return image, 1-T, touchy


@pytest.mark.parametrize('backend', ['numba', 'reference'])
@pytest.mark.parametrize('seed', [0, 1])
def test_backends_draw_what_a_float64_loop_draws(backend, seed):
    scene = cloud(seed=seed)
    image, alpha = splat(*scene, backend=backend)
    want, want_alpha, touchy = brute_force(*scene)
    error = (image-want).abs().amax(-1)
    assert touchy.sum() <= 20
    assert error[~touchy].max() < 1e-4 and (alpha-want_alpha).abs()[~touchy].max() < 1e-4
    assert error.max() < 5/255                    # even there: one splat of 1/255 drawn or not


def test_gradients_of_all_four_inputs_match_autograd_in_float64():
    scene = cloud(n=400, width=90, height=50)
    *_, touchy = brute_force(*scene)
    r = rng(0, 'push')
    push = tensor(r.normal(size=(50, 90, 6)))*(~touchy)[..., None]          # a threshold pixel has two right gradients
    def gradients(backend, dtype):
        leaves = [t.to(dtype).clone().requires_grad_() for t in scene[:4]]
        image, alpha = splat(*leaves, scene[4], *scene[5:], backend=backend)
        ((image*push[..., :5]).sum() + (alpha*push[..., 5]).sum()).backward()
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
        return [t.detach().numpy().tobytes() for t in (image, alpha, *[l.grad for l in leaves])]
    try: assert run(1) == run(2) == run(numba.config.NUMBA_NUM_THREADS)
    finally: numba.set_num_threads(threads)


@pytest.mark.parametrize('channels', [1, 3, 4, 7, 13])
def test_any_number_of_channels(channels):
    scene = cloud(n=100, width=40, height=30, channels=channels)
    got, want = splat(*scene, backend='numba')[0], splat(*scene, backend='reference')[0]
    assert got.shape == (30, 40, channels) and (got-want).abs().median() < 1e-5


def test_projection_equals_gsplats_torch_reference():
    impl = pytest.importorskip('gsplat.cuda._torch_impl')
    camera, r = frontal_camera(), rng(0, 'projection')
    means, quats = tensor(r.uniform(-.3, .3, (2000, 3))), tensor(r.normal(size=(2000, 4)))
    scales = tensor(np.exp(r.uniform(-7, -3, (2000, 3))))
    covariance, _ = impl._quat_scale_to_covar_preci(quats, scales, True, False, False)
    _, m2, z, con, _ = impl._fully_fused_projection(means, covariance, camera.viewmat[None], camera.K[None], camera.width, camera.height)
    got = project(means, quats, scales, camera.viewmat, camera.K, camera.width, camera.height)
    assert torch.allclose(got[0], m2[0], atol=1e-3) and torch.allclose(got[2], z[0])
    assert ((got[1]-con[0]).abs()/con[0].abs().amax(1, keepdim=True)).max() < 1e-3


@pytest.mark.parametrize('backend', ['numba', 'reference'])
@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (64, 16), (65, 17)])
def test_nothing_to_see_is_black_at_any_size(backend, size):
    w, h = size
    def draw(means, conic=(1., 0, 1), opacity=1., depth=1.):
        n = len(means)
        image, alpha = splat(tensor(means).reshape(n, 2), tensor([conic]*n).reshape(n, 3), torch.full((n,), opacity), torch.ones(n, 2),
                             torch.full((n,), depth), w, h, backend=backend)
        assert image.shape == (h, w, 2) and alpha.shape == (h, w)
        return image.abs().sum().item() + alpha.sum().item()
    middle = [[w/2, h/2]]
    assert draw([]) == 0 and draw(middle, depth=-1.) == 0 and draw(middle, opacity=0.) == 0 and draw([[-900., 3]]) == 0
    assert draw(middle, conic=(0., 0, 0)) == 0 and draw(middle, conic=(1., 2., 1)) == 0 and draw(middle, conic=(-1., 0, -1)) == 0
    assert draw([[1e8, -1e8]]) == 0 and draw(middle) > 0
    assert draw(middle, conic=(1e-9, 0, 1e-9)) > 2.9*w*h*.99                     # wider than any picture: fills it


@pytest.mark.parametrize('backend', ['numba', 'reference'])
def test_gradient_of_what_is_not_drawn_is_zero(backend):
    leaves = [torch.tensor([[5., 5], [5, 5]]), torch.tensor([[1., 0, 1], [1, 2, 1]]), torch.tensor([0., 1]), torch.ones(2, 3)]
    leaves = [t.requires_grad_() for t in leaves]
    image, alpha = splat(*leaves, torch.ones(2), 10, 10, backend=backend)
    (image.sum()+alpha.sum()+sum(t.sum()*0 for t in leaves)).backward()
    assert all(t.grad.abs().sum() == 0 for t in leaves)


@pytest.mark.parametrize('name, index', [('means2d', 0), ('conics', 1), ('opacities', 2), ('features', 3), ('depths', 4)])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(name, index, value):
    scene = cloud(n=5)
    scene[index] = scene[index].clone(); scene[index].view(-1)[2] = value
    with pytest.raises(InputError, match=f'^{name}: '): splat(*scene)


def test_wrong_shapes_sizes_and_backends_are_refused_by_name():
    scene = cloud(n=5)
    for index, bad, match in ((1, scene[1][:4], r'conics: shape \(4, 3\); expected \(5, 3\)'), (3, scene[3][:, 0], 'features: shape'),
                              (3, scene[3][:, :0], 'features: 0 channels'), (5, 0, '0x70 px'), (2, scene[2]+1, r'opacities: .* within \[0, 1\]')):
        with pytest.raises(InputError, match=match): splat(*[bad if i == index else v for i, v in enumerate(scene)])
    with pytest.raises(InputError, match="unknown backend 'refrence'; nearest: reference"): splat(*scene, backend='refrence')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_gsplat_without_cuda_says_what_to_install():
    with pytest.raises(InputError, match="backend 'gsplat': no CUDA device .* install an NVIDIA driver and a CUDA build of torch"):
        splat(*cloud(n=5), backend='gsplat')


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


def test_render_puts_the_background_where_nothing_is():
    one = Gaussians(torch.zeros(1, 3), torch.tensor([[1., 0, 0, 0]]), torch.full((1, 3), .01), torch.ones(1), torch.ones(1, 3))
    camera = Camera.look_at((0, 0, 1), focal=400, width=60, height=40)
    rgb, alpha = render(one, camera, background=torch.tensor([0., 0, .5]))
    assert rgb.shape == (3, 40, 60) and torch.equal(rgb[:, 0, 0], torch.tensor([0., 0, .5]))
    assert torch.allclose(rgb[:, 20, 30], torch.full((3,), alpha[20, 30].item()) + (1-alpha[20, 30])*torch.tensor([0., 0, .5]))
    picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(render(one, camera, background=picture)[0][:, alpha == 0], picture[:, alpha == 0])
