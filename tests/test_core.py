"Whoever fixes the number of threads gives the caller's back, whoever comes and goes meanwhile."
import itertools, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import numba
import pytest
import torch

from srflow_nb.core import InputError, rng, threads


def numbers(): return torch.get_num_threads(), numba.get_num_threads()


def newcomer():
    "What a thread that starts now computes with."
    with ThreadPoolExecutor(1) as pool: return pool.submit(numbers).result()


class Actor:
    "A thread that enters and leaves a guard when it is told to."
    def __init__(self, n, own=None):
        self.n, self.go, self.done, self.seen = n, threading.Semaphore(0), threading.Semaphore(0), []
        self.thread = threading.Thread(target=self.run, args=(own,), daemon=True); self.thread.start()

    def run(self, own):
        if own: torch.set_num_threads(own)
        self.go.acquire(); self.before = numbers()
        with threads(self.n):
            self.seen.append(numbers()); self.done.release(); self.go.acquire()
            self.seen.append(numbers())
        self.after = numbers(); self.done.release()

    def step(self): self.go.release(); assert self.done.acquire(timeout=30)


def interleavings(actors): return sorted(set(itertools.permutations([a for a in range(actors)]*2)))


@pytest.mark.parametrize('order', interleavings(3))
def test_threads_that_enter_and_leave_in_any_order_leave_nothing_behind(order):
    usual, late = numbers(), newcomer()
    actors = [Actor(n) for n in (1, 2, 1)]
    for k in order:
        actors[k].step()
        assert numbers() == usual and newcomer() == late                   # neither we nor the next to come notice
    for a in actors:
        a.thread.join(timeout=30)
        assert a.seen == [(a.n, min(a.n, numba.config.NUMBA_NUM_THREADS))]*2, 'another thread changed its number'
        assert a.after == a.before == late


def test_a_number_that_a_thread_chose_for_itself_is_given_back():
    usual = torch.get_num_threads()
    try:
        a = Actor(1, own=3); a.step(); a.step(); a.thread.join(timeout=30)
        assert a.before[0] == a.after[0] == 3 and a.seen[0][0] == 1
    finally: torch.set_num_threads(usual)


def test_guards_nest_and_survive_an_exception():
    usual = numbers()
    with pytest.raises(KeyError), threads(2):
        with threads(1): assert numbers() == (1, 1)
        assert numbers()[0] == 2
        raise KeyError
    assert numbers() == usual


def test_no_threads_at_all_are_refused():
    with pytest.raises(InputError, match='threads=0'), threads(0): pass


def test_the_work_inside_takes_one_core():
    "A number that nobody obeys would be worth nothing: processor time stays below the time on the clock."
    x = torch.rand(700, 700); x @ x
    with threads(1):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(20): x @ x
        assert time.process_time()-cpu < 1.15*(time.perf_counter()-wall)


def test_the_core_imports_no_compiler():
    code = "import sys, srflow_nb.core; print([m for m in ('numba', 'cv2', 'matplotlib', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_streams_depend_on_the_key_alone():
    draws = [tuple(rng(*k).integers(0, 2**32, 4)) for k in itertools.product((0, 1, 3), ('a', 'b'), (0, 1, 3))]
    assert len(set(draws)) == len(draws) and draws[0] == tuple(rng(0, 'a', 0).integers(0, 2**32, 4))
