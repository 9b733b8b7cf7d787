"Promises of 11b_warps: exact flow, same seed same pairs, clear errors."
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.warps import PHOTOS, WarpDataset, blob, photo, photo_pairs, sample_at, smooth_flow, warp_pair


def look_along(frame, flow):
    h, w = flow.shape[1:]
    xy = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1) + flow.permute(1, 2, 0).numpy()
    return sample_at(frame, xy)


@pytest.mark.parametrize('amplitude', [.2, 2., 8.])
def test_frame1_is_frame2_looked_up_along_the_flow(amplitude):
    for seed in range(3):
        pair = warp_pair(rng(seed, 'exact'), [photo('chelsea'), photo('rocket')], 96, amplitude)
        seen = ~pair['occlusion']
        miss = (look_along(pair['frame2'], pair['flow']) - pair['frame1']).abs().mean(0)[seen].mean()
        shifted = (look_along(pair['frame2'], pair['flow'] + .5) - pair['frame1']).abs().mean(0)[seen].mean()
        assert miss < .006 and miss < .5*shifted         # half a pixel beside it is clearly worse


def test_flow_of_shapes_is_exact_away_from_their_rims():
    pair = warp_pair(rng(4, 'shapes'), [photo('coffee'), photo('gravel')], 128, 3., shapes=5)
    smooth = torch.nn.functional.max_pool2d(pair['flow'].diff(dim=-1, append=pair['flow'][..., -1:]).abs().amax(0)[None], 7, 1, 3)[0] < .5
    inner = smooth & ~torch.nn.functional.max_pool2d(pair['occlusion'][None].float(), 7, 1, 3)[0].bool()
    assert inner.float().mean() > .5
    assert (look_along(pair['frame2'], pair['flow']) - pair['frame1']).abs().mean(0)[inner].mean() < .02


def test_a_pair_depends_on_seed_and_number_alone():
    a, b = WarpDataset(n=9, size=64, seed=5), WarpDataset(n=30, size=64, seed=5)
    a[3]
    for key, value in a[7].items(): assert torch.equal(value, b[7][key])
    assert not torch.equal(a[7]['flow'], WarpDataset(n=9, size=64, seed=6)[7]['flow'])


def test_items_have_the_shapes_and_kinds_of_the_rendered_data_set():
    item = WarpDataset(n=2, size=64)[1]
    assert set(item) == {'frame1', 'frame2', 'flow', 'valid', 'mask', 'occlusion'}
    assert item['frame1'].shape == item['frame2'].shape == (3, 64, 64) and item['flow'].shape == (2, 64, 64)
    for key in ('frame1', 'frame2', 'flow'): assert item[key].dtype == torch.float32 and item[key].isfinite().all()
    for key in ('valid', 'mask', 'occlusion'): assert item[key].dtype == torch.bool and item[key].shape == (64, 64)
    assert 0 <= item['frame1'].min() and item['frame1'].max() <= 1


def test_the_astronaut_is_held_out():
    assert 'astronaut' not in PHOTOS
    pictures = WarpDataset(n=1, size=64).photos
    assert not any(p.shape == photo('astronaut').shape and np.array_equal(p, photo('astronaut')) for p in pictures)


def test_smooth_flow_has_the_asked_amplitude_and_does_not_fold():
    for seed in range(10):
        flow = smooth_flow(rng(seed, 'fold'), 128, 3.)
        assert np.sqrt((flow**2).sum(-1).mean()) == pytest.approx(3., rel=1e-4)
        assert np.abs(np.diff(flow, axis=0)).max() < 1 and np.abs(np.diff(flow, axis=1)).max() < 1


def test_a_blob_lies_partly_in_the_frame():
    for seed in range(20):
        cover = blob(rng(seed, 'blob'), 96)(np.stack(np.meshgrid(np.arange(96), np.arange(96)), -1).astype(np.float32))
        assert 0 <= cover.min() and cover.max() == 1 and .002 < cover.mean() < .5


@pytest.mark.parametrize('call, words', [
    (lambda: WarpDataset(n=0), 'n >= 1'), (lambda: WarpDataset(size=8), 'size >= 32'), (lambda: photo('astronat'), 'astronaut'),
    (lambda: photo_pairs(np.zeros((50, 50), np.float32)), r'\(h, w, 3\)')])
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words): call()
