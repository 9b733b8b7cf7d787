"The claim's script: every bar is in the file whether measured or not, nothing is done twice, and changed weights are noticed."
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

BARS = {'fall_raft_small', 'fall_pwc', 'fall_tiny', 'laptop_seconds', 'laptop_all_vs_best_classical', 'laptop_outside', 'laptop_face_vs_deepflow',
        'laptop_time_vs_deepflow', 'laptop_photo_vs_dis', 'shipped_face_vs_deepflow', 'mesh_face_vs_deepflow', 'mesh_outside', 'still_identical', 'still_noise'}


@pytest.fixture(scope='module')
def script(root):
    "benchmarks/flow_claim.py as a module."
    sys.path.insert(0, str(root/'benchmarks'))
    try: import flow_claim
    finally: sys.path.pop(0)
    return flow_claim


def claim_of(script, folder, *stages): return script.Claim(script.REDUCED, folder, stages, folder/'pictures')


def test_what_was_not_measured_is_there_as_not_measured(script, tmp_path):
    rows, bars = script.report(claim_of(script, tmp_path))
    assert rows == [] and set(bars) == BARS and all(b['value'] is None and b['met'] is False for b in bars.values())


def test_a_part_is_made_once_for_each_key_and_only_when_it_is_wanted(script, tmp_path):
    made, parts = [], script.Parts(tmp_path, ['speed'])
    def make(): made.append(1); return dict(ms=len(made))
    assert [parts('speed', 'a', dict(w=(1,)), make) for _ in range(2)] == [dict(ms=1)]*2       # a tuple is a list in JSON: still the same key
    assert parts('speed', 'a', dict(w=(2,)), make) == dict(ms=2)
    assert script.Parts(tmp_path, [])('speed', 'a', dict(w=(2,)), make) == dict(ms=2)          # done: nobody needs to want it
    assert script.Parts(tmp_path, ['families'])('speed', 'a', dict(w=(3,)), make) is None and len(made) == 2


def test_a_part_that_was_interrupted_leaves_nothing(script, tmp_path):
    def stop(): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): script.Parts(tmp_path, ['speed'])('speed', 'a', {}, stop)
    assert not list(tmp_path.rglob('*.json'))


def test_changed_weights_make_a_result_out_of_date(script, tmp_path, monkeypatch):
    claim = claim_of(script, tmp_path, 'shipped')
    monkeypatch.setattr(script.Claim, 'score', lambda self, name, models: [dict(model=m, pair='a/1', epe=1.) for m in models])
    assert claim.shipped('photo') is not None
    idle = claim_of(script, tmp_path)
    assert idle.shipped('photo') is not None
    monkeypatch.setattr(script, 'weights', lambda folder: 'other')
    assert idle.shipped('photo') is None


def test_another_renderer_means_other_pairs_and_another_training(script, tmp_path, monkeypatch):
    claim = claim_of(script, tmp_path)
    before = claim.described('test'), claim.run_folder('tiny', 'srflow')
    monkeypatch.setattr(script, 'code', lambda *modules: 'other')
    claim = claim_of(script, tmp_path)
    after = claim.described('test'), claim.run_folder('tiny', 'srflow')
    assert before[0] != after[0] and before[1] != after[1]


def test_words_do_not_count_as_code(script, tmp_path, monkeypatch):
    monkeypatch.setattr('srflow_nb.__file__', str(tmp_path/'__init__.py'))
    def fingerprint(text):
        (tmp_path/'m.py').write_text(text)
        return script.code('m')
    same = {fingerprint('def f(x):\n    "Old words."\n    return x'), fingerprint('# why\ndef f(x):\n    "New words."\n    return x')}
    assert len(same) == 1 and fingerprint('def f(x):\n    return -x') not in same


def test_kept_pairs_are_the_pairs_that_were_made(script):
    calls = []
    class Once(script.WarpDataset):
        def __getitem__(self, i): calls.append(i); return super().__getitem__(i)
    data, true = script.Kept(Once(n=2, size=48, seed=3)), script.WarpDataset(n=2, size=48, seed=3)
    for _ in range(2):
        for i in range(2): assert all(torch.allclose(v, true[i][k], atol=1e-7) for k, v in data[i].items())
    assert calls == [0, 1]


def test_both_runs_of_a_family_differ_in_their_data_alone(script, tmp_path, monkeypatch):
    seen = []
    def train(config, data, out): seen.append((config, type(data).__name__, len(data))); raise InterruptedError
    monkeypatch.setattr(script, 'train', train)
    claim = claim_of(script, tmp_path)
    monkeypatch.setattr(claim, 'rendered', lambda name: [0]*script.REDUCED.data[name][0])
    for run in ('generic', 'srflow'):
        with pytest.raises(InterruptedError): claim.train_family('tiny', run)
    (a, first, n), (b, second, m) = seen
    assert a == b and n == m and (first, second) == ('Kept', 'list')


def test_no_person_is_in_two_sets(script):
    for s in (script.Settings(), script.REDUCED):
        seeds = [v[3] for v in s.data.values()] + [s.mesh['seed'], s.still['seed'], s.photos['seed']]
        assert len(set(seeds)) == len(seeds) and 1 not in seeds             # the shipped weights know the people of seed 1


def test_no_photograph_was_trained_on(script):
    from srflow_nb.warps import PHOTOS
    assert not set(script.PHOTOGRAPHS) & set(PHOTOS)


def test_settings_tell_runs_apart(script, tmp_path):
    a, longer = claim_of(script, tmp_path), replace(script.REDUCED, families=dict(tiny=dict(steps=3)))
    assert a.run_folder('tiny', 'srflow') != script.Claim(longer, tmp_path, (), tmp_path).run_folder('tiny', 'srflow') != a.run_folder('tiny', 'generic')


@pytest.mark.slow
def test_a_second_run_has_nothing_left_to_do(root, tmp_path):
    "All stages, reduced; then the same again, which must only write the file."
    command = [sys.executable, 'benchmarks/flow_claim.py', '--quick', '--work', str(tmp_path/'work'), '--json', str(tmp_path/'claim.json')]
    for first in (True, False):
        done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
        assert ('[families]' in done.stdout) == first
        found = json.loads((tmp_path/'claim.json').read_text())
        assert set(found['bars']) == BARS and all(b['value'] is not None for b in found['bars'].values()) and found['quick']
    assert {r['table'] for r in found['rows']} >= {'errors', 'falls', 'training', 'kinds', 'still', 'laptop', 'speed', 'worst'}
