"Metrics: values by hand, masks, NaN, and shares that say which side of the threshold they count."
import math

import numpy as np
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.metrics import epe, fl_share, flow_metrics, masked_mean, metrics_table, moving_mask, outlier_share, region_epe, wauc


def flow(*uv): return torch.tensor(uv, dtype=torch.float32).T.reshape(1, 2, 1, len(uv))


def test_epe_of_a_3_4_5_triangle():
    assert epe(flow((3, 4), (0, 0)), flow((0, 0), (0, 0))).flatten().tolist() == [5., 0.]


def test_epe_accepts_one_field_and_refuses_two_sizes():
    assert epe(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).shape == (1, 3, 4)
    for a, b in (((1, 2, 3, 4), (1, 2, 4, 3)), ((1, 3, 3, 4), (1, 3, 3, 4)), ((2, 2, 3, 4), (1, 2, 3, 4))):
        with pytest.raises(InputError, match='same shape'): epe(torch.zeros(a), torch.zeros(b))


def test_epe_in_half_precision_is_computed_in_float32():
    t = torch.full((1, 2, 1, 1), 300., dtype=torch.float16)
    assert epe(t + 300, torch.zeros_like(t)).item() == pytest.approx(600 * math.sqrt(2), rel=1e-6)      # 600^2 overflows float16


def test_metrics_by_hand():
    "Errors 0, 1, 2, 4, 6 px at true lengths 0, 0.25, 0.26, 10, 10; the last pixel is unknown."
    true = flow((0, 0), (.25, 0), (.26, 0), (10, 0), (10, 0), (math.nan, 0))
    pred = flow((0, 0), (1.25, 0), (2.26, 0), (14, 0), (10, 6), (99, 99))
    face = torch.tensor([[[False, False, True, True, True, True]]])
    m = flow_metrics(pred, true, fg=face)
    assert m['epe'] == pytest.approx(13/5) and m['pixels'] == 5
    assert m['epe_moving'] == pytest.approx(12/3)                  # .25 px does not move: the threshold is exclusive
    assert m['epe_fg'] == pytest.approx(12/3) and m['epe_bg'] == pytest.approx(1/2)
    assert [round(m[f'px{t}_outliers'], 9) for t in (1, 3, 5)] == [60., 40., 20.]   # shares ABOVE; exactly 1 px is inside


def test_mask_leaves_pixels_out_of_everything():
    true, pred = flow((0, 0), (5, 0)), flow((1, 0), (9, 0))
    keep = torch.tensor([[[True, False]]])
    m = flow_metrics(pred, true, mask=keep)
    assert m['epe'] == 1. and m['pixels'] == 1 and math.isnan(m['epe_moving']) and m['px3_outliers'] == 0.
    assert flow_metrics(pred, true, mask=keep[0])['epe'] == 1.      # (H,W) mask for a batch
    assert flow_metrics(pred, true, mask=keep.numpy())['epe'] == 1.
    with pytest.raises(InputError, match='mask of shape'): flow_metrics(pred, true, mask=torch.ones(1, 2, 2))


def test_nothing_to_count_is_nan_not_zero():
    t = torch.full((1, 2, 3, 3), torch.nan)
    m = flow_metrics(torch.zeros_like(t), t)
    assert math.isnan(m['epe']) and math.isnan(m['px1_outliers']) and math.isnan(m['wauc']) and m['pixels'] == 0 and math.isnan(fl_share(torch.zeros_like(t), t))


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_an_estimate_with_holes_is_refused(bad):
    with pytest.raises(InputError, match='NaN'): flow_metrics(flow((bad, 0), (0, 0)), flow((0, 0), (0, 0)))


def test_means_are_over_pixels_not_over_pictures():
    "One picture with one known pixel must not weigh as much as one with many."
    true = torch.zeros(2, 2, 1, 4); true[0, :, 0, 1:] = torch.nan
    pred = torch.zeros(2, 2, 1, 4); pred[0, 0] = 10.
    assert flow_metrics(pred, true)['epe'] == pytest.approx(10/5)


def test_large_pictures_lose_no_precision():
    e = torch.full((1, 3000, 3000), .1)
    assert masked_mean(e) == pytest.approx(float(torch.tensor(.1)), rel=1e-9)


def test_fl_needs_both_three_pixels_and_five_percent():
    true = flow((0, 0), (100, 0), (100, 0), (10, 0))
    pred = flow((3.1, 0), (104, 0), (106, 0), (12.9, 0))
    assert fl_share(pred, true) == 50.


def test_wauc_limits_and_weights():
    assert wauc(torch.zeros(1, 2, 2)) == 100. and wauc(torch.full((1, 2, 2), 5.01)) == 0.
    w = 1 - np.arange(100) / 100
    assert wauc(torch.full((1, 1, 1), 2.5, dtype=torch.float64)) == pytest.approx(100 * w[49:].sum() / w.sum())   # inside from 2.5 px on
    better = wauc(torch.from_numpy(rng(0, 'w').random((1, 20, 20)))) ; assert better > wauc(2 * torch.from_numpy(rng(0, 'w').random((1, 20, 20))))


def test_moving_ignores_unknown():
    assert moving_mask(flow((math.nan, 0), (1, 0), (0, 0))).flatten().tolist() == [False, True, False]


def test_outlier_share_falls_with_the_threshold():
    e = torch.from_numpy(rng(0, 'o').gamma(1, 1, (2, 30, 30)))
    s = [outlier_share(e, t) for t in (.5, 1, 3, 5)]
    assert s == sorted(s, reverse=True) and s[1] == pytest.approx(100 * float((e > 1).double().mean()))


def test_regions_by_hand():
    e = torch.tensor([[[1., 3., 5., torch.nan]]])
    out = region_epe(e, torch.tensor([[0, 0, 2, 2]]), ['skin', 'eye', 'lips'])
    assert out == {'skin': 2., 'lips': 5.}
    assert region_epe(e, torch.tensor([[[-1, 0, 0, 0]]])) == {0: 4.}
    with pytest.raises(InputError, match='no name'): region_epe(e, torch.tensor([[0, 0, 2, 2]]), ['skin'])


def test_table_says_above():
    t = metrics_table({'zero': flow_metrics(flow((1, 0)), flow((0, 0)))})
    assert 'share above 1 px [%]' in t.columns and list(t.index) == ['zero'] and not [c for c in t.columns if c.startswith('px')]
    with pytest.raises(InputError): metrics_table({})


def test_a_half_unknown_arrow_is_unknown_however_wrong_the_other_half_is():
    "C's hypot says infinity for (NaN, infinity)."
    assert epe(flow((math.inf, 0)), flow((0, math.nan))).isnan().all() and not moving_mask(flow((math.nan, 9.))).any()
