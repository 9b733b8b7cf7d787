"""How fast is data made, where does the time go, does memory stay flat, and what does a second worker bring?

python benchmarks/make_data.py                         writes benchmarks/results/make_data.json (needs some 15 GB of room in the temporary folder)
python benchmarks/make_data.py --quick --json FILE     a reduced form, under a minute

Every kind of file is written: clean, final, flow, backward flow, head flow, occlusions, labels, depth. 550x802, 20,000 Gaussians, eight
pairs a person. The first sequences, which start the workers and load what numba compiled, are made before the clock runs.
"""
import os

for name, value in dict(OMP_WAIT_POLICY='PASSIVE', OMP_NUM_THREADS='1').items(): os.environ.setdefault(name, value)     # before torch is imported

import collections
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from _common import arguments, bar, write

import srflow_nb.flowio
import srflow_nb.layout
import srflow_nb.scene
from srflow_nb.avatar import Avatar
from srflow_nb.core import threads
from srflow_nb.dataset import make_dataset
from srflow_nb.film import Film
from srflow_nb.layout import KINDS, frame_files, write_frame
from srflow_nb.scene import DatasetConfig, Scene

SIZE = dict(width=550, height=802, gaussians=20_000)
STAGES = {'person': [(Avatar, 'person')], 'pose and light': [(Avatar, 'pose')], 'project': [(srflow_nb.scene, 'view'), (srflow_nb.scene, '_moment')],
          'channels': [(srflow_nb.scene, '_passes'), (srflow_nb.scene, '_ways')], 'rasterize': [(srflow_nb.scene, 'blend')],
          'read off flow and labels': [(srflow_nb.scene, '_drawing')], 'mesh z-buffer': [(srflow_nb.scene, 'mesh_surface')],
          'occlusion and depth': [(srflow_nb.scene, 'occlusion'), (srflow_nb.scene, '_depth')], 'sub-frames': [(srflow_nb.scene, '_exposed')],
          'film': [(Film, 'develop')], 'write pictures': [(srflow_nb.layout, 'write_image')], 'write flow': [(srflow_nb.layout, 'write_flow')],
          'write labels, masks, depth': [(srflow_nb.layout, n) for n in ('write_labels', 'write_mask', 'write_depth')]}


class Stopwatch:
    "CPU seconds by stage, each without the stages inside it."
    def __init__(self): self.seconds, self.inside = collections.Counter(), []

    def timed(self, stage, f):
        "f, with its time counted."
        def run(*args, **kwargs):
            start = time.process_time(); self.inside.append(0.)
            try: return f(*args, **kwargs)
            finally:
                took, inner = time.process_time()-start, self.inside.pop()
                self.seconds[stage] += took-inner
                if self.inside: self.inside[-1] += took
        return run


def where_time_goes(c, sequences):
    "Milliseconds of CPU a pair, by stage; functions are wrapped for as long as this takes."
    clock, saved = Stopwatch(), [(owner, name, vars(owner)[name]) for places in STAGES.values() for owner, name in places]
    folder = Path(tempfile.mkdtemp())
    try:
        with torch.no_grad(), threads(1):
            _sequence(c, 0, folder)                                                       # compiles, warms
            for stage, places in STAGES.items():
                for owner, name in places:
                    f = vars(owner)[name]
                    bound = clock.timed(stage, f.__func__ if isinstance(f, classmethod) else f)
                    setattr(owner, name, classmethod(bound) if isinstance(f, classmethod) else bound)
            start = time.process_time()
            for i in range(1, sequences+1): clock.timed('the rest', _sequence)(c, i, folder)
            total = time.process_time()-start
    finally:
        for owner, name, f in saved: setattr(owner, name, f)
        shutil.rmtree(folder)
    pairs = sequences*c.pairs_per_sequence
    return {k: round(1e3*v/pairs, 1) for k, v in clock.seconds.most_common()} | dict(total=round(1e3*total/pairs, 1))


def _sequence(c, index, folder):
    "What one worker does, without its annotation."
    scene = Scene(c, index, c.pairs_per_sequence+1)
    for t in range(c.pairs_per_sequence+1): write_frame(frame_files(folder, 'training', f'person_{index}', t), scene.frame(t))


class Memory(threading.Thread):
    "Resident memory of this process and its children, once in a while [bytes]."
    def __init__(self, every):
        super().__init__(daemon=True)
        self.every, self.series, self.done = every, [], threading.Event()

    def run(self):
        while not self.done.wait(self.every): self.series.append(sum(self.resident()))

    def resident(self):
        "Of each process: pages in memory that it shares with no file."
        me = os.getpid()
        for p in Path('/proc').glob('[0-9]*'):
            try:
                if int(p.name) != me and int((p/'stat').read_text().rsplit(')', 1)[1].split()[1]) != me: continue
                _, resident, shared, *_ = (int(v) for v in (p/'statm').read_text().split())
            except (OSError, IndexError): continue
            yield (resident-shared)*os.sysconf('SC_PAGE_SIZE')


def growth(series):
    "Change of memory from the second fifth of a run to the last."
    fifth = max(1, len(series)//5)
    return statistics.median(series[-fifth:])/statistics.median(series[fifth:2*fifth] or series)-1


def timed_run(workers, pairs, memory=None, **size):
    "Wall seconds for so many pairs, the workers being warm; and bytes a pair."
    folder = Path(tempfile.mkdtemp(prefix='srflow_make_data_'))
    try:
        make_dataset(folder/'warm', pairs=workers, workers=workers, progress=False, seed=1, **(size | dict(pairs_per_sequence=1)))
        shutil.rmtree(folder/'warm')
        if memory: memory.start()
        start = time.perf_counter()
        make_dataset(folder/'set', pairs=pairs, workers=workers, progress=False, **size)
        took = time.perf_counter()-start
        if memory: memory.done.set()
        return took, sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())/pairs
    finally: shutil.rmtree(folder)


def on_a_gpu(pairs):
    "Pairs a second at 1100x1604 with gsplat, encoding included, a worker a core; says so where there is no GPU."
    what = dict(what='1100x1604 with gsplat on a GPU')
    if not torch.cuda.is_available(): return what | dict(note='not measured: no CUDA device here')
    workers = os.cpu_count()
    took, _ = timed_run(workers, pairs, width=1100, height=1604, gaussians=20_000, device='cuda')
    return what | dict(device=torch.cuda.get_device_name(0), workers=workers, pairs_per_second=round(pairs/took, 3))


def main():
    "Measure, print, write."
    args = arguments(__doc__.splitlines()[0])
    size, (many, few, sequences) = SIZE | (dict(pairs_per_sequence=4) if args.quick else {}), (8, 4, 1) if args.quick else (1000, 96, 3)
    stages = where_time_goes(DatasetConfig(**size), sequences)
    for k, v in stages.items(): print(f'{k:28s} {v:7.1f} ms a pair')
    memory = Memory(.2 if args.quick else 2.)
    two, pair_bytes = timed_run(2, many, memory, **size)
    one, _ = timed_run(1, few, **size)
    rates = {1: few/one, 2: many/two}
    print(f'{rates[1]:.2f} pairs a second alone, {rates[2]:.2f} with two workers; {pair_bytes/1e6:.1f} MB a pair')
    large = on_a_gpu(8 if args.quick else 400)
    rows = [dict(what='CPU a pair', unit='ms', **stages), *[dict(what='speed', workers=w, pairs_per_second=round(r, 3)) for w, r in rates.items()],
            dict(what='memory of all processes', unit='MB', pairs=many, series=[round(m/1e6) for m in memory.series[::max(1, len(memory.series)//50)]]),
            dict(what='disk', bytes_per_pair=round(pair_bytes)), large]
    bars = dict(pairs_per_second_two_workers=bar(rates[2], 3.), cpu_ms_a_pair=bar(stages['total'], 667., at_most=True),
                memory_growth_share=bar(growth(memory.series), .05, at_most=True), speed_two_workers_against_one=bar(rates[2]/rates[1], 1.6),
                gpu_pairs_per_second_1100x1604=bar(large.get('pairs_per_second'), 100.))
    write('make_data', args, rows, bars, settings=size | dict(kinds=list(KINDS), pairs=many))


if __name__ == '__main__': main()
