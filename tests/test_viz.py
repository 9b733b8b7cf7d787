"Pictures of flow: colours as defined, legends always there, HTML that needs nothing else."
import base64, re

import cv2
import numpy as np
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.viz import (UNKNOWN, add_wheel, contact_sheet, error_map, error_vmax, flow_radius, flow_to_rgb, flow_wheel, image_html,
                           scrubber, show_flow, show_images, to_uint8, wheel_color, wheel_html)


def middlebury(u, v):
    "The 55-colour wheel as the C++ code of Baker et al. writes it, one pixel, inside the radius."
    steps = dict(RY=15, YG=6, GC=4, CB=11, BM=13, MR=6)
    wheel = [(255, 255*i/15, 0) for i in range(15)] + [(255 - 255*i/6, 255, 0) for i in range(6)] + [(0, 255, 255*i/4) for i in range(4)]
    wheel += [(0, 255 - 255*i/11, 255) for i in range(11)] + [(255*i/13, 0, 255) for i in range(13)] + [(255, 0, 255 - 255*i/6) for i in range(6)]
    assert len(wheel) == sum(steps.values())
    fk = (np.arctan2(-v, -u) / np.pi + 1) / 2 * 54
    k0 = int(fk); f = fk - k0; r = np.hypot(u, v)
    col = [(1 - f) * a/255 + f * b/255 for a, b in zip(wheel[k0], wheel[(k0 + 1) % 55])]
    return np.array([1 - r * (1 - c) for c in col]) * 255


def test_colours_are_those_of_middlebury():
    "Ours is the same wheel without the seam: hues differ by at most one of 55 steps."
    for a in np.linspace(-3.1, 3.1, 200):
        u, v = .8 * np.cos(a), .8 * np.sin(a)
        ours = flow_to_rgb(np.array([u, v]).reshape(2, 1, 1), radius=1.)[0, 0]
        assert np.abs(ours - middlebury(u, v)).max() < 255 * .8 / 4 + 1       # the shortest arc of the wheel has 4 steps


@pytest.mark.parametrize('flow, rgb', [((1, 0), (255, 0, 0)), ((0, 1), (255, 234, 0)), ((-1, 0), (0, 197, 255)), ((0, -1), (104, 0, 255))])
def test_directions_have_their_colours(flow, rgb):
    assert np.abs(flow_to_rgb(np.array(flow, float).reshape(2, 1, 1), radius=1.).ravel() - np.array(rgb)).max() <= 1


def test_colour_does_not_depend_on_length_beyond_saturation_of_white():
    out = flow_to_rgb(torch.tensor([[[0., .5, 1., 2.]], [[0., 0, 0, 0]]]), radius=1.)[0]
    assert out.tolist() == [[255, 255, 255], [255, 128, 128], [255, 0, 0], [191, 0, 0]]


def test_gamma_lifts_small_motion_and_leaves_the_radius():
    f = torch.tensor([[[.04, 1.]], [[0., 0.]]])
    assert flow_to_rgb(f, 1., .5)[0].tolist() == [[255, 204, 204], [255, 0, 0]]      # sqrt(.04) = .2


def test_unknown_is_grey_and_does_not_move_the_radius():
    f = torch.zeros(2, 3, 3); f[0] = 2.; f[:, 0, 0] = torch.nan; f[1, 1, 1] = torch.nan; f[0, 2, 2] = torch.inf
    out = flow_to_rgb(f)
    for y, x in ((0, 0), (1, 1), (2, 2)): assert out[y, x].tolist() == [UNKNOWN]*3
    assert flow_radius(f) == 2.


@pytest.mark.parametrize('flow', [torch.zeros(2, 4, 4), torch.full((2, 4, 4), torch.nan)])
def test_nothing_to_see_gives_a_picture_without_warnings(flow, recwarn):
    assert flow_radius(flow) == 1. and flow_to_rgb(flow).shape == (4, 4, 3)
    assert not [w for w in recwarn if 'divide' in str(w.message) or 'invalid' in str(w.message)]


def test_a_single_moving_pixel_still_sets_a_radius():
    f = torch.zeros(2, 50, 50); f[0, 3, 3] = .7
    assert flow_radius(f) == pytest.approx(.7)


def test_wheel_is_the_painted_identity():
    n, c = 101, 50
    w = flow_wheel(n).astype(int)
    for a in np.linspace(0, 2*np.pi, 16, endpoint=False):
        x, y = round(c + 40 * np.cos(a)), round(c + 40 * np.sin(a))
        s = np.hypot(x - c, y - c) / (n / 2)
        assert np.abs(w[y, x] - (1 - s * (1 - wheel_color(np.arctan2(y - c, x - c)))) * 255).max() <= 2
    assert (w[0, 0] == 255).all() and (w[c, c] == 255).all()


def test_torch_numpy_batch_and_half_give_the_same_picture():
    f = torch.from_numpy(rng(0, 'viz').normal(size=(2, 5, 6))).float()
    ref = flow_to_rgb(f, 3.)
    for g in (f.numpy(), f[None], f.double(), f.clone().requires_grad_()): assert np.abs(flow_to_rgb(g, 3.).astype(int) - ref).max() == 0
    assert np.abs(flow_to_rgb(f.half(), 3.).astype(int) - ref).max() <= 1


@pytest.mark.parametrize('image, shape', [(torch.rand(3, 4, 5), (4, 5, 3)), (torch.rand(1, 3, 4, 5), (4, 5, 3)), (torch.rand(1, 4, 5), (4, 5, 3)),
    (torch.rand(4, 5), (4, 5, 3)), (np.full((4, 5, 3), .5), (4, 5, 3)), (np.zeros((3, 7, 3), np.uint8), (3, 7, 3)), (np.zeros((6, 5, 4), np.uint8), (6, 5, 3)),
    (torch.ones(4, 5, dtype=torch.bool), (4, 5, 3)), (torch.zeros(3, 4, 5, dtype=torch.uint8), (4, 5, 3)), (torch.rand(3, 4, 5).bfloat16(), (4, 5, 3))])
def test_every_usual_form_of_picture_is_accepted(image, shape):
    out = to_uint8(image)
    assert out.shape == shape and out.dtype == np.uint8 and out.flags.c_contiguous


@pytest.mark.parametrize('bad', [torch.rand(2, 4, 5), torch.rand(2, 3, 4, 5), np.zeros(3), np.zeros((0, 4)), np.zeros((4, 4), int), torch.rand(3, 4, 4) * 255])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(InputError, match='picture'): to_uint8(bad)


def test_error_map_scale():
    e = torch.tensor([[0., 1., 2., 4., torch.nan]])
    out = error_map(e, vmax=2.).astype(int)[0]
    assert (out[2] == out[3]).all() and out[0].sum() < out[1].sum() < out[2].sum() and (out[4] == UNKNOWN).all()
    assert error_vmax(torch.zeros(3, 3)) == 1. and error_vmax(torch.full((3, 3), torch.nan)) == 1.


def decode(src):
    return cv2.imdecode(np.frombuffer(base64.b64decode(src), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pictures_survive_the_page():
    img = to_uint8(cv2.GaussianBlur(rng(0, 'page').random((40, 60, 3)), (9, 9), 0))
    for fmt, tol in (('webp', 6), ('png', 0), ('jpeg', 6)):
        src = re.search(rf'data:image/{fmt};base64,([^"]+)"', image_html(img, fmt=fmt, quality=95)).group(1)
        assert np.abs(decode(src).astype(int) - img).mean() <= tol
    assert decode(re.search(r'base64,([^"]+)"', image_html(img, width=30)).group(1)).shape == (20, 30, 3)


def test_small_pictures_are_enlarged_without_blur_or_loss():
    img = np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)
    page = image_html(img, width=100)
    assert 'pixelated' in page and (decode(re.search(r'base64,([^"]+)"', page).group(1)) == img).all()


def test_captions_cannot_inject_markup():
    page = str(show_images([np.zeros((2, 2), np.uint8)], ['<script>alert(1)</script>"']))
    assert '<script>' not in page and '&lt;script&gt;' in page


def test_show_flow_carries_wheel_and_scale():
    f = torch.ones(2, 20, 20)
    page = str(show_flow(torch.rand(3, 20, 20), f, f * 2))
    assert 'radius 2.83 px' in page and '1.41 px' in page and page.count('<img') == 6
    assert 'gamma 0.5' in str(show_flow(None, f, gamma=.5))
    assert 'radius' not in str(show_flow(torch.rand(3, 20, 20), None))
    with pytest.raises(InputError, match='nothing to show'): show_flow(None, None)
    with pytest.raises(InputError, match='titles'): show_flow(None, f, titles=['a', 'b'])


def test_one_radius_for_both_flows():
    f = torch.ones(2, 20, 20)
    a, b = [decode(m) for m in re.findall(r'base64,([^"]+)"', str(show_flow(None, f, f * 2)))[:2]]
    assert a.astype(int).sum() > b.astype(int).sum()        # half as long is paler, not the same


def test_legend_in_the_corner_leaves_the_rest_alone():
    pic = np.full((100, 150, 3), 7, np.uint8)
    out = add_wheel(pic, 3.25)
    assert (out[:70] == 7).all() and (out[80:, 130:] != 7).any() and (pic == 7).all()
    assert add_wheel(np.zeros((8, 8, 3), np.uint8), 1.).shape == (8, 8, 3)     # tiny pictures do not crash


def test_contact_sheet_places_tiles_in_reading_order():
    tiles = [np.full((4, 6), 40 * i, np.uint8) for i in range(5)]
    s = contact_sheet(tiles, cols=3, gap=1)
    assert s.shape == (9, 20, 3) and s[0, 0, 0] == 0 and s[0, 7, 0] == 40 and s[5, 7, 0] == 160 and s[5, 14, 0] == 255 and s[4, 0, 0] == 255
    with pytest.raises(InputError, match='different sizes'): contact_sheet([np.zeros((4, 4)), np.zeros((5, 4))])


def test_scrubber_is_self_contained_and_small():
    x = np.linspace(0, 1, 192)
    frames = [np.clip(np.outer(x, x)[..., None] * np.array([i, 17 - i, 9]) / 17, 0, 1) for i in range(17)]
    page = scrubber(frames, [f'<{i}>' for i in range(17)], 'a & b').html
    assert page.count('data:image/webp') == 17 and len(page) < 60_000
    for outside in ('http', '<script', '<link', 'src="/', ' id=', '@import'): assert outside not in page
    assert 'a &amp; b' in page and '&lt;3&gt;' in page and 'aria-label' in page and 'type="range" min="0" max="16"' in page
    assert page.count('display:none') == 16                  # all but the first frame
    page2 = page + page                                      # two on one page: handlers look only inside their own box
    assert "closest('.srflow-scrubber')" in page2 and 'document.' not in page2 and 'window.' not in page2


def test_scrubber_refuses_what_it_cannot_show():
    with pytest.raises(InputError, match='no frames'): scrubber([])
    with pytest.raises(InputError, match='labels'): scrubber([np.zeros((2, 2))], ['a', 'b'])


def test_figures_print_short_and_save_whole(tmp_path):
    fig = show_images({'a': np.zeros((9, 9))})
    assert len(repr(fig)) < 60 and fig._repr_html_() == str(fig)
    fig.save(tmp_path/'f.html', '<t>')
    page = (tmp_path/'f.html').read_text()
    assert page.startswith('<!doctype html>') and str(fig) in page and '&lt;t&gt;' in page
    assert 'radius 2 px' in wheel_html(2.)


@pytest.mark.parametrize('kind', [np.float32, np.float64, np.uint8, bool])
def test_the_order_in_memory_changes_no_byte(kind):
    a = rng(0, 'order').normal(.5, .4, (21, 30, 3))
    a = (a > .5) if kind is bool else (a.clip(0, 1)*255).astype(kind) if kind is np.uint8 else a.astype(kind)
    planes = np.ascontiguousarray(a.transpose(2, 0, 1))
    want = to_uint8(a)
    for b in (planes, planes[None], a.transpose(2, 0, 1), torch.from_numpy(planes), torch.from_numpy(a).permute(2, 0, 1)): assert np.array_equal(to_uint8(b), want)
    assert np.array_equal(to_uint8(planes[1]), want[..., [1, 1, 1]])
