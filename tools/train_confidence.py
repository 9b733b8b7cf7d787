"""Train the confidence head that ships with the package, on top of the SRFlowNet that ships with it.

    python tools/train_confidence.py --work /tmp/tiny            # makes its own data, then trains
    python tools/train_confidence.py --data /tmp/tiny/data       # uses a data set that is there (as tools/train_tiny.py makes it)

Run it again after every change of srflownet-tiny.safetensors: a head fits one trunk. It takes a few minutes on one thread, most of
them for reading the trunk once for every pair; stopped, it starts anew (rendered data are kept).
"""
import argparse
import json
import math
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import precision_recall_curve
from tqdm import tqdm

from srflow_nb.confidence import ConfidenceHead, ause, confidence_loss, fingerprint, fit_temperature, occlusion_scores, reliability, save_confidence
from srflow_nb.core import InputError, atomic_write, rng, seed_everything, versions
from srflow_nb.dataset import FlowDataset, make_dataset
from srflow_nb.metrics import epe
from srflow_nb.model import SRFlowNet, central_gradient, warp
from srflow_nb.warps import WarpDataset, add_noise, photo, photo_pairs


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='a data set that is there, with occlusions and masks')
    p.add_argument('--work', type=Path, help='folder for a data set to make, where --data is not given')
    p.add_argument('--pairs', type=int, default=360, help='pairs to render, where --data is not given')
    p.add_argument('--size', type=int, default=320, help='side of the frames to render, and of the warped photographs [px]')
    p.add_argument('--data-seed', type=int, default=1, help='seed of the data set to render: the trunk\'s, so that its test people stay unseen')
    p.add_argument('--workers', type=int, default=1, help='processes that render')
    p.add_argument('--model', default='tiny', help='the trunk: a name with shipped weights, or a folder')
    p.add_argument('--faces', type=int, default=120, help='training pairs of people')
    p.add_argument('--photos', type=int, default=32, help='training pairs of warped photographs')
    p.add_argument('--held-out', type=int, default=36, help='pairs for the temperature, and as many for the test')
    p.add_argument('--steps', type=int, default=500, help='optimiser steps')
    p.add_argument('--batch', type=int, default=8, help='crops in a step')
    p.add_argument('--crop', type=int, default=160, help='side of the crops [px], a multiple of 4')
    p.add_argument('--lr', type=float, default=3e-3, help='highest learning rate')
    p.add_argument('--seed', type=int, default=0, help='seed of weights, pairs, noise, crops')
    p.add_argument('--threads', type=int, default=1, help='torch threads')
    p.add_argument('--out', type=Path, default=Path(__file__).parents[1]/'srflow_nb'/'data', help='folder for weights and card')
    a = p.parse_args()
    if not (a.data or a.work): p.error('give --data (a data set) or --work (where to make one)')
    return a


def spread(n, count):
    "`count` indices out of `n`, evenly spread."
    return [i*n//min(count, n) for i in range(min(count, n))]


def by_person(dataset, odd):
    "Indices of every second person of a split."
    names = sorted({name for name, *_ in dataset.items})
    return [i for i, (name, *_) in enumerate(dataset.items) if names.index(name) % 2 == odd]


def noisy(pair, g):
    "A pair with a little more sensor noise, mostly little, sometimes much."
    sigma = 5*g.random()**2
    return pair | {k: add_noise(pair[k], g, sigma) for k in ('frame1', 'frame2')}


@torch.no_grad()
def read(head, pair):
    "What the judge is told about a pair, and the truth, in half precision where it may be."
    a, b, true = (pair[k][None] for k in ('frame1', 'frame2', 'flow'))
    flow, features, maps = head.read_trunk(a, b)
    return dict(flow=flow, features=features.half(), maps=maps.half(), error=epe(flow, true), occlusion=pair['occlusion'][None], mask=pair['mask'][None])


def crop(sample, g, side):
    "The same random square of all maps, on the grid of quarter resolution."
    h, w = (n//4 for n in sample['error'].shape[-2:])
    n = min(side//4, h, w)
    y, x = int(g.integers(h - n + 1)), int(g.integers(w - n + 1))
    fine = (..., slice(4*y, 4*(y + n)), slice(4*x, 4*(x + n)))
    return {k: v[..., y:y+n, x:x+n] if k == 'features' else v[fine] for k, v in sample.items()}


def fit(head, samples, a):
    "Train the judge on what was read."
    judge, steps = head.judge.train(), tqdm(range(a.steps), desc='train')
    optimizer = torch.optim.AdamW(judge.parameters(), a.lr)
    for step in steps:
        for group in optimizer.param_groups: group['lr'] = a.lr*min(1, (step + 1)/30)*(.02 + .49*(1 + math.cos(math.pi*step/a.steps)))
        g = rng(a.seed, 'batch', step)
        crops = [crop(samples[int(g.integers(len(samples)))], g, a.crop) for _ in range(a.batch)]
        batch = {k: torch.cat([c[k] for c in crops]) for k in crops[0] if k != 'flow'}
        sigma, hidden = judge(batch['features'].float(), batch['maps'].float())
        loss = confidence_loss(sigma, hidden, batch['error'], batch['occlusion'], batch['mask'], judge.tail)
        if not loss.isfinite(): sys.exit(f'step {step}: the loss is {loss.item()}')
        optimizer.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.); optimizer.step()
        if step % 50 == 0: steps.set_postfix(loss=f'{loss.item():.3f}', tail=f'{judge.tail.item():.2f}')
    judge.eval()


@torch.no_grad()
def judged(head, samples):
    "Error, sigma, probability of occlusion and the truth, of every pixel of some samples."
    out = []
    for s in samples:
        sigma, hidden = head.judge(s['features'].float(), s['maps'].float())
        out.append(dict(error=s['error'], sigma=sigma, hidden=hidden.sigmoid(), occlusion=s['occlusion'], mask=s['mask']))
    return {k: torch.cat([o[k] for o in out]) for k in out[0]}


@torch.no_grad()
def rivals(head, pairs, samples):
    "Two measures of doubt that need no training: forward-backward difference and missing texture."
    trips, flats = [], []
    for p, s in zip(tqdm(pairs, desc='forward-backward'), samples):
        back = head.trunk.estimate(p['frame2'][None], p['frame1'][None])
        trips.append((s['flow'] + warp(back, s['flow'])).norm(dim=1)); flats.append(-torch.cat(central_gradient(p['frame1'][None]), 1).norm(dim=1))
    return dict(roundtrip=torch.cat(trips), flat=torch.cat(flats))


def best_threshold(hidden, occlusion):
    "The probability from which on to call a pixel hidden: highest F1. Few pixels are hidden, so an honest probability seldom passes one half."
    precision, recall, at = precision_recall_curve(occlusion, hidden)
    return float(at[np.argmax((2*precision*recall/np.maximum(precision + recall, 1e-9))[:-1])])


def metrics(head, found, where, threshold):
    "All measures of a set of pixels."
    at = where & found['error'].isfinite()
    e, s, o, h = (found[k][at].numpy() for k in ('error', 'sigma', 'occlusion', 'hidden'))
    levels = np.linspace(.05, .95, 19)
    off = np.abs(reliability(torch.from_numpy(e), torch.from_numpy(s), head.judge.tail.detach(), levels) - levels).mean()
    hit = occlusion_scores(h, o, threshold)
    row = {'pixels': len(e), 'error': e.mean(), 'below_sigma': (e < s).mean(), 'calibration_error': off, 'ause': ause(e, s)}
    for name in ('roundtrip', 'flat'):
        if name in found: row[f'ause_{name}'] = ause(e, found[name][at].numpy())
    row |= {'hidden_share': hit['share'], 'hidden_precision': hit['precision'], 'hidden_recall': hit['recall'], 'hidden_ap': hit['average_precision']}
    if 'roundtrip' in found: row['hidden_ap_roundtrip'] = occlusion_scores(found['roundtrip'][at].numpy(), o)['average_precision']
    return {k: round(float(v), 4) for k, v in row.items()}


def main():
    a, began = arguments(), time.time()
    torch.set_num_threads(a.threads); seed_everything(a.seed)
    data = a.data or a.work/'data'
    if not a.data: make_dataset(data, a.pairs, a.size, a.size, a.data_seed, a.workers, resume=True, kinds=('final', 'flow', 'occlusions', 'masks'), pairs_per_sequence=2, fps=25.)
    training, test = FlowDataset(data, 'training'), FlowDataset(data, 'test')
    if 'occlusions' not in training.extras: raise InputError(f"{data}: holds no 'occlusions'; make it with tools/train_confidence.py --work DIR")
    rendered = time.time() - began
    head = ConfidenceHead(SRFlowNet.from_pretrained(a.model))
    photos = WarpDataset(n=max(a.photos, 1), size=a.size, seed=a.seed)
    sources = [(training, i) for i in spread(len(training), a.faces)] + [(photos, i) for i in range(a.photos)]
    held = [[test[ids[i]] for i in spread(len(ids), a.held_out)] for ids in (by_person(test, 0), by_person(test, 1))]
    shots = photo_pairs(photo('astronaut'), n=8, size=256, seed=0)
    samples = [read(head, noisy(d[i], rng(a.seed, 'noise', k))) for k, (d, i) in enumerate(tqdm(sources, desc='read the trunk'))]
    validation, final, seen = ([read(head, p) for p in tqdm(some, desc='read the trunk')] for some in (*held, shots))
    fit(head, samples, a)
    v = judged(head, validation)
    on = v['mask'] & v['error'].isfinite()
    head.judge.temperature.fill_(fit_temperature(v['error'][on], v['sigma'][on]))
    found, seen = judged(head, final) | rivals(head, held[1], final), judged(head, seen) | rivals(head, shots, seen)
    everywhere = torch.ones_like(found['mask'])
    threshold = best_threshold(v['hidden'].flatten().numpy(), v['occlusion'].flatten().numpy())
    rows = {'heads': (found, found['mask']), 'all pixels': (found, everywhere), 'photograph': (seen, seen['mask'])}
    rows = {k: metrics(head, *some, threshold) for k, some in rows.items()}
    name = f'srflownet-{a.model}-confidence' if not Path(a.model).is_dir() else 'confidence'
    card = dict(model=name, trunk=a.model, trunk_sha256=fingerprint(head.trunk), parameters=sum(p.numel() for p in head.parameters()), license='Apache-2.0',
                date=datetime.now(timezone.utc).isoformat(timespec='seconds'), seed=a.seed, seconds=round(time.time() - began - rendered),
                command=' '.join(['python', 'tools/train_confidence.py', *sys.argv[1:]]).replace(str(data), 'DIR/data').replace(str(a.work), 'DIR'),
                data=training.manifest['config'], pairs=dict(faces=len(sources) - a.photos, photos=a.photos, validation=len(held[0]), test=len(held[1])),
                steps=a.steps, batch=a.batch, crop=a.crop, lr=a.lr, temperature=round(head.judge.temperature.item(), 4), tail=round(head.judge.tail.item(), 3), hidden_threshold=round(threshold, 4),
                machine=f'{platform.machine()}, {a.threads} thread(s)', versions=versions(), metrics=rows)
    save_confidence(head, a.out/f'{name}.safetensors')
    with atomic_write(a.out/f'{name}.json', 'w') as f: json.dump(card, f, indent=1); f.write('\n')
    print(json.dumps({k: card[k] for k in ('seconds', 'temperature', 'tail', 'metrics')}, indent=1))


if __name__ == '__main__': main()
