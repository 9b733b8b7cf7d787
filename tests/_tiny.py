"""A data set in our layout without any rendering: discs that move, written in a blink by the layout's own functions."""
import numpy as np
import torch

from srflow_nb.core import rng
from srflow_nb.layout import KINDS, frame_files, make_annotation, write_annotation, write_frame, write_manifest


class Still:
    "A stand-in for a camera."
    viewmat, K = torch.eye(4), torch.tensor([[900., 0, 24], [0, 900, 20], [0, 0, 1]])


def disc(seed, t, w=48, h=40):
    "Frame t of a disc that moves, with all of its labels."
    y, x = np.mgrid[:h, :w] + .5
    g = rng(seed, 'disc')
    step, color = g.uniform(-2, 2, 2), g.uniform(0, 1, (3, 1, 1))
    on = np.hypot(x - w/2 - t*step[0], y - h/2 - t*step[1]) < 12
    flow = torch.from_numpy(np.where(on, step.reshape(2, 1, 1), 0)).float()
    picture = torch.from_numpy(np.where(on, color*(.6 + .4*np.sin(x/3)*np.cos(y/3)), .8)).float()
    return dict(clean=picture, final=picture*.9, flow=flow, flow_backward=-flow, flow_head=flow*.5, occlusion=torch.from_numpy(on & (x > w/2)),
                labels=torch.from_numpy(np.where(on, 1 + (y < h/2), 0).astype(np.uint8)), depth=torch.from_numpy(np.where(on, 1., np.inf)).float())


def tiny_set(root, people=3, frames=3, flow_suffix='.flo', kinds=tuple(KINDS), name='disc_{}'):
    "Write a set of moving discs; person 1 is in the test split."
    notes = []
    for i in range(people):
        plan, files = dict(index=i, name=name.format(i), split='test' if i == 1 else 'training', pairs=frames - 1), {}
        for t in range(frames):
            gone = ['flow_backward']*(t == 0) + ['flow', 'flow_head', 'occlusion']*(t == frames - 1)
            paths = frame_files(root, plan['split'], plan['name'], t, flow_suffix)
            files |= write_frame({k: paths[k] for k in kinds}, disc(i, t) | dict.fromkeys(gone))
        note = make_annotation(plan, files, Still, np.zeros((frames, 6)), np.zeros((frames, 2)), identity=dict(age=.5), action_units={12: np.linspace(0, 1, frames)}, fps=25.)
        write_annotation(root, note); notes.append(note)
    write_manifest(root, dict(width=48, height=40, seed=0, kinds=list(kinds)), notes, command='tests/_tiny.py')
    return root
