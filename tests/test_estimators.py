"Promises of 15_estimators: one call for all, right shapes and directions, helpful errors."
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.estimators import ESTIMATORS, get_estimator
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


@pytest.mark.parametrize('name, near', [('deepflw', 'deepflow'), ('DIS', 'dis'), ('no/such/folder', 'folder')])
def test_unknown_names_get_help(name, near):
    with pytest.raises(InputError, match=near): get_estimator(name)


@pytest.mark.parametrize('name', ESTIMATORS)
def test_frames_of_different_size_are_refused(name):
    with pytest.raises(InputError, match='different size'): get_estimator(name)(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 44))
