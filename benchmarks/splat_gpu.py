"""What does flow cost on a GPU? RGB alone, RGB + flow in one pass, and in two, with gsplat's kernels; and are the pictures the CPU's?

python benchmarks/splat_gpu.py                          writes benchmarks/results/splat_gpu.json
python benchmarks/splat_gpu.py --quick --json FILE      a reduced form, under a minute (once gsplat's kernels are built)

Where gsplat cannot run, the file says so: the bar has no value and stays open.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import inspect
import math
import statistics
from unittest import mock

import numpy as np
import torch
from _common import arguments, bar, write
from numba import njit

import srflow_nb.flow as flow
from srflow_nb.camera import frontal_camera
from srflow_nb.core import rng
from srflow_nb.gaussians import Gaussians, rotmat_to_quat
from srflow_nb.gpu import kernel_channels, missing, rasterize_gpu, splat_gpu
from srflow_nb.splat import ALPHA_MAX, ALPHA_MIN, T_MIN, project, splat

TARGET = 1.3            # RGB + flow in one pass may cost so many times RGB alone
SIZES = (550, 802), (1100, 1604), (2204, 3208)
COUNTS = 20_000, 100_000, 500_000


def turn(degrees, axis=(.3, 1., .2)):
    "A rotation about a tilted axis."
    x, y, z = (torch.tensor(axis)/torch.tensor(axis).norm()).tolist()
    return torch.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])*math.radians(degrees))


def ellipsoid(n, R, axes=(.08, .11, .09)):
    "An ellipsoid the size of a head, covered with flat Gaussians of random opacity and colour, turned by R."
    axes, i, r = torch.tensor(axes), torch.arange(n)+.5, rng(0, 'gpu benchmark')
    z, a = 1-2*i/n, np.pi*(1+5**.5)*i
    p = torch.stack([(1-z*z).sqrt()*a.cos(), (1-z*z).sqrt()*a.sin(), z], 1)*axes
    normal = torch.nn.functional.normalize(p/axes**2, dim=1)
    t1 = torch.nn.functional.normalize(torch.linalg.cross(normal, torch.tensor([[.3, .5, .8]]).expand(n, 3)), dim=1)
    frames = R @ torch.stack([t1, torch.linalg.cross(normal, t1), normal], 2)
    size = .8*(4*np.pi*.0933**2/n)**.5
    return Gaussians(p @ R.T, rotmat_to_quat(frames), torch.tensor([size, size, .3*size]).expand(n, 3).contiguous(),
                     torch.from_numpy(r.uniform(.3, 1, n).astype('f4')), torch.from_numpy(r.uniform(0, 1, (n, 3)).astype('f4')), frames)


def flow_features(g0, g1, camera):
    "What `splat_flow` hands to the rasterizer in its default mode, colours included, caught on the way."
    name = next(n for n in ('rasterize', 'splat') if hasattr(flow, n))
    real, caught = getattr(flow, name), []
    def catch(*args, **kwargs):
        caught.append(inspect.signature(real).bind(*args, **kwargs).arguments['features'].detach())
        return real(*args, **kwargs)
    with mock.patch.object(flow, name, catch), torch.no_grad(): flow.splat_flow(g0, g1, camera)
    return max(caught, key=lambda f: f.shape[-1]).reshape(len(g0), -1).contiguous()


@njit(cache=False)
def _thresholds(order, m2, conics, opacities, depths, width, height, eps, gap):
    "Pixels that meet an alpha or a transmittance within `eps` (relative) of its threshold, or two splats whose depths are `gap` apart."
    T, last = np.ones((height, width)), np.full((height, width), -1.)
    near_rule, near_depth = np.zeros((height, width), np.bool_), np.zeros((height, width), np.bool_)
    for g in order:
        a, b, c = conics[g]
        if a*c-b*b <= 0 or 300*opacities[g] <= 1: continue
        k = 2*math.log(300*opacities[g])/(a*c-b*b)
        hx, hy = math.sqrt(k*c), math.sqrt(k*a)
        for y in range(max(0, int(m2[g, 1]-hy)), min(height, int(m2[g, 1]+hy)+2)):
            for x in range(max(0, int(m2[g, 0]-hx)), min(width, int(m2[g, 0]+hx)+2)):
                dx, dy = x+.5-m2[g, 0], y+.5-m2[g, 1]
                alpha = min(ALPHA_MAX, opacities[g]*math.exp(-.5*(a*dx*dx+c*dy*dy)-b*dx*dy))
                after = T[y, x]*(1-alpha)
                near_rule[y, x] |= abs(alpha/ALPHA_MIN-1) < eps or abs(after/T_MIN-1) < eps
                if alpha < ALPHA_MIN or after <= T_MIN: continue
                near_depth[y, x] |= depths[g]-last[y, x] < gap*depths[g]
                T[y, x], last[y, x] = after, depths[g]
    return near_rule, near_depth


def parity(g, features, camera):
    "Largest difference between GPU and CPU outside threshold pixels, through both doors, and how many pixels were left out."
    w, h = camera.width, camera.height
    m2, conics, depths = project(g.means, g.quats, g.scales, camera.viewmat, camera.K, w, h)
    want, _ = splat(m2, conics, g.opacities, features, depths, w, h, backend='numba')
    order = depths.argsort(stable=True).numpy()
    scale = features.abs().amax(0).clamp_min(1e-9)                 # features have units: errors relative to each channel's largest
    doors = dict(splat_gpu=(3e-4, 0., lambda: splat_gpu(*[t.cuda() for t in (m2, conics, g.opacities, features, depths)], w, h)[0]),
                 rasterize_gpu=(3e-3, 1e-6, lambda: rasterize_gpu(*[t.cuda() for t in (g.means, g.quats, g.scales, g.opacities, features)],
                                                                  camera.viewmat[None].cuda(), camera.K[None].cuda(), w, h)[0][0]))
    res = {}
    for door, (eps, gap, draw) in doors.items():
        rule, swap = (torch.from_numpy(t) for t in _thresholds(order, *[t.double().numpy() for t in (m2, conics, g.opacities, depths)], w, h, eps, gap))
        with torch.no_grad(): error = ((draw().cpu()-want)/scale).abs().amax(-1)
        res[door] = dict(max_error=error[~(rule | swap)].max().item(), max_error_anywhere=error.max().item(),
                         threshold_pixels=int(rule.sum()), depth_tie_pixels=int((swap & ~rule).sum()), pixels=w*h)
    return res


def medians(variants, repeats):
    "Median milliseconds of each variant by CUDA events, the variants taking turns, so that a changing clock disturbs all alike."
    for f in variants.values():
        for _ in range(5): f()
    times = {name: [] for name in variants}
    for _ in range(repeats):
        for name, f in variants.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(); f(); end.record(); end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(t) for name, t in times.items()}


def variants(g0, g1, features, camera):
    "What is timed: functions of no arguments."
    scene = g0.means, g0.quats, g0.scales, g0.opacities
    view = camera.viewmat[None].to(g0.means), camera.K[None].to(g0.means), camera.width, camera.height
    rgb, rest = g0.colors, features[:, [i for i in range(features.shape[1]) if not any(torch.equal(features[:, i], c) for c in g0.colors.T)]]
    def draw(*passes):
        with torch.no_grad(): return [rasterize_gpu(*scene, f, *view) for f in passes]
    def differentiate(f):
        leaves = [t.detach().requires_grad_() for t in (*scene, f)]
        image, alpha, *_ = rasterize_gpu(*leaves, *view)
        (image.sum()+alpha.sum()).backward()
    def whole():
        with torch.no_grad(): return flow.splat_flow(g0, g1, camera)
    return dict(rgb=lambda: draw(rgb), one_pass=lambda: draw(features), two_passes=lambda: draw(rgb, rest), splat_flow=whole,
                rgb_backward=lambda: differentiate(rgb), one_pass_backward=lambda: differentiate(features))


def measure(n, width, height, repeats):
    "One row: parity, times and memory for n Gaussians."
    camera, here, there = frontal_camera(width, height), ellipsoid(n, torch.eye(3)), ellipsoid(n, turn(3))
    g0, g1 = here.to('cuda'), there.to('cuda')
    features = flow_features(g0, g1, camera)
    torch.cuda.reset_peak_memory_stats()
    ms = medians(variants(g0, g1, features, camera), repeats)
    row = dict(gaussians=n, width=width, height=height, channels=features.shape[1], kernel_channels=kernel_channels(features.shape[1]), repeats=repeats,
               ms={k: round(v, 4) for k, v in ms.items()}, frames_a_second={k: round(1e3/v, 1) for k, v in ms.items()},
               one_pass_over_rgb=round(ms['one_pass']/ms['rgb'], 4), two_passes_over_rgb=round(ms['two_passes']/ms['rgb'], 4),
               peak_mb=round(torch.cuda.max_memory_allocated()/1e6, 1), parity=parity(here, features.cpu(), camera))
    print(f"{n:7d} Gaussians, {width}x{height}, {row['channels']} channels: RGB {ms['rgb']:.3f} ms, with flow in one pass {ms['one_pass']:.3f} ms "
          f"({row['one_pass_over_rgb']:.2f}x), in two {ms['two_passes']:.3f} ms ({row['two_passes_over_rgb']:.2f}x)", flush=True)
    for door, p in row['parity'].items():
        print(f"        {door}: largest relative difference from the CPU {p['max_error']:.1e}, without {p['threshold_pixels']} threshold and "
              f"{p['depth_tie_pixels']} tie pixels of {p['pixels']}", flush=True)
    return row


def main():
    "Measure, print, write; or write that nothing could be measured, and why."
    args = arguments(__doc__.splitlines()[0])
    name = 'rgb_flow_one_pass_over_rgb'
    if why := missing():
        print(f'not measured, the bar stays open: {why}')
        write('splat_gpu', args, [], {name: bar(None, TARGET)}, not_measured=why)
        return
    p = torch.cuda.get_device_properties(0)
    device = dict(name=p.name, compute_capability=f'{p.major}.{p.minor}', memory_gb=round(p.total_memory/1e9, 1), cuda=torch.version.cuda)
    cases = [(20_000, *SIZES[0]), (100_000, *SIZES[1])] if args.quick else [(n, *size) for size in SIZES for n in COUNTS]
    rows = [measure(*case, repeats=10 if args.quick else 50) for case in cases]
    write('splat_gpu', args, rows, {name: bar(max(r['one_pass_over_rgb'] for r in rows), TARGET, at_most=True)}, device=device)


if __name__ == '__main__': main()
