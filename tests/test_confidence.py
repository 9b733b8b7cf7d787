"Promises of 14d_confidence: the flow stays the trunk's, error bars have the right units, a head fits one trunk, measures are right."
import importlib.util, json, subprocess, sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from srflow_nb.confidence import (CLUES, COVER, ConfidenceHead, ause, clues, confidence_loss, crowding, fingerprint, fit_temperature, load_confidence,
                                  occlusion_scores, reliability, save_confidence, share_below, sparsification, surprise)
from srflow_nb.core import InputError, data_path, rng
from srflow_nb.model import SRFlowNet
from srflow_nb.warps import photo, photo_pairs

LEVELS = np.linspace(.05, .95, 19)


@pytest.fixture(scope='module')
def pair(): return photo_pairs(photo('astronaut'), n=1, size=96, seed=7, motion=(1.5, 2.))[0]


def scrambled(seed):
    "An untrained trunk with a head, both with weights that do something."
    torch.manual_seed(seed)
    net = SRFlowNet('tiny')
    with torch.no_grad():
        for p in net.parameters(): p.add_(.03*torch.randn_like(p))
    return ConfidenceHead(net.eval())


@pytest.fixture(scope='module')
def head(): return scrambled(0)


def law(share, sigma, tail): return sigma*np.sqrt(((1 - share)**(-2/tail) - 1)/((1 - COVER)**(-2/tail) - 1))


# ---- the head -------------------------------------------------------------------------------------------------------

def test_the_flow_is_the_trunks_to_the_last_bit_before_and_after_training(head, pair):
    a, b = pair['frame1'][None], pair['frame2'][None]
    before, weights = head.trunk.estimate(a, b), fingerprint(head.trunk)
    assert torch.equal(head.estimate(a, b)[0], before)
    _, features, maps = head.read_trunk(a, b)
    optimizer = torch.optim.SGD(head.parameters(), .1)
    confidence_loss(*head.judge(features, maps), torch.rand(1, 96, 96), torch.rand(1, 96, 96) > .9, torch.ones(1, 96, 96) > 0, head.judge.tail).backward()
    optimizer.step()
    assert torch.equal(head.estimate(a, b)[0], before) and torch.equal(head.trunk.estimate(a, b), before) and fingerprint(head.trunk) == weights
    assert all(p.grad is None for p in head.trunk.parameters())


def test_every_weight_of_the_head_is_trained_and_none_of_the_trunk_is_part_of_it(pair):
    head = scrambled(1)
    _, features, maps = head.read_trunk(pair['frame1'][None], pair['frame2'][None])
    confidence_loss(*head.judge(features, maps), torch.rand(1, 96, 96), torch.rand(1, 96, 96) > .9, torch.rand(1, 96, 96) > .5, head.judge.tail).backward()
    assert all(p.grad.abs().max() > 0 for p in head.parameters())
    assert not set(head.state_dict()) & set(head.trunk.state_dict()) and sum(p.numel() for p in head.parameters()) < 75_000


@pytest.mark.parametrize('size', [(4, 4), (5, 7), (33, 64), (61, 47)])
def test_any_size_goes_in_and_one_answer_for_every_pixel_comes_out(head, size):
    flow, sigma, hidden = head.estimate(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert flow.shape == (2, 2, *size) and sigma.shape == hidden.shape == (2, *size)
    assert sigma.min() > 0 and hidden.min() >= 0 and hidden.max() <= 1 and sigma.isfinite().all()


@pytest.mark.parametrize('levels', [(0., 0.), (.5, .5), (0., 1.), (1., 1.)])
def test_pictures_without_texture_give_no_nan(head, levels):
    a, b = (torch.full((1, 3, 40, 44), v) for v in levels)
    assert all(x.isfinite().all() for x in head.estimate(a, b))


def test_pairs_do_not_see_their_neighbours_in_the_batch(head, pair):
    a, b = pair['frame1'][None], pair['frame2'][None]
    for one, two in zip(head.estimate(a, b), head.estimate(torch.cat([a, b]), torch.cat([b, a]))): torch.testing.assert_close(one[0], two[0], atol=1e-4, rtol=1e-4)


def test_frames_of_different_size_are_refused(head):
    with pytest.raises(InputError, match='different size'): head.estimate(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 44))


# ---- files ----------------------------------------------------------------------------------------------------------

def test_a_saved_head_answers_the_same(head, pair, tmp_path):
    a, b = pair['frame1'][None], pair['frame2'][None]
    head.trunk.save_pretrained(tmp_path); save_confidence(head, tmp_path/'confidence.safetensors')
    for one, two in zip(head.estimate(a, b), ConfidenceHead.from_pretrained(tmp_path).estimate(a, b)): torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    assert (tmp_path/'confidence.safetensors').stat().st_size < 300_000


def test_another_trunk_is_refused_in_one_line(head, tmp_path):
    save_confidence(head, tmp_path/'c.safetensors')
    other = SRFlowNet('tiny'); other.load_state_dict(head.trunk.state_dict())
    load_confidence(tmp_path/'c.safetensors', other)
    p = next(other.parameters())
    with torch.no_grad(): p[(0,)*p.ndim] += 1e-6
    with pytest.raises(InputError, match=r"made for SRFlowNet\('tiny'\).*train_confidence") as e: load_confidence(tmp_path/'c.safetensors', other)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('content', [b'', b'nothing of the kind', 'without a note'])
def test_a_file_that_holds_something_else_is_refused(head, tmp_path, content):
    file = tmp_path/'c.safetensors'
    if isinstance(content, bytes): file.write_bytes(content)
    else: save_file({'x': torch.zeros(1)}, file)
    with pytest.raises(InputError, match='c.safetensors'): load_confidence(file, head.trunk)


def test_a_missing_file_is_named(head, tmp_path):
    with pytest.raises(FileNotFoundError, match='confidence.safetensors'): load_confidence(tmp_path/'confidence.safetensors', head.trunk)


def test_the_fingerprint_sees_every_weight_and_nothing_else():
    a, b = SRFlowNet('tiny'), SRFlowNet('tiny')
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b) == fingerprint(a.train()) and len(fingerprint(a)) == 64
    for p in b.parameters():
        last, was = (-1,)*p.ndim, p.detach().clone()
        with torch.no_grad(): p[last] += 1.
        assert fingerprint(a) != fingerprint(b)
        with torch.no_grad(): p.copy_(was)


def test_the_shipped_head_fits_the_shipped_trunk_and_its_card():
    head, card = ConfidenceHead.from_pretrained('tiny'), json.loads(data_path('srflownet-tiny-confidence.json').read_text())
    assert card['trunk_sha256'] == fingerprint(head.trunk) and card['parameters'] == sum(p.numel() for p in head.parameters())
    assert abs(card['temperature'] - head.judge.temperature.item()) < 1e-3
    assert data_path('srflownet-tiny-confidence.safetensors').stat().st_size < 300_000
    rows = card['metrics']
    assert rows['heads']['ause'] < min(rows['heads']['ause_roundtrip'], rows['heads']['ause_flat'])
    assert rows['heads']['calibration_error'] < .1
    assert all(row['hidden_ap'] > 5*row['hidden_share'] for row in rows.values())            # far better than guessing everywhere,
    assert rows['photograph']['hidden_ap'] > rows['photograph']['hidden_ap_roundtrip']       # and ahead of two passes where everything moves


def test_the_shipped_head_doubts_what_has_no_counterpart(pair):
    a, b = pair['frame1'][None], pair['frame2'][None].clone()
    head = ConfidenceHead.from_pretrained('tiny')
    before = head.estimate(a, b)[1]
    b[..., 30:66, 30:66] = torch.from_numpy(rng(0).random((3, 36, 36), dtype=np.float32))
    after = head.estimate(a, b)[1]
    assert after[0, 36:60, 36:60].median() > 2*before[0, 36:60, 36:60].median()


# ---- clues ----------------------------------------------------------------------------------------------------------

def test_arrows_that_meet_crowd_each_other():
    flow = torch.zeros(1, 2, 5, 12); flow[0, 0, :, 0:4] = 4.       # four columns land on four others
    assert torch.equal(crowding(flow)[0, 0], torch.tensor([2.]*8 + [1.]*4).expand(5, 12))


def test_arrows_that_leave_crowd_nobody():
    flow = torch.full((1, 2, 6, 6), 100.)
    assert crowding(flow).isfinite().all() and crowding(flow).max() == 0


def test_a_smooth_flow_keeps_the_number_of_claims():
    flow = .3*torch.from_numpy(rng(3).standard_normal((1, 2, 1, 1), dtype=np.float32)).expand(1, 2, 20, 24)
    torch.testing.assert_close(crowding(flow)[..., 3:-3, 3:-3], torch.ones(1, 1, 14, 18), atol=1e-5, rtol=0)


def test_there_is_one_map_for_every_clue(pair):
    maps = clues(pair['frame1'][None], pair['frame2'][None], pair['flow'][None])
    assert maps.shape == (1, len(CLUES), 96, 96) and maps.isfinite().all()


def test_the_true_flow_looks_better_than_a_wrong_one(pair):
    a, b, true = (pair[k][None] for k in ('frame1', 'frame2', 'flow'))
    right, wrong = (clues(a, b, f)[0, :4].mean((1, 2)) for f in (true, true + 2.))
    assert (right < wrong).all()


# ---- the law and the measures -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('tail', [1.2, 3., 30.])
def test_sigma_covers_what_it_is_said_to_cover(tail):
    sigma = torch.tensor([.01, .5, 20.], dtype=torch.float64)
    torch.testing.assert_close(share_below(sigma, sigma, tail), torch.full((3,), COVER, dtype=torch.float64))
    assert share_below(torch.zeros(1), torch.ones(1), tail) == 0 and share_below(torch.tensor(1e6), torch.tensor(1.), tail) > .999


@pytest.mark.parametrize('tail', [1.2, 3., 30.])
def test_surprise_is_smallest_for_the_true_scale(tail):
    errors = torch.from_numpy(law(rng(5).random(100_000), .7, tail))
    costs = {s: surprise(errors, torch.full_like(errors, s), tail).mean() for s in (.5, .6, .7, .8, 1.)}
    assert min(costs, key=costs.get) == .7


@pytest.mark.parametrize('tail', [1.2, 3., 30.])
def test_a_head_that_tells_the_truth_is_on_the_diagonal(tail):
    g = rng(6)
    sigma = g.lognormal(size=100_000)
    error = law(g.random(100_000), sigma, tail)
    found = [reliability(torch.from_numpy(error), torch.from_numpy(c*sigma), tail, LEVELS) for c in (1., .5, 2.)]
    np.testing.assert_allclose(found[0], LEVELS, atol=.01)
    assert (found[1] < LEVELS).all() and (found[2] > LEVELS).all()


@pytest.mark.parametrize('factor', [.2, 1., 7.])
def test_temperature_undoes_a_wrong_scale(factor):
    g = rng(7)
    sigma = g.lognormal(size=100_000)
    error = law(g.random(100_000), factor*sigma, 2.)
    assert abs(fit_temperature(torch.from_numpy(error), torch.from_numpy(sigma))/factor - 1) < .02


def test_sparsification_by_hand():
    np.testing.assert_allclose(sparsification([1., 2., 3., 6.], [1., 2., 3., 4.], steps=4), [1., 2/3, 1.5/3, 1/3])
    np.testing.assert_allclose(sparsification([1., 2., 3., 6.], [4., 3., 2., 1.], steps=4), [1., 11/3/3, 1.5, 2.])


def test_the_oracle_has_no_area_and_the_order_alone_counts():
    e = rng(8).exponential(size=5000)
    assert ause(e, e) == 0 and ause(e, np.log(e)) == 0 and ause(e, 1e3*e**2) == 0
    noisy = [ause(e, e + s*rng(9).standard_normal(5000)) for s in (.1, 1., 10.)]
    assert 0 < noisy[0] < noisy[1] < noisy[2] < ause(e, -e)


def test_no_error_at_all_is_no_reason_for_nan(): assert ause(np.zeros(10), np.arange(10.)) == 0


def test_occlusion_scores_by_hand():
    found = occlusion_scores(np.array([.9, .8, .6, .1]), np.array([True, False, True, False]))
    assert found['precision'] == pytest.approx(2/3) and found['recall'] == 1 and found['share'] == .5
    assert found['average_precision'] == pytest.approx(.5*1 + .5*2/3)


def test_pixels_of_unknown_error_are_left_out():
    error = torch.rand(1, 8, 8); error[0, :4] = torch.nan
    sigma, hidden, occlusion, mask = torch.rand(1, 8, 8).add(.1).requires_grad_(), torch.zeros(1, 8, 8), torch.zeros(1, 8, 8) > 0, torch.zeros(1, 8, 8) > 0
    confidence_loss(sigma, hidden, error, occlusion, mask, torch.tensor(3.)).backward()
    assert sigma.grad.isfinite().all() and sigma.grad[0, :4].abs().max() == 0 and sigma.grad[0, 4:].abs().min() > 0


# ---- the tool -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def tool(root):
    spec = importlib.util.spec_from_file_location('train_confidence', root/'tools/train_confidence.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def test_crops_of_features_and_pixels_show_the_same_place(tool):
    fine = torch.arange(40.)[:, None]*100 + torch.arange(60.)
    sample = dict(features=fine[::4, ::4][None, None], maps=fine[None, None], error=fine[None], occlusion=fine[None], mask=fine[None])
    cut = tool.crop(sample, rng(1), 16)
    assert cut['maps'].shape == (1, 1, 16, 16) and torch.equal(cut['maps'][0, :, ::4, ::4], cut['features'][0]) and torch.equal(cut['error'], cut['maps'][:, 0])


def test_nobody_is_in_both_halves_of_the_test_people(tool):
    from types import SimpleNamespace
    split = SimpleNamespace(items=[(f'person_{i//2}', i % 2, '.flo') for i in range(10)])
    even, odd = tool.by_person(split, 0), tool.by_person(split, 1)
    assert sorted(even + odd) == list(range(10)) and even == [0, 1, 4, 5, 8, 9]


def test_the_tool_says_what_it_needs(root):
    run = subprocess.run([sys.executable, root/'tools/train_confidence.py'], capture_output=True, text=True)
    assert run.returncode == 2 and '--data' in run.stderr and '--work' in run.stderr
