// Just enough of CUDA to run gsplat's kernels on a CPU, one block after the other. Each thread of a block is a fiber, and
// a fiber waits wherever its block or its warp has to meet. Slow, in a fixed order, exact arithmetic: for tests alone.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __restrict__

struct uint2 { uint32_t x, y; };
struct dim3 { uint32_t x = 1, y = 1, z = 1; };

namespace cpu {
enum State { READY, AT_WARP, AT_BLOCK, DONE };
struct Fiber { ucontext_t entry; jmp_buf here; std::vector<char> stack; State state; bool begun; uint32_t meetings; };
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline dim3 block_at, block_dim;
inline uint32_t current, grid_rank;              // the running thread of a block; the thread of a kernel that has no blocks
inline std::vector<int> shared;                  // a block's shared memory
inline double brought[2][1024];                  // what each thread brings to a meeting; two, so that nothing unread is lost

// Bring a value, wait for the others of the warp or block, and return what everyone brought.
inline double *meet(double value, State where) {
    Fiber &f = fibers[current];
    double *values = brought[f.meetings++ & 1];
    values[current] = value;
    f.state = where;
    if (!_setjmp(f.here)) _longjmp(scheduler, 1);
    return values;
}

inline void resume(Fiber &f) {
    if (_setjmp(scheduler)) return;
    if (f.begun) _longjmp(f.here, 1);
    f.begun = true;
    setcontext(&f.entry);
}

// Run all threads of a block to their end.
template <class Thread> void run_block(Thread thread) {
    static Thread *task;
    task = &thread;
    void (*begin)() = [] { (*task)(); fibers[current].state = DONE; _longjmp(scheduler, 1); };
    fibers.resize(block_dim.x * block_dim.y);
    for (Fiber &f : fibers) {
        f.stack.resize(1 << 17); f.state = READY; f.begun = false; f.meetings = 0;
        getcontext(&f.entry);
        f.entry.uc_stack.ss_sp = f.stack.data(); f.entry.uc_stack.ss_size = f.stack.size(); f.entry.uc_link = nullptr;
        makecontext(&f.entry, begin, 0);
    }
    auto all = [](uint32_t from, uint32_t to, State where) {
        return std::all_of(fibers.begin() + from, fibers.begin() + to, [=](const Fiber &f) { return f.state == where || f.state == DONE; });
    };
    const uint32_t n = fibers.size();
    while (!all(0, n, DONE)) {
        for (current = 0; current < n; ++current)
            if (fibers[current].state == READY) resume(fibers[current]);
        const bool block = all(0, n, AT_BLOCK);
        for (uint32_t w = 0; w < n; w += 32)
            if (block || all(w, w + 32, AT_WARP))
                for (uint32_t i = w; i < w + 32; ++i)
                    if (fibers[i].state != DONE) fibers[i].state = READY;
    }
}
} // namespace cpu

namespace cooperative_groups {
struct thread_block {
    dim3 group_index() const { return cpu::block_at; }
    dim3 thread_index() const { return {cpu::current % cpu::block_dim.x, cpu::current / cpu::block_dim.x, 0}; }
    uint32_t thread_rank() const { return cpu::current; }
    uint32_t size() const { return cpu::block_dim.x * cpu::block_dim.y; }
    void sync() const { cpu::meet(0, cpu::AT_BLOCK); }
};
struct grid_group { uint32_t thread_rank() const { return cpu::grid_rank; } };
struct alone { uint32_t thread_rank() const { return 0; } };           // a group of one: what it adds up is the same
template <unsigned N> struct thread_block_tile {
    uint32_t thread_rank() const { return cpu::current % 32; }
    bool any(bool p) const {
        const double *v = cpu::meet(p, cpu::AT_WARP) + cpu::current / 32 * 32;
        return std::any_of(v, v + 32, [](double x) { return x != 0; });
    }
};
inline thread_block this_thread_block() { return {}; }
inline grid_group this_grid() { return {}; }
template <unsigned N> thread_block_tile<N> tiled_partition(thread_block) { return {}; }
template <class Group, class Label> alone labeled_partition(Group, Label) { return {}; }
template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T> struct greater { T operator()(T a, T b) const { return std::max(a, b); } };
template <class T, class Op> T reduce(alone, T value, Op) { return value; }
template <unsigned N, class T, class Op> T reduce(thread_block_tile<N>, T value, Op op) {
    const double *v = cpu::meet(value, cpu::AT_WARP) + cpu::current / 32 * 32;
    T res = T(v[0]);
    for (int i = 1; i < 32; ++i) res = op(res, T(v[i]));
    return res;
}
} // namespace cooperative_groups

inline int __syncthreads_count(bool p) {
    const double *v = cpu::meet(p, cpu::AT_BLOCK);
    return int(std::count_if(v, v + cpu::fibers.size(), [](double x) { return x != 0; }));
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrt(float x) { return 1.f / std::sqrt(x); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
template <class T> void gpuAtomicAdd(T *p, T v) { *p += v; }

namespace gsplat {      // CUDA's own overloads, and its conversion from float to unsigned, which saturates
using std::abs, std::ceil, std::floor, std::sqrt;
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline int32_t min(int32_t a, int32_t b) { return std::min(a, b); }
inline int32_t max(int32_t a, int32_t b) { return std::max(a, b); }
inline uint32_t min(uint32_t a, uint32_t b) { return std::min(a, b); }
inline uint32_t min(uint32_t a, int32_t b) { return std::min(a, uint32_t(b)); }
inline uint32_t max(int32_t a, uint32_t b) { return std::max(uint32_t(a), b); }
inline uint32_t to_uint(float x) { return x >= 4294967296.f ? 4294967295u : x > 0 ? uint32_t(x) : 0; }
} // namespace gsplat
