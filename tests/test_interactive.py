"Sliders that move what they say, twins that need no kernel, figures that stay small."
import base64, json, re

import cv2
import numpy as np
import plotly.graph_objects as go
import pytest

from srflow_nb import interactive
from srflow_nb.core import InputError, rng
from srflow_nb.interactive import explore, explore_static, line_figure, live_surface, show_figure, surface_figure, surface_picture

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
SIDES = np.array([[1, 5, 3], [5, 7, 3], [0, 2, 4], [4, 2, 6], [2, 3, 6], [3, 7, 6], [0, 4, 1], [1, 4, 5], [4, 6, 5], [5, 6, 7], [0, 1, 2], [1, 3, 2]])


@pytest.fixture
def calls():
    "A drawing function that remembers what it was asked for: (draw, list of values)."
    asked = []

    def draw(level=0., size=8, name='grey'):
        asked.append((level, size))
        if level > .95: raise InputError("too bright")
        return np.full((size, size, 3), level, np.float32)
    return draw, asked


def decode(data): return cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


# ---- sliders -----------------------------------------------------------------------------------------------------

def test_a_moved_slider_draws_its_value(calls):
    draw, asked = calls
    panel = explore(draw, level=(0., 1.), size=(4, 16, 2, 8))
    assert asked == [(0., 8)]
    panel.sliders['level'].value = .5
    panel.sliders['size'].value = 10
    assert asked == [(0., 8), (.5, 8), (.5, 10)] and panel.values == {'level': .5, 'size': 10}
    picture = decode(panel.view.value)
    assert picture.shape == (10, 10, 3) and np.abs(picture.astype(int) - 128).max() <= 3


def test_sliders_start_at_rest_and_whole_numbers_stay_whole(calls):
    s = explore(calls[0], level=(-.5, .5), size=(3, 9)).sliders
    assert s['level'].value == 0 and s['level'].step == pytest.approx(.01)
    assert s['size'].value == 3 and isinstance(s['size'].value, int)


def test_an_error_is_shown_and_goes_away(calls):
    panel = explore(calls[0], level=(0., 1.))
    panel.sliders['level'].value = 1.
    assert panel.note.value == 'InputError: too bright'
    panel.sliders['level'].value = .2
    assert panel.note.value == '' and np.abs(decode(panel.view.value).astype(int) - 51).max() <= 3


def test_slow_drawings_wait_for_the_mouse_to_let_go(calls, monkeypatch):
    def continuous(**kw): return explore(calls[0], level=(0., 1.), **kw).sliders['level'].continuous_update
    assert continuous(continuous=True) and not continuous(continuous=False)
    monkeypatch.setattr(interactive, 'CONTINUOUS', 0.)
    assert not continuous()
    monkeypatch.setattr(interactive, 'CONTINUOUS', 1e6)
    assert continuous()


def test_without_a_kernel_a_panel_is_a_picture(calls):
    panel = explore(calls[0], level=(0., 1., .1, .3))
    shown = panel._repr_mimebundle_()
    assert list(shown) == ['text/html'] and 'data:image/webp' in shown['text/html'] and 'level = 0.3' in shown['text/html']


def test_with_a_kernel_a_panel_is_live(calls, monkeypatch):
    monkeypatch.setattr(interactive, 'get_ipython', lambda: type('Shell', (), {'kernel': object()})())
    panel = explore(calls[0], level=(0., 1.))
    assert panel._repr_mimebundle_()['application/vnd.jupyter.widget-view+json']['model_id'] == panel.model_id


@pytest.mark.parametrize('spec', [(0., ), (1., 0.), (0., 1., 0.), (0., 1., .1, 2.), (0., np.nan), 3., 'ab', (0, 1, 1, 0, 0), (0., 'x')])
def test_bad_sliders_are_refused(calls, spec):
    with pytest.raises(InputError, match='level'): explore(calls[0], level=spec)
    assert calls[1] == []


def test_unknown_and_missing_sliders_are_refused(calls):
    with pytest.raises(InputError, match='nearest: level'): explore(calls[0], levl=(0., 1.))
    with pytest.raises(InputError, match='no sliders'): explore(calls[0])
    with pytest.raises(InputError, match='not a picture'): explore(lambda a: np.zeros(3), a=(0., 1.))


# ---- static twins ------------------------------------------------------------------------------------------------

def test_the_static_twin_has_one_picture_for_each_value(calls):
    draw, asked = calls
    page = explore_static(draw, 'level', [0, .25, .75], size=6).html
    assert asked == [(0, 6), (.25, 6), (.75, 6)]
    greys = [decode(base64.b64decode(d))[0, 0, 0] for d in re.findall(r'data:image/webp;base64,([^"]+)"', page)]
    assert np.abs(np.array(greys) - [0, 64, 191]).max() <= 3
    assert all(f'level = {v}' in page for v in ('0', '0.25', '0.75')) and 'size = 6' in page and 'http' not in page


def test_bad_static_twins_are_refused(calls):
    with pytest.raises(InputError, match='no values'): explore_static(calls[0], 'level', [])
    with pytest.raises(InputError, match='nearest: level'): explore_static(calls[0], 'lvel', [0.])
    with pytest.raises(InputError, match='fixed as well'): explore_static(calls[0], 'level', [0.], level=1.)


# ---- surfaces ----------------------------------------------------------------------------------------------------

def array(a): return np.frombuffer(base64.b64decode(a['bdata']), a['dtype'])


def test_a_surface_is_stored_as_small_binary_arrays():
    v, f = rng(0, 'mesh').normal(size=(5000, 3)), rng(0, 'faces').integers(0, 5000, (10_000, 3))
    mesh = json.loads(surface_figure(v, f, v[:, 0]).to_json())['data'][0]
    for a, want in zip('xyz', v.T): assert mesh[a]['dtype'] == 'f4' and np.array_equal(array(mesh[a]), want.astype(np.float32))
    for a, want in zip('ijk', f.T): assert mesh[a]['dtype'] == 'u2' and np.array_equal(array(mesh[a]), want)
    raw = 5000 * 4 * 4 + 10_000 * 3 * 2
    assert len(show_figure(surface_figure(v, f, v[:, 0])).html) < 1.34 * raw + 3000


def test_many_vertices_get_wider_indices():
    v = np.zeros((65_537, 3)); v[:, 0] = np.arange(len(v))
    mesh = json.loads(surface_figure(v, [[0, 1, 65_536]]).to_json())['data'][0]
    assert mesh['k']['dtype'] == 'i4' and array(mesh['k'])[0] == 65_536


def test_axes_are_equal_and_hidden():
    scene = surface_figure(CUBE * [1, 2, 3] + 5, SIDES).layout.scene
    spans = [np.ptp(scene[f'{a}axis'].range) for a in 'xyz']
    assert spans == pytest.approx([spans[0]] * 3) and spans[0] > 6 and len({scene.aspectratio[a] for a in 'xyz'}) == 1
    assert not any(scene[f'{a}axis'].visible for a in 'xyz') and scene.camera.up.y == 1 and scene.camera.eye.z > 0


def test_vertex_colours_are_kept():
    mesh = surface_figure(CUBE, SIDES, np.tile([1., .5, 0.], (8, 1))).data[0]
    assert set(mesh.vertexcolor) == {'#ff8000'} and mesh.intensity is None


def test_a_figure_has_a_form_for_every_viewer():
    bundle = show_figure(surface_figure(CUBE, SIDES, title='</script>'), surface_picture(CUBE, SIDES))._repr_mimebundle_()
    page = bundle['text/html']
    assert 'data:image/webp' in page and 'Plotly.newPlot' in page and page.count('</script>') == 1 and 'http' not in page
    call = page[page.index('newPlot(d,') + 10:page.rindex(')}})()')]
    data, layout, config = json.loads(f'[{call}]')
    assert go.Figure(data, layout).to_dict() == go.Figure(bundle['application/vnd.plotly.v1+json']['data'], layout).to_dict()


def test_a_picture_of_a_surface_shows_its_front():
    rgb = np.where(CUBE[:, 2:] > 0, [1., 0, 0], [0., 0, 1.])
    picture = surface_picture(CUBE, SIDES, rgb, size=64)
    assert picture[32, 32, 0] > 200 and (picture[32, 32, 1:] == 0).all() and (picture[0, 0] == 255).all()


@pytest.mark.parametrize('v, f, c, says', [(CUBE[:, :2], SIDES, None, 'vertices'), (CUBE, SIDES + 1, None, 'there are 8'), (CUBE, SIDES * 1., None, 'faces'),
    (CUBE, SIDES, np.zeros(7), 'colors'), (CUBE * np.nan, SIDES, None, 'NaN')])
def test_bad_surfaces_are_refused(v, f, c, says):
    for make in (surface_figure, surface_picture):
        with pytest.raises(InputError, match=says): make(v, f, c)


def test_a_live_surface_follows_its_slider():
    panel = live_surface(lambda stretch, shift: CUBE * [stretch, 1, 1] + [0, shift, 0], SIDES, colors=lambda v: v[:, 0], stretch=(1., 3.), shift=(-1., 1.))
    assert isinstance(panel.view, go.FigureWidget)
    before = panel.view.layout.scene.to_plotly_json()
    panel.sliders['stretch'].value = 2.
    panel.sliders['shift'].value = -.5
    mesh = panel.view.data[0]
    assert np.allclose(np.stack([mesh.x, mesh.y, mesh.z], 1), CUBE * [2, 1, 1] + [0, -.5, 0]) and np.allclose(mesh.intensity, CUBE[:, 0] * 2)
    assert panel.view.layout.scene.to_plotly_json() == before            # the point of view is the reader's
    assert 'data:image/webp' in panel._repr_mimebundle_()['text/html']


# ---- curves ------------------------------------------------------------------------------------------------------

def test_curves_keep_their_numbers_and_names():
    fig = line_figure({'epe': [3., 2., 1.], 'px1': ([10, 20], [5., 4.])}, 'step', 'error')
    assert [t.name for t in fig.data] == ['epe', 'px1'] and list(fig.data[0].x) == [0, 1, 2] and list(fig.data[1].y) == [5, 4]
    assert line_figure({'a': [1., 2.]}, log=True).layout.xaxis.type == 'log'


def test_bad_figures_are_refused():
    with pytest.raises(InputError, match='no curves'): line_figure({})
    with pytest.raises(InputError, match='two equal'): line_figure({'a': ([1], [1, 2])})
    with pytest.raises(InputError, match='plotly Figure'): show_figure({'data': []})
