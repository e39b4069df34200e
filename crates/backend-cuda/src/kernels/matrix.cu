// Matrices of weights, and single rows of them.
//
// A matrix `[width, depth]` is cut into tiles of 16 outputs, padded with zeros, that lie in the order in which a warp reads them, so that a
// load of sixteen bytes by each lane is what one or two matrix instructions need. Lane 4g + q of a warp holds outputs g and g + 8.
//
// - bf16: `[width / 16][depth / 16][lane][8]`. Along the depth the lane has elements 4q to 4q + 3 of the tile; its eight numbers are
//   (g; 4q, 4q + 1), (g + 8; 4q, 4q + 1), (g; 4q + 2, 4q + 3), (g + 8; 4q + 2, 4q + 3).
// - nested: two planes of nibbles, `[width / 16][depth / 64][lane][16]`, and f16 scales `[width / 16][depth / 64][groups][16]`, one group of
//   64 or two of 32. The lane has eight words of four codes: word 4h + 2e + o is of half h of the block, elements 8q + 4e to 8q + 4e + 3
//   of the half, output g + 8 o. Byte 4i + j of a plane holds the nibble of byte j of word 2i below and that of word 2i + 1 above.
//   A code c is the byte c + 128; without the lower plane a nibble h stands for 16 h + 7.5.

struct Matrix {
    const u16* bf16;   // or null
    const u8* upper;   // or null
    const u8* lower;
    const u16* scales;
    const float* bias;  // [width], or null
    float power;        // scales are multiplied by it
    u32 width;
    u32 depth;   // a multiple of 64
    u32 halves;  // two groups of 32
};

// One element, at 8 bits where the matrix is nested, times `scale`.
__device__ inline float element(const Matrix& m, u32 output, u32 k, float scale) {
    u32 tile = output / 16, g = output % 8, upper_half = output % 16 / 8;
    if (m.bf16) {
        u32 inside = k % 16, lane = g * 4 + inside / 4;
        u64 base = (static_cast<u64>(tile) * (m.depth / 16) + k / 16) * 256;
        return bf16_value(m.bf16[base + lane * 8 + (inside % 4 / 2 * 2 + upper_half) * 2 + inside % 2]) * scale;
    }
    u32 half = k % 64 / 32, inside = k % 32, lane = g * 4 + inside / 8;
    u32 word = 4 * half + inside % 8 / 4 * 2 + upper_half;
    u64 block = static_cast<u64>(tile) * (m.depth / 64) + k / 64;
    u64 at = block * 512 + lane * 16 + word / 2 * 4 + inside % 4;
    u32 shift = word % 2 * 4;
    u32 byte = (m.upper[at] >> shift & 15) << 4 | (m.lower[at] >> shift & 15);
    u32 groups = m.halves ? 2 : 1;
    float factor = f16_value(m.scales[(block * groups + (m.halves ? half : 0)) * 16 + output % 16]) * m.power * scale;
    return (static_cast<float>(byte) - 128.0f) * factor;
}

struct EmbedParams {
    Matrix table;
    const u32* tokens;
    float* stream;  // [rows][hidden]
    u32 hidden;
    float scale;
};

// The embeddings of the rows' tokens.
KERNEL(embed, ROW_THREADS, EmbedParams) {
    u32 row = blockIdx.x, token = p.tokens[row];
    for (u32 at = threadIdx.x; at < p.hidden; at += ROW_THREADS) {
        p.stream[static_cast<u64>(row) * p.hidden + at] = element(p.table, token, at, p.scale);
    }
}
