// The words of `kernels/prelude.cu` in plain C++: kernels as they are, on one core, for tests on machines without a GPU.
//
// In: a launch of a kernel by name. Out: what it writes. Every thread of a block is a fiber of its own; barriers, shuffles and matrix
// instructions are where fibers wait for each other. Fibers run in an order that changes, so that a missing barrier shows; copies ahead
// are done when they are waited for; and memory ends where an unreadable page begins. Deliberately not here: speed, several blocks at
// once, and how a real tensor core rounds inside of one instruction.

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define __device__ static
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct Index { u32 x, y, z; };
static thread_local Index threadIdx, blockIdx;

namespace emulation {

enum State { READY, AT_BARRIER, AT_WARP, ENDED };
const size_t STACK_BYTES = 128 << 10, SHARED_BYTES = 227 << 10;
const u32 WARP = 32;

struct Copy { void* to; const void* from; bool valid; u32 group; };

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool begun = false;
    State state = ENDED;
    u32 number = 0;
    std::vector<Copy> copies;
    u32 groups = 0;
    u32 exchanges = 0;
};

struct Machine {
    std::vector<Fiber*> fibers;
    jmp_buf scheduler;
    Fiber* running = nullptr;
    void (*body)(const void*) = nullptr;
    const void* params = nullptr;
    u32 threads = 0;
    u32 order = 1;
    unsigned char* shared = nullptr;
    // What lanes of a warp show each other, for two exchanges: nobody is two ahead.
    u32 words[32][2][WARP][8];
};
static thread_local Machine machine;

static void fail(const char* what) {
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}

static void leave(State state) {
    Fiber* self = machine.running;
    self->state = state;
    if (!_setjmp(self->at)) _longjmp(machine.scheduler, 1);
    threadIdx = {self->number, 0, 0};
}

static void fiber_main() {
    for (;;) {
        Fiber* self = machine.running;
        threadIdx = {self->number, 0, 0};
        machine.body(machine.params);
        if (!self->copies.empty() && self->copies.back().group >= self->groups) fail("a copy ahead that no group ends");
        self->copies.clear();
        leave(ENDED);
    }
}

static void enter(Fiber* fiber) {
    machine.running = fiber;
    if (_setjmp(machine.scheduler)) return;
    if (fiber->begun) _longjmp(fiber->at, 1);
    fiber->begun = true;
    setcontext(&fiber->start);
}

static void run_block() {
    u32 count = machine.threads;
    while (machine.fibers.size() < count) {
        Fiber* fiber = new Fiber;
        fiber->number = machine.fibers.size();
        getcontext(&fiber->start);
        fiber->start.uc_stack.ss_sp = malloc(STACK_BYTES);
        fiber->start.uc_stack.ss_size = STACK_BYTES;
        fiber->start.uc_link = nullptr;
        makecontext(&fiber->start, fiber_main, 0);
        machine.fibers.push_back(fiber);
    }
    for (u32 at = 0; at < count; at++) {
        machine.fibers[at]->state = READY;
        machine.fibers[at]->groups = machine.fibers[at]->exchanges = 0;
    }
    for (;;) {
        machine.order = machine.order * 1664525 + 1013904223;
        u32 step = machine.order >> 8 | 1, first = machine.order >> 16;
        bool ran = false;
        for (u32 at = 0; at < count; at++) {
            // Counts of threads are powers of two: an odd step reaches every fiber.
            Fiber* fiber = machine.fibers[(at * step + first) % count];
            if (fiber->state == READY) enter(fiber), ran = true;
        }
        u32 ended = 0, waiting = 0;
        for (u32 at = 0; at < count; at++) {
            ended += machine.fibers[at]->state == ENDED;
            waiting += machine.fibers[at]->state == AT_BARRIER;
        }
        if (ended == count) return;
        bool freed = false;
        if (ended + waiting == count) {
            for (u32 at = 0; at < count; at++) {
                if (machine.fibers[at]->state == AT_BARRIER) machine.fibers[at]->state = READY;
            }
            freed = true;
        }
        for (u32 warp = 0; warp < count; warp += WARP) {
            u32 there = 0;
            for (u32 at = warp; at < warp + WARP; at++) there += machine.fibers[at]->state == AT_WARP;
            if (there < WARP) continue;
            for (u32 at = warp; at < warp + WARP; at++) machine.fibers[at]->state = READY;
            freed = true;
        }
        if (!ran && !freed) fail("threads wait for each other and not all of them come");
    }
}

static void run_grid(void (*body)(const void*), const void* params, const u32* grid, u32 threads, u32 shared_bytes) {
    if (!machine.shared) machine.shared = static_cast<unsigned char*>(aligned_alloc(1024, SHARED_BYTES));
    if (shared_bytes > SHARED_BYTES) fail("more shared memory than a block may have");
    if (threads % WARP || threads & (threads - 1)) fail("threads of a block are a power of two of whole warps");
    machine.body = body, machine.params = params, machine.threads = threads;
    for (u32 z = 0; z < grid[2]; z++) {
        for (u32 y = 0; y < grid[1]; y++) {
            for (u32 x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                memset(machine.shared, 0xff, SHARED_BYTES < shared_bytes + 4096 ? SHARED_BYTES : shared_bytes + 4096);
                run_block();
            }
        }
    }
}

// Shows the lanes of a warp `count` words of this one, and waits for theirs.
static u32 (*exchange(const u32* words, u32 count))[8] {
    Fiber* self = machine.running;
    u32 (*slots)[8] = machine.words[self->number / WARP][self->exchanges++ % 2];
    for (u32 at = 0; at < count; at++) slots[self->number % WARP][at] = words[at];
    leave(AT_WARP);
    return slots;
}

static float bf16(u32 word, u32 half) {
    u32 bits = half ? word & 0xffff0000 : word << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

}  // namespace emulation

#define KERNEL(name, threads, Params)                                                                       \
    static void name##_thread(const Params& p);                                                             \
    extern "C" void name(const void* params, const u32* grid, u32 shared_bytes) {                           \
        auto body = [](const void* q) { name##_thread(*static_cast<const Params*>(q)); };                   \
        emulation::run_grid(body, params, grid, threads, shared_bytes);                                     \
    }                                                                                                       \
    extern "C" u32 size_of_##name() { return sizeof(Params); }                                              \
    static void name##_thread(const Params& p)
#define SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::machine.shared)

static inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
static inline float root(float x) { return sqrtf(x); }
static inline float quotient(float a, float b) { return a / b; }
static inline float as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline u32 as_bits(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline void __syncthreads() { emulation::leave(emulation::AT_BARRIER); }

template <typename T>
static inline T __shfl_xor_sync(u32 mask, T value, int other) {
    if (mask != 0xffffffff) emulation::fail("a shuffle without all lanes");
    u32 word;
    memcpy(&word, &value, 4);
    u32 (*words)[8] = emulation::exchange(&word, 1);
    memcpy(&value, words[(threadIdx.x ^ other) % 32], 4);
    return value;
}

// The fragments of the PTX ISA, sections of `mma.m16n8k16` with bf16 and `mma.m16n8k32` with 8-bit integers.
static inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    u32 own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    u32 (*words)[8] = emulation::exchange(own, 6);
    u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (u32 i = 0; i < 4; i++) {
        u32 line = g + i / 2 * 8, column = 2 * q + i % 2;
        for (u32 k = 0; k < 16; k++) {
            u32 left = words[line % 8 * 4 + k % 8 / 2][line / 8 + k / 8 * 2], right = words[column * 4 + k % 8 / 2][4 + k / 8];
            d[i] = fmaf(emulation::bf16(left, k % 2), emulation::bf16(right, k % 2), d[i]);
        }
    }
}

static inline void mma_u8_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    u32 own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    u32 (*words)[8] = emulation::exchange(own, 6);
    u32 g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (u32 i = 0; i < 4; i++) {
        u32 line = g + i / 2 * 8, column = 2 * q + i % 2;
        for (u32 k = 0; k < 32; k++) {
            u32 left = words[line % 8 * 4 + k % 16 / 4][line / 8 + k / 16 * 2];
            u32 right = words[column * 4 + k % 16 / 4][4 + k / 16];
            d[i] += static_cast<int>(left >> k % 4 * 8 & 255) * static_cast<i8>(right >> k % 4 * 8);
        }
    }
}

static inline uint4 load_once(const uint4* from) { return *from; }

static inline void copy_ahead(void* to, const void* from, bool valid) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16) emulation::fail("a copy ahead off its line");
    emulation::Fiber* self = emulation::machine.running;
    self->copies.push_back({to, from, valid, self->groups});
}
static inline void copy_group() { emulation::machine.running->groups++; }
template <int open>
static inline void copy_wait() {
    emulation::Fiber* self = emulation::machine.running;
    std::vector<emulation::Copy> later;
    for (emulation::Copy& copy : self->copies) {
        if (copy.group + open >= self->groups) {
            later.push_back(copy);
        } else if (copy.valid) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    self->copies.swap(later);
}

// Device memory: as many bytes, rounded up to 16, as end where an unreadable page begins.
extern "C" void* emulated_memory(u64 bytes) {
    u64 page = sysconf(_SC_PAGESIZE), size = (bytes + 15) / 16 * 16, whole = (size + page - 1) / page * page;
    void* map = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    unsigned char* start = static_cast<unsigned char*>(map);
    mprotect(start + whole, page, PROT_NONE);
    return start + (whole - size);
}
extern "C" void emulated_memory_free(void* at, u64 bytes) {
    u64 page = sysconf(_SC_PAGESIZE), size = (bytes + 15) / 16 * 16, whole = (size + page - 1) / page * page;
    munmap(static_cast<unsigned char*>(at) - (whole - size), whole + page);
}
