"""Run everything that waits for a GPU, one item after the other; started again, it goes on with what is not done.

python benchmarks/gpu/run.py                  all items that have no good result yet
python benchmarks/gpu/run.py --list           what there is, and what is done
python benchmarks/gpu/run.py tests speed      these items, whatever their results say
python benchmarks/gpu/run.py --commit         commit each result as soon as it is there

Each item writes benchmarks/results/gpu/ITEM.json: device, versions, command, exit code, seconds and the end of the output.
Without an NVIDIA GPU nothing is run or written, and the exit code is 2.
"""
import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON, WORK = sys.executable, '.cache/gpu'


def holding(pattern, text):
    "Files of the repository that match a pattern and hold a text, as paths from its root."
    return [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob(pattern)) if text in p.read_text(encoding='utf-8')]


TESTS, LESSONS = holding('tests/test_*.py', 'mark.' + 'cuda'), holding('nbs/[0-9]*.ipynb', '"#| ' + 'cuda')

# name: (what it tells, modules it needs, seconds after which it is stopped, commands run in turn)
ITEMS = dict(
    build=('that gsplat compiles and loads here', ['gsplat'], 1500,
           [[PYTHON, '-c', "from srflow_nb.gpu import missing; import sys; why = missing(); print(why or 'gsplat runs here'); sys.exit(bool(why))"]]),
    tests=('that the GPU draws and differentiates as the CPU does', ['gsplat', 'pytest'], 600,
           [[PYTHON, '-m', 'pytest', '-q', '-m', 'cuda', *TESTS]]),
    speed=('what flow costs beside RGB: the bar of benchmarks/splat_gpu.py', ['gsplat'], 900, [[PYTHON, 'benchmarks/splat_gpu.py']]),
    data=('how fast data is made with gsplat: the GPU bar of benchmarks/make_data.py', ['gsplat'], 1800, [[PYTHON, 'benchmarks/make_data.py']]),
    lessons=('that the cuda cells of the lessons run', ['gsplat', 'nbdev', 'ipykernel'], 900,
             [['nbdev-test', notebook, '--flags', 'cuda', '--n-workers', '0', '--timing'] for notebook in LESSONS]),
    training=('how far the small network gets with the gpu preset', ['accelerate', 'typer'], 3 * 3600,
              [['srflow', 'make-data', '--out', f'{WORK}/data', '--pairs', '2000', '--workers', str(os.cpu_count()), '--resume'],
               ['srflow', 'train', '--data', f'{WORK}/data', '--out', f'{WORK}/run', '--preset', 'gpu'],
               ['srflow', 'evaluate', '--data', f'{WORK}/data', '--models', f'zero,dis,deepflow,srflownet-tiny,{WORK}/run']]),
)


def device():
    "The GPU's name and more, or None; asked in a process of its own, so that this one holds no memory on the card."
    code = ("import json, torch; p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None; "
            "print(json.dumps(p and dict(name=p.name, compute_capability=f'{p.major}.{p.minor}', memory_gb=round(p.total_memory/1e9, 1), "
            "torch=torch.__version__, cuda=torch.version.cuda)))")
    done = subprocess.run([PYTHON, '-c', code], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def environment():
    "The caller's, with this Python's programs (nbdev-test, ninja) first on the PATH, and the repository importable."
    path = os.pathsep.join([str(Path(PYTHON).parent), os.environ.get('PATH', '')])
    return dict(os.environ, PATH=path, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), PYTHONUNBUFFERED='1', OMP_WAIT_POLICY='passive')


def execute(command, limit):
    "Run one command, show and keep its output; (exit code, output). It and its children are stopped after `limit` seconds."
    p = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
    previous = signal.signal(signal.SIGALRM, lambda *_: os.killpg(p.pid, signal.SIGKILL))
    signal.alarm(max(1, int(limit)))
    try:
        lines = []
        for line in p.stdout: print(line, end='', flush=True); lines.append(line)
        return p.wait(), ''.join(lines)
    finally:
        signal.alarm(0); signal.signal(signal.SIGALRM, previous)
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)


def save(path, result):
    "Write the result so that it is whole or not there."
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f'.{path.name}.tmp')
    tmp.write_text(json.dumps(result, indent=1)+'\n')
    os.replace(tmp, path)


def run(name, gpu, path):
    "Run one item and write its result; True if all its commands succeeded."
    tells, needs, limit, commands = ITEMS[name]
    print(f'== {name}: {tells}', flush=True)
    result = dict(item=name, tells=tells, device=gpu, date=datetime.date.today().isoformat(), python=sys.version.split()[0],
                  commands=[' '.join(['python' if part == PYTHON else part for part in c]) for c in commands])
    if absent := [m for m in needs if not importlib.util.find_spec(m)]:
        result |= dict(ok=False, why=f"missing here: {', '.join(absent)}")
    else:
        result['versions'] = {m: importlib.metadata.version(m) for m in needs}
        start, code, output = time.monotonic(), 0, ''
        for command in commands:
            left = limit-(time.monotonic()-start)
            code, text = execute(command, left) if left > 1 else (-signal.SIGKILL, '')
            output += text
            if code: break
        seconds = time.monotonic()-start
        result |= dict(ok=code == 0, exit_code=code, seconds=round(seconds, 1), output=output.splitlines()[-60:])
        if code == -signal.SIGKILL and seconds >= limit-2: result['why'] = f'stopped after {limit} s'
    save(path, result)
    print(f"== {name}: {'done' if result['ok'] else 'NOT DONE: ' + result.get('why', 'see the output')}; wrote {path}", flush=True)
    return result['ok']


def is_done(path):
    "Whether a good result lies there."
    try: return json.loads(path.read_text())['ok'] is True
    except (OSError, ValueError, KeyError): return False


def commit(name, path):
    "Commit an item's result, and the benchmark's own file beside it."
    files = [str(f) for f in (path, ROOT/'benchmarks/results/splat_gpu.json') if f.exists()]
    subprocess.run(['git', 'add', *files], cwd=ROOT, check=True)
    if subprocess.run(['git', 'diff', '--cached', '--quiet', '--', *files], cwd=ROOT).returncode:
        subprocess.run(['git', 'commit', '-q', '-m', f'Record what a GPU says: {name}', '--', *files], cwd=ROOT, check=True)


def main(argv=None):
    "Run what was asked for; 0 when all of it succeeded, 1 when some failed, 2 without a GPU."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('items', nargs='*', metavar='ITEM', help=f"one or more of {', '.join(ITEMS)}")
    parser.add_argument('--list', action='store_true', help='show the items and what is done, run nothing')
    parser.add_argument('--commit', action='store_true', help='commit each result with git')
    parser.add_argument('--out', type=Path, default=ROOT/'benchmarks/results/gpu', metavar='DIR', help='folder of the results')
    args = parser.parse_args(argv)
    if unknown := [i for i in args.items if i not in ITEMS]: parser.error(f"unknown item {', '.join(unknown)}; known: {', '.join(ITEMS)}")
    if args.list:
        for name, (tells, *_) in ITEMS.items(): print(f"{name:9s} {'done   ' if is_done(args.out/f'{name}.json') else 'waiting'} {tells}")
        return 0
    if (gpu := device()) is None:
        print('no CUDA device: install an NVIDIA driver and a CUDA build of torch; nothing was run, everything keeps waiting')
        return 2
    print(f"{gpu['name']}, {gpu['memory_gb']} GB, torch {gpu['torch']}", flush=True)
    todo = args.items or [name for name in ITEMS if not is_done(args.out/f'{name}.json')]
    good = True
    for name in todo:
        good &= run(name, gpu, args.out/f'{name}.json')
        if args.commit: commit(name, args.out/f'{name}.json')
        if name == 'build' and not good: break                 # without gsplat's kernels the rest would only repeat the error
    return 0 if good else 1


if __name__ == '__main__': sys.exit(main())
