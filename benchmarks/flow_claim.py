"""Does training on rendered faces make flow of faces better, for several networks, and who is best in the end?

python benchmarks/flow_claim.py                     does whatever is missing or out of date, writes benchmarks/results/flow_claim.json
python benchmarks/flow_claim.py --stage laptop      the same for these stages alone; what was not measured is written as not measured
python benchmarks/flow_claim.py --quick --json FILE all stages, far too short to learn anything: shows that they run

Stages: families (each network twice: generic warps, rendered faces), laptop (times itself: wants a quiet machine), classical, shipped,
speed, pictures. Each part leaves a file in build/flow_claim/stages; killed at any moment, the script goes on where it was.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import argparse
import json
import math
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import skimage.data
import torch
from skimage.color import gray2rgb
from torch.utils.data import ConcatDataset, Dataset

from _common import RENDERER, RESULTS, TRAINING, bar, code, digest, write

from srflow_nb.benchmark import (BINS, benchmark_flow, benchmark_table, case_picture, fall_interval, interval_table,
                                 one_thread, time_estimator, worst_pairs)
from srflow_nb.core import atomic_write, data_path
from srflow_nb.dataset import FlowDataset, make_dataset
from srflow_nb.estimators import get_estimator, network_flow
from srflow_nb.families import build_model, load_model
from srflow_nb.mesh_faces import MeshFaces, still_pairs
from srflow_nb.train import RECIPE, TrainConfig, preset, train
from srflow_nb.viz import image_bytes
from srflow_nb.warps import WarpDataset, photo_pairs

STAGES = ('families', 'laptop', 'classical', 'shipped', 'speed', 'pictures')
CLASSICAL = ('zero', 'dis', 'tvl1', 'farneback', 'deepflow', 'sparse_to_dense')
PHOTOGRAPHS = ('astronaut', 'clock', 'page', 'text')      # no network has seen them: `WarpDataset` uses others
OURS = 'srflownet-tiny'
SETS = ('test', 'mid', 'large', 'mesh', 'photo')


# the presets' recipe with fewer steps; whole heads only for the network that it was found for
SHORT = {k: RECIPE[k] for k in ('lr', 'warped', 'noise', 'loss')} | dict(steps=250, batch=4, warmup=20, ema=.98)


@dataclass(frozen=True)
class Settings:
    "How much of everything."
    # name -> pairs, width, height, seed, pairs of a person. Every seed has its own people, cameras and walls; the shipped weights were
    # trained on seed 1
    data: dict = field(default_factory=lambda: dict(train=(800, 320, 320, 51, 2), test=(64, 320, 320, 52, 2), mid=(12, 550, 802, 53, 2), large=(4, 1100, 1604, 54, 1)))
    gaussians: int = 20_000
    # how each family is trained, the same for both of its runs
    families: dict = field(default_factory=lambda: dict(raft_small=SHORT | dict(crop=128, iters=4), pwc=SHORT | dict(crop=128), tiny=SHORT | dict(crop=160, augment=RECIPE['augment'])))
    laptop: dict = field(default_factory=dict)            # changes of the preset: none
    mesh: dict = field(default_factory=lambda: dict(n=32, size=384, seed=71))
    still: dict = field(default_factory=lambda: dict(n=12, size=320, seed=72))
    photos: dict = field(default_factory=lambda: dict(n=6, size=256, seed=73))
    speed: tuple = (512, 3)                               # side of the picture [px], calls
    worst: int = 10
    workers: int = 2


REDUCED = Settings(
    data=dict(train=(4, 96, 96, 51, 2), test=(4, 96, 96, 52, 2), mid=(2, 96, 128, 53, 2), large=(2, 128, 160, 54, 1)), gaussians=3000,
    families={n: dict(steps=2, batch=2, crop=64) for n in ('raft_small', 'pwc', 'tiny')}, laptop=dict(steps=2, batch=2, crop=64),
    mesh=dict(n=2, size=96, seed=71), still=dict(n=2, size=96, seed=72), photos=dict(n=1, size=96, seed=73), speed=(128, 1), worst=2, workers=1)


# ---- what is done once -------------------------------------------------------------------------------------------

def weights(folder):
    "A fingerprint of the weights in a folder of a trained network, or of those that ship with the package."
    return digest((data_path('srflownet-tiny.safetensors') if folder is None else Path(folder)/'model.safetensors').read_bytes())


class Parts:
    "Named results in a folder, each made once for each key."
    def __init__(self, folder, wanted): self.folder, self.wanted, self.seconds = Path(folder), wanted, {}

    def path(self, name): return self.folder/'stages'/f'{name}.json'

    def forget(self, name): self.path(name).unlink(missing_ok=True)

    def __call__(self, stage, name, key, make):
        "The result of a part: read, or made if its stage is wanted; None if it is missing or out of date and nobody wants it now."
        path, key = self.path(name), json.loads(json.dumps(key))
        if path.exists() and (found := json.loads(path.read_text()))['key'] == key:
            self.seconds[name] = found['seconds']
            return found['result']
        if stage not in self.wanted: return None
        print(f'[{stage}] {name}', flush=True)
        start = time.perf_counter()
        result = make()
        found = dict(key=key, result=result, seconds=round(time.perf_counter() - start, 1))
        with atomic_write(path, 'w') as f: json.dump(found, f, allow_nan=False)
        self.seconds[name] = found['seconds']
        return json.loads(json.dumps(result))


def as_rows(scores):
    "Scores as JSON can hold them."
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in scores.to_dict('records')]


def as_scores(*parts):
    "Scores of several parts together, or None when one of them is missing."
    if any(p is None for p in parts): return None
    scores = pd.DataFrame([r for p in parts for r in p])
    return scores.assign(**{c: pd.to_numeric(scores[c]) for c in scores.columns.drop(['model', 'pair'])})


# ---- pairs -------------------------------------------------------------------------------------------------------

class Kept(Dataset):
    "Pairs that are made once and then kept, frames as bytes (which is what they were rounded to)."
    def __init__(self, pairs): self.pairs, self.kept = pairs, {}
    def __len__(self): return len(self.pairs)
    def __getitem__(self, i):
        if i not in self.kept: self.kept[i] = {k: (v*255).round().byte() if 'frame' in k else v for k, v in self.pairs[i].items()}
        return {k: v.float()/255 if 'frame' in k else v for k, v in self.kept[i].items()}


class Claim:
    "All stages with their settings and their folder."
    def __init__(self, settings, folder, wanted, pictures):
        self.s, self.folder, self.pictures = settings, Path(folder), Path(pictures)
        self.part = Parts(folder, wanted)
        self.renderer, self.training = code(*RENDERER), code(*TRAINING)          # as they were when the script began

    def rendered(self, name):
        "Everybody in a rendered set; made if it is not there."
        root, (pairs, width, height, seed, each) = self.folder/'data'/f'{name}-{digest(self.described(name))}', self.s.data[name]
        if not (root/'dataset.json').exists():
            make_dataset(root, pairs, width, height, seed, self.s.workers, resume=root.exists(), gaussians=self.s.gaussians, fps=25.,
                         kinds=('final', 'flow', 'occlusions', 'masks'), pairs_per_sequence=each)
        found = [FlowDataset(root, split, outputs=('labels',)) for split in ('training', 'test')]
        return ConcatDataset([d for d in found if len(d)])

    def pairs(self, name):
        "The pairs of one test set."
        if name == 'mesh': return MeshFaces(**self.s.mesh)
        if name == 'photo': return [p for n in PHOTOGRAPHS for p in self.photographs(n)]
        return self.rendered(name)

    def photographs(self, name):
        "Warps of one photograph, `name/number`."
        image = getattr(skimage.data, name)()
        moved = photo_pairs(image if image.ndim == 3 else gray2rgb(image), **self.s.photos)
        return [p | dict(name=f'{name}/{i:02d}') for i, p in enumerate(moved)]

    def described(self, name):
        "What decides which pairs a set holds."
        if name == 'mesh': return self.s.mesh | dict(code=code('mesh_faces'))
        if name == 'photo': return self.s.photos | dict(photographs=PHOTOGRAPHS)
        return dict(data=self.s.data[name], gaussians=self.s.gaussians, code=self.renderer)

    def score(self, name, estimators):
        with one_thread(): return as_rows(benchmark_flow(self.pairs(name), estimators, workers=self.s.workers))

    # ---- networks ------------------------------------------------------------------------------------------------

    def config(self, family): return TrainConfig(size=family, seed=0, **self.s.families[family])

    def family_key(self, family):
        "What decides the weights of a family: settings, data, and the network's shape."
        shape = {k: list(v.shape) for k, v in build_model(family).state_dict().items()}
        return dict(config=self.s.families[family], data=self.described('train'), shape=digest(shape), code=self.training)

    def run_folder(self, family, run): return self.folder/'runs'/f'{family}-{run}-{digest(self.family_key(family))}'

    def train_family(self, family, run):
        "Train one network on one kind of data; both kinds have as many pairs of the same size, and the same crops, light and noise."
        pairs, side, _, seed, _ = self.s.data['train']
        data = self.rendered('train') if run == 'srflow' else Kept(WarpDataset(n=pairs, size=side, seed=seed))
        out = self.run_folder(family, run)
        begun, start = (out/'last.pt').exists(), time.process_time()
        log = train(self.config(family), data, out)
        spent = None if begun else round(time.process_time() - start)           # of a run in one piece
        return dict(weights=weights(out), cpu_seconds=spent, training_epe=float(np.mean(log['epe'][-5:])), parameters=sum(p.numel() for p in load_model(str(out)).parameters()))

    def family(self, family, run):
        "Training and test of one network; the scores, or None."
        out = self.run_folder(family, run)
        done = self.part('families', f'train-{family}-{run}', self.family_key(family), lambda: self.train_family(family, run))
        if done is None or not out.exists(): return None
        key = dict(weights=weights(out), test=self.described('test'), code=code('families', 'all_pairs', 'model'))
        return self.part('families', f'score-{family}-{run}', key, lambda: self.score('test', {f'{family}-{run}': self.network(out)}))

    def network(self, folder): return partial(network_flow, network=load_model(str(folder)))

    def laptop(self):
        "The laptop preset against the clock: training, test pairs, photographs, and its time beside DeepFlow's; None if not measured."
        config, out = preset('laptop', **self.s.laptop), self.folder/'runs'/'laptop'
        key = self.family_key('tiny') | dict(config=asdict(config))
        done = self.part('laptop', 'laptop-train', key, lambda: self.train_laptop(config, out))
        if done is None or not out.exists(): return None
        key, mine = dict(weights=weights(out), code=code('model')), {'laptop': self.network(out)}
        found = {n: self.part('laptop', f'laptop-{n}', key | self.described(n), lambda n=n: self.score(n, mine)) for n in ('test', 'photo')}
        ms = self.part('laptop', 'laptop-speed', key | dict(speed=self.s.speed), lambda: self.times(mine | {'deepflow': get_estimator('deepflow')}))
        return dict(train=done, ms=ms, **found)

    def train_laptop(self, config, out):
        "From nothing, whatever an earlier run left: the seconds are those of a whole run."
        shutil.rmtree(out, ignore_errors=True)
        data, start = self.rendered('train'), time.perf_counter()
        train(config, data, out)
        return dict(seconds=time.perf_counter() - start, weights=weights(out))

    # ---- tests ---------------------------------------------------------------------------------------------------

    def classical(self, name):
        "All classical methods on one set. TV-L1 takes a minute a pair at the largest size and is left out there."
        models = [n for n in CLASSICAL if (name, n) != ('large', 'tvl1')]
        key = self.described(name) | dict(models=models, cv2=cv2.__version__)
        return self.part('classical', f'classical-{name}', key, lambda: self.score(name, {n: get_estimator(n) for n in models}))

    @property
    def shipped_key(self): return dict(weights=weights(None), code=code('model'))

    def shipped(self, name):
        "The weights of the package on one set."
        return self.part('shipped', f'shipped-{name}', self.shipped_key | self.described(name), lambda: self.score(name, {OURS: get_estimator(OURS)}))

    def still(self):
        "Mean |flow| of every pair in which nothing moves: the same frame twice, or two frames that differ by noise."
        def lengths(noise):
            with one_thread(): return [float(torch.hypot(*get_estimator(OURS)(p['frame1'][None], p['frame2'][None])[0]).mean()) for p in still_pairs(**self.s.still, noise=noise)]
        key = self.shipped_key | self.s.still | dict(code=code('model', 'mesh_faces'))
        return self.part('shipped', 'shipped-still', key, lambda: dict(identical=lengths(0.), noise=lengths(2.), more_noise=lengths(4.)))

    def times(self, estimators):
        "Processor time of each estimator on one thread [ms]."
        side, calls = self.s.speed
        item = photo_pairs(skimage.data.astronaut(), n=1, size=side, seed=0)[0]
        return {n: time_estimator(e, item, calls) for n, e in estimators.items()}

    def speed(self):
        "The same for everybody."
        trained = {f'{f}-srflow': out for f in self.s.families if (out := self.run_folder(f, 'srflow')).exists()}
        key = self.shipped_key | dict(speed=self.s.speed, trained=sorted(trained))
        nets = {n: self.network(out) for n, out in trained.items()}
        return self.part('speed', 'speed', key, lambda: self.times({n: get_estimator(n) for n in CLASSICAL[1:]} | nets | {OURS: get_estimator(OURS)}))

    def worst(self, scores):
        "Pictures of the pairs on which the shipped weights are most wrong; at most one of each person."
        if scores is None: return None
        people = lambda d: d[~d['pair'].str.split('/').str[0].duplicated()]
        found = people(worst_pairs(scores, len(scores), model=OURS, metric='epe_fg')).head(self.s.worst)
        key = self.shipped_key | self.described('test') | dict(pairs=list(found['pair']))
        def draw():
            pairs, model = self.pairs('test'), get_estimator(OURS)
            by_name = {p['name']: p for p in (pairs[i] for i in range(len(pairs))) if p['name'] in set(found['pair'])}
            deepflow = scores[scores['model'] == 'deepflow'].set_index('pair')['epe_fg']
            rows = []
            for i, r in enumerate(found.itertuples()):
                p = by_name[r.pair]
                with one_thread(): picture = case_picture(p, model(p['frame1'][None], p['frame2'][None])[0])
                with atomic_write(self.pictures/f'worst_{i:02d}.webp') as f: f.write(image_bytes(picture, quality=80))
                rows.append(dict(file=f'worst_{i:02d}.webp', pair=r.pair, epe_fg=r.epe_fg, epe_moving=r.epe_moving, deepflow_epe_fg=float(deepflow[r.pair])))
            return rows
        if not all((self.pictures/f'worst_{i:02d}.webp').exists() for i in range(len(found))): self.part.forget('worst')
        return self.part('pictures', 'worst', key, draw)


# ---- the report --------------------------------------------------------------------------------------------------

INTERVALS = ('epe', 'epe_fg', 'epe_moving')
PLACES = ('epe', 'epe_fg', 'epe_moving', 'epe_bg', *[f'epe_{r}' for r in ('skin', 'eyes', 'mouth', 'hair', 'boundary', 'visible', 'hidden')], *[f'epe_{b}' for b in BINS])


def known(v): return None if v is None or not math.isfinite(v) else round(float(v), 4)


def table_rows(name, scores):
    "One row a model: every metric, and the ends of the intervals of three of them."
    table = benchmark_table(scores).drop(columns=['seconds', 'pixels'])
    ends = {m: interval_table(scores, m) for m in INTERVALS}
    count = dict(pairs=scores['pair'].nunique(), people=scores['pair'].str.split('/').str[0].nunique())
    for model, row in table.iterrows():
        limits = {f'{m}_{e}': known(ends[m].loc[model, e]) for m in INTERVALS for e in ('low', 'high')}
        yield dict(table='errors', set=name, model=model, **count) | {k: known(v) for k, v in row.items()} | limits


def fall_row(name, scores, a, b, metric, **more):
    "By which share a metric falls from a to b."
    fall, low, high = map(known, fall_interval(scores, a, b, metric))
    return dict(table='falls', set=name, a=a, b=b, metric=metric, fall=fall, low=low, high=high, **more)


def fall_of(rows, **want): return next((r['fall'] for r in rows if r['table'] == 'falls' and all(r.get(k) == v for k, v in want.items())), None)


def mean_of(scores, model, metric): return None if scores is None else known(benchmark_table(scores).loc[model, metric])


def best_classical(scores, metric='epe'): return benchmark_table(scores).loc[[m for m in CLASSICAL if m in set(scores['model'])], metric].idxmin()


def family_rows(claim):
    "Both runs of each family, and what falls from the generic one to the one with faces."
    rows, parts = [], {}
    for family in claim.s.families:
        parts |= {(family, run): claim.family(family, run) for run in ('generic', 'srflow')}
        scores = as_scores(parts[family, 'generic'], parts[family, 'srflow'])
        if scores is None: continue
        rows += table_rows('test', scores)
        rows += [fall_row('test', scores, f'{family}-generic', f'{family}-srflow', m, family=family) for m in PLACES if scores[m].notna().any()]
    return rows, [p for p in parts.values() if p is not None]


def training_rows(claim):
    "Settings and seconds of each training that was done."
    for name, seconds in claim.part.seconds.items():
        if not name.startswith('train-'): continue
        _, family, run = name.split('-')
        found = json.loads(claim.part.path(name).read_text())['result']
        yield dict(table='training', family=family, run=run, seconds=seconds, **found, config=asdict(claim.config(family)))


def set_rows(claim):
    "Classical methods and the shipped weights on each set: the errors, and what falls from the classical ones to ours."
    rows, found = [], {}
    for name in SETS:
        found[name] = scores = as_scores(claim.classical(name), claim.shipped(name))
        if scores is None: continue
        rows += table_rows(name, scores)
        for other in dict.fromkeys(['deepflow', 'dis', best_classical(scores)]):
            rows += [fall_row(name, scores, other, OURS, m) for m in PLACES if m in scores and scores[m].notna().any()]
        kind = dict(photo=scores['pair'].str.split('/').str[0], mesh=scores['pair'].str.split('_').str[-1]).get(name)
        if kind is not None: rows += [dict(table='kinds', set=name, kind=k, model=m) | {c: known(v) for c, v in r.items()} for (k, m), r in scores.groupby([kind, 'model'])[['epe', 'epe_fg', 'epe_bg']].mean().iterrows()]
    return rows, found


def laptop_rows(claim, found):
    "The laptop preset beside the classical methods on the same frames, and its bars."
    bars = dict(laptop_seconds=(None, 900), laptop_all_vs_best_classical=(None, .5), laptop_outside=(None, .05), laptop_face_vs_deepflow=(None, 1.),
                laptop_time_vs_deepflow=(None, 1.), laptop_photo_vs_dis=(None, 1.))
    rows, done = [], claim.laptop()
    if done is not None:
        test, photo = (as_scores(done[n], claim.classical(n)) for n in ('test', 'photo'))
        values = dict(laptop_seconds=done['train']['seconds'], laptop_time_vs_deepflow=done['ms'] and done['ms']['laptop']/done['ms']['deepflow'])
        if test is not None:
            rows += [*(r for r in table_rows('test', test) if r['model'] == 'laptop'), fall_row('test', test, best := best_classical(test), 'laptop', 'epe'), fall_row('test', test, 'deepflow', 'laptop', 'epe_fg')]
            values |= dict(laptop_all_vs_best_classical=fall_of(rows, a=best, b='laptop'), laptop_outside=mean_of(test, 'laptop', 'epe_bg'),
                           laptop_face_vs_deepflow=mean_of(test, 'laptop', 'epe_fg')/mean_of(test, 'deepflow', 'epe_fg'))
        if photo is not None:
            rows += [r for r in table_rows('photo', photo) if r['model'] == 'laptop']
            values |= dict(laptop_photo_vs_dis=mean_of(photo, 'laptop', 'epe')/mean_of(photo, 'dis', 'epe'))
        if done['ms']: rows.append(dict(table='laptop', seconds=round(done['train']['seconds'], 1), ms=done['ms'], config=asdict(preset('laptop', **claim.s.laptop))))
        bars |= {k: (v, bars[k][1]) for k, v in values.items()}
    return rows, {k: bar(v, target, at_most=k != 'laptop_all_vs_best_classical') for k, (v, target) in bars.items()}


def report(claim):
    "Every table and every bar from what has been measured so far."
    rows, families = family_rows(claim)
    more, found = set_rows(claim)
    still, mesh = claim.still(), found['mesh']
    rows += [*training_rows(claim), *more]
    bars = {f'fall_{f}': bar(fall_of(rows, family=f, metric='epe'), .42) for f in claim.s.families}
    laptop, laptop_bars = laptop_rows(claim, found)
    bars |= laptop_bars
    bars |= {f'{n}_face_vs_deepflow': bar(fall_of(rows, set=s, a='deepflow', b=OURS, metric='epe_fg'), .2) for n, s in (('shipped', 'test'), ('mesh', 'mesh'))}
    bars |= dict(mesh_outside=bar(mean_of(mesh, OURS, 'epe_bg'), .1, at_most=True))
    bars |= {f'still_{n}': bar(np.mean(still[n]) if still else None, limit, at_most=True) for n, limit in (('identical', .02), ('noise', .1))}
    if still: rows += [dict(table='still', kind=k, mean=known(np.mean(v)), worst=known(max(v)), pairs=len(v)) for k, v in still.items()]
    rows += laptop + [dict(table='speed', model=n, ms=round(ms, 2)) for n, ms in (claim.speed() or {}).items()]
    rows += [dict(table='worst', **r) for r in claim.worst(found['test']) or []]
    return rows, bars


def main():
    "Run what is wanted, write what is known."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='a reduced form, under a minute')
    parser.add_argument('--json', metavar='FILE', help='write the result here instead of benchmarks/results')
    parser.add_argument('--stage', nargs='+', choices=STAGES, default=STAGES, help='do only these; without it: all')
    parser.add_argument('--work', type=Path, help='folder for data, runs and parts (default: build/flow_claim; a temporary one with --quick)')
    args = parser.parse_args()
    work = args.work or (Path(tempfile.mkdtemp()) if args.quick else Path(__file__).parents[1]/'build'/'flow_claim')
    pictures = work/'pictures' if args.quick or args.json else RESULTS/'flow_claim'
    claim = Claim(REDUCED if args.quick else Settings(), work, args.stage, pictures)
    rows, bars = report(claim)
    write('flow_claim', args, rows, bars, settings=asdict(claim.s), weights=weights(None), seconds=claim.part.seconds)
    if args.quick and args.work is None: shutil.rmtree(work)


if __name__ == '__main__': main()
