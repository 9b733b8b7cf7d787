"What performances promise: curves that start and end at rest, sizes from the mixture, the same seed the same motion."
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.head import ACTION_UNITS, Head, rotation_matrix
from srflow_nb.motion import (MIXTURE, NECK, Performance, add_blink, around_neck, au_expression, envelope, facs_expression, find_aus, gaze, micro_expression, nod,
                              random_performance, sway, talking, turn)


def test_envelope_is_zero_at_the_ends_one_at_the_apex_and_monotone_between():
    e = envelope(50, 5, 20, 40)
    assert (e[:6] == 0).all() and e[20] == 1 and (e[40:] == 0).all() and (np.diff(e[5:21]) > 0).all() and (np.diff(e[20:41]) < 0).all()
    with pytest.raises(InputError, match='onset'): envelope(50, 20, 20, 40)


@pytest.mark.parametrize('seed', range(25))
def test_micro_expressions_are_short_and_rest_outside(seed):
    p = micro_expression({4: 1., 7: .5}, frames=40+seed*4, fps=200, seed=seed)
    assert 0 <= p.onset < p.apex < p.offset < len(p) and (p.offset-p.onset)/p.fps <= .5
    assert (p.expression[:p.onset+1] == 0).all() and (p.expression[p.offset:] == 0).all()
    assert p.expression.sum(1).argmax() == p.apex and np.abs(p.head_pose[0]).max() == 0


def test_micro_expression_keeps_the_times_it_is_given_and_refuses_long_ones():
    p = micro_expression({12: 1.}, frames=80, onset=10, apex=33, offset=70); assert (p.onset, p.apex, p.offset) == (10, 33, 70)
    with pytest.raises(InputError, match='0.5 s'): micro_expression({12: 1.}, frames=300, onset=0, apex=100, offset=250)
    with pytest.raises(InputError): micro_expression({12: 1.}, frames=3)


def test_asymmetry_is_between_the_sides_and_can_be_switched_off():
    left, right = (list(Head.load().unit_names).index(f'mouthSmile{s}') for s in ('Left', 'Right'))
    even, uneven = (micro_expression({12: 1.}, asymmetry=a, seed=3) for a in (0, .5))
    assert np.allclose(even.expression[:, left], even.expression[:, right]) and not np.allclose(uneven.expression[:, left], uneven.expression[:, right])


def test_blink_closes_both_eyes_and_opens_them_again():
    e = add_blink(np.zeros((40, 52)), 15, 30.); lids = [list(Head.load().unit_names).index(f'eyeBlink{s}') for s in ('Left', 'Right')]
    assert (e[15, lids] == 1).all() and (e[[0, -1]] == 0).all() and np.delete(e, lids, 1).sum() == 0


@pytest.mark.parametrize('kind', list(MIXTURE))
def test_random_performances_stay_within_the_sizes_of_the_mixture(kind):
    head, m = Head.load(), MIXTURE[kind]; face = np.array([not n.startswith('eye') for n in head.unit_names])      # blinks and gaze have a speed of their own
    for s in range(12):
        p = random_performance(s, frames=40, kind=kind); assert p.name == kind and 0 <= p.expression.min() and p.expression.max() <= 1
        moved = np.linalg.norm(np.einsum('tk,kvc->tvc', np.diff(p.expression[:, face], axis=0), head.units[face]), axis=2).max(1)
        turned = np.degrees(np.linalg.norm(np.diff(p.head_pose[:, :3], axis=0), axis=1)); neck = np.diff(p.head_pose[:, 3:]-around_neck(p.head_pose[:, :3])[:, 3:], axis=0)
        assert moved.max() <= m.expression[1]*1.01 and turned.max() <= m.turn[1]*1.01 and np.linalg.norm(neck, axis=1).max() <= m.shift*1.01
        assert kind == 'eyes' or moved.max() > .1*m.expression[0]


@pytest.mark.parametrize('kind', list(MIXTURE))
@pytest.mark.parametrize('fps', [24, 60, 200])
def test_one_motion_however_often_it_is_sampled_and_however_long(kind, fps):
    for s in range(3):
        fine, coarse, short = random_performance(s, 8*6+1, 8*fps, kind=kind), random_performance(s, 7, fps, kind=kind), random_performance(s, 2, fps, kind=kind)
        for a in ('expression', 'head_pose'):
            np.testing.assert_allclose(getattr(fine, a)[::8], getattr(coarse, a), atol=1e-5); np.testing.assert_allclose(getattr(short, a), getattr(coarse, a)[:2], atol=1e-5)


def test_a_moment_between_two_frames_lies_between_them():
    p = random_performance(1, 5, kind='both')
    for got, want in zip(p.at(1.25), (.75*p.expression[1]+.25*p.expression[2], .75*p.head_pose[1]+.25*p.head_pose[2])): np.testing.assert_allclose(got, want, atol=1e-6)
    for t, i in ((-.4, 0), (0, 0), (4., 4), (9., 4)): np.testing.assert_allclose(p.at(t)[0], p.expression[i], atol=1e-6)
    assert np.allclose(random_performance(1, 1).at(.3)[1], random_performance(1, 1).head_pose[0])


def test_action_units_of_a_performance_rebuild_its_symmetric_expression():
    p = facs_expression({6: .5, 12: .9}, start={1: .7, 4: .3}, end={15: .6}, asymmetry=0., seed=2)
    np.testing.assert_allclose(au_expression(p.action_units), p.expression, atol=1e-6)
    for seed in range(4):
        p = random_performance(seed, 20, kind='expression'); assert all(a.shape == (20,) and a.min() >= 0 and a.max() <= 1 for a in p.action_units.values())
    blink = next(p for p in (random_performance(s, 60, kind='eyes') for s in range(9)) if 45 in p.action_units)
    lids = blink.expression[:, Head.load().unit_names.index('eyeBlinkLeft')]; assert lids.max() == pytest.approx(blink.action_units[45].max(), abs=.05) or lids.max() == 1


@pytest.mark.parametrize('seed', range(8))
def test_action_units_are_found_again(seed):
    g = np.random.default_rng(seed); known = [k for k in ACTION_UNITS if k not in (26, 27, 43, 45)]
    aus = {int(k): g.uniform(.1, .3, 3).astype(np.float32) for k in g.choice(known, 3, replace=False)}
    e = au_expression(aus); found = find_aus(e)
    np.testing.assert_allclose(au_expression(found), e, atol=1e-4)
    for k in set(aus) & set(found): assert found[k].max() <= 1
    assert find_aus(np.zeros((3, 52))) == {}


def test_a_side_counts_as_its_action_unit():
    p = facs_expression({'12R': .5, '14L': .8}, seed=1); names = list(Head.load().unit_names)
    assert sorted(p.action_units) == [12, 14] and p.action_units[12].max() == pytest.approx(.5) and p.expression[:, names.index('mouthSmileLeft')].max() == 0


def test_macro_expressions_rest_stay_and_rest_again():
    p = facs_expression({12: .8}, 60, onset=5, apex=20, release=35, offset=50, asymmetry=0, stagger=0); a = p.action_units[12]
    assert (a[:6] == 0).all() and np.allclose(a[20:36], .8) and (a[50:] == 0).all() and (p.onset, p.apex, p.offset) == (5, 20, 50)
    with pytest.raises(InputError, match='onset < apex'): facs_expression({12: .8}, 60, onset=30, apex=20)


def test_heads_turn_on_their_necks():
    for pose in (nod(50, 25., 12.), nod(50, 25., 12., axis=1), turn(50, 25., (10, 40, -5))):
        R = rotation_matrix(torch.from_numpy(pose[:, :3])); neck = torch.tensor(NECK)
        np.testing.assert_allclose((R@neck).numpy()+pose[:, 3:], np.tile(NECK, (50, 1)), atol=1e-6); assert (pose[0] == 0).all()
    assert (nod(50, 25.)[-1] == 0).all() and np.degrees(np.abs(nod(200, 100., 12.)[:, 0]).max()) == pytest.approx(11, abs=1.2)


def test_eyes_jump_fast_and_rest_at_their_targets():
    left = gaze(400, 1000., [(.1, 10., 0)])[61]; moving = (np.diff(left) > 1e-6).sum()
    assert moving == pytest.approx(21+22, abs=3) and (left[:100] == 0).all() and np.ptp(left[160:]) < 1e-6
    assert gaze(10, 25., [(0, -5., 0)])[61].max() == 0 < gaze(10, 25., [(0, -5., 0)])[62].max()


def test_same_seed_same_motion_whatever_the_kind_drawn():
    for make in (random_performance, lambda s: talking(30, seed=s)):
        a, b, c = make(4), make(4), make(5)
        assert (a.expression == b.expression).all() and (a.head_pose == b.head_pose).all() and not np.array_equal(a.head_pose, c.head_pose)


def test_all_kinds_are_drawn_with_their_share():
    names = [random_performance(s).name for s in range(300)]
    for k, m in MIXTURE.items(): assert abs(names.count(k)/300-m.share) < .1
    assert sum(m.share for m in MIXTURE.values()) == pytest.approx(1)


def test_talking_moves_smoothly_and_sway_has_the_size_asked_for():
    p = talking(200, 25., 1); assert 0 <= p.expression.min() and p.expression.max() <= 1
    jaw = p.expression[:, list(Head.load().unit_names).index('jawOpen')]; assert jaw.std() > .02 and np.abs(np.diff(jaw)).max() < .4
    x = np.concatenate([sway(400, 25, np.random.default_rng(s), 2., .003) for s in range(20)])
    assert np.degrees(x[:, :3].std()) == pytest.approx(2, rel=.35) and x[:, 3:].std() == pytest.approx(.003, rel=.35)


def test_performance_refuses_what_does_not_fit():
    with pytest.raises(InputError, match='expected'): Performance(np.zeros((3, 51)), np.zeros((3, 6)))
    with pytest.raises(InputError, match='NaN'): Performance(np.full((3, 52), np.nan), np.zeros((3, 6)))
