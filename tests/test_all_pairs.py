"Promises of 13b_all_pairs: look-ups are exact, any size goes in, batches are made of singles, nothing breaks on empty pictures."
import pytest
import torch
import torch.nn.functional as F

from srflow_nb.all_pairs import (AllPairsFlow, ConvGRU, Encoder, GlobalMotion, SuperKernel, convex_upsample, correlation_pyramid,
                                 correlation_volume, hats, lookup, places)
from srflow_nb.core import InputError

SMALL = dict(channels=12, hidden=12, context=12, levels=3, radius=2, iters=2, widths=(8, 12, 16), motion=(16, 12, 8, 8, 12))
MAKES = {'gru': {}, 'gru, dot products': dict(cosine=False), 'gru, one encoder': dict(shared=True, strides=(4, 1, 2), widths=(8, 12)),
         'super kernels': dict(update='super_kernel', alike=True), 'strips': dict(update='super_kernel', strips=True, kernels=(9, 5))}


def small(make='gru', seed=0):
    torch.manual_seed(seed)
    return AllPairsFlow(**(SMALL | MAKES[make])).eval()


def one_by_one(pyramid, flow, radius):
    "A plain twin of `lookup`: every entry visited by itself."
    b, _, h, w = flow.shape
    k = 2*radius + 1
    out = torch.zeros(b, len(pyramid), k, k, h, w)
    for n in range(b):
        for l, maps in enumerate(pyramid):
            for i in range(h):
                for j in range(w):
                    for a in range(k):
                        for c in range(k):
                            y = (i + .5 + float(flow[n, 1, i, j]))/2**l - .5 + a - radius
                            x = (j + .5 + float(flow[n, 0, i, j]))/2**l - .5 + c - radius
                            for row in range(maps.shape[-2]):
                                for column in range(maps.shape[-1]):
                                    weight = max(0., 1 - abs(y - row))*max(0., 1 - abs(x - column))
                                    if weight: out[n, l, a, c, i, j] += weight*float(maps[n, i*w + j, row, column])
    return out.flatten(1, 3)


@pytest.mark.parametrize('strength', [0., .7, 30.])
def test_lookup_agrees_with_visiting_every_entry(strength):
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 4, 4, 8, generator=g), torch.randn(2, 4, 4, 8, generator=g)
    pyramid, flow = correlation_pyramid(correlation_volume(a, b), 3), strength*torch.randn(2, 2, 4, 8, generator=g)
    torch.testing.assert_close(lookup(pyramid, flow, 1), one_by_one(pyramid, flow, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('level', [0, 1, 2])
def test_lookup_agrees_with_the_sampler_of_pytorch(level):
    a, b = torch.randn(1, 6, 8, 12), torch.randn(1, 6, 8, 12)
    pyramid, flow = correlation_pyramid(correlation_volume(a, b), 3), 3*torch.randn(1, 2, 8, 12)
    at = (places(8, 12, flow) + flow).permute(0, 2, 3, 1).reshape(96, 1, 1, 2)/2**level
    maps = pyramid[level].view(96, 1, *pyramid[level].shape[-2:])
    grid = at*2/torch.tensor([maps.shape[-1], maps.shape[-2]]) - 1
    want = F.grid_sample(maps, grid, align_corners=False).view(8, 12)
    torch.testing.assert_close(lookup(pyramid, flow, 0)[0, level], want, atol=1e-4, rtol=1e-4)


def test_lookup_passes_gradcheck():
    volume = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    flow = torch.rand(1, 2, 2, 2, dtype=torch.float64)*.4 + .05       # away from the corners of the hats
    assert torch.autograd.gradcheck(lambda v: lookup([v.float()], flow.float(), 1).double(), (volume,), eps=1e-2, atol=1e-3)


def test_hats_are_the_weights_of_linear_interpolation():
    weights = hats(torch.tensor([[2.75]]), 1, 6)[0, 0]                # between the centres 2.5 and 3.5
    assert torch.equal(weights[1], torch.tensor([0., 0., .75, .25, 0., 0.]))
    assert torch.equal(weights[0, 1:], torch.tensor([.75, .25, 0., 0., 0.]))


def test_best_match_of_a_shifted_picture_is_the_shift():
    features = F.normalize(torch.randn(1, 32, 10, 12), dim=1)
    window = lookup([correlation_volume(features, features.roll((2, -1), (2, 3)))], torch.zeros(1, 2, 10, 12), 3)
    inside = window[0, :, 4:6, 4:8]
    assert (inside.argmax(0) == (3 + 2)*7 + 3 - 1).all()


def test_pooled_matches_are_matches_with_pooled_features():
    a, b = torch.randn(2, 5, 8, 8), torch.randn(2, 5, 8, 8)
    pooled = correlation_pyramid(correlation_volume(a, b), 3)[2]
    torch.testing.assert_close(pooled, correlation_volume(a, F.interpolate(F.avg_pool2d(b, 4), scale_factor=4))[..., ::4, ::4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('make', MAKES)
@pytest.mark.parametrize('size', [(1, 1), (1, 40), (3, 5), (33, 70)])
def test_any_size_goes_in_and_comes_out(make, size):
    flows = small(make).flows(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert len(flows) == SMALL['iters'] and all(f.shape == (2, 2, *size) and f.isfinite().all() for f in flows)


@pytest.mark.parametrize('make', MAKES)
@pytest.mark.parametrize('a, b', [(0., 0.), (1., 0.), (.3, .6)])
def test_pictures_without_texture_are_no_reason_for_nan(make, a, b):
    net = small(make).train()
    flow = net.flows(torch.full((1, 3, 40, 48), a), torch.full((1, 3, 40, 48), b))[-1]
    flow.square().sum().backward()
    assert flow.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('make', MAKES)
def test_a_batch_equals_its_members(make):
    net, a, b = small(make), torch.rand(2, 3, 50, 64), torch.rand(2, 3, 50, 64)
    both = net.flows(a, b)[-1]
    for i in range(2): torch.testing.assert_close(both[i:i+1], net.flows(a[i:i+1], b[i:i+1])[-1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('make', MAKES)
def test_half_precision_keeps_matches_whole(make):
    net, a, b = small(make), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = net.flows(a, b)[-1]
        with torch.autocast('cpu', torch.bfloat16): got = net.flows(a, b)[-1]
    assert got.dtype == torch.float32 and got.isfinite().all()
    assert (got - want).norm(dim=1).mean() < .1*want.norm(dim=1).mean() + .02


def test_the_table_is_float32_under_autocast():
    with torch.autocast('cpu', torch.bfloat16):
        volume = correlation_volume(torch.rand(1, 4, 3, 3).bfloat16(), torch.rand(1, 4, 3, 3).bfloat16())
        assert volume.dtype == torch.float32 and lookup([volume], torch.zeros(1, 2, 3, 3), 1).dtype == torch.float32


@pytest.mark.parametrize('make', MAKES)
def test_every_weight_gets_a_gradient(make):
    net = small(make).train()
    if net.update.alike is not None: torch.nn.init.ones_(net.update.alike.strength)   # at zero it shields what lies behind it
    sum(f.square().mean() for f in net.flows(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))).backward()
    moot = {n for n, _ in net.compare.named_parameters() if n.endswith('.bias')}      # instance normalisation takes them away again
    silent = [n for n, p in net.named_parameters() if n.removeprefix('compare.') not in moot and (p.grad is None or not p.grad.abs().max() > 0)]
    assert not silent


def test_a_start_is_kept_where_nothing_is_to_repair():
    net, frame, start = small(), torch.rand(1, 3, 64, 64), torch.full((1, 2, 64, 64), 4.)
    with torch.no_grad():
        for p in net.update.head[-1].parameters(): p.zero_()
        torch.testing.assert_close(net.flows(frame, frame, start)[-1], start)


def test_convex_upsampling_stays_between_its_neighbours():
    coarse = torch.rand(1, 2, 5, 6)
    fine = convex_upsample(coarse, 10*torch.randn(1, 9*64, 5, 6))
    assert fine.shape == (1, 2, 40, 48) and coarse.min() - 1e-6 <= fine.min() and fine.max() <= coarse.max() + 1e-6


def test_light_does_not_change_what_a_place_is_called():
    encoder, picture = Encoder(16, (8, 12, 16)), torch.rand(1, 3, 96, 96)
    bright, dark = (encoder(x)[..., 4:8, 4:8] for x in (picture, .5*picture))
    assert (bright - dark).abs().max() < .1*bright.abs().max()


def test_attention_is_shared_out_completely():
    alike = GlobalMotion(6, 4)
    shares, motion = alike.attention(torch.randn(2, 6, 3, 5)), torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 15))
    assert torch.equal(alike(shares, motion), motion)                 # silent at first


def test_strips_reach_as_far_as_squares():
    x = torch.randn(1, 4, 21, 21, requires_grad=True)
    for strips in (False, True):
        grad, = torch.autograd.grad(SuperKernel(4, 4, (1, 15), strips)(x)[0, :, 10, 10].sum(), x)
        assert torch.equal(grad[0].abs().sum(0) > 0, F.pad(torch.ones(15, 15), (3,)*4) > 0)


def test_a_memory_stays_bounded():
    gru, hidden = ConvGRU(6, 4), torch.zeros(1, 6, 5, 5)
    for _ in range(20): hidden = gru(hidden, 100*torch.randn(1, 4, 5, 5))
    assert hidden.abs().max() <= 1


def test_unknown_update_is_named():
    with pytest.raises(InputError, match='nearest: gru'): AllPairsFlow(update='grru')


def test_full_size_is_that_of_skflow():
    net = AllPairsFlow(256, 128, 128, 4, 4, 'super_kernel', widths=(64, 96, 128), motion=(256, 192, 128, 64, 128), alike=True, cosine=False)
    assert abs(sum(p.numel() for p in net.parameters()) - 6.27e6) < .2e6
