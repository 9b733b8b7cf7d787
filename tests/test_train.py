"Promises of 16_train: it learns, survives kill -9 exactly, stops at NaN, refuses to mix runs."
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from srflow_nb.augment import MixedDataset
from srflow_nb.core import InputError
from srflow_nb.model import SRFlowNet
from srflow_nb.train import (PRESETS, TrainConfig, batches, learning_rate, make_sample, new_run, preset, train)
from srflow_nb.warps import WarpDataset, photo, sample_at

SMALL = dict(steps=6, batch=2, crop=32, warmup=2, save_every=2, log_every=1)


def data(): return WarpDataset([photo('coffee'), photo('gravel')], n=6, size=64, seed=1)


def weights(folder): return SRFlowNet.from_pretrained(folder).state_dict()


class OnePair:
    "A data set of a single pair, for learning by heart."
    def __init__(self): self.pair = data()[0]
    def __len__(self): return 1
    def __getitem__(self, i): return self.pair


def test_training_lowers_the_loss(tmp_path):
    config = TrainConfig(steps=40, batch=2, crop=48, warmup=4, save_every=40, log_every=5, noise=0., warped=0., still=0.)
    log = train(config, OnePair(), tmp_path, progress=False)
    assert log['loss'][-1] < .8*log['loss'][0] and log['epe'][-1] < log['epe'][0]
    assert (tmp_path/'model.safetensors').exists() and json.loads((tmp_path/'train.json').read_text())['config']['steps'] == 40


def test_kill_between_log_and_checkpoint_loses_no_line(tmp_path, monkeypatch):
    def killed(*args): raise KeyboardInterrupt
    monkeypatch.setattr('srflow_nb.train.save_checkpoint', killed)
    with pytest.raises(KeyboardInterrupt): train(TrainConfig(**SMALL), data(), tmp_path, progress=False)
    assert (tmp_path/'log.csv').exists() and not (tmp_path/'last.pt').exists()


def test_resume_after_kill_gives_same_weights(tmp_path):
    code = "import sys; sys.path.insert(0, 'tests')\nfrom test_train import *\ntrain(TrainConfig(**SMALL), data(), sys.argv[1], val=data(), progress=False)\n"
    broken, whole = tmp_path/'broken', tmp_path/'whole'
    process = subprocess.Popen([sys.executable, '-c', code, str(broken)], cwd=os.path.dirname(os.path.dirname(__file__)))
    began = time.time()
    while not (broken/'last.pt').exists() and time.time() - began < 300: time.sleep(.01)
    process.send_signal(signal.SIGKILL); process.wait()
    train(TrainConfig(**SMALL), data(), whole, val=data(), progress=False)
    assert 0 < torch.load(broken/'last.pt', weights_only=True)['step'] < SMALL['steps']
    train(TrainConfig(**SMALL), data(), broken, val=data(), progress=False)
    a, b = weights(whole), weights(broken)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (whole/'log.csv').read_text() == (broken/'log.csv').read_text()


def test_a_finished_run_is_not_run_again(tmp_path):
    log = train(TrainConfig(**SMALL), data(), tmp_path, progress=False)
    class Untouchable:
        def __len__(self): return 6
        def __getitem__(self, i): raise AssertionError('asked for data')
    assert train(TrainConfig(**SMALL), Untouchable(), tmp_path, progress=False)['step'] == log['step']


def test_another_configuration_is_refused_by_name(tmp_path):
    train(TrainConfig(**SMALL), data(), tmp_path, progress=False)
    with pytest.raises(InputError, match='lr was'): train(TrainConfig(**SMALL, lr=1e-5), data(), tmp_path, progress=False)


def test_a_checkpoint_from_before_a_setting_existed_goes_on(tmp_path):
    train(TrainConfig(**SMALL), data(), tmp_path, progress=False)
    saved = torch.load(tmp_path/'last.pt', weights_only=True)
    config = json.loads(saved['config']); del config['walls'], config['init']
    torch.save(saved | dict(config=json.dumps(config)), tmp_path/'last.pt')
    assert train(TrainConfig(**SMALL), data(), tmp_path, progress=False)['step'][-1] == SMALL['steps']
    with pytest.raises(InputError, match='walls was 0.0, is 0.5'): train(TrainConfig(**SMALL, walls=.5), data(), tmp_path, progress=False)


def test_training_goes_on_from_given_weights(tmp_path):
    train(TrainConfig(**SMALL), data(), tmp_path/'first', progress=False)
    given = weights(tmp_path/'first')
    run = new_run(TrainConfig(**SMALL, init=str(tmp_path/'first'), ema=.9))
    assert all(torch.equal(v, given[k]) for part in (run.net, run.average) for k, v in part.state_dict().items())
    assert all(p.requires_grad for p in run.net.parameters())
    train(TrainConfig(**SMALL, init=str(tmp_path/'first'), seed=1), data(), tmp_path/'second', progress=False)
    assert not all(torch.equal(v, given[k]) for k, v in weights(tmp_path/'second').items())
    for config, words in ((dict(init='tiny', size='pwc'), 'tiny holds the weights of another network than pwc'), (dict(init=str(tmp_path/'nowhere')), 'nowhere')):
        with pytest.raises(InputError, match=words): new_run(TrainConfig(**SMALL | config))


def test_a_smooth_wall_stands_still():
    config = TrainConfig(**SMALL | dict(crop=64, noise=0., warped=0., still=0., walls=1.))
    for k in range(8):
        s = make_sample(data(), config, 0, k, start=False)
        assert not s['flow'].any() and not s['mask'].any() and s['valid'].all()
        assert (s['frame1'] - s['frame2']).abs().max() < .03                                          # a change of light
        assert max(s['frame1'].diff(dim=d).abs().max() for d in (1, 2)) < .15                         # from pixel to pixel


def test_a_moving_picture_may_be_out_of_focus():
    config = TrainConfig(**SMALL | dict(crop=64, noise=0., warped=1.))
    edges = lambda s: s['frame2'].diff(dim=2).abs().mean()
    for k in range(4):
        sharp, soft = (make_sample(data(), dataclasses.replace(config, soft=chance), 0, k, start=False) for chance in (0., 1.))
        assert edges(soft) < .8*edges(sharp) and soft['flow'].any() and soft['mask'].all()


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path/'last.pt').write_bytes(b'not a checkpoint')
    with pytest.raises(InputError, match='last.pt'): train(TrainConfig(**SMALL), data(), tmp_path, progress=False)


def test_nan_stops_the_run_and_saves_the_batch(tmp_path):
    class Poisoned(WarpDataset):
        def __getitem__(self, i): return super().__getitem__(i) | dict(frame1=torch.full((3, 64, 64), float('nan')))
    poisoned = Poisoned([photo('coffee')], n=3, size=64)
    with pytest.raises((FloatingPointError, ValueError), match='step 0|NaN|nan'):
        train(TrainConfig(**SMALL | dict(warped=0., still=0.)), poisoned, tmp_path, progress=False)
    assert not (tmp_path/'model.safetensors').exists()


def test_batches_are_a_function_of_the_step():
    config, d = TrainConfig(**SMALL), data()
    with ThreadPoolExecutor(2) as pool:
        late = dict(batches(d, config, pool, first=4))
        seen = {step: samples for step, samples in batches(d, config, pool) if step in late}
    assert sorted(seen) == [4, 5]
    for step in late:
        for a, b in zip(late[step], seen[step], strict=True): assert all(torch.equal(a[k], b[k]) for k in a)


def test_processes_share_a_batch():
    config, d = TrainConfig(**SMALL | dict(steps=1, batch=5)), data()
    with ThreadPoolExecutor(1) as pool: whole, *parts = [next(batches(d, config, pool, 0, r, w))[1] for r, w in ((0, 1), (0, 2), (1, 2))]
    for k, sample in enumerate(whole): assert torch.equal(sample['frame2'], parts[k % 2][k//2]['frame2'])


def test_a_start_is_made_for_those_who_want_one():
    assert 'start' in make_sample(data(), TrainConfig(**SMALL), 0, 0) and 'start' not in make_sample(data(), TrainConfig(**SMALL), 0, 0, start=False)


@pytest.mark.parametrize('zoom', [0., 1.])
def test_samples_keep_the_definition_of_flow(zoom):
    "Frame 2 along the flow is frame 1, whatever was done to the pair."
    config, d, seen = TrainConfig(crop=48, noise=0., still=0., warped=.3, augment=dict(zoom_chance=zoom, asymmetric=0.)), data(), []
    x = torch.stack(torch.meshgrid(torch.arange(48.), torch.arange(48.), indexing='xy'), -1)
    for k in range(20):
        s = make_sample(d, config, 0, k, start=False)
        miss = (sample_at(s['frame2'], (x + s['flow'].permute(1, 2, 0)).numpy()) - s['frame1']).abs().mean(0)
        still = (s['frame2'] - s['frame1']).abs().mean(0)
        seen.append((miss[s['valid']].median().item(), still[s['valid']].median().item()))
    miss, still = torch.tensor(seen).T
    assert miss.median() < .02 and miss.mean() < .4*still.mean()


def test_the_best_network_is_kept_beside_the_last(tmp_path, monkeypatch):
    errors = iter([3., 1., 2.])
    monkeypatch.setattr('srflow_nb.train.validate', lambda *args: next(errors))
    log = train(TrainConfig(**SMALL), data(), tmp_path, val=data(), progress=False)
    assert [e for e in log['val_epe'] if e == e] == [3., 1., 2.]
    saved = torch.load(tmp_path/'last.pt', weights_only=True)
    assert saved['best'] == 1. and not all(torch.equal(v, weights(tmp_path/'best')[k]) for k, v in saved['net'].items())


def test_tensorboard_is_asked_for_clearly(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(InputError, match='pip install tensorboard'): train(TrainConfig(**SMALL), data(), tmp_path, progress=False, log='tensorboard')
    with pytest.raises(InputError, match='tensorboard'): train(TrainConfig(**SMALL), data(), tmp_path, progress=False, log='tensorbord')


def test_tensorboard_gets_what_the_log_gets(tmp_path, monkeypatch):
    class Board:
        seen = {}
        def __init__(self, folder, purge_step): assert purge_step is None
        def __enter__(self): return self
        def __exit__(self, *args): pass
        def add_scalar(self, name, value, step): self.seen.setdefault(name, []).append(value)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', SimpleNamespace(SummaryWriter=Board))
    log = train(TrainConfig(**SMALL), data(), tmp_path, progress=False, log='tensorboard')
    assert {k: v for k, v in log.items() if v[0] == v[0]} == Board.seen


def test_sets_are_mixed_by_their_shares(tmp_path):
    "A MixedDataset is a data set like any other."
    class Grey(WarpDataset):
        def __getitem__(self, i): return super().__getitem__(i) | dict(frame1=torch.full((3, 64, 64), .5), labels=torch.zeros(64, 64))
    mixed = MixedDataset([data(), Grey([photo('coffee')], n=2, size=64)], weights=[3, 1], length=400, seed=2)
    config = TrainConfig(**SMALL | dict(noise=0., warped=0., still=0.))
    grey = sum(make_sample(mixed, config, s, 0, start=False)['frame1'].std().item() < .01 for s in range(80))
    assert 8 <= grey <= 34
    assert len(train(config, mixed, tmp_path, progress=False)['step']) == SMALL['steps']


def test_half_precision_learns_as_well(tmp_path):
    logs = [train(TrainConfig(**SMALL, mixed_precision=p), data(), tmp_path/p, progress=False)['loss'] for p in ('no', 'bf16')]
    assert logs[0] != logs[1] and logs[1] == pytest.approx(logs[0], rel=.05)


def test_a_bad_batch_names_its_pairs(tmp_path):
    class Poisoned(WarpDataset):
        def __getitem__(self, i): return super().__getitem__(i) | (dict(frame2=torch.full((3, 64, 64), math.nan)) if i == 1 else {})
    config = TrainConfig(**SMALL | dict(steps=9, warped=0., still=0.))
    with pytest.raises(FloatingPointError, match='made from pairs'): train(config, Poisoned([photo('coffee')], n=3, size=64), tmp_path, progress=False)
    assert 1 in load_file(tmp_path/'bad_batch.safetensors')['index'].tolist()


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(s, TrainConfig(steps=100, warmup=10, lr=1.)) for s in range(100)]
    assert rates[0] == pytest.approx(.1) and max(rates) == pytest.approx(1.) and rates[-1] < .03
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(a >= b for a, b in zip(rates[10:], rates[11:]))


@pytest.mark.parametrize('name', PRESETS)
def test_presets_are_configurations(name): assert preset(name, seed=3).seed == 3


@pytest.mark.parametrize('call, words', [
    (lambda: preset('quik'), 'quick'), (lambda: TrainConfig(steps=0), 'steps is 0'), (lambda: TrainConfig(crop=50), 'multiple of 4'),
    (lambda: make_sample(data(), TrainConfig(crop=128), 0, 0), 'smaller than the crop'), (lambda: TrainConfig(ema=1.), 'ema is 1'),
    (lambda: TrainConfig(mixed_precision='fp16'), 'mixed precision')])
def test_mistakes_are_named(call, words):
    with pytest.raises(InputError, match=words): call()
