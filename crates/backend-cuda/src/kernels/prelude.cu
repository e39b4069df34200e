// What every kernel file begins with: the few words of CUDA that kernels are written in.
//
// In: nothing. Out: KERNEL, SHARED, loads and conversions, and the matrix instructions by name. Deliberately not here: any kernel. No
// header of the toolkit is used, so that NVRTC alone compiles this. `emulation/threads.hpp` says the same words in plain C++, for tests.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A kernel takes one structure, which `kernels/mod.rs` mirrors.
#define KERNEL(name, threads, Params) extern "C" __global__ void __launch_bounds__(threads) name(const Params p)
// Shared memory whose size the launch says.
#define SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    type* name = reinterpret_cast<type*>(shared_bytes)

__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline float root(float x) { return __fsqrt_rn(x); }
__device__ inline float quotient(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float as_float(u32 bits) { return __uint_as_float(bits); }
__device__ inline u32 as_bits(float x) { return __float_as_uint(x); }

// The product of two tiles of bf16, 16 x 16 and 16 x 8, added to four f32 of this lane's: `mma.sync.m16n8k16` of the PTX ISA, whose
// fragments section says which lane holds what.
__device__ inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of bytes, 16 x 32 without sign and 32 x 8 with one, added to four 32-bit integers: `mma.sync.m16n8k32`. Exact.
__device__ inline void mma_u8_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Sixteen bytes of weights, which no other block of threads is going to read soon: past the first cache.
__device__ inline uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// Sixteen bytes from global to shared memory, while the thread goes on; zeros where `valid` is false.
__device__ inline void copy_ahead(void* to, const void* from, bool valid) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(to));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
// Ends a group of such copies, and waits until at most `open` groups are under way.
__device__ inline void copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int open>
__device__ inline void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory"); }
