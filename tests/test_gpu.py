"""The GPU room's promises: it says what to install, hands gsplat what gsplat wants, in one call, and draws the CPU's picture.

Three stages. Stand-ins with the signatures of the installed gsplat: a renamed argument or a second call fails on any machine.
gsplat's own kernels, compiled for the CPU (`gsplat_on_cpu`): rules, lists and gradients, wherever there is a g++. And the
same tests on a card, marked `cuda` and skipped elsewhere."""
import importlib.util, inspect, json, math, re, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from srflow_nb import gpu
from srflow_nb.core import InputError, rng
from srflow_nb.gpu import KERNELS, kernel_channels, missing, pass_channels, rasterize_gpu, shared_bytes, splat_gpu
from srflow_nb.splat import ALPHA_MAX, ALPHA_MIN, T_MIN, project, splat

W, H = 150, 70
GSPLAT = pytest.importorskip('gsplat')
REAL = GSPLAT.rasterization


def tensor(a): return torch.from_numpy(np.asarray(a, 'f4'))


def cameras(n=3, width=W, height=H):
    "Cameras side by side, all looking along z, each turned a little."
    viewmats, Ks = torch.eye(4).repeat(n, 1, 1), torch.tensor([[width, 0, width/2], [0, width, height/2], [0, 0, 1.]]).repeat(n, 1, 1)
    for i in range(n):
        a = .1*(i-(n-1)/2)
        viewmats[i, :3, :3] = torch.tensor([[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]])
        viewmats[i, 0, 3] = .05*i
    return viewmats, Ks


def gaussians(n=600, channels=11, seed=0):
    "Gaussians of all sizes: behind the cameras, off the picture, fully transparent; no two at (nearly) the same depth in any camera."
    r = rng(seed, 'gpu test')
    means = tensor(np.c_[r.uniform(-.7, .7, n), r.uniform(-.5, .5, n), r.uniform(-.2, 2, n)])
    apart = torch.ones(n, dtype=torch.bool)
    for v in cameras()[0]:
        z, order = (means @ v[:3, :3].T + v[:3, 3])[:, 2].sort()
        apart[order[1:]] &= z.diff() > 5e-6
    parts = means, tensor(r.normal(size=(n, 4))), tensor(np.exp(r.uniform(-6, -3, (n, 3)))), tensor(r.choice([0, .05, .5, .9, 1], n)), tensor(r.normal(size=(n, channels)))
    return [p[apart] for p in parts]


def projected(g, viewmat, K):
    "The arguments of `splat` for one camera."
    m2, conics, z = project(*g[:3], viewmat, K, W, H)
    return [m2, conics, g[3], g[4], z, W, H]


def touchy(m2, conics, op, features, z, width, height, eps):
    "Pixels that meet, in float64, an alpha or a transmittance within `eps` (relative to what it is compared with) of its threshold."
    m2, conics, op = (t.detach().double() for t in (m2, conics, op))
    y, x = torch.meshgrid(torch.arange(height)+.5, torch.arange(width)+.5, indexing='ij')
    T, res = torch.ones(height, width, dtype=torch.float64), torch.zeros(height, width, dtype=torch.bool)
    for i in z.argsort(stable=True).tolist():
        if z[i] <= .01: continue
        dx, dy = x-m2[i, 0], y-m2[i, 1]
        alpha = (op[i]*torch.exp(-.5*(conics[i, 0]*dx*dx+conics[i, 2]*dy*dy)-conics[i, 1]*dx*dy)).clamp(max=ALPHA_MAX)
        after = T*(1-alpha)
        res |= ((alpha/ALPHA_MIN-1).abs() < eps) | ((after/T_MIN-1).abs() < eps)
        T = torch.where((alpha >= ALPHA_MIN) & (after > T_MIN), after, T)
    return res


# ---- what is missing -----------------------------------------------------------------------------------------------

def test_importing_the_room_does_not_import_gsplat():
    out = subprocess.run([sys.executable, '-c', "import sys, srflow_nb.gpu; print('gsplat' in sys.modules)"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'False'


@pytest.fixture
def machine(monkeypatch):
    "Pretend that everything is installed; a test then takes one piece away."
    missing.cache_clear()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(gpu.importlib.util, 'find_spec', lambda name: None if name == 'gsplat.csrc' else object())
    monkeypatch.setattr(gpu, '_nvcc', lambda: True)
    monkeypatch.setattr(gpu.shutil, 'which', lambda name: f'/bin/{name}')
    yield monkeypatch
    missing.cache_clear()


def half_installed(name):
    "As `find_spec` where gsplat is there and something that it imports is not."
    if name == 'gsplat.csrc': raise ModuleNotFoundError("No module named 'rich'")
    return object()


@pytest.mark.parametrize('take, say', [
    (lambda m: m.setattr(torch.cuda, 'is_available', lambda: False), 'no CUDA device .* install an NVIDIA driver and a CUDA build of torch'),
    (lambda m: m.setattr(gpu.importlib.util, 'find_spec', lambda name: None), 'gsplat is missing: pip install gsplat packaging'),
    (lambda m: m.setattr(gpu.importlib.util, 'find_spec', half_installed), r'gsplat cannot be imported \(No module named .rich.\): pip install gsplat'),
    (lambda m: m.setattr(gpu, '_nvcc', lambda: False), r'no CUDA compiler \(nvcc\) .* install the CUDA toolkit'),
    (lambda m: m.setattr(gpu.shutil, 'which', lambda name: None), 'no ninja on the PATH .* pip install ninja'),
    (lambda m: m.setitem(sys.modules, 'gsplat.cuda._backend', None), r'could not be built \(ModuleNotFoundError: .*\): the CUDA toolkit must fit'),
    (lambda m: m.setitem(sys.modules, 'gsplat.cuda._backend', type('Backend', (), {'_C': None})), 'could not be built: set CUDA_HOME')])
def test_each_missing_piece_has_its_own_line(machine, take, say):
    take(machine)
    assert re.search(say, missing()) and '\n' not in missing()
    with pytest.raises(InputError, match=f"^backend 'gsplat': .*{say}.*, or use backend='numba'$"): splat_gpu(*projected(gaussians(5), *[c[0] for c in cameras()]))
    with pytest.raises(InputError, match=say): rasterize_gpu(*gaussians(5), *cameras(), W, H)


def test_tensors_on_the_cpu_are_refused_by_name(machine):
    machine.setitem(sys.modules, 'gsplat.cuda._backend', type('Backend', (), {'_C': object()}))
    assert missing() == ''
    with pytest.raises(InputError, match='tensors are on cpu; expected cuda'): rasterize_gpu(*gaussians(5), *cameras(), W, H)


def test_ready_made_kernels_need_no_compiler(machine):
    machine.setattr(gpu.importlib.util, 'find_spec', lambda name: object())
    machine.setattr(gpu, '_nvcc', lambda: False)
    machine.setitem(sys.modules, 'gsplat.cuda._backend', type('Backend', (), {'_C': object()}))
    assert missing() == ''


# ---- gsplat's sources say what we say ------------------------------------------------------------------------------

def cuda_source(name): return (Path(GSPLAT.__file__).parent/'cuda'/name).read_text()


@pytest.mark.parametrize('file', ['csrc/RasterizeToPixels3DGSFwd.cu', 'csrc/RasterizeToPixels3DGSBwd.cu'])
def test_kernels_are_those_that_gsplat_compiles(file):
    assert [int(n) for n in re.findall(r'^__INS__\((\d+)\)', cuda_source(file), flags=re.M)] == list(KERNELS)


def test_the_contract_is_written_in_gsplats_kernels():
    forward, projection = cuda_source('csrc/RasterizeToPixels3DGSFwd.cu'), cuda_source('csrc/ProjectionEWA3DGSFused.cu')
    assert '#define ALPHA_THRESHOLD (1.f / 255.f)' in cuda_source('include/Common.h') and gpu.ALPHA_THRESHOLD == ALPHA_MIN == 1/255
    assert f'min({ALPHA_MAX}f, opac * __expf(-sigma))' in forward and 'next_T <= 1e-4f' in forward and T_MIN == 1e-4
    assert 'mean_c.z < near_plane' in projection and 'float extend = 3.33f' in projection and math.sqrt(2*math.log(1/ALPHA_MIN)) < 3.33
    assert re.search(r'B = means.numel\(\) / \(N \* 3\)', projection)             # why no call is made when N is 0


def test_backward_asks_for_the_shared_memory_that_we_count():
    assert re.search(r'tile_size \* tile_size \*\s*\(sizeof\(int32_t\) \+ sizeof\(vec3\) \+ sizeof\(vec3\) \+ sizeof\(float\) \* CDIM\)',
                     cuda_source('csrc/RasterizeToPixels3DGSBwd.cu'))
    assert shared_bytes(16) == 256*(4+12+12+4*16)


def test_padding_is_the_smallest_kernel_that_holds_the_channels():
    for c in range(1, 514):
        k = kernel_channels(c)
        assert k in KERNELS and k >= c and not any(c <= other < k for other in KERNELS)


@pytest.mark.parametrize('c', [0, -1, 514])
def test_channel_counts_without_a_kernel_are_refused(c):
    with pytest.raises(InputError, match=f'{c} channels in one pass; expected 1 to 513'): kernel_channels(c)


def test_a_pass_is_as_wide_as_the_shared_memory_allows():
    assert [pass_channels(kb*1024) for kb in (48, 99, 163, 227)] == [33, 65, 129, 129] and pass_channels(0) == 1
    for kb in (16, 48, 64, 99, 163, 227): assert shared_bytes(pass_channels(kb*1024)) <= kb*1024


# ---- one call, with stand-ins for gsplat ---------------------------------------------------------------------------

@pytest.fixture
def card(monkeypatch):
    "Pretend that there is a card; gsplat's functions still have to be replaced."
    monkeypatch.setattr(gpu, '_ready', lambda t: None)
    monkeypatch.setattr(gpu, '_limit', lambda device: 129)
    return monkeypatch


@pytest.fixture
def calls(card):
    "Replace `gsplat.rasterization` by our readable CPU rasterizer behind gsplat's signature; the list of calls."
    seen = []
    def rasterization(*args, **kwargs):
        a = inspect.signature(REAL).bind(*args, **kwargs)
        a.apply_defaults(); a = a.arguments; seen.append(a)
        B, N = len(a['viewmats']), len(a['means'])
        assert a['colors'].shape[:-1] in {(N,), (B, N)} and a['Ks'].shape == (B, 3, 3) and a['opacities'].shape == (N,)
        assert a['backgrounds'] is None or a['backgrounds'].shape == (B, a['colors'].shape[-1])
        assert all(t.dtype == torch.float32 for t in a.values() if torch.is_tensor(t))
        near = float(np.nextafter(np.float32(a['near_plane']), np.float32(0)))      # gsplat skips z < near_plane
        m2, conics, z = (torch.stack(t) for t in zip(*[project(a['means'], a['quats'], a['scales'], v, K, a['width'], a['height'], near=near)
                                                       for v, K in zip(a['viewmats'], a['Ks'])]))
        radii = torch.stack([gpu._radii(c, a['opacities'], d, near) for c, d in zip(conics, z)])
        box = torch.tensor([a['width'], a['height']])
        radii = radii*((m2+radii > 0) & (m2-radii < box)).all(-1, keepdim=True)
        m2.data[(radii == 0).any(-1)] = 54321.                                    # gsplat leaves these rows uninitialised
        features = a['colors'].expand(B, N, -1)
        images, alphas = zip(*[splat(m2[b], conics[b], a['opacities'], features[b], z[b], a['width'], a['height'], backend='reference', near=near)
                               for b in range(B)])
        image, alpha = torch.stack(images), torch.stack(alphas)[..., None]
        if a['backgrounds'] is not None: image = image + (1-alpha)*a['backgrounds'][:, None, None]
        return image, alpha, dict(means2d=m2, radii=radii)
    card.setattr(GSPLAT, 'rasterization', rasterization)
    return seen


def test_one_call_holds_all_channels_and_all_cameras(calls):
    g, (viewmats, Ks) = gaussians(), cameras()
    image, alpha, m2, depths = rasterize_gpu(*g, viewmats, Ks, W, H)
    assert len(calls) == 1
    a = calls[0]
    assert a['colors'].shape == (len(g[0]), 16) and a['channel_chunk'] >= 16          # eleven channels, one pass
    assert a['packed'] is False and a['sh_degree'] is None and a['radius_clip'] == 0 and a['eps2d'] == .3 and a['render_mode'] == 'RGB'
    assert image.shape == (3, H, W, 11) and alpha.shape == (3, H, W) and m2.shape == (3, len(g[0]), 2) and depths.shape == (3, len(g[0]))
    for b in range(3):
        p = projected(g, viewmats[b], Ks[b])
        want, want_alpha = splat(*p, backend='reference')
        assert torch.allclose(image[b], want, atol=1e-5) and torch.allclose(alpha[b], want_alpha, atol=1e-5)
        assert torch.allclose(m2[b], p[0], atol=1e-3, rtol=1e-5) and torch.allclose(depths[b], p[4], atol=1e-6)   # culled rows too


def test_gradients_pass_through_the_call_and_stay_readable_at_means2d(calls):
    g, (viewmats, Ks) = gaussians(200), cameras(1)
    leaves = [t.clone().requires_grad_() for t in g]
    image, alpha, m2, depths = rasterize_gpu(*leaves, viewmats, Ks, W, H)
    (image.square().sum() + alpha.sum()).backward()
    assert all(t.grad is not None and t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in leaves)
    assert m2.grad.shape == (1, len(g[0]), 2) and m2.grad.abs().sum() > 0


def test_each_camera_may_have_features_of_its_own(calls):
    g, (viewmats, Ks) = gaussians(200, channels=3), cameras(2)
    features = torch.stack([g[4], 2*g[4]])
    image = rasterize_gpu(*g[:4], features, viewmats[:1].repeat(2, 1, 1), Ks, W, H)[0]
    assert calls[0]['colors'].shape == (2, len(g[0]), 3) and torch.allclose(image[1], 2*image[0], atol=1e-5)


def test_background_shows_through_and_wrong_ones_are_refused(calls):
    g, (viewmats, Ks) = gaussians(200), cameras(2)
    plain, alpha = rasterize_gpu(*g, viewmats, Ks, W, H)[:2]
    for background in (torch.arange(11.), torch.arange(22.).reshape(2, 11)):
        image = rasterize_gpu(*g, viewmats, Ks, W, H, background=background)[0]
        assert torch.allclose(image, plain + (1-alpha)[..., None]*background.expand(2, 11)[:, None, None], atol=1e-4)
    with pytest.raises(InputError, match=r'background: shape \(3,\); expected \(11,\) or \(2, 11\)'): rasterize_gpu(*g, viewmats, Ks, W, H, background=torch.ones(3))


def test_near_plane_is_the_cpu_rule(calls):
    "A Gaussian exactly at `near` is skipped, the next float is drawn."
    at = np.float32(.5)
    for z, seen in ((at, False), (np.nextafter(at, np.float32(1)), True)):
        one = torch.tensor([[0., 0, z]]), torch.tensor([[1., 0, 0, 0]]), torch.full((1, 3), .01), torch.ones(1), torch.ones(1, 1)
        alpha = rasterize_gpu(*one, torch.eye(4)[None], cameras(1)[1], W, H, near=float(at))[1]
        assert (alpha.max() > 0) == seen
        assert not float(z) < calls[-1]['near_plane'] if seen else float(z) < calls[-1]['near_plane']      # what the kernel asks


def test_more_channels_than_one_pass_holds_go_to_gsplat_in_one_call(calls):
    g, (viewmats, Ks) = gaussians(100, channels=200), cameras(1)
    image = rasterize_gpu(*g, viewmats, Ks, W, H)[0]
    assert len(calls) == 1 and calls[0]['channel_chunk'] == 129 and calls[0]['colors'].shape[-1] == 200 and image.shape[-1] == 200


def test_nothing_to_draw_does_not_reach_gsplat(calls):
    nothing = [t[:0].requires_grad_() for t in gaussians(5)]
    image, alpha, m2, depths = rasterize_gpu(*nothing, *cameras(), W, H, background=torch.ones(11))
    assert not calls and (image == 1).all() and (alpha == 0).all() and m2.shape == (3, 0, 2) and depths.shape == (3, 0)
    image.sum().backward()
    none = [torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 5), torch.zeros(0)]
    image, alpha = splat_gpu(*none, W, H)
    assert image.shape == (H, W, 5) and alpha.shape == (H, W) and image.abs().sum() + alpha.sum() == 0


def test_more_than_32_bits_can_count_is_refused_with_the_number_that_fits(calls):
    g, (viewmats, Ks) = gaussians(5), cameras(38)
    with pytest.raises(InputError, match='38 pictures of 2204x3208 px.*at most 37 .*fewer cameras'): rasterize_gpu(*g, viewmats, Ks, 2204, 3208)
    assert not calls


def test_every_argument_exists_in_the_installed_gsplat():
    have = inspect.signature(REAL).parameters
    assert not set(gpu._settings(.01, 32, None)) - set(have)
    assert list(have)[:9] == ['means', 'quats', 'scales', 'opacities', 'colors', 'viewmats', 'Ks', 'width', 'height']
    assert have['tile_size'].default == gpu.TILE and have['eps2d'].default == inspect.signature(project).parameters['eps2d'].default


@pytest.fixture
def pixels(card):
    "gsplat's own PyTorch lists, and a stand-in for its kernel that draws every list in lockstep; widths of the passes."
    impl, widths = pytest.importorskip('gsplat.cuda._torch_impl'), []
    signatures = {n: inspect.signature(getattr(GSPLAT, n)) for n in ('isect_tiles', 'isect_offset_encode', 'rasterize_to_pixels')}
    def rasterize_to_pixels(*args, **kwargs):
        a = signatures['rasterize_to_pixels'].bind(*args, **kwargs).arguments
        m2, conics, colors, op = (a[n][0] for n in ('means2d', 'conics', 'colors', 'opacities'))
        offsets, ids, size, C = a['isect_offsets'][0], a['flatten_ids'].long(), a['tile_size'], colors.shape[-1]
        assert C in KERNELS; widths.append(C)
        ny, nx = offsets.shape
        ends, tiles = [*offsets.flatten().tolist(), len(ids)], []
        for t in range(ny*nx):
            g = ids[ends[t]:ends[t+1]]
            y, x = torch.meshgrid(torch.arange(size)+t//nx*size+.5, torch.arange(size)+t%nx*size+.5, indexing='ij')
            dx, dy = m2[g, 0, None, None]-x, m2[g, 1, None, None]-y
            c = conics[g][:, :, None, None]
            alpha = (op[g, None, None]*torch.exp(-.5*(c[:, 0]*dx*dx+c[:, 2]*dy*dy)-c[:, 1]*dx*dy)).clamp_max(ALPHA_MAX)
            alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.)
            T = torch.cumprod(1-alpha, 0)
            weight = alpha*torch.cat([torch.ones_like(T[:1]), T[:-1]])[:len(g)]*(T > T_MIN)
            tiles.append(torch.einsum('nyx,nc->yxc', weight, torch.cat([colors[g], torch.ones(len(g), 1)], 1)))
        full = torch.stack(tiles).reshape(ny, nx, size, size, C+1).transpose(1, 2).reshape(ny*size, nx*size, C+1)[None, :a['image_height'], :a['image_width']]
        return full[..., :C], full[..., C:]
    card.setattr(GSPLAT, 'isect_tiles', lambda *a: (signatures['isect_tiles'].bind(*a), impl._isect_tiles(*a))[1])
    card.setattr(GSPLAT, 'isect_offset_encode', lambda *a: (signatures['isect_offset_encode'].bind(*a), impl._isect_offset_encode(*a))[1])
    card.setattr(GSPLAT, 'rasterize_to_pixels', rasterize_to_pixels)
    return widths


@pytest.mark.parametrize('channels, widths', [(1, [1]), (6, [8]), (11, [16]), (200, [129, 128])])
def test_projected_splats_go_through_gsplats_lists_in_as_few_passes_as_fit(pixels, channels, widths):
    p = projected(gaussians(150, channels), *[c[1] for c in cameras()])
    image, alpha = splat_gpu(*p)
    want, want_alpha = splat(*p, backend='reference')
    assert pixels == widths and image.shape == (H, W, channels)
    good = ~touchy(*p, eps=1e-4)
    assert good.float().mean() > .99 and (image-want).abs()[good].max() < 1e-4 and (alpha-want_alpha).abs()[good].max() < 1e-5


def test_gsplats_boxes_never_cut_what_the_threshold_keeps():
    g = gaussians(300)
    m2, conics, op, _, z, *_ = projected(g, *[c[0] for c in cameras()])
    radii = gpu._radii(conics, op, z, .01)
    y, x = torch.meshgrid(torch.arange(H)+.5, torch.arange(W)+.5, indexing='ij')
    for i in range(len(m2)):
        dx, dy = x-m2[i, 0], y-m2[i, 1]
        drawn = (op[i]*torch.exp(-.5*(conics[i, 0]*dx*dx+conics[i, 2]*dy*dy)-conics[i, 1]*dx*dy) >= ALPHA_MIN) & (z[i] > .01)
        assert not (drawn & ((dx.abs() > radii[i, 0]) | (dy.abs() > radii[i, 1]))).any()


def test_boxes_and_projection_are_those_of_gsplats_torch_twin():
    impl = pytest.importorskip('gsplat.cuda._torch_impl')
    g, (viewmats, Ks) = gaussians(), cameras()
    covariance, _ = impl._quat_scale_to_covar_preci(g[1], g[2], True, False)
    radii, m2, z, conics, _ = impl._fully_fused_projection(g[0], covariance, viewmats, Ks, W, H)
    centres, depths = gpu._pinhole(g[0], viewmats, Ks, .01)
    front = depths > .01
    assert torch.allclose(centres[front], m2[front], rtol=1e-4, atol=1e-3) and torch.allclose(depths, z, atol=1e-6)
    for b in range(3):
        opaque = gpu._radii(conics[b], torch.ones(len(g[0])), z[b], .01)
        seen = (radii[b] > 0).all(-1)
        assert ((opaque-radii[b])[seen].abs() <= 1).all() and ((opaque-radii[b])[seen] == 0).float().mean() > .98     # 3.329 against 3.33


# ---- what waits for a card -------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


def script(monkeypatch, path):
    "A benchmark script as a module."
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    spec = importlib.util.spec_from_file_location(f'script_{Path(path).stem}', ROOT/path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmark_without_a_card_leaves_the_bar_open(monkeypatch, tmp_path, capsys):
    bench = script(monkeypatch, 'benchmarks/splat_gpu.py')
    monkeypatch.setattr(bench, 'missing', lambda: 'no CUDA device: install one')
    monkeypatch.setattr(sys, 'argv', ['splat_gpu.py', '--quick', '--json', str(tmp_path/'gpu.json')])
    bench.main()
    assert 'not measured, the bar stays open: no CUDA device: install one' in capsys.readouterr().out
    result = json.loads((tmp_path/'gpu.json').read_text())
    assert result['bars'] == dict(rgb_flow_one_pass_over_rgb=dict(value=None, target=1.3, met=False)) and result['rows'] == []
    assert result['not_measured'] == 'no CUDA device: install one'


def test_benchmark_walks_its_whole_path(monkeypatch, calls, pixels):
    "With stand-ins for the card: what it times is one pass of all channels and two, and its parity check finds none where there is none."
    bench, clock = script(monkeypatch, 'benchmarks/splat_gpu.py'), iter(range(10**6))
    class Event:
        def __init__(self, enable_timing): pass
        def record(self): self.at = next(clock)
        def synchronize(self): pass
        def elapsed_time(self, other): return float(other.at-self.at)
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    for name in ('reset_peak_memory_stats', 'max_memory_allocated'): monkeypatch.setattr(torch.cuda, name, lambda: 1)
    monkeypatch.setattr(torch.Tensor, 'cuda', lambda self: self)
    monkeypatch.setattr(bench.Gaussians, 'to', lambda self, device: self)
    row = bench.measure(300, 48, 70, repeats=1)
    assert set(row['ms']) == {'rgb', 'one_pass', 'two_passes', 'splat_flow', 'rgb_backward', 'one_pass_backward'} and row['one_pass_over_rgb'] == 1
    assert row['channels'] >= 10 and row['kernel_channels'] == kernel_channels(row['channels']) == 16     # RGB, depth, six of flow and more fit one small kernel
    widths = {c['colors'].shape[-1] for c in calls}
    assert {3, row['kernel_channels'], kernel_channels(row['channels']-3)} <= widths
    for door in row['parity'].values(): assert door['max_error'] < 1e-4 and door['threshold_pixels'] < .2*48*70


@pytest.fixture
def queue(monkeypatch, tmp_path):
    "The runner with four small items and a card that it believes in; (module, run with arguments, result of an item)."
    run = script(monkeypatch, 'benchmarks/gpu/run.py')
    def say(code): return [sys.executable, '-c', code]
    ran = tmp_path/'ran'
    monkeypatch.setattr(run, 'device', lambda: dict(name='a card', memory_gb=1, torch='2'))
    monkeypatch.setattr(run, 'ITEMS', dict(
        good=('that it runs', [], 60, [say(f"open({str(ran)!r}, 'a').write('x'); print('fine')")]), bad=('that it fails', [], 60, [say('import sys; print("why"); sys.exit(3)'), say('print("never")')]),
        slow=('that it is stopped', [], 2, [say('import time; print("begun", flush=True); time.sleep(60)')]), needy=('that it says what it needs', ['nowhere_to_be_found'], 60, [])))
    return run, lambda *a: run.main([*a, '--out', str(tmp_path)]), lambda name: json.loads((tmp_path/f'{name}.json').read_text()), ran


def test_queue_runs_all_that_waits_and_goes_on_where_it_stopped(queue):
    run, main, result, ran = queue
    assert main() == 1
    assert result('good')['ok'] and result('good')['output'] == ['fine'] and result('good')['device']['name'] == 'a card'
    assert not result('bad')['ok'] and result('bad')['exit_code'] == 3 and result('bad')['output'] == ['why']
    assert result('slow')['why'] == 'stopped after 2 s' and result('slow')['output'] == ['begun'] and result('slow')['seconds'] < 30
    assert result('needy')['why'] == 'missing here: nowhere_to_be_found'
    run.ITEMS.pop('slow')
    assert main() == 1 and ran.read_text() == 'x'                 # what was good is not run again
    assert main('good') == 0 and ran.read_text() == 'xx'          # unless asked for by name


def test_queue_without_a_card_runs_nothing(queue, monkeypatch, tmp_path, capsys):
    run, main, result, ran = queue
    monkeypatch.setattr(run, 'device', lambda: None)
    assert main() == 2 and not ran.exists() and not list(tmp_path.glob('*.json')) and 'no CUDA device' in capsys.readouterr().out
    assert main('--list') == 0 and capsys.readouterr().out.count('waiting') == 4


def test_queue_knows_every_test_and_lesson_for_a_card(monkeypatch):
    run = script(monkeypatch, 'benchmarks/gpu/run.py')
    assert 'tests/test_gpu.py' in run.TESTS and 'nbs/07d_gpu.ipynb' in run.LESSONS and 'tests/conftest.py' not in run.TESTS
    readme = (ROOT/'benchmarks/gpu/README.md').read_text()
    assert re.findall(r'^\| `(\w+)` \|', readme, flags=re.M) == list(run.ITEMS)


# ---- gsplat's kernels: compiled for the CPU, and on a card ---------------------------------------------------------

@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request, monkeypatch, tmp_path_factory):
    "Where gsplat's kernels run: a card, or the CPU that plays one (with the shared memory of a small one)."
    if request.param == 'cpu':
        from gsplat_on_cpu import Kernels, build
        cache = getattr(request.config, 'cache', None)
        library = build(cache.mkdir('gsplat_on_cpu') if cache else tmp_path_factory.mktemp('gsplat_on_cpu'))
        if library is None: pytest.skip("no Linux with g++ to compile gsplat's kernels with")
        monkeypatch.setitem(sys.modules, 'gsplat.cuda._backend', type('Backend', (), {'_C': Kernels(library)}))
        monkeypatch.setattr(gpu, '_ready', lambda t: None)
        monkeypatch.setattr(gpu, '_limit', lambda device: 16)
    return request.param


def exact(device, on_cpu, on_card):
    "A tolerance: the CPU that plays a card computes exactly, a card projects with fast division and adds up in any order."
    return on_cpu if device == 'cpu' else on_card


def on(device, ts): return [t.to(device) if torch.is_tensor(t) else t for t in ts]


def gradients(draw, tensors, device, good):
    "Gradients of each tensor: of the picture's squares and of alpha, threshold pixels left out."
    leaves = [t.to(device).clone().requires_grad_() for t in tensors]
    image, alpha = draw(*leaves)
    (image[good.to(device)].square().sum() + alpha[good.to(device)].sum()).backward()
    return [t.grad.cpu() for t in leaves]


@pytest.mark.cuda
def test_gsplat_runs_here(): assert missing() == ''


@pytest.mark.parametrize('channels', [1, 3, 6, 11, 40])
def test_projected_splats_look_as_on_the_cpu(device, channels):
    p = projected(gaussians(400, channels), *[c[0] for c in cameras()])
    image, alpha = splat_gpu(*on(device, p))
    want, want_alpha = splat(*p, backend='reference')
    good = ~touchy(*p, eps=3e-4)
    assert image.shape == (H, W, channels) and good.float().mean() > .99
    assert (image.cpu()-want).abs()[good].max() < exact(device, 5e-6, 1e-4) and (alpha.cpu()-want_alpha).abs()[good].max() < exact(device, 2e-6, 1e-5)


def test_gradients_of_projected_splats_are_the_cpus(device):
    p = projected(gaussians(200, channels=3), *[c[0] for c in cameras()])
    good = ~touchy(*p, eps=3e-4)
    got = gradients(lambda *t: splat_gpu(*t, p[4].to(device), W, H), p[:4], device, good)
    want = gradients(lambda *t: splat(*t, p[4], W, H, backend='reference'), p[:4], 'cpu', good)
    for a, b in zip(got, want): assert b.norm() > 0 and (a-b).norm() < exact(device, 1e-5, 1e-3)*b.norm()


def test_one_call_for_all_cameras_looks_as_on_the_cpu(device):
    g, (viewmats, Ks) = gaussians(400), cameras()
    image, alpha, m2, depths = (t.cpu() for t in rasterize_gpu(*on(device, g), *on(device, [viewmats, Ks]), W, H))
    for b in range(3):
        p = projected(g, viewmats[b], Ks[b])
        want, want_alpha = splat(*p, backend='reference')
        good = ~touchy(*p, eps=exact(device, 3e-4, 3e-3))
        assert good.float().mean() > .95
        assert (image[b]-want).abs()[good].max() < exact(device, 5e-5, 2e-3) and (alpha[b]-want_alpha).abs()[good].max() < exact(device, 2e-5, 1e-3)
        assert torch.allclose(m2[b], p[0], atol=5e-3, rtol=1e-4) and torch.allclose(depths[b], p[4], atol=1e-5)    # culled rows, too


def test_gradients_of_one_call_are_the_cpus(device):
    g, (viewmats, Ks) = gaussians(200, channels=3), cameras(1)
    good = ~touchy(*projected(g, viewmats[0], Ks[0]), eps=3e-3)
    def on_card(*t):
        image, alpha, m2, _ = rasterize_gpu(*t, viewmats.to(device), Ks.to(device), W, H)
        return image[0], alpha[0]
    got = gradients(on_card, g, device, good)
    want = gradients(lambda *t: splat(*projected(t, viewmats[0], Ks[0]), backend='reference'), g, 'cpu', good)
    for a, b in zip(got, want): assert b.norm() > 0 and (a-b).norm() < exact(device, 1e-5, 1e-2)*b.norm()


def test_one_pass_equals_two_and_a_batch_equals_single_cameras(device):
    g, (viewmats, Ks) = on(device, gaussians(200)), on(device, cameras())
    whole, alpha, m2, _ = rasterize_gpu(*g, viewmats, Ks, W, H)
    parts = [rasterize_gpu(*g[:4], f, viewmats, Ks, W, H)[0] for f in g[4].split([3, 8], 1)]
    assert torch.equal(whole, torch.cat(parts, -1))
    for b in range(3):
        image, one_alpha, one_m2, _ = rasterize_gpu(*g, viewmats[b:b+1], Ks[b:b+1], W, H)
        assert torch.equal(image[0], whole[b]) and torch.equal(one_alpha[0], alpha[b]) and torch.equal(one_m2[0], m2[b])


def test_features_of_each_camera_and_background_in_one_call(device):
    g, (viewmats, Ks) = on(device, gaussians(200, channels=3)), on(device, cameras(2))
    background = torch.tensor([.1, .2, .3], device=device)
    plain, alpha, *_ = rasterize_gpu(*g, viewmats, Ks, W, H)
    image = rasterize_gpu(*g[:4], torch.stack([g[4], 2*g[4]]), viewmats, Ks, W, H, background=background)[0]
    over = (1-alpha)[..., None]*background
    assert torch.allclose(image[0], plain[0]+over[0], atol=1e-5) and torch.allclose(image[1], 2*plain[1]+over[1], atol=1e-5)


@pytest.mark.cuda
def test_the_widest_pass_differentiates_on_this_card():
    "`_limit` promises that the backward pass of so many channels fits."
    p = on('cuda', projected(gaussians(100, channels=gpu._limit(torch.device('cuda'))), *[c[0] for c in cameras()]))
    leaves = [t.clone().requires_grad_() for t in p[:4]]
    splat_gpu(*leaves, p[4], W, H)[0].sum().backward()
    assert all(t.grad.isfinite().all() for t in leaves)


def test_nothing_and_odd_sizes_do_not_end_the_process(device):
    nothing = on(device, [t[:0] for t in gaussians(5)])
    image, alpha, m2, depths = rasterize_gpu(*nothing, *on(device, cameras()), W, H)
    assert image.abs().sum() == 0 and image.shape == (3, H, W, 11)
    g = on(device, gaussians(50))
    for w, h in ((1, 1), (1, 200), (200, 1), (17, 33)): assert rasterize_gpu(*g, *on(device, cameras(1)), w, h)[0].shape == (1, h, w, 11)
    g[0] = g[0] - g[0].new_tensor([0., 0, 100])                                     # all behind the camera
    image, alpha, m2, depths = rasterize_gpu(*g, *on(device, cameras()), W, H)
    assert alpha.abs().sum() == 0 and m2.isfinite().all() and m2.abs().max() < 1e3


def test_gaussian_at_near_is_skipped_and_the_next_float_is_drawn(device):
    at = np.float32(.5)
    for z, seen in ((at, False), (np.nextafter(at, np.float32(1)), True)):
        one = torch.tensor([[0., 0, z]]), torch.tensor([[1., 0, 0, 0]]), torch.full((1, 3), .01), torch.ones(1), torch.ones(1, 1)
        alpha = rasterize_gpu(*on(device, one), *on(device, [torch.eye(4)[None], cameras(1)[1]]), W, H, near=float(at))[1]
        assert (alpha.max() > 0) == seen


def test_means2d_keeps_its_gradient(device):
    g, (viewmats, Ks) = gaussians(100, channels=3), cameras(2)
    leaves = [t.to(device).requires_grad_() for t in g]
    image, _, m2, _ = rasterize_gpu(*leaves, viewmats.to(device), Ks.to(device), W, H)
    image.square().sum().backward()
    assert m2.grad.shape == (2, len(g[0]), 2) and m2.grad.isfinite().all() and m2.grad.abs().sum() > 0 and leaves[0].grad.abs().sum() > 0


@pytest.mark.cuda
def test_median_of_cuda_tensors_is_the_cpus():
    from srflow_nb.splat import median_ids
    p = projected(gaussians(), *[c[0] for c in cameras()])
    args = [*p[:3], p[4], W, H]
    ids = median_ids(*on('cuda', args))
    assert ids.device.type == 'cuda' and torch.equal(ids.cpu(), median_ids(*args))


def test_flow_through_gsplat_is_the_cpus(device):
    from srflow_nb.camera import frontal_camera
    from srflow_nb.flow import splat_flow
    from srflow_nb.gaussians import Gaussians
    g, camera = gaussians(300, channels=3), frontal_camera(96, 128)
    before = Gaussians(g[0]*.15, g[1], g[2]*.15, g[3], g[4].sigmoid())
    after = before.replace(means=before.means + torch.tensor([.002, -.001, .003]))
    want = splat_flow(before, after, camera, backend='reference')
    got = splat_flow(before.to(device), after.to(device), camera, backend='gsplat')
    covered = want.alpha > .5
    error = (got.flow.cpu()-want.flow).norm(dim=0)[covered]
    assert covered.sum() > 1000 and error.median() < 1e-3 and error.quantile(.99) < .05
