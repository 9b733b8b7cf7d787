"""How much faster than plain PyTorch tiles is the compiled CPU rasterizer? Both taking turns, in one run, with the peers beside them.

python benchmarks/splat_cpu.py                          writes benchmarks/results/splat_cpu.json and its plots
python benchmarks/splat_cpu.py --quick --json FILE      a reduced form, under a minute
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import functools
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import torch
from _common import arguments, bar, write
from peers import exact

from srflow_nb.avatar import Avatar
from srflow_nb.camera import Camera, frontal_camera
from srflow_nb.core import rng
from srflow_nb.gaussians import rotmat_to_quat
from srflow_nb.splat import project, splat, warm_up

CHANNELS, FLOPS = 6, 41                                  # flops of one blended pair: exponent 8, exp2 13, rules 6, blending 14
CASES = [(20_000, 550, 802), (100_000, 550, 802), (20_000, 1100, 1604), (100_000, 1100, 1604)]
QUICK = [(20_000, 275, 401)]
WHAT = ('forward', 'forward+backward')
TARGETS = dict(zip(WHAT, (25, 45)))
AXES = torch.tensor([1., 1.404, 1.15])                   # of the ellipsoid; a head is about this much higher than wide


# ---- what is drawn -----------------------------------------------------------------------------------------------

def scene(gaussians, camera, seed=0):
    "Everything that a rasterizer needs, and the gradient that is pushed back through it."
    g, w, h, r = gaussians, camera.width, camera.height, rng(seed, 'benchmark', 'features')
    means2d, conics, depths = project(g['means'], g['quats'], g['scales'], camera.viewmat, camera.K, w, h)
    normal = lambda *shape: torch.from_numpy(r.standard_normal(shape, dtype='f4'))
    return dict(gaussians=g, camera=camera, means2d=means2d, conics=conics, opacities=g['opacities'], features=normal(len(means2d), CHANNELS),
                depths=depths, width=w, height=h, push=[normal(h, w, CHANNELS), normal(h, w)])


def ellipsoid(n, width, height):
    "Flat splats of log-normal size, evenly over an ellipsoid that fills the picture as a head would."
    r, m = rng(0, 'benchmark', n), int(1.6*n)
    i = torch.arange(m)+.5
    z, a = 1-2*i/m, np.pi*(1+5**.5)*i
    u = torch.stack([(1-z*z).sqrt()*a.cos(), z, (1-z*z).sqrt()*a.sin()], 1)
    stretch = (u/AXES).norm(dim=1)                       # how much the sphere's area grows here
    u = u[(torch.from_numpy(r.random(m, dtype='f4'))/stretch).argsort()[:n].sort()[0]]
    normal = torch.nn.functional.normalize(u/AXES, dim=1)
    t = torch.nn.functional.normalize(torch.linalg.cross(normal, torch.from_numpy(r.standard_normal((n, 3), dtype='f4'))), dim=1)
    area = 4*np.pi*(sum((AXES[i]*AXES[j])**1.6 for i, j in ((0, 1), (0, 2), (1, 2)))/3)**(1/1.6)      # Thomsen's formula
    s = .8*(area/n)**.5*torch.from_numpy(r.lognormal(0, .3, (n, 2)).astype('f4'))
    g = dict(means=u*AXES, quats=rotmat_to_quat(torch.stack([t, torch.linalg.cross(normal, t), normal], 2)),
             scales=torch.cat([s, .3*s.amin(1, keepdim=True)], 1), opacities=torch.from_numpy(r.uniform(.3, 1, n).astype('f4')))
    camera = Camera.look_at((0, 0, 6), focal=6*245*width/550, width=width, height=height)
    return scene(g, camera)


def avatar(n, width, height):
    "The real thing: a person made of Gaussians, smiling."
    g = Avatar.create(identity=0, appearance=0, n=n).pose(dict(mouthSmileLeft=.6, mouthSmileRight=.6))
    return scene(dict(means=g.means, quats=g.quats, scales=g.scales, opacities=g.opacities), frontal_camera(width, height))


# ---- who draws it ------------------------------------------------------------------------------------------------

def ours(backend):
    "One of our backends, as a function of leaves and scene."
    return lambda leaves, s: splat(*leaves, s['depths'], s['width'], s['height'], backend=backend)


def warp_peer():
    "Our best tile kernels in Warp, or None where it is not installed."
    try: from peers import warp_tiles
    except ImportError: return None
    return lambda leaves, s: warp_tiles.splat(*leaves, s['depths'], s['width'], s['height'])


def gsplat_peer():
    "gsplat's own PyTorch reference: its projection and tile lists are timed with it, the list of pairs is given."
    try: from peers import gsplat_torch as impl
    except ImportError: return None
    def draw(leaves, s):
        g, camera = s['gaussians'], s['camera']
        with torch.no_grad():
            radii, means2d, depths, _ = impl.project(g['means'], g['quats'], g['scales'], camera.viewmat, camera.K, s['width'], s['height'])
            impl.tiles(means2d, radii, depths, s['width'], s['height'])
        return impl.composite(*leaves, *s['pairs'], s['width'], s['height'])
    return draw


def run(draw, s, what):
    "Draw a scene; with 'forward+backward' also the gradients of all four inputs."
    leaves = [s[k] for k in ('means2d', 'conics', 'opacities', 'features')]
    if what == 'forward':
        with torch.no_grad(): return draw(leaves, s)
    leaves = [t.detach().requires_grad_() for t in leaves]
    torch.autograd.backward(draw(leaves, s), s['push'])
    return [t.grad for t in leaves]


# ---- how it is timed ---------------------------------------------------------------------------------------------

def set_threads(n):
    "The same number for everybody."
    numba.set_num_threads(n); torch.set_num_threads(n)


def turns(runs, rounds, each, patience=20):
    "(wall, processor) seconds of each call, taking turns, so that a busy machine disturbs all alike; `each` calls a turn. Past `patience` [s] two turns do."
    times, begin = {k: [] for k in runs}, time.perf_counter()
    for turn in range(rounds):
        if turn > 1 and time.perf_counter()-begin > patience: break
        for name, f in runs.items():
            gc.collect()
            for _ in range(each.get(name, 1)):
                start, cpu = time.perf_counter(), time.process_time(); f()
                times[name].append((time.perf_counter()-start, time.process_time()-cpu))
    return times


def ms(times):
    "Median and best wall time, median processor time (of all threads together) [ms]; the last does not care who else is busy."
    wall, cpu = zip(*times)
    return dict(ms=round(1e3*statistics.median(wall), 3), best_ms=round(1e3*min(wall), 3), cpu_ms=round(1e3*statistics.median(cpu), 3), runs=len(times))


def describe(s):
    "The columns that say what was drawn."
    return dict(gaussians=len(s['means2d']), width=s['width'], height=s['height'], channels=CHANNELS)


def flat(**groups):
    "dict(numba=dict(ms=1)) -> dict(numba_ms=1)."
    return {f'{k}_{name}': v for k, d in groups.items() for name, v in d.items()}


def progress(*text):
    "One line, at once."
    print(f'[{time.perf_counter()-START:5.0f} s]', *text, flush=True)


def peak(threads, n=1024):
    "What the processor can do at best: flop/s of a matrix product, which is nothing but fused multiply-adds."
    set_threads(threads)
    a, b, out = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
    return 2*n**3/min(turns(dict(mm=lambda: torch.mm(a, b, out=out)), 1, dict(mm=25))['mm'])[0]


# ---- the tables --------------------------------------------------------------------------------------------------

def ratio_rows(kind, s, rounds, peers):
    "Reference against numba at one thread and at all, both kinds of work; Warp where it runs (it has one thread)."
    rows, everyone = [], dict(reference=ours('reference'), numba=ours('numba'))
    for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
        set_threads(threads)
        for what in WHAT:
            who = everyone | (peers if threads == 1 else {})
            for name in set(who)-{'reference'}: run(who[name], s, what)            # once unmeasured: compiles, or loads
            times = turns({k: functools.partial(run, f, s, what) for k, f in who.items()}, rounds, dict(numba=7))
            t = {k: ms(v) for k, v in times.items()}
            ratio = round(t['reference']['ms']/t['numba']['ms'], 2)
            rows.append(dict(table='ratio', scene=kind, **describe(s), what=what, numba_threads=threads, torch_threads=threads,
                             ratio=ratio, cpu_ratio=round(t['reference']['cpu_ms']/t['numba']['cpu_ms'], 2), best_ratio=round(t['reference']['best_ms']/t['numba']['best_ms'], 2),
                             **flat(numba=t['numba'], reference=t['reference'])))
            rows += [dict(table='peer', peer=k, scene=kind, **describe(s), what=what, threads=1, **t[k], numba_ms=t['numba']['ms'],
                          ratio=round(t[k]['ms']/t['numba']['ms'], 2)) for k in who if k not in everyone]
            progress(f"{kind} {describe(s)['gaussians']} {s['width']}x{s['height']} {what:16s} {threads} thread(s): "
                     + ', '.join(f"{k} {v['ms']:.1f} (best {v['best_ms']:.1f})" for k, v in t.items()) + f" ms: {ratio}x")
    return rows


def count_row(kind, s, peers):
    "How much work the picture is, and how far every picture is from float64."
    want, want_alpha, pairs, touchy = exact.draw(s)
    error = {}
    for b, draw in (dict(numba=ours('numba'), reference=ours('reference')) | peers).items():
        image, alpha = run(draw, s, 'forward')
        error[b] = np.maximum(abs(image.double().numpy()-want).max(-1), abs(alpha.double().numpy()-want_alpha))
    row = dict(table='count', scene=kind, **describe(s), blended_pairs=int(pairs.sum()), pairs_a_pixel=round(float(pairs.mean()), 1),
               threshold_pixels=int(touchy.sum()), **{f'{b}_max_error': float(f'{e[~touchy].max():.3g}') for b, e in error.items()},
               **{f'{b}_max_error_at_threshold_pixels': float(f'{e[touchy].max(initial=0):.3g}') for b, e in error.items()})
    progress(f"{kind} {row['gaussians']} {s['width']}x{s['height']}: {row['blended_pairs']:,} pairs, {row['threshold_pixels']} threshold pixels, "
             'max error ' + ', '.join(f"{b} {row[f'{b}_max_error']:.2g}" for b in error))
    return row


def gradient_row(n, width, height):
    "Gradients against float64 autograd, relative to the largest gradient of each array."
    s = ellipsoid(n, width, height)
    touchy = exact.draw(s)[3]
    s['push'] = [torch.where(torch.from_numpy(touchy)[..., None], 0., s['push'][0]), torch.where(torch.from_numpy(touchy), 0., s['push'][1])]
    got = run(ours('numba'), s, WHAT[1])
    want = run(ours('reference'), {k: v.double() if torch.is_tensor(v) else v for k, v in s.items()} | dict(push=[p.double() for p in s['push']]), WHAT[1])
    names = ('means2d', 'conics', 'opacities', 'features')
    errors = {f'{k}_gradient_error': float(f'{((g-w).abs().max()/w.abs().max()).item():.3g}') for k, g, w in zip(names, got, want)}
    progress('gradients against float64:', ', '.join(f'{k} {v:.1g}' for k, v in errors.items()))
    return dict(table='gradients', scene='ellipsoid', **describe(s), threshold_pixels=int(touchy.sum()), **errors)


def floor_rows(rows, flops):
    "The time that the arithmetic alone would take at the measured peak, and how far above it we are."
    res = []
    for c in (r for r in rows if r['table'] == 'count'):
        for r in (r for r in rows if r['table'] == 'ratio' and r['what'] == 'forward' and all(r[k] == c[k] for k in ('scene', 'gaussians', 'width', 'height'))):
            floor = 1e3*c['blended_pairs']*FLOPS/flops[r['numba_threads']]
            res.append(dict(table='floor', **{k: c[k] for k in ('scene', 'gaussians', 'width', 'height', 'channels')}, what='forward', threads=r['numba_threads'],
                            peak_gflops=round(flops[r['numba_threads']]/1e9, 1), floor_ms=round(floor, 2), numba_ms=r['numba_ms'], times_floor=round(r['numba_ms']/floor, 2)))
    return res


def project_rows(sizes):
    "Our projection, and gsplat's in PyTorch, at one thread."
    try: from peers import gsplat_torch as impl
    except ImportError: impl = None
    rows = []
    set_threads(1)
    for n in sizes:
        s = ellipsoid(n, 550, 802)
        g, c = s['gaussians'], s['camera']
        args = g['means'], g['quats'], g['scales'], c.viewmat, c.K, 550, 802
        def ours_(args=args):
            with torch.no_grad(): project(*args)
        def theirs(args=args):
            with torch.no_grad(): impl.project(*args)
        ours_()
        t = turns(dict(project=ours_) | (dict(gsplat=theirs) if impl else {}), 3, dict(project=5))
        rows.append(dict(table='project', gaussians=n, threads=1, **flat(**{k: ms(v) for k, v in t.items()})))
        progress(f'project {n}:', ', '.join(f"{k} {ms(v)['ms']:.1f} ms" for k, v in t.items()))
    return rows


def gsplat_rows(case):
    "gsplat's reference, once: it is the slowest by far."
    draw, s = gsplat_peer(), ellipsoid(*case)
    if draw is None: return [dict(table='peer', peer='gsplat torch', note='not installed')]
    s['pairs'] = [torch.from_numpy(a) for a in exact.blended_pairs(s)]
    rows = []
    set_threads(1)
    for what in WHAT:
        run(ours('numba'), s, what)
        t = {k: ms(v) for k, v in turns(dict(gsplat=functools.partial(run, draw, s, what), numba=functools.partial(run, ours('numba'), s, what)), 1, dict(numba=7)).items()}
        rows.append(dict(table='peer', peer='gsplat torch', scene='ellipsoid', **describe(s), what=what, threads=1, **t['gsplat'], numba_ms=t['numba']['ms'],
                         ratio=round(t['gsplat']['ms']/t['numba']['ms'], 2), note='projection, tile lists and compositing; the list of blended pairs is given'))
        progress(f"gsplat torch {case} {what}: {t['gsplat']['ms']:.0f} ms, numba {t['numba']['ms']:.2f} ms: {rows[-1]['ratio']}x")
    return rows


def scaling_rows(quick):
    "numba alone: with threads, with Gaussians, with pixels."
    every = numba.config.NUMBA_NUM_THREADS
    jobs = [('threads', 100_000, 1100, 1604, t) for t in range(1, every+1)]
    jobs += [('gaussians', n, 550, 802, every) for n in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)]
    jobs += [('pixels', 100_000, int(550*f), int(802*f), every) for f in (.25, .5, 1, 2, 4)] + [('pixels', 100_000, 2204, 3208, every)]
    jobs = [('threads', 20_000, 275, 401, t) for t in (1, every)] + [('gaussians', 1_000, 275, 401, every), ('pixels', 1_000, 550, 802, every)] if quick else jobs
    rows = []
    for table, n, w, h, threads in jobs:
        s = ellipsoid(n, w, h)
        set_threads(threads)
        for what in WHAT:
            run(ours('numba'), s, what)
            rows.append(dict(table=table, scene='ellipsoid', **describe(s), what=what, threads=threads,
                             **ms(turns(dict(numba=functools.partial(run, ours('numba'), s, what)), 1, dict(numba=5))['numba'])))
        progress(f"{table}: {n} {w}x{h} {threads} thread(s): {rows[-2]['ms']:.1f} / {rows[-1]['ms']:.1f} ms")
    return rows


def alone():
    "In a process of its own: seconds of the first call, and ms of later ones, as JSON on standard output."
    set_threads(1)
    start = time.perf_counter(); warm_up(CHANNELS); first = time.perf_counter()-start
    s, rows = ellipsoid(*CASES[0]), []
    for what in WHAT:
        run(ours('numba'), s, what)
        rows.append(dict(**describe(s), what=what, threads=1, **ms(turns(dict(numba=functools.partial(run, ours('numba'), s, what)), 3, dict(numba=5))['numba'])))
    print(json.dumps(dict(first_s=round(first, 2), rows=rows)))


def lanes_rows():
    "What the vector type is worth, and what the first call costs: fresh processes, a compile cache of their own."
    from importlib.util import find_spec
    if find_spec('srflow_nb.lanes') is None: return [dict(table='lanes', note='this version has no vector type of its own')]
    rows = []
    for lanes in ('', 'plain'):
        with tempfile.TemporaryDirectory() as cache:
            env = {**os.environ, 'NUMBA_CACHE_DIR': cache, 'SRFLOW_LANES': lanes}
            if not lanes: env.pop('SRFLOW_LANES')
            runs = [json.loads(subprocess.run([sys.executable, '-c', 'import splat_cpu; splat_cpu.alone()'], cwd=Path(__file__).parent, env=env,
                                              check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for _ in range(2)]
        rows += [dict(table='lanes', lanes=lanes or 'vector', compile_s=runs[0]['first_s'], cached_s=runs[1]['first_s'], **r) for r in runs[1]['rows']]
        progress(f"lanes {lanes or 'vector'}: first call {runs[0]['first_s']} s, from the cache {runs[1]['first_s']} s, then", [r['ms'] for r in runs[1]['rows']], 'ms')
    return rows


# ---- bars and plots ----------------------------------------------------------------------------------------------

def bars_of(rows):
    "Every bar of the rasterizer: the smallest ratio over the cases, and the largest errors."
    all_threads, bars = numba.config.NUMBA_NUM_THREADS, {}
    for what, name in zip(WHAT, ('forward', 'forward_backward')):
        mine = [r for r in rows if r['table'] == 'ratio' and r['scene'] == 'ellipsoid' and r['what'] == what]
        at = {t: min(r['ratio'] for r in mine if r['numba_threads'] == t) for t in {1, all_threads}}
        bars[f'{name}_ratio'] = bar(min(at.values()), TARGETS[what])
        bars[f'{name}_ratio_1_thread'] = bar(at[1], TARGETS[what])
        bars[f'{name}_ratio_all_threads'] = bar(at[all_threads], TARGETS[what])
    errors = [v for r in rows if r['table'] == 'gradients' for k, v in r.items() if k.endswith('_error')]
    bars['max_error'] = small(max(r['numba_max_error'] for r in rows if r['table'] == 'count'), 1e-5)
    bars['gradient_error'] = small(max(errors), 1e-5)
    return bars


def small(value, target):
    "A bar for a number that four digits after the point would round to nothing."
    return dict(value=float(f'{value:.3g}'), target=target, met=bool(value <= target))


def plot(rows, path):
    "Times with threads, Gaussians and pixels."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    plt.rcParams.update({'svg.hashsalt': 'splat_cpu', 'svg.fonttype': 'none'})       # text stays text: a third of the size
    fig, axes = plt.subplots(1, 3, figsize=(8.6, 2.7), layout='constrained')
    of = {'threads': lambda r: r['threads'], 'gaussians': lambda r: r['gaussians'], 'pixels': lambda r: r['width']*r['height']/1e6}
    label = dict(threads='threads (100k Gaussians, 1100x1604)', gaussians='Gaussians (550x802)', pixels='megapixels (100k Gaussians)')
    for ax, (table, x) in zip(axes, of.items()):
        for what, colour in zip(WHAT, ('#4477aa', '#cc6677')):
            mine = sorted((x(r), r['ms']) for r in rows if r['table'] == table and r['what'] == what)
            ax.plot(*zip(*mine), 'o-', color=colour, label=what, ms=4)
            if table == 'threads': ax.plot([m[0] for m in mine], [mine[0][1]/m[0] for m in mine], ':', color=colour, lw=1)
        ax.set(xlabel=label[table], ylabel='ms')
        if table == 'threads': ax.set(ylim=(0, None), xticks=[m[0] for m in mine]); ax.plot([], [], ':', color='grey', lw=1, label='perfect scaling')
        else: ax.set(xscale='log', yscale='log')
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    fig.savefig(path, metadata=dict(Date=None)); plt.close(fig)
    print(f'wrote {path}')


def main():
    "Measure, print, write."
    args = arguments(__doc__.splitlines()[0])
    every = numba.config.NUMBA_NUM_THREADS
    warm_up(CHANNELS)
    progress('warm')
    flops = {t: peak(t) for t in sorted({1, every})}
    progress('peak', {t: f'{f/1e9:.0f} Gflop/s' for t, f in flops.items()})
    warp = warp_peer()
    peers = dict(warp=warp) if warp else {}
    rows = [] if warp else [dict(table='peer', peer='warp', note='not installed')]
    scenes = [('ellipsoid', ellipsoid, c) for c in (QUICK if args.quick else CASES)] + [('avatar', avatar, (5_000, 275, 401) if args.quick else CASES[0])]
    for kind, make, case in scenes:
        s = make(*case)
        rows.append(count_row(kind, s, peers))
        rows += ratio_rows(kind, s, 1 if args.quick else 3, peers)
        del s
    rows.append(gradient_row(*((5_000, 137, 201) if args.quick else (20_000, 275, 401))))
    rows += floor_rows(rows, flops)
    rows += project_rows(sorted({c[0] for c in (QUICK if args.quick else CASES)}))
    rows += gsplat_rows((500, 69, 100) if args.quick else CASES[0])
    rows += scaling_rows(args.quick)
    if not args.quick: rows += lanes_rows()
    installed = {k: sys.modules[m].VERSION for k, m in (('warp-lang', 'peers.warp_tiles'), ('gsplat', 'peers.gsplat_torch')) if m in sys.modules}
    path = write('splat_cpu', args, rows, bars_of(rows), peers=installed, reach=dict(times_flop_floor=dict(
        value=min(r['times_floor'] for r in rows if r['table'] == 'floor' and r['scene'] == 'ellipsoid' and r['threads'] == 1), target=4)))
    if not args.quick: plot(rows, path.with_name(f'{path.stem}_scaling.svg'))
    progress('done')


START = time.perf_counter()
if __name__ == '__main__': main()
