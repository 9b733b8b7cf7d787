"Benchmark: places and bins by hand, honest intervals, the same scores in any number of processes, the worst case first."
import math
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from srflow_nb.benchmark import (BINS, benchmark_flow, benchmark_table, bin_scores, bootstrap_people, case_picture, edge_band, fall_interval,
                                 interval_table, one_thread, paired_interval, plain_table, region_scores, score_pair, speed_figure, time_estimator,
                                 worst_pairs)
from srflow_nb.core import InputError, rng
from srflow_nb.estimators import get_estimator


def pair(seed=0, size=48, name=None):
    "A square face on a still wall, moved by (2, 1) px."
    g = rng(seed, 'test')
    frame = torch.from_numpy(cv2.GaussianBlur(g.random((size, size, 3), dtype=np.float32), (0, 0), 1.5)).permute(2, 0, 1)
    labels = torch.zeros(size, size, dtype=torch.uint8)
    labels[12:36, 12:36] = 1; labels[16:20, 16:24] = 3
    flow = torch.where(labels > 0, torch.tensor([2., 1.]).view(2, 1, 1), 0.)
    occlusion = torch.zeros(size, size, dtype=torch.bool); occlusion[:, 36:38] = True
    item = dict(frame1=frame, frame2=frame.roll((1, 2), (1, 2)), flow=flow, valid=torch.ones_like(occlusion), mask=labels > 0, labels=labels, occlusion=occlusion)
    return item | (dict(name=name) if name else {})


def scores(**models):
    "Made-up scores: model -> {pair: epe}."
    return pd.DataFrame([dict(model=m, pair=p, epe=e) for m, pairs in models.items() for p, e in pairs.items()])


# ---- places and bins ---------------------------------------------------------------------------------------------

def test_the_band_is_as_wide_as_it_says():
    y, x = np.mgrid[:80, :80] + .5
    r = np.hypot(x - 40, y - 40)
    band = edge_band(torch.from_numpy(r < 25), 5).numpy()
    assert band[(r > 21) & (r < 29)].all() and not band[(r < 19) | (r > 31)].any()


@pytest.mark.parametrize('value', [False, True])
def test_a_picture_without_an_edge_has_no_band(value): assert not edge_band(torch.full((9, 9), value)).any()


def test_regions_by_hand():
    item = pair()
    error = torch.where(item['labels'] == 3, 7., torch.where(item['labels'] == 1, 2., .5))[None]
    found = region_scores(error, item)
    assert found['epe_skin'] == 2. and found['epe_eyes'] == 7. and found['epe_background'] == .5 and 'epe_mouth' not in found
    assert found['epe_hidden'] == .5 and .5 < found['epe_boundary'] < 7.


def test_what_a_pair_does_not_have_is_left_out():
    item = {k: v for k, v in pair().items() if k not in ('labels', 'occlusion')}
    assert set(region_scores(torch.zeros(1, 48, 48), item)) == {'epe_boundary'}
    assert 'epe_skin' not in score_pair(item, get_estimator('zero'))


def test_each_face_pixel_is_in_one_bin():
    length = torch.tensor([0., .1, .25, .9, 1., 3.9, 4., 15., 16., 300.])
    item = dict(flow=torch.stack([length, 0*length])[:, None], mask=torch.ones(1, 10, dtype=torch.bool))
    error = torch.arange(10.)[None, None]
    assert [bin_scores(error, item)[f'epe_{b}'] for b in BINS] == [.5, 2.5, 4.5, 6.5, 8.5]


def test_unknown_motion_is_in_no_bin():
    item = dict(flow=torch.full((2, 1, 3), math.nan), mask=torch.ones(1, 3, dtype=torch.bool))
    assert all(math.isnan(v) for v in bin_scores(torch.zeros(1, 1, 3), item).values())


def test_the_row_of_zero_is_the_motion_itself():
    row = score_pair(pair(), get_estimator('zero'))
    length = math.hypot(2, 1)
    assert row['epe_fg'] == pytest.approx(length) and row['epe_bg'] == 0 and row['epe_1-4'] == pytest.approx(length) and math.isnan(row['epe_4-16'])


# ---- many pairs --------------------------------------------------------------------------------------------------

def test_two_processes_give_the_scores_of_one():
    items, models = [pair(i, name=f'p{i}/0001') for i in range(3)], {n: get_estimator(n) for n in ('zero', 'dis')}
    with one_thread(): one = benchmark_flow(items, models, progress=False)
    two = benchmark_flow(items, models, progress=False, workers=2)
    assert list(one['pair']) == list(two['pair']) and one.drop(columns='seconds').equals(two.drop(columns='seconds'))


def test_no_pairs_is_said_clearly():
    with pytest.raises(InputError, match='no pairs'): benchmark_flow([], {})


def test_models_keep_their_order_and_nan_is_left_out():
    table = benchmark_table(scores(b={'x/1': 1., 'x/2': math.nan}, a={'x/1': 3., 'x/2': 5.}))
    assert list(table.index) == ['b', 'a'] and list(table['epe']) == [1., 4.] and plain_table(table) == dict(b=dict(epe=1.), a=dict(epe=4.))


# ---- intervals ---------------------------------------------------------------------------------------------------

def test_one_person_gives_no_width():
    assert bootstrap_people(pd.DataFrame(dict(x=[1., 3.]), index=['ann/1', 'ann/2']), lambda m: m[..., 0]) == (2., 2., 2.)


def test_a_person_with_more_pairs_weighs_more():
    values = pd.DataFrame(dict(x=[0., 0., 0., 4.]), index=['a/1', 'a/2', 'a/3', 'b/1'])
    assert bootstrap_people(values, lambda m: m[..., 0]) == (1., 0., 4.)


def test_pairs_that_one_model_lacks_count_for_neither():
    s = scores(a={'x/1': 1., 'y/1': 3., 'z/1': math.nan}, b={'x/1': 2., 'y/1': 4., 'z/1': 100.})
    assert paired_interval(s, 'b', 'a') == (1., 1., 1.)
    assert all(math.isnan(v) for v in paired_interval(s[s.pair == 'z/1'], 'a', 'b'))


def test_a_fall_is_that_of_the_means():
    s = scores(a={'x/1': 1., 'y/1': 3.}, b={'x/1': 1., 'y/1': 1.})
    fall, low, high = fall_interval(s, 'a', 'b')
    assert fall == .5 and low == 0. and high == pytest.approx(2/3) and fall_interval(s, 'b', 'a')[0] == -1.


def test_nothing_falls_from_nothing():
    assert all(math.isnan(v) for v in fall_interval(scores(zero={'x/1': 0.}, dis={'x/1': 1.}), 'zero', 'dis'))


def test_the_interval_does_not_depend_on_the_order_of_rows():
    g = rng(0, 'rows')
    s = scores(**{m: {f'p{i}/{j}': float(g.random()) for i in range(6) for j in range(2)} for m in 'ab'})
    assert paired_interval(s, 'a', 'b') == pytest.approx(paired_interval(s.sample(frac=1, random_state=1), 'a', 'b'))
    t = interval_table(s)
    assert ((t['low'] < t['mean']) & (t['mean'] < t['high'])).all()


@pytest.mark.parametrize('a,metric,says', [('dip', 'epe', "unknown model 'dip'; nearest: dis"), ('dis', 'eps', "unknown metric 'eps'")])
def test_an_unknown_name_is_refused(a, metric, says):
    with pytest.raises(InputError, match=says): fall_interval(scores(dis={'x/1': 1.}), a, 'dis', metric)


# ---- time and cases ----------------------------------------------------------------------------------------------

def test_waiting_is_not_working():
    def lazy(a, b): time.sleep(.05); return a[:, :2]
    assert time_estimator(lazy, pair(), repeats=2) < 25


def test_timing_runs_on_one_thread_and_gives_the_others_back():
    before, seen = (torch.get_num_threads(), cv2.getNumThreads()), []
    time_estimator(lambda a, b: seen.append((torch.get_num_threads(), cv2.getNumThreads())), pair(), repeats=2)
    assert seen == [(1, 1)]*3 and (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_the_worst_comes_first_and_nan_never():
    s = scores(a={'x/1': 1., 'y/1': math.nan, 'z/1': 3.}, b={'x/1': 9., 'y/1': 2., 'z/1': 0.})
    assert list(worst_pairs(s, 2)['epe']) == [9., 3.] and list(worst_pairs(s, 5, model='a')['pair']) == ['z/1', 'x/1']
    with pytest.raises(InputError, match='unknown model'): worst_pairs(s, model='c')


def test_a_case_is_one_picture_with_unknown_flow_in_it():
    item = pair()
    item['flow'][:, :5] = torch.nan
    picture = case_picture(item, torch.zeros(2, 48, 48), width=64)
    assert picture.shape == (64, 4*64 + 3*2, 3) and picture.dtype == np.uint8


def test_ours_stand_out_in_the_plot():
    fig = speed_figure(pd.DataFrame(dict(ms=[1., 10.], epe=[.5, .1], low=[.4, .05], high=[.6, .2]), index=['dis', 'srflownet-tiny']))
    colours = {t.get_text(): t.get_color() for t in fig.axes[0].texts}
    assert colours['dis'] != colours['srflownet-tiny']
