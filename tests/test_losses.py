"Losses: values by hand, gradients by finite differences, masks that stop gradients, and what each loss must not see."
import pytest
import torch

from srflow_nb.core import InputError, rng
from srflow_nb.losses import (OPERATORS, SRFlowLoss, edge_weight, flow_difference_loss, flow_gradient, forward_backward_loss, gradient_loss,
                              loss_maps, mask_loss, sample_flow, sequence_loss, tv_loss, valid_mask)


def rand(*shape, key=0, scale=2., dtype=torch.float64): return torch.from_numpy(rng(0, 'losses', key).normal(size=shape) * scale).to(dtype)


def uv(*pixels, dtype=torch.float32): return torch.tensor(pixels, dtype=dtype).T.reshape(1, 2, 1, len(pixels))


def half_valid(b=2, h=6, w=7): return torch.from_numpy(rng(0, 'valid').random((b, h, w)) > .4)


IMAGE = rand(2, 3, 6, 7, key='img', scale=.1, dtype=torch.float32)
LOSSES = {'sequence': lambda p, t, v: sequence_loss([p * .5, p], t, v),
          'mask': lambda p, t, v: mask_loss(p, v, margin=0),
          'mask+valid': lambda p, t, v: mask_loss(p, torch.ones_like(v), v, margin=1),
          'difference': lambda p, t, v: gradient_loss(p, t, v, 'difference'),
          'sobel': lambda p, t, v: gradient_loss(p, t, v, 'sobel'),
          'tv': lambda p, t, v: tv_loss(p, v),
          'difference edge-aware': lambda p, t, v: gradient_loss(p, t, v, 'difference', image=IMAGE),
          'sobel edge-aware': lambda p, t, v: gradient_loss(p, t, v, 'sobel', image=IMAGE.half()),
          'tv edge-aware': lambda p, t, v: tv_loss(p, v, image=IMAGE),
          'flow difference': lambda p, t, v: flow_difference_loss([p * .3, p * 1.5, p], v),
          'forward-backward': lambda p, t, v: forward_backward_loss(p * .4, -p * .7, v),
          'all': lambda p, t, v: SRFlowLoss(1, 1, 'sobel', 1, 1)([p * .5, p], t, v, static=~v)[0],
          'all edge-aware': lambda p, t, v: SRFlowLoss(1, 1, 'difference', 1, 1, edge_gradient=True)([p * .5, p], t, v, static=~v, image=IMAGE)[0]}


@pytest.mark.parametrize('name', LOSSES)
def test_gradients_match_finite_differences(name):
    p, t, v = rand(2, 2, 6, 7).requires_grad_(), rand(2, 2, 6, 7, key=1), half_valid()
    if 'forward' not in name: t[0, :, 2, 3] = torch.nan
    assert torch.autograd.gradcheck(lambda p: LOSSES[name](p, t, v), (p,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize('name', [n for n in LOSSES if n not in ('mask', 'all', 'all edge-aware', 'forward-backward')])
def test_no_gradient_where_invalid_and_nan_there_is_harmless(name):
    p, t, v = rand(2, 2, 6, 7), rand(2, 2, 6, 7, key=1), half_valid()
    loss = LOSSES[name](p, t, v)
    for junk in (torch.nan, torch.inf, 1e30):
        q = torch.where(v[:, None], p, junk).requires_grad_(); u = torch.where(v[:, None], t, junk)
        again = LOSSES[name](q, u, v); again.backward()
        assert torch.allclose(again, loss), junk                               # what is invalid does not matter ...
        assert (q.grad[~v[:, None].expand_as(q)] == 0).all() and q.grad.isfinite().all()   # ... and is not taught


@pytest.mark.parametrize('name', LOSSES)
def test_an_empty_mask_gives_zero_and_no_nan(name):
    p = rand(2, 2, 6, 7).requires_grad_(); none = torch.zeros(2, 6, 7, dtype=torch.bool)
    loss = LOSSES[name](p, rand(2, 2, 6, 7, key=1), none)
    loss.backward()
    assert p.grad.isfinite().all() and (loss.item() == 0 or 'all' in name)


@pytest.mark.parametrize('name', LOSSES)
def test_half_precision_is_computed_in_float32(name):
    "400 px squared overflows float16; a mean over many small values would stall in bfloat16."
    for dtype in (torch.float16, torch.bfloat16):
        p, t, v = (100 * rand(2, 2, 6, 7)).to(dtype), (100 * rand(2, 2, 6, 7, key=1)).to(dtype), half_valid()
        with torch.autocast('cpu', dtype=torch.bfloat16): low = LOSSES[name](p.requires_grad_(), t, v)
        low.backward()
        assert low.dtype == torch.float32 and low.isfinite() and p.grad.isfinite().all()
        if name not in ('flow difference', 'sequence', 'all', 'all edge-aware', 'forward-backward'):    # these scale p before the loss, in its own precision
            assert torch.allclose(low, LOSSES[name](p.detach().float(), t.float(), v), rtol=1e-5)


@pytest.mark.parametrize('name', LOSSES)
def test_gradient_is_finite_at_exact_zero(name):
    p = torch.zeros(2, 2, 6, 7, requires_grad=True)
    LOSSES[name](p, torch.zeros(2, 2, 6, 7), half_valid()).backward()
    assert p.grad.isfinite().all()


TRUE_TO = {'sequence': lambda t, s: sequence_loss([t, t], t), 'mask': lambda t, s: mask_loss(t, s, margin=0), 'flow difference': lambda t, s: flow_difference_loss([t, t, t]),
           'difference': lambda t, s: gradient_loss(t, t), 'sobel': lambda t, s: gradient_loss(t, t, operator='sobel'),
           'edge-aware': lambda t, s: gradient_loss(t, t, image=IMAGE), 'all but variation': lambda t, s: SRFlowLoss(1, 1, 'sobel', 0, 1)([t, t], t, static=s)[0]}


@pytest.mark.parametrize('name', TRUE_TO)
def test_the_truth_costs_nothing(name):
    static = half_valid()
    true = torch.where(static[:, None], 0., rand(2, 2, 6, 7, dtype=torch.float32)).requires_grad_()
    loss = TRUE_TO[name](true, static); loss.backward()
    assert loss.item() == 0 and (true.grad == 0).all()


def test_variation_costs_nothing_for_flow_that_is_the_same_everywhere_alone():
    assert tv_loss(torch.full((2, 2, 6, 7), 3.)).item() == 0 and tv_loss(rand(2, 2, 6, 7)).item() > .1


@pytest.mark.parametrize('name', ['difference', 'sobel', 'difference edge-aware', 'sobel edge-aware', 'tv', 'tv edge-aware'])
def test_terms_of_gradients_do_not_see_a_constant_flow(name):
    p, t, every = rand(2, 2, 6, 7), rand(2, 2, 6, 7, key=1), torch.ones(2, 6, 7, dtype=torch.bool)
    shift = torch.tensor([3., -2.], dtype=torch.float64).view(1, 2, 1, 1)
    q = (p + shift).requires_grad_()
    loss = LOSSES[name](q, t, every); loss.backward()
    assert loss.item() == pytest.approx(LOSSES[name](p, t, every).item(), rel=1e-9)
    assert q.grad.sum((2, 3)).abs().max() < 1e-12                                # descent does not push the mean


def test_sequence_by_hand():
    t = uv((0, 0), (0, 0), (float('nan'), 0))
    preds = [uv((2, 0), (0, -4), (9, 9)), uv((1, 1), (0, 0), (9, 9))]
    assert sequence_loss(preds, t, gamma=.8).item() == pytest.approx(.8 * 6/4 + 2/4)
    assert sequence_loss(preds, t, torch.tensor([[[True, False, True]]]), gamma=.5).item() == pytest.approx(.5 * 2/2 + 2/2)
    assert sequence_loss(preds[::-1], t).item() != pytest.approx(sequence_loss(preds, t).item())      # order matters: the last counts most


def test_sequence_ignores_implausible_truth():
    t = uv((0, 0), (300, 300))                    # 424 px
    assert valid_mask(t).flatten().tolist() == [True, False] and valid_mask(t, max_flow=500).all()
    assert sequence_loss([uv((1, 1), (0, 0))], t).item() == pytest.approx(1.)


def test_mask_by_hand_and_margin():
    p = torch.zeros(1, 2, 5, 5); p[0, 0, 2, 1] = 3.; p[0, 1, 2, 1] = 4.; p[0, 0, 2, 3] = 100.
    static = torch.ones(1, 5, 5, dtype=torch.bool); static[0, 2, 4] = False
    assert mask_loss(p, static, margin=0).item() == pytest.approx(105/24)
    assert mask_loss(p, static, margin=1).item() == pytest.approx(5/19)          # column 3 and the rest of column 4 near it: 6 pixels left out
    assert mask_loss(p, static[:, None], margin=1).item() == pytest.approx(5/19)  # (B,1,H,W) as data loaders give it
    assert mask_loss(p * 0, static).item() == 0


@pytest.mark.parametrize('op', OPERATORS)
def test_both_operators_answer_px_per_px(op):
    y, x = torch.meshgrid(torch.arange(8.), torch.arange(9.), indexing='ij')
    g = flow_gradient(torch.stack([3 * x - y, .5 * y])[None], op)
    assert g.shape == ((1, 2, 2, 7, 8) if op == 'difference' else (1, 2, 2, 6, 7))
    assert torch.allclose(g, torch.tensor([[3., -1.], [0., .5]])[None, :, :, None, None].expand_as(g), atol=1e-5)


@pytest.mark.parametrize('op', OPERATORS)
def test_gradient_loss_sees_shape_not_offset(op):
    t = rand(1, 2, 9, 9)
    assert gradient_loss(t, t, operator=op).item() == 0
    assert gradient_loss(t + 5, t, operator=op).item() == pytest.approx(0, abs=1e-12)
    assert gradient_loss(t + rand(1, 2, 9, 9, key='n'), t, operator=op).item() > .5


def test_gradient_loss_by_hand():
    p = torch.zeros(1, 2, 3, 3); p[0, 0, 1, 1] = 8.
    z = torch.zeros_like(p)
    assert gradient_loss(p, z, operator='sobel').item() == 0                     # a lone pixel is invisible in the middle of Sobel
    assert gradient_loss(p, z, operator='difference').item() == pytest.approx((8 + 8 + 8 + 8) / 16)  # of four cells, two see it once, one twice
    p = torch.zeros(1, 2, 3, 3); p[0, 1, :, 2] = 8.
    assert gradient_loss(p, z, operator='sobel').item() == pytest.approx(4. / 4)                     # dv/dx = 8/2, one of four numbers


def test_unknown_operator_names_the_nearest():
    for call in (lambda: flow_gradient(torch.zeros(1, 2, 4, 4), 'sobell'), lambda: SRFlowLoss(operator='sobell')):
        with pytest.raises(InputError, match='nearest: sobel'): call()


def test_tv_by_hand_and_invariance():
    p = torch.zeros(1, 2, 2, 2); p[0, 0] = torch.tensor([[0., 3.], [4., 0.]]); p[0, 1] = torch.tensor([[0., 0.], [1., 0.]])
    assert tv_loss(p, eps=1e-7).item() == pytest.approx((5 + 1) / 2)
    assert tv_loss(torch.full((1, 2, 6, 6), -3.)).item() == 0
    assert tv_loss(p + 100., eps=1e-7).item() == pytest.approx(3., abs=1e-4)


def test_tv_charges_a_jump_by_its_height_not_its_steepness():
    ramp = torch.zeros(1, 2, 4, 13); ramp[0, 0] = torch.linspace(-1, 2, 13).clamp(0, 1)
    step = torch.zeros(1, 2, 4, 13); step[0, 0, :, 6:] = 1
    assert tv_loss(ramp, eps=1e-6).item() == pytest.approx(tv_loss(step, eps=1e-6).item(), rel=1e-4)


def test_edge_aware_tv_excuses_jumps_at_image_edges_only():
    step = torch.zeros(1, 2, 6, 10); step[0, 0, :, 5:] = 1
    there, elsewhere = torch.zeros(1, 3, 6, 10), torch.zeros(1, 3, 6, 10); there[..., 5:] = 1; elsewhere[..., 2:] = 1
    plain = tv_loss(step).item()
    assert tv_loss(step, image=there).item() < .01 * plain and tv_loss(step, image=elsewhere).item() == pytest.approx(plain)
    assert tv_loss(step, image=torch.full((1, 3, 6, 10), .4)).item() == pytest.approx(plain)


@pytest.mark.parametrize('op', OPERATORS)
def test_edge_aware_gradients_excuse_image_edges_only(op):
    z, step = torch.zeros(1, 2, 6, 12), torch.zeros(1, 2, 6, 12); step[0, 0, :, 6:] = 1
    there, elsewhere = torch.zeros(1, 3, 6, 12), torch.zeros(1, 3, 6, 12); there[..., 6:] = 1; elsewhere[..., 2:] = 1
    plain = gradient_loss(step, z, operator=op).item()
    assert gradient_loss(step, z, operator=op, image=there).item() < .01 * plain
    assert gradient_loss(step, z, operator=op, image=elsewhere).item() == pytest.approx(plain)
    assert gradient_loss(step, z, operator=op, image=there, edge=0.).item() == pytest.approx(plain)


def test_edge_weight_by_hand():
    image = torch.zeros(1, 3, 2, 3); image[..., 1:] = .2                         # a step of .2 in every channel: exp(-10 * .2)
    assert torch.allclose(edge_weight(image), torch.tensor([[[-2., 0.]]]).exp())
    assert (edge_weight(image, edge=0.) == 1).all() and (edge_weight(torch.full((1, 3, 4, 4), .7)) == 1).all()


def test_unknown_colours_where_nothing_counts_do_no_harm():
    p, t, v = rand(2, 2, 6, 7), rand(2, 2, 6, 7, key=1), half_valid()
    broken = torch.where(v[:, None], IMAGE, torch.nan)
    for loss in (lambda i: gradient_loss(p, t, v, image=i), lambda i: gradient_loss(p, t, v, 'sobel', image=i), lambda i: tv_loss(p, v, i)):
        assert torch.equal(loss(broken), loss(IMAGE))


def test_image_of_another_size_is_an_error():
    p = torch.zeros(1, 2, 6, 7)
    for loss in (lambda i: gradient_loss(p, p, image=i), lambda i: tv_loss(p, image=i)):
        for shape in ((1, 3, 6, 8), (2, 3, 6, 7)):
            with pytest.raises(InputError, match='image of shape'): loss(torch.zeros(shape))


def test_flow_difference_by_hand():
    a, b, c = uv((0, 0), (0, 0)), uv((2, 0), (0, 0)), uv((2, 3), (0, 1))
    assert flow_difference_loss([a, b, c], gamma=.5).item() == pytest.approx(.5 * 2/4 + 4/4)
    assert flow_difference_loss([a, b, c], torch.tensor([[[False, True]]]), gamma=.5).item() == pytest.approx(1/2)
    assert flow_difference_loss([c, c, c]).item() == 0 and flow_difference_loss([c]).item() == 0


def test_no_predictions_is_an_error():
    for loss in (lambda: sequence_loss([], torch.zeros(1, 2, 2, 2)), lambda: flow_difference_loss([])):
        with pytest.raises(InputError, match='no predictions'): loss()


def test_shapes_are_checked():
    with pytest.raises(InputError, match='same shape'): sequence_loss([torch.zeros(1, 2, 4, 4)], torch.zeros(1, 2, 4, 5))
    with pytest.raises(InputError, match='mask of shape'): sequence_loss([torch.zeros(1, 2, 4, 4)], torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 5))


def test_sample_flow_reads_where_the_pixel_went():
    y, x = torch.meshgrid(torch.arange(5.), torch.arange(7.), indexing='ij')
    got, inside = sample_flow((10 * y + x)[None, None], uv((1.5, 2)).expand(1, 2, 5, 7))
    assert torch.allclose(got[0, 0, :3, :5], (10 * (y + 2) + x + 1.5)[:3, :5], atol=1e-4)
    assert inside[0, :3, :5].all() and not inside[0, 3:].any() and not inside[0, :, 6].any()


def test_forward_backward_of_a_rotation_and_its_inverse_is_small():
    y, x = torch.meshgrid(torch.arange(40.) - 20, torch.arange(40.) - 20, indexing='ij'); a = torch.tensor(.1)
    turn = lambda a: torch.stack([(a.cos() - 1) * x - a.sin() * y, a.sin() * x + (a.cos() - 1) * y])[None]
    assert forward_backward_loss(turn(a), turn(-a)).item() < 1e-4              # linear fields: bilinear sampling is exact
    assert forward_backward_loss(turn(a), turn(a)).item() > 1.


def test_forward_backward_does_not_teach_where_a_pixel_is_hidden():
    forward, backward, v = rand(1, 2, 6, 7, scale=.3), rand(1, 2, 6, 7, key=1, scale=.3), half_valid(1)
    loss = forward_backward_loss(forward, backward, v)
    for junk in (torch.nan, torch.inf, 1e30):
        f, b = torch.where(v[:, None], forward, junk).requires_grad_(), backward.clone().requires_grad_()
        again = forward_backward_loss(f, b, v); again.backward()
        assert torch.allclose(again, loss) and b.grad.isfinite().all()
        assert (f.grad[~v[:, None].expand_as(f)] == 0).all() and f.grad.isfinite().all()


@pytest.mark.parametrize('op', OPERATORS)
def test_maps_add_up_to_the_loss_and_stand_where_the_fault_is(op):
    p, t, v = rand(2, 2, 6, 7), rand(2, 2, 6, 7, key=1), torch.ones(2, 6, 7, dtype=torch.bool)
    t[0, :, 2, 3] = torch.nan; v[0, 5, 1] = v[1, 4:] = False
    loss = SRFlowLoss(mask=.2, gradient=.3, operator=op, tv=.4, flow_difference=.5, margin=0, edge_gradient=True)
    maps, terms = (f([p * .5, p], t, v, static=~v | (t[:, 0] > 0), image=IMAGE) for f in (lambda *a, **k: loss_maps(loss, *a, **k), loss.terms))
    assert set(maps) == set(terms) and all(m.shape == (2, 6, 7) for m in maps.values())
    for n, (w, value) in terms.items(): assert maps[n].nanmean().item() == pytest.approx(w * value.item())
    assert all(m[~v].isnan().all() for n, m in maps.items() if n != 'mask') and maps['sequence'][0, 2, 3].isnan()
    spot = torch.zeros(1, 2, 9, 9); spot[0, :, 4, 4] = 1.
    blamed = loss_maps(SRFlowLoss(operator=op), [spot], torch.zeros_like(spot))['gradient'][0] > 0
    rows, cols = blamed.nonzero().float().mean(0).tolist()
    assert abs(rows - 4) <= .5 and abs(cols - 4) <= .5                            # around the fault, and not shifted by the padding


def test_the_frame_makes_variation_edge_aware_and_gradients_if_asked():
    p, t = rand(2, 2, 6, 7, dtype=torch.float32), rand(2, 2, 6, 7, key=1, dtype=torch.float32)
    value = lambda image, **k: {n: v.item() for n, v in SRFlowLoss(operator='difference', tv=1., **k)([p], t, image=image)[1].items()}
    plain, usual, both, off = value(None), value(IMAGE), value(IMAGE, edge_gradient=True), value(IMAGE, edge_gradient=True, edge=0.)
    assert usual['tv'] == pytest.approx(tv_loss(p, image=IMAGE).item()) and usual['tv'] < plain['tv'] and usual['gradient'] == plain['gradient']
    assert both['gradient'] == pytest.approx(gradient_loss(p, t, image=IMAGE).item()) and both['gradient'] < plain['gradient']
    assert off == pytest.approx(plain)
    with pytest.raises(InputError, match='edge is -1'): SRFlowLoss(edge=-1)


def test_total_is_the_weighted_sum_and_terms_are_for_the_log():
    p, t, v = rand(2, 2, 6, 7).requires_grad_(), rand(2, 2, 6, 7, key=1), half_valid()
    loss = SRFlowLoss(mask=.2, gradient=.3, operator='difference', tv=.4, flow_difference=.5, margin=0)
    total, terms = loss([p * .5, p], t, v, static=~v)
    w = {'sequence': 1., 'mask': .2, 'gradient': .3, 'tv': .4, 'flow_difference': .5}
    assert set(terms) == set(w) and total.item() == pytest.approx(sum(w[n] * x.item() for n, x in terms.items()))
    assert total.requires_grad and not any(x.requires_grad for x in terms.values())


def test_the_head_counts_more_and_the_still_wall_as_before():
    p, t, v, still = rand(2, 2, 6, 7), rand(2, 2, 6, 7, key=1), half_valid(), torch.zeros(2, 6, 7, dtype=torch.bool)
    still[:, :, :3] = True; t[0, :, 2, 5] = torch.nan
    value = lambda head, ok, static=still: SRFlowLoss(0, 0, 'sobel', 0, 0, head=head)([p * .5, p], t, ok, static)[0].item()
    ok = v & ~t[:, 0].isnan()
    share = (ok & ~still).sum() / ok.sum()
    assert 0 < share < 1 and value(3., v) == pytest.approx(value(1., v) + 2 * share.item() * value(1., v & ~still))
    assert value(3., v & still) == pytest.approx(value(1., v & still)) and value(3., v, None) == value(1., v, None)   # no mask given: nobody knows
    with pytest.raises(InputError, match='head is -1'): SRFlowLoss(head=-1)


def test_a_switched_off_term_is_not_computed():
    p, t = rand(1, 2, 5, 5), rand(1, 2, 5, 5, key=1)
    assert list(SRFlowLoss(0, 0, 'sobel', 0, 0)([p], t)[1]) == ['sequence']
    assert 'mask' not in SRFlowLoss()([p], t)[1]                                # no mask given, no mask term
    with pytest.raises(InputError, match='weight gradient'): SRFlowLoss(gradient=-.1)


def test_regularisers_find_the_fault_that_the_plain_loss_misses():
    "Gradient descent on noisy targets: with the gradient term toward the truth, high-frequency error falls faster."
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing='ij')
    true = torch.stack([x * y, x**2 - y])[None]; start = true + rand(1, 2, 24, 24, key='start', scale=.3, dtype=torch.float32)
    def rough(weight):
        f = start.clone().requires_grad_(); opt = torch.optim.SGD([f], lr=20.)
        for _ in range(20): opt.zero_grad(); SRFlowLoss(0, weight, 'difference', 0, 0)([f], true)[0].backward(); opt.step()
        return flow_gradient(f.detach() - true).abs().mean().item()
    assert rough(1.) < .8 * rough(0.)
