"Promises of 14_model: any size, still frames stay still, no NaN, the start is kept at first, weights survive a round trip."
import json

import numpy as np
import pytest
import torch

from srflow_nb.all_pairs import warp
from srflow_nb.core import InputError
from srflow_nb.model import OPEN, SIZES, SRFlowNet, box_mean, classical_start, lucas_kanade, open_share, proposals, resize_flow
from srflow_nb.warps import photo, photo_pairs


def scrambled(seed=0, strength=.1):
    "A network with random weights everywhere: promises must not rest on the gentle start."
    torch.manual_seed(seed); net = SRFlowNet('tiny')
    with torch.no_grad():
        for p in net.parameters(): p.add_(strength*torch.randn_like(p))
    return net.eval()


@pytest.fixture(scope='module')
def pair(): return photo_pairs(photo('astronaut'), n=1, size=128, seed=2, motion=(2., 2.01))[0]


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (3, 5), (17, 16), (33, 70), (100, 99)])
def test_any_size_goes_in_and_comes_out(size):
    flow = scrambled().estimate(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert flow.shape == (2, 2, *size) and flow.isfinite().all()


def test_identical_frames_give_zero():
    frame = torch.rand(1, 3, 50, 61)
    for net in (scrambled(), SRFlowNet.from_pretrained('tiny')): assert net.estimate(frame, frame).abs().max() < 1e-3   # float rounding


@pytest.mark.parametrize('a, b', [(0., 0.), (1., 1.), (0., 1.), (.3, .5)])
def test_frames_without_texture_give_finite_flow(a, b):
    frames = torch.full((1, 3, 40, 44), a), torch.full((1, 3, 40, 44), b)
    assert scrambled().estimate(*frames).isfinite().all()
    assert SRFlowNet.from_pretrained('tiny').estimate(*frames).norm(dim=1).mean() < .25          # less than what counts as motion


def test_untrained_network_returns_its_start(pair):
    a, b = pair['frame1'][None], pair['frame2'][None]
    start = torch.randn(1, 2, 128, 128)
    for flow in SRFlowNet('tiny')(a, b, init_flow=start): assert torch.equal(flow, start)


def test_one_flow_a_step(pair):
    a, b = pair['frame1'][None], pair['frame2'][None]
    assert len(SRFlowNet('tiny')(a, b)) == SIZES['tiny'].iters
    assert len(SRFlowNet('tiny')(a, b, iters=5)) == 5


def test_a_batch_equals_its_members(pair):
    net, other = scrambled(strength=.01), photo_pairs(photo('astronaut'), n=1, size=128, seed=3)[0]
    a, b = (torch.stack([pair[k], other[k]]) for k in ('frame1', 'frame2'))
    both = net.estimate(a, b)
    for i in range(2): torch.testing.assert_close(both[i:i+1], net.estimate(a[i:i+1], b[i:i+1]), atol=2e-3, rtol=1e-3)


def test_start_is_close_to_a_known_warp(pair):
    start, seen = classical_start(pair['frame1'][None], pair['frame2'][None])[0], ~pair['occlusion']
    assert (start - pair['flow']).norm(dim=0)[seen].mean() < .15*pair['flow'].norm(dim=0)[seen].mean()


def test_start_does_not_mind_a_lamp_that_dims(pair):
    frame1, frame2, seen = pair['frame1'][None], pair['frame2'][None], ~pair['occlusion']
    error = lambda light: (classical_start(frame1, light*frame2)[0] - pair['flow']).norm(dim=0)[seen].mean()
    assert error(.85) < 1.5*error(1.)


def test_shipped_weights_do_not_spoil_a_photograph(pair):
    net, seen = SRFlowNet.from_pretrained('tiny'), ~pair['occlusion']
    error = (net.estimate(pair['frame1'][None], pair['frame2'][None])[0] - pair['flow']).norm(dim=0)[seen].mean()
    assert error < .5*pair['flow'].norm(dim=0)[seen].mean()


def test_every_weight_gets_a_gradient(pair):
    net = scrambled(strength=.01)
    flows, gates = net.refine(pair['frame1'][None], pair['frame2'][None], torch.zeros(1, 2, 128, 128), iters=2)
    (sum(f.square().mean() for f in flows) + sum(g.square().mean() for g in gates)).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent


def test_weights_survive_a_round_trip(tmp_path, pair):
    net = scrambled(); net.save_pretrained(tmp_path)
    again = SRFlowNet.from_pretrained(tmp_path)
    for name, weight in net.state_dict().items(): assert torch.equal(weight, again.state_dict()[name])
    assert json.loads((tmp_path/'config.json').read_text())['size'] == 'tiny'
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith('.') and p.is_file()]


@pytest.mark.parametrize('spoil, words', [
    (lambda d: (d/'config.json').unlink(), 'config.json missing'),
    (lambda d: (d/'config.json').write_text('{"size": "gigantic"}'), 'gigantic'),
    (lambda d: (d/'config.json').write_text('{not json'), 'config.json'),
    (lambda d: (d/'model.safetensors').write_bytes(b'nonsense'), 'not the weights')])
def test_a_damaged_folder_is_named(tmp_path, spoil, words):
    SRFlowNet('tiny').save_pretrained(tmp_path); spoil(tmp_path)
    with pytest.raises(InputError, match=words): SRFlowNet.from_pretrained(tmp_path)


@pytest.mark.parametrize('call, words', [
    (lambda: SRFlowNet('tinny'), 'tiny'), (lambda: SRFlowNet.from_pretrained('nowhere'), 'pretrained model'),
    (lambda: SRFlowNet()(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9)), 'different size'),
    (lambda: SRFlowNet()(torch.rand(3, 8, 8), torch.rand(3, 8, 8)), r'\(B, 3, H, W\)'),
    (lambda: SRFlowNet()(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), init_flow=torch.zeros(1, 2, 4, 4)), 'init_flow')])
def test_mistakes_are_named(call, words):
    with pytest.raises(InputError, match=words): call()


def test_warp_by_whole_pixels_is_a_shift():
    image, flow = torch.rand(1, 2, 9, 11), torch.zeros(1, 2, 9, 11)
    flow[:, 0], flow[:, 1] = 2., -1.
    torch.testing.assert_close(warp(image, flow)[..., 1:, :-2], image[..., :-1, 2:], atol=1e-5, rtol=0)


@pytest.mark.parametrize('window', [1, 3, 9, 21])
def test_box_mean_of_a_constant_is_the_constant(window):
    torch.testing.assert_close(box_mean(torch.full((1, 2, 13, 7), 3.), window), torch.full((1, 2, 13, 7), 3.))


def test_lucas_kanade_finds_nothing_where_there_is_no_texture():
    flat = torch.full((1, 3, 20, 20), .5)
    moves, evidence = lucas_kanade(flat, flat + .1)
    assert all(m.abs().max() == 0 for m in moves) and all(e.isfinite().all() for e in evidence)


def test_open_share_is_exact_at_both_ends():
    assert open_share(torch.tensor(OPEN)) == 1 and open_share(torch.tensor(-OPEN)) == 0


def test_enlarged_flow_keeps_its_arrows_meaning():
    flow = np.full((4, 6, 2), [1., 2.], np.float32)
    assert np.allclose(resize_flow(flow, 12, 12), [2., 6.])


def test_lucas_kanade_of_squares_is_that_of_their_means():
    torch.manual_seed(0); a, b = torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24)
    moves, evidence = lucas_kanade(a, b, windows=(1,), coarse=8)
    fine = lucas_kanade(a, b, windows=(7,))[0][0]
    assert moves[0].shape == (1, 2, 2, 3) == evidence[0].shape and (moves[0] - fine[..., 3:16:8, 3:24:8]).abs().mean() < .5*fine.abs().mean()


def test_proposals_leave_a_common_motion_alone():
    share = (torch.rand(1, 1, 20, 30) > .5).float()
    flow, *calm = proposals(torch.full((1, 2, 20, 30), 3.), share)
    assert torch.equal(flow, torch.full((1, 2, 20, 30), 3.)) and all(c.abs().max() < 1e-3 for c in calm)


def test_base_is_a_configuration_of_the_same_class(pair):
    net = SRFlowNet('base'); a, b = pair['frame1'][None, :, :50, :61], pair['frame2'][None, :, :50, :61]
    assert not net.needs_start and SRFlowNet('tiny').needs_start
    with torch.no_grad(): flows, gates = net.refine(a, b, iters=2)
    assert [f.shape for f in flows] == [(1, 2, 50, 61)]*2 and gates == [] and 5e6 < sum(p.numel() for p in net.parameters()) < 7e6
    assert net(a, b, init_flow=torch.ones(1, 2, 50, 61), iters=1)[0].isfinite().all()
    with pytest.raises(InputError, match='features'): net.features(a, b)


def test_untrained_base_says_so_in_one_line():
    with pytest.raises(InputError, match='no trained weights ship') as e: SRFlowNet.from_pretrained('base')
    assert '\n' not in str(e.value)


def test_features_come_with_the_flow_that_estimate_gives(pair):
    net = SRFlowNet.from_pretrained('tiny'); a, b = (pair[k][None, :, :99, :70] for k in ('frame1', 'frame2'))
    with torch.no_grad(): flow, features = net.features(a, b)
    assert torch.equal(flow, net.estimate(a, b)) and features.shape == (1, net.config.channels[0], 25, 18)


@pytest.mark.parametrize('levels, most', [(0, .02), (1, .1), (3, .1), (5, .1)])
def test_still_frames_give_still_flow(levels, most):
    "RAFT's issue 123: video in which almost nothing moves. `levels`: standard deviation of the noise in grey levels."
    from srflow_nb.scene import DatasetConfig, Scene
    g = torch.Generator().manual_seed(7)
    clean = [Scene(DatasetConfig(width=256, height=256, seed=77), index=0, frames=2).frame(0).clean, torch.tensor(photo('coffee')[:256, :256]).permute(2, 0, 1)]
    for frame in clean:
        shots = [((frame + levels/255*torch.randn(frame.shape, generator=g)).clamp(0, 1)*255).round()[None]/255 for _ in range(2)]
        assert SRFlowNet.from_pretrained('tiny').estimate(*shots).norm(dim=1).mean() <= most


@pytest.mark.parametrize('dtype, most', [(torch.bfloat16, .1), (torch.float16, .03)])
def test_half_precision_changes_little(pair, dtype, most):
    net, a, b = SRFlowNet.from_pretrained('tiny'), pair['frame1'][None], pair['frame2'][None]
    start = classical_start(a, b)
    with torch.no_grad():
        want = net.refine(a, b, start)[0][-1]
        with torch.autocast('cpu', dtype): half = net.refine(a, b, start)[0][-1]
    assert half.isfinite().all() and (half.float() - want).norm(dim=1).mean() < most
