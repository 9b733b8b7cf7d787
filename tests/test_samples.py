"The samples are whole, small, and what the command in their README makes."
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srflow_nb.dataset import EXTRAS, FlowDataset, write_sequence
from srflow_nb.layout import KINDS, frame_files, read_kind, read_manifest, verify_dataset
from srflow_nb.scene import DatasetConfig

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT/'data_samples'


def test_samples_are_whole_and_small():
    for name in ('faces', 'large'): assert verify_dataset(SAMPLES/name) == []
    assert sum(p.stat().st_size for p in SAMPLES.rglob('*') if p.is_file()) < 15e6


def test_samples_hold_what_their_readme_says():
    faces, large = (read_manifest(SAMPLES/d) for d in ('faces', 'large'))
    assert (faces['config']['width'], faces['config']['height'], faces['licence']) == (550, 802, 'CC0-1.0')
    assert {k: len(v) for k, v in faces['splits'].items()} == dict(training=2, test=1)
    assert (large['config']['width'], large['config']['height'], large['config']['pairs']) == (1100, 1604, 1)
    item = FlowDataset(SAMPLES/'large', outputs=['labels'])[0]
    assert item['flow'].shape == (2, 1604, 1100) and item['mask'].any() and item['flow'][:, item['mask']].norm(dim=0).mean() > .1
    assert (len(FlowDataset(SAMPLES/'faces', outputs=EXTRAS)), len(FlowDataset(SAMPLES/'faces', 'test', outputs=EXTRAS))) == (2, 1)
    assert {f.split('/')[1] for f in faces['files']} == {*KINDS, 'annotations'}


def test_the_command_in_the_readme_is_there():
    assert '    python tools/make_samples.py\n' in (SAMPLES/'README.md').read_text()
    assert 'data_samples' in subprocess.run([sys.executable, ROOT/'tools/make_samples.py', '--help'], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize('name, index', [('faces', 0), ('faces', 1), pytest.param('faces', 2, marks=pytest.mark.slow), pytest.param('large', 0, marks=pytest.mark.slow)])
def test_the_same_bytes_come_out_again(tmp_path, name, index):
    "Byte for byte where the samples were made; where a float differs in its last bit, nearly every value."
    manifest = read_manifest(SAMPLES/name)
    c = DatasetConfig(**(manifest['config'] | dict(kinds=tuple(manifest['config']['kinds']))))
    plan = dict(index=index, name=f'person_{index:05d}', split='test' if index % c.test_every == 1 else 'training', pairs=min(c.pairs, c.pairs_per_sequence))
    note = write_sequence(tmp_path, c, plan)
    assert {f for f in manifest['files'] if plan['name'] in f and '/annotations/' not in f} == set(note['files'])
    if all(manifest['files'][f] == entry for f, entry in note['files'].items()): return
    for t in range(plan['pairs']+1):
        for kind, path in frame_files(tmp_path, plan['split'], plan['name'], t, '.flo5').items():
            if path.exists(): alike(kind, read_kind(kind, path), read_kind(kind, SAMPLES/name/path.relative_to(tmp_path)))


def alike(kind, found, kept):
    "Whether two files of a kind say the same, but for a few pixels where rounding fell to the other side."
    found, kept = found.float().nan_to_num(0., 0.), kept.float().nan_to_num(0., 0.)
    step = {'clean': 1.5/255, 'final': 40/255, 'flow': 2/1024, 'flow_backward': 2/1024, 'flow_head': 2/1024, 'depth': 2e-4}.get(kind, 0.)
    assert kind in KINDS and found.shape == kept.shape
    assert ((found-kept).abs() > step+1e-6).float().mean() < 2e-3, f'{kind}: not the samples that are kept; run python tools/make_samples.py'
    assert torch.isclose(found.mean(), kept.mean(), rtol=1e-2, atol=1e-3)
