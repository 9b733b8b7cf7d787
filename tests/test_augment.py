"Augmentation: the truth changes with the pictures, and every worker gives the same bytes."
import itertools

import cv2
import numpy as np
import pytest
import torch

from srflow_nb.augment import Augment, AugmentedDataset, MixedDataset, crop_pair, erase_pair, flip_pair, jitter_color, jitter_pair, quotas, scale_pair
from srflow_nb.core import InputError, rng

M, C = torch.tensor([[.03, -.02], [.01, .04]]), torch.tensor([1.5, -.5])


def centres(w, h): return torch.stack(torch.meshgrid(torch.arange(w) + .5, torch.arange(h) + .5, indexing='xy'))


def field(w, h, A=None, b=None):
    "The flow M x + c, seen after the map x' = A x + b."
    A, b = torch.eye(2) if A is None else A, torch.zeros(2) if b is None else b
    return torch.einsum('ij,jhw->ihw', A @ M @ A.inverse(), centres(w, h) - b.view(2, 1, 1)) + (A @ C).view(2, 1, 1)


def smooth(xy):
    "A picture that is known at every point of the plane."
    x, y = xy
    return torch.stack([.5 + .3*torch.sin(x/9) + .1*torch.cos(y/7), .5 + .3*torch.cos(x/11 + y/8), .4 + .2*torch.sin(y/6)])


def analytic(w=120, h=100):
    "A pair whose flow M x + c is exact: frame 2 is what frame 1's points bring along."
    back = torch.linalg.solve(torch.eye(2) + M, centres(w, h).flatten(1) - C[:, None]).view(2, h, w)
    to = centres(w, h) + field(w, h)
    on = ((centres(w, h) - torch.tensor([60., 50.]).view(2, 1, 1)).norm(dim=0) < 30)
    return dict(frame1=smooth(centres(w, h)), frame2=smooth(back), flow=field(w, h), flow_head=field(w, h)*.5, flow_backward=-field(w, h), valid=torch.ones(h, w, dtype=torch.bool),
                mask=on, labels=on.to(torch.uint8)*3, occlusion=(to[0] < 0) | (to[0] > w) | (to[1] < 0) | (to[1] > h), depth=torch.where(on, 1., torch.inf), name='a/0001', action_units=torch.zeros(2, 17))


def mismatch(p):
    "Largest difference of frame 2 along the flow and frame 1, where the point is seen, away from the border."
    h, w = p['flow'].shape[1:]
    grid = (p['flow'] + centres(w, h) - .5).permute(1, 2, 0).numpy()
    there = torch.from_numpy(cv2.remap(p['frame2'].permute(1, 2, 0).numpy(), grid, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)).permute(2, 0, 1)
    seen = p['valid'] & ~p['occlusion']
    seen[:4], seen[-4:], seen[:, :4], seen[:, -4:] = False, False, False, False
    return (there - p['frame1']).abs().amax(0)[seen].quantile(.98).item() if seen.any() else 0.


def test_the_guinea_pig_is_right(): assert mismatch(analytic()) < .01


@pytest.mark.parametrize('w, h', [(240, 200), (137, 101), (121, 99), (90, 160), (60, 50)])
def test_scaled_flow_is_exact(w, h):
    p = scale_pair(analytic(), w, h)
    A = torch.diag(torch.tensor([w/120, h/100]))
    for k, factor in (('flow', 1), ('flow_head', .5), ('flow_backward', -1)):
        assert (p[k] - factor*field(w, h, A))[:, 3:-3, 3:-3].abs().max() < 2e-5
    assert mismatch(p) < .02


@pytest.mark.parametrize('axis, A, b', [(-1, [[-1., 0], [0, 1]], [120., 0]), (-2, [[1., 0], [0, -1]], [0, 100.])])
def test_mirrored_flow_is_exact(axis, A, b):
    p = flip_pair(analytic(), axis)
    assert (p['flow'] - field(120, 100, torch.tensor(A), torch.tensor(b))).abs().max() < 1e-5 and mismatch(p) < .01
    twice = flip_pair(p, axis)
    assert all(torch.equal(twice[k], v) for k, v in analytic().items() if torch.is_tensor(v))


def test_cropped_flow_is_exact_and_what_leaves_is_occluded():
    p = crop_pair(analytic(), 30, 20, 64, 48)
    assert (p['flow'] - field(64, 48, b=torch.tensor([-30., -20.]))).abs().max() < 1e-5
    xy = centres(64, 48) + p['flow']
    assert torch.equal(p['occlusion'], (xy[0] < 0) | (xy[0] > 64) | (xy[1] < 0) | (xy[1] > 48)) and p['occlusion'].any() and not p['occlusion'].all()


def test_all_maps_stay_together():
    "Labels, mask and depth show the same disc after everything."
    for seed in range(12):
        p = Augment(crop=(64, 72), eraser_size=(8, 20), flip_y=.5)(analytic(), rng(seed, 'together'))
        assert torch.equal(p['labels'] == 3, p['mask']) and torch.equal(p['depth'] == 1, p['mask'])
        assert p['labels'].dtype == torch.uint8 and p['mask'].dtype == torch.bool and p['name'] == 'a/0001' and p['action_units'].shape == (2, 17)
        assert {v.shape[-2:] for k, v in p.items() if torch.is_tensor(v) and k != 'action_units'} == {(64, 72)}
        assert all(v.is_contiguous() for v in p.values() if torch.is_tensor(v)) and p['frame1'].min() >= 0 and p['frame1'].max() <= 1


def test_flow_still_leads_to_the_same_point():
    "Colours aside, frame 2 along the flow is frame 1 for every draw."
    for seed in range(20): assert mismatch(Augment(crop=72, color=(0, 0, 0, 0), eraser_size=(8, 20), flip_y=.5)(analytic(), rng(seed, 'same'))) < .03


def test_unknown_flow_stays_unknown_and_spreads_no_further_than_a_pixel():
    p = analytic(); p['flow'][:, 40:50, 60:70] = torch.nan; p['valid'][40:50, 60:70] = False
    big = scale_pair(p, 240, 200)
    assert not big['valid'][80:100, 120:140].any() and big['valid'][:78].all() and big['flow'][:, big['valid']].isfinite().all()


def test_erased_points_are_occluded():
    p = analytic(); q = erase_pair(p, rng(3, 'hole'), (15, 30))
    hole = (q['frame2'] != p['frame2']).any(0)
    assert hole.any() and torch.equal(q['frame1'], p['frame1']) and mismatch(q) < .01
    xy = (centres(120, 100) + p['flow']).floor().long()
    inside = (xy[0] >= 0) & (xy[0] < 120) & (xy[1] >= 0) & (xy[1] < 100)
    hits = torch.zeros(100, 120, dtype=torch.bool); hits[inside] = hole[xy[1][inside], xy[0][inside]]
    assert ((hits | p['occlusion']) != q['occlusion']).float().mean() < .002          # but for a pixel that had the mean colour before


def test_colours_are_those_of_the_definition():
    grey, picture = torch.full((3, 4, 4), .5), torch.rand(3, 16, 16)
    for seed in range(5):
        f = rng(seed, 'x').uniform(.6, 1.4)                       # brightness is drawn first
        assert torch.allclose(jitter_color(grey, rng(seed, 'x'), (.4, 0, 0, 0)), (grey*f).clamp(0, 1), atol=1e-6)
        assert torch.allclose(jitter_color(picture, rng(seed, 'x'), (0, 0, 0, 0)), picture, atol=1e-5)
        assert torch.allclose(jitter_color(grey, rng(seed, 'x'), (0, .4, .4, .159)), grey, atol=1e-4)       # one grey has no contrast, saturation or hue
        assert torch.allclose(jitter_color(picture, rng(seed, 'x'), (0, 0, 0, .5)).amax(0), picture.amax(0), atol=1e-5)      # hue keeps the value


def test_frames_share_their_colours_four_times_of_five():
    p = analytic(); p['frame2'] = p['frame1'].clone()
    same = [torch.equal(*(jitter_pair(p, rng(i, 'pair'))[k] for k in ('frame1', 'frame2'))) for i in range(200)]
    assert 130 < sum(same) < 185 and all(torch.equal(q['frame1'], q['frame2']) for q in (jitter_pair(p, rng(i, 'p'), asymmetric=0.) for i in range(5)))


def test_small_pairs_grow_to_the_crop():
    p = Augment(crop=(150, 200))(analytic(), rng(0, 'grow'))
    assert p['flow'].shape == (2, 150, 200)


def test_inputs_are_left_alone():
    p = analytic(); before = {k: v.clone() for k, v in p.items() if torch.is_tensor(v)}
    for i in range(6): Augment(crop=64, eraser=1., eraser_size=(8, 20))(p, rng(i, 'alone'))
    assert all(torch.equal(p[k], v) for k, v in before.items())


@pytest.mark.parametrize('crop', [0, (10, -3)])
def test_bad_crops_are_named(crop):
    with pytest.raises(InputError, match='crop'): Augment(crop=crop)


class Pairs(torch.utils.data.Dataset):
    "Pairs of constant frames, numbered by `first`."
    def __init__(self, n, first=0, **more): self.n, self.first, self.more = n, first, more
    def __len__(self): return self.n
    def __getitem__(self, i):
        if not 0 <= i < self.n: raise IndexError(i)
        g = np.random.default_rng([self.first + i])
        frames = {k: torch.from_numpy(g.random((3, 40, 48), dtype=np.float32)) for k in ('frame1', 'frame2')}
        return frames | dict(flow=torch.full((2, 40, 48), float(self.first + i)), valid=torch.ones(40, 48, dtype=torch.bool), name=str(self.first + i)) | self.more


def bytes_of(data, workers, **kw):
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=workers, **kw)
    return [b''.join(b[k].numpy().tobytes() for k in ('frame1', 'frame2', 'flow', 'valid')) for b in loader]


def test_any_number_of_workers_gives_the_same_bytes():
    data = AugmentedDataset(MixedDataset([Pairs(7), Pairs(5, 100)], weights=[2, 1], length=12, seed=1), Augment(crop=(24, 32), eraser_size=(5, 10)), seed=1)
    assert bytes_of(data, 0) == bytes_of(data, 1) == bytes_of(data, 2)


def test_running_workers_hear_of_a_new_epoch():
    data = AugmentedDataset(Pairs(6), Augment(crop=(24, 32), eraser_size=(5, 10)), seed=1)
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, persistent_workers=True)
    got = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch); got.append(torch.cat([b['frame1'] for b in loader]))
    assert torch.equal(got[0], got[2]) and not torch.equal(got[0], got[1])


def test_torch_threads_change_no_byte():
    before = torch.get_num_threads()
    data = AugmentedDataset([analytic(400, 300)], Augment(crop=(200, 240)), seed=4)
    try: items = [(torch.set_num_threads(n), data[0])[1] for n in (1, 2)]
    finally: torch.set_num_threads(before)
    assert all(torch.equal(items[0][k], v) for k, v in items[1].items() if torch.is_tensor(v))


def test_shares_are_exact_and_every_pair_gets_its_turn():
    mixed = MixedDataset([Pairs(10), Pairs(4, 100)], weights=[1, 1], length=10, seed=2)
    seen = []
    for epoch in range(4):
        mixed.set_epoch(epoch)
        names = [int(mixed[i]['name']) for i in range(len(mixed))]
        assert sum(n < 100 for n in names) == 5
        seen += names
    counts = {n: seen.count(n) for n in seen}
    assert all(counts[n] == 2 for n in range(10)) and all(counts[100 + n] == 5 for n in range(4))
    mixed.set_epoch(0)
    assert [int(mixed[i]['name']) for i in range(10)] == seen[:10] != seen[10:20]


def test_sets_with_different_keys_share_what_they_have():
    mixed = MixedDataset([Pairs(2), Pairs(2, 10, occlusion=torch.zeros(40, 48))])
    assert {frozenset(mixed[i]) for i in range(4)} == {frozenset({'frame1', 'frame2', 'flow', 'valid', 'name'})}


def test_the_end_is_an_end():
    data = AugmentedDataset(MixedDataset([Pairs(3)]), Augment(crop=16, eraser=0.))
    assert len(list(itertools.islice(iter(data), 10))) == 3 and torch.equal(data[-1]['frame1'], data[2]['frame1'])
    for bad in (3, -4):
        with pytest.raises(IndexError): data[bad]


@pytest.mark.parametrize('weights', [[1], [1, 2, 3], [0, 0], [-1, 2], [float('nan'), 1]])
def test_bad_weights_are_named(weights):
    with pytest.raises(InputError, match='weights'): MixedDataset([Pairs(2), Pairs(2)], weights)


def test_empty_sets_are_named():
    with pytest.raises(InputError, match='at least one pair'): MixedDataset([Pairs(2), Pairs(0)])
    assert sum(quotas([3, 2, 2], 100)) == 100
