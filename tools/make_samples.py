"""Make data_samples/ again, byte for byte: three people at 550x802 and one pair at 1100x1604.

python tools/make_samples.py                 writes data_samples/faces and data_samples/large
python tools/make_samples.py --out DIR       writes them somewhere else (the test compares the two)

Bytes are the same on machines of the same kind with the same versions (`dataset.json` names them); elsewhere a float may differ in its last
bit, so that a pixel here and there differs by one grey level.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # must be set before torch is imported

import argparse
import shutil
from pathlib import Path

from srflow_nb.dataset import make_dataset
from srflow_nb.layout import verify_dataset

HERE = Path(__file__).parent.parent/'data_samples'
SETS = dict(faces=dict(pairs=3, width=550, height=802, seed=104, pairs_per_sequence=1, test_every=3, flow_format='flo5'),
            large=dict(pairs=1, width=1100, height=1604, seed=178, gaussians=100_000, flow_format='flo5',
                       kinds=('clean', 'final', 'flow', 'occlusions', 'masks')))        # all kinds of both would be too much for a repository
LIMIT = 15e6                                            # bytes of both together


def main():
    "Make both sets, beside the old ones first; replace them when all is well."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=HERE, metavar='DIR', help='where to (default: data_samples)')
    parser.add_argument('--workers', type=int, default=1, metavar='K', help='processes; does not change a byte')
    args = parser.parse_args()
    size = 0
    for name, settings in SETS.items():
        new = args.out/f'.{name}.new'
        shutil.rmtree(new, ignore_errors=True)
        make_dataset(new, workers=args.workers, **settings)
        if problems := verify_dataset(new): raise SystemExit('\n'.join(problems))
        shutil.rmtree(args.out/name, ignore_errors=True)
        new.rename(args.out/name)
        size += (here := sum(p.stat().st_size for p in (args.out/name).rglob('*') if p.is_file()))
        print(f'{args.out/name}: {here/1e6:.2f} MB')
    if size > LIMIT: raise SystemExit(f'{size/1e6:.1f} MB together; expected at most {LIMIT/1e6:g}')


if __name__ == '__main__': main()
