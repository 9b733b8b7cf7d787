"Promises of 14c_families: one door for every network, any size, batches of singles, weights survive, the same flow compiled and as ONNX."
import io
import warnings
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from srflow_nb.core import InputError
from srflow_nb.families import MODELS, PWCNet, RaftSmall, build_model, cost_volume, load_model
from srflow_nb.model import SIZES, SRFlowNet
from srflow_nb.warps import photo, photo_pairs

OURS = ['raft_small', 'pwc']


def built(name, seed=0, scramble=.02):
    "A network with random weights everywhere: promises must not rest on the gentle start."
    torch.manual_seed(seed); net = build_model(name)
    with torch.no_grad():
        for p in net.parameters(): p.add_(scramble*torch.randn_like(p))
    return net.eval()


def test_every_size_of_srflownet_is_a_model(): assert set(SIZES) <= set(MODELS) and {'tiny', 'raft_small', 'pwc'} <= set(MODELS)


@pytest.mark.parametrize('name', ['tiny', *OURS])
def test_every_model_has_the_same_door(name):
    net, frames = build_model(name), (torch.rand(2, 3, 40, 48), torch.rand(2, 3, 40, 48))
    flows, gates = net.refine(*frames, torch.zeros(2, 2, 40, 48), 1)
    assert net.config.size == name and isinstance(flows, list) and isinstance(gates, list)
    assert all(f.shape == (2, 2, 40, 48) for f in flows) and net.estimate(*frames).shape == (2, 2, 40, 48)
    assert not net.estimate(*frames).requires_grad and net(*frames)[-1].requires_grad


@pytest.mark.parametrize('name', OURS)
def test_ours_start_from_nothing(name):
    net = build_model(name)
    assert net.needs_start is False and len(net.refine(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))[0]) >= 3


@pytest.mark.parametrize('name', OURS)
@pytest.mark.parametrize('size', [(1, 1), (1, 40), (3, 5), (33, 70), (65, 64)])
def test_any_size_goes_in_and_comes_out(name, size):
    flow = built(name).estimate(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert flow.shape == (2, 2, *size) and flow.isfinite().all()


@pytest.mark.parametrize('name', OURS)
@pytest.mark.parametrize('a, b', [(0., 0.), (1., 0.), (.3, .6)])
def test_pictures_without_texture_are_no_reason_for_nan(name, a, b):
    net = built(name).train()
    flow = net(torch.full((1, 3, 40, 44), a), torch.full((1, 3, 40, 44), b))[-1]
    flow.square().sum().backward()
    assert flow.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('name', OURS)
def test_a_batch_equals_its_members(name):
    net, a, b = built(name), torch.rand(2, 3, 50, 64), torch.rand(2, 3, 50, 64)
    both = net.estimate(a, b)
    for i in range(2): torch.testing.assert_close(both[i:i+1], net.estimate(a[i:i+1], b[i:i+1]), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize('name', OURS)
def test_half_precision_is_close(name):
    pair = photo_pairs(photo('astronaut'), n=1, size=96, seed=2, motion=(2., 2.01))[0]
    net, a, b = build_model(name).eval(), pair['frame1'][None], pair['frame2'][None]
    want = net.estimate(a, b)
    with torch.autocast('cpu', torch.bfloat16): got = net.estimate(a, b)
    assert got.isfinite().all() and (got.float() - want).norm(dim=1).mean() < .2*want.norm(dim=1).mean()


@pytest.mark.parametrize('name', OURS)
def test_every_weight_gets_a_gradient(name):
    net = built(name).train()
    sum(f.square().mean() for f in net(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))).backward()
    moot = ('filters.bias', 'more.1.bias')                            # instance normalisation takes them away again
    silent = [n for n, p in net.named_parameters() if not n.endswith(moot) and (p.grad is None or not p.grad.abs().max() > 0)]
    assert not silent


@pytest.mark.parametrize('name', OURS)
def test_it_learns_a_known_warp(name):
    pair = photo_pairs(photo('astronaut'), n=1, size=96, seed=5, motion=(3., 3.01))[0]
    a, b, true = (pair[k][None] for k in ('frame1', 'frame2', 'flow'))
    torch.manual_seed(0); net = build_model(name)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(20):
        loss = sum(.8**i*(f - true).abs().mean() for i, f in enumerate(reversed(net(a, b))))
        optimizer.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(net.parameters(), 1.); optimizer.step()
    assert (net.estimate(a, b) - true).norm(dim=1).mean() < .7*true.norm(dim=1).mean()


@pytest.mark.parametrize('name', OURS)
def test_weights_survive_a_round_trip(tmp_path, name):
    net = built(name); net.save_pretrained(tmp_path)
    for again in (load_model(tmp_path), load_model(str(tmp_path)), MODELS[name].from_pretrained(tmp_path)):
        assert again.config == net.config and not again.training
        for key, weight in net.state_dict().items(): assert torch.equal(weight, again.state_dict()[key])


def test_shipped_and_stored_refiners_load_through_the_same_call(tmp_path):
    net = load_model('tiny'); net.save_pretrained(tmp_path)
    assert isinstance(net, SRFlowNet) and isinstance(load_model(tmp_path), SRFlowNet)


@pytest.mark.parametrize('spoil, words', [
    (lambda d: (d/'config.json').unlink(), 'config.json missing'), (lambda d: (d/'config.json').write_text('{"size": "pwd"}'), 'nearest: pwc'),
    (lambda d: (d/'config.json').write_text('[1]'), "field 'size'"), (lambda d: (d/'model.safetensors').write_bytes(b'nonsense'), 'not the weights'),
    (lambda d: (d/'config.json').write_text('{"size": "raft_small"}'), 'not the weights')])
def test_a_damaged_folder_is_named(tmp_path, spoil, words):
    build_model('pwc').save_pretrained(tmp_path); spoil(tmp_path)
    with pytest.raises(InputError, match=words): load_model(tmp_path)


def test_a_folder_of_another_family_is_named(tmp_path):
    build_model('pwc').save_pretrained(tmp_path)
    with pytest.raises(InputError, match='holds a PWCNet'): RaftSmall.from_pretrained(tmp_path)


@pytest.mark.parametrize('call, words', [
    (lambda: build_model('raft'), 'nearest: raft_small'), (lambda: load_model('nowhere'), 'nowhere'), (lambda: PWCNet('pwcc'), 'nearest: pwc'),
    (lambda: build_model('pwc')(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9)), 'different size'),
    (lambda: build_model('pwc')(torch.rand(3, 8, 8), torch.rand(3, 8, 8)), r'\(B, 3, H, W\)'),
    (lambda: build_model('raft_small')(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), init_flow=torch.zeros(1, 2, 4, 4)), 'init_flow')])
def test_mistakes_are_named(call, words):
    with pytest.raises(InputError, match=words): call()


def test_cost_volume_finds_a_shift():
    features = F.normalize(torch.randn(1, 16, 12, 14), dim=1)
    best = cost_volume(features, features.roll((-1, 2), (2, 3)), 3)[0, :, 4:-4, 4:-4].argmax(0)
    assert (best == (3 - 1)*7 + 3 + 2).all()


@pytest.mark.parametrize('name', ['raft_small'])      # 'pwc' passes too, but takes minutes: each of its 147 shifts is a symbolic slice
def test_flow_as_onnx_is_the_same_flow(name):
    onnxruntime = pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    class Once(torch.nn.Module):
        "One round from a given flow: all operations of the network, exported in a quarter of the time."
        def __init__(self, net): super().__init__(); self.net = net
        def forward(self, frame1, frame2, init_flow): return self.net.refine(frame1, frame2, init_flow, 1)[0][-1]
    def inputs(height, width): return torch.rand(1, 3, height, width), torch.rand(1, 3, height, width), 3*torch.randn(1, 2, height, width)
    net, any_size, names = Once(built(name)).eval(), {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}, ['frame1', 'frame2', 'init_flow']
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        program = torch.onnx.export(net, inputs(64, 96), dynamo=True, dynamic_shapes=(any_size,)*3, verbose=False, input_names=names, output_names=['flow'])
    engine = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=['CPUExecutionProvider'])
    for size in ((64, 96), (75, 50)):
        given = inputs(*size)
        there = engine.run(None, {n: x.numpy() for n, x in zip(names, given)})[0]
        with torch.no_grad(): here = net(*given).numpy()
        assert there.shape == here.shape and np.abs(there - here).max() < 1e-3*max(1., np.abs(here).max())


def test_compiled_flow_is_the_same_flow():
    net, a, b = built('raft_small'), torch.rand(1, 3, 40, 56), torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        want = net.refine(a, b)[0][-1]
        got = torch.compile(net.refine, backend='aot_eager')(a, b)[0][-1]      # traced whole; no C++ compiler needed
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
