// What benchmarks need beside a model: numbers made on the card, and the rate of the matrix instructions alone.

struct FillParams {
    u32* words;
    u64 count;
    u64 seed;
    u32 kind;  // 0: pairs of bf16 in -scale..scale, 1: any bits, 2: `value`
    u32 value;
    float scale;
};

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) at one index of the seed's stream.
__device__ inline u64 random_bits(u64 seed, u64 index) {
    u64 z = seed + 0x9e3779b97f4a7c15ull * (index + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Fills memory with numbers that look like weights.
KERNEL(fill, ROW_THREADS, FillParams) {
    u64 at = static_cast<u64>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (at >= p.count) return;
    u64 bits = random_bits(p.seed, at);
    u32 low = static_cast<u32>(bits), high = static_cast<u32>(bits >> 32);
    if (p.kind == 0) {
        // 2^-31 turns 32 bits into 0 to 2.
        float a = (static_cast<float>(low) * 4.656612873e-10f - 1.0f) * p.scale;
        float b = (static_cast<float>(high) * 4.656612873e-10f - 1.0f) * p.scale;
        p.words[at] = static_cast<u32>(bf16_of(b)) << 16 | bf16_of(a);
    } else {
        p.words[at] = p.kind == 1 ? low : p.value;
    }
}

struct RateParams {
    float* out;  // one float for each thread
    u32 steps;
    u32 integers;  // products of bytes, not of bf16
};

#define RATE_CHAINS 8

// Matrix instructions and nothing else: RATE_CHAINS independent sums in each warp.
KERNEL(matrix_rate, ROW_THREADS, RateParams) {
    u64 number = static_cast<u64>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    u32 seed = static_cast<u32>(random_bits(1, number));
    float total = 0.0f;
    if (p.integers) {
        // Small bytes: sums stay in range.
        u32 a[4] = {seed & 0x03030303, seed >> 1 & 0x03030303, seed >> 2 & 0x03030303, seed >> 3 & 0x03030303};
        u32 b[2] = {seed >> 4 & 0x01010101, seed >> 5 & 0x01010101};
        int sums[RATE_CHAINS][4] = {};
        for (u32 step = 0; step < p.steps; step++) {
#pragma unroll
            for (int chain = 0; chain < RATE_CHAINS; chain++) mma_u8_s8(sums[chain], a, b);
        }
        for (int chain = 0; chain < RATE_CHAINS; chain++) total += static_cast<float>(sums[chain][0] + sums[chain][3]);
    } else {
        // Numbers between 1 and 2, of both signs.
        u32 a[4], b[2];
        for (int i = 0; i < 4; i++) a[i] = 0x3f803f80 | (seed >> i & 0x807f807f);
        for (int i = 0; i < 2; i++) b[i] = 0x3f803f80 | (seed >> (4 + i) & 0x807f807f);
        float sums[RATE_CHAINS][4] = {};
        for (u32 step = 0; step < p.steps; step++) {
#pragma unroll
            for (int chain = 0; chain < RATE_CHAINS; chain++) mma_bf16(sums[chain], a, b);
        }
        for (int chain = 0; chain < RATE_CHAINS; chain++) total += sums[chain][0] + sums[chain][3];
    }
    p.out[number] = total;
}
