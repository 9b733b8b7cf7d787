"""What does a channel cost in gsplat's kernels? NVIDIA's compiler says how many registers each kernel takes; it needs no GPU for that.

python benchmarks/gpu/registers.py                      writes benchmarks/results/gpu_registers.json
python benchmarks/gpu/registers.py --quick --json FILE  four kernels instead of thirteen, under a minute

A multiprocessor holds as many blocks of 256 threads as its registers and its shared memory allow. This is arithmetic about
compiled code (nvcc -cubin -Xptxas -v), not a measurement: how fast a kernel is, only a GPU can tell.
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gsplat
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import arguments, write

from srflow_nb.gpu import KERNELS, shared_bytes

CUDA = Path(gsplat.__file__).parent/'cuda'
TORCH = Path(torch.__file__).parent/'include'
# From NVIDIA's CUDA C++ Programming Guide: threads, registers and bytes of shared memory of a multiprocessor (1 KB a block is the system's).
CARDS = dict(sm_86=(1536, 65536, 100*1024), sm_90=(2048, 65536, 228*1024))


def blocks(card, registers, shared, threads=256):
    "How many blocks a multiprocessor holds at once; registers are dealt to a thread in eights."
    most_threads, most_registers, most_shared = CARDS[card]
    return min(most_threads//threads, most_registers//(threads*(-(-registers//8)*8)), most_shared//(shared+1024))


def compile_kernels(source, card, channels, folder):
    "Registers and spilled bytes of each compiled kernel of one of gsplat's source files: {channels: (registers, bytes)}."
    keep = {f'__INS__({c})' for c in channels}
    text = '\n'.join(line for line in (CUDA/'csrc'/source).read_text().splitlines() if not re.fullmatch(r'__INS__\(\d+\)', line) or line in keep)
    (folder/source).write_text(text)
    macros = folder/'c10/cuda/impl/cuda_cmake_macros.h'           # a CPU build of torch comes without this one header
    macros.parent.mkdir(parents=True, exist_ok=True); macros.write_text('#pragma once\n')
    include = [TORCH, TORCH/'torch/csrc/api/include', CUDA/'include', CUDA/'csrc', CUDA/'csrc/third_party/glm', folder]
    command = ['nvcc', '-std=c++17', f'-arch={card}', '-O3', '-use_fast_math', '-cubin', '-Xptxas', '-v', *[f'-I{i}' for i in include],
               '-o', str(folder/'kernels.cubin'), str(folder/source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: sys.exit(f"nvcc could not compile {source}: {next((line for line in done.stderr.splitlines() if 'error' in line), done.stderr[-200:])}")
    found = re.findall(r"Compiling entry function '\S*kernelILj(\d+)E.*?(\d+) bytes spill stores.*?Used (\d+) registers", done.stderr, flags=re.S)
    return {int(c): (int(r), int(s)) for c, s, r in found}


def main():
    "Compile, print, write."
    args = arguments(__doc__.splitlines()[0])
    try: version = re.search(r'release (\S+),', subprocess.run(['nvcc', '--version'], capture_output=True, text=True, check=True).stdout)[1]
    except (OSError, subprocess.CalledProcessError): sys.exit('nvcc is missing: install the CUDA toolkit (this benchmark needs no GPU)')
    channels, rows = ([3, 8, 16, 32] if args.quick else [k for k in KERNELS if k <= 65]), []
    for card in ['sm_90'] if args.quick else CARDS:
        with tempfile.TemporaryDirectory() as d:
            forward, backward = (compile_kernels(f'RasterizeToPixels3DGS{way}.cu', card, channels, Path(d)) for way in ('Fwd', 'Bwd'))
        for c in channels:
            (rf, sf), (rb, sb) = forward[c], backward[c]
            rows.append(dict(card=card, channels=c, forward_registers=rf, forward_spilled=sf, forward_blocks=blocks(card, rf, 28*256),
                             backward_registers=rb, backward_spilled=sb, backward_blocks=blocks(card, rb, shared_bytes(c))))
            print(f"{card}, {c:2d} channels: forward {rf:3d} registers, {rows[-1]['forward_blocks']} blocks; "
                  f"backward {rb:3d} registers, {rows[-1]['backward_blocks']} blocks; {sf+sb} bytes spilled")
    write('gpu_registers', args, rows, {}, nvcc=version)


if __name__ == '__main__': main()
