"""What does each term of the loss change? The same small net, data, steps and batches; one term at a time, several seeds.

python benchmarks/loss_ablation.py                         writes benchmarks/results/loss_ablation.json
python benchmarks/loss_ablation.py --quick --json FILE     a few steps on a few pairs, under a minute: it runs, it says nothing

Per seed, one net is trained without any term for the first TRUNK steps; there the variants part, with the same weights and the
same state of the optimiser, and see the same batches from then on. So their differences are paired, and the short training that a
CPU allows is spent where they differ. Data and checkpoints are kept in build/loss_ablation, and the command goes on where it was
stopped; what was made with another recipe, data set, network or loss is never taken for this one's. Measured on people that no run has seen (`faces`) and, for
repetition, on a brick wall and woven cloth as well, moved by known smooth warps (`textures`):

skin              EPE on skin [px]
flat              EPE on the head where the picture has no texture: smoothed luminance changes by less than `FLAT` grey levels a px
repetitive        EPE where the autocorrelation of the picture around a pixel has a second peak of at least `PEAK`, faces and textures
high_frequency    root mean square over skin of the error minus its Gaussian blur (sigma `BLUR`) [px]
over1, over3      share of all pixels that are wrong by more than 1 and 3 px [%]
static            mean length of the flow outside the head, where nothing moves [px]

The gate's own cross-entropy is another way of telling a net what is still. GATE is its weight, the same for every variant: a gate
that nobody teaches stands open, flat against its stop, where the mask loss has no slope to push along. The net makes ITERS repairs,
one more than it does by itself: with one alone there is no difference between refinements to be punished.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import base64
import copy
import dataclasses
import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import scipy.stats
import torch
from _common import RENDERER, TRAINING, arguments, bar, code, digest, write

from srflow_nb.avatar import LABELS
from srflow_nb.core import atomic_write, rng
from srflow_nb.dataset import FlowDataset, make_dataset
from srflow_nb.metrics import epe
from srflow_nb.model import LUMA, classical_start
from srflow_nb.train import Objective, TrainConfig, learning_rate, load_checkpoint, make_sample, new_run, save_checkpoint, stack
from srflow_nb.viz import error_map, image_bytes
from srflow_nb.warps import photo, photo_pairs, pixel_grid

WORK = Path(__file__).resolve().parent.parent/'build/loss_ablation'
OFF = dict(mask=0., gradient=0., tv=0., flow_difference=0.)
TERMS = dict(mask=dict(mask=.3), difference=dict(gradient=1., operator='difference'), sobel=dict(gradient=1., operator='sobel'),
             tv=dict(tv=.05), flow_difference=dict(flow_difference=.1))
VARIANTS = {'none': OFF} | {k: OFF | v for k, v in TERMS.items()} | {'all': TERMS['mask'] | TERMS['sobel'] | TERMS['tv'] | TERMS['flow_difference']}
COLUMNS = ('skin', 'flat', 'repetitive', 'high_frequency', 'over1', 'over3', 'static')
DATA_SEED, SIDE, GATE, ITERS, SAVE_EVERY = 513, 192, 1., 2, 20
FLAT, PEAK, BLUR = 2., .7, 2.                           # grey levels a px; correlation; px
PICTURES = code(*RENDERER)                               # as it was when this script began
CODE = [PICTURES, code(*TRAINING)]
CLAIMS = (('mask', 'static'), ('difference', 'high_frequency'), ('sobel', 'high_frequency'), ('all', 'high_frequency'), ('all', 'static'),
          ('all', 'flat'), ('all', 'repetitive'), ('all', 'skin'))


# ---- data --------------------------------------------------------------------------------------------------------

def faces(quick):
    "Training and test pairs of different people, in memory."
    root, pairs, side = WORK/f'{"quick" if quick else "data"}-{PICTURES}', 12 if quick else 120, 96 if quick else SIDE
    make_dataset(root, pairs, side, side, DATA_SEED, 1, resume=True, kinds=('final', 'flow', 'occlusions', 'masks'), pairs_per_sequence=2, fps=25.,
                 test_every=3 if quick else 5, gaussians=4000 if quick else 20_000, progress=not quick)
    return [list(FlowDataset(root, split, outputs=('labels',))) for split in ('training', 'test')]


def cloth(size=512):
    "A woven pattern, unevenly lit, with a little grain: the same threads again and again."
    g, (x, y) = rng(DATA_SEED, 'cloth'), np.moveaxis(pixel_grid(size), -1, 0)
    weave = np.sin(2*np.pi*x/29)*np.sin(2*np.pi*y/23)+.5*np.sin(2*np.pi*(x+y)/58)
    light = cv2.resize(g.normal(size=(4, 4)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    grey = .5+.18*weave+.06*light+.02*g.normal(size=(size, size))
    return (grey[..., None]*np.array([1., .85, .7])).clip(0, 1).astype(np.float32)


def textures(quick):
    "Pairs of repetitive pictures moved by known warps."
    n, side = (1, 96) if quick else (6, SIDE)
    return [p for k, image in enumerate((photo('brick'), cloth())) for p in photo_pairs(image, n, side, DATA_SEED+k, motion=(1., 6.))]


# ---- where to look -----------------------------------------------------------------------------------------------

def luminance(frame): return np.tensordot(np.float32(LUMA), frame.numpy()*255, 1)


def texture_less(frame):
    "Pixels around which the smoothed luminance changes by less than `FLAT` grey levels a px on average (9x9)."
    dy, dx = np.gradient(cv2.GaussianBlur(luminance(frame), (0, 0), 1.))
    return torch.from_numpy(cv2.blur(np.hypot(dx, dy), (9, 9)) < FLAT)


def second_peak(frame, window=13, reach=10):
    "Highest local maximum of the local autocorrelation at lags of 6 px and more, 0 where there is none; at half size, and enlarged."
    a = cv2.GaussianBlur(luminance(frame), (0, 0), 1.)
    a = cv2.resize(a-cv2.GaussianBlur(a, (0, 0), 6.), None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA)   # shading is no texture
    wide, (h, w) = cv2.copyMakeBorder(a, *[reach]*4, cv2.BORDER_REFLECT), a.shape
    box, at = lambda x: cv2.blur(x, (window, window)), lambda x, i, j: x[i:i+h, j:j+w]
    mean, spread = box(wide), np.sqrt(np.maximum(box(wide*wide)-box(wide)**2, 1e-3))
    here_mean, here_spread, lags = at(mean, reach, reach), at(spread, reach, reach), range(2*reach+1)
    ncc = np.stack([[(box(a*at(wide, i, j))-here_mean*at(mean, i, j))/(here_spread*at(spread, i, j)) for j in lags] for i in lags])
    ncc = torch.from_numpy(ncc).flatten(2).permute(2, 0, 1)[:, None]
    peak = (torch.nn.functional.max_pool2d(ncc, 3, 1, 1) == ncc)[..., 1:-1, 1:-1]
    far = torch.from_numpy(np.hypot(*np.meshgrid(*[np.arange(1, 2*reach)-reach]*2)) >= 3)
    best = torch.where(peak & far, ncc[..., 1:-1, 1:-1], 0).flatten(1).amax(1).view(h, w).numpy()
    best = np.where(here_spread >= 4, best, 0)                                        # below that [grey levels] it is grain, not texture
    return torch.from_numpy(cv2.resize(best, frame.shape[:0:-1], interpolation=cv2.INTER_NEAREST))


def regions(pair):
    "Where each column is measured."
    valid, head = pair['valid'], pair['mask']
    still = torch.nn.functional.max_pool2d(head[None].float(), 3, 1, 1)[0] == 0
    skin = pair['labels'] == LABELS.index('skin') if 'labels' in pair else torch.zeros_like(head)
    face = torch.full_like(head, 'labels' in pair)
    return dict(skin=skin & valid, flat=texture_less(pair['frame1']) & head & valid & face, everywhere=valid & face,
                repetitive=(second_peak(pair['frame1']) >= PEAK) & head & valid & ~pair['occlusion'], static=still & valid & face)


# ---- measuring ---------------------------------------------------------------------------------------------------

def high_frequency(error, mask):
    "Length of what a Gaussian blur inside the mask takes from an error (2,H,W) [px]."
    blur = lambda x: cv2.GaussianBlur(x.numpy(), (0, 0), BLUR)
    weight = np.maximum(blur(mask.float()), 1e-3)
    rest = [torch.where(mask, e-torch.from_numpy(blur(torch.where(mask, e, 0))/weight), 0) for e in error]
    return torch.hypot(*rest)


def measure(flows, pairs, where):
    "The columns for the flows of all test pairs, pooled over pixels."
    sums = {}
    def add(column, values, mask):
        total, n = sums.get(column, (0., 0))
        sums[column] = total+values[mask].double().sum().item(), n+int(mask.sum())
    for flow, pair, at in zip(flows, pairs, where):
        error = epe(flow, pair['flow'])[0]
        for k in ('skin', 'flat', 'repetitive', 'static'): add(k, error, at[k])          # true flow is 0 where nothing moves
        for px in (1, 3): add(f'over{px}', 100.*(error > px), at['everywhere'])
        add('high_frequency', high_frequency(flow-pair['flow'], at['skin'])**2, at['skin'])
    res = {k: total/max(n, 1) for k, (total, n) in sums.items()}
    return {k: res[k]**.5 if k == 'high_frequency' else res[k] for k in COLUMNS}, {k: sums[k][1] for k in COLUMNS}


@torch.no_grad()
def estimate(net, pairs, starts): return [net(p['frame1'][None], p['frame2'][None], s, ITERS)[-1][0] for p, s in zip(pairs, starts)]


# ---- runs --------------------------------------------------------------------------------------------------------

def recipe(variant, seed, quick):
    "What one run computes: equal for all variants but for the loss."
    small = dict(steps=3, batch=2, crop=64) if quick else dict(steps=240, batch=2, crop=96)
    return TrainConfig(size='tiny', **small, iters=ITERS, gate=GATE, loss=VARIANTS[variant], seed=seed)


def trunk(quick): return 1 if quick else 160


def fingerprint(configs, quick):
    "Changes with the recipe, the data, the network and the losses: what is kept under another one is not ours."
    recipes = [asdict(c) for c in configs.values()]
    return digest([recipes, trunk(quick), DATA_SEED, SIDE, FLAT, PEAK, BLUR, quick, CODE])


def follow(objective, run, batch, config):
    "One step of training, as `train` takes it."
    loss = objective(batch)['loss']/config.batch
    run.optimizer.zero_grad(); loss.backward()
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(run.net.parameters(), config.clip)): raise FloatingPointError(f'{config.loss}: no finite gradient')
    for group in run.optimizer.param_groups: group['lr'] = learning_rate(run.step, config)
    run.optimizer.step(); run.step += 1


def advance(runs, configs, pairs, until, folder):
    "Take runs to step `until` on the same batches, each made once, and keep their checkpoints; go on from those that are there."
    objectives, files = {v: Objective(r.net, configs[v]).train() for v, r in runs.items()}, {v: folder/f'{v}.pt' for v in runs}
    for v, r in runs.items():
        if files[v].exists(): load_checkpoint(files[v], r, configs[v])
    one = next(iter(configs.values()))
    for step in range(min(r.step for r in runs.values()), until):
        batch = stack([make_sample(pairs, one, step, k) for k in range(one.batch)])
        behind = [v for v in runs if runs[v].step == step]                       # all of them, unless a kill came between two files
        for v in behind: follow(objectives[v], runs[v], batch, configs[v])
        if (step+1) % SAVE_EVERY and step+1 != until: continue
        for v in behind: save_checkpoint(files[v], runs[v], configs[v])
        print(f'{len(runs)} net(s), step {step+1} of {until}', flush=True)


def train_together(configs, pairs, trunk, folder):
    "Train a net for each configuration: `trunk` steps as one, without any term, and the rest apart."
    root = next(iter(configs.values()))
    root = dataclasses.replace(root, loss=OFF)
    first = new_run(root)
    advance(dict(trunk=first), dict(trunk=root), pairs, trunk, folder)
    runs = {v: new_run(c) for v, c in configs.items()}
    for r in runs.values():
        r.net.load_state_dict(first.net.state_dict()); r.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict())); r.step = first.step
    advance(runs, configs, pairs, root.steps, folder)
    return {v: r.net.eval() for v, r in runs.items()}


def one_seed(seed, quick, data):
    "Train and measure every variant with one seed, or read what an earlier call has measured."
    configs = {v: recipe(v, seed, quick) for v in VARIANTS}
    key = fingerprint(configs, quick)
    path = WORK/f'{key}.json'
    if path.exists(): return json.loads(path.read_text())
    (folder := WORK/key).mkdir(exist_ok=True)
    res = {}
    for v, net in train_together(configs, data['training'], trunk(quick), folder).items():
        flows = estimate(net, data['test'], data['starts'])
        res[v] = measure(flows, data['test'], data['where'])[0] | dict(pictures=[paint(flows[i], data['test'][i], top) for i, top in data['shown']])
        print(seed, v, {k: round(res[v][k], 4) for k in COLUMNS}, flush=True)
    with atomic_write(path, 'w') as f: json.dump(res, f)
    return res


def paint(flow, pair, top): return base64.b64encode(image_bytes(error_map(epe(flow, pair['flow'])[0], top), quality=70)).decode()


def prepare(quick):
    "Data, starts and regions, computed once for all runs."
    training, test = faces(quick)
    test += textures(quick)
    starts = [classical_start(p['frame1'][None], p['frame2'][None]) for p in test]
    where = [regions(p) for p in test]
    error = [epe(s, p['flow'])[0] for s, p in zip(starts, test)]
    mean = lambda i, k: error[i][where[i][k]].mean().nan_to_num(0).item()
    shown = [max(range(len(test)), key=lambda i: mean(i, k)) for k in ('skin', 'static', 'repetitive')]     # where the start is worst
    return dict(training=training, test=test, starts=starts, where=where, shown=[(i, float(error[i].quantile(.95))) for i in shown])


# ---- the table ---------------------------------------------------------------------------------------------------

def interval(values):
    "Mean and half of the 95 % interval of Student's t."
    x = np.asarray(values, float)
    return float(x.mean()), float(scipy.stats.t.ppf(.975, len(x)-1)*x.std(ddof=1)/len(x)**.5)


def table(runs):
    "One row a variant and column: mean and interval over seeds, and the same of the paired difference to `none`."
    res = []
    for variant in VARIANTS:
        for column in COLUMNS:
            values, base = (np.array([r[column] for r in runs[v]]) for v in (variant, 'none'))
            (mean, half), (change, change_half) = interval(values), interval(values-base)
            res.append(dict(variant=variant, column=column, values=values.round(5).tolist(), mean=mean, half=half, change=change, change_half=change_half,
                            fall=float(1-mean/base.mean()) if base.mean() else 0.))
    return res


def claims(rows):
    "Falls against `none` that the terms are there for, as shares; each with the interval of the paired difference on the same scale."
    by = {(r['variant'], r['column']): r for r in rows}
    def one(r, base): return bar(r['fall'], .01) | dict(interval=[round((-r['change']+s*r['change_half'])/base, 4) for s in (-1, 1)] if base else None)
    return {f'{v}_{c}_vs_none': one(by[v, c], by['none', c]['mean']) for v, c in CLAIMS}


def main():
    "Make data, train every variant with every seed, write the table."
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    data, seeds = prepare(args.quick), range(2 if args.quick else 6)
    seen = [one_seed(seed, args.quick, data) for seed in seeds]
    runs = {v: [s[v] for s in seen] for v in VARIANTS}
    start, pixels = measure([s[0] for s in data['starts']], data['test'], data['where'])
    rows = table(runs)
    pictures = dict(first_frames=[base64.b64encode(image_bytes(data['test'][i]['frame1'], quality=70)).decode() for i, _ in data['shown']],
                    tops=[top for _, top in data['shown']], errors={v: r[0]['pictures'] for v, r in runs.items()})
    write('loss_ablation', args, rows, claims(rows), config=asdict(recipe('none', 0, args.quick)), trunk=trunk(args.quick), weights=VARIANTS, seeds=list(seeds), data_seed=DATA_SEED,
          thresholds=dict(flat=FLAT, peak=PEAK, blur=BLUR), pixels=pixels, start=start, pictures=pictures)


if __name__ == '__main__': main()
