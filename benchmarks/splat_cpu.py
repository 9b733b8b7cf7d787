"""How much faster than plain PyTorch tiles is the compiled CPU rasterizer? Both measured in turn, in one run.

python benchmarks/splat_cpu.py                          writes benchmarks/results/splat_cpu.json
python benchmarks/splat_cpu.py --quick --json FILE      a reduced form, under a minute
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import statistics
import time

import numba
import numpy as np
import torch
from _common import arguments, bar, write

from srflow_nb.camera import frontal_camera
from srflow_nb.core import rng
from srflow_nb.gaussians import rotmat_to_quat
from srflow_nb.splat import project, splat, warm_up

CHANNELS = 6


def scene(n, width, height):
    "An ellipsoid the size of a head, covered with flat splats of random opacity."
    axes, i = torch.tensor([.08, .11, .09]), torch.arange(n)+.5
    z, a = 1-2*i/n, np.pi*(1+5**.5)*i
    p = torch.stack([(1-z*z).sqrt()*a.cos(), (1-z*z).sqrt()*a.sin(), z], 1)*axes
    normal = torch.nn.functional.normalize(p/axes**2, dim=1)
    t1 = torch.nn.functional.normalize(torch.linalg.cross(normal, torch.tensor([[.3, .5, .8]]).expand(n, 3)), dim=1)
    quats = rotmat_to_quat(torch.stack([t1, torch.linalg.cross(normal, t1), normal], 2))
    size, r = .8*(4*np.pi*.0933**2/n)**.5, rng(0, 'benchmark')
    camera = frontal_camera(width, height)
    scales = torch.tensor([size, size, .3*size]).expand(n, 3)
    m2, conics, depths = project(p, quats, scales, camera.viewmat, camera.K, width, height)
    features = torch.from_numpy(r.normal(size=(n, CHANNELS)).astype('f4'))
    return [m2, conics, torch.from_numpy(r.uniform(.3, 1, n).astype('f4')), features, depths, width, height]


def forward(s, backend):
    "Tile lists and picture."
    with torch.no_grad(): return splat(*s, backend=backend)


def forward_backward(s, backend):
    "The same with the gradients of all four inputs."
    leaves = [t.detach().requires_grad_() for t in s[:4]]
    image, alpha = splat(*leaves, *s[4:], backend=backend)
    (image.sum()+alpha.sum()).backward()


def measure(f, s, backends, repeats):
    "Seconds of each run, backends taking turns, so that a busy machine disturbs both alike."
    times = {b: [] for b in backends}
    for b in backends: f(s, b)                           # once unmeasured
    for r in range(max(repeats.values())):
        for b in backends:
            if r >= repeats[b]: continue
            start = time.perf_counter(); f(s, b); times[b].append(time.perf_counter()-start)
    return times


def main():
    "Measure, print, write."
    args = arguments(__doc__.splitlines()[0])
    warm_up(CHANNELS + -CHANNELS % 4)
    cases = [(20000, 275, 401)] if args.quick else [(20000, 550, 802)]
    backends, rows, ratios = ('numba', 'reference'), [], {}
    for n, w, h in cases:
        s = scene(n, w, h)
        gap = (forward(s, 'numba')[0]-forward(s, 'reference')[0]).abs().amax(-1)
        print(f'{n} Gaussians, {w}x{h}, {CHANNELS} channels: {int((gap > 1e-4).sum())} of {w*h} pixels differ by more than 1e-4')
        for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
            numba.set_num_threads(threads); torch.set_num_threads(threads)
            for name, f, slow in (('forward', forward, 5), ('forward+backward', forward_backward, 3)):
                times = measure(f, s, backends, dict(numba=10 if args.quick else 20, reference=2 if args.quick else slow))
                median = {b: statistics.median(t) for b, t in times.items()}
                ratio = median['reference']/median['numba']
                ratios[name, threads] = ratio
                rows.append(dict(gaussians=n, width=w, height=h, channels=CHANNELS, what=name, numba_threads=threads, torch_threads=threads,
                                 numba_ms=round(1e3*median['numba'], 2), reference_ms=round(1e3*median['reference'], 2), ratio=round(ratio, 2),
                                 numba_best_ms=round(1e3*min(times['numba']), 2), reference_best_ms=round(1e3*min(times['reference']), 2),
                                 runs={b: len(t) for b, t in times.items()}, pixels_differing_1e4=int((gap > 1e-4).sum())))
                print(f"{name:17s} {threads} thread(s): numba {rows[-1]['numba_ms']:8.1f} ms, reference {rows[-1]['reference_ms']:9.1f} ms: {ratio:.1f}x")
    write('splat_cpu', args, rows, dict(forward_ratio=bar(min(r for (what, _), r in ratios.items() if what == 'forward'), 10)))


if __name__ == '__main__': main()
