// Products of rows in bf16 with a matrix in bf16.
//
// In: an input and a matrix. Out: f32, `[rows][width]`. Deliberately not here: other formats.
//
// Order of accumulation, the same for any number of rows: the depth is cut into segments of SEGMENT, each summed from zero by one
// instruction after the other in rising order, and segments are added in order. Weights are the left operand, whose sixteen lines are
// outputs; rows are the eight columns of the right one, and a column's sums do not depend on its neighbours.

#define SEGMENT 256
#define TILE 16
#define FEW_WARPS 8
#define FEW_TILES 4

struct ProductParams {
    Matrix matrix;
    Input input;
    const u32* rows;  // which rows of the input, or null: all
    float* out;       // [rows][width]
    u32 count;        // rows
    u32 narrow;       // with nested weights: at 4 bits
};

// What lane 4g + q holds of a result: outputs g and g + 8, rows 2q and 2q + 1.
__device__ inline void write_sums(const ProductParams& p, u32 tile, u32 first_row, const float (&sums)[4]) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int at = 0; at < 4; at++) {
        u32 output = tile * TILE + lane / 4 + at / 2 * 8, row = first_row + lane % 4 * 2 + at % 2;
        if (output < p.matrix.width && row < p.count) {
            float value = sums[at];
            if (p.matrix.bias) value += p.matrix.bias[output];
            u64 to = p.rows ? p.rows[row] : row;
            p.out[to * p.matrix.width + output] = value;
        }
    }
}

// Where the input of this lane's row of an n-tile begins; rows beyond the last read the last.
__device__ inline u64 input_row(const ProductParams& p, u32 row) {
    u32 inside = row < p.count ? row : p.count - 1;
    return p.rows ? p.rows[inside] : inside;
}

// Few rows: a block of threads takes one tile of outputs, its warps segments of the depth, so that many loads are under way.
KERNEL(product_bf16_few, FEW_WARPS * 32, ProductParams) {
    __shared__ float parts[FEW_WARPS][FEW_TILES][32][4];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x, first_row = blockIdx.y * FEW_TILES * 8;
    u32 steps = p.matrix.depth / TILE, segment_steps = SEGMENT / TILE;
    u32 segments = (steps + segment_steps - 1) / segment_steps;
    const uint4* weights = reinterpret_cast<const uint4*>(p.matrix.bf16) + static_cast<u64>(tile) * steps * 32 + lane;
    const u16* rows[FEW_TILES];
    u32 tiles = (p.count - first_row + 7) / 8;
    tiles = tiles < FEW_TILES ? tiles : FEW_TILES;
#pragma unroll
    for (u32 at = 0; at < FEW_TILES; at++) {
        rows[at] = p.input.bf16 + input_row(p, first_row + at * 8 + lane / 4) * p.input.depth + lane % 4 * 4;
    }
    float totals[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 round = 0; round < segments; round += FEW_WARPS) {
        u32 segment = round + warp;
        if (segment < segments) {
            float sums[FEW_TILES][4] = {};
            u32 end = (segment + 1) * segment_steps < steps ? (segment + 1) * segment_steps : steps;
#pragma unroll 4
            for (u32 step = segment * segment_steps; step < end; step++) {
                uint4 loaded = load_once(weights + step * 32);
                u32 a[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
                for (u32 at = 0; at < FEW_TILES; at++) {
                    if (at < tiles) {
                        uint2 pair = *reinterpret_cast<const uint2*>(rows[at] + step * TILE);
                        u32 b[2] = {pair.x, pair.y};
                        mma_bf16(sums[at], a, b);
                    }
                }
            }
#pragma unroll
            for (u32 at = 0; at < FEW_TILES; at++) {
                for (int i = 0; i < 4; i++) parts[warp][at][lane][i] = sums[at][i];
            }
        }
        __syncthreads();
        // Warp w of the first ones owns the sums of n-tile w.
        if (warp < tiles) {
            u32 made = segments - round < FEW_WARPS ? segments - round : FEW_WARPS;
            for (u32 from = 0; from < made; from++) {
                for (int i = 0; i < 4; i++) totals[i] += parts[from][warp][lane][i];
            }
        }
        __syncthreads();
    }
    if (warp < tiles) write_sums(p, tile, first_row + warp * 8, totals);
}

#define MANY_ROWS 64
#define MANY_OUTPUT_TILES 8
#define MANY_STEP 64
// Elements of a row of the stage: 16 bytes more than a step, so that rows begin in other banks.
#define MANY_STRIDE (MANY_STEP + 8)

// Many rows: a block of threads takes 128 outputs and 64 rows; a warp 32 outputs and 32 rows. Rows come through shared memory, two steps
// under way; weights go to registers at once, which their order is made for.
KERNEL(product_bf16_many, 256, ProductParams) {
    __shared__ __align__(16) u16 stage[2][MANY_ROWS][MANY_STRIDE];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 first_row = blockIdx.x * MANY_ROWS;
    u32 output_tiles = (p.matrix.width + TILE - 1) / TILE;
    u32 first_tile = blockIdx.y * MANY_OUTPUT_TILES + warp / 2 * 2, first_column = warp % 2 * 32;
    u32 steps = p.matrix.depth / TILE, stages = p.matrix.depth / MANY_STEP;
    const uint4* weights[2];
#pragma unroll
    for (u32 t = 0; t < 2; t++) {
        u32 tile = first_tile + t < output_tiles ? first_tile + t : output_tiles - 1;
        weights[t] = reinterpret_cast<const uint4*>(p.matrix.bf16) + static_cast<u64>(tile) * steps * 32 + lane;
    }
    // A thread brings two pieces of sixteen bytes of each stage.
    const u16* pieces[2];
    bool valid[2];
    u32 piece_row[2], piece_at[2];
#pragma unroll
    for (u32 t = 0; t < 2; t++) {
        u32 piece = threadIdx.x + t * 256;
        piece_row[t] = piece / (MANY_STEP / 8);
        piece_at[t] = piece % (MANY_STEP / 8) * 8;
        valid[t] = first_row + piece_row[t] < p.count;
        pieces[t] = p.input.bf16 + input_row(p, first_row + piece_row[t]) * p.input.depth + piece_at[t];
    }
    float sums[2][4][4] = {}, totals[2][4][4] = {};
#pragma unroll
    for (u32 t = 0; t < 2; t++) copy_ahead(&stage[0][piece_row[t]][piece_at[t]], pieces[t], valid[t]);
    copy_group();
    for (u32 at = 0; at < stages; at++) {
        if (at + 1 < stages) {
#pragma unroll
            for (u32 t = 0; t < 2; t++) {
                copy_ahead(&stage[(at + 1) % 2][piece_row[t]][piece_at[t]], pieces[t] + (at + 1) * MANY_STEP, valid[t]);
            }
        }
        copy_group();
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (u32 inside = 0; inside < MANY_STEP / TILE; inside++) {
            u32 a[2][4];
#pragma unroll
            for (u32 t = 0; t < 2; t++) {
                uint4 loaded = weights[t][(at * (MANY_STEP / TILE) + inside) * 32];
                a[t][0] = loaded.x, a[t][1] = loaded.y, a[t][2] = loaded.z, a[t][3] = loaded.w;
            }
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                const u16* from = &stage[at % 2][first_column + n * 8 + lane / 4][inside * TILE + lane % 4 * 4];
                uint2 pair = *reinterpret_cast<const uint2*>(from);
                u32 b[2] = {pair.x, pair.y};
                mma_bf16(sums[0][n], a[0], b);
                mma_bf16(sums[1][n], a[1], b);
            }
        }
        if ((at + 1) % (SEGMENT / MANY_STEP) == 0 || at + 1 == stages) {
#pragma unroll
            for (u32 t = 0; t < 2; t++) {
                for (u32 n = 0; n < 4; n++) {
                    for (int i = 0; i < 4; i++) {
                        totals[t][n][i] += sums[t][n][i];
                        sums[t][n][i] = 0.0f;
                    }
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 t = 0; t < 2; t++) {
        if (first_tile + t < output_tiles) {
            for (u32 n = 0; n < 4; n++) write_sums(p, first_tile + t, first_row + first_column + n * 8, totals[t][n]);
        }
    }
}
