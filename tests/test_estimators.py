"Promises of 15_estimators: one call for all, right shapes and directions, helpful errors."
import enum, sys, types, urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from srflow_nb.core import InputError
from srflow_nb.estimators import ESTIMATORS, get_estimator, load_ptlflow, load_torchvision
from srflow_nb.model import SRFlowNet
from srflow_nb.warps import photo, photo_pairs


@pytest.fixture(scope='module')
def pairs(): return photo_pairs(photo('astronaut'), n=2, size=128, seed=7, motion=(1.5, 2.))


@pytest.mark.parametrize('name', ESTIMATORS)
def test_every_estimator_returns_flow_of_the_right_kind(name, pairs):
    a, b, true = (torch.stack([p[k] for p in pairs]) for k in ('frame1', 'frame2', 'flow'))
    flow = get_estimator(name)(a, b)
    assert flow.shape == true.shape and flow.dtype == torch.float32 and flow.isfinite().all()
    if name != 'zero': assert (flow - true).norm(dim=1).mean() < .5*true.norm(dim=1).mean()


@pytest.mark.parametrize('name', sorted(set(ESTIMATORS) - {'zero', 'srflownet-tiny'}))
def test_u_is_right_and_v_is_down(name):
    image = torch.from_numpy(photo('astronaut').copy()).permute(2, 0, 1)[:, 60:220, 150:310]
    a, b = image[:, 10:138, 10:138], image[:, 9:137, 8:136]      # the content moved right by 2 and down by 1
    flow = get_estimator(name)(a[None], b[None])[0, :, 20:-20, 20:-20].mean((1, 2))
    torch.testing.assert_close(flow, torch.tensor([2., 1.]), atol=.2, rtol=0)


@pytest.mark.parametrize('name', ESTIMATORS)
def test_asked_twice_the_answer_is_the_same(name, pairs):
    a, b = pairs[0]['frame1'][None], pairs[0]['frame2'][None]
    assert torch.equal(get_estimator(name)(a, b), get_estimator(name)(a, b))


def test_a_folder_of_weights_is_an_estimator_and_new_weights_are_read_anew(tmp_path, pairs):
    a, b = pairs[0]['frame1'][None], pairs[0]['frame2'][None]
    net = SRFlowNet('tiny'); net.save_pretrained(tmp_path)
    first = get_estimator(str(tmp_path))(a, b)
    with torch.no_grad(): net.step.gates.bias[-16:] = -9.         # shut the static gate
    net.save_pretrained(tmp_path)
    assert first.abs().max() > 0 and get_estimator(tmp_path)(a, b).abs().max() == 0


@pytest.mark.parametrize('name, near', [('deepflw', 'deepflow'), ('DIS', 'dis'), ('no/such/folder', 'folder'),
                                        ('torchvison:raft_small', 'torchvision:raft_small'), ('ptlflow', 'ptlflow:skflow')])
def test_unknown_names_get_help(name, near):
    with pytest.raises(InputError, match=near): get_estimator(name)


@pytest.mark.parametrize('name', ESTIMATORS)
def test_frames_of_different_size_are_refused(name):
    with pytest.raises(InputError, match='different size'): get_estimator(name)(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 44))


# ---- torchvision and ptlflow: stand-ins with the signatures of torchvision 0.23 and ptlflow 0.4.2 ------------------------

class Raft(nn.Module):
    "Takes what torchvision's RAFT takes; its flow is a map of frame 1's red, so that the adapter's work can be seen."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.))
    def forward(self, image1, image2, num_flow_updates: int = 12):
        h, w = image1.shape[-2:]
        if image1.shape != image2.shape: raise ValueError('input images should have the same shape')
        if h % 8 or w % 8: raise ValueError('input image H and W should be divisible by 8')
        if min(h, w) < 128: raise ValueError('Feature maps are too small')
        assert -1 <= image1.min() and image1.max() <= 1 and image1.min() < 0
        red = image1[:, :1]
        return [torch.zeros_like(torch.cat([red, red], 1))]*(num_flow_updates - 1) + [self.scale*torch.cat([red, image2[:, :1]], 1)]


@pytest.fixture
def torchvision(monkeypatch):
    "A torchvision that knows two RAFTs; its weights of version 1 double the flow, version 2 is not to be had."
    class Weights(enum.Enum):
        C_T_V1 = 'one'
        C_T_V2 = 'two'
        DEFAULT = 'one'
    def build(*, weights=None, progress=True, **kwargs):
        assert weights is None or isinstance(weights, Weights)
        if weights is Weights.C_T_V2: raise urllib.error.URLError('no network')
        net = Raft()
        if weights: nn.init.constant_(net.scale, 2.)
        return net.train()
    flow = types.ModuleType('torchvision.models.optical_flow')
    for name, value in dict(raft_small=build, raft_large=build, Raft_Small_Weights=Weights, Raft_Large_Weights=Weights).items(): setattr(flow, name, value)
    for name, module in {'torchvision': types.ModuleType('torchvision'), 'torchvision.models': types.ModuleType('torchvision.models'),
                         'torchvision.models.optical_flow': flow}.items(): monkeypatch.setitem(sys.modules, name, module)
    load_torchvision.cache_clear()
    yield flow
    load_torchvision.cache_clear()


class PtlModel(nn.Module):
    "Takes what ptlflow's models take: a dict with `images` (B,2,3,H,W), blue first; gives `flows` (B,1,2,H,W)."
    pretrained_checkpoints = {'kitti': 'k', 'things': 't'}
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.))
    def forward(self, inputs):
        blue, green, red = inputs['images'].unbind(2)
        return dict(flows=self.scale*torch.stack([red[:, 0] - blue[:, 0], green[:, 1]], 1)[:, None])


@pytest.fixture
def ptlflow(monkeypatch):
    "A ptlflow with one model with weights and one without."
    library, asked = types.ModuleType('ptlflow'), []
    class Bare(PtlModel): pretrained_checkpoints = {}
    models = dict(skflow=PtlModel, bare=Bare)
    def get_model(model_name, ckpt_path=None, args=None):
        asked.append(ckpt_path)
        if ckpt_path == 'kitti': raise urllib.error.URLError('no network')
        net = models[model_name]().train()
        if ckpt_path not in PtlModel.pretrained_checkpoints: net.load_state_dict(torch.load(ckpt_path, weights_only=True)['state_dict'])
        return net
    library.get_model, library.get_model_names, library.get_model_reference, library.asked = get_model, lambda: sorted(models), models.get, asked
    monkeypatch.setitem(sys.modules, 'ptlflow', library)
    load_ptlflow.cache_clear()
    yield library
    load_ptlflow.cache_clear()


@pytest.mark.parametrize('size', [(40, 52), (136, 140), (128, 128)])
def test_torchvision_gets_the_colours_and_sizes_it_wants(torchvision, size):
    a, b = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    torch.testing.assert_close(get_estimator('torchvision:raft_small')(a, b), 2*(2*torch.stack([a[:, 0], b[:, 0]], 1) - 1))


def test_torchvision_loads_weights_by_name_and_from_files(torchvision, tmp_path):
    a = torch.rand(1, 3, 128, 128)
    torch.save({'scale': torch.tensor(3.)}, tmp_path/'w.pth')
    save_file({'scale': torch.tensor(4.)}, tmp_path/'w.safetensors')
    red = 2*a[:, :1] - 1
    for name, scale in (('raft_large', 2), ('raft_small@C_T_V1', 2), (f'raft_small@{tmp_path}/w.pth', 3), (f'raft_large@{tmp_path}/w.safetensors', 4)):
        estimate = get_estimator(f'torchvision:{name}')
        torch.testing.assert_close(estimate(a, a)[:, :1], scale*red)
        assert not estimate.keywords['network'].training


def test_a_file_of_weights_that_changed_is_read_anew(torchvision, tmp_path):
    import os
    a, file = torch.rand(1, 3, 128, 128), tmp_path/'w.pth'
    for scale in (3., 5.):
        torch.save({'scale': torch.tensor(scale)}, file); os.utime(file, (scale, scale))
        torch.testing.assert_close(get_estimator(f'torchvision:raft_small@{file}')(a, a)[:, :1], scale*(2*a[:, :1] - 1))


@pytest.mark.parametrize('name, message', [
    ('torchvision:raft_smal', 'nearest: raft_small'), ('torchvision:raft_small@C_T_V3', 'nearest: C_T_V'),
    ('torchvision:raft_small@C_T_V2', r'could not be fetched .*no network.*write torchvision:raft_small@FILE'),
    ('torchvision:raft_small@no/such/file.pth', "unknown file or weights of torchvision:raft_small 'no/such/file.pth'")])
def test_what_torchvision_lacks_is_said_in_one_line(torchvision, name, message):
    with pytest.raises(InputError, match=message) as e: get_estimator(name)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('content', [b'', b'not weights at all', 'other'])
def test_a_file_that_holds_something_else_is_refused(torchvision, tmp_path, content):
    file = tmp_path/'w.pth'
    if isinstance(content, bytes): file.write_bytes(content)
    else: torch.save({'other': torch.zeros(1)}, file)
    with pytest.raises(InputError, match='not weights of this model') as e: get_estimator(f'torchvision:raft_small@{file}')
    assert '\n' not in str(e.value)


def test_a_file_that_would_run_code_is_refused(torchvision, tmp_path):
    torch.save({'scale': enum.Enum}, tmp_path/'w.pth')
    with pytest.raises(InputError, match='not weights of this model'): get_estimator(f'torchvision:raft_small@{tmp_path}/w.pth')


def test_ptlflow_gets_both_frames_blue_first(ptlflow):
    a, b = torch.rand(2, 3, 30, 41), torch.rand(2, 3, 30, 41)
    flow = get_estimator('ptlflow:skflow')(a, b)
    torch.testing.assert_close(flow, torch.stack([a[:, 0] - a[:, 2], b[:, 1]], 1))
    assert ptlflow.asked == ['things'] and not get_estimator('ptlflow:skflow').keywords['network'].training


def test_ptlflow_loads_a_file(ptlflow, tmp_path):
    a = torch.rand(1, 3, 16, 16)
    torch.save(dict(state_dict={'scale': torch.tensor(3.)}), tmp_path/'w.ckpt')
    for name in ('skflow', 'bare'):
        torch.testing.assert_close(get_estimator(f'ptlflow:{name}@{tmp_path}/w.ckpt')(a, a)[:, 1], 3*a[:, 1])


@pytest.mark.parametrize('name, message', [
    ('ptlflow:skflw', 'nearest: skflow'), ('ptlflow:skflow@thing', 'nearest: things'), ('ptlflow:bare', 'has no weights for it; write ptlflow:bare@FILE'),
    ('ptlflow:skflow@kitti', 'could not be fetched .*no network')])
def test_what_ptlflow_lacks_is_said_in_one_line(ptlflow, name, message):
    with pytest.raises(InputError, match=message): get_estimator(name)


@pytest.mark.parametrize('name', ['torchvision:raft_small', 'ptlflow:skflow'])
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, name):
    package = name.split(':')[0]
    monkeypatch.setitem(sys.modules, package, None)               # an import of it fails
    with pytest.raises(InputError, match=f"estimator '{name}' needs the package {package}: pip install {package}"): get_estimator(name)


def test_a_package_built_for_another_torch_is_named(monkeypatch):
    def broken(name, *args): raise RuntimeError('operator torchvision::nms does not exist')
    monkeypatch.setattr('importlib.import_module', broken)
    with pytest.raises(InputError, match='torchvision does not load .operator torchvision::nms does not exist.; install the version made for torch'):
        get_estimator('torchvision:raft_small')
