"Promises of 14b_deploy: one ONNX file for every size, the same flow as PyTorch's; a compiled graph without breaks; clear words where a package is missing."
# The lesson itself checks one size against ONNX Runtime; exporting takes most of a minute, so the other sizes wait for --slow.
import sys

import numpy as np
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.deploy import Repair, export_onnx
from srflow_nb.model import SRFlowNet, classical_start
from srflow_nb.warps import photo, photo_pairs


@pytest.fixture(scope='module')
def frames():
    pair = photo_pairs(photo('astronaut'), n=1, size=96, seed=5, motion=(1.5, 1.51))[0]
    a, b = pair['frame1'][None], pair['frame2'][None]
    return a, b, classical_start(a, b)


@pytest.fixture(scope='module')
def net(): return SRFlowNet.from_pretrained('tiny')


@pytest.fixture(scope='module')
def engine(net, tmp_path_factory):
    onnxruntime = pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    path = export_onnx(net, tmp_path_factory.mktemp('onnx')/'tiny.onnx')
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('size', [(64, 64), (96, 50), (33, 95), (17, 18)])
def test_one_file_gives_the_same_flow_at_every_size(engine, net, frames, size):
    a, b, start = (x[..., :size[0], :size[1]].contiguous() for x in frames)
    there = engine.run(None, dict(frame1=a.numpy(), frame2=b.numpy(), init_flow=start.numpy()))[0]
    with torch.no_grad(): here = Repair(net)(a, b, start).numpy()
    assert there.shape == (1, 2, *size) and np.abs(there - here).max() < 1e-3


def test_the_graph_is_captured_whole(net, frames):
    "`aot_eager` traces as the real compiler does, but needs no C++ compiler; fullgraph: no silent return to Python."
    with torch.no_grad():
        compiled = torch.compile(Repair(net), backend='aot_eager', fullgraph=True)(*frames)
        torch.testing.assert_close(compiled, Repair(net)(*frames), atol=1e-4, rtol=1e-4)


def test_a_missing_exporter_is_named(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(InputError, match=r"onnxscript: pip install 'srflow-nb\[onnx\]'"): export_onnx(net, tmp_path/'x.onnx')
    assert not list(tmp_path.iterdir())
