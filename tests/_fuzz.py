"""Damaged files for readers: mutations, and the hunt for one that a reader does not survive.

    result = hunt(read, [good_bytes, ...], tmp_path/'x.flo', n=300, seed=0, ok=lambda out: ...)

writes `n` mutated files under the given name and reads each one. A reader passes if every file gives a result that `ok`
accepts or one clear line (`InputError`: a single line that names the file). It fails on any other exception, on a crash, on a
hang, on memory beyond `spare` + `multiple` x the file, and on anything that a reader has no business with: starting a process,
calling somebody, unpickling, opening a file elsewhere. The reading happens in a child process with those limits. The file that
did it is left behind under its name."""
import io, json, multiprocessing, os, re, resource, signal, struct, sys, traceback, zipfile, zlib
from pathlib import Path

import numpy as np
import torch

from srflow_nb.core import InputError

INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 10**6, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
FLOATS = [0., -0., 1e-45, 1e9, 1e38, -1e38, float('inf'), float('-inf'), float('nan')]
NUMBERS = ['0', '-1', '1', '2147483647', '4294967296', '999999999', '1000000000000', '18446744073709551616', '1e308', '1e999', 'nan', '-inf', '1.5', '9'*400, '0x10', '']
VALUES = ['null', 'true', '[]', '{}', '""', '-1', '1e999', '"../../../etc/passwd"', '"/etc/passwd"', '"\\u0000"', '"file:///etc/passwd"', '[' * 3000, '{"a":' * 3000,
          '"' + 'x'*3000 + '"', '9'*5000, '[[1,2],[3]]']


def _span(m, g, longest=64):
    "A random piece of the file: first and last byte."
    at = int(g.integers(len(m)))
    return at, min(len(m), at + 1 + int(g.integers(longest)))


def flip(m, g):
    "Flip one to eight bits."
    for _ in range(int(g.integers(1, 9))): m[int(g.integers(len(m)))] ^= 1 << int(g.integers(8))
    return m


def noise(m, g):
    "Overwrite a piece with random bytes."
    a, b = _span(m, g, 16)
    m[a:b] = g.bytes(b - a)
    return m


def truncate(m, g):
    "Cut the end off."
    return m[:int(g.integers(len(m)))]


def extend(m, g):
    "Put something behind the end."
    return m + (g.bytes(int(g.integers(1, 200))) if g.random() < .5 else m[:int(g.integers(len(m)))])


def extreme(m, g):
    "Overwrite a number with an extreme one; half of the time in the first 128 bytes, where headers are."
    order = '<' if g.random() < .5 else '>'
    if g.random() < .7:
        size = int(g.choice([1, 2, 4, 8]))
        value = (INTEGERS[int(g.integers(len(INTEGERS)))] % 256**size).to_bytes(size, 'little' if order == '<' else 'big')
    else: value = struct.pack(order + str(g.choice(['f', 'd'])), float(np.float32(FLOATS[int(g.integers(len(FLOATS)))])))
    at = int(g.integers(min(len(m), 128) if g.random() < .5 else len(m)))
    m[at:at+len(value)] = value
    return m


def number(m, g):
    "Replace a number that is written as text."
    found = [x.span() for x in re.finditer(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?', bytes(m[:20000]))]
    if not found: return extreme(m, g)
    a, b = found[int(g.integers(len(found)))]
    m[a:b] = NUMBERS[int(g.integers(len(NUMBERS)))].encode()
    return m


def value(m, g):
    "Replace a value of JSON by one of another type."
    found = [x.span(1) for x in re.finditer(rb'[:\[,]\s*("[^"]*"|-?[\d.eE+-]+|true|false|null)', bytes(m[:20000]))]
    if not found: return number(m, g)
    a, b = found[int(g.integers(len(found)))]
    m[a:b] = VALUES[int(g.integers(len(VALUES)))].encode()
    return m


def splice(m, g):
    "Copy a piece of the file to another place, over it or between."
    a, b = _span(m, g, 256)
    at = int(g.integers(len(m)))
    return m[:at] + m[a:b] + m[at + (b - a if g.random() < .5 else 0):]


def remove(m, g):
    "Take a piece out."
    a, b = _span(m, g, 256)
    return m[:a] + m[b:]


def blank(m, g):
    "Set a piece to zeros or to ones."
    a, b = _span(m, g, 256)
    m[a:b] = (b'\0' if g.random() < .5 else b'\xff')*(b - a)
    return m


MUTATIONS = (flip, noise, truncate, extend, extreme, number, value, splice, remove, blank)


def mutate(data, g, others=()):
    "The file, damaged by one to three mutations; sometimes its head is joined to the tail of another one."
    m = bytearray(data)
    if others and g.random() < .05:
        other = others[int(g.integers(len(others)))]
        m = m[:int(g.integers(len(m)))] + bytearray(other)[int(g.integers(len(other))):]
    for _ in range(int(g.choice([1, 1, 1, 2, 3]))):
        if len(m) < 2: return bytes(m)
        m = bytearray(MUTATIONS[int(g.integers(len(MUTATIONS)))](m, g))
    return bytes(m)


def chunk(name, data):
    "One chunk of a PNG."
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def mend_png(data):
    "Make the checksums of a damaged PNG right again, so that the damage gets past them."
    out, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at:at+4], 'big')
        if at + 12 + size > len(data): break
        out += chunk(data[at+4:at+8], data[at+8:at+8+size]); at += 12 + size
    return out + data[at:]


def png(width, height, bits, color, pixels=b'', compressed=None):
    "A PNG that claims a size and holds the given scan lines, whether they fit or not."
    header = struct.pack('>IIBBBBB', width, height, bits, color, 0, 0, 0)
    palette = chunk(b'PLTE', bytes(15)) if color == 3 else b''
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + palette + chunk(b'IDAT', zlib.compress(pixels, 9) if compressed is None else compressed) + chunk(b'IEND', b'')


def mutate_zip(data, g, others=()):
    "Damage a file inside an archive, or the archive; a file inside is packed again with right checksums."
    if g.random() < .4: return mutate(data, g, others)
    with zipfile.ZipFile(io.BytesIO(data)) as z: files = {n: z.read(n) for n in z.namelist()}
    name = sorted(files)[int(g.integers(len(files)))]
    files[name] = mutate(files[name], g)
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED if g.random() < .5 else zipfile.ZIP_STORED) as z:
        for n, d in files.items(): z.writestr(n, d)
    return out.getvalue()


def mutate_glb(data, g, others=()):
    "Damage the JSON or the numbers of a binary glTF, and keep the sizes of its chunks right; or damage anything."
    if g.random() < .3: return mutate(data, g, others)
    n = struct.unpack('<I', data[12:16])[0]
    parts = [data[20:20+n], data[28+n:]]
    which = 0 if g.random() < .8 else 1
    parts[which] = bytes((number, value, value, remove)[int(g.integers(4))](bytearray(parts[which]), g)) if which == 0 else mutate(parts[which], g)
    text, blob = parts[0] + b' '*(-len(parts[0]) % 4), parts[1] + bytes(-len(parts[1]) % 4)
    body = struct.pack('<I4s', len(text), b'JSON') + text + struct.pack('<I4s', len(blob), b'BIN\0') + blob
    return b'glTF' + struct.pack('<II', 2, 12 + len(body)) + body


FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.spawn', 'subprocess.Popen', 'socket.connect', 'socket.getaddrinfo', 'urllib.Request',
             'pickle.find_class', 'os.remove', 'os.rename', 'os.rmdir', 'shutil.rmtree', 'ctypes.dlopen')
CRIMES = []


def _watch(folder):
    "Note whatever a reader has no business with."
    here = [Path(p).resolve() for p in (folder, sys.prefix, sys.base_prefix, Path(__file__).parent.parent, '/usr', '/proc', '/sys', '/dev')]
    def hook(event, args):
        if event in FORBIDDEN: CRIMES.append(f'{event} {args}'[:200])
        if event == 'open' and isinstance(args[0], (str, bytes, os.PathLike)):
            try: path = Path(os.fsdecode(args[0])).resolve()
            except (ValueError, OSError): return
            if not any(path.is_relative_to(p) for p in here): CRIMES.append(f'opens {path}'[:200])
    sys.addaudithook(hook)


def address_space():
    "Bytes of address space that this process uses."
    with open('/proc/self/statm') as f: return int(f.read().split()[0])*resource.getpagesize()


def _verdict(read, path, ok):
    "What is wrong with how the reader took this file; '' if nothing is. And whether it read it."
    try: out = read(path)
    except (InputError, FileNotFoundError) as e:
        text = str(e)
        if '\n' in text.strip(): return f'the message has {len(text.splitlines())} lines: {text[:300]!r}', False
        if path.name not in text and path.parent.name not in text: return f'the message does not name the file: {text[:300]!r}', False
        return ('', False) if len(text) < 1000 else (f'the message has {len(text)} characters: {text[:300]!r}...', False)
    except BaseException: return traceback.format_exc(limit=-6), False
    return ('', True) if ok(out) else (f'a wrong result: {str(out)[:300]}', True)


def _child(conn, read, samples, path, n, seed, ok, damage, mend, spare, multiple, seconds):
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY); os.dup2(null, 2)              # C libraries grumble about damaged files
    g, count = np.random.default_rng([seed, zlib.crc32(path.name.encode())]), {'read': 0, 'refused': 0}
    for s in samples:                                                      # what is loaded once is not the files' fault
        path.write_bytes(s); bad, was_read = _verdict(read, path, ok)
        if bad or not was_read: return conn.send(f'a good file of {len(s)} bytes is not read: {bad}')
    largest = max(map(len, samples))
    _watch(path.parent)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + int(spare + multiple*2*largest), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for s in (signal.SIGALRM, signal.SIGPROF): signal.signal(s, signal.SIG_DFL)       # a hang inside C cannot be caught, only ended
    for i in range(n):
        data = damage(samples[int(g.integers(len(samples)))], g, samples)
        if mend and g.random() < .6: data = mend(data)
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, seconds); signal.setitimer(signal.ITIMER_REAL, 10*seconds)     # other programs are not its fault
        bad, was_read = _verdict(read, path, ok)
        signal.setitimer(signal.ITIMER_PROF, 0); signal.setitimer(signal.ITIMER_REAL, 0)
        if bad or CRIMES: return conn.send(f'file {i} of {n}: {bad} {CRIMES}')
        count['read' if was_read else 'refused'] += 1
    conn.send(count)


def hunt(
    read,                    # path -> anything
    samples,                 # bytes of good files
    path,                    # where the damaged ones are written (one after another)
    n=300,                   # damaged files
    seed=0,                  # the same seed, the same files
    ok=lambda out: True,     # whether a result may be right
    damage=mutate,           # (bytes, generator, other files) -> bytes
    mend=None,               # bytes -> bytes: repairs checksums, so that damage gets past them
    spare=48e6,              # bytes of memory that any reader may use
    multiple=24,             # and this much for each byte of the file
    seconds=10.,             # longest computing time for one file
):                           # dict(read=, refused=); fails on the first file that is not survived
    "Read `n` damaged files in a child process with limits on memory and time."
    ours, theirs = multiprocessing.get_context('fork').Pipe(duplex=False)
    job = multiprocessing.get_context('fork').Process(target=_child, args=(theirs, read, samples, path, n, seed, ok, damage, mend, spare, multiple, seconds))
    job.start(); theirs.close()
    try: answer = ours.recv()
    except EOFError: answer = None
    job.join()
    if answer is None:
        why = 'hung' if job.exitcode in (-signal.SIGALRM, -signal.SIGPROF) else f'died (exit code {job.exitcode})'
        raise AssertionError(f'the reader {why} at {path}')
    assert isinstance(answer, dict), f'{path}: {answer}'
    return answer


def dumps(value):
    "JSON as bytes."
    return json.dumps(value, indent=1).encode()
