// Arithmetic of single numbers, with the bits of the CPU device: every operation rounds once, in the order that is written here. Compiled
// without contraction of multiplications and additions.

// The lanes that reductions are spread over: see `fold`.
#define LANES 16

__device__ inline float bf16_value(u16 bits) { return as_float(static_cast<u32>(bits) << 16); }

// The nearest bf16, ties to even.
__device__ inline u16 bf16_of(float x) {
    u32 bits = as_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<u16>(bits >> 16 | 0x40);
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ inline float f16_value(u16 half) {
    u32 magnitude = half & 0x7fff;
    // Exact: the exponent is moved by a multiplication with a power of two, which also makes denormals right.
    float value = as_float(magnitude << 13) * as_float((254 - 15) << 23);
    return half & 0x8000 ? -value : value;
}

// e to the x, within 2 units in the last place. Range reduction and coefficients: Cephes `expf` (S. Moshier, 1984-1992).
__device__ inline float exp_of(float x) {
    const float LEAST = -87.0f, MOST = 88.0f, ROUNDER = 12582912.0f;
    float cut = x > MOST ? MOST : x;
    cut = cut > LEAST ? cut : LEAST;
    float shifted = cut * 1.44269504088896340736f + ROUNDER;
    float n = shifted - ROUNDER;
    float r = (cut - n * 0.6933594f) - n * -2.1219444e-4f;
    float q = 1.9875691e-4f;
    q = q * r + 1.3981999e-3f;
    q = q * r + 8.333452e-3f;
    q = q * r + 4.1665796e-2f;
    q = q * r + 1.6666665e-1f;
    q = q * r + 5.0e-1f;
    float mantissa = q * (r * r) + r + 1.0f;
    u32 power = (as_bits(shifted) - as_bits(ROUNDER) + 127) << 23;
    return x < LEAST ? 0.0f : mantissa * as_float(power);
}

// 2 to the x for x up to 0. Cephes `exp2f`.
__device__ inline float exp2_of(float x) {
    const float LEAST = -126.0f, ROUNDER = 12582912.0f;
    float cut = x > LEAST ? x : LEAST;
    float shifted = cut + ROUNDER;
    float r = cut - (shifted - ROUNDER);
    float q = 1.5353362e-4f;
    q = fused(q, r, 1.3398874e-3f);
    q = fused(q, r, 9.618437e-3f);
    q = fused(q, r, 5.5503325e-2f);
    q = fused(q, r, 2.4022647e-1f);
    q = fused(q, r, 6.931472e-1f);
    q = fused(q, r, 1.0f);
    return x >= LEAST ? as_float(as_bits(q) + (as_bits(shifted) << 23)) : 0.0f;
}

// Cephes `tanhf`.
__device__ inline float tanh_of(float x) {
    float size = as_float(as_bits(x) & 0x7fffffff);
    float z = x * x;
    float q = -5.7049887e-3f;
    q = q * z + 2.063909e-2f;
    q = q * z - 5.3739715e-2f;
    q = q * z + 1.3331442e-1f;
    q = q * z - 3.333328e-1f;
    float small = q * z * x + x;
    float large = 1.0f - quotient(2.0f, exp_of(size + size) + 1.0f);
    large = as_float((as_bits(large) & 0x7fffffff) | (as_bits(x) & 0x80000000));
    return size < 0.625f ? small : large;
}

__device__ inline float capped(float x, float cap) { return tanh_of(quotient(x, cap)) * cap; }

// Adds sixteen lanes pairwise, halves onto halves.
__device__ inline float fold(float (&lanes)[LANES]) {
#pragma unroll
    for (int width = LANES / 2; width > 0; width /= 2) {
#pragma unroll
        for (int lane = 0; lane < LANES / 2; lane++) {
            if (lane < width) lanes[lane] += lanes[lane + width];
        }
    }
    return lanes[0];
}
