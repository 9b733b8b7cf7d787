"""Train the weights that ship with the package: srflow_nb/data/srflownet-tiny.safetensors and its model card.

    python tools/train_tiny.py --work /tmp/tiny

Stopped and started again with the same arguments it goes on where it stopped (data and training alike).
"""
import argparse
import json
import math
import platform
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from srflow_nb.core import atomic_write, versions
from srflow_nb.dataset import FlowDataset, make_dataset
from srflow_nb.estimators import get_estimator
from srflow_nb.metrics import flow_metrics
from srflow_nb.model import SRFlowNet, classical_start
from srflow_nb.train import RECIPE, TrainConfig, cores, train
from srflow_nb.warps import photo, photo_pairs

CARD = """---
license: apache-2.0
library_name: srflow-nb
tags: [optical-flow, faces]
---
# srflownet-tiny

Optical flow of faces on a CPU: variational flow, repaired by a network of {parameters:,} weights that also knows where a head
may move and where nothing does. Load it with `SRFlowNet.from_pretrained("tiny")`.

- **Data**: {pairs} pairs of {people} rendered people ({size}x{size} px), made by `{data_command}`; every fifth person held out.
  The heads are CC0, the appearance is procedural: no photograph of a person was used for training.
- **Training**: `{command}`, {steps} steps and {finish} at a low rate, {seconds:.0f} s on {machine}.
- **Error on the held-out people** (mean end-point error, px; {test_pairs} pairs):

{table}

- **On a photograph** (scikit-image's astronaut, moved by known smooth warps, {photo_pairs} pairs; nothing stands still there):

{photo_table}

- **Limits**: the gate has learned still, smooth backgrounds behind one rendered head. Where a background moves, above all a blurred
  one, it may hold flow back, and on skin magnified far beyond the frames of the training, too (there smaller frames help). Rendered
  skin is not skin: measure on your own frames before you rely on it.
- All numbers with versions and date: `srflownet-tiny.json`.
"""


DATA = dict(kinds=('final', 'flow', 'occlusions', 'masks'), pairs_per_sequence=2, fps=25.)     # what `make_dataset` is told beside numbers
LONG = RECIPE | dict(save_every=100, loss=RECIPE['loss'] | dict(head=3.))                       # the recipe, and a face counts three times
# where the last steps differ: smooth walls that stand still, blurred ones that move, and skin that is magnified
FINISH = dict(lr=5e-4, warmup=20, ema=.99, walls=.15, warped=.12, soft=.6, augment=RECIPE['augment'] | dict(scale=[-.75, .9]))


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, required=True, help='folder for the data set and the run')
    p.add_argument('--pairs', type=int, default=2400, help='pairs to render, two of each person')
    p.add_argument('--size', type=int, default=320, help='side of the frames [px]')
    p.add_argument('--data-seed', type=int, default=1, help='seed of the data set (the demo uses others)')
    p.add_argument('--workers', type=int, default=2, help='processes that render')
    p.add_argument('--steps', type=int, default=6000, help='optimiser steps')
    p.add_argument('--finish', type=int, default=2000, help='steps at a low rate after that, on what the gate finds hardest')
    p.add_argument('--batch', type=int, default=4, help='pairs in a step')
    p.add_argument('--crop', type=int, default=192, help='side of the training crops [px]')
    p.add_argument('--lr', type=float, default=2e-3, help='highest learning rate')
    p.add_argument('--seed', type=int, default=0, help='seed of weights, order, crops, noise')
    p.add_argument('--threads', type=int, default=0, help='workers that train, 0: all cores; changes the time and not one bit')
    p.add_argument('--out', type=Path, default=Path(__file__).parents[1]/'srflow_nb'/'data', help='folder for weights and card')
    return p.parse_args()


@torch.no_grad()
def errors(pairs, estimators):
    "Mean metrics of each estimator over pairs; pixels hidden in frame 2 count as well, except on photographs."
    rows = {}
    for name, estimate in estimators.items():
        found = []
        for p in pairs:
            a, b, true, mask = (p[k][None] for k in ('frame1', 'frame2', 'flow', 'mask'))
            known = p['valid'][None] if not mask.all() else ~p['occlusion'][None]
            m = flow_metrics(estimate(a, b), true, mask=known, fg=mask)
            found.append({k: float(m[k]) for k in ('epe', 'epe_fg', 'epe_moving', 'epe_bg', 'px1_outliers')})
        means = {k: float(torch.tensor([f[k] for f in found]).nanmean()) for k in found[0]}
        rows[name] = {k: None if math.isnan(v) else round(v, 4) for k, v in means.items()}
    return rows


def table(rows):
    heads = dict(epe='all', epe_fg='face', epe_moving='moving', epe_bg='outside', px1_outliers='over 1 px [%]')
    lines = ['| | ' + ' | '.join(heads.values()) + ' |', '|---' * (len(heads) + 1) + '|']
    for name, r in rows.items():
        lines.append(f'| {name} | ' + ' | '.join('-' if r[k] is None else f'{r[k]:.3f}' for k in heads) + ' |')
    return '\n'.join(lines)


def main():
    a = arguments()
    data, run, finish, clock = a.work/'data', a.work/'run', a.work/'finish', a.work/'seconds.json'
    make_dataset(data, a.pairs, a.size, a.size, a.data_seed, a.workers, resume=True, **DATA)
    training, test = FlowDataset(data, 'training'), FlowDataset(data, 'test')
    settings = LONG | dict(batch=a.batch, crop=a.crop, seed=a.seed, threads=a.threads)
    config, last = TrainConfig(**settings | dict(steps=a.steps, lr=a.lr)), TrainConfig(**settings | FINISH | dict(steps=a.finish, init=str(run), seed=a.seed + 1))
    spent, began = json.loads(clock.read_text()) if clock.exists() else 0., time.time()
    try: train(config, training, run); train(last, training, finish)
    finally: clock.write_text(json.dumps(spent + time.time() - began))
    net = SRFlowNet.from_pretrained(finish)
    models = {n: get_estimator(n) for n in ('zero', 'dis', 'deepflow')} | {'start alone': classical_start, 'srflownet-tiny': net.estimate}
    photos = photo_pairs(photo('astronaut'), n=8, size=256, seed=0)
    held_out, on_photo = errors([test[i] for i in range(len(test))], models), errors(photos, models)
    card = dict(model='srflownet-tiny', parameters=sum(p.numel() for p in net.parameters()), license='Apache-2.0',
                date=datetime.now(timezone.utc).isoformat(timespec='seconds'), seed=a.seed, seconds=round(json.loads(clock.read_text())),
                command=' '.join(['python', 'tools/train_tiny.py', *sys.argv[1:]]).replace(str(a.work), 'DIR'),
                data_command=training.manifest['command'].replace('make-data', 'make-data --out DIR/data'),
                data=training.manifest['config'], training=asdict(config), finish=asdict(last) | dict(init='DIR/run'), threads=a.threads or cores(), machine=f'{platform.machine()}, {a.threads or cores()} worker(s)',
                versions=versions(), test_pairs=len(test), metrics=held_out, photo=on_photo)
    with atomic_write(a.out/'srflownet-tiny.safetensors') as f: f.write((finish/'model.safetensors').read_bytes())
    with atomic_write(a.out/'srflownet-tiny.json', 'w') as f: json.dump(card, f, indent=1); f.write('\n')
    people = len({item[0] for item in training.items})
    text = CARD.format(**card | dict(pairs=len(training), people=people, size=a.size, steps=a.steps, finish=a.finish, table=table(held_out),
                                     photo_table=table(on_photo), photo_pairs=len(photos)))
    with atomic_write(a.out/'srflownet-tiny.md', 'w') as f: f.write(text)
    print(text)


if __name__ == '__main__': main()
