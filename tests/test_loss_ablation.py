"The loss ablation: what its columns measure, that variants are compared on equal terms, that a kill costs nothing, and what its file promises."
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from srflow_nb.core import rng
from srflow_nb.train import train

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench(monkeypatch, tmp_path):
    "The script as a module, working in a folder of its own."
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    module = importlib.import_module('loss_ablation')
    monkeypatch.setattr(module, 'WORK', tmp_path)
    return module


def grey(a): return torch.from_numpy(np.asarray(a, np.float32)).expand(3, -1, -1)


def noise(*shape, key=0): return rng(0, 'ablation', key).normal(size=shape)


def pairs(n=3, size=64):
    "Frames of noise in which a disc moves by half a pixel to the right."
    y, x = np.mgrid[:size, :size]
    mask = torch.from_numpy(np.hypot(x-size/2, y-size/2) < size/3)
    flow = torch.zeros(2, size, size); flow[0, mask] = .5
    frame = lambda i: torch.nn.functional.avg_pool2d(grey(.5+.2*noise(size, size, key=i))[None], 3, 1, 1)[0]
    return [dict(frame1=frame(i), frame2=frame(i), flow=flow, valid=torch.ones_like(mask), mask=mask, labels=mask.long(), occlusion=torch.zeros_like(mask)) for i in range(n)]


# ---- columns -----------------------------------------------------------------------------------------------------

def test_repetition_is_seen_and_a_single_edge_or_grain_is_not(bench):
    y, x = np.mgrid[:96, :96]
    inner = (slice(30, 66),)*2
    assert (bench.second_peak(grey(.5+.2*np.sin(2*np.pi*x/12)*np.sin(2*np.pi*y/14)))[inner] > bench.PEAK).float().mean() > .95
    for a in (.5+.2*noise(96, 96), .5+.001*noise(96, 96), np.full((96, 96), .4), .3+.4*(np.hypot(x-48, y-48) < 14)):
        assert (bench.second_peak(grey(a))[inner] > bench.PEAK).float().mean() < .1


def test_texture_less_means_less_than_two_grey_levels_a_pixel(bench):
    y, x = np.mgrid[:40, :40]
    ramp = lambda levels: bench.texture_less(grey(.1+levels*x/255))[8:-8, 8:-8]
    assert ramp(1.8).all() and not ramp(2.2).any()


def test_high_frequency_is_what_a_blur_takes_away(bench):
    mask = torch.zeros(40, 40, dtype=torch.bool); mask[5:35, 5:35] = True
    offset = torch.where(mask, torch.tensor([3., -4.]).view(2, 1, 1), 77.)              # a huge error outside the mask does not leak in
    assert bench.high_frequency(offset, mask)[mask].max() < 1e-4
    y, x = np.mgrid[:40, :40]
    checkers = torch.from_numpy(np.stack([(-1.)**(x+y)*.3, (-1.)**(x+y)*.4])).float()
    assert bench.high_frequency(checkers, mask)[15:25, 15:25].mean() == pytest.approx(.5, abs=.01)
    assert (bench.high_frequency(checkers, mask)[~mask] == 0).all()


def test_columns_by_hand(bench):
    p = pairs(1)[0]
    where = bench.regions(p)
    flow = p['flow'].clone(); flow[0, ~p['mask']] += 2.; flow[1, p['mask']] += .25
    got, pixels = bench.measure([flow], [p], [where])
    assert got['skin'] == pytest.approx(.25) and got['static'] == pytest.approx(2.) and got['high_frequency'] < 1e-4
    assert got['over1'] == pytest.approx(100*(~p['mask']).float().mean().item()) and got['over3'] == 0
    assert pixels['skin'] == p['mask'].sum() and pixels['static'] < (~p['mask']).sum()      # one pixel of boundary is left out


def test_textures_hold_repetition_and_their_flow_is_left_out_of_face_columns(bench):
    brick, cloth = bench.textures(quick=True)
    for p in (brick, cloth):
        where = bench.regions(p)
        assert where['repetitive'].float().mean() > .4
        assert not any(where[k].any() for k in ('skin', 'flat', 'static', 'everywhere'))


# ---- equal terms -------------------------------------------------------------------------------------------------

def recipes(bench, steps=3, variants=('none', 'sobel')): return {v: bench.TrainConfig(size='tiny', steps=steps, batch=2, crop=32, iters=2, loss=bench.VARIANTS[v], seed=5) for v in variants}


def weights(net): return torch.cat([w.detach().flatten() for w in net.parameters()])


def test_recipes_differ_in_the_loss_alone(bench):
    base = vars(bench.recipe('none', 1, False))
    for v in bench.VARIANTS: assert {k for k, x in vars(bench.recipe(v, 1, False)).items() if x != base[k]} == (set() if v == 'none' else {'loss'})
    assert list(bench.VARIANTS) == ['none', 'mask', 'difference', 'sobel', 'tv', 'flow_difference', 'all']
    switched = {v: {k for k in bench.OFF if w.get(k)} for v, w in bench.VARIANTS.items()}
    assert switched['none'] == set() and switched['all'] == {'mask', 'gradient', 'tv', 'flow_difference'} and all(len(switched[v]) == 1 for v in bench.TERMS)


def test_the_same_loss_gives_the_same_net_and_another_loss_another(bench, tmp_path):
    c = recipes(bench)
    nets = bench.train_together(dict(a=c['none'], b=c['none'], c=c['sobel']), pairs(), 1, tmp_path)
    assert torch.equal(weights(nets['a']), weights(nets['b'])) and not torch.equal(weights(nets['a']), weights(nets['c']))


def test_a_step_is_the_step_of_the_training_loop(bench, tmp_path):
    c = recipes(bench, steps=2)['none']
    (tmp_path/'together').mkdir()
    ours = bench.train_together(dict(none=c), pairs(), 1, tmp_path/'together')['none']
    train(c, pairs(), tmp_path/'train', progress=False)
    theirs = bench.new_run(c).net
    begin = weights(theirs)
    theirs.load_state_dict(torch.load(tmp_path/'train/last.pt', weights_only=True)['net'])
    assert (weights(ours)-weights(theirs)).norm() < .02*(weights(theirs)-begin).norm()       # equal but for the order of sums


def test_going_on_after_a_kill_gives_the_same_nets(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'SAVE_EVERY', 1)
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    whole.mkdir(); cut.mkdir()
    unbroken = bench.train_together(recipes(bench), pairs(), 1, whole)
    save, saved = bench.save_checkpoint, []
    def dies(path, *args):
        if len(saved) == 2: raise KeyboardInterrupt                                           # between the files of two variants
        saved.append(path); save(path, *args)
    monkeypatch.setattr(bench, 'save_checkpoint', dies)
    with pytest.raises(KeyboardInterrupt): bench.train_together(recipes(bench), pairs(), 1, cut)
    monkeypatch.setattr(bench, 'save_checkpoint', save)
    again = bench.train_together(recipes(bench), pairs(), 1, cut)
    assert all(torch.equal(weights(unbroken[v]), weights(again[v])) for v in unbroken)


def test_another_recipe_or_network_is_never_taken_for_this_one(bench, monkeypatch):
    key = lambda: bench.fingerprint({v: bench.recipe(v, 0, True) for v in bench.VARIANTS}, True)
    first = key()
    assert key() == first
    monkeypatch.setattr(bench, 'GATE', .5); assert key() != first
    monkeypatch.undo(); monkeypatch.setattr(bench, 'CODE', ['another network']); assert key() != first


# ---- the table ---------------------------------------------------------------------------------------------------

def runs(bench): return {v: [{c: (1.+.1*s)*(.8 if v == 'mask' else 1.) for c in bench.COLUMNS} for s in range(3)] for v in bench.VARIANTS}


def test_interval_is_students(bench):
    assert bench.interval([1, 2, 3]) == pytest.approx((2., 4.302653*3**-.5), rel=1e-5)


def test_rows_and_bars_say_what_fell(bench):
    rows = bench.table(runs(bench))
    assert {(r['variant'], r['column']) for r in rows} == {(v, c) for v in bench.VARIANTS for c in bench.COLUMNS}
    row = next(r for r in rows if (r['variant'], r['column']) == ('mask', 'static'))
    assert row['fall'] == pytest.approx(.2) and row['change'] == pytest.approx(-.22) and row['values'] == pytest.approx([.8, .88, .96])
    bars = bench.claims(rows)
    assert bars['mask_static_vs_none']['met'] and bars['mask_static_vs_none']['value'] == pytest.approx(.2)
    low, high = bars['mask_static_vs_none']['interval']
    assert low < .2 < high and low == pytest.approx((.22-row['change_half'])/1.1, abs=1e-3)
    assert not bars['all_static_vs_none']['met'] and bars['all_static_vs_none']['value'] == 0       # no fall is a miss


def test_the_committed_result_holds_every_variant_column_and_bar(bench):
    path = ROOT/'benchmarks/results/loss_ablation.json'
    assert path.exists(), 'python benchmarks/loss_ablation.py writes it'
    r = json.loads(path.read_text())
    assert {(x['variant'], x['column']) for x in r['rows']} == {(v, c) for v in bench.VARIANTS for c in bench.COLUMNS}
    assert len(r['seeds']) >= 3 and all(len(x['values']) == len(r['seeds']) for x in r['rows']) and not r['quick']
    assert r['bars'] == json.loads(json.dumps(bench.claims(r['rows']))) and r['weights'] == bench.VARIANTS
    assert set(r['pictures']['errors']) == set(bench.VARIANTS) and path.stat().st_size < 200_000
