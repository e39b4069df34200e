// Products of rows in int8 codes with a matrix of nested weights, at 8 bits or at 4: the arithmetic of the CPU device to the last bit.
//
// In: an input and a matrix. Out: f32, `[rows][width]`. Deliberately not here: quantising rows (`rows.cu`).
//
// The sum of a group of weights (32 or 64 along the depth) is exact in integers, whatever computes it. A product of codes is `sum(x * w) + shift`, where
// w is a byte without sign and the shift belongs to the row. Sums begin with the bits of BIAS beside the shift, so that the bits of a sum are the f32
// BIAS + sum and nothing has to be converted, which would have a quarter of an addition's rate or less. A block of 64 begins with its offset,
// `-(BIAS * s)` or `-(BIAS * s0 + BIAS * s1)`, and fuses each group onto it with its weights' scale; the block is fused onto the total with the row's
// scale, blocks in rising order.

// 1.5 * 2^23: its last bit is worth 1, and a sum of a block changes no bit of its exponent.
#define BIAS 12582912.0f
#define BIAS_BITS 0x4b400000

// The eight words of a lane's codes of one block. Without a lower plane, lower nibbles are zeros.
__device__ inline void unpack(uint4 upper, uint4 lower, u32 (&a)[2][4]) {
    u32 u[4] = {upper.x, upper.y, upper.z, upper.w}, l[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i / 2][i % 2 * 2] = (u[i] & 0x0f0f0f0f) << 4 | (l[i] & 0x0f0f0f0f);
        a[i / 2][i % 2 * 2 + 1] = (u[i] & 0xf0f0f0f0) | (l[i] >> 4 & 0x0f0f0f0f);
    }
}

// What a block of 64 gives before the row's scale, for outputs g and g + 8 and rows 2q and 2q + 1. `shifts` are those of the two rows, `factors` the
// scales of the groups and the offset, of both outputs.
__device__ inline void block_sums(
    const u32 (&a)[2][4], const uint2 (&b)[2], const int (&shifts)[2][2], const float (&factors)[3][2], bool halves, float (&out)[4]) {
    u32 first[2] = {b[0].x, b[0].y}, second[2] = {b[1].x, b[1].y};
    int sums[4];
    if (halves) {
        int others[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[i] = BIAS_BITS + shifts[i % 2][0];
            others[i] = BIAS_BITS + shifts[i % 2][1];
        }
        mma_u8_s8(sums, a[0], first);
        mma_u8_s8(others, a[1], second);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float half = fused(as_float(static_cast<u32>(sums[i])), factors[0][i / 2], factors[2][i / 2]);
            out[i] = fused(as_float(static_cast<u32>(others[i])), factors[1][i / 2], half);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = BIAS_BITS + shifts[i % 2][0] + shifts[i % 2][1];
        mma_u8_s8(sums, a[0], first);
        mma_u8_s8(sums, a[1], second);
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = fused(as_float(static_cast<u32>(sums[i])), factors[0][i / 2], factors[2][i / 2]);
    }
}

// A lane's part of one tile of outputs and one block of the depth, as it lies in memory: loads may be under way.
struct Packed {
    uint4 upper, lower;
    u16 scales[2][2];  // [group][output g or g + 8]
};

__device__ inline Packed load_packed(const ProductParams& p, u32 tile, u32 block, u32 lane) {
    u32 blocks = p.matrix.depth / BLOCK, groups = p.matrix.halves ? 2 : 1;
    u64 at = static_cast<u64>(tile) * blocks + block;
    Packed w;
    w.upper = load_once(reinterpret_cast<const uint4*>(p.matrix.upper) + at * 32 + lane);
    w.lower = {0, 0, 0, 0};
    if (!p.narrow) w.lower = load_once(reinterpret_cast<const uint4*>(p.matrix.lower) + at * 32 + lane);
    const u16* scales = p.matrix.scales + at * groups * 16 + lane / 4;
#pragma unroll
    for (u32 group = 0; group < 2; group++) {
        const u16* from = scales + (group < groups ? group : 0) * 16;
        w.scales[group][0] = from[0];
        w.scales[group][1] = from[8];
    }
    return w;
}

// The same, ready to be multiplied.
struct Weights {
    u32 codes[2][4];
    float factors[3][2];  // [scale of the first group, of the second, offset][output g or g + 8]
};

__device__ inline Weights unpacked(const ProductParams& p, const Packed& packed) {
    Weights w;
    unpack(packed.upper, packed.lower, w.codes);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        float first = f16_value(packed.scales[0][i]) * p.matrix.power, second = f16_value(packed.scales[1][i]) * p.matrix.power;
        w.factors[0][i] = first;
        w.factors[1][i] = second;
        // Products with the bias are exact.
        w.factors[2][i] = p.matrix.halves ? -BIAS * first - BIAS * second : -BIAS * first;
    }
    return w;
}

// A lane's part of one block of the depth of eight rows.
struct Columns {
    uint2 codes[2];
    int shifts[2][2];  // [row 2q or 2q + 1][half]
};

__device__ inline Columns load_columns(const ProductParams& p, u32 first_row, u32 block, u32 lane) {
    u32 blocks = p.input.depth / BLOCK;
    Columns c;
    const i8* codes = p.input.codes + input_row(p, first_row + lane / 4) * p.input.depth + block * BLOCK + lane % 4 * 8;
    c.codes[0] = *reinterpret_cast<const uint2*>(codes);
    c.codes[1] = *reinterpret_cast<const uint2*>(codes + BLOCK / 2);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const int* shifts = p.input.shifts + (input_row(p, first_row + lane % 4 * 2 + i) * blocks + block) * 2;
        c.shifts[i][0] = shifts[0];
        c.shifts[i][1] = shifts[1];
    }
    return c;
}

__device__ inline float row_scale(const ProductParams& p, u32 row, u32 block) {
    return p.input.scales[input_row(p, row) * (p.input.depth / BLOCK) + block];
}

// Few rows: a block of threads takes one tile of outputs, its warps blocks of the depth; what these give is fused onto the totals in order.
KERNEL(product_nested_few, FEW_WARPS * 32, ProductParams) {
    __shared__ float parts[FEW_WARPS][FEW_TILES][32][4];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x, first_row = blockIdx.y * FEW_TILES * 8;
    u32 blocks = p.matrix.depth / BLOCK;
    u32 tiles = (p.count - first_row + 7) / 8;
    tiles = tiles < FEW_TILES ? tiles : FEW_TILES;
    float totals[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    Packed next = {};
    if (warp < blocks) next = load_packed(p, tile, warp, lane);
    for (u32 round = 0; round < blocks; round += FEW_WARPS) {
        u32 block = round + warp;
        if (block < blocks) {
            Weights w = unpacked(p, next);
            // The next round's weights come while this one's are multiplied.
            if (block + FEW_WARPS < blocks) next = load_packed(p, tile, block + FEW_WARPS, lane);
#pragma unroll
            for (u32 at = 0; at < FEW_TILES; at++) {
                if (at < tiles) {
                    Columns c = load_columns(p, first_row + at * 8, block, lane);
                    float made[4];
                    block_sums(w.codes, c.codes, c.shifts, w.factors, p.matrix.halves, made);
                    for (int i = 0; i < 4; i++) parts[warp][at][lane][i] = made[i];
                }
            }
        }
        __syncthreads();
        if (warp < tiles) {
            u32 made = blocks - round < FEW_WARPS ? blocks - round : FEW_WARPS, row = first_row + warp * 8 + lane % 4 * 2;
            for (u32 from = 0; from < made; from++) {
                float scales[2] = {row_scale(p, row, round + from), row_scale(p, row + 1, round + from)};
                for (int i = 0; i < 4; i++) totals[i] = fused(parts[from][warp][lane][i], scales[i % 2], totals[i]);
            }
        }
        __syncthreads();
    }
    if (warp < tiles) write_sums(p, tile, first_row + warp * 8, totals);
}

// Many rows: a block of threads takes 128 outputs and 64 rows; a warp 32 outputs and 32 rows, over the whole depth.
KERNEL(product_nested_many, 256, ProductParams) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 first_row = blockIdx.x * MANY_ROWS + warp % 2 * 32;
    u32 output_tiles = (p.matrix.width + TILE - 1) / TILE;
    u32 first_tile = blockIdx.y * MANY_OUTPUT_TILES + warp / 2 * 2;
    // Warps without outputs or rows have nothing to wait for.
    if (first_tile >= output_tiles || first_row >= p.count) return;
    float totals[2][4][4] = {};
    for (u32 block = 0; block < p.matrix.depth / BLOCK; block++) {
        Weights w[2];
#pragma unroll
        for (u32 t = 0; t < 2; t++) {
            u32 tile = first_tile + t < output_tiles ? first_tile + t : output_tiles - 1;
            w[t] = unpacked(p, load_packed(p, tile, block, lane));
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            u32 row = first_row + n * 8;
            Columns c = load_columns(p, row, block, lane);
            float scales[2] = {row_scale(p, row + lane % 4 * 2, block), row_scale(p, row + lane % 4 * 2 + 1, block)};
#pragma unroll
            for (u32 t = 0; t < 2; t++) {
                float made[4];
                block_sums(w[t].codes, c.codes, c.shifts, w[t].factors, p.matrix.halves, made);
                for (int i = 0; i < 4; i++) totals[t][n][i] = fused(made[i], scales[i % 2], totals[t][n][i]);
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < 2; t++) {
        if (first_tile + t < output_tiles) {
            for (u32 n = 0; n < 4; n++) write_sums(p, first_tile + t, first_row + n * 8, totals[t][n]);
        }
    }
}
