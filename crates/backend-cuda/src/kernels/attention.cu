// Attention over paged keys and values: with the bits of the CPU device, or with matrix instructions.
//
// In: turned queries, the pool, block tables. Out: what each query head found, f32 `[rows][heads][head_dim]`.
//
// Positions are cut into chunks of 64, and chunks into spans of 1,024, both from position 0. A chunk's (maximum, sum, output) is computed
// from zero; chunks are merged left to right into a span's state, which begins from zero, and spans left to right. Inside of a chunk, scores
// add up over the elements of a head and outputs over positions, each in rising order. So what a row gives depends on its position and its
// keys alone. Scores are kept in units of ln 2.
//
// A tile is some neighbouring rows of a sequence with all query heads that share a KV head: QUERIES of them at most. One block of threads
// is one span of one tile and KV head; a second kernel joins spans. Scores live in shared memory and never all at once.

#define QUERIES 16
#define CHUNK 64
#define SPAN 1024
#define ATTEND_THREADS 128
// Elements of a head for each thread: heads have up to 256.
#define DIMS 2
#define LOG2_E 1.44269504088896340736f

struct AttendTile {
    u32 first_row;
    u32 rows;
    u32 position;  // of the first row
    u32 table;     // where the sequence's table of this group begins
    u32 first_span;  // its place in the list of spans
    u32 spans;
    u32 first_seen;  // the span of the first position that it sees
    u32 padding;
};

struct AttendParams {
    const float* qkv;  // [rows][q, k, v]
    const AttendTile* tiles;
    const u32* tile_of;  // of each span in the list, its tile
    const u32* tables;
    const float* sinks;  // [heads], or null
    // Of each span, KV head and query: `[width]` of outputs, then the maximum and the sum, which is 0 where nothing was seen.
    float* states;
    float* out;  // [rows][heads][head_dim]
    Pool pool;
    u32 heads;
    u32 window;  // positions that a row sees, its own included; 0 is all
    float scale;
    float cap;       // 0 is none
    u32 first_item;  // the first span of the list that has a state
};

__device__ inline u32 first_seen(u32 position, u32 window) {
    return window == 0 || position + 1 < window ? 0 : position + 1 - window;
}

// Maxima and sums of two parts, the earlier and the later, merged into the earlier; gives the factors of their outputs.
__device__ inline void merge(float& most, float& total, float next_most, float next_total, float& older, float& newer) {
    float merged = next_most > most ? next_most : most;
    older = exp2_of(most - merged);
    newer = exp2_of(next_most - merged);
    total = fused(next_total, newer, total * older);
    most = merged;
}

// Scores of a chunk become weights, and its maximum and sum are merged into the state of each query; `newer` is below zero where a query saw
// nothing. Eight threads work on a query: the largest score, then weights, then their sum over lanes of sixteen.
__device__ inline void weigh(
    float (&scores)[QUERIES][CHUNK], u32 count, float* most, float* total, float* older, float* newer) {
    u32 query = threadIdx.x / (ATTEND_THREADS / QUERIES), lane = threadIdx.x % (ATTEND_THREADS / QUERIES);
    float largest = as_float(0xff800000);
    for (u32 at = lane; at < CHUNK; at += ATTEND_THREADS / QUERIES) {
        largest = scores[query][at] > largest ? scores[query][at] : largest;
    }
    for (int step = ATTEND_THREADS / QUERIES / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffff, largest, step);
        largest = other > largest ? other : largest;
    }
    bool any = query < count && largest > as_float(0xff800000);
    float lanes[2] = {0.0f, 0.0f};
    for (u32 line = 0; line < CHUNK / LANES; line++) {
        for (u32 i = 0; i < 2; i++) {
            float* at = &scores[query][line * LANES + lane + i * (LANES / 2)];
            *at = any ? exp2_of(*at - largest) : 0.0f;
            lanes[i] += *at;
        }
    }
    float sum = lanes[0] + lanes[1];
    for (int step = LANES / 4; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (lane == 0) {
        newer[query] = -1.0f;
        if (any) merge(most[query], total[query], largest, sum, older[query], newer[query]);
    }
}

KERNEL(attend, ATTEND_THREADS, AttendParams) {
    __shared__ float scores[QUERIES][CHUNK];
    __shared__ float most[QUERIES], total[QUERIES], older[QUERIES], newer[QUERIES];
    SHARED(float, queries);  // [QUERIES][width], scaled
    u32 thread = threadIdx.x, item = p.first_item + blockIdx.x, kv_head = blockIdx.y;
    AttendTile tile = p.tiles[p.tile_of[item]];
    u32 shared_by = p.heads / p.pool.kv_heads, count = tile.rows * shared_by;
    u32 dim = p.pool.head_dim, width = p.pool.width;
    u32 span = tile.first_seen + (item - tile.first_span);
    u64 stride = static_cast<u64>(p.heads + 2 * p.pool.kv_heads) * dim;
    // A cap comes between the scale and the change of units.
    float scale = p.cap != 0.0f ? p.scale : p.scale * LOG2_E;
    for (u32 at = thread; at < count * width; at += ATTEND_THREADS) {
        u32 query = at / width, i = at % width;
        const float* from = p.qkv + (tile.first_row + query / shared_by) * stride + (kv_head * shared_by + query % shared_by) * dim;
        queries[at] = i < dim ? from[i] * scale : 0.0f;
    }
    if (thread < QUERIES) {
        most[thread] = as_float(0xff800000);
        total[thread] = 0.0f;
    }
    float out[DIMS][QUERIES] = {};
    __syncthreads();

    u32 seen = first_seen(tile.position, p.window), end = tile.position + tile.rows;
    u32 begin = seen > span * SPAN ? seen : span * SPAN;
    end = end < (span + 1) * SPAN ? end : (span + 1) * SPAN;
    for (u32 base = begin / CHUNK * CHUNK; base < end; base += CHUNK) {
        // Thread t scores position t of the chunk for half of the queries. No row sees positions outside of begin to end, and their
        // table entries may be no block's.
        u32 position = base + thread % CHUNK, half = thread / CHUNK;
        if (position >= begin && position < end) {
            u32 block = p.tables[tile.table + position / p.pool.block_tokens], slot = position % p.pool.block_tokens;
            const u32* keys = reinterpret_cast<const u32*>(p.pool.elements + keys_at(p.pool, block, kv_head) + key_at(p.pool, slot, 0));
            float sums[QUERIES / 2] = {};
            for (u32 i = 0; i < dim; i += 2) {
                u32 pair = keys[i / 2 * PAGE];
                float even = as_float(pair << 16), odd = as_float(pair & 0xffff0000);
#pragma unroll
                for (u32 q = 0; q < QUERIES / 2; q++) {
                    u32 query = 2 * q + half;
                    if (query < count) {
                        sums[q] = fused(queries[query * width + i], even, sums[q]);
                        if (i + 1 < dim) sums[q] = fused(queries[query * width + i + 1], odd, sums[q]);
                    }
                }
            }
#pragma unroll
            for (u32 q = 0; q < QUERIES / 2; q++) {
                u32 query = 2 * q + half;
                if (query < count) {
                    u32 own = tile.position + query / shared_by;
                    bool sees = position <= own && position >= first_seen(own, p.window);
                    float score = p.cap != 0.0f ? capped(sums[q], p.cap) * LOG2_E : sums[q];
                    scores[query][thread % CHUNK] = sees ? score : as_float(0xff800000);
                }
            }
        } else {
#pragma unroll
            for (u32 q = 0; q < QUERIES / 2; q++) scores[2 * q + half][thread % CHUNK] = as_float(0xff800000);
        }
        __syncthreads();
        weigh(scores, count, most, total, older, newer);
        __syncthreads();
        // Thread t mixes elements t and t + 128 for all queries.
#pragma unroll
        for (u32 d = 0; d < DIMS; d++) {
            u32 i = thread + d * ATTEND_THREADS;
            if (i < dim) {
                float sums[QUERIES] = {};
                u32 first = begin > base ? begin - base : 0, last = end - base < CHUNK ? end - base : CHUNK;
                for (u32 at = first / 2 * 2; at < last; at += 2) {
                    u32 here = base + at, block = p.tables[tile.table + here / p.pool.block_tokens];
                    const u16* values = p.pool.elements + keys_at(p.pool, block, kv_head) + width * p.pool.block_tokens;
                    u32 slot = here % p.pool.block_tokens;
                    u32 pair = *reinterpret_cast<const u32*>(values + value_at(p.pool, slot, i));
                    float even = as_float(pair << 16), odd = as_float(pair & 0xffff0000);
#pragma unroll
                    for (u32 query = 0; query < QUERIES; query++) {
                        // Positions that a query does not see may hold anything, even what is not a number.
                        if (query < count) {
                            float a = scores[query][at], b = scores[query][at + 1];
                            if (a != 0.0f) sums[query] = fused(a, even, sums[query]);
                            if (b != 0.0f) sums[query] = fused(b, odd, sums[query]);
                        }
                    }
                }
#pragma unroll
                for (u32 query = 0; query < QUERIES; query++) {
                    if (query < count && newer[query] >= 0.0f) {
                        out[d][query] = fused(sums[query], newer[query], out[d][query] * older[query]);
                    }
                }
            }
        }
        __syncthreads();
    }
    float* state = p.states + (static_cast<u64>(blockIdx.x) * p.pool.kv_heads + kv_head) * QUERIES * (width + 2);
#pragma unroll
    for (u32 query = 0; query < QUERIES; query++) {
        if (query < count) {
            for (u32 d = 0; d < DIMS; d++) {
                u32 i = thread + d * ATTEND_THREADS;
                if (i < dim) state[query * (width + 2) + i] = out[d][query];
            }
            if (thread == 0) {
                state[query * (width + 2) + width] = most[query];
                state[query * (width + 2) + width + 1] = total[query];
            }
        }
    }
}

// Words of a row of queries in shared memory beyond its own: rows begin in other banks.
#define QUERY_PAD 4
// Tiles of eight elements of a head for each warp.
#define DIM_TILES 8

// The same chunks and spans with matrix instructions, for models in bf16: queries and weights are rounded to bf16, and what is added up inside of an
// instruction is its own. A warp scores one page of a chunk, and mixes every fourth tile of eight elements.
KERNEL(attend_matrix, ATTEND_THREADS, AttendParams) {
    __shared__ float scores[QUERIES][CHUNK];
    __shared__ float most[QUERIES], total[QUERIES], older[QUERIES], newer[QUERIES];
    SHARED(u32, queries);  // [QUERIES][width / 2 + QUERY_PAD], pairs of bf16, scaled
    u32 thread = threadIdx.x, warp = thread / 32, g = thread % 32 / 4, q = thread % 4;
    u32 item = p.first_item + blockIdx.x, kv_head = blockIdx.y;
    AttendTile tile = p.tiles[p.tile_of[item]];
    u32 shared_by = p.heads / p.pool.kv_heads, count = tile.rows * shared_by;
    u32 dim = p.pool.head_dim, width = p.pool.width, words = width / 2 + QUERY_PAD;
    u32 span = tile.first_seen + (item - tile.first_span);
    u64 stride = static_cast<u64>(p.heads + 2 * p.pool.kv_heads) * dim;
    float scale = p.cap != 0.0f ? p.scale : p.scale * LOG2_E;
    for (u32 at = thread; at < QUERIES * (width / 2); at += ATTEND_THREADS) {
        u32 query = at / (width / 2), i = at % (width / 2) * 2;
        const float* from = p.qkv + (tile.first_row + query / shared_by) * stride + (kv_head * shared_by + query % shared_by) * dim;
        u32 even = query < count && i < dim ? bf16_of(from[i] * scale) : 0;
        u32 odd = query < count && i + 1 < dim ? bf16_of(from[i + 1] * scale) : 0;
        queries[query * words + i / 2] = odd << 16 | even;
    }
    if (thread < QUERIES) {
        most[thread] = as_float(0xff800000);
        total[thread] = 0.0f;
    }
    float out[DIM_TILES][4] = {};
    __syncthreads();

    u32 seen = first_seen(tile.position, p.window), end = tile.position + tile.rows;
    u32 begin = seen > span * SPAN ? seen : span * SPAN;
    end = end < (span + 1) * SPAN ? end : (span + 1) * SPAN;
    for (u32 base = begin / CHUNK * CHUNK; base < end; base += CHUNK) {
        u32 page = base + warp * PAGE;
        float sums[2][4] = {};
        bool is_seen = page < end && page + PAGE > begin;
        if (is_seen) {
            u32 block = p.tables[tile.table + page / p.pool.block_tokens], slot = page % p.pool.block_tokens;
            const u32* keys = reinterpret_cast<const u32*>(p.pool.elements + keys_at(p.pool, block, kv_head) + key_at(p.pool, slot, 0));
            for (u32 step = 0; step < width / 16; step++) {
                const u32* left = queries + g * words + step * 8 + q;
                u32 a[4] = {left[0], left[8 * words], left[4], left[8 * words + 4]};
#pragma unroll
                for (u32 n = 0; n < 2; n++) {
                    const u32* right = keys + (step * 8 + q) * PAGE + n * 8 + g;
                    u32 b[2] = {right[0], right[4 * PAGE]};
                    mma_bf16(sums[n], a, b);
                }
            }
        }
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 query = g + i / 2 * 8, at = warp * PAGE + n * 8 + q * 2 + i % 2;
                u32 position = base + at, own = tile.position + query / shared_by;
                bool sees = query < count && position < end && position <= own && position >= first_seen(own, p.window);
                float score = p.cap != 0.0f ? capped(sums[n][i], p.cap) * LOG2_E : sums[n][i];
                scores[query][at] = sees && is_seen ? score : as_float(0xff800000);
            }
        }
        __syncthreads();
        weigh(scores, count, most, total, older, newer);
        __syncthreads();
        float mixed[DIM_TILES][4] = {};
        for (u32 step = 0; step < CHUNK / PAGE; step++) {
            u32 here = base + step * PAGE;
            if (here >= end || here + PAGE <= begin) continue;
            u32 a[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float* pair = &scores[g + i % 2 * 8][step * PAGE + q * 2 + i / 2 * 8];
                a[i] = static_cast<u32>(bf16_of(pair[1])) << 16 | bf16_of(pair[0]);
            }
            u32 block = p.tables[tile.table + here / p.pool.block_tokens], slot = here % p.pool.block_tokens;
            const u16* values = p.pool.elements + keys_at(p.pool, block, kv_head) + width * p.pool.block_tokens;
            const u32* pairs = reinterpret_cast<const u32*>(values + value_at(p.pool, slot, 0));
            // Positions that no row sees may hold anything, even what is not a number.
            u32 mask[2];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 first = here + q * 2 + i * 8;
                mask[i] = (first >= begin && first < end ? 0x0000ffff : 0) | (first + 1 >= begin && first + 1 < end ? 0xffff0000 : 0);
            }
#pragma unroll
            for (u32 n = 0; n < DIM_TILES; n++) {
                u32 column = (n * 4 + warp) * 8 + g;
                // The same for all lanes of the warp: whole tiles.
                if ((n * 4 + warp) * 8 < width) {
                    u32 b[2] = {pairs[q * width + column] & mask[0], pairs[(q + 4) * width + column] & mask[1]};
                    mma_bf16(mixed[n], a, b);
                }
            }
        }
#pragma unroll
        for (u32 n = 0; n < DIM_TILES; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 query = g + i / 2 * 8;
                if (newer[query] >= 0.0f) out[n][i] = fused(mixed[n][i], newer[query], out[n][i] * older[query]);
            }
        }
        __syncthreads();
    }
    float* state = p.states + (static_cast<u64>(blockIdx.x) * p.pool.kv_heads + kv_head) * QUERIES * (width + 2);
#pragma unroll
    for (u32 n = 0; n < DIM_TILES; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 query = g + i / 2 * 8, column = (n * 4 + warp) * 8 + q * 2 + i % 2;
            if (query < count && column < dim) state[query * (width + 2) + column] = out[n][i];
        }
    }
    if (thread < count) {
        state[thread * (width + 2) + width] = most[thread];
        state[thread * (width + 2) + width + 1] = total[thread];
    }
}

// Joins the spans of each query of a tile, and divides by the sums.
KERNEL(join_spans, ATTEND_THREADS, AttendParams) {
    AttendTile tile = p.tiles[blockIdx.x];
    u32 kv_head = blockIdx.y, query = blockIdx.z, thread = threadIdx.x;
    u32 shared_by = p.heads / p.pool.kv_heads, dim = p.pool.head_dim, width = p.pool.width;
    if (query >= tile.rows * shared_by) return;
    u32 head = kv_head * shared_by + query % shared_by;
    float most = as_float(0xff800000), total = 0.0f, out[DIMS] = {};
    if (p.sinks) {
        most = p.sinks[head] * LOG2_E;
        total = 1.0f;
    }
    for (u32 span = 0; span < tile.spans; span++) {
        u64 at = (static_cast<u64>(tile.first_span + span - p.first_item) * p.pool.kv_heads + kv_head) * QUERIES + query;
        const float* state = p.states + at * (width + 2);
        float next_most = state[width], next_total = state[width + 1], older, newer;
        if (next_total == 0.0f) continue;
        merge(most, total, next_most, next_total, older, newer);
        for (u32 d = 0; d < DIMS; d++) {
            u32 i = thread + d * ATTEND_THREADS;
            if (i < dim) out[d] = out[d] * older + state[i] * newer;
        }
    }
    float inverse = quotient(1.0f, total);
    for (u32 d = 0; d < DIMS; d++) {
        u32 i = thread + d * ATTEND_THREADS;
        u64 row = tile.first_row + query / shared_by;
        if (i < dim) p.out[(row * p.heads + head) * dim + i] = out[d] * inverse;
    }
}
