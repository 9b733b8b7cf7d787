"""Does training on rendered faces pay? The main job (`srflow demo --preset quick`), its tables and its time.

python benchmarks/demo.py                          writes benchmarks/results/demo.json
python benchmarks/demo.py --quick --json FILE      the same stages, far too short to learn anything: shows that it runs
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import shutil
import tempfile
from pathlib import Path

from _common import arguments, bar, write

from srflow_nb.demo import PRESETS, DemoPreset, print_summary, run_demo

SEED = 0
REDUCED = DemoPreset(pairs=8, size=128, gaussians=5000, steps=4, photo=1, clips=(4, 4, 4), subjects=(2, 2, 2))


def main():
    "Run, print, write."
    args = arguments(__doc__.splitlines()[0])
    if args.quick: PRESETS['quick'] = REDUCED
    out = Path(tempfile.mkdtemp())
    report = run_demo(out, 'quick', SEED)
    print_summary(report, out)
    page = out/'report.html'
    if not args.json: print(f'kept {shutil.copy(page, Path(tempfile.gettempdir())/"srflow-report.html")}')
    shutil.rmtree(out)
    epe = {n: m['epe'] for n, m in report['flow']['models'].items()}
    bars = {'EPE of srflow over DIS': bar(epe['srflownet-srflow']/epe['dis'], 1., at_most=True),
            'EPE of srflow over its generic twin': bar(epe['srflownet-srflow']/epe['srflownet-generic'], 1., at_most=True),
            'minutes in all': bar(report['seconds']['total']/60, 6., at_most=True)}
    rows = [dict(model=n, **m) for n, m in report['flow']['models'].items()]
    report.pop('versions')
    write('demo', args, rows, bars, **report)


if __name__ == '__main__': main()
