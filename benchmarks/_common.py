"What every benchmark's result file carries: machine, versions, date, command, bars; and the two flags that every script has."
import argparse
import ast
import datetime
import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import srflow_nb
from srflow_nb.core import atomic_write, versions

RESULTS = Path(__file__).parent/'results'
# what pictures and truth come from
RENDERER = ('scene', 'film', 'light', 'avatar', 'appearance', 'eyes', 'hair', 'head', 'noise', 'gaussians', 'motion', 'camera', 'splat', 'flow',
            'zbuffer')
TRAINING = ('train', 'augment', 'losses', 'families', 'all_pairs', 'model', 'warps')      # the modules that decide weights, beside pictures


def arguments(description):
    "Parse --quick and --json (and nothing else) for a benchmark script."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--quick', action='store_true', help='a reduced form, under a minute')
    parser.add_argument('--json', metavar='FILE', help='write the result here instead of benchmarks/results')
    return parser.parse_args()


def digest(what):
    "A short fingerprint of bytes, or of anything JSON can hold."
    if not isinstance(what, bytes): what = json.dumps(what, sort_keys=True).encode()
    return hashlib.sha256(what).hexdigest()[:12]


def code(*modules):
    "A fingerprint of what modules compute: comments and docstrings do not count."
    trees = []
    for m in modules:
        tree = ast.parse((Path(srflow_nb.__file__).parent/f'{m}.py').read_text(encoding='utf-8'))
        for n in ast.walk(tree):
            if isinstance(getattr(n, 'body', None), list): n.body = [b for b in n.body if not (isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant))]
        trees.append(ast.dump(tree))
    return digest(trees)


def machine():
    "The processor and its cores, as far as the operating system tells."
    model = platform.processor()
    if (info := Path('/proc/cpuinfo')).exists():
        model = next((line.split(':')[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')), model)
    return dict(cpu=model or platform.machine(), cores=os.cpu_count(), system=platform.platform(terse=True))


def bar(value, target, at_most=False):
    "One bar: the value measured (None: not measured, and so not met), what was asked for, and whether it is met."
    if value is None: return dict(value=None, target=target, met=False)
    met = value <= target if at_most else value >= target
    return dict(value=round(float(value), 4), target=target, met=bool(met))


def write(name, args, rows, bars, **more):
    "Write the result file of script `name`, print where it lies and each bar, and return its path."
    path = Path(args.json) if args.json else RESULTS/f'{name}.json'
    command = ' '.join(['python', f'benchmarks/{name}.py', *sys.argv[1:]])
    result = dict(machine=machine(), versions=versions(), date=datetime.date.today().isoformat(), command=command, quick=args.quick, **more, rows=rows, bars=bars)
    with atomic_write(path, 'w') as f: f.write(json.dumps(result, indent=1)+'\n')
    for key, b in bars.items():
        if b['value'] is None: print(f"{key}: NOT MEASURED (target {b['target']:g})")
        else: print(f"{key}: {b['value']:g} (target {b['target']:g}): {'met' if b['met'] else 'MISSED'}")
    print(f'wrote {path}')
    return path
