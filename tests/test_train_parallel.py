"Promises of 16_train about company: neither workers nor processes nor kills change what is learned."
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srflow_nb.core import threads
from srflow_nb.families import MODELS
from srflow_nb.train import TrainConfig, add_up, cores, train
from srflow_nb.warps import WarpDataset, photo

CONFIG = dict(steps=4, batch=4, crop=32, warmup=2, save_every=1, log_every=1, val_pairs=2, ema=.9)
SCRIPT = """
import json, sys
from srflow_nb.train import TrainConfig, train
from srflow_nb.warps import WarpDataset, photo
data = WarpDataset([photo('coffee'), photo('gravel')], n=6, size=64, seed=1)
train(TrainConfig(**json.loads(sys.argv[2])), data, sys.argv[1], val=data, progress=False)
"""


def data(size=64): return WarpDataset([photo('coffee'), photo('gravel')], n=6, size=size, seed=1)


def same(*folders):
    "Whether runs ended with the same bits: weights, average, best error, log."
    a, *others = [torch.load(f/'last.pt', weights_only=True) for f in folders]
    flat = lambda saved: {f'{part}.{k}': v for part in ('net', 'average') for k, v in saved.get(part, {}).items()}
    logs = {(f/'log.csv').read_text() for f in folders}
    return len(logs) == 1 and all(torch.equal(v, flat(b)[k]) for b in others for k, v in flat(a).items()) and all(b['best'] == a['best'] for b in others)


def launch(folder, script):
    "Start two processes that share a run, told of each other as `accelerate launch` and `torchrun` do it."
    script.write_text(SCRIPT)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).resolve().parents[1]), OMP_NUM_THREADS='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    command = [sys.executable, str(script), str(folder), json.dumps(CONFIG)]
    return [subprocess.Popen(command, env=env | dict(RANK=rank, LOCAL_RANK=rank)) for rank in '01']


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "A run of one process and one worker, never disturbed."
    out = tmp_path_factory.mktemp('unbroken')
    train(TrainConfig(**CONFIG, threads=1), data(), out, val=data(), progress=False)
    return out


def test_two_processes_learn_what_one_learns(unbroken, tmp_path):
    "Bit for bit here, for two halves of four samples are added as one process adds them; elsewhere to rounding."
    assert [p.wait(300) for p in launch(tmp_path/'two', tmp_path/'run.py')] == [0, 0]
    assert json.loads((tmp_path/'two'/'train.json').read_text())['processes'] == 2
    assert same(unbroken, tmp_path/'two')


def test_a_killed_group_goes_on_to_the_same_weights(unbroken, tmp_path):
    group, out, began = launch(tmp_path/'two', tmp_path/'run.py'), tmp_path/'two', time.time()
    while not (out/'last.pt').exists() and group[0].poll() is None and time.time() - began < 300: time.sleep(.005)
    for p in group: p.send_signal(signal.SIGKILL)
    for p in group: p.wait()
    assert 0 < torch.load(out/'last.pt', weights_only=True)['step'] < CONFIG['steps']
    train(TrainConfig(**CONFIG, threads=3), data(), out, val=data(), progress=False)
    assert same(unbroken, out)


@pytest.mark.parametrize('size', MODELS)
def test_workers_change_no_bit(size, tmp_path):
    "Whatever the network: more workers than samples, or one."
    config = TrainConfig(**dict(CONFIG, steps=1, batch=3, crop=64, size=size, iters=1))
    for n in (1, 5): train(replace(config, threads=n), data(96), tmp_path/str(n), progress=False)
    assert same(tmp_path/'1', tmp_path/'5')


@pytest.mark.parametrize('n', [1, 2, 3, 4, 7, 8])
def test_each_half_of_a_batch_can_be_added_elsewhere(n):
    parts = [dict(x=torch.randn(1000)*10**k) for k in range(n)]
    assert torch.allclose(add_up(parts)['x'], sum(p['x'].double() for p in parts).float(), rtol=1e-4)
    if n > 1: assert torch.equal(add_up(parts)['x'], add_up(parts[::2])['x'] + add_up(parts[1::2])['x'])


def test_a_guard_around_training_does_not_take_its_workers_away():
    before = cores()
    with threads(1): assert cores() == before


def test_the_average_is_what_is_handed_out(unbroken):
    saved, handed = torch.load(unbroken/'last.pt', weights_only=True), load_file(unbroken/'model.safetensors')
    assert all(torch.equal(handed[k], v) for k, v in saved['average'].items()) and not all(torch.equal(handed[k], v) for k, v in saved['net'].items())
