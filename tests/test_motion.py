"What performances promise: curves that start and end at rest, sizes from the mixture, the same seed the same motion."
import numpy as np
import pytest

from srflow_nb.core import InputError
from srflow_nb.head import Head
from srflow_nb.motion import MIXTURE, Performance, add_blink, envelope, micro_expression, random_performance, sway, talking


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
    head, m = Head.load(), MIXTURE[kind]
    for s in range(15):
        p = random_performance(s, frames=5, kind=kind); assert p.name == kind and 0 <= p.expression.min() and p.expression.max() <= 1
        moved = np.linalg.norm(np.einsum('tk,kvc->tvc', np.diff(p.expression, axis=0), head.units), axis=2).max(1)
        turned = np.degrees(np.linalg.norm(np.diff(p.head_pose[:, :3], axis=0), axis=1)); shifted = np.linalg.norm(np.diff(p.head_pose[:, 3:], axis=0), axis=1)
        assert moved.max() <= m.expression[1]*1.01 and turned.max() <= m.turn[1]*1.01 and shifted.max() <= m.shift*1.01


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
